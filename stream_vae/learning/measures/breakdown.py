"""Where a score errs: by kind of artefact or source, and by signal-to-noise ratio."""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_vae.learning.measures.scores import Array, Flags, check_scores, roc_auc


class Row(NamedTuple):
    """One kind or range of signal-to-noise ratio."""

    name: str
    real: bool
    """Whether these stamps should pass."""
    stamps: int
    mean_score: float
    passed: float
    """Share above the threshold: completeness of real stamps, false positive rate of bogus ones."""
    low: float
    high: float
    """95% Wilson interval of that share."""
    auc: float
    """Of these against all stamps of the other class; NaN without any."""


def threshold_at(score: Array, real: Flags, *, false_positive_rate: float = 0.01) -> float:
    """Give the lowest threshold that lets no larger share of bogus stamps through.

    Parameters
    ----------
    score : ndarray, shape (n,)
        High for real.
    real : ndarray of bool, shape (n,)
        Truth, of both classes.
    false_positive_rate : float
        What is tolerated.

    Returns
    -------
    float
        A stamp passes if its score is above it.

    Raises
    ------
    ConfigError
        If there is one class only or a score is NaN.
    """
    check_scores(score, real)
    bogus = np.sort(score[~real])[::-1]
    tolerated = int(np.floor(false_positive_rate * len(bogus) + 1e-9))
    return float(bogus[min(tolerated, len(bogus) - 1)])


def by_kind(score: Array, real: Flags, kinds: NDArray[np.str_], *, threshold: float) -> list[Row]:
    """Break scores down by what the stamps show.

    Parameters
    ----------
    score : ndarray, shape (n,)
        High for real.
    real : ndarray of bool, shape (n,)
        Truth.
    kinds : ndarray of str, shape (n,)
        Kind of source or artefact.
    threshold : float
        A stamp passes if its score is above it.

    Returns
    -------
    list of Row
        By class and name; a kind that is in both classes has two rows.
    """
    return [
        _row(str(kind), score, real, (kinds == kind) & (real == truth), threshold, truth=truth)
        for truth in (True, False)
        for kind in np.unique(kinds[real == truth])
    ]


def by_snr(
    score: Array, real: Flags, snr: Array, *, threshold: float, edges: tuple[float, ...] = (5.0, 7.0, 10.0, 20.0, 50.0)
) -> list[Row]:
    """Break scores down by signal-to-noise ratio.

    Parameters
    ----------
    score : ndarray, shape (n,)
        High for real.
    real : ndarray of bool, shape (n,)
        Truth.
    snr : ndarray, shape (n,)
        Signal-to-noise ratio of the detection; stamps where it is NaN are left out.
    threshold : float
        A stamp passes if its score is above it.
    edges : tuple of float
        Rising; below the first and above the last there is a range each.

    Returns
    -------
    list of Row
        By class and range; ranges without stamps are left out.
    """
    known = np.isfinite(snr)
    bins = np.digitize(np.where(known, snr, -np.inf), edges)
    names = [
        f"< {edges[0]:g}",
        *(f"{a:g} to {b:g}" for a, b in itertools.pairwise(edges)),
        f">= {edges[-1]:g}",
    ]
    rows = []
    for truth in (True, False):
        for i, name in enumerate(names):
            chosen = known & (bins == i) & (real == truth)
            if chosen.any():
                rows.append(_row(name, score, real, chosen, threshold, truth=truth))
    return rows


def _row(name: str, score: Array, real: Flags, chosen: Flags, threshold: float, *, truth: bool) -> Row:
    from scipy.stats import binomtest

    own, others = score[chosen], score[real != truth]
    passed = int((own > threshold).sum())
    interval = binomtest(passed, len(own)).proportion_ci(method="wilson")
    auc = float("nan")
    if len(others):
        auc = roc_auc(np.concatenate([own, others]), (np.arange(len(own) + len(others)) < len(own)) == truth)
    share = passed / len(own)
    return Row(name, truth, len(own), float(own.mean()), share, float(interval.low), float(interval.high), auc)
