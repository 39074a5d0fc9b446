"""Bootstrap samples that all models of a report share, so that differences of two are paired.

Stamps of one image share its noise and its registration error. Where there are enough images, whole images are drawn,
and the interval is that of new images; where there are not, stamps are drawn within each class, and the interval only
says what other stamps of these same images would have given.

References
----------
Efron & Tibshirani 1993, sections 13.3 (percentile interval) and 8.4 (blocks).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

LEAST_GROUPS = 10
"""With fewer images a bootstrap over images says nothing."""
DRAWS = 200


@dataclass(frozen=True)
class Resamples:
    """Rows drawn with replacement, many times.

    Parameters
    ----------
    rows : tuple of ndarray of int
        Positions among the stamps that were drawn from, one array a draw.
    unit : {"images", "stamps"}
        What was drawn.
    """

    rows: tuple[Rows, ...]
    unit: Literal["images", "stamps"]

    def interval(self, statistic: Callable[[Rows], float]) -> list[float] | None:
        """Find the 95% percentile interval of a statistic.

        Parameters
        ----------
        statistic : callable
            Rows to a number; NaN where a draw has none (a class is missing).

        Returns
        -------
        list of two floats, or None
            The 2.5% and 97.5% points; None if fewer than half of the draws gave a number.
        """
        values = np.array([statistic(rows) for rows in self.rows], np.float64)
        values = values[np.isfinite(values)]
        if len(values) < max(2, len(self.rows) // 2):
            return None
        return [float(value) for value in np.quantile(values, [0.025, 0.975])]

    def mean(self, values: NDArray[Any]) -> dict[str, Any]:
        """Average one value a stamp, with its interval.

        Parameters
        ----------
        values : ndarray, shape (n,)
            NaN where a stamp has none.

        Returns
        -------
        dict
            `value` and `interval_95`.
        """
        defined = np.isfinite(values)
        filled = np.where(defined, values, 0.0).astype(np.float64)

        def average(rows: Rows) -> float:
            count = int(defined[rows].sum())
            return float(filled[rows].sum() / count) if count else float("nan")

        value = average(np.arange(len(values)))
        return {"value": value if np.isfinite(value) else None, "interval_95": self.interval(average)}


def resample(
    groups: NDArray[np.int64] | None, classes: NDArray[np.int8], *, draws: int = DRAWS, seed: int = 1
) -> Resamples:
    """Draw bootstrap samples.

    Parameters
    ----------
    groups : ndarray of int64, shape (n,), or None
        Image of each stamp; None if every stamp is its own.
    classes : ndarray of int8, shape (n,)
        Drawn within, if stamps are drawn.
    draws : int
        How many samples.
    seed : int
        Of the draws.

    Returns
    -------
    Resamples
        Over images if there are at least `LEAST_GROUPS`, else over stamps.
    """
    random = np.random.default_rng(seed)
    if groups is not None and len(np.unique(groups)) >= LEAST_GROUPS:
        members = _members(groups)
        picks = [random.integers(0, len(members), len(members)) for _ in range(draws)]
        return Resamples(tuple(np.concatenate([members[i] for i in pick]) for pick in picks), "images")
    strata = _members(classes)
    return Resamples(
        tuple(np.concatenate([random.choice(rows, len(rows)) for rows in strata]) for _ in range(draws)), "stamps"
    )


def _members(keys: NDArray[Any]) -> list[Rows]:
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
