"""The convolutional VAE of Huijse et al. 2018, on whichever backend Keras runs.

A stamp of 21x21 goes through three 3x3 convolutions of stride 2 (21-11-6-3) into two linear
heads, the mean and log-variance of its latent code; the decoder mirrors them with
nearest-neighbour upsampling (3-6-11-21) and a linear output. What is optional: the size of
everything, a linear path beside the network (`linear_skip`), and a decoder variance that is
fitted (sigma-VAE) rather than fixed.

References
----------
Huijse, Astorga, Estevez & Pignata 2018, ESANN, "Latent representations of transient
candidates from an astronomical image difference pipeline using Variational Autoencoders".
"""

from typing import Any

from stream_vae.model import losses
from stream_vae.model.backend import keras
from stream_vae.model.losses import KlSchedule, Tensor

STRIDED_LAYERS = 3
LOG_VAR_LIMIT = 20.0
"""Log-variances are clipped to +-20, so that no stamp, however odd, overflows an exponential."""


def side_lengths(stamp_size: int) -> list[int]:
    """Side of the feature maps from the stamp down to the last convolution.

    Parameters
    ----------
    stamp_size : int
        Side of a stamp in pixels.

    Returns
    -------
    list of int
        For 21: [21, 11, 6, 3].
    """
    sides = [stamp_size]
    for _ in range(STRIDED_LAYERS):
        sides.append(-(-sides[-1] // 2))
    return sides


def encoder_network(
    stamp_size: int, channels: int, latent_size: int, filters: int, *, linear_skip: bool = False
) -> "keras.Model":
    """Build the network from a stamp to the mean and log-variance of its code.

    Parameters
    ----------
    stamp_size, channels : int
        Shape of a stamp.
    latent_size : int
        Units of the code.
    filters : int
        Filters of each convolution.
    linear_skip : bool
        Add a linear map of the pixels to the mean.

    Returns
    -------
    keras.Model
        (n, stamp_size, stamp_size, channels) -> two of (n, latent_size).
    """
    stamp = keras.Input((stamp_size, stamp_size, channels), name="stamp")
    x = stamp  # (n, 21, 21, c)
    for i in range(STRIDED_LAYERS):
        conv = keras.layers.Conv2D(
            filters, 3, strides=2, padding="same", activation="relu", data_format="channels_last", name=f"conv{i + 1}"
        )
        x = conv(x)  # (n, 11, 11, f), (n, 6, 6, f), (n, 3, 3, f)
    features = keras.layers.Flatten(data_format="channels_last")(x)
    z_mean = keras.layers.Dense(latent_size, name="z_mean")(features)
    z_log_var = keras.layers.Dense(latent_size, name="z_log_var")(features)
    if linear_skip:
        pixels = keras.layers.Flatten(data_format="channels_last")(stamp)
        z_mean = z_mean + keras.layers.Dense(latent_size, use_bias=False, name="skip")(pixels)
    z_log_var = keras.ops.clip(z_log_var, -LOG_VAR_LIMIT, LOG_VAR_LIMIT)
    return keras.Model(stamp, [z_mean, z_log_var], name="encoder")


def decoder_network(
    stamp_size: int, channels: int, latent_size: int, filters: int, *, linear_skip: bool = False
) -> "keras.Model":
    """Build the network from a latent code to a stamp.

    Parameters
    ----------
    stamp_size, channels : int
        Shape of a stamp.
    latent_size : int
        Units of the code.
    filters : int
        Filters of each convolution.
    linear_skip : bool
        Add a linear map of the code to the pixels.

    Returns
    -------
    keras.Model
        (n, latent_size) -> (n, stamp_size, stamp_size, channels).
    """
    sides = side_lengths(stamp_size)[::-1]  # 3, 6, 11, 21
    code = keras.Input((latent_size,), name="z")
    x = keras.layers.Dense(sides[0] ** 2 * filters, activation="relu", name="unfold")(code)
    x = keras.layers.Reshape((sides[0], sides[0], filters))(x)
    for i, side in enumerate(sides[1:]):
        last = i == STRIDED_LAYERS - 1
        x = keras.layers.UpSampling2D(2, interpolation="nearest", data_format="channels_last")(x)
        # An odd side is nearest-neighbour resizing too: doubling and dropping the last row and column.
        extra = 2 * sides[i] - side
        x = keras.layers.Cropping2D(((0, extra), (0, extra)), data_format="channels_last")(x)
        x = keras.layers.Conv2D(
            channels if last else filters,
            3,
            padding="same",
            activation="linear" if last else "relu",
            data_format="channels_last",
            name=f"conv{i + 1}",
        )(x)  # (n, 6, 6, f), (n, 11, 11, f), (n, 21, 21, c)
    if linear_skip:
        pixels = keras.layers.Dense(stamp_size**2 * channels, use_bias=False, name="skip")(code)
        x = x + keras.layers.Reshape((stamp_size, stamp_size, channels))(pixels)
    return keras.Model(code, x, name="decoder")


@keras.saving.register_keras_serializable(package="stream_vae")
class CVAE(keras.Model):
    """Encoder, decoder and the loss between them.

    Compile it with an optimizer alone and fit it on normalised stamps without targets. What it
    logs per stamp: `loss` (negative bound at the current KL weight), `reconstruction_loss` (summed squared
    error), `kl_loss` (nats), `elbo` (nats, at weight 1 whatever the schedule). In
    evaluation `loss` is taken at the schedule's final weight, so epochs can be compared.

    Parameters
    ----------
    stamp_size, channels : int
        Shape of a stamp.
    latent_size : int
        Units of the code.
    filters : int
        Filters of each convolution.
    linear_skip : bool
        Linear paths from pixels to mean and from code to pixels.
    decoder_variance : float or None
        The decoder's sigma^2 per pixel; None fits it (analytic sigma-VAE).
    kl_weight : float
        Final weight of the KL term.
    anneal_steps : int
        Batches over which that weight rises from zero; 0 for none.
    seed : int
        Of the draws from the posterior.
    **kwargs
        Passed to `keras.Model`.
    """

    def __init__(
        self,
        *,
        stamp_size: int = 21,
        channels: int = 1,
        latent_size: int = 21,
        filters: int = 32,
        linear_skip: bool = False,
        decoder_variance: float | None = None,
        kl_weight: float = 1.0,
        anneal_steps: int = 0,
        seed: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._settings = {
            "stamp_size": stamp_size,
            "channels": channels,
            "latent_size": latent_size,
            "filters": filters,
            "linear_skip": linear_skip,
            "decoder_variance": decoder_variance,
            "kl_weight": kl_weight,
            "anneal_steps": anneal_steps,
            "seed": seed,
        }
        self.pixels = stamp_size**2 * channels
        self.fits_variance = decoder_variance is None
        self.schedule = KlSchedule(kl_weight, anneal_steps)
        self.draws = keras.random.SeedGenerator(seed)
        sizes = (stamp_size, channels, latent_size, filters)
        self.encoder = encoder_network(*sizes, linear_skip=linear_skip)
        self.decoder = decoder_network(*sizes, linear_skip=linear_skip)
        initial = 1.0 if decoder_variance is None else decoder_variance
        self.variance = self._state("variance", initial)
        self.steps = self._state("steps", 0.0)
        names = ("reconstruction_loss", "kl_loss", "elbo")
        self.parts = [keras.metrics.Mean(name=name) for name in names]
        self.built = True  # both networks are: nothing waits for a first batch

    def _state(self, name: str, value: float) -> Any:
        return self.add_weight(shape=(), initializer=keras.initializers.Constant(value), trainable=False, name=name)

    def get_config(self) -> dict[str, Any]:
        """Give the arguments that rebuild this model.

        Returns
        -------
        dict
            Constructor arguments by name.
        """
        return {**super().get_config(), **self._settings}

    def sample(self, z_mean: Tensor, z_log_var: Tensor) -> Tensor:
        """Draw one code for each stamp from its posterior.

        Parameters
        ----------
        z_mean, z_log_var : tensor, shape (n, latent_size)
            The encoder's two heads.

        Returns
        -------
        tensor, shape (n, latent_size)
            Differentiable in both heads.
        """
        noise = keras.random.normal(keras.ops.shape(z_mean), dtype=z_mean.dtype, seed=self.draws)
        return z_mean + keras.ops.exp(0.5 * z_log_var) * noise

    def call(self, stamps: Tensor, training: bool = False) -> dict[str, Tensor]:
        """Encode, draw, decode.

        Parameters
        ----------
        stamps : tensor, shape (n, stamp_size, stamp_size, channels)
            Normalised stamps.
        training : bool
            Keras' flag; the draw is made either way, as the bound asks.

        Returns
        -------
        dict of tensors
            `z_mean`, `z_log_var` and `reconstruction`.
        """
        z_mean, z_log_var = self.encoder(stamps, training=training)
        reconstruction = self.decoder(self.sample(z_mean, z_log_var), training=training)
        return {"z_mean": z_mean, "z_log_var": z_log_var, "reconstruction": reconstruction}

    def compute_loss(
        self,
        x: Tensor = None,
        y: Tensor = None,  # noqa: ARG002 - Keras' signature; there are no targets
        y_pred: Any = None,
        sample_weight: Tensor = None,  # noqa: ARG002 - Keras' signature
        training: bool = True,
    ) -> Tensor:
        """Negative bound, averaged over the batch, at the schedule's KL weight.

        Parameters
        ----------
        x : tensor, shape (n, stamp_size, stamp_size, channels)
            The stamps.
        y : None
            Unused.
        y_pred : dict of tensors
            What `call` returned.
        sample_weight : None
            Unused.
        training : bool
            Move the variance and the schedule on; in evaluation the weight is the final one.

        Returns
        -------
        tensor, scalar
            In nats a stamp.
        """
        squared_error = losses.summed_squared_error(x, y_pred["reconstruction"])
        kl = keras.ops.sum(losses.kl_per_unit(y_pred["z_mean"], y_pred["z_log_var"]), axis=-1)
        weight: Tensor = self.schedule.final
        if training:
            weight = self.schedule.at(self.steps)
            if self.fits_variance:
                error = keras.ops.mean(squared_error) / self.pixels
                self.variance.assign(losses.next_variance(self.variance, error, self.steps))
            self.steps.assign(self.steps + 1.0)
        nll = losses.gaussian_nll(squared_error, self.variance, self.pixels)
        for part, values in zip(self.parts, (squared_error, kl, -nll - kl), strict=True):
            part.update_state(values)
        return keras.ops.mean(nll + weight * kl)
