"""Labels from a Kafka topic into the reservoir: read, kept in Redis, and only then committed.

A label may come twice, after a crash or a rebalance: the reservoir knows it again, and nothing changes. What is no
label, or has no room, goes to the dead-letter topic with the reason; it holds nobody up. While Redis does not answer,
offsets stay where they are.
"""

import logging
from collections.abc import Sequence
from time import monotonic
from typing import Any, NamedTuple, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from stream_vae import kafka
from stream_vae.alert import Packet, Rejected
from stream_vae.errors import ConfigError, Reason, RetriableError
from stream_vae.labels.label import Label, LabelError, parse_record
from stream_vae.metrics import TrainerMetrics
from stream_vae.settings import Settings
from stream_vae.stages.dead_letter import dead_letter
from stream_vae.tools.topics import as_packet

log = logging.getLogger(__name__)

STAGE = "label"
"""In the headers of dead letters."""
LONGEST_MESSAGE = 65_536
"""Bytes; of them the reservoir keeps 4,096 at most, but a message may say more than we read."""
MOST_MESSAGES = 1000
"""At a time: the trainer has other things to look at. About a second's work for Redis."""
PATIENCE_S = 5.0
"""Likewise, and the longest wait for a place in the group."""
_AT_A_TIME = 200
_WAIT_S = 0.2
"""For messages that are there: a fetch takes a few milliseconds."""
_FLUSH_S = 20.0
_LEAST_POLL_INTERVAL_S = 300.0
"""A consumer that is not asked for so long loses its partitions; librdkafka's default."""

Partition = tuple[str, int]


class Keeper(Protocol):
    """Where labels are kept: a `stream_vae.reservoir.Reservoir`."""

    def label(self, label: Label, stamp_record: bytes | None = None) -> str:
        """Keep a label.

        Parameters
        ----------
        label : Label
            What somebody says of an alert.
        stamp_record : bytes, optional
            The alert's stamp.

        Returns
        -------
        str
            What became of it.
        """

    def labels(self) -> Any:
        """Read all labels.

        Returns
        -------
        LabelTable
            With its conflicts.
        """


class _Taken(NamedTuple):
    """What became of one message."""

    outcome: str
    refused: Rejected | None = None


