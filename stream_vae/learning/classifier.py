"""The real/bogus scorer: a one-hidden-layer network on the latent code that knows the code is uncertain.

It is trained on draws from each stamp's posterior q(z|x). What it gives is the expected probability of
being real over that posterior, and the probability's spread. The expectation is taken at a fixed set of
quasi-random points, so that one stamp always gets one score. A held-out part calibrates it (Platt scaling).
Without bogus labels there is `stream_vae.learning.positive_unlabelled`, which shares the network.

References
----------
Huijse et al. 2018, section 4 (a one-hidden-layer classifier on the latent code); Platt 1999, section 2.2
(the sigmoid fit with its smoothed targets); Owen 1998 (scrambled Sobol points).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.progress import Reporter, silent
from stream_vae.learning.recipe import ScorerSection
from stream_vae.model.backend import keras

Codes = NDArray[np.float32]

LEAST_TRAIN, LEAST_HELD_OUT = 5, 2
"""Stamps of each class without which neither fitting nor calibrating means anything."""


@dataclass(frozen=True)
class Posterior:
    """Codes of stamps with their labels.

    Parameters
    ----------
    z_mean, z_log_var : ndarray, shape (n, latent_size)
        The encoder's two heads.
    real : ndarray of bool, shape (n,)
        Whether the stamp is of a real transient. Where nothing is known to be bogus: whether it is known to be real.
    """

    z_mean: Codes
    z_log_var: Codes
    real: NDArray[np.bool_]


@dataclass(frozen=True)
class Scorer:
    """A fitted scorer as plain arrays; `export` writes the same as a graph.

    Parameters
    ----------
    hidden_weights : ndarray, shape (latent_size, hidden)
        The standardisation of codes is folded in.
    hidden_bias : ndarray, shape (hidden,)
        Of the hidden layer.
    output_weights : ndarray, shape (hidden,)
        From hidden layer to logit.
    output_bias : float
        Of the logit.
    offsets : ndarray, shape (draws, latent_size)
        Where the posterior is looked at, in standard deviations from its mean.
    """

    hidden_weights: Codes
    hidden_bias: Codes
    output_weights: Codes
    output_bias: float
    offsets: Codes

    def logits(self, z_mean: Codes, z_log_var: Codes) -> Codes:
        """Logit of being real at each of the points.

        Parameters
        ----------
        z_mean, z_log_var : ndarray, shape (n, latent_size)
            The encoder's two heads.

        Returns
        -------
        ndarray, shape (n, draws)
            Calibrated once `calibrate` was applied.
        """
        z = z_mean[:, np.newaxis] + np.exp(0.5 * z_log_var)[:, np.newaxis] * self.offsets  # (n, draws, latent_size)
        hidden = np.maximum(z @ self.hidden_weights + self.hidden_bias, 0.0)
        return cast("Codes", hidden @ self.output_weights + np.float32(self.output_bias))

    def score(self, z_mean: Codes, z_log_var: Codes) -> tuple[Codes, Codes]:
        """Probability of being real and its spread over the posterior.

        Parameters
        ----------
        z_mean, z_log_var : ndarray, shape (n, latent_size)
            The encoder's two heads.

        Returns
        -------
        real_score, real_score_std : ndarray, shape (n,)
            Mean and standard deviation of the probability over the points.
        """
        parts = [
            _sigmoid(self.logits(z_mean[i : i + 4096], z_log_var[i : i + 4096])) for i in range(0, len(z_mean), 4096)
        ]
        probability = np.concatenate(parts) if parts else np.empty((0, len(self.offsets)), np.float32)
        return probability.mean(axis=1), probability.std(axis=1)


def quasi_random_offsets(draws: int, latent_size: int, *, seed: int) -> Codes:
    """Points that stand for a standard normal: scrambled Sobol points and their mirror images.

    Parameters
    ----------
    draws : int
        A power of two.
    latent_size : int
        Dimensions.
    seed : int
        Of the scrambling.

    Returns
    -------
    ndarray, shape (draws, latent_size)
        With mean zero and variance one in each dimension, exactly up to rounding.
    """
    from scipy.stats import norm, qmc

    points = norm.ppf(qmc.Sobol(latent_size, scramble=True, rng=seed).random(draws // 2))
    points = np.concatenate([points, -points])
    return cast("Codes", (points / points.std(axis=0)).astype(np.float32))


def fit_scorer(
    train: Posterior, held_out: Posterior, section: ScorerSection, *, seed: int, report: Reporter = silent
) -> Scorer:
    """Train on draws from the posteriors, stop on and calibrate with the held-out part.

    Parameters
    ----------
    train, held_out : Posterior
        Both with both classes.
    section : ScorerSection
        The recipe's.
    seed : int
        Of initial weights, shuffling and draws.
    report : Reporter
        Told after each epoch.

    Returns
    -------
    Scorer
        Calibrated to the held-out part's mix of classes.

    Raises
    ------
    ConfigError
        If a part has too few stamps of a class, or codes are not finite or all alike.
    """
    for part, name, least in ((train, "training", LEAST_TRAIN), (held_out, "validation", LEAST_HELD_OUT)):
        check_part(part, name, least, "bogus", "set scorer.positive_unlabelled if bogus ones are not known")
    weights = class_weights(held_out.real)
    scorer = fit_network(
        train,
        section,
        data={
            "x": (train.z_mean, train.z_log_var),
            "y": train.real.astype(np.float32)[:, np.newaxis],
            # Both classes weigh the same while fitting; calibration brings the held-out mix back.
            "sample_weight": class_weights(train.real).astype(np.float32),
            "batch_size": min(128, max(8, len(train.real) // 8)),
        },
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        judge=lambda scorer: _log_loss(_score(scorer, held_out), held_out.real.astype(np.float64), weights),
        seed=seed,
        report=report,
    )[0]
    return calibrate(scorer, held_out)


def check_part(part: Posterior, name: str, least: int, others: str, remedy: str) -> None:
    """Refuse codes from which no scorer can be learned.

    Parameters
    ----------
    part : Posterior
        Codes and labels.
    name : str
        What to call it: `training`, `validation`.
    least : int
        Of each class.
    others : str
        What the stamps are that are not real: `bogus`, `unlabelled`.
    remedy : str
        What else can be done about too few of them.

    Raises
    ------
    ConfigError
        Says what is wrong and what to do.
    """
    real, rest = int(part.real.sum()), int((~part.real).sum())
    if min(real, rest) < least:
        raise ConfigError(
            f"The {name} part has {real} real and {rest} {others} stamps; a scorer needs {least} of each there.",
            remedy=f"Label more stamps (the parts are cut by data.validation_fraction and data.test_fraction), "
            f"leave `labels` out to train the scorer on simulated stamps, or {remedy}.",
        )
    broken = int((~(np.isfinite(part.z_mean) & np.isfinite(part.z_log_var)).all(axis=1)).sum())
    if broken:
        raise ConfigError(
            f"The codes of {broken} of {real + rest} {name} stamps are not finite: the encoder diverged.",
            remedy="Lower fit.learning_rate in the recipe and train again.",
        )
    if not np.ptp(part.z_mean, axis=0).max() > 1e-6:
        raise ConfigError(
            f"All {name} stamps have the same code, so nothing can be told from it: the model collapsed.",
            remedy='Set loss.sigma = "analytic" in the recipe, or a lower loss.kl_weight.',
        )


def fit_network(
    train: Posterior,
    section: ScorerSection,
    *,
    data: dict[str, Any],
    loss: Any,
    judge: Callable[[Scorer], float],
    seed: int,
    report: Reporter = silent,
    metrics: tuple[Any, ...] = (),
) -> tuple[Scorer, dict[str, list[float]]]:
    """Fit the network and keep the epoch that the judge likes best.

    Parameters
    ----------
    train : Posterior
        Gives the standardisation of codes.
    section : ScorerSection
        The recipe's.
    data : dict
        What `keras.Model.fit` is to learn from.
    loss : keras.losses.Loss
        Of labels and logits, each (batch, 1).
    judge : callable
        Loss of a snapshot on the held-out part.
    seed : int
        Of initial weights, shuffling and draws.
    report : Reporter
        Told after each epoch.
    metrics : tuple
        Keras metrics to log.

    Returns
    -------
    scorer : Scorer
        Not calibrated.
    history : dict of lists
        What Keras logged, one value an epoch.
    """
    keras.utils.set_random_seed(seed)
    # Draws have the variance of the means plus that of the posteriors.
    centre = train.z_mean.mean(axis=0)
    spread = np.sqrt(train.z_mean.var(axis=0) + np.exp(train.z_log_var).mean(axis=0))
    spread = np.maximum(spread, 1e-3 * spread.max())  # a unit that never varies is no reason to divide by nothing
    network = _Network(section.hidden, centre, spread, seed=seed)
    network.compile(optimizer=keras.optimizers.Adam(3e-3), loss=loss, metrics=list(metrics))
    offsets = quasi_random_offsets(section.draws, train.z_mean.shape[1], seed=seed)
    watch = _Watch(lambda: judge(_as_scorer(network, centre, spread, offsets)), report, section.epochs)
    stop = keras.callbacks.EarlyStopping("val_loss", mode="min", patience=section.patience, restore_best_weights=True)
    history = network.fit(**data, epochs=section.epochs, verbose=0, callbacks=[watch, stop])
    report("fit scorer", section.epochs, section.epochs)
    return _as_scorer(network, centre, spread, offsets), history.history


def calibrate(scorer: Scorer, held_out: Posterior) -> Scorer:
    """Scale and shift the logit so that the expected probability is right on the held-out part.

    Parameters
    ----------
    scorer : Scorer
        Any.
    held_out : Posterior
        Stamps that it was not trained on.

    Returns
    -------
    Scorer
        The same with another last layer.

    References
    ----------
    Platt 1999; the targets are smoothed as in his equation 4, so that perfectly separated classes do not
    ask for an infinite slope.
    """
    logits = scorer.logits(held_out.z_mean, held_out.z_log_var).astype(np.float64)
    real = int(held_out.real.sum())
    target = np.where(held_out.real, (real + 1) / (real + 2), 1 / (len(held_out.real) - real + 2))
    return rescale(scorer, logits, lambda probability: _log_loss(probability, target))


def rescale(scorer: Scorer, logits: NDArray[np.float64], cost: Callable[[NDArray[Any]], float]) -> Scorer:
    """Scale and shift the logit so that a cost of the expected probability is least.

    Parameters
    ----------
    scorer : Scorer
        Any.
    logits : ndarray, shape (n, draws)
        Its logits of the stamps that the cost is of.
    cost : callable
        Of the expected probabilities, (n,).

    Returns
    -------
    Scorer
        The same with another last layer.
    """
    from scipy.optimize import minimize

    def of_parameters(parameters: NDArray[np.float64]) -> float:
        return cost(_sigmoid(np.exp(parameters[0]) * logits + parameters[1]).mean(axis=1))

    found = minimize(of_parameters, np.zeros(2), method="L-BFGS-B", bounds=[(-3.0, 3.0), (-10.0, 10.0)])
    slope, shift = float(np.exp(found.x[0])), float(found.x[1])
    return Scorer(
        scorer.hidden_weights,
        scorer.hidden_bias,
        (slope * scorer.output_weights).astype(np.float32),
        slope * scorer.output_bias + shift,
        scorer.offsets,
    )


class _Network(keras.Model):
    """Logit of a draw from the posterior."""

    def __init__(self, hidden: int, centre: Codes, spread: Codes, *, seed: int) -> None:
        super().__init__(name="scorer")
        self._centre, self._spread = centre, spread
        self.draws = keras.random.SeedGenerator(seed)
        self.hidden = keras.layers.Dense(hidden, activation="relu")
        self.out = keras.layers.Dense(1)

    def call(self, posterior: Any) -> Any:
        z_mean, z_log_var = posterior
        noise = keras.random.normal(keras.ops.shape(z_mean), seed=self.draws)
        z = z_mean + keras.ops.exp(0.5 * z_log_var) * noise
        return self.out(self.hidden((z - self._centre) / self._spread))


class _Watch(keras.callbacks.Callback):
    """Add the held-out loss of the expected probability, which is what the scorer will be judged by."""

    def __init__(self, judge: Callable[[], float], report: Reporter, epochs: int) -> None:
        super().__init__()
        self._judge, self._report, self._epochs = judge, report, epochs

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["val_loss"] = self._judge()
        self._report("fit scorer", epoch + 1, self._epochs, f"loss {logs['val_loss']:.3f}")


def class_weights(real: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give weights under which both classes weigh the same.

    Parameters
    ----------
    real : ndarray of bool, shape (n,)
        Of both classes.

    Returns
    -------
    ndarray, shape (n,)
        With a mean of one.
    """
    share = real.mean()
    return cast("NDArray[np.float64]", np.where(real, 0.5 / share, 0.5 / (1.0 - share)))


def _score(scorer: Scorer, part: Posterior) -> Codes:
    return scorer.score(part.z_mean, part.z_log_var)[0]


def _as_scorer(network: Any, centre: Codes, spread: Codes, offsets: Codes) -> Scorer:
    (weights, bias), (out_weights, out_bias) = network.hidden.get_weights(), network.out.get_weights()
    folded = weights / spread[:, np.newaxis]
    return Scorer(
        folded.astype(np.float32),
        (bias - centre @ folded).astype(np.float32),
        out_weights[:, 0].astype(np.float32),
        float(out_bias[0]),
        offsets,
    )


def _sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    return cast("NDArray[Any]", 0.5 * (1.0 + np.tanh(0.5 * x)))  # does not overflow


def _log_loss(probability: NDArray[Any], target: NDArray[Any], weights: NDArray[Any] | None = None) -> float:
    p = np.clip(probability.astype(np.float64), 1e-7, 1.0 - 1e-7)
    losses = -(target * np.log(p) + (1.0 - target) * np.log1p(-p))
    return float(np.average(losses, weights=weights))
