"""What readers see: for each message of the input what came of it, kept as digests, and what is wrong with that."""

import bisect
import hashlib
import statistics
import threading
import time
import zlib
from array import array
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, TopicPartition

from chaos.load import Place, Sent
from deployment import Deployment

VARINT_BYTES = 8
"""Of `scored_at`, the last field of an enriched record: microseconds since 1970, until the year 3111."""
SYNC_BYTES = 16
A_DAY_US = 86_400_000_000
END_TIMEOUT_S = 300


def _end(value: bytes) -> int:
    return len(value) - SYNC_BYTES if value.startswith(b"Obj\x01") else len(value)


def scored_at_us(value: bytes) -> int:
    """Read the time of scoring, in microseconds since 1970, from an enriched Avro file or Confluent message."""
    end, zigzag = _end(value), 0
    for n, byte in enumerate(value[end - VARINT_BYTES : end]):
        zigzag |= (byte & 0x7F) << (7 * n)
    scored_at = (zigzag >> 1) ^ -(zigzag & 1)
    assert abs(time.time() * 1e6 - scored_at) < A_DAY_US, "the record does not end with the time of scoring"
    return scored_at


def without_scored_at(value: bytes) -> bytes:
    """Take the time of scoring, the one thing that may differ, out of an enriched message."""
    end = _end(value)
    return value[: end - VARINT_BYTES] + value[end:]


def digest(*parts: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(b"".join(parts), digest_size=8).digest())


@dataclass(slots=True)
class Fate:
    """What became of one message of the input."""

    digest: int
    """Of the first delivery, but for the time of scoring."""
    key: bytes | None
    dead_crc: int | None
    """Of the bytes, if it is a dead letter."""
    release: bytes | None
    """What scored it; none for a dead letter."""
    deliveries: int = 1
    differing: int = 0
    """Deliveries that were not like the first of the same release."""


@dataclass(frozen=True)
class Findings:
    """A reader's testimony against what was sent, in numbers of messages."""

    delivered: int
    """Of the input, however often."""
    lost: int
    invented: int
    """Came from what nobody sent."""
    duplicated: int
    differing: int
    disordered: int
    """Came for the first time after a later one of the same partitions."""
    steps_back: int
    """Came after a later one, for the first time or again."""
    misplaced: int
    """Good ones among the dead letters, bad ones among the published, changed keys, changed bytes of dead letters."""
    mixed: int
    """Scored in one batch with others, by another release than they."""