class Intake:
    """Takes the labels of a topic into the reservoir, some at a time.

    Parameters
    ----------
    settings : Settings
        ``[kafka]``, ``[labels]``, and how often it will be called: ``retrain.poll_s``.
    reservoir : Keeper
        Closed by whoever opened it.
    metrics : TrainerMetrics
        Where to count.

    Raises
    ------
    ConfigError
        If no labels topic is set, it or the dead-letter topic is missing, or no broker answers.
    """

    def __init__(self, settings: Settings, reservoir: Keeper, metrics: TrainerMetrics) -> None:
        topic = _checked_topic(settings)
        self._reservoir = reservoir
        self._metrics = metrics
        self._dead_letter_topic = settings.kafka.dead_letter_topic
        section = settings.kafka.model_copy(update={"group_id": settings.labels_group_id})
        interval_s = max(_LEAST_POLL_INTERVAL_S, 10.0 * settings.retrain.poll_s)
        options = kafka.consumer_options(section)
        options.setdefault("max.poll.interval.ms", int(1000 * interval_s))
        self._producer: Producer = kafka.plain_producer(settings.kafka)
        self._options = options
        self._topic = topic
        self._consumer = self._open()
        self._uncommitted: dict[Partition, int] = {}
        self._at_end: set[Partition] = set()
        self._closed = False
        self._conflicts_known = False
        log.info("labels are read from %s, as group %s", topic, settings.labels_group_id)

    def __call__(self) -> None:
        """Take in what has come, `MOST_MESSAGES` and `PATIENCE_S` at most.

        Raises
        ------
        RetriableError
            If Redis or Kafka do not answer; what was not taken is read again next time.
        ConfigError
            If Redis or Kafka refuse.
        """
        deadline, taken = monotonic() + PATIENCE_S, 0
        while taken < MOST_MESSAGES and monotonic() < deadline:
            packets = self._read(min(_AT_A_TIME, MOST_MESSAGES - taken))
            if packets:
                self._take(packets)
                taken += len(packets)
            elif self._caught_up():
                break
        self._commit()
        if taken or not self._conflicts_known:
            conflicts = len(self._reservoir.labels().conflicts)
            self._metrics.label_conflicts.labels(self._metrics.survey).set(conflicts)
            self._conflicts_known = True

    def close(self) -> None:
        """Leave the group; may be called twice."""
        if self._closed:
            return
        self._closed = True
        self._consumer.close()

    def _open(self) -> Consumer:
        consumer: Consumer = kafka.make(Consumer, self._options)
        consumer.subscribe([self._topic], on_revoke=self._gone, on_lost=self._gone)
        return consumer

    def _reopen(self) -> None:
        self._consumer.close()
        self._uncommitted.clear()  # done, and known again if it is read once more
        self._at_end.clear()
        self._consumer = self._open()

    def _caught_up(self) -> bool:
        """Tell whether all partitions that are ours have been read to their ends; false while none is."""
        owned = {(entry.topic, entry.partition) for entry in self._consumer.assignment()}
        return bool(owned) and owned <= self._at_end

    def _gone(self, _: object, partitions: Sequence[TopicPartition]) -> None:
        """Forget partitions that another one reads from now on, from where we committed."""
        for entry in partitions:
            self._uncommitted.pop((entry.topic, entry.partition), None)
            self._at_end.discard((entry.topic, entry.partition))

    def _read(self, count: int) -> list[Packet]:
        try:
            messages = self._consumer.consume(count, timeout=_WAIT_S)
        except KafkaException as error:
            raise kafka.as_error(error.args[0], "reading labels") from error
        packets, failed = [], None
        for message in messages:
            where, told = (message.topic(), message.partition()), message.error()
            if told is None:
                self._at_end.discard(where)
                packets.append(as_packet(message))
            elif told.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - librdkafka's local error
                self._at_end.add(where)
            else:
                failed = told
        if failed is not None and not packets:
            self._complain(failed)
        return packets

    @staticmethod
    def _complain(error: KafkaError) -> None:
        if error.code() in {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION}:  # noqa: SLF001
            raise RetriableError(
                f"The labels topic is gone: {error.str()}.", remedy="Create it again; see labels.topic."
            )
        if isinstance(found := kafka.as_error(error, "reading labels"), ConfigError):
            raise found
        log.warning("labels: %s (%s)", error.str(), error.name())  # librdkafka goes on trying

    def _take(self, packets: Sequence[Packet]) -> None:
        """Keep the labels of some packets in Redis, and send letters for the others; then their offsets may go."""
        done: list[_Taken] = []
        again = packets
        try:
            try:
                for packet in packets:
                    done.append(self._keep(packet))  # noqa: PERF401 - what was kept before one fails counts
            finally:
                self._finish(packets[: len(done)], done)
                again = packets[len(done) :]
        finally:
            self._go_back(again)

    def _keep(self, packet: Packet) -> _Taken:
        try:
            label = read_label(packet)
            outcome = self._reservoir.label(label)
        except LabelError as error:
            what = f"{error.column} {error}" if error.column else str(error)
            reason = Reason.NO_LABEL if packet.value else Reason.EMPTY
            return _Taken("malformed", Rejected(packet, reason, STAGE, what, _id_of(packet)))
        if outcome == "full":
            why = "the reservoir has no room: raise reservoir.anchor_capacity"
            return _Taken(outcome, Rejected(packet, Reason.NO_ROOM, STAGE, why, label.alert_id))
        return _Taken(outcome)

    def _finish(self, packets: Sequence[Packet], done: Sequence[_Taken]) -> None:
        self._send([each.refused for each in done if each.refused is not None])
        for packet, (outcome, refused) in zip(packets, done, strict=True):
            self._metrics.labels.labels(self._metrics.survey, outcome).inc()
            self._uncommitted[packet.topic, packet.partition] = packet.offset + 1
            if refused is not None:
                log.warning("label at %s: %s: %s", packet.origin, refused.reason, refused.error)
        self._commit()

    def _send(self, refused: Sequence[Rejected]) -> None:
        failures: list[KafkaError] = []
        for rejected in refused:
            (letter,) = dead_letter(rejected, self._dead_letter_topic).messages
            self._producer.produce(
                letter.topic,
                letter.value,
                letter.key,
                headers=list(letter.headers),
                on_delivery=lambda error, _: failures.append(error) if error is not None else None,
            )
        if self._producer.flush(_FLUSH_S) or failures:
            self._producer.purge()
            why = failures[0].str() if failures else f"no answer within {_FLUSH_S:g} s"
            raise RetriableError(f"Letters for labels cannot be written to {self._dead_letter_topic}: {why}.")

    def _go_back(self, packets: Sequence[Packet]) -> None:
        """Read these again next time."""
        first: dict[Partition, int] = {}
        for packet in packets:
            first.setdefault((packet.topic, packet.partition), packet.offset)
        for (topic, partition), offset in first.items():
            self._at_end.discard((topic, partition))
            try:
                self._consumer.seek(TopicPartition(topic, partition, offset))
            except KafkaException as error:
                # Never on from here: a later commit would pass over what is not done. A new consumer begins at what is.
                log.warning("labels: cannot go back to %s/%d/%d: %s", topic, partition, offset, error.args[0].str())
                self._reopen()
                return

    def _commit(self) -> None:
        """Commit what is done; what the broker refuses stays to be committed, and does no harm if it is read again."""
        if not self._uncommitted:
            return
        offsets = [TopicPartition(*where, offset) for where, offset in self._uncommitted.items()]
        try:
            answered = self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            log.warning("the offsets of labels are not committed: %s", error.args[0].str())
            return
        for entry in answered or ():
            if entry.error is None:
                self._uncommitted.pop((entry.topic, entry.partition), None)


