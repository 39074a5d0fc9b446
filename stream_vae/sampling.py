"""Which alerts a reservoir keeps, and as what bytes: strata, ranks, held-out alerts, records. No Redis here.

Each stratum is a bottom-k sample: an alert has a rank in it, and the k smallest stay. The ranks come from a keyed
hash of survey and id, so every worker and every redelivery gives an alert the same.

References
----------
Efraimidis & Spirakis 2006, Weighted random sampling with a reservoir (A-Res: of weight w, the keys u^(1/w), largest
stay; here ln(-ln u) - ln w, smallest stay, which weights of any size leave finite).
"""

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from stream_vae.alert import FloatArray
from stream_vae.errors import ConfigError
from stream_vae.labels.label import UNKNOWN, Provenance
from stream_vae.model.release import Preprocessing

UNIFORM, RECENT, RARE, KNOWN, ANCHORS = "uniform", "recent", "rare", "known", "anchors"
SAMPLED = (UNIFORM, RECENT, RARE, KNOWN)
"""The strata that are samples, in the order of the columns of ranks."""
STRATA = (*SAMPLED, ANCHORS)
CAPACITY_SETTINGS = ("capacity", "recent_capacity", "rare_capacity", "known_capacity", "anchor_capacity")
"""Where `[reservoir]` says how many each of `STRATA` keeps."""
PRECEDENCE = (ANCHORS, KNOWN, RARE, RECENT, UNIFORM)
"""An alert in several strata is drawn from the first of these."""

RANKS = 2**53
"""Ranks by hash are integers below this: what a sorted set's doubles and Lua's numbers hold exactly."""
LONGEST_ID = 256
"""Bytes of an alert's id; longer ones are not kept, so that memory has a bound."""
HELD_OUT_SHARE = 0.2
"""Share of the alerts that no training may see."""
OVERHEAD_BYTES = 256
"""What Redis needs for an entry beside its record, with ids of up to 40 bytes: measured 210 at 50,000 entries."""
LABEL_BYTES = 512
"""Of labels, an anchor: a label is about 170 bytes, so a few of each alert."""
WAITING_MOST = 10_000
"""Labelled alerts whose stamp is not there yet; workers keep their ids."""
NOVELTY_FLOOR = 1e-3
"""Of 1 - novelty: an alert beyond all training stamps weighs 1,000 times as much as one in their midst."""
S_PER_DAY = 86_400.0

# Not a secret, only our own: no other use of the hash orders alerts in the same way.
_HASH_KEY = b"stream_vae.reservoir.1"
_SALTS = (np.uint64(0x9E6C63D0676A9A99), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))
"""Odd numbers without a pattern, one for each of recent, rare and known."""

Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]


class Capacities(NamedTuple):
    """Stamps that each stratum may keep; 0 switches it off."""

    uniform: int
    recent: int = 0
    rare: int = 0
    known: int = 0
    anchors: int = 0


class Heads(NamedTuple):
    """What a record says beside its pixels, one row a stamp."""

    time_s: Floats
    """(n,) Kafka's timestamp in seconds since 1970, or when a worker saw the alert."""
    novelty: FloatArray
    """(n,) by the release that scored it first; NaN where it could not tell."""
    quality: npt.NDArray[np.uint32]
    """(n,) bits of `stream_vae.quality.Quality`."""
    labels: npt.NDArray[np.int8]
    """(n,) what the alert says of itself: 1 real, -1 nothing."""
    provenances: npt.NDArray[np.uint8]
    """(n,) places in `PROVENANCES`."""
    bands: npt.NDArray[np.bytes_]
    """(n,) UTF-8, up to 8 bytes; empty where the alert has none."""

    @classmethod
    def empty(cls, rows: int) -> "Heads":
        """Say nothing.

        Parameters
        ----------
        rows : int
            Of how many stamps.

        Returns
        -------
        Heads
            To be filled in; its arrays may be written.
        """
        table = np.zeros(rows, _HEAD)
        table["label"], table["novelty"] = UNKNOWN, np.nan
        return cls._make(table[name] for name in _HEAD_COLUMNS)


