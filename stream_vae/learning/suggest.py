"""Which stamps to label next: those whose labels would teach most, and not ten times the same.

How much a label would teach is told by what is not known of it: the probability of being real under many draws of
the stamp's code (from its posterior) and, once there are enough labels, of the weights of a logistic probe that learned
from these. Of stamps that are nearly alike one is chosen. No Redis, Kafka or ONNX here.

References
----------
Settles 2009, Active learning literature survey (uncertainty sampling, and why batches need diversity); Houlsby et al.
2011 (BALD: the mutual information between a label and what is not known). Choosing for distance, as greedy k-center
selection (Sener & Savarese 2018) and BADGE (Ash et al. 2020) do, was tried: it needed more labels (training/LOG.md).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

LEAST_OF_A_CLASS = 5
"""Labels of each class from which on a probe tells what is uncertain. Measured so (training/LOG.md): the first ten or
twenty that it chooses teach no more than chance, later ones do."""
APART = 0.5
"""Of the latent space's typical distance from its middle: what lies nearer to a stamp that was chosen counts less. No
reward for lying farther: that chose outliers, which cost dozens of labels."""
_NEWTON_STEPS = 30


class Uncertainty(NamedTuple):
    """What is not known of a stamp's label, each array of shape (n,)."""

    mean: Floats
    """Expected probability of being real."""
    std: Floats
    """Of the probability, over the draws."""
    entropy: Floats
    """Of the label, in nats: ln 2 where nothing is known."""
    information: Floats
    """Mutual information of the label and the draw, in nats: what of the entropy knowing more would take away."""


def uncertainty(probability: Floats) -> Uncertainty:
    """Tell how uncertain labels are.

    Parameters
    ----------
    probability : ndarray, shape (n, draws)
        Of being real, under each draw.

    Returns
    -------
    Uncertainty
        One row a stamp; the information is never below zero.
    """
    probability = np.asarray(probability, np.float64)
    mean = probability.mean(axis=1)
    entropy = _entropy(mean)
    information = np.maximum(entropy - _entropy(probability).mean(axis=1), 0.0)
    return Uncertainty(mean, probability.std(axis=1), entropy, information)


def from_moments(mean: Floats, std: Floats) -> Uncertainty:
    """Tell how uncertain labels are whose probability is known by mean and standard deviation alone.

    Parameters
    ----------
    mean, std : ndarray, shape (n,)
        Of the probability of being real, as a release's scorer gives them over the posterior of the code.

    Returns
    -------
    Uncertainty
        The information is that of a Beta distribution with these moments; zero where the deviation is. Rows of NaN
        have the entropy of a coin, and no information.
    """
    known = np.isfinite(mean) & np.isfinite(std)
    mean = np.clip(np.where(known, mean, 0.5), 1e-6, 1.0 - 1e-6)
    variance = np.square(np.where(known, std, 0.0))
    # Of all distributions with this mean the widest has the variance m (1 - m): rounding must not go beyond.
    count = mean * (1.0 - mean) / np.maximum(variance, 1e-12) - 1.0
    count = np.maximum(count, 1e-6)
    a, b = mean * count, (1.0 - mean) * count
    expected = _digamma(count + 1.0) - mean * _digamma(a + 1.0) - (1.0 - mean) * _digamma(b + 1.0)
    entropy = _entropy(mean)
    return Uncertainty(mean, np.sqrt(variance), entropy, np.clip(entropy - expected, 0.0, entropy))


def nothing_known(count: int) -> Uncertainty:
    """Tell of stamps of which no scorer says anything: all are alike, and something else must decide.

    Parameters
    ----------
    count : int
        How many.

    Returns
    -------
    Uncertainty
        Of a coin each.
    """
    half = np.full(count, 0.5)
    return Uncertainty(half, np.zeros(count), _entropy(half), np.zeros(count))


def draw_codes(z_mean: Floats, z_log_var: Floats, draws: int, random: np.random.Generator) -> Floats:
    """Draw codes from posteriors.

    Parameters
    ----------
    z_mean, z_log_var : ndarray, shape (n, k)
        The encoder's two heads.
    draws : int
        How many of each.
    random : numpy.random.Generator
        The same state gives the same codes.

    Returns
    -------
    ndarray, shape (n, draws, k)
        Float64.
    """
    noise = random.standard_normal((len(z_mean), draws, z_mean.shape[1]))
    codes: Floats = z_mean[:, np.newaxis] + np.exp(0.5 * z_log_var.astype(np.float64))[:, np.newaxis] * noise
    return codes


