"""What the codes are expected to look like: a standard normal, or a mixture that is learned (VampPrior).

References
----------
Tomczak & Welling 2018 (VampPrior, equation 9).
"""

import math
from typing import Any

from stream_vae.model import losses
from stream_vae.model.backend import keras
from stream_vae.model.losses import Tensor


class StandardNormal:
    """N(0, 1) in every unit.

    Parameters
    ----------
    latent_size : int
        Units of the code.
    """

    def __init__(self, latent_size: int) -> None:
        self._latent_size = latent_size

    def log_density(self, z: Tensor) -> Tensor:
        """Log-density of codes.

        Parameters
        ----------
        z : tensor, shape (..., latent_size)
            Codes.

        Returns
        -------
        tensor, shape (...)
            In nats.
        """
        return losses.log_normal(z, keras.ops.zeros_like(z), keras.ops.zeros_like(z))

    def divergence(self, z: Tensor, z_mean: Tensor, z_log_var: Tensor) -> Tensor:  # noqa: ARG002 - others need the draw
        """Divergence of posteriors from the prior, in closed form.

        Parameters
        ----------
        z : tensor, shape (n, latent_size)
            Unused.
        z_mean, z_log_var : tensor, shape (n, latent_size)
            The posteriors.

        Returns
        -------
        tensor, shape (n,)
            In nats.
        """
        return keras.ops.sum(losses.kl_per_unit(z_mean, z_log_var), axis=-1)

    def sample(self, count: int, *, seed: Any) -> Tensor:
        """Draw codes.

        Parameters
        ----------
        count : int
            How many.
        seed : int or SeedGenerator
            Of the draws.

        Returns
        -------
        tensor, shape (count, latent_size)
            Independent draws.
        """
        return keras.random.normal((count, self._latent_size), seed=seed)


class VampPrior(keras.layers.Layer):
    """The mean of the posteriors of stamps that are themselves learned (pseudo-inputs).

    Parameters
    ----------
    encoder : keras.Model
        Gives the pseudo-inputs' posteriors; shared with the model, which owns it.
    pseudo_inputs : int
        How many components.
    """

    def __init__(self, encoder: "keras.Model", pseudo_inputs: int) -> None:
        super().__init__(name="vamp_prior")
        shape = (pseudo_inputs, *encoder.input_shape[1:])
        start = keras.initializers.RandomNormal(0.0, 0.3, seed=1)
        self.pseudo_inputs = self.add_weight(shape=shape, initializer=start, name="pseudo_inputs")
        # In a function: as an attribute the encoder's weights would count as this layer's too.
        self._posteriors: Any = lambda: encoder(self.pseudo_inputs)
        self.built = True

    def components(self) -> tuple[Tensor, Tensor]:
        """Give the mixture's components.

        Returns
        -------
        mean, log_var : tensor, shape (pseudo_inputs, latent_size)
            Posteriors of the pseudo-inputs.
        """
        mean, log_var = self._posteriors()
        return mean, log_var

    def log_density(self, z: Tensor) -> Tensor:
        """Log-density of codes under the mixture.

        Parameters
        ----------
        z : tensor, shape (..., latent_size)
            Codes.

        Returns
        -------
        tensor, shape (...)
            In nats.
        """
        mean, log_var = self.components()
        each = losses.log_normal(keras.ops.expand_dims(z, -2), mean, log_var)  # (..., pseudo_inputs)
        return keras.ops.logsumexp(each, axis=-1) - math.log(self.pseudo_inputs.shape[0])

    def divergence(self, z: Tensor, z_mean: Tensor, z_log_var: Tensor) -> Tensor:
        """Divergence of posteriors from the prior, estimated from one draw each: it may come out negative.

        Parameters
        ----------
        z : tensor, shape (n, latent_size)
            Draws from the posteriors.
        z_mean, z_log_var : tensor, shape (n, latent_size)
            The posteriors.

        Returns
        -------
        tensor, shape (n,)
            In nats.
        """
        return losses.log_normal(z, z_mean, z_log_var) - self.log_density(z)

    def sample(self, count: int, *, seed: Any) -> Tensor:
        """Draw codes: a component, then a code from it.

        Parameters
        ----------
        count : int
            How many.
        seed : int or SeedGenerator
            Of the draws.

        Returns
        -------
        tensor, shape (count, latent_size)
            Independent draws.
        """
        mean, log_var = self.components()
        which = keras.random.randint((count,), 0, self.pseudo_inputs.shape[0], seed=seed)
        noise = keras.random.normal((count, mean.shape[-1]), seed=seed)
        return keras.ops.take(mean, which, axis=0) + keras.ops.exp(0.5 * keras.ops.take(log_var, which, axis=0)) * noise
