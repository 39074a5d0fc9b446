"""The parts of the CVAE's loss: squared error, Gaussian likelihood, KL term and its weight.

All sums run over a stamp's pixels or over the latent units, never over the batch, so that
every part comes out as one number a stamp, in nats where it is a likelihood. The two
terms of the bound keep their natural proportion whatever the stamp's size.

References
----------
Kingma & Welling 2014 (the bound and its closed-form KL term, appendix B); Rybkin, Daniilidis
& Levine 2021 (sigma-VAE: the analytic optimum of the decoder's variance, section 4.2);
Bowman et al. 2016 (annealing the KL weight).
"""

import math
from dataclasses import dataclass
from typing import Any

from stream_vae.model.backend import keras

Tensor = Any
"""A tensor of whichever backend Keras runs on; shapes stand in the docstrings."""

MIN_VARIANCE = 1e-6
"""Floor of the decoder's variance: a perfect fit (a batch of blank stamps) must not divide by zero."""


def summed_squared_error(stamps: Tensor, reconstructions: Tensor) -> Tensor:
    """Sum each stamp's squared residuals over pixels and channels.

    Parameters
    ----------
    stamps, reconstructions : tensor, shape (n, size, size, channels)
        Normalised stamps and what the decoder makes of their codes.

    Returns
    -------
    tensor, shape (n,)
        The summed squared error of each stamp.
    """
    return keras.ops.sum(keras.ops.square(stamps - reconstructions), axis=(1, 2, 3))


def gaussian_nll(squared_error: Tensor, variance: Tensor, pixels: int) -> Tensor:
    """Negative log-likelihood of a stamp under independent Gaussian pixels of one variance.

    Parameters
    ----------
    squared_error : tensor, shape (n,)
        From `summed_squared_error`.
    variance : tensor, scalar
        The decoder's variance sigma^2, common to all pixels.
    pixels : int
        Pixels of a stamp, over all channels.

    Returns
    -------
    tensor, shape (n,)
        In nats, with its constant: negative where sigma is small.
    """
    return squared_error / (2.0 * variance) + 0.5 * pixels * keras.ops.log(2.0 * math.pi * variance)


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


@dataclass(frozen=True)
class KlSchedule:
    """The weight of the KL term (`beta`) as training goes on.

    Parameters
    ----------
    final : float
        The weight at the end. Below 1 the objective is no longer a bound on the evidence.
    anneal_steps : int
        Batches over which the weight rises linearly from zero; 0 for no annealing.
    """

    final: float = 1.0
    anneal_steps: int = 0

    def at(self, step: Tensor) -> Tensor:
        """Give the weight for a batch.

        Parameters
        ----------
        step : tensor, scalar
            How many batches came before.

        Returns
        -------
        tensor, scalar
            The weight, at most `final`.
        """
        if self.anneal_steps == 0:
            return self.final
        return self.final * keras.ops.minimum(1.0, (step + 1.0) / self.anneal_steps)