PROVENANCES = ("", *map(str, (Provenance.HUMAN, Provenance.INJECTION, Provenance.SOLAR_SYSTEM)))
PROVENANCES += tuple(map(str, (Provenance.CROSSMATCH, Provenance.SIMULATION, Provenance.CLASSIFIER)))
"""By the code that records hold: new ones are added at the end."""
_HEAD = np.dtype(
    [
        ("scale", "<f4"),
        ("time_s", "<f8"),
        ("novelty", "<f4"),
        ("quality", "<u4"),
        ("label", "i1"),
        ("provenance", "u1"),
        ("band", "S8"),
    ]
)
"""Packed, 30 bytes; `reservoir.lua` reads time_s at byte 4."""
_HEAD_STRUCT = struct.Struct("<fdfIbB8s")
"""The same, for a few records quicker."""
_HEAD_COLUMNS = _HEAD.names[1:] if _HEAD.names else ()


def digests(survey: str, alert_ids: Sequence[str]) -> Hashes:
    """Hash alerts to numbers that are uniform and independent for all practical purposes.

    Parameters
    ----------
    survey : str
        The profile's name.
    alert_ids : sequence of str
        Any.

    Returns
    -------
    ndarray
        (n, 2): the first decides the uniform rank, the second what is held out, and both together the other ranks.
    """
    prefix = survey.encode() + b"\0"
    joined = b"".join(
        blake2b(prefix + alert_id.encode(), digest_size=16, key=_HASH_KEY).digest() for alert_id in alert_ids
    )
    return np.frombuffer(joined, "<u8").reshape(-1, 2)


def ranks(survey: str, alert_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the rank of each alert in the uniform stratum.

    Parameters
    ----------
    survey : str
        The profile's name.
    alert_ids : sequence of str
        Any.

    Returns
    -------
    ndarray
        (n,) within [0, `RANKS`).
    """
    return (digests(survey, alert_ids)[:, 0] >> np.uint64(11)).astype(np.int64)


def held_out(survey: str, alert_ids: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Tell which alerts are kept for judging releases, in this training and in every later one.

    Parameters
    ----------
    survey : str
        The profile's name.
    alert_ids : sequence of str
        Any.

    Returns
    -------
    ndarray of bool
        (n,), true for a share of `HELD_OUT_SHARE`.
    """
    chosen: npt.NDArray[np.bool_] = digests(survey, alert_ids)[:, 1] < np.uint64(int(HELD_OUT_SHARE * 2**64))
    return chosen


def sampled_ranks(hashes: Hashes, time_s: Floats, novelty: FloatArray, recent_days: float) -> Floats:
    """Return the rank of each alert in every stratum that is a sample.

    Parameters
    ----------
    hashes : ndarray
        (n, 2) from `digests`.
    time_s : ndarray
        (n,) when the alerts were published, in seconds since 1970.
    novelty : ndarray
        (n,) within [0, 1]; NaN where it is not known.
    recent_days : float
        Time in which an alert's chance to be in the recent stratum falls to 1/e.

    Returns
    -------
    ndarray
        (n, 4) in the order of `SAMPLED`; inf where an alert cannot enter. That of the known stratum is given whether
        or not the alert belongs to it.
    """
    table = np.empty((len(hashes), len(SAMPLED)))
    _fill_ranks(hashes, time_s, novelty, recent_days * S_PER_DAY, table)
    return table


def could_enter(
    hashes: Hashes, novelty: FloatArray, recent_days: float, now_s: float, thresholds: Sequence[float]
) -> npt.NDArray[np.intp]:
    """Find the alerts that could enter a stratum if they were published just now: no other has to be looked at.

    Parameters
    ----------
    hashes : ndarray
        (n, 2) from `digests`.
    novelty : ndarray
        (n,) NaN where it is not known.
    recent_days : float
        As of `sampled_ranks`.
    now_s : float
        Seconds since 1970; no alert is later.
    thresholds : sequence of float
        In the order of `SAMPLED`.

    Returns
    -------
    ndarray of int
        Their rows, in order; a rank at the threshold is among them.
    """
    return _reaching(hashes, novelty, recent_days * S_PER_DAY, now_s, *thresholds)  # type: ignore[no-any-return]


@numba.njit(nogil=True, cache=True)
def _reaching(
    hashes: Hashes,
    novelty: FloatArray,
    recent_s: float,
    now_s: float,
    uniform: float,
    recent: float,
    rare: float,
    known: float,
) -> npt.NDArray[np.intp]:
    found = np.empty(len(hashes), np.intp)
    count = 0
    for row in range(len(hashes)):
        first, second = hashes[row, 0], hashes[row, 1]
        if (
            first >> np.uint64(11) <= uniform
            or _recent_rank(first, second, now_s, recent_s) <= recent
            or _rare_rank(first, second, novelty[row]) <= rare
            or _mixed(first, second, _SALTS[2]) >> np.uint64(11) <= known
        ):
            found[count] = row
            count += 1
    return found[:count]


@numba.njit(nogil=True, cache=True)
def _fill_ranks(hashes: Hashes, time_s: Floats, novelty: FloatArray, recent_s: float, table: Floats) -> None:
    for row in range(len(hashes)):
        first, second = hashes[row, 0], hashes[row, 1]
        table[row, 0] = first >> np.uint64(11)
        table[row, 1] = _recent_rank(first, second, time_s[row], recent_s)
        table[row, 2] = _rare_rank(first, second, novelty[row])
        table[row, 3] = _mixed(first, second, _SALTS[2]) >> np.uint64(11)


@numba.njit(nogil=True, cache=True)
def _recent_rank(first: np.uint64, second: np.uint64, time_s: float, recent_s: float) -> float:
    return math.log(_exponential(_mixed(first, second, _SALTS[0]))) - time_s / recent_s


@numba.njit(nogil=True, cache=True)
def _rare_rank(first: np.uint64, second: np.uint64, novelty: float) -> float:
    if math.isnan(novelty):
        return np.inf
    # Of ln E + ln v; the weight is 1 / v.
    return math.log(_exponential(_mixed(first, second, _SALTS[1])) * (1.0 - novelty + NOVELTY_FLOOR))


@numba.njit(nogil=True, cache=True)
def _mixed(first: np.uint64, second: np.uint64, salt: np.uint64) -> np.uint64:
    """Make a third number of two hashes.

    Whatever one of the two is, the other makes the result uniform: a stratum's ranks have nothing to do with the
    uniform ones, nor with what is held out. A longer digest would do the same, but would change both.
    """
    return _scrambled(first ^ salt) ^ _scrambled(second + salt)  # type: ignore[no-any-return]


@numba.njit(nogil=True, cache=True)
def _scrambled(number: np.uint64) -> np.uint64:
    """Permute 64-bit numbers so that each bit depends on all (the finaliser of SplitMix64)."""
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))


