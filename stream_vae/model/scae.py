"""The sparse convolutional autoencoder that the paper compares with: the same networks, an l1 penalty on the code.

References
----------
Huijse et al. 2018 (as a baseline, with the weight 0.005).
"""

from typing import Any

from stream_vae.model import losses
from stream_vae.model.autoencoder import Autoencoder, stamp_of
from stream_vae.model.backend import keras
from stream_vae.model.losses import Tensor
from stream_vae.model.networks import LOG_VAR_LIMIT


@keras.saving.register_keras_serializable(package="stream_vae")
class SCAE(Autoencoder):
    """Squared error plus the code's absolute values.

    Its encoder has both heads, as the CVAE's, so that everything that takes a CVAE takes it too; the second always
    says -20: the code is a point.

    It logs `loss`, `reconstruction_loss` (summed squared error) and `sparsity_loss` (weighted l1 norm), a stamp.

    Parameters
    ----------
    stamp_size, channels : int
        Shape of a stamp.
    latent_size : int
        Units of the code.
    filters : int
        Filters of each convolution.
    linear_skip : bool
        Linear paths from pixels to code and from code to pixels.
    sparsity : float
        Weight of the code's l1 norm.
    seed : int
        Kept for the model's configuration; nothing is drawn.
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
        sparsity: float = 0.005,
        seed: int = 1,
        **kwargs: Any,
    ) -> None:
        settings = {
            "stamp_size": stamp_size,
            "channels": channels,
            "latent_size": latent_size,
            "filters": filters,
            "linear_skip": linear_skip,
            "sparsity": sparsity,
            "seed": seed,
        }
        super().__init__(settings, decoder_variance=None, parts=("reconstruction_loss", "sparsity_loss"), **kwargs)
        self.sparsity = sparsity
        head = self.encoder.get_layer("z_log_var")
        kernel, bias = head.get_weights()
        head.set_weights([0.0 * kernel, 0.0 * bias - LOG_VAR_LIMIT])
        head.trainable = False

    def call(self, inputs: Any, training: bool = False) -> dict[str, Tensor]:
        """Encode and decode.

        Parameters
        ----------
        inputs : tensor or dict of tensors
            Normalised stamps.
        training : bool
            Keras' flag.

        Returns
        -------
        dict of tensors
            `z_mean`, `z_log_var` and `reconstruction`.
        """
        z_mean, z_log_var = self.encoder(stamp_of(inputs), training=training)
        return {
            "z_mean": z_mean,
            "z_log_var": z_log_var,
            "reconstruction": self.decoder(z_mean, training=training),
        }

    def compute_loss(
        self,
        x: Any = None,
        y: Tensor = None,  # noqa: ARG002 - Keras' signature; there are no targets
        y_pred: Any = None,
        sample_weight: Tensor = None,  # noqa: ARG002 - Keras' signature
        training: bool = True,
    ) -> Tensor:
        """Squared error and penalty, averaged over the batch.

        Parameters
        ----------
        x : tensor or dict of tensors
            The stamps.
        y : None
            Unused.
        y_pred : dict of tensors
            What `call` returned.
        sample_weight : None
            Unused.
        training : bool
            Let the variance follow the error.

        Returns
        -------
        tensor, scalar
            Per stamp.
        """
        squared_error = losses.summed_squared_error(stamp_of(x), y_pred["reconstruction"])
        penalty = self.sparsity * keras.ops.sum(keras.ops.abs(y_pred["z_mean"]), axis=-1)
        if training:
            self.move_variance(keras.ops.mean(squared_error) / self.pixels)
        self.log(reconstruction_loss=squared_error, sparsity_loss=penalty)
        return keras.ops.mean(squared_error + penalty)

    def prior_sample(self, count: int) -> Tensor:
        """Refuse: an autoencoder has no prior.

        Parameters
        ----------
        count : int
            Unused.

        Returns
        -------
        tensor
            Never.

        Raises
        ------
        TypeError
            Always.
        """
        raise TypeError(f"an SCAE has no prior to draw {count} codes from")
