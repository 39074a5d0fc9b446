"""A scorer from real stamps and unlabelled ones: for surveys that know asteroids or injections, and no artefacts.

Calling all that is unlabelled bogus teaches the scorer that the real ones among it are bogus too, and its scores
come out too low. What is known of them is only their share, the prior. With it the risk on bogus stamps is
what the unlabelled ones give less what the real ones among them would give; that difference must not be
negative, and where a flexible network makes it so on a batch, the step goes the other way (Kiryo et al. 2017).

Stamps labelled real must be like the real ones among the unlabelled: injections that are brighter, or asteroids that
are rounder than what is to be found, bias the scorer as they would any other. Stamps labelled bogus, if any, join
the unlabelled, whose prior falls by as much: each then tells of its class exactly what it should.

The score is the chance of being real of a detection *like the unlabelled ones*, if the prior is right.

References
----------
Kiryo, Niu, du Plessis & Sugiyama 2017, NeurIPS, equation 6 and algorithm 1; Su, Chen & Xu 2021, IJCAI, equation 6
(classes weighed alike); Garg, Wu, Smola, Balakrishnan & Lipton 2021, NeurIPS, algorithm 1 (best bin estimation of
the prior); Menon, van Rooyen, Ong & Williamson 2015, ICML, corollary 3 (AUC against unlabelled).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.classifier import (
    LEAST_HELD_OUT,
    LEAST_TRAIN,
    Posterior,
    Scorer,
    check_part,
    fit_network,
    fit_scorer,
    rescale,
)
from stream_vae.learning.measures import roc_auc
from stream_vae.learning.progress import Reporter, silent
from stream_vae.learning.recipe import ScorerSection
from stream_vae.model.backend import keras

Array = NDArray[np.floating[Any]]

LEAST_PRIOR, LARGEST_PRIOR = 0.001, 0.95
"""An estimate outside leaves nothing to learn, whichever it is."""


@dataclass(frozen=True)
class PositiveUnlabelledFit:
    """A scorer, and the prior that it stands on.

    Parameters
    ----------
    scorer : Scorer
        Calibrated.
    prior : float
        Share of real ones among the unlabelled.
    estimated : bool
        Whether the prior was estimated.
    corrected : float
        Share of batches in which the step went against a negative risk.
    """

    scorer: Scorer
    prior: float
    estimated: bool
    corrected: float

    def describe(self) -> dict[str, Any]:
        """Return what a release's card says of it.

        Returns
        -------
        dict
            Plain values for JSON.
        """
        return {"prior": self.prior, "prior_estimated": self.estimated, "corrected_batches": self.corrected}


def fit_positive_unlabelled(
    train: Posterior,
    held_out: Posterior,
    section: ScorerSection,
    *,
    bogus: Posterior | None = None,
    seed: int,
    report: Reporter = silent,
) -> PositiveUnlabelledFit:
    """Train, stop and calibrate with real and unlabelled stamps.

    Parameters
    ----------
    train, held_out : Posterior
        `real` where a stamp is known to be real; the others are unlabelled.
    section : ScorerSection
        The recipe's; its prior is estimated if it gives none.
    bogus : Posterior, optional
        Training stamps that are known to be bogus.
    seed : int
        Of initial weights, batches and draws.
    report : Reporter
        Told after each epoch.

    Returns
    -------
    PositiveUnlabelledFit
        Its score is calibrated to the unlabelled stamps of the held-out part.

    Raises
    ------
    ConfigError
        If a part has too few real or unlabelled stamps, or codes are not finite or all alike.
    """
    for part, name, least in ((train, "training", LEAST_TRAIN), (held_out, "validation", LEAST_HELD_OUT)):
        check_part(part, name, least, "unlabelled", "set scorer.positive_unlabelled = false if bogus ones are known")
    prior = section.prior
    if prior is None:
        naive = fit_scorer(train, held_out, section, seed=seed, report=report)
        score, _ = naive.score(held_out.z_mean, held_out.z_log_var)
        prior = estimate_prior(score[held_out.real], score[~held_out.real])
    pooled, share = _pool(train, bogus, prior)
    risk = NonNegativeRisk(share)
    batches = _Batches(pooled, seed=seed)

    def judge(scorer: Scorer) -> float:
        score, _ = scorer.score(held_out.z_mean, held_out.z_log_var)
        return positive_unlabelled_loss(score, held_out.real, prior, balanced=True)

    scorer, history = fit_network(
        pooled,
        section,
        data={"x": batches},
        loss=risk,
        judge=judge,
        seed=seed,
        report=report,
        metrics=(risk.corrected,),
    )
    calibrated = calibrate_positive_unlabelled(scorer, held_out, prior)
    return PositiveUnlabelledFit(calibrated, prior, section.prior is None, float(np.mean(history["corrected"])))


def estimate_prior(
    positive_score: Array, unlabelled_score: Array, *, confidence: float = 0.9, gamma: float = 0.01
) -> float:
    """Estimate the share of real stamps among the unlabelled from scores of any classifier of one against the other.

    Above a threshold lie a share q_p of the real stamps and q_u of the unlabelled ones. Were there no bogus stamps
    above it, q_u / q_p would be the prior; with some it is larger. So the smallest ratio is the estimate, at the
    threshold where it is smallest after adding what chance can do to so few stamps. It is too high by the share of
    bogus stamps that no threshold leaves out.

    Parameters
    ----------
    positive_score, unlabelled_score : ndarray
        Held-out scores, high for real.
    confidence : float
        With which the ratio lies below its bound.
    gamma : float
        Of the bound, as in the paper.

    Returns
    -------
    float
        Between 0.001 and 0.95.

    References
    ----------
    Garg et al. 2021, algorithm 1.
    """
    thresholds = np.unique(positive_score)
    above_p = 1.0 - np.searchsorted(np.sort(positive_score), thresholds) / len(positive_score)
    above_u = 1.0 - np.searchsorted(np.sort(unlabelled_score), thresholds) / len(unlabelled_score)
    chance = sum(np.sqrt(np.log(4.0 / (1.0 - confidence)) / (2 * len(s))) for s in (positive_score, unlabelled_score))
    best = int(np.argmin((above_u + (1.0 + gamma) * chance) / above_p))
    return float(np.clip(above_u[best] / above_p[best], LEAST_PRIOR, LARGEST_PRIOR))


def positive_unlabelled_loss(
    probability: Array, real: NDArray[np.bool_], prior: float, *, balanced: bool = False, pseudo: float = 0.0
) -> float:
    """Non-negative estimate of the log loss that these scores would have, were all labels known.

    Parameters
    ----------
    probability : ndarray, shape (n,)
        Scores.
    real : ndarray of bool, shape (n,)
        Known to be real; the others are unlabelled.
    prior : float
        Share of real ones among the unlabelled.
    balanced : bool
        Let both classes weigh the same, in place of as they come among the unlabelled.
    pseudo : float
        Stamps of the other class to imagine among those of each, as Platt's targets do with one.

    Returns
    -------
    float
        In nats a stamp.
    """
    p = np.clip(probability.astype(np.float64), 1e-7, 1.0 - 1e-7)
    as_real, as_bogus = -np.log(p), -np.log1p(-p)
    flipped_p = pseudo / (real.sum() + 2 * pseudo) if pseudo else 0.0
    flipped_n = pseudo / ((1.0 - prior) * (~real).sum() + 2 * pseudo) if pseudo else 0.0
    of_real = (1.0 - flipped_p) * as_real + flipped_p * as_bogus
    of_bogus = (1.0 - flipped_n) * as_bogus + flipped_n * as_real
    negative = max(0.0, (of_bogus[~real].mean() - prior * of_bogus[real].mean()) / (1.0 - prior))
    weight = 0.5 if balanced else prior
    return float(weight * of_real[real].mean() + (1.0 - weight) * negative)


def calibrate_positive_unlabelled(scorer: Scorer, held_out: Posterior, prior: float) -> Scorer:
    """Scale and shift the logit so that the score is the chance of being real among the unlabelled.

    Parameters
    ----------
    scorer : Scorer
        Any.
    held_out : Posterior
        Real and unlabelled stamps that it was not trained on.
    prior : float
        Share of real ones among the unlabelled.

    Returns
    -------
    Scorer
        The same with another last layer.
    """
    logits = scorer.logits(held_out.z_mean, held_out.z_log_var).astype(np.float64)

    def cost(probability: Array) -> float:
        return positive_unlabelled_loss(probability, held_out.real, prior, pseudo=1.0)

    return rescale(scorer, logits, cost)


def measure_positive_unlabelled(score: Array, real: NDArray[np.bool_], prior: float) -> dict[str, Any]:
    """Compute what can be known of scores without a stamp that is known to be bogus.

    Parameters
    ----------
    score : ndarray, shape (n,)
        High for real.
    real : ndarray of bool, shape (n,)
        Known to be real; the others are unlabelled.
    prior : float
        Share of real ones among the unlabelled.

    Returns
    -------
    dict
        Plain numbers for JSON; the `auc` is the one of real against bogus if the prior is right.
    """
    against_unlabelled = roc_auc(score, real)
    return {
        "real": int(real.sum()),
        "unlabelled": int((~real).sum()),
        "auc_against_unlabelled": against_unlabelled,
        "auc": corrected_auc(against_unlabelled, prior),
        "log_loss": positive_unlabelled_loss(score, real, prior),
        "mean_unlabelled_score": float(score[~real].mean()),
    }


def corrected_auc(auc: float, prior: float) -> float:
    """AUC of real against bogus, from the one of real against unlabelled.

    Parameters
    ----------
    auc : float
        Real against unlabelled.
    prior : float
        Share of real ones among the unlabelled.

    Returns
    -------
    float
        Cut at 1, which chance can exceed.

    References
    ----------
    Menon et al. 2015, corollary 3.
    """
    return min(1.0, (auc - 0.5 * prior) / (1.0 - prior))


class NonNegativeRisk(keras.losses.Loss):
    """Logistic risk from real and unlabelled stamps, with Kiryo et al.'s step where its negative part is negative.

    Parameters
    ----------
    prior : float
        Share of real ones among the unlabelled.
    beta : float
        How far below zero the negative part may fall on a batch.
    gamma : float
        Size of the step against it.
    """

    def __init__(self, prior: float, *, beta: float = 0.0, gamma: float = 1.0) -> None:
        super().__init__(name="non_negative_risk")
        self._prior, self._beta, self._gamma = prior, beta, gamma

    def _parts(self, y_true: Any, logits: Any) -> tuple[Any, Any]:
        ops = keras.ops
        y_true = ops.cast(y_true, logits.dtype)

        def mean(values: Any, weights: Any) -> Any:
            return ops.sum(values * weights) / ops.maximum(ops.sum(weights), 1.0)

        as_real, as_bogus = ops.softplus(-logits), ops.softplus(logits)
        negative = mean(as_bogus, 1.0 - y_true) - self._prior * mean(as_bogus, y_true)
        return mean(as_real, y_true), negative / (1.0 - self._prior)

    def call(self, y_true: Any, logits: Any) -> Any:
        """Compute the loss of a batch whose gradient is the step to take.

        Parameters
        ----------
        y_true : tensor, shape (batch, 1)
            1 for real, 0 for unlabelled.
        logits : tensor, shape (batch, 1)
            Of being real.

        Returns
        -------
        tensor, shape ()
            Both classes weigh the same in it.
        """
        positive, negative = self._parts(y_true, logits)
        forward = 0.5 * positive + 0.5 * negative
        return keras.ops.where(negative >= -self._beta, forward, -self._gamma * 0.5 * negative)

    @property
    def corrected(self) -> Callable[[Any, Any], Any]:
        """Metric: whether the step went against the negative part."""

        def corrected(y_true: Any, logits: Any) -> Any:
            return keras.ops.cast(self._parts(y_true, logits)[1] < -self._beta, "float32")

        return corrected


class _Batches(keras.utils.PyDataset):
    """Batches with both kinds in each: all unlabelled stamps once an epoch, real ones as often as it takes."""

    def __init__(self, part: Posterior, *, seed: int) -> None:
        super().__init__()
        self._part = part
        self._random = np.random.default_rng(seed)
        self._real, self._rest = np.flatnonzero(part.real), np.flatnonzero(~part.real)
        self._size = min(128, max(16, len(self._rest) // 8))
        self.on_epoch_end()

    def __len__(self) -> int:
        return max(1, len(self._rest) // self._size)

    def __getitem__(self, index: int) -> tuple[Any, NDArray[np.float32]]:
        some = slice(index * self._size, (index + 1) * self._size)
        real, rest = self._drawn[some], self._order[some]
        rows = np.concatenate([real, rest])
        target = (np.arange(len(rows)) < len(real)).astype(np.float32)[:, np.newaxis]
        return (self._part.z_mean[rows], self._part.z_log_var[rows]), target

    def on_epoch_end(self) -> None:
        """Shuffle anew."""
        self._order = self._random.permutation(self._rest)
        rounds = -(-len(self._order) // len(self._real))
        self._drawn = np.concatenate([self._random.permutation(self._real) for _ in range(rounds)])


def _pool(train: Posterior, bogus: Posterior | None, prior: float) -> tuple[Posterior, float]:
    """Let known bogus stamps join the unlabelled: the pool, and the share of real ones in it."""
    if bogus is None or len(bogus.real) == 0:
        return train, prior
    unlabelled = int((~train.real).sum())
    pooled = Posterior(
        np.concatenate([train.z_mean, bogus.z_mean]),
        np.concatenate([train.z_log_var, bogus.z_log_var]),
        np.concatenate([train.real, np.zeros(len(bogus.real), np.bool_)]),
    )
    return pooled, prior * unlabelled / (unlabelled + len(bogus.real))


def check_labels(real: int, unlabelled: int, name: str) -> None:
    """Refuse data from which nothing positive-unlabelled can be learned.

    Parameters
    ----------
    real, unlabelled : int
        How many stamps there are of each.
    name : str
        Of the data.

    Raises
    ------
    ConfigError
        If there are none of a kind.
    """
    if not real or not unlabelled:
        raise ConfigError(
            f"{name} has {real} stamps labelled real and {unlabelled} unlabelled ones; scorer.positive_unlabelled "
            "needs both.",
            remedy="Label real stamps 1 and unlabelled ones -1, or set scorer.positive_unlabelled = false.",
        )
