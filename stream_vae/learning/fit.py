"""Fit the recipe's model to stamps in memory or on disk: seeds, optimiser, early stopping, checkpoints."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.batches import Batches, inputs_of, orientations
from stream_vae.learning.continuation import Incumbent, continued, going_on, released
from stream_vae.learning.course import Checkpoint, Course, assign, fingerprint
from stream_vae.learning.data.stamps import StampSet
from stream_vae.learning.progress import Reporter, silent
from stream_vae.learning.recipe import Recipe
from stream_vae.learning.reference import leading_directions
from stream_vae.learning.together import batches_together, take_stacks
from stream_vae.model.autoencoder import Autoencoder
from stream_vae.model.backend import full_precision, keras
from stream_vae.model.cvae import CVAE
from stream_vae.model.networks import start_linear
from stream_vae.model.scae import SCAE

Stamps = NDArray[np.float32]

MAX_VALIDATION = 20_000
"""Stamps that an epoch is judged by: more would move the loss by less than an epoch does."""
LONG = 3000
"""Batches from which on compiling (XLA) pays: a step then takes a half to a third of the CPU time."""
MAX_START = 20_000
"""Stamps whose principal components a model begins with: more would hardly move them."""


@dataclass(frozen=True)
class Fit:
    """A fitted model and how it came about.

    Parameters
    ----------
    model : Autoencoder
        At the epoch with the lowest validation loss.
    history : dict of lists
        What Keras logged, one value an epoch.
    best_epoch : int
        Which epoch's weights the model has, from 1.
    seconds : float
        How long fitting took.
    """

    model: Autoencoder
    history: dict[str, list[float]]
    best_epoch: int
    seconds: float


class _Watch(keras.callbacks.Callback):
    """After each epoch: note it, save it, report it, and stop if it is time."""

    def __init__(self, course: Course, checkpoint: Checkpoint | None, report: Reporter, epochs: int) -> None:
        super().__init__()
        self._course, self._checkpoint = course, checkpoint
        self._report, self._epochs = report, epochs
        self._since = time.monotonic()

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002 - Keras' signature
        self._report("fit", self._course.epochs, self._epochs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        parts = {"loss": "val_loss", "squared error": "val_reconstruction_loss", "KL": "val_kl_loss"}
        note = "  ".join(f"{name} {logs[key]:.4g}" for name, key in parts.items() if key in logs)
        self._report("fit", epoch + 1, self._epochs, note)
        if not np.isfinite(logs["loss"]):
            raise ConfigError(
                f"The loss is {logs['loss']} after epoch {epoch + 1}: training diverged.",
                remedy="Lower fit.learning_rate in the recipe.",
            )
        self._course.take(logs, self.model)
        now = time.monotonic()
        self._course.seconds += now - self._since
        self._since = now
        if self._checkpoint is not None:
            self._checkpoint.save(self.model, self._course)
        if self._course.stopped:
            self.model.stop_training = True


class _Pace:
    """Report batches where an epoch is long."""

    interval_s = 5.0

    def __init__(self, report: Reporter, course: Course) -> None:
        self._report, self._course = report, course
        self._last, self._batch = time.monotonic(), 0

    def __call__(self, batch: int, batches: int) -> None:
        now = time.monotonic()
        if batch <= self._batch:  # a new epoch, or the first after a look at the shapes
            self._last = now
        elif now - self._last >= self.interval_s:
            self._last = now
            self._report("batches", batch, batches, f"epoch {self._course.epochs + 1}")
        self._batch = batch


def model_inputs(recipe: Recipe) -> tuple[str, ...]:
    """Name what the recipe's model takes of each stamp.

    Parameters
    ----------
    recipe : Recipe
        Its `loss` section counts.

    Returns
    -------
    tuple of str
        `stamp`, and `noise` and `label` where the loss needs them.
    """
    loss = recipe.loss
    noise = ("noise",) if loss.noise_map else ()
    return ("stamp", *noise, *(("label",) if loss.label_weight > 0 else ()))


def new_model(recipe: Recipe, *, steps_per_epoch: int) -> Autoencoder:
    """Make the untrained model that a recipe describes.

    Parameters
    ----------
    recipe : Recipe
        Its `model`, `loss` and `preprocessing` sections count.
    steps_per_epoch : int
        Batches an epoch, which turns the annealing's epochs into steps.

    Returns
    -------
    Autoencoder
        With weights drawn at random.
    """
    loss, model = recipe.loss, recipe.model
    sizes: dict[str, Any] = {
        "stamp_size": recipe.preprocessing.stamp_size,
        "channels": len(recipe.preprocessing.cutouts),
        "latent_size": model.latent_size,
        "filters": model.filters,
        "linear_skip": model.linear_skip,
        "seed": recipe.seed,
    }
    if model.kind == "scae":
        return SCAE(**sizes, sparsity=loss.sparsity)
    return CVAE(
        **sizes,
        decoder_variance=None if loss.sigma == "analytic" else float(loss.sigma) ** 2,
        objective=loss.objective,
        kl_weight=loss.kl_weight,
        anneal=loss.anneal,
        anneal_steps=loss.anneal_epochs * steps_per_epoch,
        cycles=loss.cycles,
        tolerance=loss.tolerance,
        importance_samples=loss.importance_samples,
        prior=model.prior,
        pseudo_inputs=model.pseudo_inputs,
        noise_map=loss.noise_map,
        label_weight=loss.label_weight,
    )


def fit_model(
    recipe: Recipe,
    data: StampSet,
    train_rows: NDArray[Any],
    validation_rows: NDArray[Any],
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    incumbent: Incumbent | None = None,
    report: Reporter = silent,
) -> Fit:
    """Fit the recipe's model; stop when the validation loss no longer falls.

    The validation loss is taken at the schedule's final KL weight from the first epoch, so that an epoch
    of the warm-up cannot pass for the best one. Stamps are drawn from the set batch by batch: one on disk is never
    in memory as a whole.

    Parameters
    ----------
    recipe : Recipe
        What to fit and how.
    data : StampSet
        Normalised stamps, in memory or on disk.
    train_rows, validation_rows : ndarray of int
        Rows to fit to, and rows to stop on; of these at most `MAX_VALIDATION`, chosen by the seed, are looked at.
    checkpoint : Path, optional
        Folder that gets the state after every epoch.
    resume : bool
        Go on from what is there; without anything there, begin.
    incumbent : Incumbent, optional
        Begin as this release, hold the codes to it, and go by the recipe's section `retrain`.
    report : Reporter
        Told after each epoch, and every few seconds in a long one.

    Returns
    -------
    Fit
        The best epoch's model.

    Raises
    ------
    ConfigError
        If the loss stops being finite, the recipe needs noise maps that the stamps have not, the checkpoint is
        another recipe's or another run's, or the recipe's model is another than the incumbent's.
    """
    keras.utils.set_random_seed(recipe.seed)
    base = "" if incumbent is None else incumbent.id
    recipe = recipe if incumbent is None else going_on(recipe)
    section, inputs = recipe.fit, model_inputs(recipe)
    if resume and checkpoint is None:
        raise ConfigError("--resume has nothing to go on from.", remedy="Name the folder with --checkpoint DIR.")
    saved = Checkpoint(checkpoint, fingerprint(recipe, data, train_rows, validation_rows, base)) if checkpoint else None
    if saved is not None and saved.exists and not resume:
        raise ConfigError(
            f"{checkpoint} holds the checkpoint of an earlier run.",
            remedy="Add --resume to go on with it, or name an empty folder.",
        )
    steps = max(1, len(train_rows) // min(section.batch_size, len(train_rows)))
    model = new_model(recipe, steps_per_epoch=steps)
    if incumbent is not None:
        model = continued(model, incumbent, distillation=recipe.retrain.distillation)
    elif recipe.model.linear_start == "pca":
        _start_linear(model, data, train_rows, recipe.seed)
    together = min(steps, batches_together(section.batch_size, data.stamps[:1].nbytes))
    compile_model(model, recipe, steps=steps * section.epochs, together=together)
    course = Course(section.patience)
    if saved is not None and saved.exists:
        course = saved.load(model, section.patience)
    if not course.stopped and course.epochs < section.epochs:
        model.fit(
            Batches(
                data,
                train_rows,
                inputs=inputs,
                batch_size=section.batch_size,
                seed=recipe.seed,
                augment=recipe.data.augment,
                first_epoch=course.epochs,
                together=together,
                watch=_Pace(report, course),
            ),
            validation_data=(inputs_of(data, _some(validation_rows, recipe.seed), inputs), None),
            validation_batch_size=512,
            initial_epoch=course.epochs,
            epochs=section.epochs,
            shuffle=False,  # the batches shuffle themselves, from their own seed
            verbose=0,
            callbacks=[_Watch(course, saved, report, section.epochs)],
        )
    assign(model.variables, course.best)
    report("fit", section.epochs, section.epochs)
    return Fit(released(model), course.history, course.best_epoch, course.seconds)


def compile_model(model: Autoencoder, recipe: Recipe, *, steps: int, together: int = 1) -> None:
    """Give a model its optimiser, and choose how its steps are compiled.

    Parameters
    ----------
    model : Autoencoder
        From `new_model`.
    recipe : Recipe
        Its `fit` section counts.
    steps : int
        Batches of the whole fit.
    together : int
        Batches that `fit` will get at a time.
    """
    # What "auto" stands for is left to other backends: on TensorFlow it never compiles these models.
    long = keras.backend.backend() == "tensorflow" and steps > LONG
    model.compile(optimizer=optimizer_of(recipe, steps=steps), jit_compile=True if long else "auto")
    model.optimizer.build(model.trainable_variables)
    if together > 1:
        take_stacks(model)


def _start_linear(model: Autoencoder, data: StampSet, rows: NDArray[Any], seed: int) -> None:
    """Begin at the principal components of some training stamps in all eight orientations."""
    stamps = data.take(_some(rows, seed, MAX_START))
    covariance = np.zeros((model.pixels, model.pixels))
    total = np.zeros(model.pixels)
    for some in orientations(stamps):
        flat = some.reshape(len(some), -1).astype(np.float64)
        covariance += flat.T @ flat
        total += flat.sum(axis=0)
    mean = total / (8 * len(stamps))
    covariance = covariance / (8 * len(stamps)) - np.outer(mean, mean)
    variances, components = leading_directions(covariance, model.get_config()["latent_size"])
    spread = np.sqrt(np.maximum(variances, 1e-8))
    start_linear(model.encoder, model.decoder, components.astype(np.float32), spread.astype(np.float32))


def _some(rows: NDArray[Any], seed: int, most: int = MAX_VALIDATION) -> NDArray[Any]:
    """At most so many rows, ascending."""
    if len(rows) <= most:
        return rows
    chosen = np.random.default_rng(seed).choice(len(rows), most, replace=False)
    return rows[np.sort(chosen)]


def optimizer_of(recipe: Recipe, *, steps: int) -> Any:
    """Make the recipe's optimiser.

    Parameters
    ----------
    recipe : Recipe
        Its `fit` section counts.
    steps : int
        Batches of the whole fit, over which the learning rate falls.

    Returns
    -------
    keras.optimizers.Optimizer
        With steep gradients clipped.
    """
    rate: Any = recipe.fit.learning_rate
    if recipe.fit.decay == "cosine":
        # To a hundredth: the last epochs polish rather than stand still.
        rate = keras.optimizers.schedules.CosineDecay(rate, decay_steps=steps, alpha=0.01)
    kind = {"adam": keras.optimizers.Adam, "nadam": keras.optimizers.Nadam}[recipe.fit.optimizer]
    # Early batches with a still unfitted variance have steep gradients.
    return kind(learning_rate=rate, global_clipnorm=1000.0)


def encode(
    model: Autoencoder, stamps: Stamps, *, batch_size: int = 1024
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Encode stamps with Keras.

    Parameters
    ----------
    model : Autoencoder
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
    with full_precision():
        heads = [model.encoder(stamps[i : i + batch_size], training=False) for i in range(0, len(stamps), batch_size)]
    z_mean, z_log_var = (np.concatenate([_numpy(head[k]) for head in heads]) for k in (0, 1))
    return z_mean, z_log_var


def decode(model: Autoencoder, codes: NDArray[np.float32], *, batch_size: int = 1024) -> Stamps:
    """Decode codes with Keras.

    Parameters
    ----------
    model : Autoencoder
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
    with full_precision():
        parts = [model.decoder(codes[i : i + batch_size], training=False) for i in range(0, len(codes), batch_size)]
    return np.concatenate([_numpy(part) for part in parts])


def _numpy(tensor: Any) -> NDArray[np.float32]:
    return np.asarray(keras.ops.convert_to_numpy(tensor), np.float32)
