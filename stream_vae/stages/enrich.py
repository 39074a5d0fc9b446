"""Codes and scores to messages: the enrichment's bytes appended to the original record's.

Avro encodes a record as its fields in order, so one field more at the end of the schema is some bytes more at
the end of the body; nothing of the original is decoded or written again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct
from time import time_ns
from typing import Any

import numpy as np

from stream_vae import schemas
from stream_vae.alert import Alert, Codes, Outcome, Outgoing, Rejected, Scores
from stream_vae.avro.binary import write_bytes, write_long
from stream_vae.avro.framing import Frame, Framing, OutputSchema, reframe, replace_body
from stream_vae.avro.registry import SchemaSource
from stream_vae.avro.schema import LruCache
from stream_vae.errors import RejectedAlertError
from stream_vae.model.release import ReleaseCard
from stream_vae.stages.stamp import Flags
from stream_vae.surveys import Profile

FIELD = "stream_vae"
"""The appended field's name."""
SOURCE_HEADER = "stream_vae.source"
RELEASE_HEADER = "stream_vae.release"
_OWN_HEADERS = "stream_vae."
_FLOAT = Struct("<f").pack
_DOUBLE = Struct("<d").pack
_NULL = b"\x00"
_PRESENT = b"\x02"  # second branch of ["null", ...]


def _text(value: str) -> bytes:
    return write_bytes(value.encode())


def _maybe(value: object, encode: Callable[[Any], bytes]) -> bytes:
    return _NULL if value is None else _PRESENT + encode(value)


class EnrichmentWriter:
    """Encodes `StreamVaeEnrichment` 1.0 for whole batches.

    Parameters
    ----------
    release : str
        The release that scores.
    latent_space : str
        The space that its codes live in.
    latent_size : int
        Length of a code.
    """

    def __init__(self, release: str, latent_space: str, latent_size: int) -> None:
        self._prefix = _text(release) + _text(latent_space)
        self._array_head = _PRESENT + write_long(latent_size)
        # One block of the array, then the end of its blocks; numpy fills the rows of a batch at once.
        head = f"V{len(self._array_head)}"
        array = np.dtype([("head", head), ("values", "<f4", (latent_size,)), ("end", "u1")])
        number = np.dtype([("branch", "u1"), ("value", "<f4")])
        fields = [*((name, array) for name in Codes._fields), *((name, number) for name in Scores._fields)]
        self._row = np.dtype(fields)

    def write(self, codes: Codes, scores: Scores, quality: Flags, scored_at_us: int) -> list[bytes]:
        """Encode one record a row.

        Parameters
        ----------
        codes : Codes
            NaN where unscored.
        scores : Scores
            NaN where unknown.
        quality : ndarray
            (n,) uint32.
        scored_at_us : int
            Microseconds since 1970 UTC.

        Returns
        -------
        list of bytes
            The record alone, without the union branch of the appended field.
        """
        prefix, time = self._prefix, write_long(scored_at_us)
        bits = quality.tolist()
        flags = {value: write_long(value) + time for value in set(bits)}
        whole = self._whole_rows(codes, scores)
        width = self._row.itemsize
        complete = np.all(np.isfinite(np.column_stack((*scores, *codes))), axis=1).tolist()
        return [
            prefix
            + (whole[n * width : (n + 1) * width] if complete[n] else self._partial_row(codes, scores, n))
            + flags[bits[n]]
            for n in range(len(bits))
        ]

    def _whole_rows(self, codes: Codes, scores: Scores) -> bytes:
        rows = np.zeros(len(codes.z_mean), self._row)
        for name, values in zip(Codes._fields, codes, strict=True):
            rows[name]["head"] = np.void(self._array_head)
            rows[name]["values"] = values
        for name, values in zip(Scores._fields, scores, strict=True):
            rows[name]["branch"] = _PRESENT[0]
            rows[name]["value"] = values
        return rows.tobytes()

    def _partial_row(self, codes: Codes, scores: Scores, n: int) -> bytes:
        parts = []
        for values in codes:
            known = np.isfinite(values[n]).all()
            parts.append(self._array_head + values[n].astype("<f4").tobytes() + b"\x00" if known else _NULL)
        parts += [_PRESENT + _FLOAT(values[n]) if np.isfinite(values[n]) else _NULL for values in scores]
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Topics:
    """Where messages go; at least one of the first two is set."""

    full: str | None
    lite: str | None
    dead_letter: str


