"""The parts of the losses: squared error, Gaussian likelihoods, divergences, the importance-weighted bound.

All sums run over a stamp's pixels or over the latent units, never over the batch, so that every part comes out as one
number a stamp, in nats where it is a likelihood. The two terms of the bound keep their natural proportion whatever the
stamp's size. Leading axes beside the batch (several draws a stamp) are carried along.

References
----------
Kingma & Welling 2014 (the bound and its closed-form KL term, appendix B); Rybkin, Daniilidis & Levine 2021
(sigma-VAE: the analytic optimum of the decoder's variance, section 4.2); Burda, Grosse & Salakhutdinov 2016 (the
importance-weighted bound, equation 8); Tucker et al. 2018 (its doubly reparameterised gradient, equation 8).
"""

import math
from collections.abc import Callable
from typing import Any

from stream_vae.model.backend import keras

Tensor = Any
"""A tensor of whichever backend Keras runs on; shapes stand in the docstrings."""

MIN_VARIANCE = 1e-6
"""Floor of the decoder's variance: a perfect fit (a batch of blank stamps) must not divide by zero."""

_PIXELS = (-3, -2, -1)
_LOG_2PI = math.log(2.0 * math.pi)


def summed_squared_error(stamps: Tensor, reconstructions: Tensor) -> Tensor:
    """Sum each stamp's squared residuals over pixels and channels.

    Parameters
    ----------
    stamps, reconstructions : tensor, shape (..., size, size, channels)
        Normalised stamps and what the decoder makes of their codes.

    Returns
    -------
    tensor, shape (...)
        The summed squared error of each stamp.
    """
    return keras.ops.sum(keras.ops.square(stamps - reconstructions), axis=_PIXELS)


def gaussian_nll(squared_error: Tensor, variance: Tensor, pixels: int) -> Tensor:
    """Negative log-likelihood of a stamp under independent Gaussian pixels of one variance.

    Parameters
    ----------
    squared_error : tensor, shape (...)
        From `summed_squared_error`.
    variance : tensor, scalar
        The decoder's variance sigma^2, common to all pixels.
    pixels : int
        Pixels of a stamp, over all channels.

    Returns
    -------
    tensor, shape (...)
        In nats, with its constant: negative where sigma is small.
    """
    return squared_error / (2.0 * variance) + 0.5 * pixels * (_LOG_2PI + keras.ops.log(variance))


def noise_map_nll(stamps: Tensor, reconstructions: Tensor, noise: Tensor, variance: Tensor) -> Tensor:
    """Negative log-likelihood of a stamp whose pixels have their own, known noise beside the decoder's variance.

    Parameters
    ----------
    stamps, reconstructions : tensor, shape (..., size, size, channels)
        Normalised stamps and what the decoder makes of their codes.
    noise : tensor, shape (n, size, size, channels)
        Standard deviation of each pixel in the stamp's scaled units. Where it is not above zero or not finite the
        pixel is unknown: it counts nothing and has no gradient.
    variance : tensor, scalar
        What the decoder misses beside the noise.

    Returns
    -------
    tensor, shape (...)
        In nats, with its constant.
    """
    ops = keras.ops
    known = known_pixels(noise)
    total = ops.square(ops.where(known, noise, 1.0)) + variance  # chosen first: no NaN gets into a gradient
    each = ops.square(stamps - reconstructions) / total + _LOG_2PI + ops.log(total)
    return 0.5 * ops.sum(ops.where(known, each, 0.0), axis=_PIXELS)


def known_pixels(noise: Tensor) -> Tensor:
    """Tell which pixels have a noise that one can divide by.

    Parameters
    ----------
    noise : tensor, shape (n, size, size, channels)
        A noise map.

    Returns
    -------
    tensor of bool, shape (n, size, size, channels)
        Where it is above zero and finite.
    """
    return keras.ops.logical_and(keras.ops.isfinite(noise), noise > 0.0)


def excess_variance(stamps: Tensor, reconstructions: Tensor, noise: Tensor) -> Tensor:
    """Mean squared residual beyond what the noise map explains: the moment estimate of the decoder's variance.

    Parameters
    ----------
    stamps, reconstructions, noise : tensor, shape (n, size, size, channels)
        As for `noise_map_nll`.

    Returns
    -------
    tensor, scalar
        Per known pixel; negative where the noise map is larger than the residuals.
    """
    ops = keras.ops
    known = known_pixels(noise)
    excess = ops.square(stamps - reconstructions) - ops.square(ops.where(known, noise, 0.0))
    count = ops.maximum(1.0, ops.sum(ops.cast(known, excess.dtype)))
    return ops.sum(ops.where(known, excess, 0.0)) / count


