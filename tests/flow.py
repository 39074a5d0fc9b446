"""Alerts through Kafka and back, for the tests of the whole path: what was sent, what came, and the worker between.

Reading and decoding here stand on confluent-kafka and fastavro alone, as any consumer's would, and not on what is
being tested.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import fastavro
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from stream_vae.metrics import Metrics
from stream_vae.runtime.worker import Worker
from stream_vae.settings import Settings
from stream_vae.tools.audit import Line, audit_of

from servers import REPOSITORY, Kafka

TIMEOUT_S = 60
IDLE_S = 0.4  # a worker that exits when idle: longer than its longest wait for a batch
STREAM_VAE = Path(sys.executable).with_name("stream-vae")

Origin = tuple[str, int, int]
"""Topic, partition and offset."""


def now_ms() -> int:
    """Give a message's time: topics throw away what is a week old."""
    return int(time.time() * 1000)


class Record(NamedTuple):
    """One Kafka message."""

    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    timestamp_ms: int = 0
    """0 for now, where it is sent."""
    partition: int = 0
    topic: str = ""
    offset: int = -1

    @property
    def position(self) -> Origin:
        return self.topic, self.partition, self.offset

    @property
    def origin(self) -> Origin:
        """Where the message comes from by its own word."""
        topic, partition, offset = self.header("stream_vae.source").decode().rsplit("/", 2)
        return topic, int(partition), int(offset)

    def header(self, name: str) -> bytes:
        return dict(self.headers)[name] or b""


def send(kafka: Kafka, topic: str, records: Iterable[Record], *, partitions: int = 1) -> None:
    """Publish, in turn to the partitions, until all is acknowledged."""
    options = {"bootstrap.servers": kafka.bootstrap_servers, "message.max.bytes": 10_000_000, "linger.ms": 5}
    producer = Producer(options)
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: object) -> None:
        if error is not None:
            failures.append(error)

    for number, record in enumerate(records):
        producer.produce(
            topic,
            record.value,
            record.key,
            partition=number % partitions,
            headers=list(record.headers),
            timestamp=record.timestamp_ms,
            on_delivery=delivered,
        )
        producer.poll(0)
    assert producer.flush(TIMEOUT_S) == 0
    assert failures == []


def read(kafka: Kafka, topic: str, *, isolation: str = "read_committed") -> list[Record]:
    """Read all that a topic holds now, partition by partition."""
    options = {
        "bootstrap.servers": kafka.bootstrap_servers,
        "group.id": kafka.topic("reader"),
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "isolation.level": isolation,
        "fetch.wait.max.ms": 50,
    }
    with contextlib.closing(Consumer(options)) as consumer:
        partitions = consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic].partitions
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        found: dict[int, list[Record]] = {partition: [] for partition in partitions}
        pending, deadline = set(partitions), time.monotonic() + TIMEOUT_S
        while pending:
            assert time.monotonic() < deadline, f"no end of {topic} in {TIMEOUT_S} s"
            for message in consumer.consume(500, timeout=0.05):
                if message.error() is None:
                    found[message.partition()].append(_record(message))
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    pending.discard(message.partition())
                else:
                    raise KafkaException(message.error())
    return [record for partition in sorted(found) for record in found[partition]]


def _record(message: Any) -> Record:
    return Record(
        message.value(),
        message.key(),
        message.headers() or [],
        message.timestamp()[1],
        message.partition(),
        message.topic(),
        message.offset(),
    )


def work(settings: Settings, *, idle_s: float = IDLE_S) -> Metrics:
    """Run a worker in this process until its input is caught up; give what it counted."""
    metrics = Metrics(settings.survey)
    Worker(settings, metrics).run(exit_when_idle_s=idle_s)
    return metrics


def total(metrics: Metrics, name: str) -> int:
    """Sum a metric over its labels."""
    samples = (sample for family in metrics.registry.collect() for sample in family.samples)
    return int(sum(sample.value for sample in samples if sample.name == name))


def check_books(settings: Settings, *, consumed: int, dead_lettered: int = 0, duplicates: int | None = 0) -> list[Line]:
    """Audit deep: everything that was sent is settled, once, and both witnesses agree."""
    lines = audit_of(settings.kafka, deep=True)
    pages = [line.page for line in lines if line.page is not None]
    assert all(line.balanced for line in lines), lines
    assert [line.lag for line in lines] == [0] * len(lines), lines
    assert sum(page.consumed for page in pages) == consumed
    assert sum(page.dead_lettered for page in pages) == dead_lettered
    assert sum(page.published for page in pages) == consumed - dead_lettered
    if duplicates is not None:
        assert sum(line.duplicates or 0 for line in lines) == duplicates, lines
    return lines


