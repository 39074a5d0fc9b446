"""The source on the embedded Kafka: what it reads, where it goes back to, what it commits."""

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError, Producer, TopicPartition
from stream_vae.alert import Packet
from stream_vae.metrics import Metrics
from stream_vae.settings import BatchSettings
from stream_vae.stages.ledger import Ledger
from stream_vae.stages.source import Source

from flow import until
from servers import Kafka
from stage_parts import kafka_settings


class Reader:
    """A source, its books, and what it was told."""

    def __init__(self, kafka: Kafka, topic: str, group: str, **options: object) -> None:
        self.metrics = Metrics("test")
        self.ledger = Ledger()
        self.revocations = self.losses = 0
        settings = kafka_settings(
            bootstrap_servers=kafka.bootstrap_servers,
            input_topics=[topic],
            group_id=group,
            consumer_options=kafka.consumer_options | options,
        )
        self.source = Source(
            settings,
            BatchSettings(max_wait_s=0.2),
            self.metrics,
            self.ledger,
            before_revoke=self._revoked,
            on_lost=self._lost,
        )
        self.source.subscribe()

    def _revoked(self) -> None:
        self.revocations += 1

    def _lost(self) -> None:
        self.losses += 1

    def read(self, count: int) -> list[Packet]:
        packets: list[Packet] = []
        deadline = time.monotonic() + 20
        while len(packets) < count and time.monotonic() < deadline:
            packets += self.source.read()
        assert len(packets) == count
        return packets

    def settle(self, packets: list[Packet]) -> None:
        where = [((each.topic, each.partition), each.offset) for each in packets]
        pages = self.ledger.settle(where, [(*each, "published") for each in where])
        self.source.commit(pages, wait=True)


@pytest.fixture
def topic(embedded_kafka: Kafka) -> str:
    name = embedded_kafka.fresh_topic(1)
    producer = Producer({"bootstrap.servers": embedded_kafka.bootstrap_servers})
    for number in range(5):
        producer.produce(
            name, str(number).encode(), key=b"key", headers=[("trace", b"x"), ("none", None)], timestamp=1_000 + number
        )
    assert producer.flush(10) == 0
    return name


@pytest.fixture
def reader(embedded_kafka: Kafka, topic: str) -> Iterator[Reader]:
    reader = Reader(embedded_kafka, topic, f"group-{topic}")
    yield reader
    reader.source.close()


def test_a_packet_carries_what_the_message_had(reader: Reader, topic: str) -> None:
    first, *_ = reader.read(5)
    assert first == Packet(b"0", topic, 0, 0, b"key", 1_000, [("trace", b"x"), ("none", None)])
    assert first.origin == f"{topic}/0/0"


def test_going_back_before_anything_is_settled_reads_everything_again(reader: Reader) -> None:
    first = reader.read(5)
    reader.source.rewind()
    assert reader.read(5) == first


def test_going_back_after_some_is_settled_reads_only_the_rest_again(reader: Reader) -> None:
    first = reader.read(5)
    reader.settle(first[:2])
    reader.source.rewind()
    assert reader.read(3) == first[2:]


def test_going_back_counts_no_gap_in_the_offsets(reader: Reader) -> None:
    reader.settle(reader.read(5)[:4])
    reader.source.rewind()
    reader.read(1)
    assert counted(reader, "offset_gaps") == 0


def test_what_expired_while_nobody_read_is_a_gap_in_the_offsets(
    embedded_kafka: Kafka, topic: str, reader: Reader
) -> None:
    reader.settle(reader.read(5))
    reader.source.close()
    producer = Producer({"bootstrap.servers": embedded_kafka.bootstrap_servers})
    for _ in range(100):
        producer.produce(topic, bytes(100_000))  # twice what this Kafka keeps of a partition
        assert producer.flush(10) == 0
    again = Reader(embedded_kafka, topic, f"group-{topic}")
    try:
        first = until(again.source.read, what="what is left is read")[0]
        assert first.offset > 5
        assert counted(again, "offset_gaps") == first.offset - 5
    finally:
        again.source.close()


def test_reading_alone_counts_nothing_as_consumed(reader: Reader) -> None:
    reader.read(5)
    assert counted(reader, "alerts_consumed") == 0
    assert counted(reader, "input_bytes") == 5


def counted(reader: Reader, name: str) -> float:
    samples = (sample for metric in reader.metrics.registry.collect() for sample in metric.samples)
    return sum(sample.value for sample in samples if sample.name == f"stream_vae_{name}_total")


def test_going_back_with_nothing_read_does_nothing(reader: Reader) -> None:
    reader.source.rewind()
    assert len(reader.read(5)) == 5


def test_partitions_that_come_while_it_closes_are_left_alone(reader: Reader, topic: str) -> None:
    reader.read(5)
    reader.source.close()
    assert not reader.ledger.owns((topic, 0))
    reader.source._on_assign(reader.source._consumer, [TopicPartition(topic, 0)])
    assert not reader.ledger.owns((topic, 0))


def test_it_is_caught_up_only_at_the_end_and_no_more_after_going_back(reader: Reader) -> None:
    assert not reader.source.caught_up()
    reader.read(5)
    deadline = time.monotonic() + 20
    while not reader.source.caught_up() and time.monotonic() < deadline:
        reader.source.read()
    assert reader.source.caught_up()
    reader.source.rewind()
    assert not reader.source.caught_up()


def test_the_next_member_continues_the_page_where_it_was_committed(
    embedded_kafka: Kafka, reader: Reader, topic: str
) -> None:
    reader.settle(reader.read(5)[:3])
    reader.source.close()
    reader.source.close()  # twice is harmless
    assert reader.revocations == 1
    successor = Reader(embedded_kafka, topic, f"group-{topic}")
    packets = successor.read(2)
    assert [each.offset for each in packets] == [3, 4]
    page = successor.ledger.page((topic, 0))
    assert page is not None
    assert (page.since, page.next_offset, page.consumed, page.published) == (0, 3, 3, 3)
    successor.source.close()


class Refusing:
    """A consumer whose group changes hands during the first commit."""

    def __init__(self, source: Source) -> None:
        self._source, self._consumer = source, source._consumer
        self._left = 1

    def __getattr__(self, name: str) -> object:
        return getattr(self._consumer, name)

    def commit(self, **arguments: object) -> object:
        if self._left:
            self._left = 0
            return self._source._on_commit(KafkaError(KafkaError.ILLEGAL_GENERATION), arguments["offsets"])
        return self._consumer.commit(**arguments)


def test_a_commit_that_is_refused_is_repeated_though_no_message_follows(
    embedded_kafka: Kafka, reader: Reader, topic: str
) -> None:
    packets = reader.read(5)
    reader.source._consumer = Refusing(reader.source)
    where = [((each.topic, each.partition), each.offset) for each in packets]
    reader.source.commit(reader.ledger.settle(where, [(*each, "published") for each in where]))
    assert not reader.source.committed
    deadline = time.monotonic() + 20
    while not reader.source.committed and time.monotonic() < deadline:
        reader.source.read()
        reader.source.commit_again()
    assert reader.source.committed
    reader.source.close()
    successor = Reader(embedded_kafka, topic, f"group-{topic}")
    assert successor.source.read(1) == []
    page = successor.ledger.page((topic, 0))
    assert page is not None
    assert page.next_offset == 5
    successor.source.close()
