"""How well scores part real from bogus, and how far they are probabilities.

References
----------
Brink et al. 2013 (missed detection rate at a fixed false positive rate); Guo et al. 2017 (expected calibration
error).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError

Array = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]


def check_scores(score: Array, real: Flags) -> None:
    """Refuse scores that no curve can be drawn of.

    Parameters
    ----------
    score : ndarray, shape (n,)
        High for real.
    real : ndarray of bool, shape (n,)
        Truth.

    Raises
    ------
    ConfigError
        If there is one class only or a score is NaN.
    """
    if real.all() or not real.any():
        present = "real" if len(real) and real.all() else "bogus"
        raise ConfigError(
            f"All {len(real)} labelled stamps are {present}: nothing to tell apart.",
            remedy="Give labelled stamps of both classes.",
        )
    if np.isnan(score).any():
        raise ConfigError(
            f"{int(np.isnan(score).sum())} scores are NaN.", remedy="Leave out the stamps that could not be scored."
        )


def roc_auc(score: Array, real: Flags) -> float:
    """Chance that a real stamp scores above a bogus one; ties count half.

    Parameters
    ----------
    score : ndarray, shape (n,)
        High for real.
    real : ndarray of bool, shape (n,)
        Truth, of both classes.

    Returns
    -------
    float
        Area under the ROC curve.

    Raises
    ------
    ConfigError
        If there is one class only or a score is NaN.
    """
    check_scores(score, real)
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - 0.5 * (counts - 1))[inverse]
    positives = int(real.sum())
    negatives = len(real) - positives
    return float((ranks[real].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def roc_auc_interval(score: Array, real: Flags, *, draws: int = 500, seed: int = 1) -> tuple[float, float]:
    """95% bootstrap interval of the AUC, drawing stamps within each class.

    Parameters
    ----------
    score : ndarray, shape (n,)
        High for real.
    real : ndarray of bool, shape (n,)
        Truth, of both classes.
    draws : int
        Bootstrap draws.
    seed : int
        Of the draws.

    Returns
    -------
    low, high : float
        The 2.5% and 97.5% points.
    """
    random = np.random.default_rng(seed)
    positives, negatives = score[real], score[~real]
    truth = np.arange(len(score)) < len(positives)
    values = [
        roc_auc(
            np.concatenate([random.choice(positives, len(positives)), random.choice(negatives, len(negatives))]), truth
        )
        for _ in range(draws)
    ]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def roc_curve(score: Array, real: Flags) -> tuple[Array, Array]:
    """False and true positive rates at every threshold.

    Parameters
    ----------
    score : ndarray, shape (n,)
        High for real.
    real : ndarray of bool, shape (n,)
        Truth, of both classes.

    Returns
    -------
    false_positive_rate, true_positive_rate : ndarray
        From (0, 0) to (1, 1), one point for each distinct score.

    Raises
    ------
    ConfigError
        If there is one class only or a score is NaN.
    """
    check_scores(score, real)
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    true = np.cumsum(real[order])[last]
    false = last + 1 - true
    return np.append(0.0, false / false[-1]), np.append(0.0, true / true[-1])


def average_precision(score: Array, real: Flags) -> float:
    """Area under the precision-recall curve, as the sum over its steps.

    Parameters
    ----------
    score : ndarray, shape (n,)
        High for real.
    real : ndarray of bool, shape (n,)
        Truth, of both classes.

    Returns
    -------
    float
        1 for a perfect ranking, the share of real ones for a random one.

    Raises
    ------
    ConfigError
        If there is one class only or a score is NaN.
    """
    check_scores(score, real)
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    true = np.cumsum(real[order])[last]
    recall_steps = np.diff(np.append(0.0, true / real.sum()))
    return float((recall_steps * true / (last + 1)).sum())


def missed_detection_rate(score: Array, real: Flags, *, false_positive_rate: float = 0.01) -> float:
    """Share of real stamps that are lost at the threshold which lets this share of bogus ones through.

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
        Between 0 and 1.
    """
    false, true = roc_curve(score, real)
    return float(1.0 - true[false <= false_positive_rate].max())


def reliability(score: Array, real: Flags, *, bins: int = 10) -> tuple[Array, Array, NDArray[np.int64]]:
    """Mean score and share of real stamps in equal intervals of the score.

    Parameters
    ----------
    score : ndarray, shape (n,)
        A probability.
    real : ndarray of bool, shape (n,)
        Truth.
    bins : int
        How many intervals.

    Returns
    -------
    mean_score, real_share : ndarray, shape (bins,)
        NaN where an interval is empty.
    count : ndarray of int, shape (bins,)
        Stamps in each interval.
    """
    where = np.clip((score * bins).astype(int), 0, bins - 1)
    count = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_score = np.bincount(where, score, bins) / count
        real_share = np.bincount(where, real.astype(float), bins) / count
    return mean_score, real_share, count


def expected_calibration_error(score: Array, real: Flags, *, bins: int = 10) -> float:
    """How far scores are from frequencies, averaged over stamps.

    Parameters
    ----------
    score : ndarray, shape (n,)
        A probability.
    real : ndarray of bool, shape (n,)
        Truth.
    bins : int
        Equal intervals of the score.

    Returns
    -------
    float
        0 if calibrated.
    """
    mean_score, real_share, count = reliability(score, real, bins=bins)
    return float(np.nansum(np.abs(mean_score - real_share) * count) / count.sum())
