"""Messages to Kafka: produce, wait for every acknowledgement, and only then call a batch settled.

What both ways of delivery share, and `AtLeastOnceSink`, which keeps a few batches in flight and settles them in the
order they were read. The other way is `stream_vae.stages.transaction`.
"""

import logging
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic, time
from typing import Any, Protocol

import numpy as np
from confluent_kafka import KafkaError, KafkaException, Producer

from stream_vae import kafka
from stream_vae.alert import Fate, Outcome, Outgoing, Packet, Rejected
from stream_vae.errors import FatalError, Reason, RetriableError
from stream_vae.metrics import Metrics, observe_each
from stream_vae.settings import DeliverySettings, KafkaSettings
from stream_vae.stages.dead_letter import dead_letter
from stream_vae.stages.ledger import Ledger, Pages
from stream_vae.stages.source import Source

log = logging.getLogger(__name__)

TOO_LARGE = frozenset((KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE))
"""Refused for its size."""
PURGED = frozenset((KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT))  # noqa: SLF001 - local errors
"""Not sent, as the transaction was given up before."""


class Sink(Protocol):
    """Where outcomes go and get settled."""

    source: Source | None
    """Whose offsets are committed."""

    def publish(self, packets: Sequence[Packet], outcomes: Sequence[Outcome]) -> None:
        """Begin to produce the messages of a batch.

        Parameters
        ----------
        packets : sequence of Packet
            As read.
        outcomes : sequence of Outcome
            What became of each.
        """

    def settle(self, *, timeout_s: float = 0.0, everything: bool = False) -> None:
        """Commit what is acknowledged.

        Parameters
        ----------
        timeout_s : float
            Longest wait.
        everything : bool
            Whether to wait for all of it.
        """

    @property
    def in_flight(self) -> int:
        """Packets whose outcome is not settled."""

    @property
    def settled(self) -> int:
        """Packets whose outcome was settled, since the start."""

    def abandon(self) -> None:
        """Forget what is not settled: it will be read again."""

    def close(self) -> None:
        """Give up what is not settled; may be called twice."""


class SentBatch:
    """One published batch and what is still missing of it.

    Parameters
    ----------
    packets : sequence of Packet
        What was read.
    outcomes : sequence of Outcome
        One a packet.
    """

    __slots__ = ("alone", "failures", "missing", "outcomes", "packets")

    def __init__(self, packets: Sequence[Packet], outcomes: Sequence[Outcome]) -> None:
        self.packets = packets
        self.outcomes = list(outcomes)
        self.missing = 0
        self.failures: list[tuple[int, str, KafkaError]] = []
        self.alone: set[tuple[int, str]] = set()
        """Outcomes and topics whose message goes in a request of its own: in company it was refused for its size."""

    def messages(self) -> Iterator[tuple[int, Outgoing]]:
        """Go over what is to be produced.

        Returns
        -------
        iterator of (int, Outgoing)
            Each message, with the number of its outcome.
        """
        return ((index, message) for index, outcome in enumerate(self.outcomes) for message in outcome.messages)

    def again(self) -> "SentBatch":
        """Begin anew, with what was learned.

        Returns
        -------
        SentBatch
            Nothing of it is sent yet.
        """
        batch = SentBatch(self.packets, self.outcomes)
        batch.alone = self.alone
        return batch

    def delivered(self, index: int, topic: str, error: KafkaError | None, message: object) -> None:
        """Take an acknowledgement; librdkafka calls this.

        Parameters
        ----------
        index : int
            Of the outcome.
        topic : str
            Where the message went.
        error : KafkaError or None
            Why it did not arrive.
        message : object
            Not needed.
        """
        del message
        self.missing -= 1
        if error is not None:
            self.failures.append((index, topic, error))

    def enter(self, ledger: Ledger) -> Pages:
        """Enter the batch into the books.

        Parameters
        ----------
        ledger : Ledger
            The worker's.

        Returns
        -------
        Pages
            What is to be committed; nothing where all partitions have left.
        """
        read = (((packet.topic, packet.partition), packet.offset) for packet in self.packets)
        fates = (((packet.topic, packet.partition), packet.offset, fate) for packet, _, fate in self.outcomes)
        return ledger.settle(read, fates)


