"""What is sent: alerts at a rate under keys of their own, and the record of it that readers are compared with."""

import itertools
import json
import os
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from confluent_kafka import KafkaError, Message, Producer
from stream_vae.faults.corpus import EXPECTED, Outcome, corrupt, kinds_for
from stream_vae.sky.packets import ocf_block, ocf_header, simulate_packets

from deployment import Deployment
from flow import avro_file
from servers import REPOSITORY

Place = tuple[int, int]
"""Partition of the input topic, and offset."""

SIMULATED = 300
AT_A_TIME = 20
KINDS_AT_MOST = 60
"""Packets that damaged ones are made from: each with another fault."""


class Item(NamedTuple):
    """One packet to send, and where it must end."""

    packet: bytes
    dead: bool = False


class Sent(NamedTuple):
    """What is known of one message of the input."""

    key: bytes
    dead_crc: int | None
    """Of its bytes, where it must become a dead letter."""


def real_alerts() -> list[bytes]:
    """Read ZTF's packets from ALERTS_DIR, or shared/data beside the checkout; none where there are none."""
    given = os.environ.get("ALERTS_DIR")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "data"
    return [path.read_bytes() for path in sorted((folder / "ztf").rglob("*.avro"))]


def simulated_alerts(shape: str, count: int = SIMULATED) -> list[bytes]:
    return [each.packet for each in simulate_packets(count, shape=shape, seed=3)]


def under_another_schema(packet: bytes) -> bytes:
    """Write a packet as if another version of the writer had: its schema has another name in its documentation."""
    parts = avro_file(packet)
    schema = json.loads(parts.metadata["avro.schema"]) | {"doc": "Another version."}
    metadata = parts.metadata | {"avro.schema": json.dumps(schema).encode()}
    return ocf_header(metadata) + parts.sync + ocf_block(parts.body, parts.sync)


def clean(packets: Sequence[bytes]) -> Iterator[Item]:
    """The same packets over and over."""
    return map(Item, itertools.cycle(packets))


def spoiled(packets: Sequence[bytes], *, corrupted: float = 0.01, twice: float = 0.02) -> Iterator[Item]:
    """Packets of two writers, some sent twice, and some damaged in each way that there is."""
    rng = np.random.default_rng(5)
    both = [under_another_schema(packet) if n % 3 == 0 else packet for n, packet in enumerate(packets)]
    damaged = itertools.cycle(_damaged(both, rng))
    for packet in itertools.cycle(both):
        chance = rng.random()
        if chance < corrupted:
            yield next(damaged)
            continue
        yield Item(packet)
        if chance > 1 - twice:
            yield Item(packet)


def _damaged(packets: Sequence[bytes], rng: np.random.Generator) -> list[Item]:
    kinds = kinds_for(packets[0])
    chosen = [kinds[n] for n in rng.permutation(len(kinds))[:KINDS_AT_MOST]]
    return [
        Item(corrupt(packet, kind, rng), EXPECTED[kind].outcome is Outcome.DEAD_LETTER)
        for kind, packet in zip(chosen, itertools.cycle(packets), strict=False)
        if kind in kinds_for(packet)
    ]


class Load:
    """Sends at a rate in a thread of its own; `sent` fills as the broker acknowledges.

    Idempotent, so that an outage of the broker doubles nothing here.
    """

    def __init__(self, deployment: Deployment, items: Iterator[Item], *, a_second: float, partitions: int) -> None:
        self.sent: dict[Place, Sent] = {}
        self.failures: list[str] = []
        self._topic, self._items, self._a_second, self._partitions = deployment.input, items, a_second, partitions
        options = {
            "bootstrap.servers": deployment.kafka.bootstrap_servers,
            "enable.idempotence": True,
            "message.max.bytes": 10_000_000,
            "message.timeout.ms": 300_000,
            "linger.ms": 5,
            "reconnect.backoff.max.ms": 1_000,  # what is measured is the fleet's recovery, not ours
            "log_level": 0,  # a broker that is away is no news here
        }
        self._producer = Producer(options)
        self._began_at, self._ended_at = time.monotonic(), 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        start = time.monotonic()
        for count, item in enumerate(self._items):
            if count % AT_A_TIME == 0:
                self._producer.poll(0)
                if self._stop.wait(max(start + count / self._a_second - time.monotonic(), 0)):
                    return
            self._send(count, item)

    def _send(self, number: int, item: Item) -> None:
        sent = Sent(str(number).encode(), zlib.crc32(item.packet) if item.dead else None)

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is None:
                self.sent[message.partition(), message.offset()] = sent
            else:
                self.failures.append(f"message {number}: {error.str()}")

        while not self._stop.is_set():
            try:
                self._producer.produce(
                    self._topic, item.packet, sent.key, partition=number % self._partitions, on_delivery=delivered
                )
            except BufferError:
                self._producer.poll(0.1)  # the broker is away
            else:
                return

    @property
    def a_second(self) -> float:
        """What was acknowledged, by second, from the beginning until the end or now."""
        end = self._ended_at or time.monotonic()
        return len(self.sent) / max(end - self._began_at, 1e-3)

    def stop(self) -> None:
        """Send no more, and wait until all is acknowledged."""
        self._stop.set()
        self._thread.join()
        assert self._producer.flush(300) == 0
        self._ended_at = time.monotonic()
        assert self.failures == []
