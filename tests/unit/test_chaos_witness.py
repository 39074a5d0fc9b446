"""The chaos suite's own judgement: each thing that may go wrong is seen, and what must not be called wrong is not."""

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from stream_vae.sky.packets import simulate_packets

from chaos import __main__ as chaos_main
from chaos.load import Sent, spoiled, under_another_schema
from chaos.rows import Verdict, _slower
from chaos.witness import Deposition, Findings, without_scored_at
from flow import avro_file, decode_file, encode

CLEAN = Findings(2, 0, 0, 0, 0, 0, 0, 0, 0)
NOW_US = int(time.time() * 1_000_000)


@dataclass
class Message:
    """One that a reader got."""

    origin: int
    place: int
    body: bytes = b"body"
    scored_at_us: int = NOW_US
    sent_key: bytes = b"k"
    to: str = "out"
    release: str = "first"

    def topic(self) -> str:
        return self.to

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.place

    def key(self) -> bytes:
        return self.sent_key

    def value(self) -> bytes:
        return self.body if self.to == "dead" else self.body + encode("long", self.scored_at_us)

    def headers(self) -> list[tuple[str, bytes]]:
        scored = [] if self.to == "dead" else [("stream_vae.release", self.release.encode())]
        return [("stream_vae.source", f"in/0/{self.origin}".encode()), *scored]

    def timestamp(self) -> tuple[int, int]:
        return 1, 1


SENT = {(0, 0): Sent(b"k", None), (0, 1): Sent(b"k", None)}


def findings(*messages: Message) -> dict[str, int]:
    """Give what is not as in a clean run."""
    deposition = Deposition("dead")
    for message in messages:
        deposition.enter(message)
    found = deposition.findings(SENT)
    return {name: value for name in Findings.__annotations__ if (value := getattr(found, name)) != getattr(CLEAN, name)}


def test_all_once_and_in_order_is_clean() -> None:
    assert findings(Message(0, 0), Message(1, 1)) == {}


def test_a_loss_is_seen() -> None:
    assert findings(Message(0, 0)) == {"delivered": 1, "lost": 1}


def test_what_nobody_sent_is_seen() -> None:
    assert findings(Message(0, 0), Message(1, 1), Message(2, 2)) == {"delivered": 3, "invented": 1}


def test_a_duplicate_is_counted_and_its_time_of_scoring_may_differ() -> None:
    again = Message(1, 2, scored_at_us=NOW_US + 9_999)
    assert findings(Message(0, 0), Message(1, 1), again) == {"delivered": 3, "duplicated": 1, "steps_back": 1}


def test_another_release_may_score_again_what_the_first_scored_but_not_twice_in_two_ways() -> None:
    other = {"release": "second", "scored_at_us": NOW_US + 1}
    again = Message(1, 2, b"other", **other), Message(1, 3, b"other", **other)
    assert findings(Message(0, 0), Message(1, 1), *again)["duplicated"] == 2
    assert "differing" not in findings(Message(0, 0), Message(1, 1), *again)
    assert findings(Message(0, 0), Message(1, 1), *again, Message(1, 4, b"third", **other))["differing"] == 1


def test_a_batch_of_two_releases_is_seen() -> None:
    assert findings(Message(0, 0), Message(1, 1, release="second")) == {"mixed": 1}


def test_a_duplicate_that_differs_is_seen() -> None:
    found = findings(Message(0, 0), Message(1, 1), Message(1, 2, body=b"bodY"))
    assert found == {"delivered": 3, "duplicated": 1, "steps_back": 1, "differing": 1}


def test_going_back_is_no_disorder_but_an_alert_that_comes_first_after_a_later_one_is() -> None:
    back = findings(Message(0, 0), Message(0, 1), Message(1, 2))
    assert back == {"delivered": 3, "duplicated": 1, "steps_back": 1}
    assert findings(Message(1, 0), Message(0, 1)) == {"disordered": 1, "steps_back": 1}


def test_a_good_alert_among_the_dead_letters_and_a_changed_key_are_seen() -> None:
    assert findings(Message(0, 0, to="dead"), Message(1, 1)) == {"misplaced": 1}
    assert findings(Message(0, 0, sent_key=b"other"), Message(1, 1)) == {"misplaced": 1}


def test_of_an_avro_file_the_time_before_the_last_mark_is_left_out() -> None:
    sync = bytes(range(16))
    one, other = (b"Obj\x01header" + encode("long", time_us) + sync for time_us in (NOW_US, NOW_US + 123_456))
    assert without_scored_at(one) == without_scored_at(other) == b"Obj\x01header" + sync


def test_another_schema_reads_alike() -> None:
    (alert,) = simulate_packets(1, shape="candidate", seed=2)
    other = under_another_schema(alert.packet)
    assert decode_file(other) == decode_file(alert.packet)
    assert avro_file(other).metadata["avro.schema"] != avro_file(alert.packet).metadata["avro.schema"]


def test_a_spoiled_load_has_some_of_everything() -> None:
    packets = [each.packet for each in simulate_packets(50, shape="candidate", seed=2)]
    items = [item for item, _ in zip(spoiled(packets, corrupted=0.1, twice=0.1), range(500), strict=False)]
    assert 10 < sum(item.dead for item in items) < 100
    assert 10 < sum(one.packet == other.packet for one, other in itertools.pairwise(items)) < 150


@pytest.mark.parametrize(
    ("during", "complaints"),
    [(0.20, 0), (0.32, 0), (0.34, 1), (None, 1)],
    ids=["as fast", "noise", "slower", "stopped"],
)
def test_alerts_that_come_later_while_something_beside_the_path_fails_are_a_complaint(
    during: float | None, complaints: int
) -> None:
    assert len(_slower({"calm": 0.2, "Redis slow": during})) == complaints


def test_the_latency_of_a_window_is_that_of_what_came_within_it() -> None:
    deposition = Deposition("dead")
    deposition.enter(Message(0, 0))
    between = time.monotonic()
    deposition.enter(Message(1, 1))
    end = time.monotonic()
    assert deposition.latency_s([(between, between)]) is None
    # Message says that it was sent one millisecond after the beginning of 1970.
    assert deposition.latency_s([(between, end)]) == pytest.approx(time.time(), rel=1e-6)


VERDICT = Verdict(
    *(
        "workers killed",
        "exactly_once",
        3,
        3,
        1_000,
        0,
        0,
        0,
        0,
        0,
        [0.5, 2.0, 1.0],
        2.5,
        99.6,
        {"calm": 0.2},
        [],
        20.0,
    ),
    problems=["1 lost for the final reader"],
)


def test_the_table_replaces_the_one_before_and_leaves_the_rest_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("# Before\n\n<!-- table -->\nold\n<!-- end of table -->\n\nAfter.\n")
    for _ in range(2):
        chaos_main._put(file, chaos_main.markdown([VERDICT]))
    text = file.read_text()
    assert text.startswith("# Before\n\n<!-- table -->\n| row | mode |")
    assert text.endswith("<!-- end of table -->\n\nAfter.\n")
    assert text.count("| workers killed | exactly_once | 3 | 3 | 1,000 | 100 |") == 1
    assert "| 1.0 / 2.0 | 2.5 | 0 |" in text
    assert "- workers killed, exactly_once: 1 lost for the final reader" in text
    assert "old" not in text
