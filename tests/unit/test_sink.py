"""The sink settles a batch when every message of it is acknowledged, in the order of reading, and never otherwise."""

import threading
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from stream_vae.alert import Outcome, Outgoing
from stream_vae.errors import ConfigError, FatalError, RetriableError
from stream_vae.metrics import Metrics
from stream_vae.settings import DeliverySettings
from stream_vae.stages import transaction
from stream_vae.stages.ledger import Ledger, Page, Pages
from stream_vae.stages.sink import AtLeastOnceSink

from stage_parts import kafka_settings, packet

WHERE = ("in", 0)


class FakeProducer:
    """Takes messages; the test says what becomes of them."""

    def __init__(self) -> None:
        self.produced: list[tuple[str, bytes, Any]] = []
        self.refuses: KafkaError | None = None
        self.full = 0

    def produce(self, topic: str, value: bytes, _key: bytes | None, *, on_delivery: Any, **_: Any) -> None:
        if self.full:
            self.full -= 1
            raise BufferError
        if self.refuses is not None:
            raise KafkaException(self.refuses)
        self.produced.append((topic, value, on_delivery))

    def answer(self, number: int, code: int | None = None) -> None:
        self.produced[number][2](None if code is None else KafkaError(code), None)

    def poll(self, _timeout_s: float) -> int:
        return 0

    def flush(self, _timeout_s: float) -> int:
        return 0

    def purge(self) -> None:
        pass


class FakeSource:
    def __init__(self) -> None:
        self.committed: list[tuple[int, bool]] = []

    def commit(self, pages: Pages, *, wait: bool) -> None:
        self.committed.append((pages[WHERE].next_offset, wait))


class Bench:
    """A sink whose producer and source are fakes."""

    def __init__(self, **options: Any) -> None:
        self.metrics = Metrics("candidate")
        self.ledger = Ledger()
        self.ledger.open(WHERE, Page(0, 0))
        delivery = DeliverySettings(drain_timeout_s=0.2)
        self.sink = AtLeastOnceSink(
            kafka_settings(), delivery, self.metrics, self.ledger, statistics_interval_s=0, **options
        )
        self.sink._producer = self.producer = FakeProducer()
        self.sink.source = self.source = FakeSource()

    def publish(self, first: int, last: int, topics: tuple[str, ...] = ("out",)) -> None:
        packets = [packet(b"value", offset) for offset in range(first, last)]
        outcomes = [
            Outcome(each, tuple(Outgoing(topic, (b"enriched",), None, [], None) for topic in topics), "published")
            for each in packets
        ]
        self.sink.publish(packets, outcomes)

    @property
    def page(self) -> Page:
        page = self.ledger.page(WHERE)
        assert page is not None
        return page

    def count(self, name: str) -> float:
        labels = {"survey": "candidate", "topic": "in", "partition": "0"}
        return self.metrics.registry.get_sample_value(f"stream_vae_alerts_{name}_total", labels) or 0.0


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_nothing_is_committed_before_every_message_of_the_batch_is_acknowledged(bench: Bench) -> None:
    bench.publish(0, 3)
    for number in (2, 0):
        bench.producer.answer(number)
        bench.sink.settle()
        assert bench.source.committed == []
        assert bench.sink.in_flight == 3
    bench.producer.answer(1)
    bench.sink.settle()
    assert bench.source.committed == [(3, False)]
    assert bench.page == Page(0, 3, consumed=3, published=3)
    assert bench.sink.in_flight == 0


def test_what_is_given_up_and_read_again_is_counted_once_and_the_counts_balance(bench: Bench) -> None:
    bench.publish(0, 3)
    bench.sink.abandon()  # after an error; or the partition was lost, and comes back
    assert bench.count("consumed") == bench.count("published") == 0
    bench.publish(0, 3)
    for number in range(3, 6):
        bench.producer.answer(number)
    bench.sink.settle()
    assert bench.count("consumed") == bench.count("published") == 3


def test_an_alert_that_a_stage_loses_shows_in_the_counts(bench: Bench) -> None:
    packets = [packet(b"value", offset) for offset in range(2)]
    bench.sink.publish(packets, [Outcome(packets[0], (), "filtered")])
    bench.sink.settle()
    assert (bench.count("consumed"), bench.count("filtered")) == (2, 1)
    assert not bench.page.balanced


def test_a_later_batch_that_is_acknowledged_first_waits_for_the_earlier_one(bench: Bench) -> None:
    bench.publish(0, 1)
    bench.publish(1, 2)
    bench.producer.answer(1)
    bench.sink.settle()
    assert bench.source.committed == []
    bench.producer.answer(0)
    bench.sink.settle(everything=True, timeout_s=1)
    assert bench.source.committed == [(2, True)]


def test_an_alert_to_two_topics_is_settled_when_both_have_it(bench: Bench) -> None:
    bench.publish(0, 1, ("out", "lite"))
    bench.producer.answer(0)
    bench.sink.settle()
    assert bench.source.committed == []
    bench.producer.answer(1)
    bench.sink.settle()
    assert bench.source.committed == [(1, False)]


