"""A canary on a real Kafka: the books balance and order is kept, in either mode of delivery."""

from pathlib import Path

import pytest
from stream_vae.canary import chosen
from stream_vae.metrics import Metrics
from stream_vae.model.store import ReleaseStore
from stream_vae.runtime.worker import Worker

from deployment import deploy
from flow import IDLE_S, Record, check_books, read, send
from releases import make_release
from servers import Kafka
from stage_parts import avro_file, candidate

ALERTS, PARTITIONS = 300, 3


@pytest.mark.parametrize("mode", ["at_least_once", "exactly_once"])
def test_a_canary_divides_every_batch_and_each_message_says_who_scored_it(
    kafka: Kafka, tmp_path: Path, mode: str
) -> None:
    deployment = deploy(kafka, tmp_path, survey="candidate", partitions=PARTITIONS, delivery={"mode": mode})
    store = ReleaseStore(deployment.settings.release.store)
    first = store.current()
    second = make_release(store, tmp_path / "second", seed=5, promote=False).id
    store.challenge(second, "canary", 0.3)
    records = [Record(avro_file(candidate(n)), key=str(n).encode()) for n in range(ALERTS)]
    send(kafka, deployment.input, records, partitions=PARTITIONS)
    Worker(deployment.settings, Metrics("candidate")).run(exit_when_idle_s=IDLE_S)
    check_books(deployment.settings, consumed=ALERTS)
    for topic in (deployment.output, deployment.lite):
        found = read(kafka, topic)
        assert len(found) == ALERTS
        ids = [(record.key or b"").decode() for record in found]
        theirs = chosen(second, ids, 0.3)
        assert [record.header("stream_vae.release").decode() for record in found] == [
            second if picked else first for picked in theirs
        ]
        assert sorted(record.origin for record in found) == [
            (deployment.input, partition, offset)
            for partition in range(PARTITIONS)
            for offset in range(ALERTS // PARTITIONS)
        ]
        for source in range(PARTITIONS):
            for partition in range(PARTITIONS):
                offsets = [each.origin[2] for each in found if each.partition == partition and each.origin[1] == source]
                assert offsets == sorted(offsets)
