"""Fit on from the release that is served, so that codes go on meaning what they meant.

The new model begins with the incumbent's weights. Beside the bound it is charged, for every stamp that is nothing new
to a teacher, the divergence of its posterior from the teacher's on that very stamp (turned and mirrored as it is):
nats, as the KL term is, with the teacher's posterior in the place of the prior. The teachers are the first release of
the latent space, so that small steps do not add up, and for what that one had never seen the incumbent. On what is new
to both the model is free. Teachers are only read, and nothing of them is left in the fitted model.

References
----------
Hinton, Vinyals & Dean 2015 (distillation); Shen et al. 2020 (new codes that may be compared with an old gallery).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.recipe import Recipe
from stream_vae.model import losses
from stream_vae.model.autoencoder import Autoencoder, stamp_of
from stream_vae.model.backend import keras
from stream_vae.model.cvae import CVAE
from stream_vae.model.losses import Tensor
from stream_vae.model.reconstruct import load_keras
from stream_vae.model.release import KERAS, REFERENCE, Release

Array = NDArray[np.float32]

_SEEN = 0.999
"""Of the incumbent's own training stamps so many count as nothing new."""


@dataclass(frozen=True)
class Teacher:
    """A release that codes are held to.

    Parameters
    ----------
    id : str
        The release's.
    model : Autoencoder
        As it was fitted.
    center : ndarray, shape (latent_size,)
        Of its codes.
    whitening : ndarray, shape (latent_size, latent_size)
        Makes their covariance the identity.
    farthest : float
        A stamp whose whitened code lies farther out is new to it.
    """

    id: str
    model: Autoencoder
    center: Array
    whitening: Array
    farthest: float


@dataclass(frozen=True)
class Incumbent:
    """What a fit goes on from.

    Parameters
    ----------
    begins_as : Teacher
        The release that is served.
    teachers : tuple of Teacher
        Each holds the stamps that none before it knows.
    """

    begins_as: Teacher
    teachers: tuple[Teacher, ...]

    @property
    def id(self) -> str:
        """The release that is served."""
        return self.begins_as.id


def incumbent_of(release: Release, first: Release | None = None) -> Incumbent:
    """Load what a fit goes on from.

    Parameters
    ----------
    release : Release
        The one that is served, verified.
    first : Release, optional
        The first of its latent space, if it is another one and still there.

    Returns
    -------
    Incumbent
        On Keras' backend of this process.

    Raises
    ------
    ConfigError
        If a release has no Keras model, or one that no fit can go on from.
    """
    begins_as = _teacher(release)
    if first is None or first.id == release.id:
        return Incumbent(begins_as, (begins_as,))
    return Incumbent(begins_as, (_teacher(first), begins_as))


def _teacher(release: Release) -> Teacher:
    path = release.path(KERAS)
    if path is None:
        raise ConfigError(
            f"Release {release.id} has no {KERAS}, so no fit can go on from it.",
            remedy="Retrain from scratch: `stream-vae retrain --now --from-scratch`.",
        )
    model = load_keras(path, release.id)
    if not isinstance(model, CVAE):
        raise ConfigError(
            f"Release {release.id} is no VAE: without posteriors there is nothing to hold a new one to.",
            remedy="Retrain from scratch: `stream-vae retrain --now --from-scratch`.",
        )
    with np.load(release.folder / REFERENCE, allow_pickle=False) as file:
        center, whitening, quantiles = (file[name] for name in ("center", "whitening", "novelty_quantiles"))
    farthest = float(np.interp(_SEEN, np.linspace(0.0, 1.0, len(quantiles)), quantiles))
    return Teacher(release.id, model, center, whitening, farthest)


def going_on(recipe: Recipe) -> Recipe:
    """Give the recipe by which a fit goes on: shorter, gentler, without a warm-up.

    Parameters
    ----------
    recipe : Recipe
        By which it would begin.

    Returns
    -------
    Recipe
        With the numbers of its section `retrain`.
    """
    again = recipe.retrain
    fit = {"epochs": again.epochs, "patience": again.patience, "learning_rate": again.learning_rate}
    return recipe.model_copy(
        update={
            "fit": recipe.fit.model_copy(update=fit),
            "loss": recipe.loss.model_copy(update={"anneal": "none", "anneal_epochs": 0}),
            "model": recipe.model.model_copy(update={"linear_start": "random"}),
        }
    )