@cache
def enrichment_schema() -> dict[str, Any]:
    """Read the published schema of what is appended."""
    return json.loads((REPOSITORY / "schemas" / "enrichment" / "1.0.avsc").read_text(encoding="utf-8"))


def enriched_schema(writer: Mapping[str, Any]) -> dict[str, Any]:
    """Give the schema that a writer's enriched alerts must have, by the rule of schemas/README.md."""
    field = {"name": "stream_vae", "type": ["null", enrichment_schema()], "default": None}
    return {**writer, "fields": [*writer["fields"], field]}


class AvroFile(NamedTuple):
    """An Avro file of one block, taken apart without a look at its schema."""

    metadata: dict[str, bytes]
    sync: bytes
    records: int
    body: bytes


def avro_file(packet: bytes) -> AvroFile:
    """Take an Avro file of one uncompressed block apart."""
    stream = io.BytesIO(packet)
    assert stream.read(4) == b"Obj\x01"
    metadata = _read_value(stream, {"type": "map", "values": "bytes"})
    assert metadata.get("avro.codec", b"null") == b"null"
    sync = stream.read(16)
    records, size = _read_value(stream, "long"), _read_value(stream, "long")
    body = stream.read(size)
    assert stream.read() == sync
    return AvroFile(metadata, sync, records, body)


def _read_value(stream: io.BytesIO, schema: Any) -> Any:
    return fastavro.schemaless_reader(stream, schema)


def decode(schema: Any, body: bytes, reader: Any = None) -> dict[str, Any]:
    """Decode a record with stock fastavro, to its last byte."""
    stream = io.BytesIO(body)
    record = fastavro.schemaless_reader(stream, schema, reader)
    assert stream.read() == b"", "bytes behind the record"
    return record


def encode(schema: Any, record: Any) -> bytes:
    """Encode a record with stock fastavro."""
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema, record)
    return stream.getvalue()


def decode_file(packet: bytes, reader: Any = None) -> dict[str, Any]:
    """Decode an Avro file of one record with stock fastavro."""
    (record,) = fastavro.reader(io.BytesIO(packet), reader)
    return record


def blanked(record: Record) -> bytes:
    """Give an enriched Avro file without its time of scoring, the one thing that differs when it is scored again."""
    scored_at = decode_file(record.value or b"")["stream_vae"]["scored_at"]
    encoded = encode("long", round(scored_at.timestamp() * 1_000_000))
    assert record.value is not None
    assert record.value.count(encoded) == 1
    return record.value.replace(encoded, b"scored_at")


def check_same(records: Iterable[Record]) -> int:
    """Check that all deliveries of one alert are alike but for the time of scoring; give how many came again."""
    first: dict[Origin, tuple[bytes, bytes | None]] = {}
    again = 0
    for record in records:
        delivery = (blanked(record), record.key)
        again += record.origin in first
        assert first.setdefault(record.origin, delivery) == delivery
    return again


class Process:
    """A `stream-vae` command in a process of its own; its output goes to a file.

    With `before`, Python code that is run first: to make it die at a chosen place.
    """

    def __init__(
        self, log: Path, *arguments: object, before: str = "", environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        self._output = log.open("ab")
        program = (
            [sys.executable, "-c", f"{before}\nfrom stream_vae.cli import main\nmain()"] if before else [STREAM_VAE]
        )
        self._process = self._start([*program, *map(str, arguments)], environment or {})

    def _start(self, command: list, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        # Settings come from the test alone.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("STREAM_VAE_")}
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**clean, "NO_COLOR": "1", "COLUMNS": "200", **environment},
        )

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Wait for its end, and give the exit code."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"no end in {timeout_s} s; it said:\n{self.text[-3000:]}") from None

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.running:
            self._process.kill()
        self._process.wait(TIMEOUT_S)

    def close(self) -> None:
        self.kill()
        self._output.close()


@contextlib.contextmanager
def running(
    log: Path, *arguments: object, before: str = "", environment: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """Run a `stream-vae` command for as long as the block lasts, at most."""
    process = Process(log, *arguments, before=before, environment=environment)
    try:
        yield process
    finally:
        process.close()


def until(condition: Callable[[], Any], *, what: str, timeout_s: float = TIMEOUT_S) -> Any:
    """Wait until a condition holds, and give what it gave."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not in {timeout_s} s: {what}"
        time.sleep(0.05)
    return found


def count_messages(kafka: Kafka, topic: str) -> int:
    """Ask how many offsets a topic ever had: with those of transactions' markers, and of what retention took away."""
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": "counting"})
    with contextlib.closing(consumer):
        partitions = consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic].partitions
        marks = [consumer.get_watermark_offsets(TopicPartition(topic, n), timeout=TIMEOUT_S) for n in partitions]
        return sum(high for _, high in marks)