def divergence(z_mean: Tensor, z_log_var: Tensor, other_mean: Tensor, other_log_var: Tensor) -> Tensor:
    """Divergence of diagonal Gaussians from others: KL(N(z_mean, .) || N(other_mean, .)), in closed form.

    Parameters
    ----------
    z_mean, z_log_var : tensor, shape (n, latent_size)
        The ones.
    other_mean, other_log_var : tensor, shape (n, latent_size)
        The others.

    Returns
    -------
    tensor, shape (n,)
        In nats.
    """
    ops = keras.ops
    ratio = z_log_var - other_log_var
    apart = ops.square(z_mean - other_mean) * ops.exp(-other_log_var)
    return 0.5 * ops.sum(ops.exp(ratio) + apart - 1.0 - ratio, axis=-1)


def kl_per_unit(z_mean: Tensor, z_log_var: Tensor) -> Tensor:
    """Divergence of each unit's posterior N(z_mean, exp(z_log_var)) from the standard normal prior.

    Parameters
    ----------
    z_mean, z_log_var : tensor, shape (n, latent_size)
        The encoder's two heads.

    Returns
    -------
    tensor, shape (n, latent_size)
        In nats, never negative.
    """
    return 0.5 * (keras.ops.exp(z_log_var) + keras.ops.square(z_mean) - 1.0 - z_log_var)


def log_normal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log-density of codes under a diagonal Gaussian.

    Parameters
    ----------
    z, mean, log_var : tensor, shape (..., latent_size)
        Shapes that broadcast.

    Returns
    -------
    tensor, shape (...)
        In nats.
    """
    ops = keras.ops
    return -0.5 * ops.sum(_LOG_2PI + log_var + ops.square(z - mean) * ops.exp(-log_var), axis=-1)


def next_variance(variance: Tensor, mean_squared_error: Tensor, step: Tensor) -> Tensor:
    """Move the decoder's variance towards its optimum, the mean squared error per pixel.

    The average forgets quickly at first (the error falls by orders of magnitude in the
    first hundred steps) and settles to a memory of a hundred batches.

    Parameters
    ----------
    variance : tensor, scalar
        The moving average so far.
    mean_squared_error : tensor, scalar
        Of this batch, per pixel.
    step : tensor, scalar
        How many batches came before.

    Returns
    -------
    tensor, scalar
        The new average, with no gradient and at least `MIN_VARIANCE`.
    """
    kept = keras.ops.minimum(0.99, step / (step + 10.0))
    average = kept * variance + (1.0 - kept) * mean_squared_error
    return keras.ops.stop_gradient(keras.ops.maximum(average, MIN_VARIANCE))


def importance_weighted(z: Tensor, z_mean: Tensor, z_log_var: Tensor, log_joint: Callable[[Tensor], Tensor]) -> Tensor:
    """The importance-weighted bound of each stamp, with its doubly reparameterised gradient.

    The value is log 1/K sum_k w_k with w_k = p(x, z_k) / q(z_k | x). Its gradient reaches the decoder weighted by
    the normalised w_k, and the encoder, through the draws alone, by their squares: that has the plain gradient's
    expectation and a variance that does not grow with K.

    Parameters
    ----------
    z : tensor, shape (K, n, latent_size)
        Draws from the posteriors, differentiable in both heads.
    z_mean, z_log_var : tensor, shape (n, latent_size)
        The posteriors.
    log_joint : callable
        Codes of z's shape to log p(x, z), shape (K, n).

    Returns
    -------
    tensor, shape (n,)
        In nats.

    References
    ----------
    Burda, Grosse & Salakhutdinov 2016, equation 8; Tucker et al. 2018, equation 8.
    """
    ops = keras.ops
    fixed = ops.stop_gradient(z_mean), ops.stop_gradient(z_log_var)

    def log_weights(codes: Tensor) -> Tensor:
        return log_joint(codes) - log_normal(codes, *fixed)

    plain = ops.stop_gradient(log_weights(ops.stop_gradient(z)))  # (K, n)
    total = ops.logsumexp(plain, axis=0)
    weights = ops.exp(plain - total)  # normalised; Keras' softmax warns where there is one draw
    bound = total - math.log(plain.shape[0])
    share = ops.expand_dims(weights, -1)
    # The same codes, but a gradient through them is multiplied by the weight once more.
    scaled = share * z + ops.stop_gradient((1.0 - share) * z)
    surrogate = ops.sum(weights * log_weights(scaled), axis=0)
    return bound + surrogate - ops.stop_gradient(surrogate)
