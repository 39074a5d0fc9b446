"""Figures of merit as plain functions of arrays.

`scores` says how well classes part, `breakdown` for which kinds and signal-to-noise ratios; `latents` how much a code
says, `neighbours` whether what is near in codes is alike in pixels; `intervals` how sure any of it is. They need
numpy alone to be imported; some of them use scikit-learn or scipy when called.
"""

from stream_vae.learning.measures.breakdown import Row, by_kind, by_snr, threshold_at
from stream_vae.learning.measures.intervals import Difference, Interval, bootstrap_interval, paired_bootstrap
from stream_vae.learning.measures.latents import (
    active_units,
    covariance_spectrum,
    iwae_bound,
    kl_per_unit,
    mutual_information,
    predicted_information,
    unit_information,
)
from stream_vae.learning.measures.neighbours import dnmse_curve, knn_recall, trustworthiness
from stream_vae.learning.measures.scores import (
    average_precision,
    expected_calibration_error,
    missed_detection_rate,
    reliability,
    roc_auc,
    roc_auc_interval,
    roc_curve,
)

__all__ = [
    "Difference",
    "Interval",
    "Row",
    "active_units",
    "average_precision",
    "bootstrap_interval",
    "by_kind",
    "by_snr",
    "covariance_spectrum",
    "dnmse_curve",
    "expected_calibration_error",
    "iwae_bound",
    "kl_per_unit",
    "knn_recall",
    "missed_detection_rate",
    "mutual_information",
    "paired_bootstrap",
    "predicted_information",
    "reliability",
    "roc_auc",
    "roc_auc_interval",
    "roc_curve",
    "threshold_at",
    "trustworthiness",
    "unit_information",
]
