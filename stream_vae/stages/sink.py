"""Messages to Kafka: produce, wait for every acknowledgement, and only then call a batch settled.

`AtLeastOnceSink` keeps a few batches in flight and settles them in the order they were read. `ExactlyOnceSink`
makes each batch one transaction together with the offsets and the ledger's pages.
"""

import logging
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic, time
from typing import Any, Protocol

from confluent_kafka import KafkaError, KafkaException, Producer

from stream_vae import kafka
from stream_vae.alert import Fate, Outcome, Outgoing, Packet, Rejected
from stream_vae.errors import FatalError, Reason, RetriableError
from stream_vae.metrics import Metrics
from stream_vae.settings import DeliverySettings, KafkaSettings
from stream_vae.stages.dead_letter import dead_letter
from stream_vae.stages.ledger import Ledger, Pages
from stream_vae.stages.source import Source

log = logging.getLogger(__name__)

_TOO_LARGE = frozenset((KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE))
_PURGED = frozenset((KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT))  # noqa: SLF001 - local errors

_START_TIMEOUT_S = 30.0
_CALL_TIMEOUT_S, _LONGEST_CALL_TIMEOUT_S = 3.0, 30.0
"""Of one call about a transaction, which takes milliseconds while the brokers are well; doubled each time that it was
not enough, until a transaction is committed."""
_HUNG_S = 1.0
"""On top of a call's own time-out."""
_RENEWAL_TIMEOUT_S = 10.0
"""Of a new producer's start, which waits for brokers that are away."""
_MOST_HUNG = 10
"""Producers that may hang in this process, each with a thread and a few MB that nothing gives back."""
_FENCED = frozenset((KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH))  # noqa: SLF001


class _DoubtfulError(Exception):
    """A producer is not to be trusted any more."""


class _HungError(_DoubtfulError):
    """A call of librdkafka does not come back."""


def _bounded(call: Callable[..., object], *arguments: Any) -> None:
    """Call librdkafka about a transaction; the last argument is the time-out in seconds.

    librdkafka 2.16 may pay no heed to it: when a broker was killed and the producer needs a new epoch in the middle of
    a transaction, `send_offsets_to_transaction` never came back. Such a thread cannot be ended, only its process.
    """
    failures: list[Exception] = []

    def run() -> None:
        try:
            call(*arguments)
        except Exception as error:  # noqa: BLE001 - raised below
            failures.append(error)

    thread = threading.Thread(target=run, name="transaction", daemon=True)
    thread.start()
    thread.join(arguments[-1] + _HUNG_S)
    if thread.is_alive():
        raise _HungError(f"Kafka's client does not come back from {call.__name__}")
    if failures:
        raise failures[0]


def _purge(producer: Producer) -> None:
    with suppress(KafkaException):
        producer.purge()


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


class _Batch:
    """One published batch and what is still missing of it."""

    __slots__ = ("alone", "failures", "missing", "outcomes", "packets")

    def __init__(self, packets: Sequence[Packet], outcomes: Sequence[Outcome]) -> None:
        self.packets = packets
        self.outcomes = list(outcomes)
        self.missing = 0
        self.failures: list[tuple[int, str, KafkaError]] = []
        self.alone: set[tuple[int, str]] = set()
        """Outcomes and topics whose message goes in a request of its own: in company it was refused for its size."""

    def messages(self) -> Iterator[tuple[int, Outgoing]]:
        return ((index, message) for index, outcome in enumerate(self.outcomes) for message in outcome.messages)

    def again(self) -> "_Batch":
        """Begin anew, with what was learned."""
        batch = _Batch(self.packets, self.outcomes)
        batch.alone = self.alone
        return batch

    def delivered(self, index: int, topic: str, error: KafkaError | None, message: object) -> None:
        del message
        self.missing -= 1
        if error is not None:
            self.failures.append((index, topic, error))

    def enter(self, ledger: Ledger) -> Pages:
        read = (((packet.topic, packet.partition), packet.offset) for packet in self.packets)
        fates = (((packet.topic, packet.partition), packet.offset, fate) for packet, _, fate in self.outcomes)
        return ledger.settle(read, fates)


