"""How good a classifier few labels make of a representation: the figure that decides between representations.

A logistic probe on standardised codes is shown some labels and ranks the test stamps; again for other draws of the
labels. Codes are standardised over all training stamps, labelled or not. With the same seed and training labels,
every representation is shown the same stamps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.measures import roc_auc
from stream_vae.learning.measures.scores import check_scores
from stream_vae.learning.representation import Array, sampled

Flags = NDArray[np.bool_]
COUNTS = (50, 100, 200, 500, 1000)
BOOTSTRAPS = 200


class FewLabels(NamedTuple):
    """What one number of labels gives."""

    labels: int
    """Asked for."""
    real: int
    bogus: int
    """Taken of each class: half, or all of the rarer class and the rest of the other."""
    mean: float
    """AUC over draws of the labels."""
    std: float
    """Of the AUC over draws of the labels."""
    low: float
    high: float
    """95% bootstrap interval of the mean, over draws of the labels and test stamps of each class at once."""
    aucs: tuple[float, ...]
    """One a draw."""


def curve(
    z_train: Array,
    real_train: Flags,
    z_test: Array,
    real_test: Flags,
    *,
    counts: Sequence[int] = COUNTS,
    draws: int = 20,
    seed: int = 1,
    train_log_var: Array | None = None,
    test_log_var: Array | None = None,
) -> list[FewLabels]:
    """Measure the AUC on test stamps against the number of labels shown.

    Parameters
    ----------
    z_train : ndarray, shape (n, k)
        Codes of the stamps that labels are drawn from; posterior means, where there are posteriors.
    real_train : ndarray of bool, shape (n,)
        Their truth.
    z_test : ndarray, shape (m, k)
        Codes of stamps of other images.
    real_test : ndarray of bool, shape (m,)
        Their truth.
    counts : sequence of int
        How many labels to show.
    draws : int
        How often to draw them.
    seed : int
        Of the draws.
    train_log_var, test_log_var : ndarray, shape (n, k) and (m, k), optional
        The posteriors' log-variances: with them every draw of labels takes new codes from the posteriors, in training
        and in the test, and what the means alone tell by ever so little is lost in the noise.

    Returns
    -------
    list of FewLabels
        In the order of `counts`.

    Raises
    ------
    ConfigError
        If there are fewer labels than asked for, one class only, or codes that are not finite.
    """
    _check(z_train, real_train, z_test, real_test)
    found = []
    for count in counts:
        taken = _halves(real_train, count)
        scores = np.empty((draws, len(z_test)))
        for draw in range(draws):
            random = np.random.default_rng((seed, count, draw))
            rows = np.concatenate(
                [random.choice(np.flatnonzero(real_train == kind), taken[kind], replace=False) for kind in taken]
            )
            # Training and test draws apart: a posterior's noise must not be the same on both.
            train = sampled(z_train, train_log_var, seed=2 * draw)
            test = sampled(z_test, test_log_var, seed=2 * draw + 1)
            scores[draw] = _probe(train, rows, real_train[rows], test)
        aucs = [roc_auc(score, real_test) for score in scores]
        low, high = _interval(scores, real_test, np.random.default_rng((seed, count)))
        spread = float(np.std(aucs))
        found.append(FewLabels(count, taken[True], taken[False], float(np.mean(aucs)), spread, low, high, tuple(aucs)))
    return found


def _check(z_train: Array, real_train: Flags, z_test: Array, real_test: Flags) -> None:
    for name, codes, real in (("training", z_train, real_train), ("test", z_test, real_test)):
        if len(codes) != len(real):
            raise ConfigError(f"{len(codes)} {name} codes have {len(real)} labels.", remedy="Give one label a code.")
        if not np.isfinite(codes).all():
            raise ConfigError(
                f"Some {name} codes are not finite.", remedy="Leave out the stamps that cannot be scored."
            )
        check_scores(np.zeros(len(real)), real)


def _halves(real: Flags, count: int) -> dict[bool, int]:
    """Labels of each class: half, or all of the rarer one and the rest of the other."""
    if not 2 <= count <= len(real):
        raise ConfigError(
            f"{count} labels cannot be drawn: there are {len(real)}, and both classes need one.",
            remedy=f"Ask for 2 to {len(real)} labels, or give more labelled stamps.",
        )
    available = {True: int(real.sum()), False: int((~real).sum())}
    rarer = available[True] < available[False]
    of_rarer = min(count // 2, available[rarer])
    return {rarer: of_rarer, not rarer: count - of_rarer}


def _probe(train: Array, rows: NDArray[np.intp], real: Flags, test: Array) -> NDArray[np.float64]:
    from sklearn.linear_model import LogisticRegression

    centre, spread = train.mean(axis=0), train.std(axis=0) + 1e-6
    # A matrix product of finite numbers was seen to raise the processor's flag for an invalid operation all the same,
    # once in many runs: what lies beside an array in memory was looked at. The result tells whether it was one.
    with np.errstate(invalid="ignore"):
        probe = LogisticRegression(max_iter=1000).fit((train[rows] - centre) / spread, real)
        score = probe.decision_function((test - centre) / spread)
    if not np.isfinite(score).all():
        raise ConfigError("A probe's scores are not finite.", remedy="Look for codes that are not finite.")
    return cast("NDArray[np.float64]", score)


def _interval(scores: NDArray[np.float64], real: Flags, random: np.random.Generator) -> tuple[float, float]:
    """Interval of the mean AUC over draws of labels and of test stamps."""
    ranked = [np.unique(score, return_inverse=True)[1] for score in scores]
    means = []
    for _ in range(BOOTSTRAPS):
        weight = np.zeros(len(real))
        for kind in (True, False):
            rows = np.flatnonzero(real == kind)
            weight[rows] = np.bincount(random.integers(0, len(rows), len(rows)), minlength=len(rows))
        chosen = random.integers(0, len(scores), len(scores))
        means.append(np.mean([_weighted_auc(ranked[draw], real, weight) for draw in chosen]))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _weighted_auc(ranks: NDArray[np.intp], real: Flags, weight: NDArray[Any]) -> float:
    above = np.bincount(ranks, weight * real)
    below = np.bincount(ranks, weight * ~real)
    return float((above * (np.cumsum(below) - 0.5 * below)).sum() / (above.sum() * below.sum()))
