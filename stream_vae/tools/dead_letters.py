"""Dead letters: what was refused, and why."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stream_vae.alert import Packet
from stream_vae.settings import KafkaSettings
from stream_vae.stages import dead_letter
from stream_vae.stages.enrich import SOURCE_HEADER
from stream_vae.tools.topics import Position, Span, looking, read_spans, spans

UNKNOWN = "unknown"
"""The reason of a message that has no such header: not written by stream_vae."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter."""

    packet: Packet
    """As it lies in the dead-letter topic; its value and key are the original's."""
    reason: str
    stage: str | None
    error: str | None
    alert_id: str | None
    origin: Position | None
    """Where the message was read; None if its headers do not say."""

    def document(self) -> dict[str, Any]:
        """Give plain values for JSON.

        Returns
        -------
        dict
            All but the bytes.
        """
        return {
            "at": self.packet.origin,
            "source": str(self.origin) if self.origin else None,
            "reason": self.reason,
            "stage": self.stage,
            "error": self.error,
            "alert_id": self.alert_id,
            "bytes": len(self.packet.value),
            "timestamp_ms": self.packet.timestamp_ms,
        }


def letter_of(packet: Packet) -> Letter:
    """Read a dead letter's headers.

    Parameters
    ----------
    packet : Packet
        From the dead-letter topic.

    Returns
    -------
    Letter
        With the reason `UNKNOWN` where the headers are not stream_vae's.
    """
    headers = {name: (value or b"").decode("utf-8", "replace") for name, value in packet.headers}
    return Letter(
        packet=packet,
        reason=headers.get(dead_letter.REASON, UNKNOWN),
        stage=headers.get(dead_letter.STAGE),
        error=headers.get(dead_letter.ERROR),
        alert_id=headers.get(dead_letter.ALERT_ID),
        origin=Position.parse(headers.get(SOURCE_HEADER, "")),
    )


Progress = Callable[[int, int], None]
"""Told how many of how many offsets were read."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a dead-letter topic holds."""

    counts: dict[str, int]
    """By reason, the most frequent first."""
    latest: list[Letter]
    """Latest last."""


def list_letters(
    settings: KafkaSettings, count: int, reason: str | None = None, progress: Progress | None = None
) -> Listing:
    """Count the dead letters by reason, and give the latest.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    count : int
        How many of the latest to give.
    reason : str, optional
        Only those with this reason; the counts are of all.
    progress : callable, optional
        Told how far the reading is.

    Returns
    -------
    Listing
        Counts and latest.

    Raises
    ------
    ConfigError
        If there is no such topic or no broker.
    RetriableError
        If the brokers do not answer.
    """
    counts: Counter[str] = Counter()
    latest: list[Letter] = []
    with looking(settings) as consumer:
        held = spans(settings, settings.dead_letter_topic, consumer)
        for letter in letters(read_spans(consumer, held), held, progress):
            counts[letter.reason] += 1
            if reason is None or letter.reason == reason:
                latest.append(letter)
                if len(latest) > 2 * count:  # a letter is tens of kilobytes: keep few
                    latest = _newest(latest, count)
    return Listing(dict(counts.most_common()), _newest(latest, count))


def _newest(letters: list[Letter], count: int) -> list[Letter]:
    # Kafka's timestamp is that of the refusal; within a partition the offset tells which was refused later.
    ordered = sorted(letters, key=lambda letter: (letter.packet.timestamp_ms or 0, letter.packet.offset))
    return ordered[len(ordered) - min(count, len(ordered)) :]


def letters(packets: Iterable[Packet], held: Sequence[Span], progress: Progress | None) -> Iterator[Letter]:
    """Read the headers of packets as they come, and tell how far it is.

    Parameters
    ----------
    packets : iterable of Packet
        From the dead-letter topic.
    held : sequence of Span
        What is being read.
    progress : callable or None
        Told the number of packets, and of offsets in all.

    Yields
    ------
    Letter
        One a packet.
    """
    total = sum(span.high - span.low for span in held)
    for done, packet in enumerate(packets, 1):
        if progress:
            progress(done, total)
        yield letter_of(packet)