class OutputSchemas:
    """The schemas of what is published, one for each writer schema and framing, made when first needed.

    Parameters
    ----------
    registry : SchemaSource or None
        Where schemas of Confluent-framed messages are registered, under ``<topic>-value``.
    entries : int
        How many are kept.
    """

    def __init__(self, registry: SchemaSource | None, entries: int = 256) -> None:
        self._registry = registry
        self._full: LruCache[tuple[str, Framing, str], OutputSchema] = LruCache(entries)
        self._lite: LruCache[tuple[Framing, str], OutputSchema] = LruCache(entries)
        enrichment = schemas.load("enrichment", "1.0")
        self._field = {"name": FIELD, "type": ["null", enrichment], "default": None, "doc": "What stream_vae found."}
        self._lite_schema = schemas.load("lite", "1.0")
        self._lite_schema["fields"][-1]["type"] = enrichment

    def full(self, frame: Frame, topic: str) -> OutputSchema:
        """Return the schema of the original record with the enrichment appended.

        Parameters
        ----------
        frame : Frame
            The packet.
        topic : str
            Where it will be published.

        Returns
        -------
        OutputSchema
            For `reframe`.

        Raises
        ------
        RejectedAlertError
            If the original has a field or type of that name.
        RetriableError
            If the registry cannot be reached.
        """
        key = (frame.writer.digest, frame.framing, topic)
        subject = f"{topic}-value"
        return self._full.get(key) or self._full.put(
            key, OutputSchema.appending(frame, self._field, registry=self._registry, subject=subject)
        )

    def lite(self, frame: Frame, topic: str) -> OutputSchema:
        """Return the schema of the record without the original packet.

        Parameters
        ----------
        frame : Frame
            The packet.
        topic : str
            Where it will be published.

        Returns
        -------
        OutputSchema
            For `replace_body`.

        Raises
        ------
        RetriableError
            If the registry cannot be reached.
        """
        key = (frame.framing, topic)
        registry = self._registry if frame.framing is Framing.CONFLUENT else None
        return self._lite.get(key) or self._lite.put(
            key, OutputSchema.of(self._lite_schema, registry=registry, subject=f"{topic}-value")
        )


class Enricher:
    """Makes the messages of one release for one survey.

    Parameters
    ----------
    card : ReleaseCard
        Release, latent space and size.
    profile : Profile
        The survey.
    topics : Topics
        Where to publish.
    outputs : OutputSchemas
        The schemas of what is published; the next release's enricher takes them over.
    min_real_score : float, optional
        Alerts with a lower score are filtered.
    """

    def __init__(
        self,
        card: ReleaseCard,
        profile: Profile,
        topics: Topics,
        outputs: OutputSchemas,
        min_real_score: float | None = None,
    ) -> None:
        self._writer = EnrichmentWriter(card.id, card.latent_space, card.latent_size)
        self._release = card.id.encode()
        self._profile = profile
        self._topics = topics
        self.outputs = outputs
        self._min_real_score = min_real_score

    def enrich(
        self, alerts: Sequence[Alert], codes: Codes, scores: Scores, quality: Flags, now_us: int | None = None
    ) -> list[Outcome | Rejected]:
        """Make the messages of a batch.

        Parameters
        ----------
        alerts : sequence of Alert
            Decoded alerts.
        codes : Codes
            One row an alert.
        scores : Scores
            One row an alert.
        quality : ndarray
            (n,) `Quality` bits.
        now_us : int, optional
            Time of scoring, microseconds since 1970 UTC; absent: now.

        Returns
        -------
        list of Outcome or Rejected
            One an alert, in order; rejected where the writer schema admits no enrichment.

        Raises
        ------
        RetriableError
            If a schema must be registered and the registry cannot be reached.
        """
        records = self._writer.write(codes, scores, quality, now_us or time_ns() // 1000)
        passes = np.ones(len(alerts), np.bool_)
        if self._min_real_score is not None:
            passes = ~(scores.real_score < self._min_real_score)  # NaN passes: unscored is never filtered
        results: list[Outcome | Rejected] = []
        for n, (alert, passed) in enumerate(zip(alerts, passes.tolist(), strict=True)):
            if not passed:
                results.append(Outcome(alert.packet, (), "filtered"))
                continue
            try:
                results.append(Outcome(alert.packet, self._messages(alert, records[n]), "published"))
            except RejectedAlertError as error:
                results.append(Rejected(alert.packet, error.reason, "enrich", str(error), alert.alert_id))
        return results

    def _messages(self, alert: Alert, record: bytes) -> tuple[Outgoing, ...]:
        packet = alert.packet
        headers: list[tuple[str, bytes | None]] = [
            (SOURCE_HEADER, packet.origin.encode()),
            (RELEASE_HEADER, self._release),
        ]
        if packet.headers:
            headers = [*(pair for pair in packet.headers if not pair[0].startswith(_OWN_HEADERS)), *headers]
        messages: list[Outgoing] = []
        if self._topics.full:
            pieces = reframe(alert.frame, _PRESENT + record, self.outputs.full(alert.frame, self._topics.full))
            messages.append(Outgoing(self._topics.full, pieces, packet.key, headers, packet.timestamp_ms))
        if self._topics.lite:
            body = self._lite_head(alert) + record
            pieces = replace_body(alert.frame, body, self.outputs.lite(alert.frame, self._topics.lite))
            messages.append(Outgoing(self._topics.lite, pieces, packet.key, headers, packet.timestamp_ms))
        return tuple(messages)

    def _lite_head(self, alert: Alert) -> bytes:
        field, profile = alert.field, self._profile
        object_id = field("object_id")
        return b"".join(
            (
                _text(profile.name),
                _text(alert.alert_id),
                _maybe(None if object_id is None else str(object_id), _text),
                _maybe(field("ra_deg"), _DOUBLE),
                _maybe(field("dec_deg"), _DOUBLE),
                _maybe(profile.midpoint_mjd(field("time")), _DOUBLE),
                _text(profile.time_scale),
                _maybe(profile.band(field("band")), _text),
            )
        )
