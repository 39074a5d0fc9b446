"""Kafka to packets: the consumer, its rebalances, and the commit of what is settled.

A batch closes when it has ``max_alerts`` messages or ``max_wait_s`` is over, whichever comes first; both are
librdkafka's own batch consume, so waiting costs no CPU. Offsets are committed by hand, only up to the oldest
message whose outcome is acknowledged, and with the partition's page of the ledger as metadata.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any

from confluent_kafka import (
    OFFSET_INVALID,
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from stream_vae import kafka
from stream_vae.alert import Packet
from stream_vae.errors import ConfigError, FatalError, RetriableError
from stream_vae.metrics import Metrics
from stream_vae.settings import BatchSettings, KafkaSettings
from stream_vae.stages.ledger import Ledger, Page, Pages, Partition

log = logging.getLogger(__name__)

_COMMIT_AGAIN_S = 0.5
_REOPEN_TIMEOUT_S = 10.0

_HOPELESS = frozenset(
    (
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError._AUTHENTICATION,  # noqa: SLF001 - librdkafka names its local errors so
    )
)


class Source:
    """The consuming end of one worker.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    batch : BatchSettings
        ``[batch]``.
    metrics : Metrics
        Where to count.
    ledger : Ledger
        The worker's books; its pages are opened and closed here.
    before_revoke : callable
        Called before partitions leave: settle and commit what is in flight.
    on_lost : callable
        Called when all partitions are others' already: give up what is in flight.
    statistics_interval_s : float
        How often librdkafka reports; 0 for never.

    Raises
    ------
    ConfigError
        If librdkafka refuses the options.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        batch: BatchSettings,
        metrics: Metrics,
        ledger: Ledger,
        *,
        before_revoke: Callable[[], None],
        on_lost: Callable[[], None],
        statistics_interval_s: float = 5.0,
    ) -> None:
        self._settings = settings
        self._batch = batch
        self._metrics = metrics
        self._ledger = ledger
        self._before_revoke = before_revoke
        self._after_loss = on_lost
        self._first: dict[Partition, int] = {}
        self._next: dict[Partition, int] = {}
        self._at_end: set[Partition] = set()
        self._unconfirmed: Pages = {}
        self._again_at: float | None = None
        self._failure: KafkaError | None = None
        options = kafka.consumer_options(settings) | {"error_cb": self._on_error, "on_commit": self._on_commit}
        if statistics_interval_s:
            options["statistics.interval.ms"] = int(statistics_interval_s * 1000)
            options["stats_cb"] = lambda document: metrics.take_statistics("consumer", document)
        self._consumer: Consumer = kafka.make(Consumer, options)
        self._closed = False

    def subscribe(self) -> None:
        """Join the group."""
        self._consumer.subscribe(
            list(self._settings.input_topics),
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )

    @property
    def assignment(self) -> frozenset[Partition]:
        """The partitions that this worker owns."""
        return frozenset((entry.topic, entry.partition) for entry in self._consumer.assignment())

    @property
    def member_id(self) -> str:
        """The name that the group's coordinator gave to this worker; empty before."""
        return self._consumer.memberid() or ""

    def read(self, timeout_s: float | None = None) -> list[Packet]:
        """Read one batch.

        Parameters
        ----------
        timeout_s : float, optional
            Longest wait for a full batch; absent: ``batch.max_wait_s``.

        Returns
        -------
        list of Packet
            Empty if nothing came in time.

        Raises
        ------
        FatalError
            If the consumer cannot go on.
        ConfigError
            If it may not read.
        """
        wait = self._batch.max_wait_s if timeout_s is None else timeout_s
        messages = self._consumer.consume(self._batch.max_alerts, wait)
        if self._failure is not None:
            raise kafka.as_error(self._failure, "consuming")
        packets = [packet for message in messages if (packet := self._packet(message)) is not None]
        self._count(packets)
        return packets

    def _packet(self, message: Message) -> Packet | None:
        topic, partition = message.topic(), message.partition()
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
                self._at_end.add((topic, partition))
            else:
                self._raise_unless_passing(error)
            return None
        if not self._ledger.owns((topic, partition)):
            return None  # left while it waited in librdkafka's queue: its new owner reads it
        self._at_end.discard((topic, partition))
        kind, timestamp = message.timestamp()
        return Packet(
            message.value() or b"",
            topic,
            partition,
            message.offset(),
            message.key(),
            None if kind == TIMESTAMP_NOT_AVAILABLE else timestamp,
            message.headers() or (),
        )

    def _raise_unless_passing(self, error: KafkaError) -> None:
        self._metrics.kafka_errors.labels(self._metrics.survey, "consumer", error.name()).inc()
        if error.code() in _HOPELESS:
            raise ConfigError(
                f"Kafka does not let group {self._settings.group_id!r} read "
                f"{', '.join(self._settings.input_topics)}: {error.str()}.",
                remedy="Grant READ on the topics and on the group, and check kafka.options.",
            )
        if error.fatal():
            raise FatalError(f"Kafka, consuming: {error.str()} ({error.name()}).")
        log.warning("kafka consumer: %s (%s)", error.str(), error.name())

    def _count(self, packets: Sequence[Packet]) -> None:
        """Count bytes and gaps; messages are counted by the sink when they are settled, beside what became of them."""
        survey = self._metrics.survey
        self._metrics.input_bytes.labels(survey).inc(sum(len(packet.value) for packet in packets))
        for packet in packets:
            partition = (packet.topic, packet.partition)
            self._first.setdefault(partition, packet.offset)
            expected = self._next.get(partition, packet.offset)
            if packet.offset < expected:
                continue  # read again after going back
            if packet.offset > expected:
                self._metrics.offset_gaps.labels(survey, *partition).inc(packet.offset - expected)
            self._next[partition] = packet.offset + 1

    def commit(self, pages: Pages, *, wait: bool = False) -> None:
        """Commit the pages of partitions whose messages are settled.

        Parameters
        ----------
        pages : dict
            From `Ledger.settle`.
        wait : bool
            Whether to wait for the broker's answer.
        """
        self._unconfirmed |= pages
        sending = self._unconfirmed if wait or self._again_at is not None else pages
        if not sending:
            return
        self._again_at = None
        try:
            done = self._consumer.commit(offsets=self.offsets(sending), asynchronous=not wait)
        except KafkaException as error:
            self._refused(error.args[0])
        else:
            if wait:
                self._on_commit(None, done)

    def commit_again(self) -> None:
        """Repeat what the broker refused: it does while partitions change hands, and no next commit may follow."""
        if self._again_at is not None and monotonic() >= self._again_at:
            self.commit({})

    @property
    def committed(self) -> bool:
        """Whether the broker confirmed every commit for the partitions that are still owned."""
        return not self._unconfirmed

    def _on_commit(self, error: KafkaError | None, offsets: Sequence[TopicPartition]) -> None:
        error = error or next((entry.error for entry in offsets if entry.error), None)
        if error:
            self._refused(error)
            return
        self._metrics.commits.labels(self._metrics.survey, "succeeded").inc()
        for entry in offsets:
            page = self._unconfirmed.get((entry.topic, entry.partition))
            if page is not None and page.next_offset <= entry.offset:
                del self._unconfirmed[entry.topic, entry.partition]

    def _refused(self, error: KafkaError) -> None:
        self._metrics.commits.labels(self._metrics.survey, "failed").inc()
        if self._again_at is None:  # those that were on their way together fail together
            log.warning("commits fail and are tried again: %s", error.str())
        self._again_at = monotonic() + _COMMIT_AGAIN_S

    @staticmethod
    def offsets(pages: Pages) -> list[TopicPartition]:
        """Write pages as offsets with metadata, for a commit or a transaction.

        Parameters
        ----------
        pages : dict
            By partition.

        Returns
        -------
        list of TopicPartition
            Next offsets.
        """
        return [
            TopicPartition(topic, partition, page.next_offset, metadata=page.metadata())
            for (topic, partition), page in pages.items()
        ]

    def group_metadata(self) -> Any:
        """Return what a transaction needs to know of this member of the group.

        Returns
        -------
        object
            For ``send_offsets_to_transaction``.
        """
        return self._consumer.consumer_group_metadata()

    def rewind(self) -> None:
        """Go back to what is settled: everything behind it will be read again.

        Raises
        ------
        FatalError
            If the consumer cannot go back.
        """
        for entry in self._consumer.assignment():
            partition = (entry.topic, entry.partition)
            page = self._ledger.page(partition)
            if page is None or partition not in self._first:
                continue  # nothing was read
            # Nothing settled and nothing committed: back to the first message that came, wherever the group began.
            offset = page.next_offset if page.next_offset >= 0 else self._first[partition]
            self._at_end.discard(partition)
            try:
                self._consumer.seek(TopicPartition(*partition, offset))
            except KafkaException as error:
                raise FatalError(f"Kafka, going back to offset {offset}: {error.args[0].str()}.") from error

    def reopen(self) -> None:
        """Take the pages anew from what the group has committed, whatever was settled here, and go back there.

        Raises
        ------
        RetriableError
            If the broker does not tell.
        FatalError
            If the consumer cannot go back.
        """
        owned = [entry for entry in self._consumer.assignment() if self._ledger.owns((entry.topic, entry.partition))]
        try:
            self._open(self._consumer.committed(owned, timeout=_REOPEN_TIMEOUT_S) if owned else [])
        except KafkaException as error:
            raise RetriableError(f"The committed offsets cannot be read: {error.args[0].str()}.") from error
        self.rewind()

    def caught_up(self) -> bool:
        """Tell whether everything up to the end of every assigned partition was read.

        Returns
        -------
        bool
            False while nothing is assigned.
        """
        owned = self.assignment
        return bool(owned) and owned <= self._at_end

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._metrics.rebalances.labels(self._metrics.survey, "assigned").inc()
        if self._closed:
            # Others left while we leave. Nothing of it will be read, and a consumer that closes is told no offsets: it
            # would wait for them as long as it may, and then fail.
            return
        try:
            # The broker tells only when no transaction is open on them: one that a dead worker left ends by its
            # time-out, 30 s, which brokers look for every 10 s.
            committed = consumer.committed(partitions, timeout=60)
        except KafkaException as error:
            raise FatalError(f"The committed offsets cannot be read: {error.args[0].str()}.") from error
        self._open(committed)
        self._log("assigned", partitions)

    def _open(self, committed: Iterable[TopicPartition]) -> None:
        for entry in committed:
            offset = entry.offset if entry.offset != OFFSET_INVALID else -1
            partition = (entry.topic, entry.partition)
            self._ledger.open(partition, Page.read(max(offset, -1), entry.metadata))
            self._metrics.offset_gaps.labels(self._metrics.survey, *partition)
            if offset >= 0:
                self._next.setdefault(partition, offset)  # what expired while nobody read is a gap, too

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        del consumer
        self._metrics.rebalances.labels(self._metrics.survey, "revoked").inc()
        self._before_revoke()
        self._forget(partitions)
        self._log("revoked", partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        del consumer
        self._metrics.rebalances.labels(self._metrics.survey, "lost").inc()
        # librdkafka loses all at once. What is acknowledged only after they have come back must not be entered: the
        # page that is open then begins where the group stood, and part of this is on no page.
        self._after_loss()
        self._forget(partitions)
        self._log("lost", partitions)

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        for entry in partitions:
            self._ledger.close((entry.topic, entry.partition))
            self._unconfirmed.pop((entry.topic, entry.partition), None)
            self._first.pop((entry.topic, entry.partition), None)
            self._next.pop((entry.topic, entry.partition), None)
            self._at_end.discard((entry.topic, entry.partition))

    def _log(self, event: str, partitions: Sequence[TopicPartition]) -> None:
        names = ", ".join(f"{entry.topic}/{entry.partition}" for entry in partitions)
        log.info("partitions %s: %s", event, names or "none")

    def _on_error(self, error: KafkaError) -> None:
        self._metrics.kafka_errors.labels(self._metrics.survey, "consumer", error.name()).inc()
        if error.fatal() or error.code() in _HOPELESS:
            self._failure = error
        else:
            log.warning("kafka consumer: %s (%s)", error.str(), error.name())

    def close(self) -> None:
        """Leave the group; may be called twice."""
        if not self._closed:
            self._closed = True
            self._consumer.close()