def test_a_filtered_alert_needs_no_acknowledgement(bench: Bench) -> None:
    only = packet(offset=4)
    bench.sink.publish([only], [Outcome(only, (), "filtered")])
    bench.sink.settle()
    assert bench.page == Page(4, 5, consumed=1, filtered=1)
    assert bench.count("filtered") == 1


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_a_batch_with_an_undeliverable_message_is_never_settled(bench: Bench, attempts: int) -> None:
    bench.publish(0, 2)
    bench.producer.answer(0)
    bench.producer.answer(1, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    for _ in range(attempts):  # leaving the group settles once more
        with pytest.raises(ConfigError, match=r"in/0/1.*Grant our user .*WRITE"):
            bench.sink.settle(everything=True, timeout_s=0.1)
    assert bench.source.committed == []
    assert bench.page == Page(0, 0)


def test_a_passing_failure_is_for_the_worker_to_retry(bench: Bench) -> None:
    bench.publish(0, 1)
    error = KafkaError(KafkaError.NOT_ENOUGH_REPLICAS, retriable=True)
    bench.producer.produced[0][2](error, None)
    with pytest.raises(RetriableError, match="in/0/0"):
        bench.sink.settle()
    bench.sink.abandon()
    assert bench.sink.in_flight == 0
    assert bench.source.committed == []


def test_an_alert_too_large_for_the_output_topic_becomes_a_dead_letter_with_its_original_bytes(bench: Bench) -> None:
    bench.publish(0, 2)
    bench.producer.answer(0)
    bench.producer.answer(1, KafkaError.MSG_SIZE_TOO_LARGE)
    bench.sink.settle()
    assert bench.producer.produced[2][:2] == ("out", b"enriched")  # once more, alone
    bench.producer.answer(2, KafkaError.MSG_SIZE_TOO_LARGE)
    bench.sink.settle()
    assert bench.producer.produced[3][:2] == ("dead", b"value")
    bench.producer.answer(3)
    bench.sink.settle()
    assert bench.page == Page(0, 2, consumed=2, published=1, dead_lettered=1)
    assert bench.count("dead_lettered") == 1


def test_alerts_that_are_too_large_only_together_are_sent_one_by_one_in_their_order(bench: Bench) -> None:
    bench.publish(0, 3)
    flushed: list[int] = []
    bench.producer.flush = lambda _: flushed.append(len(bench.producer.produced)) or 0  # type: ignore[method-assign]
    for number in range(3):
        bench.producer.answer(number, KafkaError.MSG_SIZE_TOO_LARGE)
    bench.sink.settle()
    assert flushed == [3, 4, 4, 5, 5, 6]  # before and after each
    for number in range(3, 6):
        bench.producer.answer(number)
    bench.sink.settle()
    assert bench.page == Page(0, 3, consumed=3, published=3)


def test_an_alert_that_both_output_topics_refuse_gets_one_dead_letter(bench: Bench) -> None:
    bench.publish(0, 1, ("out", "lite"))
    for number in range(4):
        bench.producer.answer(number, KafkaError.MSG_SIZE_TOO_LARGE)
        bench.sink.settle()
    assert [topic for topic, *_ in bench.producer.produced] == ["out", "lite", "out", "lite", "dead"]
    bench.producer.answer(4)
    bench.sink.settle()
    assert bench.page == Page(0, 1, consumed=1, dead_lettered=1)


def test_a_dead_letter_that_is_too_large_stops_the_worker_with_the_remedy(bench: Bench) -> None:
    bench.producer.refuses = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
    bench.publish(0, 1)
    with pytest.raises(FatalError, match=r"too large for dead\. Raise max\.message\.bytes"):
        bench.sink.settle(timeout_s=1)
    assert bench.source.committed == []


def test_a_full_queue_is_waited_for_and_then_fatal(bench: Bench) -> None:
    bench.producer.full = 2
    bench.publish(0, 1)
    assert len(bench.producer.produced) == 1
    bench.producer.full = 10**9
    with pytest.raises(FatalError, match="takes no more messages"):
        bench.publish(1, 2)


def test_abandoned_batches_are_not_settled_when_their_acknowledgements_come_late(bench: Bench) -> None:
    bench.publish(0, 1)
    bench.sink.abandon()
    bench.producer.answer(0)
    bench.sink.settle()
    assert bench.source.committed == []
    assert bench.page == Page(0, 0)


def test_a_partition_that_left_meanwhile_is_not_committed(bench: Bench) -> None:
    bench.publish(0, 1)
    bench.ledger.close(WHERE)
    bench.producer.answer(0)
    bench.sink.settle()
    assert bench.source.committed == []
    assert bench.sink.in_flight == 0


def test_a_broken_producer_does_not_hide_why_we_stop_when_it_is_closed(bench: Bench) -> None:
    def flush(_timeout_s: float) -> int:
        raise KafkaException(KafkaError(KafkaError._FENCED, fatal=True))

    bench.producer.flush = flush  # type: ignore[method-assign]
    bench.sink.close()


def test_closing_twice_is_harmless(bench: Bench) -> None:
    bench.publish(0, 1)
    bench.sink.close()
    bench.sink.close()
    assert bench.sink.in_flight == 0


def test_a_call_about_a_transaction_that_never_comes_back_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction, "_HUNG_S", 0.0)
    forever = threading.Event()

    def commit_transaction(_timeout_s: float) -> None:
        forever.wait()

    with pytest.raises(transaction._HungError, match="does not come back from commit_transaction"):
        transaction._bounded(commit_transaction, 0.05)
    forever.set()


def test_what_a_call_about_a_transaction_raises_comes_through() -> None:
    def abort_transaction(_timeout_s: float) -> None:
        raise KafkaException(KafkaError(KafkaError._STATE))

    with pytest.raises(KafkaException):
        transaction._bounded(abort_transaction, 1.0)
