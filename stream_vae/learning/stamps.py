"""Stamps to learn from: read in chunks from a source, gathered in memory, with labels and groups.

A `StampSource` yields scaled stamps in input order and in bounded memory, prepared by the same code as in
serving. `read_stamps` gathers what can be trained on.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.progress import Reporter, silent
from stream_vae.quality import UNSCOREABLE

CHUNK = 2048
"""Stamps at a time: 3.6 MB of float32 at 21x21."""
UNKNOWN, BOGUS, REAL = -1, 0, 1


class Chunk(NamedTuple):
    """Some stamps in a row, one row each whether they can be scored or not."""

    stamps: NDArray[np.float32]
    """(n, size, size, channels) scaled; zero where unscoreable."""
    quality: NDArray[np.uint32]
    """(n,) `stream_vae.quality.Quality` bits."""
    labels: NDArray[np.int8]
    """(n,) 1 real, 0 bogus, -1 unknown."""
    groups: NDArray[np.int64]
    """(n,) what must stay together in a split: an image, an object."""
    noise: NDArray[np.float32] | None = None
    """(n, size, size, channels) one standard deviation of each pixel, scaled as the stamp is; NaN where unknown."""
    kinds: NDArray[np.str_] | None = None
    """(n,) what each is, where the source knows: `transient`, `dipole` and so on."""
    snr: NDArray[np.float32] | None = None
    """(n,) signal to noise, NaN where unknown."""

    @property
    def scoreable(self) -> NDArray[np.bool_]:
        """(n,) whether the row may be encoded."""
        return cast("NDArray[np.bool_]", (self.quality & np.uint32(UNSCOREABLE)) == 0)


@dataclass(frozen=True)
class StampSource:
    """Stamps that can be read from the beginning as often as needed.

    Parameters
    ----------
    kind : str
        `simulation`, `file`, `alerts` or `reservoir`.
    name : str
        What to call it in a release's card: no path of this machine.
    count : int
        How many stamps there are, unscoreable ones included.
    chunks : callable
        Returns an iterator over all of them in order.
    grouped : bool
        Whether the groups say anything; if not, every stamp is its own.
    lineage : mapping
        What else a release's card should say of where they come from; plain JSON values.
    describe : callable, optional
        What a row is, for people: `alert`, `object` and `file` of an alert.
    """

    kind: str
    name: str
    count: int
    chunks: Callable[[], Iterator[Chunk]]
    grouped: bool
    lineage: Mapping[str, Any] = field(default_factory=dict)
    describe: Callable[[int], dict[str, str]] | None = None


@dataclass(frozen=True)
class StampSet:
    """Scoreable stamps, in memory or memory-mapped.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        Scaled; float32 in memory, float16 on disk. Read rows with `take`, which gives float32 of either.
    labels : ndarray of int8, shape (n,)
        1 real, 0 bogus, -1 unknown.
    groups : ndarray of int64, shape (n,)
        What must stay together in a split.
    snapshot : dict
        Where they came from, for a release's card.
    noise : ndarray, shape (n, size, size, channels), optional
        One standard deviation of each pixel, scaled as the stamp is; NaN where unknown.
    kinds : ndarray of str, shape (n,), optional
        What each is, where the source knows.
    snr : ndarray of float32, shape (n,), optional
        Signal to noise.
    added : int
        So many rows at the end are simulated ones, for training only.
    """

    stamps: NDArray[Any]
    labels: NDArray[np.int8]
    groups: NDArray[np.int64]
    snapshot: dict[str, Any]
    noise: NDArray[Any] | None = None
    kinds: NDArray[np.str_] | None = None
    snr: NDArray[np.float32] | None = None
    added: int = 0

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        count = len(self.stamps)
        for name in ("labels", "groups", "noise", "kinds", "snr"):
            column = getattr(self, name)
            if column is not None and len(column) != count:
                raise ConfigError(f"{len(column)} {name} for {count} stamps.", remedy=f"Give {name} for each stamp.")
        if self.noise is not None and self.noise.shape != self.stamps.shape:
            raise ConfigError(
                f"Noise of shape {self.noise.shape} for stamps of shape {self.stamps.shape}.",
                remedy="Give one number a pixel: the standard deviation of its noise.",
            )

    def __len__(self) -> int:
        return len(self.stamps)

    @property
    def on_disk(self) -> bool:
        """Whether the stamps are memory-mapped."""
        return isinstance(self.stamps, np.memmap)

    def take(self, rows: Any) -> NDArray[np.float32]:
        """Read some stamps.

        Parameters
        ----------
        rows : ndarray of int or slice
            Which ones; not all of a large set at once.

        Returns
        -------
        ndarray of float32, shape (n, size, size, channels)
            In memory.
        """
        return np.asarray(self.stamps[rows], np.float32)

    def take_noise(self, rows: Any) -> NDArray[np.float32]:
        """Read the noise maps of some stamps.

        Parameters
        ----------
        rows : ndarray of int or slice
            Which ones.

        Returns
        -------
        ndarray of float32, shape (n, size, size, channels)
            In memory.

        Raises
        ------
        ConfigError
            If the source had none.
        """
        if self.noise is None:
            raise ConfigError(
                f"The stamps of {self.snapshot.get('name', 'this set')} have no noise maps.",
                remedy="Give an array `noise` beside `stamps`, or alerts with one; or set loss.noise_map = false.",
            )
        return np.asarray(self.noise[rows], np.float32)

    def part(self, rows: NDArray[Any]) -> "StampSet":
        """Copy some rows into memory, in the type that they are stored in.

        Parameters
        ----------
        rows : ndarray of int, shape (n,)
            Which rows; ascending is fastest on disk.

        Returns
        -------
        StampSet
            Of these rows only.
        """
        columns = {
            name: None if (column := getattr(self, name)) is None else np.array(column[rows])
            for name in ("stamps", "labels", "groups", "noise", "kinds", "snr")
        }
        return StampSet(**columns, snapshot=self.snapshot)  # type: ignore[arg-type]

    def pieces(self, rows: NDArray[Any], size: int = CHUNK) -> Iterator[NDArray[np.float32]]:
        """Read stamps in bounded memory.

        Parameters
        ----------
        rows : ndarray of int, shape (n,)
            Which rows.
        size : int
            Stamps at a time.

        Yields
        ------
        ndarray of float32, shape (<= size, size, size, channels)
            In the order of `rows`.
        """
        for i in range(0, len(rows), size):
            yield self.take(rows[i : i + size])


def read_stamps(
    source: StampSource, *, max_stamps: int, min_stamps: int, seed: int, report: Reporter = silent
) -> StampSet:
    """Gather the scoreable stamps of a source, thinned at random if they are too many.

    Parameters
    ----------
    source : StampSource
        Where they are.
    max_stamps, min_stamps : int
        Keep at most so many; refuse fewer.
    seed : int
        Of the thinning.
    report : Reporter
        Told how far it is.

    Returns
    -------
    StampSet
        In input order.

    Raises
    ------
    ConfigError
        If too few stamps can be used.
    """
    wanted = np.ones(source.count, np.bool_)
    if source.count > max_stamps:
        wanted[:] = False
        wanted[np.random.default_rng(seed).choice(source.count, max_stamps, replace=False)] = True
    kept: list[Chunk] = []
    at = 0
    for chunk in source.chunks():
        keep = chunk.scoreable & wanted[at : at + len(chunk.stamps)]
        kept.append(Chunk(chunk.stamps[keep], chunk.quality[keep], chunk.labels[keep], chunk.groups[keep]))
        at += len(chunk.stamps)
        report("read stamps", at, source.count)
    usable = sum(len(chunk.stamps) for chunk in kept)
    if usable < min_stamps:
        raise ConfigError(
            f"{source.name}: {usable} of {source.count} stamps can be used; the others are blank or mostly NaN.",
            remedy=f"Give at least {min_stamps} stamps with finite pixels that are not all alike.",
        )
    stamps = np.concatenate([chunk.stamps for chunk in kept])
    labels = np.concatenate([chunk.labels for chunk in kept])
    groups = np.concatenate([chunk.groups for chunk in kept])
    return StampSet(stamps, labels, groups, _snapshot(source, stamps, labels, groups))


def _snapshot(
    source: StampSource, stamps: NDArray[np.float32], labels: NDArray[np.int8], groups: NDArray[np.int64]
) -> dict[str, Any]:
    return {
        "kind": source.kind,
        "name": source.name,
        "stamps": source.count,
        "used": len(stamps),
        "real": int((labels == REAL).sum()),
        "bogus": int((labels == BOGUS).sum()),
        "unlabelled": int((labels == UNKNOWN).sum()),
        "groups": len(np.unique(groups)) if source.grouped else None,
        "sha256": hashlib.sha256(stamps.data).hexdigest(),
        **source.lineage,
    }
