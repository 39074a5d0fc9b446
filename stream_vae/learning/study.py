"""Look at a model through stamps: the arrays that a report is drawn from, and its figures of merit."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.learning import measures
from stream_vae.learning.reference import pca_squared_error
from stream_vae.learning.stamps import BOGUS, REAL, UNKNOWN

Array = NDArray[np.float32]

MAX_STUDIED = 20_000
"""Stamps that a report looks at: more would not change its figures."""


@dataclass(frozen=True)
class Study:
    """Scoreable stamps with all that a release makes of them.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        Normalised.
    labels : ndarray of int8, shape (n,)
        1 real, 0 bogus, -1 unknown.
    z_mean, z_log_var : ndarray, shape (n, latent_size)
        Posteriors.
    real_score : ndarray, shape (n,)
        NaN without a scorer.
    reconstruction : ndarray, shape (n, size, size, channels)
        Decoded from the posterior means.
    squared_error, sampled_squared_error, pca_squared_error : ndarray, shape (n,)
        Of `reconstruction`, of a stamp decoded from a draw, and of PCA with as many components as the code has units,
        fitted on the release's training stamps.
    variance : float
        The decoder's sigma^2.
    """

    stamps: Array
    labels: NDArray[np.int8]
    z_mean: Array
    z_log_var: Array
    real_score: Array
    reconstruction: Array
    squared_error: Array
    sampled_squared_error: Array
    pca_squared_error: Array
    variance: float


def study_of(
    stamps: Array,
    labels: NDArray[np.int8],
    z_mean: Array,
    z_log_var: Array,
    real_score: Array,
    *,
    decode: Callable[[Array], Array],
    variance: float,
    reference: Path,
) -> Study:
    """Reconstruct stamps from their codes, and with PCA.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        Normalised and scoreable.
    labels : ndarray of int8, shape (n,)
        1 real, 0 bogus, -1 unknown.
    z_mean, z_log_var : ndarray, shape (n, latent_size)
        Their posteriors.
    real_score : ndarray, shape (n,)
        Their scores.
    decode : callable
        Codes to stamps.
    variance : float
        The decoder's sigma^2.
    reference : Path
        The release's reference.npz, which holds the PCA.

    Returns
    -------
    Study
        For `measure` and the report.
    """
    noise = np.random.default_rng(1).standard_normal(z_mean.shape, np.float32)
    reconstruction = decode(z_mean)
    with np.load(reference, allow_pickle=False) as arrays:
        pca_error = pca_squared_error(stamps, arrays["pca_mean"], arrays["pca_components"])
    return Study(
        stamps,
        labels,
        z_mean,
        z_log_var,
        real_score,
        reconstruction,
        _squared_error(stamps, reconstruction),
        _squared_error(stamps, decode(z_mean + np.exp(0.5 * z_log_var) * noise)),
        pca_error,
        variance,
    )


def measure(study: Study) -> dict[str, Any]:
    """Compute a study's figures of merit.

    Parameters
    ----------
    study : Study
        At least two stamps.

    Returns
    -------
    dict
        Plain numbers for JSON. `score` is None unless stamps of both classes have scores.
    """
    kl = measures.kl_per_unit(study.z_mean, study.z_log_var)
    pixels = study.stamps[0].size
    nll = study.sampled_squared_error / (2.0 * study.variance) + 0.5 * pixels * np.log(2.0 * np.pi * study.variance)
    information, cap = measures.mutual_information(study.z_mean, study.z_log_var)
    known = (study.labels != UNKNOWN) & np.isfinite(study.real_score)
    both = (study.labels[known] == REAL).any() and (study.labels[known] == BOGUS).any()
    return {
        "stamps": len(study.stamps),
        "reconstruction": {
            "squared_error": float(study.squared_error.mean()),
            "squared_error_sampled": float(study.sampled_squared_error.mean()),
            "squared_error_pca": float(study.pca_squared_error.mean()),
            "decoder_variance": study.variance,
        },
        "latent": {
            "elbo": float(-nll.mean() - kl.sum()),
            "kl": float(kl.sum()),
            "kl_per_unit": [float(value) for value in kl],
            "active_units": measures.active_units(study.z_mean),
            "mutual_information": information,
            "mutual_information_cap": cap,
        },
        "score": measure_scores(study.real_score[known], study.labels[known] == REAL) if both else None,
    }


def measure_scores(score: Array, real: NDArray[np.bool_]) -> dict[str, Any]:
    """Compute how well scores part real from bogus.

    Parameters
    ----------
    score : ndarray, shape (n,)
        High for real.
    real : ndarray of bool, shape (n,)
        Truth, of both classes.

    Returns
    -------
    dict
        Plain numbers for JSON.
    """
    return {
        "real": int(real.sum()),
        "bogus": int((~real).sum()),
        "auc": measures.roc_auc(score, real),
        "auc_interval_95": list(measures.roc_auc_interval(score, real)),
        "auprc": measures.average_precision(score, real),
        "mdr_at_1pct_fpr": measures.missed_detection_rate(score, real),
        "ece": measures.expected_calibration_error(score, real),
    }


def _squared_error(stamps: Array, reconstruction: Array) -> Array:
    return np.square(stamps - reconstruction).sum(axis=(1, 2, 3))  # type: ignore[no-any-return]
