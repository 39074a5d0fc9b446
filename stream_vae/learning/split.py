"""Part stamps into training, validation and test, by group and never across one.

Stamps of one image share its noise, its PSF and its registration error; a model that saw one half of
an image knows the other half better than the next night's.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.stamps import BOGUS, REAL

Rows = NDArray[np.int64]


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
    labelled = bool((labels == REAL).any() and (labels == BOGUS).any())
    for _ in range(50):
        split = _draw(groups, random, validation_fraction, test_fraction)
        if not labelled or all(_both(labels[rows]) for rows in (split.train, split.validation, split.test)):
            return split
    raise ConfigError(
        f"No split of the {len(present)} groups gives real and bogus stamps to each of training, validation and test.",
        remedy="Give groups that hold both classes, or more groups.",
    )


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