class Probe(NamedTuple):
    """A logistic regression on standardised codes that knows how sure it is of its weights."""

    center: Floats
    """(k,) of the codes."""
    spread: Floats
    """(k,) of the codes."""
    weights: Floats
    """(k + 1,), the last one the constant: the most probable ones."""
    factor: Floats
    """(k + 1, k + 1): times its transpose the covariance of the weights (Laplace's approximation)."""

    def draw(self, draws: int, random: np.random.Generator) -> Floats:
        """Draw weights.

        Parameters
        ----------
        draws : int
            How many of each.
        random : numpy.random.Generator
            The same state gives the same weights.

        Returns
        -------
        ndarray, shape (draws, k + 1)
            About the most probable ones.
        """
        weights: Floats = self.weights + random.standard_normal((draws, len(self.weights))) @ self.factor.T
        return weights

    def probabilities(self, codes: Floats, weights: Floats) -> Floats:
        """Give the probability of being real under draws of codes and weights.

        Parameters
        ----------
        codes : ndarray, shape (n, draws, k)
            From `draw_codes`.
        weights : ndarray, shape (draws, k + 1)
            From `draw`: each draw of a code meets one of the weights.

        Returns
        -------
        ndarray, shape (n, draws)
            The weights of one draw are the same for all stamps.
        """
        standard = (codes - self.center) / self.spread
        return _sigmoid(np.einsum("ndk,dk->nd", standard, weights[:, :-1]) + weights[:, -1])


def fit_probe(z_all: Floats, z_labelled: Floats, real: NDArray[np.bool_], *, precision: float = 1.0) -> Probe:
    """Fit a logistic regression with a Gaussian prior by Newton's method.

    Parameters
    ----------
    z_all : ndarray, shape (n, k)
        All codes, labelled or not: they say how codes are spread.
    z_labelled : ndarray, shape (m, k)
        Posterior means of the labelled stamps.
    real : ndarray of bool, shape (m,)
        Their labels.
    precision : float
        Of the prior of each weight of a standardised code; the constant has none to speak of.

    Returns
    -------
    Probe
        The most probable weights, and their covariance there.
    """
    center, spread = z_all.mean(axis=0, dtype=np.float64), z_all.std(axis=0, dtype=np.float64) + 1e-6
    table = np.column_stack([(z_labelled - center) / spread, np.ones(len(z_labelled))])
    prior = np.full(table.shape[1], precision)
    prior[-1] = 1e-3 * precision
    weights = np.zeros(table.shape[1])
    for _ in range(_NEWTON_STEPS):
        probability = _sigmoid(table @ weights)
        gradient = table.T @ (probability - real) + prior * weights
        step = np.linalg.solve(_curvature(table, probability, prior), gradient)
        # A step of more than a few units overshoots where classes are far apart; the problem is convex.
        weights -= step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    covariance = np.linalg.inv(_curvature(table, _sigmoid(table @ weights), prior))
    return Probe(center, spread, weights, np.linalg.cholesky(covariance))


def choose(
    z_mean: Floats,
    value: Floats,
    count: int,
    *,
    limited: NDArray[np.bool_] | None = None,
    most_limited: int = 0,
) -> Rows:
    """Choose stamps one after the other, each of most value, less what it shares with one chosen before.

    Parameters
    ----------
    z_mean : ndarray, shape (n, k)
        Codes, standardised; all finite.
    value : ndarray, shape (n,)
        Not negative: what a label of this one alone would teach. It falls to nothing with the distance to the nearest
        one chosen, over `APART` of the square root of k, which is how far codes are from their middle.
    count : int
        How many.
    limited : ndarray of bool, shape (n,), optional
        Of these no more than `most_limited`.
    most_limited : int
        As said.

    Returns
    -------
    ndarray of int
        Rows, the best first; fewer than `count` where no more may be chosen.
    """
    free = np.ones(len(z_mean), bool)
    limited = np.zeros(len(z_mean), bool) if limited is None else limited
    share = np.ones(len(z_mean))
    reach = APART * np.sqrt(z_mean.shape[1])
    rows: list[int] = []
    while len(rows) < count:
        if limited[rows].sum() >= most_limited:
            free &= ~limited
        if not free.any():
            break
        rows.append(int(np.where(free, value * share, -1.0).argmax()))
        free[rows[-1]] = False
        share = np.minimum(share, np.linalg.norm(z_mean - z_mean[rows[-1]], axis=1) / reach)
    return np.array(rows, np.intp)


def _curvature(table: Floats, probability: Floats, prior: Floats) -> Floats:
    curvature: Floats = (table.T * (probability * (1.0 - probability))) @ table + np.diag(prior)
    return curvature


def _sigmoid(logit: Floats) -> Floats:
    value: Floats = 0.5 * (1.0 + np.tanh(0.5 * logit))
    return value


def _entropy(probability: Floats) -> Floats:
    p = np.clip(probability, 1e-12, 1.0 - 1e-12)
    value: Floats = -(p * np.log(p) + (1.0 - p) * np.log1p(-p))
    return value


def _digamma(x: Floats) -> Floats:
    """Derivative of ln gamma for x > 0: the recurrence up to 6 and beyond, then the asymptotic series (1e-8)."""
    shift = np.zeros_like(x)
    for _ in range(6):
        small = x < 6.0
        shift = np.where(small, shift - 1.0 / x, shift)
        x = np.where(small, x + 1.0, x)
    square = 1.0 / (x * x)
    series = square * (1.0 / 12.0 - square * (1.0 / 120.0 - square * (1.0 / 252.0 - square / 240.0)))
    value: Floats = shift + np.log(x) - 0.5 / x - series
    return value
