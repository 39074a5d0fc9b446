"""Labels that a person gives, to where they count: the labels topic, or the reservoir itself where there is none."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Protocol

from confluent_kafka import KafkaError, Producer

from stream_vae import assembly, kafka
from stream_vae.errors import ConfigError, RetriableError
from stream_vae.labels.label import Label
from stream_vae.reservoir import LONGEST_LABEL, Reservoir
from stream_vae.sampling import LONGEST_ID
from stream_vae.settings import Settings

SENT = "sent"
MEANINGS = {
    SENT: "sent to the labels topic; the trainer takes it into the reservoir",
    "anchored": "its stamp stays in the reservoir from now on",
    "added": "one more label of a stamp that stays already",
    "repeated": "the reservoir had this label",
    "waiting": "the reservoir holds no stamp of this alert: the label waits, and counts once a worker sees the alert",
    "full": "refused: the reservoir has no room for more labelled stamps or labels (reservoir.anchor_capacity)",
}
"""What became of a label, in words."""
_ACKNOWLEDGED_S = 20.0
_AT_A_TIME = 1000


class Sender(Protocol):
    """Takes labels to where they count."""

    def send(self, labels: Sequence[Label]) -> list[str]:
        """Send labels, and wait until they are safe.

        Parameters
        ----------
        labels : sequence of Label
            Any number.

        Returns
        -------
        list of str
            What became of each: keys of `MEANINGS`.

        Raises
        ------
        ConfigError
            If a label is too long.
        RetriableError
            If what takes them does not answer; some may have arrived, and to send them again does no harm.
        """


class TopicSender:
    """To a Kafka topic, keyed by alert id: labels of one alert keep their order.

    Parameters
    ----------
    producer : Producer
        Acknowledges when all replicas have a message.
    topic : str
        Where to.
    """

    def __init__(self, producer: Producer, topic: str) -> None:
        self._producer = producer
        self._topic = topic

    def send(self, labels: Sequence[Label]) -> list[str]:
        """Publish, and wait for the acknowledgements.

        Parameters
        ----------
        labels : sequence of Label
            Any number.

        Returns
        -------
        list of str
            All `SENT`.

        Raises
        ------
        ConfigError
            If a label is too long; then none was sent.
        RetriableError
            If some were not acknowledged.
        """
        lines = [_checked(label) for label in labels]
        for start in range(0, len(labels), _AT_A_TIME):
            some = slice(start, start + _AT_A_TIME)
            self._publish([label.alert_id for label in labels[some]], lines[some])
        return [SENT] * len(labels)

    def _publish(self, alert_ids: Sequence[str], lines: Sequence[bytes]) -> None:
        failures: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: object) -> None:
            if error is not None:
                failures.append(error)

        for alert_id, line in zip(alert_ids, lines, strict=True):
            self._producer.produce(self._topic, line, alert_id.encode(), on_delivery=delivered)
        missing = self._producer.flush(_ACKNOWLEDGED_S)
        if missing or failures:
            self._producer.purge()
            why = failures[0].str() if failures else f"no answer within {_ACKNOWLEDGED_S:g} s"
            raise RetriableError(
                f"{missing + len(failures)} of {len(lines)} labels were not acknowledged by {self._topic}: {why}.",
                remedy="Send them again: what arrived already does no harm.",
            )


class ReservoirSender:
    """Straight into the reservoir.

    Parameters
    ----------
    reservoir : Reservoir
        Closed by whoever opened it.
    """

    def __init__(self, reservoir: Reservoir) -> None:
        self._reservoir = reservoir

    def send(self, labels: Sequence[Label]) -> list[str]:
        """Keep labels.

        Parameters
        ----------
        labels : sequence of Label
            Any number.

        Returns
        -------
        list of str
            As `Reservoir.label` says.

        Raises
        ------
        ConfigError
            If a label is too long, in which case none was kept; or Redis refuses.
        RetriableError
            If Redis does not answer.
        """
        for label in labels:
            _checked(label)
        return [self._reservoir.label(label) for label in labels]


@contextmanager
def sender_of(settings: Settings) -> Iterator[Sender]:
    """Open what takes labels.

    Parameters
    ----------
    settings : Settings
        ``[labels]``, ``[kafka]`` and ``[reservoir]``.

    Yields
    ------
    Sender
        To the topic where one is set, else into the reservoir.

    Raises
    ------
    ConfigError
        If neither is set, the topic is missing, or the brokers do not answer.
    """
    topic = settings.labels.topic
    if topic is None and settings.reservoir.url is None:
        raise ConfigError(
            "There is nowhere to keep a label: neither labels.topic nor reservoir.url is set.",
            remedy="Set reservoir.url, as for the workers; and labels.topic, if labels go by Kafka.",
        )
    if topic is None:
        with closing(assembly.reservoir_of(settings)) as reservoir:
            yield ReservoirSender(reservoir)
        return
    if topic not in kafka.partitions(settings.kafka, [topic]):
        raise ConfigError(
            f"Kafka has no topic labels.topic = {topic!r}.",
            remedy=f"kafka-topics.sh --create --topic {topic}; or start the trainer with kafka.create_topics = true.",
        )
    yield TopicSender(kafka.plain_producer(settings.kafka), topic)


def _checked(label: Label) -> bytes:
    line = json.dumps(label.record(), sort_keys=True, separators=(",", ":")).encode()
    if len(line) > LONGEST_LABEL:
        raise ConfigError(
            f"The label of {label.alert_id[:80]} has {len(line):,} bytes as JSON; {LONGEST_LABEL:,} are kept.",
            remedy="Shorten its comment.",
        )
    if len(label.alert_id.encode()) > LONGEST_ID:
        raise ConfigError(f"The id {label.alert_id[:80]}... has more than {LONGEST_ID} bytes.", remedy="Check it.")
    return line
