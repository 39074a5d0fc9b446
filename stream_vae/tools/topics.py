"""Topics as people read them: one message at a position, the latest few, or those that come.

Nothing here commits or joins a group, so looking never takes an alert away from a worker.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream_vae import kafka
from stream_vae.alert import Packet
from stream_vae.errors import ConfigError, RetriableError
from stream_vae.settings import KafkaSettings

TIMEOUT_S = 15.0
"""Longest silence of a broker, for a person who waits."""
_CHUNK = 500
_POLL_S = 0.2
_POSITION = re.compile(r"^(?P<topic>[A-Za-z0-9._-]{1,249})/(?P<partition>\d{1,9})/(?P<offset>\d{1,18})$")


@dataclass(frozen=True, slots=True)
class Position:
    """One message's place, as headers and logs write it: ``topic/partition/offset``."""

    topic: str
    partition: int
    offset: int

    @classmethod
    def parse(cls, text: str) -> "Position | None":
        """Read a position.

        Parameters
        ----------
        text : str
            ``topic/partition/offset``.

        Returns
        -------
        Position or None
            None if the text is none.
        """
        match = _POSITION.match(text)
        return cls(match["topic"], int(match["partition"]), int(match["offset"])) if match else None

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True)
class Span:
    """The offsets that one partition held when it was asked: from `low` up to, but not with, `high`."""

    topic: str
    partition: int
    low: int
    high: int


def as_packet(message: Message) -> Packet:
    """Take over what a consumer gave.

    Parameters
    ----------
    message : Message
        Without an error.

    Returns
    -------
    Packet
        The same.
    """
    kind, timestamp = message.timestamp()
    return Packet(
        message.value() or b"",
        message.topic(),
        message.partition(),
        message.offset(),
        message.key(),
        None if kind == TIMESTAMP_NOT_AVAILABLE else timestamp,
        message.headers() or (),
    )


@contextmanager
def looking(settings: KafkaSettings) -> Iterator[Consumer]:
    """Open a consumer that is assigned by hand and commits nothing.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.

    Yields
    ------
    Consumer
        Closed at the end.
    """
    consumer: Consumer = kafka.plain_consumer(settings, enable_partition_eof=True, isolation_level="read_committed")
    try:
        yield consumer
    finally:
        consumer.close()


def spans(settings: KafkaSettings, topic: str, consumer: Consumer) -> list[Span]:
    """Ask what a topic holds now.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    topic : str
        Its name.
    consumer : Consumer
        From `looking`.

    Returns
    -------
    list of Span
        One a partition, in order.

    Raises
    ------
    ConfigError
        If there is no such topic or no broker.
    RetriableError
        If a broker does not answer in time.
    """
    count = kafka.partitions(settings, [topic]).get(topic, 0)
    if not count:
        raise ConfigError(
            f"Kafka has no topic {topic!r}.",
            remedy="`stream-vae doctor` lists the topics of the settings; see kafka.*_topic.",
        )
    found = []
    for partition in range(count):
        try:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=TIMEOUT_S)
        except KafkaException as error:
            raise RetriableError(
                f"Kafka does not tell the offsets of {topic}/{partition}: {error.args[0].str()}.",
                remedy="Try again; `stream-vae doctor` checks the brokers.",
            ) from error
        found.append(Span(topic, partition, max(low, 0), max(high, 0)))
    return found


Ends = dict[tuple[str, int], int]
"""Where reading ended, by partition: before the end of a span where a transaction is still open."""


def read_spans(consumer: Consumer, wanted: Sequence[Span], ends: Ends | None = None) -> Iterator[Packet]:
    """Read stretches of partitions; what was written after them is left out.

    Parameters
    ----------
    consumer : Consumer
        From `looking`.
    wanted : sequence of Span
        What to read; in order within each partition.
    ends : dict, optional
        Told where reading ended.

    Yields
    ------
    Packet
        As they come.

    Raises
    ------
    ConfigError
        If reading is not allowed.
    RetriableError
        If nothing comes although there is something.
    """
    pending = {(span.topic, span.partition): span for span in wanted if span.low < span.high}
    consumer.assign([TopicPartition(span.topic, span.partition, span.low) for span in pending.values()])
    heard = monotonic()
    while pending:
        messages = consumer.consume(_CHUNK, _POLL_S)
        if messages:
            heard = monotonic()
        elif monotonic() - heard > TIMEOUT_S:
            raise RetriableError(
                f"Kafka sends nothing of {', '.join('/'.join(map(str, place)) for place in pending)} "
                f"for {TIMEOUT_S:g} s.",
                remedy="Try again; `stream-vae doctor` checks the brokers.",
            )
        yield from _inside(messages, pending, {} if ends is None else ends)
    consumer.unassign()


