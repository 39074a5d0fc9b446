"""A dead letter is the message as it came, with headers that say why and from where."""

import pytest
from stream_vae.alert import Rejected
from stream_vae.errors import Reason
from stream_vae.stages.dead_letter import dead_letter

from stage_parts import packet

HEADERS = [("traceparent", b"00-1"), ("nothing", None)]


def test_value_key_and_foreign_headers_are_kept_and_the_time_is_told_in_a_header() -> None:
    original = packet(b"\x00junk", 9, partition=3, key=b"key", timestamp_ms=5, headers=HEADERS)
    outcome = dead_letter(Rejected(original, Reason.FRAMING, "decode", "why", "alert-1"), "dead")
    (message,) = outcome.messages
    assert outcome.fate == "dead_lettered"
    assert outcome.packet is original
    assert (message.topic, message.value, message.key, message.timestamp_ms) == ("dead", b"\x00junk", b"key", None)
    assert message.headers[:2] == HEADERS
    assert dict(message.headers[2:]) == {
        "stream_vae.source": b"in/3/9",
        "stream_vae.reason": b"framing",
        "stream_vae.stage": b"decode",
        "stream_vae.error": b"why",
        "stream_vae.topic": b"in",
        "stream_vae.partition": b"3",
        "stream_vae.offset": b"9",
        "stream_vae.timestamp_ms": b"5",
        "stream_vae.alert_id": b"alert-1",
    }


def test_a_message_whose_id_is_unknown_says_none() -> None:
    (message,) = dead_letter(Rejected(packet(), Reason.EMPTY, "decode", "x"), "dead").messages
    assert "stream_vae.alert_id" not in dict(message.headers)
    assert message.key is None


def test_headers_of_an_earlier_dead_letter_are_replaced_and_not_heaped_up() -> None:
    first = dead_letter(Rejected(packet(offset=1), Reason.EMPTY, "decode", "x", "a"), "dead").messages[0]
    again = packet(offset=2, headers=first.headers)
    second = dead_letter(Rejected(again, Reason.SCHEMA, "enrich", "y"), "dead").messages[0]
    names = [name for name, _ in second.headers]
    assert len(names) == len(set(names))
    assert dict(second.headers)["stream_vae.offset"] == b"2"
    assert "stream_vae.alert_id" not in names


@pytest.mark.parametrize("error", ["x" * 100_000, "é" * 5000, "lone \ud800 surrogate", "two\nlines\0"])
def test_whatever_the_error_says_the_headers_can_be_sent(error: str) -> None:
    (message,) = dead_letter(Rejected(packet(), Reason.MALFORMED, "decode", error), "dead").messages
    value = dict(message.headers)["stream_vae.error"]
    assert value is not None
    assert len(value.decode()) <= 1000