def read_label(packet: Packet) -> Label:
    """Read the label of a message.

    Parameters
    ----------
    packet : Packet
        JSON, one object with the names of `Label`.

    Returns
    -------
    Label
        Validated.

    Raises
    ------
    LabelError
        If it is none; says what is wrong.
    """
    if not packet.value:
        raise LabelError("is empty")
    if len(packet.value) > LONGEST_MESSAGE:
        raise LabelError(f"has {len(packet.value):,} bytes; {LONGEST_MESSAGE:,} are the most")
    return parse_record(packet.value)


def intake_of(settings: Settings, reservoir: Keeper, metrics: TrainerMetrics) -> Intake | None:
    """Begin to read labels, where there is a topic for them.

    Parameters
    ----------
    settings : Settings
        Everything.
    reservoir : Keeper
        Where to.
    metrics : TrainerMetrics
        Where to count.

    Returns
    -------
    Intake or None
        To be closed; None where ``labels.topic`` is not set.

    Raises
    ------
    ConfigError
        If a topic is missing, or no broker answers.
    """
    return None if settings.labels.topic is None else Intake(settings, reservoir, metrics)


def _checked_topic(settings: Settings) -> str:
    topic = settings.labels.topic
    if topic is None:
        raise ConfigError("labels.topic is not set.", remedy="Name the topic of labels under [labels].")
    wanted = {"labels.topic": topic, "kafka.dead_letter_topic": settings.kafka.dead_letter_topic}
    there = kafka.partitions(settings.kafka, wanted.values())
    missing = {key: name for key, name in wanted.items() if name not in there}
    if missing and settings.kafka.create_topics:
        kafka.create_topics(settings.kafka, dict.fromkeys(missing.values(), 1))
    elif missing:
        told = ", ".join(f"{key} = {name!r}" for key, name in missing.items())
        name = next(iter(missing.values()))
        raise ConfigError(
            f"Kafka has no topic {told}.",
            remedy=f"kafka-topics.sh --create --topic {name}, or set kafka.create_topics = true.",
        )
    return topic


def _id_of(packet: Packet) -> str | None:
    """Tell the alert by the message's key, for a message that is no label."""
    return None if packet.key is None else packet.key[:256].decode("utf-8", "replace")