def _inside(messages: Sequence[Message], pending: dict[tuple[str, int], Span], ends: Ends) -> Iterator[Packet]:
    """Give what lies in the pending spans, and cross off those that are read to their end."""
    for message in messages:
        place = (message.topic(), message.partition())
        if message.error() is not None:
            if message.error().code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - a local error of librdkafka
                if (span := pending.pop(place, None)) is not None:
                    ends[place] = min(span.high, message.offset())
                continue
            _refuse(message.error(), message.topic())
        span = pending.get(place)
        if span is None:
            continue
        if message.offset() >= span.high - 1:
            del pending[place]
            ends[place] = span.high
        if span.low <= message.offset() < span.high:
            yield as_packet(message)


def _refuse(error: KafkaError, topic: str | None) -> None:
    if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
        return  # librdkafka looks for the group's coordinator, of whom nothing is wanted here
    if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        raise ConfigError(
            f"Kafka does not let you read {topic}: {error.str()}.", remedy="Grant READ on it, or see kafka.options."
        )
    if not error.retriable():
        raise RetriableError(f"Kafka, reading {topic}: {error.str()} ({error.name()}).")


def read_at(settings: KafkaSettings, position: Position) -> Packet:
    """Read one message.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    position : Position
        Where it is.

    Returns
    -------
    Packet
        The message.

    Raises
    ------
    ConfigError
        If there is no message at that place.
    RetriableError
        If the brokers do not answer.
    """
    with looking(settings) as consumer:
        held = spans(settings, position.topic, consumer)
        if position.partition >= len(held):
            raise ConfigError(f"{position.topic} has {len(held)} partitions, numbered from 0.")
        span = held[position.partition]
        if not span.low <= position.offset < span.high:
            what = f"holds the offsets {span.low} to {span.high - 1}" if span.low < span.high else "is empty"
            raise ConfigError(
                f"There is no message at {position}: the partition {what}.",
                remedy="What is older was deleted by the topic's retention.",
            )
        wanted = Span(position.topic, position.partition, position.offset, position.offset + 1)
        for packet in read_spans(consumer, [wanted]):
            return packet
    raise ConfigError(
        f"There is no message at {position}.",
        remedy="It may be a transaction's marker, or not committed yet; try the offset before it.",
    )


def latest(settings: KafkaSettings, topic: str, count: int) -> list[Packet]:
    """Read the latest messages of a topic.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    topic : str
        Its name.
    count : int
        How many at most.

    Returns
    -------
    list of Packet
        Latest last, by Kafka's timestamps.

    Raises
    ------
    ConfigError
        If there is no such topic or no broker.
    RetriableError
        If the brokers do not answer.
    """
    with looking(settings) as consumer:
        return _latest(consumer, spans(settings, topic, consumer), count)


def _latest(consumer: Consumer, held: Sequence[Span], count: int, ends: Ends | None = None) -> list[Packet]:
    back = max(count, 1)
    while True:
        wanted = [Span(s.topic, s.partition, max(s.low, s.high - back), s.high) for s in held]
        found = list(read_spans(consumer, wanted, ends))
        # Offsets may be markers of transactions, which are no messages: then look further back.
        if len(found) >= count or all(s.high - back <= s.low for s in held):
            return sorted(found, key=_when)[len(found) - min(count, len(found)) :]
        back *= 4


def _when(packet: Packet) -> tuple[int, int, int]:
    return packet.timestamp_ms or 0, packet.offset, packet.partition


def follow(settings: KafkaSettings, topic: str, count: int = 0, *, poll_s: float = _POLL_S) -> Iterator[list[Packet]]:
    """Read the latest messages of a topic, and then what comes, for ever.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    topic : str
        Its name.
    count : int
        How many of the latest at most.
    poll_s : float
        Longest wait for a list.

    Yields
    ------
    list of Packet
        Empty if nothing came for a moment.

    Raises
    ------
    ConfigError
        If there is no such topic or no broker.
    RetriableError
        If a broker refuses.
    """
    with looking(settings) as consumer:
        held = spans(settings, topic, consumer)
        ends: Ends = {}
        yield _latest(consumer, held, count, ends)
        starts = [TopicPartition(topic, s.partition, ends.get((topic, s.partition), s.high)) for s in held]
        consumer.assign(starts)
        while True:
            messages = consumer.consume(_CHUNK, poll_s)
            for message in messages:
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001
                    _refuse(error, topic)
            yield [as_packet(message) for message in messages if message.error() is None]
