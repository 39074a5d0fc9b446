"""Look at models through one set of stamps: the arrays that a report is drawn from, and one release's figures of merit.

A `Study` holds the stamps with what is known of them, and a `ModelView` for every model: codes, reconstructions,
errors, scores. `measure` gives the figures of one release as its card has them; what compares models, with intervals,
is in `stream_vae.learning.merits`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from stream_vae.learning import measures
from stream_vae.learning.data.stamps import BOGUS, REAL, UNKNOWN
from stream_vae.learning.representation import Representation, sampled

Array = NDArray[np.float32]
Rows = NDArray[np.int64]

MAX_STUDIED = 20_000
"""Stamps that a report looks at: more would not change its figures."""


@dataclass(frozen=True)
class ModelView:
    """What one model makes of a study's stamps; the first axis of every array is the stamp.

    Parameters
    ----------
    name : str
        What tables and figures call it.
    z_mean : ndarray, shape (n, k), or None
        Codes; None for a model that only scores.
    z_log_var : ndarray, shape (n, k), or None
        Their log-variances; None without a posterior.
    reconstruction : ndarray, shape (n, size, size, channels), or None
        Decoded from `z_mean`.
    squared_error, sampled_squared_error : ndarray, shape (n,), or None
        Summed over pixels, of `reconstruction` and of a stamp decoded from a draw.
    real_score : ndarray, shape (n,), or None
        The model's own score; NaN where it has none.
    variance : float or None
        The decoder's sigma^2 per pixel; None without a likelihood.
    kl_weight : float
        Final weight of the KL term it was fitted with.
    decode : callable or None
        Codes to stamps.
    history : mapping of sequences, or None
        What was logged while fitting, one value an epoch.
    prior_stamps : ndarray, shape (m, size, size, channels), or None
        Decoded from draws of the prior.
    note : str
        What it is and what it was fitted on, for the reader.
    """

    name: str
    z_mean: Array | None = None
    z_log_var: Array | None = None
    reconstruction: Array | None = None
    squared_error: Array | None = None
    sampled_squared_error: Array | None = None
    real_score: Array | None = None
    variance: float | None = None
    kl_weight: float = 1.0
    decode: Callable[[Array], Array | None] | None = None
    history: Mapping[str, Sequence[float]] | None = None
    prior_stamps: Array | None = None
    note: str = ""

    @property
    def probabilistic(self) -> bool:
        """Whether it has a posterior and a likelihood, so that there is a bound to speak of."""
        return self.z_log_var is not None and self.variance is not None and bool((self.z_log_var > -19.0).any())


@dataclass(frozen=True)
class Study:
    """Scoreable stamps with all that models make of them.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        Normalised.
    labels : ndarray of int8, shape (n,)
        1 real, 0 bogus, -1 unknown.
    views : tuple of ModelView
        The models, in the order of tables and figures.
    fitted : ndarray of int
        Rows that probes and baselines were fitted on; may be empty.
    judged : ndarray of int
        Rows that everything is measured on: none of `fitted`.
    groups : ndarray of int64, shape (n,), or None
        Image or object of each stamp; None if every stamp is its own.
    kinds : ndarray of str, shape (n,), or None
        What each is known to be.
    snr : ndarray, shape (n,), or None
        Signal to noise of each.
    """

    stamps: Array
    labels: NDArray[np.int8]
    views: tuple[ModelView, ...]
    fitted: Rows
    judged: Rows
    groups: NDArray[np.int64] | None = None
    kinds: NDArray[np.str_] | None = None
    snr: NDArray[np.floating[Any]] | None = None

    def labelled(self, rows: Rows) -> Rows:
        """Leave out rows without a label.

        Parameters
        ----------
        rows : ndarray of int
            Some rows.

        Returns
        -------
        ndarray of int
            Those with a label.
        """
        return cast("Rows", rows[self.labels[rows] != UNKNOWN])

    def real(self, rows: Rows) -> NDArray[np.bool_]:
        """Tell which rows are real.

        Parameters
        ----------
        rows : ndarray of int
            Rows with labels.

        Returns
        -------
        ndarray of bool
            True for real.
        """
        return cast("NDArray[np.bool_]", self.labels[rows] == REAL)

    def both_classes(self, rows: Rows, *, least: int = 1) -> bool:
        """Tell whether rows hold stamps of both classes.

        Parameters
        ----------
        rows : ndarray of int
            Some rows.
        least : int
            How many of each class.

        Returns
        -------
        bool
            Whether they do.
        """
        return min(int((self.labels[rows] == kind).sum()) for kind in (REAL, BOGUS)) >= least


class ReferencePca:
    """The PCA that a release remembers of its training stamps, as a representation.

    Parameters
    ----------
    mean : ndarray, shape (pixels,)
        The mean stamp.
    components : ndarray, shape (k, pixels)
        Orthonormal.
    """

    variance: float | None = None

    def __init__(self, mean: Array, components: Array) -> None:
        self.name = f"PCA-{len(components)}"
        self._mean, self._components = mean, components

    def encode(self, stamps: Array) -> tuple[Array, Array | None]:
        """Project stamps.

        Parameters
        ----------
        stamps : ndarray, shape (n, size, size, channels)
            Normalised.

        Returns
        -------
        codes : ndarray, shape (n, k)
            Coefficients.
        none : None
            They have no variance.
        """
        self._shape = stamps.shape[1:]
        centred = stamps.reshape(len(stamps), -1) - self._mean
        return (centred @ self._components.T).astype(np.float32), None

    def decode(self, codes: Array) -> Array | None:
        """Reconstruct stamps of the shape that was last encoded.

        Parameters
        ----------
        codes : ndarray, shape (n, k)
            Coefficients.

        Returns
        -------
        ndarray, shape (n, size, size, channels)
            Stamps.
        """
        return cast("Array", (codes @ self._components + self._mean).reshape(len(codes), *self._shape))


def view_of(
    representation: Representation,
    stamps: Array,
    *,
    name: str | None = None,
    real_score: Array | None = None,
    kl_weight: float = 1.0,
    history: Mapping[str, Sequence[float]] | None = None,
    prior_stamps: Array | None = None,
    note: str = "",
) -> ModelView:
    """Look at stamps with a model.

    Parameters
    ----------
    representation : Representation
        A model, a release or a baseline.
    stamps : ndarray, shape (n, size, size, channels)
        Normalised.
    name : str, optional
        Instead of the representation's own.
    real_score : ndarray, shape (n,), optional
        The model's own scores.
    kl_weight : float
        Final weight of its KL term.
    history : mapping of sequences, optional
        Of its fit.
    prior_stamps : ndarray, shape (m, size, size, channels), optional
        Decoded from draws of its prior; absent: a standard normal is drawn from, if it has a posterior.
    note : str
        What it is and what it was fitted on.

    Returns
    -------
    ModelView
        One row a stamp.
    """
    z_mean, z_log_var = representation.encode(stamps)
    reconstruction = representation.decode(z_mean)
    draw = representation.decode(sampled(z_mean, z_log_var, seed=1)) if z_log_var is not None else reconstruction
    if prior_stamps is None and z_log_var is not None and bool((z_log_var > -19.0).any()):
        prior_stamps = representation.decode(
            np.random.default_rng(1).standard_normal((40, z_mean.shape[1]), np.float32)
        )
    return ModelView(
        name or representation.name,
        z_mean,
        z_log_var,
        reconstruction,
        None if reconstruction is None else squared_error(stamps, reconstruction),
        None if draw is None else squared_error(stamps, draw),
        real_score,
        representation.variance,
        kl_weight,
        representation.decode,
        history,
        prior_stamps,
        note,
    )


class _Coded:
    """Codes that are there already, as a representation."""

    name = "this release"

    def __init__(self, codes: tuple[Array, Array], decode: Callable[[Array], Array], variance: float) -> None:
        self._codes, self._decode, self.variance = codes, decode, variance

    def encode(self, stamps: Array) -> tuple[Array, Array | None]:  # noqa: ARG002 - the protocol's
        return self._codes

    def decode(self, codes: Array) -> Array | None:
        return self._decode(codes)


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
    history: Mapping[str, Sequence[float]] | None = None,
    kl_weight: float = 1.0,
) -> Study:
    """Look at stamps with one release, and with the PCA that it remembers.

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
    history : mapping of sequences, optional
        What was logged while fitting.
    kl_weight : float
        Final weight of the KL term.

    Returns
    -------
    Study
        For `measure` and the report: the release first, PCA second, all rows judged and none fitted.
    """
    coded = _Coded((z_mean, z_log_var), decode, variance)
    release = view_of(coded, stamps, real_score=real_score, history=history, kl_weight=kl_weight)
    views = (release, view_of(reference_pca(reference), stamps, note="fitted on the release's training stamps"))
    return Study(stamps, labels, views, np.arange(0), np.arange(len(stamps)))


def reference_pca(reference: Path) -> ReferencePca:
    """Read the PCA that a release remembers.

    Parameters
    ----------
    reference : Path
        Its reference.npz.

    Returns
    -------
    ReferencePca
        As many components as the code has units.
    """
    with np.load(reference, allow_pickle=False) as arrays:
        return ReferencePca(arrays["pca_mean"], arrays["pca_components"])


def measure(study: Study) -> dict[str, Any]:
    """Compute the figures of merit of a study's first view as a release's card has them.

    Parameters
    ----------
    study : Study
        From `study_of`: the release first, PCA second; at least two stamps.

    Returns
    -------
    dict
        Plain numbers for JSON. `score` is None unless stamps of both classes have scores.
    """
    view, pca = study.views[:2]
    assert view.squared_error is not None
    assert pca.squared_error is not None
    score = view.real_score if view.real_score is not None else np.full(len(study.stamps), np.nan, np.float32)
    known = (study.labels != UNKNOWN) & np.isfinite(score)
    both = study.both_classes(np.flatnonzero(known))
    return {
        "stamps": len(study.stamps),
        "reconstruction": {
            "squared_error": float(view.squared_error.mean()),
            "squared_error_sampled": float(cast("Array", view.sampled_squared_error).mean()),
            "squared_error_pca": float(pca.squared_error.mean()),
            "decoder_variance": view.variance,
        },
        "latent": latent_merits(view, np.arange(len(study.stamps)), pixels=study.stamps[0].size),
        "score": measure_scores(score[known], study.labels[known] == REAL) if both else None,
    }


def latent_merits(view: ModelView, rows: Rows, *, pixels: int) -> dict[str, Any]:
    """Compute what a posterior costs and says.

    Parameters
    ----------
    view : ModelView
        With a posterior and a likelihood.
    rows : ndarray of int
        Over which stamps.
    pixels : int
        Of a stamp, over all channels.

    Returns
    -------
    dict
        Bound at weight 1, KL in all and by unit, active units, mutual information and its cap; in nats.
    """
    assert view.z_mean is not None
    assert view.z_log_var is not None
    z_mean, z_log_var = view.z_mean[rows], view.z_log_var[rows]
    kl = measures.kl_per_unit(z_mean, z_log_var)
    information, cap = measures.mutual_information(z_mean, z_log_var)
    return {
        "elbo": float(-negative_log_likelihood(view, rows, pixels=pixels).mean() - kl.sum()),
        "kl": float(kl.sum()),
        "kl_per_unit": [float(value) for value in kl],
        "active_units": measures.active_units(z_mean),
        "mutual_information": information,
        "mutual_information_cap": cap,
    }


def negative_log_likelihood(view: ModelView, rows: Rows, *, pixels: int) -> NDArray[np.floating[Any]]:
    """Compute the decoder's part of the bound from one draw a stamp.

    Parameters
    ----------
    view : ModelView
        With a likelihood.
    rows : ndarray of int
        Of which stamps.
    pixels : int
        Of a stamp, over all channels.

    Returns
    -------
    ndarray, shape (rows,)
        In nats.
    """
    assert view.sampled_squared_error is not None
    assert view.variance is not None
    constant = 0.5 * pixels * np.log(2.0 * np.pi * view.variance)
    return cast("NDArray[np.floating[Any]]", view.sampled_squared_error[rows] / (2.0 * view.variance) + constant)


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


def squared_error(stamps: Array, reconstruction: Array) -> Array:
    """Sum squared residuals over pixels and channels.

    Parameters
    ----------
    stamps, reconstruction : ndarray, shape (n, size, size, channels)
        Normalised stamps and what a model makes of them.

    Returns
    -------
    ndarray, shape (n,)
        One number a stamp.
    """
    return cast("Array", np.square(stamps - reconstruction).sum(axis=(1, 2, 3)))
