"""Narrow the simulator down to a user's instrument, from the user's unlabelled stamps alone."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from stream_vae.sky.conditions import FADING, Conditions
from stream_vae.sky.likeness import Floats, Judge, Likeness, odds, stamp_statistics
from stream_vae.sky.parallel import map_in_order
from stream_vae.sky.psf import Image
from stream_vae.sky.simulate import draw_pair_conditions, simulate_pair

LEAST_STAMPS = 50
"""Fewer say too little about an instrument."""

_ROUNDS = 5
_PAIRS = 80
"""Image pairs of each round: about 2,000 stamps."""
_KEPT = 10
"""Pairs whose conditions the next round is drawn near: few, as an instrument's conditions are much alike."""

_MOST_STAMPS = 5000
"""Of the user's at most so many are looked at."""

_NEGATIVE_SHARE = 0.1
"""A larger share of stamps with a negative peak is of a pipeline that looks for such; dipoles give some percent."""

_MOST_ODDS = 5.0
"""A stamp counts for its pair by no more than this, so that no pair is kept for one odd stamp."""

_STEPS = 64
"""Of each statistic, equally filled: trees see nothing finer."""

_CEILING_PERCENTILE = 98.0
"""Stamps with odds above this percentile of the last round's always pass: about one stamp in ten does then."""


def match(stamps: Image, *, seed: int = 0, workers: int = 1) -> Likeness:
    """Find what to simulate so that it looks like some stamps.

    Five rounds: simulate image pairs, fit a judge that tells their stamps from the user's, and draw the next round's
    conditions near those whose stamps the judge took for the user's. No labels are used, and none are implied: the
    share of real ones among what is simulated becomes more like that among the user's stamps. Fading sources are
    simulated if more than a tenth of the stamps have a negative peak.

    Parameters
    ----------
    stamps : ndarray, (n, size, size) or (n, size, size, channels)
        The user's, at least 50, NaN where masked. The first channel is the difference; no other counts.
    seed : int
        Fixes everything.
    workers : int
        Processes; they change nothing in the result.

    Returns
    -------
    Likeness
        For `simulate_stamps`.

    Raises
    ------
    ValueError
        The stamps are too few, not square with odd sides, or without any finite pixel.

    Notes
    -----
    Stamps are compared after they are scaled, and only by statistics that `stamp_statistics` lists. Judge the result
    on stamps of another image than those that were matched.
    """
    own = _checked(stamps)
    fading = FADING if _negative_share(own) > _NEGATIVE_SHARE else 0.0
    rng = np.random.default_rng((seed, 0x11CE))
    own = own[np.sort(rng.permutation(len(own))[:_MOST_STAMPS])]
    like: Likeness | None = None
    for turn in range(_ROUNDS):
        like = _narrowed(own, seed * 1_000 + 997 * (turn + 1), like, fading, workers)
    assert like is not None, "there is at least one round"
    return like


def _checked(stamps: Image) -> Image:
    difference = stamps[..., 0] if stamps.ndim == 4 else stamps
    if difference.ndim != 3 or difference.shape[1] != difference.shape[2] or difference.shape[1] % 2 == 0:
        raise ValueError(f"stamps must be (n, size, size) with size odd, not {stamps.shape}")
    usable: Image = difference[np.isfinite(difference).any(axis=(1, 2))].astype(np.float32)
    if len(usable) < LEAST_STAMPS:
        raise ValueError(f"at least {LEAST_STAMPS} stamps with data must be given, not {len(usable)}")
    return usable


def _negative_share(own: Image) -> float:
    """Share of the stamps whose most deviant pixel within two of the centre is a negative one."""
    middle, half = own.shape[1] // 2, min(own.shape[1] // 2, 2)
    off = own - np.nanmedian(own, axis=(1, 2), keepdims=True)
    centre = off[:, middle - half : middle + half + 1, middle - half : middle + half + 1].reshape(len(own), -1)
    centre = np.nan_to_num(centre)
    return float(np.mean(centre.max(axis=1) < -centre.min(axis=1)))


def _narrowed(own: Image, seed: int, like: Likeness | None, fading: float, workers: int) -> Likeness:
    size = own.shape[1]
    # Stamps that the last judge turned down are kept: the new one has to know them too.
    proposals = None if like is None else Likeness(like.conditions, like.weights, like.judge, 0.0)
    pairs = list(map_in_order(partial(simulate_pair, seed, size, proposals, fading=fading), range(_PAIRS), workers))
    simulated = np.concatenate([pair.stamps[..., 0] for pair in pairs])
    pair_of = np.repeat(np.arange(_PAIRS), [len(pair) for pair in pairs])
    half = pair_of % 2 == 0  # a judge would recognise stamps that it was fitted on
    taken = np.empty(len(simulated))
    for part in (half, ~half):
        taken[~part] = odds(_fit_judge(simulated[part], own), simulated[~part])
    conditions, weights = _best(
        seed, proposals, fading, np.bincount(pair_of, np.minimum(taken, _MOST_ODDS), _PAIRS).astype(np.float64)
    )
    judge = _fit_judge(simulated, own)
    return Likeness(conditions, weights, judge, float(np.percentile(taken, _CEILING_PERCENTILE)))


def _best(
    seed: int, like: Likeness | None, fading: float, score: npt.NDArray[np.float64]
) -> tuple[tuple[Conditions, ...], npt.NDArray[np.float64]]:
    """The conditions of the best pairs, by how many of their stamps pass for the user's."""
    best = np.argsort(-score, kind="stable")[:_KEPT]
    conditions = tuple(draw_pair_conditions(np.random.default_rng((seed, int(pair))), like, fading) for pair in best)
    return conditions, score[best] / score[best].sum()


@dataclass(frozen=True)
class _OfSteps:
    """A judge of rounded statistics: of others scikit-learn takes weighted quantiles one by one, which is slow."""

    edges: Floats
    """(statistics, steps - 1)"""
    judge: Judge

    def predict_proba(self, statistics: Floats) -> Floats:
        """Give the probabilities of both classes, as `Judge` has it."""
        return self.judge.predict_proba(_steps(statistics, self.edges))


def _steps(statistics: Floats, edges: Floats) -> Floats:
    columns = zip(edges, statistics.T, strict=True)
    return np.stack([np.searchsorted(edge, column) for edge, column in columns], axis=1).astype(np.float64)


def _fit_judge(simulated: Image, own: Image) -> Judge:
    from sklearn.ensemble import HistGradientBoostingClassifier

    statistics = np.concatenate([stamp_statistics(simulated), stamp_statistics(own)])
    edges = np.quantile(statistics, np.arange(1, _STEPS) / _STEPS, axis=0).T
    is_own = np.repeat([0, 1], [len(simulated), len(own)])
    weight = np.where(is_own, 1.0 / len(own), 1.0 / len(simulated)) * len(own)
    judge = HistGradientBoostingClassifier(
        max_iter=60,
        max_leaf_nodes=8,
        max_bins=_STEPS,
        min_samples_leaf=20,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=0,
    )
    return _OfSteps(edges, judge.fit(_steps(statistics, edges), is_own, sample_weight=weight))