def continued(fresh: Autoencoder, incumbent: Incumbent, *, distillation: float) -> Autoencoder:
    """Make a model that begins as the incumbent and is held to it.

    Parameters
    ----------
    fresh : Autoencoder
        An untrained `CVAE` of the recipe.
    incumbent : Incumbent
        Where it begins.
    distillation : float
        Weight of the divergence from it, against the bound's nats.

    Returns
    -------
    Autoencoder
        To be fitted; `released` gives the plain model.

    Raises
    ------
    ConfigError
        If the recipe's model has other sizes than the incumbent.
    """
    ours, theirs = (_sizes(model) for model in (fresh, incumbent.begins_as.model))
    if ours != theirs or not isinstance(fresh, CVAE):
        different = ", ".join(f"{name} {theirs[name]} and {ours[name]}" for name in ours if ours[name] != theirs[name])
        raise ConfigError(
            f"The recipe's model is another one than that of {incumbent.id} ({different or 'kind'}), so no fit can go "
            "on from it.",
            remedy="Leave these as they are, or retrain from scratch: `stream-vae retrain --now --from-scratch`.",
        )
    judges = tuple(_judge(teacher) for teacher in incumbent.teachers)
    model = _Held(fresh.get_config(), judges, distillation)
    _take_over(incumbent.begins_as.model, model)
    return model


def released(model: Autoencoder) -> Autoencoder:
    """Give the fitted model as a plain one.

    Parameters
    ----------
    model : Autoencoder
        From `continued`, or any other, which is given back as it is.

    Returns
    -------
    Autoencoder
        To be exported.
    """
    if not isinstance(model, _Held):
        return model
    plain: CVAE = CVAE.from_config(model.get_config())
    _take_over(model, plain)
    return plain


def _sizes(model: Autoencoder) -> dict[str, Any]:
    config = model.get_config()
    return {name: config[name] for name in ("stamp_size", "channels", "latent_size", "filters", "linear_skip")}


def _take_over(giver: Autoencoder, taker: Autoencoder) -> None:
    """Copy what both have: the networks, the variance, and the heads of the loss."""
    taker.encoder.set_weights(giver.encoder.get_weights())
    taker.decoder.set_weights(giver.decoder.get_weights())
    taker.variance.assign(keras.ops.convert_to_numpy(giver.variance))
    taker.steps.assign(keras.ops.convert_to_numpy(giver.steps))
    for name in ("label_head", "prior"):
        mine: Any = getattr(taker, name, None)
        other: Any = getattr(giver, name, None)
        if mine is not None and type(mine) is type(other) and hasattr(mine, "get_weights"):
            mine.set_weights(other.get_weights())


Judge = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Stamps to a teacher's posteriors, and to 1 where the stamp is nothing new to it, else 0."""


def _judge(teacher: Teacher) -> Judge:
    ops, encoder = keras.ops, teacher.model.encoder
    encoder.trainable = False
    center, whitening, farthest = teacher.center, teacher.whitening.T, np.float32(teacher.farthest**2)

    def judge(stamps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_mean, z_log_var = (ops.stop_gradient(head) for head in encoder(stamps, training=False))
        distance = ops.sum(ops.square(ops.matmul(z_mean - center, whitening)), axis=-1)
        # By the code alone: a stamp that the teacher reconstructs badly has had that code in the stream all the same,
        # and vectors of it are to be found again (training/LOG.md: freed, a new artefact's were not).
        return z_mean, z_log_var, ops.cast(distance <= farthest, z_mean.dtype)

    return judge


class _Held(CVAE):
    """A CVAE that is held to its teachers; never saved, so it is registered nowhere."""

    def __init__(self, config: dict[str, Any], judges: tuple[Judge, ...], weight: float) -> None:
        super().__init__(**{name: value for name, value in config.items() if name not in ("trainable", "dtype")})
        self._weight = weight
        # A closure and no layers of ours: the teachers' weights are not this model's.
        self._apart = partial(_divergence, lambda: judges)
        self.parts["divergence"] = keras.metrics.Mean(name="divergence")

    def compute_loss(
        self,
        x: Any = None,
        y: Tensor = None,
        y_pred: Any = None,
        sample_weight: Tensor = None,
        training: bool = True,
    ) -> Tensor:
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        divergence = self._apart(stamp_of(x), y_pred["z_mean"], y_pred["z_log_var"])
        self.log(divergence=divergence)
        return loss + self._weight * keras.ops.mean(divergence)


def _divergence(judges: Callable[[], tuple[Judge, ...]], stamps: Tensor, z_mean: Tensor, z_log_var: Tensor) -> Tensor:
    """(n,) nats; each stamp is held to the first teacher that knows its like."""
    total, free = 0.0, 1.0
    for judge in judges():
        old_mean, old_log_var, known = judge(stamps)
        total = total + free * known * losses.divergence(z_mean, z_log_var, old_mean, old_log_var)
        free = free * (1.0 - known)
    return total
