"""Exactly once: each batch one transaction together with the offsets and the ledger's pages.

librdkafka can hang when brokers die in the middle of a transaction. So every call is bounded, and a producer that is
not to be trusted any more is replaced: the new one's start fences it, and ends what it left.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from stream_vae import kafka
from stream_vae.alert import Outcome, Packet
from stream_vae.errors import FatalError, RetriableError
from stream_vae.metrics import Metrics
from stream_vae.settings import DeliverySettings, KafkaSettings
from stream_vae.stages.ledger import Ledger
from stream_vae.stages.sink import PURGED, TOO_LARGE, ProducingSink, SentBatch

log = logging.getLogger(__name__)

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


class ExactlyOnceSink(ProducingSink):
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
        self._doubtful = False
        self._hung = 0
        self._call_timeout_s = _CALL_TIMEOUT_S
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
        if self._doubtful:
            self._renew()
            raise RetriableError("Transactions have a new producer now; what the old one left is read again.")
        batch = SentBatch(packets, outcomes)
        # Every refusal for size costs a transaction, and another in which librdkafka gets a new epoch.
        for _ in range(4 * len(packets) + 4):
            if self._transaction(batch):
                return
            batch = batch.again()
        raise FatalError(f"Kafka refuses the batch that begins with {packets[0].origin}, for ever new reasons.")

    def _transaction(self, batch: SentBatch) -> bool:
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

    def _send(self, batch: SentBatch) -> None:
        """Produce in rounds of one request: librdkafka's transactional producer spins while more waits behind one."""
        room = self._round_bytes
        for index, message in batch.messages():
            if batch.failures:
                break
            if message.size > room:
                self._wait(batch)
                room = self._round_bytes
            self._produce(batch, index, message)
            room -= message.size
        self._wait(batch)

    def _learn(self, batch: SentBatch) -> None:
        """Take from a spoiled transaction what helps the next: which messages were too large."""
        refused = [failure for failure in batch.failures if failure[2].code() in TOO_LARGE]
        purged = [failure for failure in batch.failures if failure[2].code() in PURGED]
        if refused or len(purged) < len(batch.failures):
            batch.failures = refused or [each for each in batch.failures if each not in purged]
            self._mend(batch)

    def _wait(self, batch: SentBatch) -> None:
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
        self._doubtful = True
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
        self._doubtful = False
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
