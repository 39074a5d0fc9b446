"""What a release remembers of its training stamps: `reference.npz`.

Serving reads the anchors of known real transients and the whitening for novelty; drift detection the samples;
retraining the anchor stamps; reports the PCA of the same size, to compare reconstructions with.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.drift import write_shares

Array = NDArray[np.float32]

REAL_ANCHORS = 256
"""Known transients kept to measure the distance to: every alert is compared with each, at 7 ns apiece."""
DRIFT_SAMPLE = 2000
ANCHOR_STAMPS = 384


def write_reference(
    path: Path,
    *,
    stamps: Array,
    z_mean: Array,
    real_z_mean: Array,
    real_z_log_var: Array,
    real_score: Array,
    space: tuple[Array, Array] | None = None,
    seed: int,
    bands: NDArray[np.str_] | None = None,
    squared_error: Array | None = None,
    shares: Mapping[str, float] | None = None,
    shares_of: int = 0,
) -> None:
    """Write the reference of the training part.

    Parameters
    ----------
    path : Path
        The .npz file.
    stamps : ndarray, shape (n, size, size, channels)
        Normalised training stamps.
    z_mean : ndarray, shape (n, latent_size)
        Their codes.
    real_z_mean, real_z_log_var : ndarray, shape (k, latent_size)
        Codes of known real transients.
    real_score : ndarray, shape (n,)
        Their scores.
    space : tuple of ndarray, optional
        Stamps and codes that the first release of this latent space left, handed on; absent: this is the first.
    seed : int
        Of the choice of samples.
    bands : ndarray of str, shape (n,), optional
        Of the stamps, empty where unknown: drift compares each band with itself.
    squared_error : ndarray, shape (k,), optional
        Summed over pixels, of reconstructions of stamps that were held out: what drift takes for normal.
    shares : Mapping, optional
        Of the alerts that the stamps were drawn from, those with ``masked`` pixels and those that are ``unscoreable``:
        drift judges what it knows.
    shares_of : int
        How many alerts these are shares of.
    """
    random = np.random.default_rng(seed)
    center, whitening = whiten(z_mean)
    distance = np.linalg.norm((z_mean - center) @ whitening.T, axis=1)
    sample = _some(np.arange(len(z_mean)), DRIFT_SAMPLE, random)
    anchors = _some(np.arange(len(z_mean)), ANCHOR_STAMPS, random)
    real = _some(np.arange(len(real_z_mean)), REAL_ANCHORS, random)
    mean, components = principal_components(stamps, z_mean.shape[1])
    own = stamps[anchors].astype(np.float16), z_mean[anchors]
    space_stamps, space_z_mean = own if space is None else space
    known: dict[str, Any] = write_shares(shares, shares_of)
    if bands is not None:
        known["bands"] = bands[sample].astype(np.str_)
    if squared_error is not None:
        known["squared_error"] = np.asarray(squared_error, np.float32)[:DRIFT_SAMPLE]
    np.savez(
        path,
        real_z_mean=real_z_mean[real],
        real_z_log_var=real_z_log_var[real],
        center=center,
        whitening=whitening,
        novelty_quantiles=np.quantile(distance, np.linspace(0.0, 1.0, 1001)).astype(np.float32),
        z_mean=z_mean[sample],
        real_score=real_score[sample],
        stamps=own[0],
        stamps_z_mean=own[1],
        space_stamps=space_stamps.astype(np.float16),
        space_z_mean=space_z_mean,
        pca_mean=mean,
        pca_components=components,
        **known,
    )


def whiten(z_mean: Array) -> tuple[Array, Array]:
    """Centre of codes and the symmetric matrix that makes their covariance the identity.

    Parameters
    ----------
    z_mean : ndarray, shape (n, latent_size)
        Codes.

    Returns
    -------
    center : ndarray, shape (latent_size,)
        Their mean.
    whitening : ndarray, shape (latent_size, latent_size)
        Inverse square root of their covariance. A collapsed unit, which hardly varies, does not count for more than
        a unit with a hundredth of the prior's standard deviation.
    """
    center = z_mean.mean(axis=0)
    covariance = np.atleast_2d(np.cov(z_mean.astype(np.float64), rowvar=False))
    values, vectors = np.linalg.eigh(covariance)
    inverse = 1.0 / np.sqrt(np.maximum(values, 1e-4))
    return center.astype(np.float32), ((vectors * inverse) @ vectors.T).astype(np.float32)


def principal_components(stamps: Array, count: int) -> tuple[Array, Array]:
    """Fit the linear model of the same size as the latent code.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        Normalised stamps.
    count : int
        How many components; fewer come back where there are fewer stamps or pixels.

    Returns
    -------
    mean : ndarray, shape (pixels,)
        The mean stamp.
    components : ndarray, shape (count, pixels)
        Orthonormal, by falling variance.
    """
    flat = stamps.reshape(len(stamps), -1)
    mean = flat.mean(axis=0, dtype=np.float64)
    # Pixels are few and stamps many: the covariance is the small matrix.
    covariance = (flat.T @ flat).astype(np.float64) / len(flat) - np.outer(mean, mean)
    _, directions = leading_directions(covariance, count)
    return mean.astype(np.float32), np.ascontiguousarray(directions, np.float32)


def leading_directions(covariance: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find the directions in which something varies most.

    Parameters
    ----------
    covariance : ndarray, shape (pixels, pixels)
        Its covariance.
    count : int
        How many directions; no more than pixels come back.

    Returns
    -------
    variances : ndarray, shape (count,)
        Along each direction, falling.
    directions : ndarray, shape (count, pixels)
        Orthonormal.
    """
    values, vectors = np.linalg.eigh(covariance)
    return values[::-1][:count], vectors[:, ::-1][:, :count].T


def pca_squared_error(stamps: Array, mean: Array, components: Array) -> Array:
    """Summed squared error of stamps that are reconstructed from their principal components.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        Normalised stamps.
    mean, components : ndarray
        From `principal_components`.

    Returns
    -------
    ndarray, shape (n,)
        As `reconstruction_loss` has it.
    """
    centred = stamps.reshape(len(stamps), -1) - mean
    left = centred - (centred @ components.T) @ components
    return np.square(left).sum(axis=1)  # type: ignore[no-any-return]


def _some(rows: NDArray[np.int64], count: int, random: np.random.Generator) -> NDArray[np.int64]:
    return np.sort(random.permutation(rows)[:count])
