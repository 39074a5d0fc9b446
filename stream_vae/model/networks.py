"""The two networks of the paper: from a stamp to its code, and from a code to a stamp.

A stamp of 21x21 goes through three 3x3 convolutions of stride 2 (21-11-6-3) into two linear heads, the mean and
log-variance of its latent code; the decoder mirrors them with nearest-neighbour upsampling (3-6-11-21) and a linear
output. What is optional: the size of everything, and a linear path beside the network (`linear_skip`).

References
----------
Huijse, Astorga, Estevez & Pignata 2018, ESANN, "Latent representations of transient candidates from an astronomical
image difference pipeline using Variational Autoencoders".
"""

import numpy as np
from numpy.typing import NDArray

from stream_vae.model.backend import keras

STRIDED_LAYERS = 3
LOG_VAR_LIMIT = 20.0
"""Log-variances are clipped to +-20, so that no stamp, however odd, overflows an exponential."""
_NARROW = -2.5
"""Log-variance that posteriors begin with: a draw then keeps what the linear path knows."""


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


def start_linear(
    encoder: "keras.Model",
    decoder: "keras.Model",
    components: NDArray[np.float32],
    spread: NDArray[np.float32],
) -> None:
    """Let untrained networks with linear paths begin as principal component analysis, which they then improve on.

    What the convolutions add is scaled down to a tenth, and the posteriors begin narrow.

    Parameters
    ----------
    encoder, decoder : keras.Model
        Built with `linear_skip`.
    components : ndarray, shape (latent_size, pixels)
        Orthonormal principal components.
    spread : ndarray, shape (latent_size,)
        Standard deviation of the stamps along each: codes begin with variance one.
    """
    encoder.get_layer("skip").set_weights([(components / spread[:, np.newaxis]).T])
    decoder.get_layer("skip").set_weights([components * spread[:, np.newaxis]])
    for network, name in ((encoder, "z_mean"), (encoder, "z_log_var"), (decoder, f"conv{STRIDED_LAYERS}")):
        kernel, bias = network.get_layer(name).get_weights()
        network.get_layer(name).set_weights([0.1 * kernel, bias + (_NARROW if name == "z_log_var" else 0.0)])