class _Producing(ABC):
    """What both sinks share: a producer, oversized messages, counting."""

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
    def _wait(self, batch: _Batch) -> None:
        """Wait until nothing is on its way."""

    def _produce(self, batch: _Batch, index: int, message: Outgoing) -> None:
        alone = (index, message.topic) in batch.alone
        if alone:
            self._wait(batch)
        self._enqueue(batch, index, message)
        if alone:
            self._wait(batch)

    def _enqueue(self, batch: _Batch, index: int, message: Outgoing) -> None:
        batch.missing += 1
        deadline = monotonic() + self._delivery.drain_timeout_s
        while True:
            try:
                self._producer.produce(
                    message.topic,
                    message.value,
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

    def _mend(self, batch: _Batch) -> list[tuple[int, Outgoing]]:
        """Dead-letter what the output topic refuses for its size; anything else stops the worker.

        A broker refuses a whole request of several messages whose sum is over the topic's limit, so each of them is
        tried by itself before it is called too large. Gives what is to be sent again.
        """
        again: list[tuple[int, Outgoing]] = []
        while batch.failures:
            # Taken off the list once it is dealt with: while one is left, the batch can never be settled.
            index, topic, error = batch.failures[-1]
            outcome = batch.outcomes[index]
            if error.code() not in _TOO_LARGE:
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

    def _count(self, batch: _Batch) -> None:
        """Count a settled batch: what was read and what became of it apart, so that an alert that is lost shows.

        Not when it is read: what is read again, here after going back or elsewhere because the partition was lost,
        would be counted each time, but settled once.
        """
        metrics, now = self._metrics, time()
        self._settled += len(batch.packets)
        read = Counter((packet.topic, packet.partition) for packet in batch.packets)
        for partition, count in read.items():
            metrics.consumed.labels(metrics.survey, *partition).inc(count)
        counters: dict[Fate, Any] = {
            "published": metrics.published,
            "dead_lettered": metrics.dead_lettered,
            "filtered": metrics.filtered,
        }
        latency = metrics.latency.labels(metrics.survey)
        counts = Counter((fate, packet.topic, packet.partition) for packet, _, fate in batch.outcomes)
        for (fate, *where), count in counts.items():
            counters[fate].labels(metrics.survey, *where).inc(count)
        for packet in batch.packets:
            if packet.timestamp_ms is not None:
                latency.observe(max(now - packet.timestamp_ms / 1000, 0.0))
        size = sum(len(message.value) for outcome in batch.outcomes for message in outcome.messages)
        metrics.output_bytes.labels(metrics.survey).inc(size)


class AtLeastOnceSink(_Producing):
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
        self._waiting: deque[_Batch] = deque()
        self.source: Source | None = None

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
        batch = _Batch(packets, outcomes)
        self._waiting.append(batch)
        for index, message in batch.messages():
            self._produce(batch, index, message)
        self._producer.poll(0)

    def _wait(self, batch: _Batch) -> None:
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

    def _enter(self, batch: _Batch) -> Pages:
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


class ExactlyOnceSink(_Producing):
    """Makes every batch one transaction: messages, offsets and pages become visible together or not at all.

    Needs a broker that knows transactions; readers must use ``isolation.level=read_committed``.

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
    **options : Any
        ``slot`` and ``statistics_interval_s``.

    Raises
    ------
    FatalError
        If transactions cannot be initialised.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        delivery: DeliverySettings,
        metrics: Metrics,
        ledger: Ledger,
        **options: Any,
    ) -> None:
        super().__init__(settings, delivery, metrics, **options)
        self._ledger = ledger
        self._usable = True
        self._doubtful = False
        self._hung = 0
        self._call_timeout_s = _CALL_TIMEOUT_S
        self.source: Source | None = None
        try:
            self._producer.init_transactions(_START_TIMEOUT_S)
        except KafkaException as error:
            raise kafka.as_error(error.args[0], "initialising transactions") from error

    @property
    def in_flight(self) -> int:
        """Packets whose outcome is not settled: none between batches."""
        return 0

    def publish(self, packets: Sequence[Packet], outcomes: Sequence[Outcome]) -> None:
        """Commit one transaction with a batch.

        Parameters
        ----------
        packets : sequence of Packet
            As read.
        outcomes : sequence of Outcome
            What became of each.

        Raises
        ------
        RetriableError
            If the transaction was aborted, or its producer given up; the source went back to what is settled.
        FatalError
            If another worker has our transactional id, or too many producers hang.
        """
        if self._doubtful or not self._usable:
            self._usable = False
            self._renew()
            raise RetriableError("Transactions have a new producer now; what the old one left is read again.")
        batch = _Batch(packets, outcomes)
        # Every refusal for size costs a transaction, and another in which librdkafka gets a new epoch.
        for _ in range(4 * len(packets) + 4):
            if self._transaction(batch):
                return
            batch = batch.again()
        raise FatalError(f"Kafka refuses the batch that begins with {packets[0].origin}, for ever new reasons.")

    def _transaction(self, batch: _Batch) -> bool:
        """Try a batch; False if it is to be tried anew, because something was refused for its size."""
        assert self.source is not None, "the worker connects source and sink"
        kept = self._ledger.snapshot()
        try:
            self._producer.begin_transaction()
            self._send(batch)
            if batch.failures:
                self._learn(batch)
                _bounded(self._producer.abort_transaction, self._call_timeout_s)
                return False
            pages = batch.enter(self._ledger)
            if not pages:
                # Every partition left while this was on its way: its new owner reads it again.
                _bounded(self._producer.abort_transaction, self._call_timeout_s)
                return True
            offsets, member = self.source.offsets(pages), self.source.group_metadata()
            _bounded(self._producer.send_offsets_to_transaction, offsets, member, self._call_timeout_s)
            self._commit()
        except (KafkaException, RetriableError, _DoubtfulError) as error:
            self._ledger.restore(kept)
            raise self._given_up(error) from error
        self._call_timeout_s = _CALL_TIMEOUT_S
        self._count(batch)
        return True

    def _on_error(self, error: KafkaError) -> None:
        super()._on_error(error)
        # This is what producers hang after. A new one is made before the next transaction: no second is lost.
        self._doubtful |= error.code() == KafkaError._ALL_BROKERS_DOWN  # noqa: SLF001

    def _send(self, batch: _Batch) -> None:
        """Produce in rounds of one request: librdkafka's transactional producer spins while more waits behind one."""
        room = self._round_bytes
        for index, message in batch.messages():
            if batch.failures:
                break
            if len(message.value) > room:
                self._wait(batch)
                room = self._round_bytes
            self._produce(batch, index, message)
            room -= len(message.value)
        self._wait(batch)

    def _learn(self, batch: _Batch) -> None:
        """Take from a spoiled transaction what helps the next: which messages were too large."""
        refused = [failure for failure in batch.failures if failure[2].code() in _TOO_LARGE]
        purged = [failure for failure in batch.failures if failure[2].code() in _PURGED]
        if refused or len(purged) < len(batch.failures):
            batch.failures = refused or [each for each in batch.failures if each not in purged]
            self._mend(batch)

    def _wait(self, batch: _Batch) -> None:
        deadline = monotonic() + self._delivery.drain_timeout_s
        while batch.missing and not batch.failures:  # after a failure the rest of the transaction is not sent
            self._producer.flush(0.1)
            if self._doubtful:
                raise _DoubtfulError("no broker could be reached in the middle of it")
            if monotonic() > deadline:
                raise RetriableError("Kafka did not acknowledge a transaction's messages in time.")

    def _commit(self) -> None:
        deadline = monotonic() + self._call_timeout_s
        while True:
            try:
                _bounded(self._producer.commit_transaction, max(deadline - monotonic(), 0.1))
            except KafkaException as error:
                if not error.args[0].retriable() or monotonic() > deadline:
                    raise
            else:
                return

    def _given_up(self, error: KafkaException | RetriableError | _DoubtfulError) -> RetriableError:
        """Abort what failed, or where that is not possible let a new producer do it; say what happened."""
        cause = error.args[0] if isinstance(error, KafkaException) else None
        if isinstance(cause, KafkaError) and cause.code() in _FENCED:
            raise FatalError(f"Kafka, in a transaction: {cause.str()} ({cause.name()}).") from error
        if not isinstance(error, _DoubtfulError):
            try:
                _bounded(self._producer.abort_transaction, self._call_timeout_s)
            except (KafkaException, _HungError) as failed:
                log.warning("a transaction cannot be aborted (%s), after: %s", failed, error)
                error = failed if isinstance(failed, _HungError) else error
            else:
                assert self.source is not None, "the worker connects source and sink"
                self.source.rewind()
                return RetriableError(f"A transaction was aborted: {error}.")
        self._usable = False
        if isinstance(error, _HungError):
            self._call_timeout_s = min(2 * self._call_timeout_s, _LONGEST_CALL_TIMEOUT_S)
            self._count_hung(error)
        self._renew()
        return RetriableError(f"A transaction was given up, and its producer with it: {error}.")

    def _count_hung(self, error: _HungError) -> None:
        self._hung += 1
        if self._hung > _MOST_HUNG:
            raise FatalError(
                f"{error}, the {self._hung}th time since this worker started.",
                remedy="Start the worker again: the transaction is aborted then, and its alerts are read again.",
            )

    def _renew(self) -> None:
        """Make a new producer under our transactional id, and go back to what the group has.

        Its start fences the old one, whatever that still does, and ends the transaction that it left: aborted, or
        committed where the commit was on its way. Only then do the committed offsets and pages tell which.
        """
        # The client's last reference goes in a thread: its end may wait for what hangs.
        threading.Thread(target=_purge, args=(self._producer,), name="old-producer", daemon=True).start()
        self._producer = kafka.make(Producer, self._options)
        try:
            _bounded(self._producer.init_transactions, _RENEWAL_TIMEOUT_S)
        except KafkaException as error:
            raise RetriableError(f"Transactions have no new producer yet: {error.args[0].str()}.") from error
        except _HungError as error:
            self._count_hung(error)
            raise RetriableError(f"Transactions have no new producer yet: {error}.") from error
        assert self.source is not None, "the worker connects source and sink"
        self.source.reopen()
        self._producer.poll(0)  # what it had to say before it found the brokers
        self._usable, self._doubtful = True, False
        log.info("transactions have a new producer")

    def settle(self, *, timeout_s: float = 0.0, everything: bool = False) -> None:
        """Do nothing: a batch is settled when `publish` returns.

        Parameters
        ----------
        timeout_s : float
            Unused.
        everything : bool
            Unused.
        """
        del timeout_s, everything
        self._producer.poll(0)

    def abandon(self) -> None:
        """Do nothing: an aborted transaction leaves nothing behind."""

    def close(self) -> None:
        """Close; may be called twice."""
        self._flush_last()