@numba.njit(nogil=True, cache=True)
def _exponential(number: np.uint64) -> float:
    """Turn a hash into -ln u, with u uniform in (0, 1)."""
    # The ranks that stay are those of u next to 1: from 1 - u, which is as uniform, none of their digits is lost.
    one_minus_u = ((number >> np.uint64(12)) + 0.5) * 2.0**-52
    return -math.log1p(-one_minus_u)


def digest_of(preprocessing: Preprocessing) -> str:
    """Digest how stamps are prepared.

    Parameters
    ----------
    preprocessing : Preprocessing
        Of a release or recipe.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    return hashlib.sha256(canonical(preprocessing).encode()).hexdigest()[:16]


def canonical(preprocessing: Preprocessing) -> str:
    """Write how stamps are prepared.

    Parameters
    ----------
    preprocessing : Preprocessing
        Of a release or recipe.

    Returns
    -------
    str
        JSON, the same for equal ones.
    """
    return json.dumps(preprocessing.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def pack(stamps: FloatArray, heads: Heads | None = None) -> list[bytes]:
    """Turn stamps into records.

    Parameters
    ----------
    stamps : ndarray
        (n, size, size, channels) finite float32.
    heads : Heads, optional
        What to say of them; absent: nothing, and a time of 0.

    Returns
    -------
    list of bytes
        Each a float32 scale, the largest absolute value; time, novelty, quality, label, provenance and band; and the
        pixels over the scale as float16. All little-endian.
    """
    flat = stamps.reshape(len(stamps), math.prod(stamps.shape[1:]))
    scale = np.abs(flat).max(axis=1, initial=0.0).astype("<f4")
    pixels = (flat / np.where(scale > 0, scale, np.float32(1.0))[:, np.newaxis]).astype("<f2")
    columns = Heads.empty(len(flat)) if heads is None else heads
    rows = zip(scale.tolist(), *(column.tolist() for column in columns), strict=True)
    return [_HEAD_STRUCT.pack(*row) + pixels[i].tobytes() for i, row in enumerate(rows)]


def unpack(records: Sequence[bytes], preprocessing: Preprocessing) -> FloatArray:
    """Turn records back into stamps.

    Parameters
    ----------
    records : sequence of bytes
        From `pack`.
    preprocessing : Preprocessing
        Gives their shape.

    Returns
    -------
    ndarray
        (n, size, size, channels) float32.

    Raises
    ------
    ConfigError
        If a record is not what `pack` writes.
    """
    table, pixels = _parted(records, preprocessing)
    stamps: FloatArray = pixels.astype(np.float32) * table["scale"][:, np.newaxis]
    if not np.isfinite(stamps).all():
        raise damaged("a stamp that is not finite")
    return stamps.reshape(len(records), *shape_of(preprocessing))


def unpack_heads(records: Sequence[bytes], preprocessing: Preprocessing) -> Heads:
    """Read what records say beside their pixels.

    Parameters
    ----------
    records : sequence of bytes
        From `pack`.
    preprocessing : Preprocessing
        Gives their length.

    Returns
    -------
    Heads
        One row a record.

    Raises
    ------
    ConfigError
        If a record is not what `pack` writes.
    """
    table, _ = _parted(records, preprocessing)
    if (table["provenance"] >= len(PROVENANCES)).any() or (np.abs(table["label"]) > 1).any():
        raise damaged("a record with a label that is none")
    return Heads._make(table[name] for name in _HEAD_COLUMNS)


def _parted(records: Sequence[bytes], preprocessing: Preprocessing) -> tuple[npt.NDArray[np.void], FloatArray]:
    wanted = record_bytes(preprocessing)
    if any(len(record) != wanted for record in records):
        raise damaged("a record of the wrong length")
    table = np.frombuffer(b"".join(records), np.uint8).reshape(len(records), wanted)
    head = np.ascontiguousarray(table[:, : _HEAD.itemsize]).view(_HEAD)[:, 0]
    return head, np.ascontiguousarray(table[:, _HEAD.itemsize :]).view("<f2")


def record_bytes(preprocessing: Preprocessing) -> int:
    """Return the length of one record.

    Parameters
    ----------
    preprocessing : Preprocessing
        Side and channels.

    Returns
    -------
    int
        Bytes.
    """
    return _HEAD.itemsize + 2 * int(np.prod(shape_of(preprocessing)))


def memory_bound(capacities: Capacities, preprocessing: Preprocessing) -> int:
    """Return what a full reservoir takes of Redis' memory, at most: as if no alert were in two strata.

    Parameters
    ----------
    capacities : Capacities
        Stamps, by stratum.
    preprocessing : Preprocessing
        Side and channels.

    Returns
    -------
    int
        Bytes, for ids of up to 40 bytes.
    """
    rounded = record_bytes(preprocessing) * 5 // 4  # allocators have size classes a quarter apart
    labels = capacities.anchors * (LABEL_BYTES * 5 // 4 + OVERHEAD_BYTES)
    waiting = waiting_most(capacities.anchors) * OVERHEAD_BYTES
    # And the scripts, the keys, a client's buffers.
    return sum(capacities) * (rounded + OVERHEAD_BYTES) + labels + waiting + 2**18


def waiting_most(anchors: int) -> int:
    """Return how many labelled alerts may wait for their stamps.

    Parameters
    ----------
    anchors : int
        Capacity of that stratum.

    Returns
    -------
    int
        At most half of it: labels of alerts that never come again must not take the room of those that do.
    """
    return min(WAITING_MOST, (anchors + 1) // 2)


def shape_of(preprocessing: Preprocessing) -> tuple[int, int, int]:
    """Return the shape of one stamp.

    Parameters
    ----------
    preprocessing : Preprocessing
        Side and channels.

    Returns
    -------
    tuple of int
        Height, width, channels.
    """
    return preprocessing.stamp_size, preprocessing.stamp_size, len(preprocessing.cutouts)


def damaged(what: str) -> ConfigError:
    """Say that something in the reservoir is not ours.

    Parameters
    ----------
    what : str
        What was found.

    Returns
    -------
    ConfigError
        With the remedy.
    """
    return ConfigError(
        f"The reservoir holds {what}: something else wrote to its keys.",
        remedy="Start anew with `stream-vae reservoir clear`.",
    )
