"""Part stamps into training, validation and test, by group and never across one.

Stamps of one image share its noise, its PSF and its registration error; a model that saw one half of
an image knows the other half better than the next night's.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.data.stamps import BOGUS, REAL

Rows = NDArray[np.int64]

_PIECE = 1 << 18


@dataclass(frozen=True)
class Split:
    """Row numbers of each part, ascending.

    Parameters
    ----------
    train, validation, test : ndarray of int
        Rows. With only two groups, the test rows are the validation rows.
    held_out : bool
        Whether the test rows took no part in any choice.
    """

    train: Rows
    validation: Rows
    test: Rows
    held_out: bool


def split_by_group(
    groups: NDArray[np.int64],
    labels: NDArray[np.int8],
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> Split:
    """Part rows so that each group is whole in one part.

    Where rows are labelled, draws are repeated until every part has both classes.

    Parameters
    ----------
    groups : ndarray of int, shape (n,)
        Group of each row.
    labels : ndarray of int8, shape (n,)
        1 real, 0 bogus, -1 unknown.
    validation_fraction, test_fraction : float
        About how much of the rows goes there.
    seed : int
        The same seed gives the same parts.

    Returns
    -------
    Split
        The parts.

    Raises
    ------
    ConfigError
        If there is one group only, or no draw gives both classes to every part.
    """
    present = np.unique(groups)
    if len(present) < 2:
        raise ConfigError(
            "All stamps are of one group, so none can be held out.",
            remedy="Give stamps of a second image, or leave `groups` out to part them at random.",
        )
    random = np.random.default_rng(seed)
    real, bogus = int((labels == REAL).sum()), int((labels == BOGUS).sum())
    labelled = real > 0 and bogus > 0
    parts = 3 if len(present) > 2 else 2
    if labelled and min(real, bogus) < parts:
        raise ConfigError(
            f"{real} stamps are labelled real and {bogus} bogus: training, validation and test need some of both each.",
            remedy="Label some dozens of each class, or leave `labels` out to train the scorer on simulated stamps.",
        )
    for _ in range(50):
        split = _draw(groups, random, validation_fraction, test_fraction)
        if not labelled or all(_both(labels[rows]) for rows in (split.train, split.validation, split.test)):
            return split
    raise ConfigError(
        f"No split of the {len(present)} groups gives real and bogus stamps to each of training, validation and test.",
        remedy="Give groups that hold both classes, or more groups.",
    )


def split_by_hash(
    groups: NDArray[np.int64],
    labels: NDArray[np.int8],
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    folder: Path,
) -> Split:
    """Part the rows of a set on disk, in bounded memory: a group's hash says where it goes.

    Parameters
    ----------
    groups : ndarray of int, shape (n,)
        Group of each row.
    labels : ndarray of int8, shape (n,)
        1 real, 0 bogus, -1 unknown.
    validation_fraction, test_fraction : float
        About how much of the rows goes there.
    seed : int
        The same seed gives the same parts.
    folder : Path
        Gets the row numbers; to be kept while the split is in use.

    Returns
    -------
    Split
        Memory-mapped rows. With groups too few or too unlike for hashing, what `split_by_group` gives.
    """
    wanted = np.array([1.0 - validation_fraction - test_fraction, validation_fraction, test_fraction]) * len(groups)
    borders = np.cumsum([test_fraction, validation_fraction])
    labelled = any(_both(labels[i : i + _PIECE]) for i in range(0, len(labels), _PIECE))
    for attempt in range(10):
        rows, tally = _hashed(groups, labels, borders, seed=(seed << 8) + attempt, folder=folder)
        even = np.abs(tally.sum(axis=1) - wanted) < 0.2 * wanted
        if even.all() and (not labelled or (tally[:, :2] > 0).all()):
            return Split(rows[0], rows[1], rows[2], held_out=True)
    return split_by_group(
        groups, labels, validation_fraction=validation_fraction, test_fraction=test_fraction, seed=seed
    )


def _hashed(
    groups: NDArray[np.int64], labels: NDArray[np.int8], borders: NDArray[np.float64], *, seed: int, folder: Path
) -> tuple[list[Rows], NDArray[np.int64]]:
    """Rows of training, validation and test, and how many bogus, real and unknown ones each has."""
    paths = [folder / f"{part}-{seed}.rows" for part in ("train", "validation", "test")]
    tally = np.zeros((3, 3), np.int64)
    with ExitStack() as open_files:
        files = [open_files.enter_context(path.open("wb")) for path in paths]
        for i in range(0, len(groups), _PIECE):
            uniform = _mix(groups[i : i + _PIECE], seed) / 2.0**64
            part = np.array([2, 1, 0])[np.searchsorted(borders, uniform, side="right")]
            for k, file in enumerate(files):
                (inside,) = np.nonzero(part == k)
                (inside + i).astype(np.int64).tofile(file)
                tally[k] += np.bincount(labels[i : i + _PIECE][inside] % 3, minlength=3)
    # A part without rows is an empty file, which cannot be mapped.
    empty = np.empty(0, np.int64)
    return [np.memmap(path, np.int64, "r") if path.stat().st_size else empty for path in paths], tally


def _mix(numbers: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Spread 64-bit numbers over all 64-bit numbers, one to one (the finaliser of splitmix64, Steele+14)."""
    x = np.array(numbers).view(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _draw(groups: NDArray[np.int64], random: np.random.Generator, validation: float, test: float) -> Split:
    present, sizes = np.unique(groups, return_counts=True)
    remaining = random.permutation(len(present))
    parts: list[Rows] = []
    for fraction in (test, validation) if len(present) > 2 else (test,):
        still_needed = 2 - len(parts) if len(present) > 2 else 1  # one group for each part to come
        count = _enough(sizes[remaining[:-still_needed]], fraction * len(groups))
        parts.append(_rows(groups, present[remaining[:count]]))
        remaining = remaining[count:]
    return Split(_rows(groups, present[remaining]), parts[-1], parts[0], held_out=len(parts) == 2)


def _enough(sizes: NDArray[np.int64], wanted: float) -> int:
    """How many of the leading groups come nearest to the wanted number of rows; at least one."""
    return int(np.argmin(np.abs(np.cumsum(sizes) - wanted))) + 1


def _rows(groups: NDArray[np.int64], chosen: NDArray[np.int64]) -> Rows:
    return np.flatnonzero(np.isin(groups, chosen))


def _both(labels: NDArray[np.int8]) -> bool:
    return bool((labels == REAL).any() and (labels == BOGUS).any())