class Deposition:
    """What a reader saw, entered message by message."""

    def __init__(self, dead_letter_topic: str) -> None:
        self.fates: dict[Place, Fate] = {}
        self.scoring: dict[int, bytes] = {}
        """Of each input partition: the release of the newest that came out."""
        self.newest_ms: dict[int, int] = {}
        """Of each input partition: when the newest alert that came out was sent."""
        self.silence_s = 0.0
        """The longest time for which nothing came of some partition."""
        self.fingerprint = 0
        """Of all that was read and where, whatever the order between partitions."""
        self.read = 0
        self._arrivals = array("d")
        self._latencies_s = array("d")
        self._dead_letter_topic = dead_letter_topic
        self._arrived_at: dict[int, float] = {}
        self._last: dict[tuple[int, str, int], int] = {}
        self._last_new: dict[tuple[int, str, int], int] = {}
        self._rescored: dict[tuple[Place, bytes], int] = {}
        """Digests of deliveries that another release scored than the first."""
        self._names: dict[bytes, bytes] = {}
        """Of releases, each kept once."""
        self._batches: dict[int, bytes] = {}
        """Release by time of scoring, which is one of a whole batch."""
        self._steps_back = self._disordered = self._mixed = 0

    def enter(self, message: Any) -> None:
        """Take down a message of Kafka's, by its ``stream_vae.source`` header."""
        value, key = message.value() or b"", message.key()
        headers = dict(message.headers())
        _, partition, offset = headers["stream_vae.source"].decode().rsplit("/", 2)
        place = int(partition), int(offset)
        dead = message.topic() == self._dead_letter_topic
        release = None if dead else self._names.setdefault(name := headers["stream_vae.release"], name)
        content = digest(message.topic().encode(), value if dead else without_scored_at(value))
        self.read += 1
        self.fingerprint ^= digest(f"{message.topic()}/{message.partition()}/{message.offset()}".encode(), value)
        self._enter_order((place[0], message.topic(), message.partition()), place)
        fate = self.fates.get(place)
        if fate is None:
            self.fates[place] = Fate(content, key, zlib.crc32(value) if dead else None, release)
        else:
            first = fate.digest if release == fate.release else self._rescored.setdefault((place, release), content)
            fate.deliveries += 1
            fate.differing += (first, fate.key) != (content, key)
        if release is not None:
            self._enter_release(place[0], value, release)
        self._enter_time(place[0], message.timestamp()[1])

    def _enter_release(self, partition: int, value: bytes, release: bytes) -> None:
        self.scoring[partition] = release
        self._mixed += self._batches.setdefault(scored_at_us(value), release) != release

    def _enter_order(self, stream: tuple[int, str, int], place: Place) -> None:
        self._steps_back += place[1] <= self._last.get(stream, -1)
        self._last[stream] = place[1]
        if place not in self.fates:
            newest = self._last_new.get(stream, -1)
            self._disordered += place[1] < newest
            self._last_new[stream] = max(place[1], newest)

    def _enter_time(self, partition: int, sent_ms: int) -> None:
        now = time.monotonic()
        self._latencies_s.append(time.time() - sent_ms / 1000)
        self._arrivals.append(now)
        self.silence_s = max(self.silence_s, now - self._arrived_at.get(partition, now))
        self._arrived_at[partition] = now
        self.newest_ms[partition] = max(sent_ms, self.newest_ms.get(partition, 0))

    def latency_s(self, windows: Sequence[tuple[float, float]]) -> float | None:
        """Give how long alerts take from sending to reading: the median of the windows' medians.

        Windows are of the monotonic clock, and those in which nothing came do not count; None if none is left.
        """
        times = self._arrivals[:]  # the reader may be adding: the times first, then as many latencies
        latencies = self._latencies_s[:]
        medians = []
        for first, last in windows:
            began, ended = bisect.bisect_left(times, first), bisect.bisect_right(times, last)
            if chosen := latencies[began:ended]:
                medians.append(statistics.median(chosen))
        return statistics.median(medians) if medians else None

    @property
    def releases(self) -> set[str]:
        """All that scored anything."""
        return {name.decode() for name in self._names}

    def findings(self, sent: Mapping[Place, Sent]) -> Findings:
        """Compare what came with what was sent, once nothing comes any more."""
        known = [(self.fates[place], each) for place, each in sent.items() if place in self.fates]
        return Findings(
            delivered=self.read,
            lost=len(sent) - len(known),
            invented=len(self.fates) - len(known),
            duplicated=sum(fate.deliveries - 1 for fate in self.fates.values()),
            differing=sum(fate.differing for fate in self.fates.values()),
            disordered=self._disordered,
            steps_back=self._steps_back,
            mixed=self._mixed,
            misplaced=sum((fate.key, fate.dead_crc) != (each.key, each.dead_crc) for fate, each in known),
        )


class Witness(Deposition):
    """Reads everything that is published, as a consumer with `isolation.level=read_committed` does.

    With `to_the_end` it stops at what is there when it comes there, else when it is told to.
    """

    def __init__(self, deployment: Deployment, *, to_the_end: bool = False) -> None:
        super().__init__(deployment.dead_letters)
        self._deployment, self._to_the_end = deployment, to_the_end
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._consume()
        except BaseException as error:  # noqa: BLE001 - told to whoever waits for the end
            self._failure = error

    def _consume(self) -> None:
        kafka, section = self._deployment.kafka, self._deployment.settings.kafka
        options = {
            "bootstrap.servers": kafka.bootstrap_servers,
            "group.id": kafka.topic("witness"),
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 50,
            "queued.max.messages.kbytes": 32_768,
            "reconnect.backoff.max.ms": 1_000,  # what is measured is the fleet's recovery, not ours
            "log_level": 0,  # a broker that is away is no news here
        }
        topics = [section.output_topic or section.lite_topic, section.dead_letter_topic]
        with closing(Consumer(options)) as consumer:
            known = consumer.list_topics(timeout=60).topics
            places = [(topic, partition) for topic in topics for partition in known[topic].partitions]
            consumer.assign([TopicPartition(*place, 0) for place in places])
            pending, deadline = set(places), time.monotonic() + END_TIMEOUT_S
            while not self._stop.is_set() and (pending or not self._to_the_end):
                assert not self._to_the_end or time.monotonic() < deadline, f"no end of {pending}"
                for message in consumer.consume(200, timeout=0.1):
                    if (error := message.error()) is None:
                        self.enter(message)
                    elif error.code() == KafkaError._PARTITION_EOF:  # others pass: a broker that is away
                        pending.discard((message.topic(), message.partition()))

    def check(self) -> None:
        """Raise what made it read no more."""
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Stop, or with `to_the_end` wait for it."""
        if not self._to_the_end:
            self._stop.set()
        self._thread.join(END_TIMEOUT_S + 60)
        assert not self._thread.is_alive()
        self.check()
