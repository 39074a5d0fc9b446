"""What every model here is: an encoder, a decoder, the variance of what the decoder misses, and a loss between them."""

from typing import Any

from stream_vae.model import losses
from stream_vae.model.backend import keras
from stream_vae.model.losses import Tensor
from stream_vae.model.networks import decoder_network, encoder_network


def stamp_of(inputs: Any) -> Tensor:
    """Take the stamps out of a batch.

    Parameters
    ----------
    inputs : tensor or dict of tensors
        The stamps alone, or `stamp` and what else the loss needs of each.

    Returns
    -------
    tensor, shape (n, size, size, channels)
        The stamps.
    """
    return inputs["stamp"] if isinstance(inputs, dict) else inputs


class Autoencoder(keras.Model):
    """The part that the models share; a model adds `call` and `compute_loss`.

    Compile one with an optimizer alone and fit it without targets, on normalised stamps (n, size, size, channels)
    or on a dict of these as `stamp` and, where the model's loss asks for them, `noise` (n, size, size, channels) and
    `label` (n,).

    Parameters
    ----------
    settings : dict
        All of the model's own arguments, by which it can be built again.
    decoder_variance : float or None
        The decoder's sigma^2 per pixel; None follows the mean squared error (analytic sigma-VAE).
    parts : tuple of str
        What is logged beside the loss.
    **kwargs
        Passed to `keras.Model`.
    """

    def __init__(
        self, settings: dict[str, Any], *, decoder_variance: float | None, parts: tuple[str, ...], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._settings = settings
        sizes = [settings[name] for name in ("stamp_size", "channels", "latent_size", "filters")]
        self.pixels = settings["stamp_size"] ** 2 * settings["channels"]
        self.draws = keras.random.SeedGenerator(settings["seed"])
        self.encoder = encoder_network(*sizes, linear_skip=settings["linear_skip"])
        self.decoder = decoder_network(*sizes, linear_skip=settings["linear_skip"])
        self.fits_variance = decoder_variance is None
        self.variance = self.state("variance", 1.0 if decoder_variance is None else decoder_variance)
        self.steps = self.state("steps", 0.0)
        self.parts = {name: keras.metrics.Mean(name=name) for name in parts}
        self.built = True  # both networks are: nothing waits for a first batch

    def state(self, name: str, value: float) -> Any:
        """Add a number that training moves, but not by a gradient.

        Parameters
        ----------
        name : str
            Its name.
        value : float
            Where it begins.

        Returns
        -------
        variable, scalar
            Saved with the model.
        """
        return self.add_weight(shape=(), initializer=keras.initializers.Constant(value), trainable=False, name=name)

    def get_config(self) -> dict[str, Any]:
        """Give the arguments that rebuild this model.

        Returns
        -------
        dict
            Constructor arguments by name.
        """
        return {**super().get_config(), **self._settings}

    def log(self, **values: Tensor) -> None:
        """Note a batch's values of what is logged.

        Parameters
        ----------
        **values : tensor, shape (n,)
            By name; names that this model does not log are passed over.
        """
        for name, value in values.items():
            if name in self.parts:
                self.parts[name].update_state(value)

    def move_variance(self, mean_squared_error: Tensor) -> None:
        """Let the variance follow the error, if it is fitted, and count the step.

        Parameters
        ----------
        mean_squared_error : tensor, scalar
            Of this batch, per pixel.
        """
        if self.fits_variance:
            self.variance.assign(losses.next_variance(self.variance, mean_squared_error, self.steps))
        self.steps.assign(self.steps + 1.0)
