"""Stamps to learn from: read in chunks from a source, gathered in memory, with labels and groups.

A `StampSource` yields scaled stamps in input order and in bounded memory, prepared by the same code as in
serving. `read_stamps` gathers what can be trained on, in memory or, where it is too much for that, on disk.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.data.spool import Columns, columns_for
from stream_vae.learning.progress import Reporter, silent
from stream_vae.quality import UNSCOREABLE, Quality

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
    bands: NDArray[np.str_] | None = None
    """(n,) filter, empty where unknown."""
    typical: NDArray[np.bool_] | None = None
    """(n,) whether it stands for the survey as it is now; others were chosen for what they are."""

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
    bands : ndarray of str, shape (n,), optional
        Filter of each, where the source knows.
    typical : ndarray of bool, shape (n,), optional
        Whether each stands for the survey as it is now; absent: all do.
    """

    stamps: NDArray[Any]
    labels: NDArray[np.int8]
    groups: NDArray[np.int64]
    snapshot: dict[str, Any]
    noise: NDArray[Any] | None = None
    kinds: NDArray[np.str_] | None = None
    snr: NDArray[np.float32] | None = None
    added: int = 0
    bands: NDArray[np.str_] | None = None
    typical: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        count = len(self.stamps)
        for name in ("labels", "groups", "noise", "kinds", "snr", "bands", "typical"):
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

    def take(self, rows: Any, *, as_stored: bool = False) -> NDArray[np.float32]:
        """Read some stamps.

        Parameters
        ----------
        rows : ndarray of int or slice
            Which ones; not all of a large set at once.
        as_stored : bool
            Leave them in the type that they are stored in.

        Returns
        -------
        ndarray of float32, shape (n, size, size, channels)
            In memory.
        """
        return np.asarray(self.stamps[rows], None if as_stored else np.float32)

    def take_noise(self, rows: Any, *, as_stored: bool = False) -> NDArray[np.float32]:
        """Read the noise maps of some stamps.

        Parameters
        ----------
        rows : ndarray of int or slice
            Which ones.
        as_stored : bool
            Leave them in the type that they are stored in.

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
        return np.asarray(self.noise[rows], None if as_stored else np.float32)

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
            for name in ("stamps", "labels", "groups", "noise", "kinds", "snr", "bands", "typical")
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
    source: StampSource,
    *,
    max_stamps: int | None,
    min_stamps: int,
    seed: int,
    noise: bool = False,
    added: StampSource | None = None,
    spool: Path | None = None,
    report: Reporter = silent,
) -> StampSet:
    """Gather the scoreable stamps of a source, thinned at random if they are too many.

    Parameters
    ----------
    source : StampSource
        Where they are.
    max_stamps, min_stamps : int
        Keep at most so many, or all of them if None; refuse fewer.
    seed : int
        Of the thinning.
    noise : bool
        Whether to keep the noise maps.
    added : StampSource, optional
        Simulated stamps that join at the end.
    spool : Path, optional
        An empty folder for a set too large for memory, to be kept while the set is in use; without one any number
        is kept in memory.
    report : Reporter
        Told how far it is.

    Returns
    -------
    StampSet
        In input order.

    Raises
    ------
    ConfigError
        If too few stamps can be used, the disk has no room for them, or noise maps are asked for that are not there.
    """
    thinning = Thinning(source.count, max_stamps, np.random.default_rng(seed))
    total = thinning.wanted + (added.count if added is not None else 0)
    count = _Count()
    columns: Columns | None = None
    joined = 0
    for chunk, own in _chained(source, added, report):
        keep = chunk.scoreable & thinning.next(len(chunk.stamps)) if own else chunk.scoreable
        rows = _columns_of(chunk, keep, noise=noise)
        if columns is None:
            columns, names = columns_for(total, rows, spool), tuple(rows)
        for name in names:
            columns.add(name, rows[name] if name in rows else _absent(name, rows["stamps"]))
        if own:
            count.take(rows["stamps"], rows["labels"], rows["groups"])
            count.flag(chunk.quality)
        else:
            joined += len(rows["stamps"])
    if columns is None or count.stamps < min_stamps:
        raise _too_few(source, count.stamps, min_stamps)
    snapshot = count.snapshot(source)
    if thinning.wanted == source.count:
        _check_labels_match(snapshot)
    data = StampSet(**columns.finish(), snapshot=snapshot, added=joined)
    if noise:
        data.take_noise(slice(0, 1))  # better known before the work than after
    return data


def _too_few(source: StampSource, usable: int, wanted: int) -> ConfigError:
    remedy = f"Give at least {wanted} stamps with finite pixels that are not all alike."
    if source.count == 0:
        return ConfigError(f"{source.name} holds no stamps.", remedy=remedy)
    others = "; the others are blank or mostly NaN" if usable < source.count else ""
    return ConfigError(f"{source.name}: {usable} of {source.count} stamps can be used{others}.", remedy=remedy)


def _check_labels_match(snapshot: Mapping[str, Any]) -> None:
    """Refuse a table of labels of other alerts: without a word it would be as if there were none."""
    given = sum(n for counts in snapshot.get("labels", {}).values() for label, n in counts.items() if label != UNKNOWN)
    if given and not snapshot["real"] + snapshot["bogus"]:
        raise ConfigError(
            f"None of the {given} labels names an alert of {snapshot['name']} that can be used.",
            remedy="`alert_id` is the id of the alert (candid, diaSourceId), not of its object. Or leave --labels out.",
        )


class Thinning:
    """Chooses so many of a row of items at random, as they pass by.

    Parameters
    ----------
    count : int
        Items to come.
    wanted : int or None
        How many to choose; None for all.
    random : numpy.random.Generator
        Where chance comes from.
    """

    def __init__(self, count: int, wanted: int | None, random: np.random.Generator) -> None:
        self.wanted = count if wanted is None else min(count, wanted)
        self._left, self._missing = count, self.wanted
        self._random = random

    def next(self, count: int) -> NDArray[np.bool_]:
        """Choose among the next items.

        Parameters
        ----------
        count : int
            How many they are.

        Returns
        -------
        ndarray of bool, shape (count,)
            True for the chosen.
        """
        if self._missing == self._left:
            chosen = count
        else:
            chosen = int(self._random.hypergeometric(self._missing, self._left - self._missing, count))
        self._left -= count
        self._missing -= chosen
        mask = np.zeros(count, np.bool_)
        mask[self._random.permutation(count)[:chosen]] = True
        return mask


def _chained(source: StampSource, added: StampSource | None, report: Reporter) -> Iterator[tuple[Chunk, bool]]:
    done = 0
    for chunk in source.chunks():
        yield chunk, True
        done += len(chunk.stamps)
        report("read stamps", done, source.count)
    if added is not None:
        yield from ((chunk, False) for chunk in added.chunks())


def _columns_of(chunk: Chunk, keep: NDArray[np.bool_], *, noise: bool) -> dict[str, NDArray[Any]]:
    names = ["stamps", "labels", "groups", *(["noise"] if noise else []), "kinds", "snr", "bands", "typical"]
    return {name: column[keep] for name in names if (column := getattr(chunk, name)) is not None}


def _absent(name: str, stamps: NDArray[Any]) -> NDArray[Any]:
    """Rows of a column that this part of the source has not."""
    if name in ("kinds", "bands"):
        return np.full(len(stamps), "", "U1")
    if name == "typical":
        return np.zeros(len(stamps), np.bool_)
    return np.full(stamps.shape if name == "noise" else len(stamps), np.nan, np.float32)


class _Count:
    """What a release's card says of the stamps, counted as they pass by."""

    most_groups = 200_000
    """More are not counted: the set of them would outgrow the rest."""

    def __init__(self) -> None:
        self.stamps = 0
        self._labels = dict.fromkeys((REAL, BOGUS, UNKNOWN), 0)
        self._groups: set[int] = set()
        self._digest = hashlib.sha256()
        self._read = self._masked = self._unscoreable = 0

    def flag(self, quality: NDArray[np.uint32]) -> None:
        """Count what was unusual, of all that was read."""
        unscoreable = (quality & np.uint32(UNSCOREABLE)) != 0
        self._read += len(quality)
        self._unscoreable += int(unscoreable.sum())
        self._masked += int((~unscoreable & ((quality & np.uint32(Quality.MASKED_PIXELS)) != 0)).sum())

    def take(self, stamps: NDArray[np.float32], labels: NDArray[np.int8], groups: NDArray[np.int64]) -> None:
        self.stamps += len(stamps)
        for label in self._labels:
            self._labels[label] += int((labels == label).sum())
        if len(self._groups) <= self.most_groups:
            self._groups.update(np.unique(groups).tolist())
        self._digest.update(np.ascontiguousarray(stamps).data)

    def snapshot(self, source: StampSource) -> dict[str, Any]:
        known = source.grouped and len(self._groups) <= self.most_groups
        return {
            "kind": source.kind,
            "name": source.name,
            "stamps": source.count,
            "used": self.stamps,
            "real": self._labels[REAL],
            "bogus": self._labels[BOGUS],
            "unlabelled": self._labels[UNKNOWN],
            "groups": len(self._groups) if known else None,
            "sha256": self._digest.hexdigest(),
            **self._shares(source.kind),
            **source.lineage,
        }

    def _shares(self, kind: str) -> dict[str, Any]:
        """Of a survey's alerts; what a simulation masks says nothing of one."""
        if kind != "alerts" or self._read == 0:
            return {}
        shares = {"masked": self._masked / self._read, "unscoreable": self._unscoreable / self._read}
        return {"shares": shares, "shares_of": self._read}