class ProducingSink(ABC):
    """What both sinks share: a producer, oversized messages, counting.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    delivery : DeliverySettings
        ``[delivery]``.
    metrics : Metrics
        Where to count.
    slot : int
        The worker's number.
    statistics_interval_s : float
        Of librdkafka's statistics; 0 for none.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        delivery: DeliverySettings,
        metrics: Metrics,
        *,
        slot: int = 0,
        statistics_interval_s: float = 5.0,
    ) -> None:
        self._settings = settings
        self._delivery = delivery
        self._metrics = metrics
        self._settled = 0
        self.source: Source | None = None
        """Whose offsets are settled; the worker connects the two."""
        options = kafka.producer_options(settings, delivery, slot) | {"error_cb": self._on_error}
        self._round_bytes = int(options["batch.size"])
        if statistics_interval_s:
            options["statistics.interval.ms"] = int(statistics_interval_s * 1000)
            options["stats_cb"] = lambda document: metrics.take_statistics("producer", document)
        self._options = options
        self._producer: Producer = kafka.make(Producer, options)

    @property
    def settled(self) -> int:
        """Packets whose outcome was settled, since the start."""
        return self._settled

    def _on_error(self, error: KafkaError) -> None:
        self._metrics.kafka_errors.labels(self._metrics.survey, "producer", error.name()).inc()
        log.warning("kafka producer: %s (%s)", error.str(), error.name())

    def _flush_last(self) -> None:
        """Let go of the producer; one that is broken says so again, and must not hide why we stop."""
        with suppress(KafkaException):
            self._producer.flush(1)

    @abstractmethod
    def _wait(self, batch: SentBatch) -> None:
        """Wait until nothing is on its way."""

    def _produce(self, batch: SentBatch, index: int, message: Outgoing) -> None:
        alone = (index, message.topic) in batch.alone
        if alone:
            self._wait(batch)
        self._enqueue(batch, index, message)
        if alone:
            self._wait(batch)

    def _enqueue(self, batch: SentBatch, index: int, message: Outgoing) -> None:
        batch.missing += 1
        value, deadline = message.value, monotonic() + self._delivery.drain_timeout_s
        while True:
            try:
                self._producer.produce(
                    message.topic,
                    value,
                    message.key,
                    on_delivery=partial(batch.delivered, index, message.topic),
                    timestamp=message.timestamp_ms or 0,
                    headers=message.headers,
                )
            except BufferError:
                if monotonic() > deadline:
                    batch.missing -= 1
                    raise FatalError("Kafka takes no more messages: the producer's queue stays full.") from None
                self._producer.poll(0.1)
            except KafkaException as error:
                batch.delivered(index, message.topic, error.args[0], None)
                return
            else:
                return

    def _mend(self, batch: SentBatch) -> list[tuple[int, Outgoing]]:
        """Dead-letter what the output topic refuses for its size; anything else stops the worker.

        A broker refuses a whole request of several messages whose sum is over the topic's limit, so each of them is
        tried by itself before it is called too large. Gives what is to be sent again.
        """
        again: list[tuple[int, Outgoing]] = []
        while batch.failures:
            # Taken off the list once it is dealt with: while one is left, the batch can never be settled.
            index, topic, error = batch.failures[-1]
            outcome = batch.outcomes[index]
            if error.code() not in TOO_LARGE:
                raise kafka.as_error(error, f"publishing the alert of {outcome.packet.origin}")
            if (index, topic) not in batch.alone:
                batch.alone.add((index, topic))
                batch.failures.pop()
                again += [(index, message) for message in outcome.messages if message.topic == topic]
                continue
            if topic != self._settings.dead_letter_topic and outcome.fate == "dead_lettered":
                batch.failures.pop()
                continue  # refused by both output topics: one dead letter is enough
            if outcome.fate == "dead_lettered":
                raise FatalError(
                    f"The dead letter of {outcome.packet.origin} ({len(outcome.packet.value)} bytes) is too large for "
                    f"{self._settings.dead_letter_topic}.",
                    remedy="Raise max.message.bytes of that topic to that of the input topic and a little more.",
                )
            text = f"the enriched message is refused for its size: {error.str()}"
            rejected = Rejected(outcome.packet, Reason.TOO_LARGE_TO_PUBLISH, "publish", text)
            batch.outcomes[index] = dead_letter(rejected, self._settings.dead_letter_topic)
            self._metrics.rejected.labels(self._metrics.survey, "publish", rejected.reason.value).inc()
            batch.failures.pop()
            again += [(index, message) for message in batch.outcomes[index].messages]
        return sorted(again, key=lambda each: each[0])  # in the order of the packets

    def _count(self, batch: SentBatch) -> None:
        """Count a settled batch: what was read and what became of it apart, so that an alert that is lost shows.

        Not when it is read: what is read again, here after going back or elsewhere because the partition was lost,
        would be counted each time, but settled once.
        """
        metrics, now = self._metrics, time()
        self._settled += len(batch.packets)
        read = Counter((packet.topic, packet.partition) for packet in batch.packets)
        counters: dict[Fate, Any] = {
            "published": metrics.published,
            "dead_lettered": metrics.dead_lettered,
            "filtered": metrics.filtered,
        }
        for partition, count in read.items():
            metrics.consumed.labels(metrics.survey, *partition).inc(count)
            for counter in counters.values():
                counter.labels(metrics.survey, *partition)  # there with 0: Prometheus must see the first one, too
        latency = metrics.latency.labels(metrics.survey)
        counts = Counter((fate, packet.topic, packet.partition) for packet, _, fate in batch.outcomes)
        for (fate, *where), count in counts.items():
            counters[fate].labels(metrics.survey, *where).inc(count)
        times = np.array([packet.timestamp_ms for packet in batch.packets if packet.timestamp_ms is not None])
        observe_each(latency, np.maximum(now - times / 1000, 0.0))
        size = sum(message.size for outcome in batch.outcomes for message in outcome.messages)
        metrics.output_bytes.labels(metrics.survey).inc(size)


class AtLeastOnceSink(ProducingSink):
    """Settles batches in the order they were read, as their acknowledgements come in.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    delivery : DeliverySettings
        ``[delivery]``.
    metrics : Metrics
        Where to count.
    ledger : Ledger
        The worker's books.
    max_in_flight : int
        Batches that may wait for acknowledgement before `publish` waits.
    **options : Any
        ``slot`` and ``statistics_interval_s``.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        delivery: DeliverySettings,
        metrics: Metrics,
        ledger: Ledger,
        *,
        max_in_flight: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(settings, delivery, metrics, **options)
        self._ledger = ledger
        self._max_in_flight = max_in_flight
        self._waiting: deque[SentBatch] = deque()

    @property
    def in_flight(self) -> int:
        """Packets whose outcome is not settled."""
        return sum(len(batch.packets) for batch in self._waiting)

    def publish(self, packets: Sequence[Packet], outcomes: Sequence[Outcome]) -> None:
        """Begin to produce the messages of a batch.

        Parameters
        ----------
        packets : sequence of Packet
            As read.
        outcomes : sequence of Outcome
            What became of each.

        Raises
        ------
        FatalError
            If Kafka takes no more.
        """
        while len(self._waiting) >= self._max_in_flight:
            before = len(self._waiting)
            self.settle(timeout_s=0.5)
            if len(self._waiting) == before:
                self._producer.poll(0.1)
        batch = SentBatch(packets, outcomes)
        self._waiting.append(batch)
        for index, message in batch.messages():
            self._produce(batch, index, message)
        self._producer.poll(0)

    def _wait(self, batch: SentBatch) -> None:
        del batch  # those of other batches would be company too
        if self._producer.flush(self._delivery.drain_timeout_s):
            raise RetriableError("Kafka did not acknowledge what it was sent in time.")

    def settle(self, *, timeout_s: float = 0.0, everything: bool = False) -> None:
        """Commit the batches at the front whose every message is acknowledged.

        Parameters
        ----------
        timeout_s : float
            Longest wait for the oldest batch, or for all of them.
        everything : bool
            Whether to wait for all batches, and for the commit's answer.

        Raises
        ------
        FatalError, RetriableError
            If a message cannot be delivered; what is not settled will be read again.
        """
        deadline = monotonic() + timeout_s
        pages: Pages = {}
        # Also while nothing is on its way: librdkafka's statistics and errors wait for it, and would pile up.
        self._producer.poll(0)
        while self._waiting:
            batch = self._waiting[0]
            if batch.missing:
                self._producer.poll(max(min(deadline - monotonic(), 0.1), 0.0))
            if batch.failures:
                for index, message in self._mend(batch):
                    self._produce(batch, index, message)
            elif not batch.missing:
                self._waiting.popleft()
                pages |= self._enter(batch)
                continue
            if monotonic() >= deadline:
                break
            if not everything and pages:
                break
        if pages and self.source is not None:
            self.source.commit(pages, wait=everything)

    def _enter(self, batch: SentBatch) -> Pages:
        self._count(batch)
        return batch.enter(self._ledger)

    def abandon(self) -> None:
        """Forget what is not settled: it will be read again."""
        self._waiting.clear()
        self._producer.purge()

    def close(self) -> None:
        """Give up what is not settled; may be called twice."""
        self.abandon()
        self._flush_last()
