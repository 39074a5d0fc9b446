"""Dead letters, sent back once the cause is mended.

What was sent back is remembered in the committed offsets of a group of its own, with the next offset of every
reason in their metadata, so that sending twice does not send the same letter twice.
"""

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from stream_vae import kafka
from stream_vae.errors import ConfigError, RetriableError
from stream_vae.settings import KafkaSettings
from stream_vae.stages import dead_letter
from stream_vae.tools.dead_letters import Letter, Progress, letter_of, letters
from stream_vae.tools.topics import TIMEOUT_S, Span, looking, read_spans, spans

REPLAYED_HEADER = f"{dead_letter.PREFIX}replayed"
"""On a message that was sent back: the dead letter's own topic/partition/offset."""
_BATCH_BYTES = 16 * 2**20
_FLUSH_S = 60.0
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Choice:
    """Which letters to send back, and where."""

    reason: str | None = None
    """Absent: all of them."""
    target: str | None = None
    """Absent: each to the topic that it came from."""
    again: bool = False
    """Also those that were sent back before."""

    def topic_of(self, letter: Letter) -> str | None:
        """Tell where a letter goes.

        Parameters
        ----------
        letter : Letter
            Any.

        Returns
        -------
        str or None
            None if neither the choice nor its headers say.
        """
        return self.target or (letter.origin.topic if letter.origin else None)


Next = dict[str, int]
"""First offset of one partition that was not yet sent back, by reason."""


class Memory:
    """Which letters were sent back already.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    target : str, optional
        Another topic than the letters' own: what was sent there is remembered apart.
    """

    def __init__(self, settings: KafkaSettings, target: str | None = None) -> None:
        self._topic = settings.dead_letter_topic
        self.group_id = f"{settings.group_id}-dlq-replay" + (f"-to-{target}" if target else "")
        # Assigned to nothing and subscribed to nothing: a client of the group's offsets alone.
        self._consumer = kafka.plain_consumer(settings, group_id=self.group_id)

    def recall(self, partitions: Iterable[int]) -> dict[int, Next]:
        """Ask what was sent back.

        Parameters
        ----------
        partitions : iterable of int
            Of the dead-letter topic.

        Returns
        -------
        dict
            By partition.

        Raises
        ------
        RetriableError
            If the brokers do not answer.
        """
        wanted = [TopicPartition(self._topic, partition) for partition in partitions]
        try:
            committed = self._consumer.committed(wanted, timeout=TIMEOUT_S)
        except KafkaException as error:
            raise RetriableError(
                f"Kafka does not tell what was replayed (group {self.group_id}): {error.args[0].str()}.",
                remedy="Grant READ on that group, or try again.",
            ) from error
        return {entry.partition: _next_of(entry.metadata) for entry in committed}

    def remember(self, partition: int, upto: Next) -> None:
        """Commit what was sent back.

        Parameters
        ----------
        partition : int
            Of the dead-letter topic.
        upto : dict
            By reason.

        Raises
        ------
        RetriableError
            If the brokers refuse.
        """
        metadata = json.dumps({"stream_vae": _VERSION, "replayed": upto}, separators=(",", ":"))
        # The offset itself is for people who look at the group's lag: how far any reason has come.
        entry = TopicPartition(self._topic, partition, max(upto.values()), metadata=metadata)
        try:
            (result,) = self._consumer.commit(offsets=[entry], asynchronous=False)
        except KafkaException as error:
            raise RetriableError(
                f"The letters were sent, but group {self.group_id} cannot remember it: {error.args[0].str()}.",
                remedy="Another replay would send them again; grant READ on that group.",
            ) from error
        if result.error is not None:
            raise RetriableError(f"Group {self.group_id} cannot remember what was sent: {result.error.str()}.")

    def close(self) -> None:
        """Close the client; may be called twice."""
        self._consumer.close()


