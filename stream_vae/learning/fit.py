"""Fit the CVAE: seeds, optimiser, early stopping, turned and mirrored stamps, history."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.progress import Reporter, silent
from stream_vae.learning.recipe import Recipe
from stream_vae.model.backend import keras
from stream_vae.model.cvae import CVAE

Stamps = NDArray[np.float32]


@dataclass(frozen=True)
class Fit:
    """A fitted model and how it came about.

    Parameters
    ----------
    model : CVAE
        At the epoch with the lowest validation loss.
    history : dict of lists
        What Keras logged, one value an epoch.
    best_epoch : int
        Which epoch's weights the model has, from 1.
    seconds : float
        How long fitting took.
    """

    model: CVAE
    history: dict[str, list[float]]
    best_epoch: int
    seconds: float


def turn(stamps: Stamps, which: NDArray[np.int64]) -> Stamps:
    """Turn and mirror each stamp its own way: the eight symmetries of a square.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        All channels of a stamp are turned together.
    which : ndarray of int, shape (n,)
        0 to 3: quarter turns; 4 to 7: the same of the mirrored stamp.

    Returns
    -------
    ndarray, shape (n, size, size, channels)
        A new array.
    """
    turned = np.empty_like(stamps)
    for symmetry in range(8):
        chosen = which == symmetry
        some = stamps[chosen]
        some = some[:, :, ::-1] if symmetry >= 4 else some
        turned[chosen] = np.rot90(some, symmetry % 4, axes=(1, 2))
    return turned


class Batches(keras.utils.PyDataset):
    """Shuffled batches of stamps, turned at random, the same for the same seed.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        Normalised stamps.
    batch_size : int
        Stamps a batch; a last short batch of each epoch is left out, the shuffle brings its stamps elsewhere.
    seed : int
        Of shuffling and turning.
    augment : bool
        Whether to turn.
    """

    def __init__(self, stamps: Stamps, *, batch_size: int, seed: int, augment: bool) -> None:
        super().__init__()
        self._stamps = stamps
        self._batch_size = min(batch_size, len(stamps))
        self._random = np.random.default_rng(seed)
        self._augment = augment
        self._order = self._random.permutation(len(stamps))

    def __len__(self) -> int:
        return len(self._stamps) // self._batch_size

    def __getitem__(self, index: int) -> tuple[Stamps]:
        batch = self._stamps[self._order[index * self._batch_size : (index + 1) * self._batch_size]]
        if self._augment:
            batch = turn(batch, self._random.integers(0, 8, len(batch)))
        return (batch,)

    def on_epoch_end(self) -> None:
        """Shuffle anew."""
        self._order = self._random.permutation(len(self._stamps))


class _Report(keras.callbacks.Callback):
    def __init__(self, report: Reporter, epochs: int) -> None:
        super().__init__()
        self._report = report
        self._epochs = epochs

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002 - Keras' signature
        self._report("fit", 0, self._epochs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        error, kl = logs["val_reconstruction_loss"], logs["val_kl_loss"]
        note = f"loss {logs['val_loss']:.1f}  squared error {error:.2f}  KL {kl:.1f}"
        self._report("fit", epoch + 1, self._epochs, note)
        if not np.isfinite(logs["loss"]):
            raise ConfigError(
                f"The loss is {logs['loss']} after epoch {epoch + 1}: training diverged.",
                remedy="Lower fit.learning_rate in the recipe.",
            )


def new_model(recipe: Recipe, *, steps_per_epoch: int) -> CVAE:
    """Make the untrained model that a recipe describes.

    Parameters
    ----------
    recipe : Recipe
        Its `model`, `loss` and `preprocessing` sections count.
    steps_per_epoch : int
        Batches an epoch, which turns the annealing's epochs into steps.

    Returns
    -------
    CVAE
        With weights drawn at random.
    """
    loss = recipe.loss
    return CVAE(
        stamp_size=recipe.preprocessing.stamp_size,
        channels=len(recipe.preprocessing.cutouts),
        latent_size=recipe.model.latent_size,
        filters=recipe.model.filters,
        linear_skip=recipe.model.linear_skip,
        decoder_variance=None if loss.sigma == "analytic" else float(loss.sigma) ** 2,
        kl_weight=loss.kl_weight,
        anneal_steps=loss.anneal_epochs * steps_per_epoch if loss.anneal == "linear" else 0,
        seed=recipe.seed,
    )


def fit_cvae(recipe: Recipe, train: Stamps, validation: Stamps, *, report: Reporter = silent) -> Fit:
    """Fit the recipe's CVAE; stop when the validation loss no longer falls.

    The validation loss is taken at the schedule's final KL weight from the first epoch, so that an epoch
    of the warm-up cannot pass for the best one.

    Parameters
    ----------
    recipe : Recipe
        What to fit and how.
    train, validation : ndarray, shape (n, size, size, channels)
        Normalised stamps.
    report : Reporter
        Told after each epoch.

    Returns
    -------
    Fit
        The best epoch's model.

    Raises
    ------
    ConfigError
        If the loss stops being finite.
    """
    keras.utils.set_random_seed(recipe.seed)
    section = recipe.fit
    batches = Batches(train, batch_size=section.batch_size, seed=recipe.seed, augment=recipe.data.augment)
    model = new_model(recipe, steps_per_epoch=len(batches))
    model.compile(optimizer=_optimizer(recipe, steps=len(batches) * section.epochs))
    stop = keras.callbacks.EarlyStopping(
        "val_loss", mode="min", patience=section.patience, restore_best_weights=True, start_from_epoch=0
    )
    began = time.monotonic()
    history = model.fit(
        batches,
        validation_data=(validation, None),
        validation_batch_size=512,
        epochs=section.epochs,
        shuffle=False,  # the batches shuffle themselves, from their own seed
        verbose=0,
        callbacks=[stop, _Report(report, section.epochs)],
    ).history
    report("fit", section.epochs, section.epochs)
    values = {name: [float(value) for value in column] for name, column in history.items()}
    return Fit(model, values, int(np.argmin(values["val_loss"])) + 1, time.monotonic() - began)


def _optimizer(recipe: Recipe, *, steps: int) -> Any:
    rate: Any = recipe.fit.learning_rate
    if recipe.fit.decay == "cosine":
        # To a hundredth: the last epochs polish rather than stand still.
        rate = keras.optimizers.schedules.CosineDecay(rate, decay_steps=steps, alpha=0.01)
    kind = {"adam": keras.optimizers.Adam, "nadam": keras.optimizers.Nadam}[recipe.fit.optimizer]
    # Early batches with a still unfitted variance have steep gradients.
    return kind(learning_rate=rate, global_clipnorm=1000.0)


def encode(model: CVAE, stamps: Stamps, *, batch_size: int = 1024) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Encode stamps with Keras.

    Parameters
    ----------
    model : CVAE
        A fitted model.
    stamps : ndarray, shape (n, size, size, channels)
        Normalised stamps.
    batch_size : int
        Stamps at a time.

    Returns
    -------
    z_mean, z_log_var : ndarray, shape (n, latent_size)
        The posterior of each stamp.
    """
    heads = [model.encoder(stamps[i : i + batch_size], training=False) for i in range(0, len(stamps), batch_size)]
    z_mean, z_log_var = (np.concatenate([_numpy(head[k]) for head in heads]) for k in (0, 1))
    return z_mean, z_log_var


def decode(model: CVAE, codes: NDArray[np.float32], *, batch_size: int = 1024) -> Stamps:
    """Decode codes with Keras.

    Parameters
    ----------
    model : CVAE
        A fitted model.
    codes : ndarray, shape (n, latent_size)
        Latent codes.
    batch_size : int
        Codes at a time.

    Returns
    -------
    ndarray, shape (n, size, size, channels)
        Reconstructed stamps.
    """
    parts = [model.decoder(codes[i : i + batch_size], training=False) for i in range(0, len(codes), batch_size)]
    return np.concatenate([_numpy(part) for part in parts])


def _numpy(tensor: Any) -> NDArray[np.float32]:
    return np.asarray(keras.ops.convert_to_numpy(tensor), np.float32)
