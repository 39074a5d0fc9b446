"""Which alerts a reservoir keeps, and as what bytes: ranks, held-out alerts, records. No Redis here.

An alert's rank is a keyed hash of its survey and id, so every worker and every redelivery gives it the same.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from stream_vae.alert import FloatArray
from stream_vae.errors import ConfigError
from stream_vae.model.release import Preprocessing

RANKS = 2**53
"""Ranks are integers below this: what a sorted set's doubles and Lua's numbers hold exactly."""
LONGEST_ID = 256
"""Bytes of an alert's id; longer ones are not kept, so that memory has a bound."""
HELD_OUT_SHARE = 0.2
"""Share of the alerts that no training may see."""
OVERHEAD_BYTES = 256
"""What Redis needs for an entry beside its record, with ids of up to 40 bytes: measured 210 at 50,000 entries."""

# Not a secret, only our own: no other use of the hash orders alerts in the same way.
_HASH_KEY = b"stream_vae.reservoir.1"


def digests(survey: str, alert_ids: Sequence[str]) -> npt.NDArray[np.uint64]:
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
        (n, 2): the first decides the rank, the second what is held out.
    """
    prefix = survey.encode() + b"\0"
    joined = b"".join(
        blake2b(prefix + alert_id.encode(), digest_size=16, key=_HASH_KEY).digest() for alert_id in alert_ids
    )
    return np.frombuffer(joined, "<u8").reshape(-1, 2)


def ranks(survey: str, alert_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the rank of each alert.

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


def pack(stamps: FloatArray) -> list[bytes]:
    """Turn stamps into records.

    Parameters
    ----------
    stamps : ndarray
        (n, size, size, channels) finite float32.

    Returns
    -------
    list of bytes
        Each a float32 scale, the largest absolute value, and the pixels over it as float16; little-endian.
    """
    flat = stamps.reshape(len(stamps), math.prod(stamps.shape[1:]))
    scale = np.abs(flat).max(axis=1, initial=0.0).astype("<f4")
    pixels = (flat / np.where(scale > 0, scale, np.float32(1.0))[:, np.newaxis]).astype("<f2")
    return [scale[i].tobytes() + pixels[i].tobytes() for i in range(len(flat))]


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
    wanted = record_bytes(preprocessing)
    if any(len(record) != wanted for record in records):
        raise damaged("a record of the wrong length")
    table = np.frombuffer(b"".join(records), np.uint8).reshape(len(records), wanted)
    scale = np.ascontiguousarray(table[:, :4]).view("<f4")
    stamps: FloatArray = np.ascontiguousarray(table[:, 4:]).view("<f2").astype(np.float32) * scale
    if not np.isfinite(stamps).all():
        raise damaged("a stamp that is not finite")
    return stamps.reshape(len(records), *shape_of(preprocessing))


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
    return 4 + 2 * int(np.prod(shape_of(preprocessing)))


def memory_bound(capacity: int, preprocessing: Preprocessing) -> int:
    """Return what a full reservoir takes of Redis' memory, at most.

    Parameters
    ----------
    capacity : int
        Stamps.
    preprocessing : Preprocessing
        Side and channels.

    Returns
    -------
    int
        Bytes, for ids of up to 40 bytes.
    """
    rounded = record_bytes(preprocessing) * 5 // 4  # allocators have size classes a quarter apart
    return capacity * (rounded + OVERHEAD_BYTES) + 2**18  # and the script, the keys, a client's buffers


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
