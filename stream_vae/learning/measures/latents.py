"""How much a latent code says, and whether its units are used.

References
----------
Burda, Grosse & Salakhutdinov 2016 (active units, importance-weighted bound); Hoffman & Johnson 2016 (mutual
information of code and stamp); Lucas, Tucker, Grosse & Norouzi 2019 (why units collapse).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError

Array = NDArray[np.floating[Any]]

_DECODED = 4096
"""Codes that are decoded at a time: 7 MB of stamps at 21x21."""


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


def unit_information(z_mean: Array, z_log_var: Array, *, stamps: int = 1500, seed: int = 1) -> NDArray[np.float64]:
    """Estimate how much each unit alone says about which stamp the code came from.

    The estimate of `mutual_information`, a unit at a time; units may say the same, so these do not add up to it.

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
    ndarray, shape (latent_size,)
        In nats.
    """
    units = [
        mutual_information(z_mean[:, i : i + 1], z_log_var[:, i : i + 1], stamps=stamps, seed=seed)[0]
        for i in range(z_mean.shape[1])
    ]
    return np.array(units)


def covariance_spectrum(stamps: Array) -> NDArray[np.float64]:
    """Variances of scaled stamps along their principal directions.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        Scaled.

    Returns
    -------
    ndarray, shape (pixels,)
        Falling; their sum is the total variance.
    """
    flat = stamps.reshape(len(stamps), -1)
    mean = flat.mean(axis=0, dtype=np.float64)
    # In single precision the product is ten times as fast, and its rounding is far below any variance that counts.
    covariance = (flat.T @ flat).astype(np.float64) / len(flat) - np.outer(mean, mean)
    return np.asarray(np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0.0), np.float64)


def predicted_information(
    spectrum: NDArray[np.float64], variance: float, *, latent_size: int, kl_weight: float = 1.0
) -> NDArray[np.float64]:
    """Information that each unit of the best linear VAE would carry: the diagnosis of a collapse.

    A unit that follows a direction of variance lambda costs its KL term, and gains squared error over twice the
    decoder's sigma^2. It pays if lambda > beta sigma^2, and then carries log(lambda / (beta sigma^2)) / 2; otherwise
    the optimum itself leaves it collapsed. How many entries are above zero is the predicted number of active units.

    Parameters
    ----------
    spectrum : ndarray, shape (pixels,)
        From `covariance_spectrum`, falling.
    variance : float
        The decoder's sigma^2 a pixel.
    latent_size : int
        Units of the code.
    kl_weight : float
        beta, the final weight of the KL term.

    Returns
    -------
    ndarray, shape (latent_size,)
        In nats, falling; 0 for units that do not pay.

    References
    ----------
    Lucas et al. 2019, section 4 and equation 10: stationary points of the linear VAE's bound are those of
    probabilistic PCA.
    """
    leading = np.zeros(latent_size)
    leading[: min(latent_size, len(spectrum))] = spectrum[:latent_size]
    return 0.5 * np.log(np.maximum(leading / (kl_weight * variance), 1.0))


def iwae_bound(
    stamps: Array,
    z_mean: Array,
    z_log_var: Array,
    *,
    decode: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    variance: float | Array,
    samples: int = 50,
    log_prior: Callable[[NDArray[np.float32]], Array] | None = None,
    seed: int = 1,
) -> NDArray[np.float64]:
    """Importance-weighted lower bound of each stamp's log-likelihood: IWAE-50 by default, the ELBO for one sample.

    log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x) with z_k drawn from q(z|x), at full KL weight whatever the model was
    trained with. Its expectation grows with K towards log p(x). The decoder runs n times K codes: thin large sets.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        Scaled.
    z_mean, z_log_var : ndarray, shape (n, latent_size)
        Posteriors.
    decode : callable
        Codes (m, latent_size) to stamps.
    variance : float or ndarray
        The decoder's sigma^2; or one for each pixel, shaped as the stamps, where what is not finite or not above
        zero leaves its pixel out.
    samples : int
        K.
    log_prior : callable, optional
        Codes (m, latent_size) to their log-density (m,) under the model's prior; absent: the standard normal.
    seed : int
        Of the draws.

    Returns
    -------
    ndarray, shape (n,)
        In nats; a density of scaled pixels, so it may be positive.

    Raises
    ------
    ConfigError
        If codes are not finite or `variance` is not positive.

    References
    ----------
    Burda et al. 2016, equation 8.
    """
    if not (np.isfinite(z_mean).all() and np.isfinite(z_log_var).all()):
        raise ConfigError("Some codes are not finite.", remedy="Leave out the stamps that cannot be scored.")
    if np.ndim(variance) == 0 and not variance > 0.0:
        raise ConfigError(f"A decoder variance of {variance} makes no likelihood.", remedy="Give one above zero.")
    random = np.random.default_rng(seed)
    prior = log_prior or _standard_normal
    bound = np.empty(len(stamps))
    step = max(1, _DECODED // samples)
    for i in range(0, len(stamps), step):
        part = slice(i, i + step)
        mean, log_var = z_mean[part], z_log_var[part]
        noise = random.standard_normal((samples, *mean.shape), np.float32)
        z = (mean + np.exp(0.5 * log_var) * noise).astype(np.float32)  # (samples, m, latent_size)
        flat = z.reshape(-1, z.shape[-1])
        log_q = _standard_normal(noise) - 0.5 * log_var.sum(axis=-1, dtype=np.float64)  # (samples, m)
        decoded = decode(flat).reshape(samples, *stamps[part].shape)
        spread = variance if np.ndim(variance) == 0 else np.asarray(variance)[part]
        weights = _log_likelihood(stamps[part], decoded, spread) + prior(flat).reshape(log_q.shape) - log_q
        top = weights.max(axis=0)
        bound[part] = top + np.log(np.exp(weights - top).mean(axis=0))
    return bound


def _standard_normal(codes: Array) -> NDArray[np.float64]:
    squares = np.square(codes, dtype=np.float64).sum(axis=-1)
    return np.asarray(-0.5 * (squares + codes.shape[-1] * np.log(2.0 * np.pi)), np.float64)


def _log_likelihood(stamps: Array, decoded: Array, variance: float | Array) -> NDArray[np.float64]:
    """(samples, m): independent Gaussian pixels."""
    with np.errstate(divide="ignore", invalid="ignore"):
        constant = np.log(2.0 * np.pi * np.asarray(variance, np.float64))
        each = np.square(stamps - decoded) / variance + constant
    known = np.isfinite(variance) & (np.asarray(variance) > 0.0)
    return np.asarray(-0.5 * np.where(known, each, 0.0).sum(axis=(2, 3, 4), dtype=np.float64), np.float64)