def _next_of(metadata: str | None) -> Next:
    try:
        document = json.loads(metadata or "")
        if document["stream_vae"] != _VERSION:
            return {}
        return {str(reason): int(offset) for reason, offset in document["replayed"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


@dataclass(slots=True)
class Plan:
    """What a replay would do, or did."""

    held: list[Span] = field(default_factory=list)
    upto: dict[int, Next] = field(default_factory=dict)
    """What was sent back before, by partition."""
    to_send: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Letters by reason and topic."""
    already_sent: int = 0
    without_origin: int = 0
    """Letters whose headers do not say where they came from."""

    @property
    def total(self) -> int:
        """How many letters would be sent."""
        return self.to_send.total()

    def was_sent(self, letter: Letter) -> bool:
        """Tell whether a letter was sent back before.

        Parameters
        ----------
        letter : Letter
            Any.

        Returns
        -------
        bool
            By the memory.
        """
        return letter.packet.offset < self.upto.get(letter.packet.partition, {}).get(letter.reason, 0)


def plan_replay(settings: KafkaSettings, memory: Memory, choice: Choice, progress: Progress | None = None) -> Plan:
    """Find the letters to send back; nothing is sent.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    memory : Memory
        What was sent back before.
    choice : Choice
        Which and where.
    progress : callable, optional
        Told how far the reading is.

    Returns
    -------
    Plan
        It ends where the topic ends now: a letter that comes back is not sent round again.

    Raises
    ------
    ConfigError
        If a letter would go to a topic that stream_vae writes, or that does not exist.
    RetriableError
        If the brokers do not answer.
    """
    plan = Plan()
    with looking(settings) as consumer:
        plan.held = spans(settings, settings.dead_letter_topic, consumer)
        plan.upto = memory.recall(span.partition for span in plan.held)
        for letter in letters(read_spans(consumer, plan.held), plan.held, progress):
            _enter(plan, letter, choice)
    _check_targets(settings, {topic for _, topic in plan.to_send})
    return plan


def _enter(plan: Plan, letter: Letter, choice: Choice) -> None:
    if choice.reason not in {None, letter.reason}:
        return
    topic = choice.topic_of(letter)
    if not choice.again and plan.was_sent(letter):
        plan.already_sent += 1
    elif topic is None:
        plan.without_origin += 1
    else:
        plan.to_send[letter.reason, topic] += 1


def _check_targets(settings: KafkaSettings, topics: set[str]) -> None:
    written = {settings.output_topic, settings.lite_topic, settings.dead_letter_topic}
    if wrong := sorted(topic for topic in topics if topic in written):
        raise ConfigError(
            f"Dead letters cannot be sent to {', '.join(wrong)}: that is where stream_vae publishes.",
            remedy="Leave out --to, or name an input topic or one of your own.",
        )
    known = kafka.partitions(settings, topics) if topics else {}
    if missing := sorted(topics.difference(known)):
        raise ConfigError(f"There is no topic {', '.join(missing)}.", remedy="Create it, or name another with --to.")


def replay(
    settings: KafkaSettings, memory: Memory, plan: Plan, choice: Choice, progress: Progress | None = None
) -> int:
    """Send letters back: the same bytes, key, timestamp and foreign headers.

    Every letter is sent at least once: a crash between an acknowledgement and the commit behind it sends those of
    one batch again.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    memory : Memory
        Told what was sent.
    plan : Plan
        From `plan_replay` with the same choice.
    choice : Choice
        Which and where.
    progress : callable, optional
        Told how many of the plan's letters are sent.

    Returns
    -------
    int
        How many were sent and acknowledged.

    Raises
    ------
    RetriableError
        If Kafka does not take them all; what it took is remembered as far as whole batches go.
    """
    sent = 0
    sender = _Sender(settings, choice, {topic for _, topic in plan.to_send})
    with looking(settings) as consumer, closing(sender):
        for span in plan.held:  # one partition after the other: the memory of each grows in order
            upto = dict(plan.upto.get(span.partition, {}))
            for letter in map(letter_of, read_spans(consumer, [span])):
                if choice.reason not in {None, letter.reason} or (not choice.again and plan.was_sent(letter)):
                    continue
                if sender.send(letter):
                    upto[letter.reason] = max(upto.get(letter.reason, 0), letter.packet.offset + 1)
                if sender.bytes_waiting >= _BATCH_BYTES:
                    sent += _settle(sender, memory, span.partition, upto)
                    if progress:
                        progress(sent, plan.total)
            sent += _settle(sender, memory, span.partition, upto)
    return sent


def _settle(sender: "_Sender", memory: Memory, partition: int, upto: Next) -> int:
    settled = sender.settle()
    if settled:
        memory.remember(partition, upto)
    return settled


class _Sender:
    """Produces letters and waits for their acknowledgements."""

    def __init__(self, settings: KafkaSettings, choice: Choice, topics: set[str]) -> None:
        self._choice = choice
        self._partitions = kafka.partitions(settings, topics)
        self._producer = kafka.plain_producer(settings)
        self._failure: KafkaError | None = None
        self._letters_waiting = self.bytes_waiting = 0

    def send(self, letter: Letter) -> bool:
        """Hand over one letter; False if it has nowhere to go."""
        packet, origin = letter.packet, letter.origin
        topic = self._choice.topic_of(letter)
        if topic is None:
            return False
        arguments: dict[str, Any] = {
            "key": packet.key,
            "headers": [
                *(pair for pair in packet.headers if not pair[0].startswith(dead_letter.PREFIX)),
                (REPLAYED_HEADER, packet.origin.encode()),
            ],
        }
        if origin and topic == origin.topic and origin.partition < self._partitions[topic]:
            arguments["partition"] = origin.partition  # whatever partitioner chose it: order by object stays
        sent_ms = dict(packet.headers).get(dead_letter.TIMESTAMP)
        if sent_ms is not None and sent_ms.isdigit():
            arguments["timestamp"] = int(sent_ms)
        self._produce(topic, packet.value, arguments)
        self._letters_waiting += 1
        self.bytes_waiting += len(packet.value)
        return True

    def _produce(self, topic: str, value: bytes, arguments: dict[str, Any]) -> None:
        while True:
            try:
                self._producer.produce(topic, value, on_delivery=self._delivered, **arguments)
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                raise kafka.as_error(error.args[0], "replaying dead letters") from error
            else:
                self._producer.poll(0)
                return

    def _delivered(self, error: KafkaError | None, message: object) -> None:
        del message
        self._failure = self._failure or error

    def settle(self) -> int:
        """Wait until everything is acknowledged; say how many letters that were."""
        left = self._producer.flush(_FLUSH_S)
        if self._failure is not None:
            raise kafka.as_error(self._failure, "replaying dead letters")
        if left:
            raise RetriableError(f"Kafka has not acknowledged {left} letters in {_FLUSH_S:g} s.", remedy="Try again.")
        settled, self._letters_waiting, self.bytes_waiting = self._letters_waiting, 0, 0
        return settled

    def close(self) -> None:
        """Forget what is not acknowledged."""
        self._producer.purge()
        self._producer.flush(1)
