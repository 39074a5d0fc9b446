"""The way of an alert, on one screen.

    Kafka -> source -> decode -> stamp -> encode -> score -> enrich -> sink -> Kafka

`enriched` is a plain function of a batch of packets: no broker, no clock, nothing to wait for. Every packet
that goes in comes out with exactly one fate: published, dead-lettered or filtered. The effects are in the
source and the sink, and `stream_vae.runtime.worker` runs the loop between them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from stream_vae.alert import Alert, Codes, Outcome, Packet, Rejected, Scores
from stream_vae.errors import Reason
from stream_vae.metrics import Metrics
from stream_vae.stages.dead_letter import dead_letter
from stream_vae.stages.decode import Decoder
from stream_vae.stages.encode import Encoder
from stream_vae.stages.enrich import Enricher
from stream_vae.stages.score import Scorer
from stream_vae.stages.stamp import Stamper, Stamps

if TYPE_CHECKING:
    from stream_vae.canary import Canary


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages as one release needs them; a new release is a new set, put in between two batches."""

    decoder: Decoder
    stamper: Stamper
    encoder: Encoder
    scorer: Scorer
    enricher: Enricher
    dead_letter_topic: str
    observe: Callable[[Sequence[Alert], Stamps, Codes, Scores], None] | None = None
    """Shown each batch once it is scored; must neither wait nor raise."""
    canary: "Canary | None" = None
    """Another release, which scores and publishes a share of the alerts instead of this one."""


class Scored(NamedTuple):
    """What one release says of alerts."""

    stages: Stages
    alerts: Sequence[Alert]
    stamps: Stamps
    codes: Codes
    scores: Scores
    poison: list[int]
    """Rows on which the encoder itself fails."""


def enriched(packets: Sequence[Packet], stages: Stages, metrics: Metrics) -> list[Outcome]:
    """Take a batch of packets all the way to messages.

    Parameters
    ----------
    packets : sequence of Packet
        As consumed.
    stages : Stages
        Of the release that scores.
    metrics : Metrics
        Where time and fates are counted.

    Returns
    -------
    list of Outcome
        One a packet: published and filtered ones in the order of the packets, then dead letters.

    Raises
    ------
    RetriableError
        If something outside cannot be reached for now; nothing was published.
    """
    with metrics.stage("decode"):
        alerts, rejected = stages.decoder.decode(packets)
    with metrics.stage("stamp"):
        stamps = stages.stamper.cut(alerts)
    if stages.canary is None:
        results = messages(score(alerts, stamps, stages, metrics), metrics)
    else:
        results = stages.canary.divide(alerts, stamps, stages, metrics)

    rejected = [*rejected, *(result for result in results if isinstance(result, Rejected))]
    metrics.count_rejected(rejected)
    published = [result for result in results if isinstance(result, Outcome)]
    return published + [dead_letter(each, stages.dead_letter_topic) for each in rejected]


def score(alerts: Sequence[Alert], stamps: Stamps, stages: Stages, metrics: Metrics) -> Scored:
    """Let a release encode and score stamps.

    Parameters
    ----------
    alerts : sequence of Alert
        Decoded alerts.
    stamps : Stamps
        One row an alert.
    stages : Stages
        Of the release.
    metrics : Metrics
        Where time is counted.

    Returns
    -------
    Scored
        One row an alert.

    Raises
    ------
    RetriableError
        If what encodes cannot be reached now.
    """
    with metrics.stage("encode"):
        codes, stamps, poison = stages.encoder.encode(stamps)
    with metrics.stage("score"):
        scores = stages.scorer.score(codes)
    return Scored(stages, alerts, stamps, codes, scores, poison)


def messages(found: Scored, metrics: Metrics) -> list[Outcome | Rejected]:
    """Make the messages of what a release found, and show it to who observes.

    Parameters
    ----------
    found : Scored
        From `score`.
    metrics : Metrics
        Where time, scores and flags are counted.

    Returns
    -------
    list of Outcome or Rejected
        One an alert, in order.

    Raises
    ------
    RetriableError
        If a schema must be registered and the registry cannot be reached.
    """
    stages, alerts, stamps, codes, scores, poison = found
    if stages.observe is not None:
        with metrics.stage("observe"):
            stages.observe(alerts, stamps, codes, scores)
    quality = stamps.quality | stages.scorer.flag
    with metrics.stage("enrich"):
        results = stages.enricher.enrich(alerts, codes, scores, quality)
    for row in poison:
        text = "the encoder fails on this alert alone"
        results[row] = Rejected(alerts[row].packet, Reason.POISON, "encode", text, alerts[row].alert_id)
    metrics.count_quality(quality, scores)
    return results
