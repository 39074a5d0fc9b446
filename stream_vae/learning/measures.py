"""Figures of merit as plain functions of arrays: how well classes part, how much a latent code says.

References
----------
Burda, Grosse & Salakhutdinov 2016 (active units); Hoffman & Johnson 2016 (mutual information of code and
stamp); Brink et al. 2013 (missed detection rate at a fixed false positive rate); Guo et al. 2017 (expected
calibration error).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]


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
    """
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
    """
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    true = np.cumsum(real[order])[last]
    false = last + 1 - true
    return np.append(0.0, false / max(1, false[-1])), np.append(0.0, true / max(1, true[-1]))


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
    """
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


def kl_per_unit(z_mean: Array, z_log_var: Array) -> Array:
    """Divergence of posteriors from the prior, averaged over stamps.

    Parameters
    ----------
    z_mean, z_log_var : ndarray, shape (n, latent_size)
        Posteriors.

    Returns
    -------
    ndarray, shape (latent_size,)
        In nats; near zero for a collapsed unit.
    """
    return np.mean(0.5 * (np.exp(z_log_var) + z_mean**2 - 1.0 - z_log_var), axis=0)  # type: ignore[no-any-return]


def active_units(z_mean: Array, *, threshold: float = 0.01) -> int:
    """Count the units whose posterior mean depends on the stamp.

    Parameters
    ----------
    z_mean : ndarray, shape (n, latent_size)
        Posterior means.
    threshold : float
        Variance over stamps above which a unit is active (Burda et al. 2016).

    Returns
    -------
    int
        At most latent_size.
    """
    return int((z_mean.var(axis=0) > threshold).sum())


def mutual_information(z_mean: Array, z_log_var: Array, *, stamps: int = 1500, seed: int = 1) -> tuple[float, float]:
    """Estimate how much the code says about which stamp it came from.

    One code is drawn for each of at most `stamps` stamps and its density under its own posterior is
    compared with that under the mixture of all of theirs. The estimate cannot exceed the logarithm of
    their number.

    Parameters
    ----------
    z_mean, z_log_var : ndarray, shape (n, latent_size)
        Posteriors.
    stamps : int
        How many to take, at random.
    seed : int
        Of choice and draws.

    Returns
    -------
    information, cap : float
        In nats.
    """
    random = np.random.default_rng(seed)
    rows = random.permutation(len(z_mean))[:stamps]
    mean, log_var = z_mean[rows].astype(np.float64), z_log_var[rows].astype(np.float64)
    z = mean + np.exp(0.5 * log_var) * random.standard_normal(mean.shape)
    own = np.empty(len(rows))
    mixture = np.empty(len(rows))
    for i, code in enumerate(z):
        log_density = -0.5 * (np.square(code - mean) / np.exp(log_var) + log_var).sum(axis=1)
        own[i] = log_density[i]
        top = log_density.max()
        mixture[i] = top + np.log(np.exp(log_density - top).mean())
    return float((own - mixture).mean()), float(np.log(len(rows)))
