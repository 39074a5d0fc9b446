"""How sure a figure is: the bootstrap over stamps.

References
----------
Efron & Tibshirani 1993, chapter 13 (percentile intervals).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError

Statistic = Callable[..., float]
"""A number from some arrays that have one row a stamp."""
Rows = NDArray[np.intp]


class Interval(NamedTuple):
    """A figure and the interval that holds it."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """How much larger a figure is for one model than for another on the same stamps."""

    value: float
    low: float
    high: float
    share_above_zero: float
    """Of the draws."""


def bootstrap_interval(
    statistic: Statistic,
    *arrays: NDArray[Any],
    strata: NDArray[Any] | None = None,
    draws: int = 500,
    level: float = 0.95,
    seed: int = 1,
) -> Interval:
    """Percentile interval of any figure of merit, drawing stamps with replacement.

    Parameters
    ----------
    statistic : callable
        From the arrays to a number, such as `roc_auc` or `numpy.mean`.
    *arrays : ndarray, each (n, ...)
        One row a stamp, drawn together.
    strata : ndarray, shape (n,), optional
        Stamps are drawn within each value of it: give the classes where the figure needs both.
    draws : int
        Bootstrap draws.
    level : float
        Share of draws inside.
    seed : int
        Of the draws.

    Returns
    -------
    Interval
        The figure of the stamps themselves, and the interval.

    Raises
    ------
    ConfigError
        If there are no stamps.

    References
    ----------
    Efron & Tibshirani 1993, equation 13.5.
    """
    parts = _strata(len(arrays[0]), strata)
    values = [
        statistic(*(array[rows] for array in arrays)) for rows in _resampled(parts, draws, np.random.default_rng(seed))
    ]
    return Interval(float(statistic(*arrays)), *_quantiles(values, level))


def paired_bootstrap(
    statistic: Statistic,
    first: NDArray[Any],
    second: NDArray[Any],
    *shared: NDArray[Any],
    strata: NDArray[Any] | None = None,
    draws: int = 500,
    level: float = 0.95,
    seed: int = 1,
) -> Difference:
    """Percentile interval of the difference between two models on the same stamps.

    Each draw takes the same stamps for both, so that what is hard for both does not blur the difference.

    Parameters
    ----------
    statistic : callable
        From a model's array and the shared ones to a number.
    first, second : ndarray, each (n, ...)
        One row a stamp: scores or errors of either model.
    *shared : ndarray, each (n, ...)
        What both need, such as the truth.
    strata : ndarray, shape (n,), optional
        Stamps are drawn within each value of it.
    draws : int
        Bootstrap draws.
    level : float
        Share of draws inside.
    seed : int
        Of the draws.

    Returns
    -------
    Difference
        The first's figure minus the second's.

    Raises
    ------
    ConfigError
        If the two do not have a row for each of the same stamps.
    """
    if len(first) != len(second):
        raise ConfigError(
            f"A paired comparison needs the same stamps: one model has {len(first)} and the other {len(second)}.",
            remedy="Score the same stamps with both.",
        )

    def difference(rows: Rows) -> float:
        rest = [array[rows] for array in shared]
        return statistic(first[rows], *rest) - statistic(second[rows], *rest)

    parts = _strata(len(first), strata)
    values = [difference(rows) for rows in _resampled(parts, draws, np.random.default_rng(seed))]
    low, high = _quantiles(values, level)
    return Difference(float(difference(np.arange(len(first)))), low, high, float((np.array(values) > 0.0).mean()))


def _strata(count: int, strata: NDArray[Any] | None) -> list[Rows]:
    if count == 0:
        raise ConfigError("There are no stamps to draw from.", remedy="Give at least one.")
    if strata is None:
        return [np.arange(count)]
    return [np.flatnonzero(strata == value) for value in np.unique(strata)]


def _resampled(parts: list[Rows], draws: int, random: np.random.Generator) -> Any:
    for _ in range(draws):
        yield np.concatenate([random.choice(part, len(part)) for part in parts])


def _quantiles(values: list[float], level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)
