"""A running process is killed again and again under load, as by a power cut: the short form of the chaos test.

As in Apache Kafka's own test of transactions: every alert is there, none twice where that was promised, and in order,
for a reader at the end and for one that reads all the while.
"""

import contextlib
import itertools
import random
import threading
import time

import pytest
from stream_vae.sky.packets import simulate_packets

from deployment import Deployment, deploy
from flow import TIMEOUT_S, Record, check_books, check_same, count_messages, read, running, send, until

PARTITIONS = 3
KILLS = 3
A_SECOND = 150
ALERTS = 300  # sent again and again, under other keys
BATCH = {"max_alerts": 16, "max_wait_s": 0.05}


@pytest.fixture(scope="module")
def packets() -> list[bytes]:
    return [each.packet for each in simulate_packets(ALERTS, shape="candidate", seed=3)]


class Load:
    """Sends alerts at a rate until it is told to stop."""

    def __init__(self, deployment: Deployment, packets: list[bytes]) -> None:
        self.sent: list[Record] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(deployment, packets), daemon=True)
        self._thread.start()

    def _run(self, deployment: Deployment, packets: list[bytes]) -> None:
        start = time.monotonic()
        alerts = (Record(packet, str(n).encode()) for n, packet in enumerate(itertools.cycle(packets)))
        while not self._stop.wait(max(start + len(self.sent) / A_SECOND - time.monotonic(), 0)):
            some = list(itertools.islice(alerts, 10 * PARTITIONS))
            send(deployment.kafka, deployment.input, some, partitions=PARTITIONS)
            self.sent += some

    def close(self) -> None:
        assert self._thread.is_alive(), "the load did not last to the end"
        self._stop.set()
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("mode", ["at_least_once", "exactly_once"])
def test_killing_the_process_again_and_again_loses_nothing_and_doubles_only_what_may_be(kafka, tmp_path, packets, mode):
    deployment = deploy(
        kafka, tmp_path, survey="candidate", partitions=PARTITIONS, batch=BATCH, delivery={"mode": mode}
    )
    arguments = ("run", "--settings", deployment.file, "--workers", 0)
    chance = random.Random(1)
    with contextlib.closing(Load(deployment, packets)) as load:
        for kill in range(KILLS):
            there = count_messages(kafka, deployment.output)
            with running(tmp_path / f"killed-{kill}", *arguments) as process:
                until(lambda there=there: count_messages(kafka, deployment.output) > there + 50, what="it publishes")
                time.sleep(chance.uniform(0, 0.2))
                assert process.running, process.text
                process.kill()
            seen = read(kafka, deployment.output)
            check_delivered(seen, mode)
    sent = load.sent
    with running(tmp_path / "last", *arguments, "--exit-when-idle", 0.5) as process:
        assert process.wait() == 0, process.text

    published = read(kafka, deployment.output)
    again = check_delivered(published, mode)
    assert {record.key for record in published} == {record.key for record in sent}
    assert read(kafka, deployment.dead_letters) == []
    check_books(deployment.settings, consumed=len(sent), duplicates=again)
    # What a reader had after the last kill is what it would read again: nothing was taken back.
    later = {record.position: record.value for record in published}
    assert [later[record.position] for record in seen] == [record.value for record in seen]


def check_delivered(published: list[Record], mode: str) -> int:
    """Check order and duplicates; give how many came again."""
    again = check_same(published)
    if mode == "exactly_once":
        assert again == 0
    order: dict[tuple[str, int, int], list[int]] = {}
    for record in published:  # partition by partition, in order; alerts of one object stay on one
        order.setdefault((*record.origin[:2], record.partition), []).append(record.origin[2])
    # Going back to what was committed is the only disorder there may be, once a kill.
    most = KILLS if mode == "at_least_once" else 0
    for offsets in order.values():
        assert sum(later <= earlier for earlier, later in itertools.pairwise(offsets)) <= most
    return again
