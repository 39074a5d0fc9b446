"""Batches for reservoirs, and alerts that no packet was decoded for."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from stream_vae.alert import Codes, FloatArray, Packet, Scores
from stream_vae.reservoir import Batch
from stream_vae.sampling import SAMPLED, Heads, digests, pack, sampled_ranks
from stream_vae.stages.stamp import Stamps

NOW_S = 1_790_000_000.0


def batch_of(
    survey: str,
    ids: Sequence[str],
    stamps: FloatArray,
    *,
    strata: Sequence[str] = ("uniform",),
    time_s: Any = NOW_S,
    novelty: Any = 0.5,
    recent_days: float = 7.0,
    heads: Heads | None = None,
) -> Batch:
    """Make the batch that a worker would send for these strata."""
    times = np.broadcast_to(np.asarray(time_s, np.float64), len(ids))
    novelties = np.broadcast_to(np.asarray(novelty, np.float32), len(ids))
    ranks = sampled_ranks(digests(survey, ids), times, novelties, recent_days)
    ranks[:, [stratum not in strata for stratum in SAMPLED]] = np.inf
    if heads is None:
        heads = Heads.empty(len(ids))
        heads.time_s[:], heads.novelty[:] = times, novelties
    return Batch(list(ids), ranks, pack(stamps, heads))


class NamedAlert(NamedTuple):
    """An alert of which only the id, the time and some fields are known."""

    alert_id: str
    packet: Packet
    fields: dict[str, Any]

    def field(self, name: str) -> Any:
        value = self.fields.get(name)
        if isinstance(value, Exception):
            raise value
        return value


def named(ids: Sequence[str], *, timestamp_ms: int | None = None, **fields: Any) -> list[Any]:
    return [NamedAlert(each, Packet(b"", "t", 0, 0, timestamp_ms=timestamp_ms), dict(fields)) for each in ids]


def observed(alerts: Sequence[Any], stamps: FloatArray, novelty: Any = np.nan, quality: int = 0) -> tuple[Any, ...]:
    """Give what an observer is shown."""
    rows = len(alerts)
    nothing = np.full(rows, np.nan, np.float32)
    novelties = np.broadcast_to(np.asarray(novelty, np.float32), rows)
    codes = Codes(np.zeros((rows, 2), np.float32), np.zeros((rows, 2), np.float32))
    scores = Scores(nothing, nothing, nothing, novelties)
    return alerts, Stamps(stamps, np.full(rows, quality, np.uint32)), codes, scores
