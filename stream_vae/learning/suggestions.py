"""Stamps of the reservoir that are worth a person's look: drawn, encoded with the served release, ranked.

`stream_vae.learning.suggest` has the ranking. What it needs to know of a label comes from the labels that the
reservoir has, where there are enough of them, and else from the release's own scorer.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_vae.alert import Codes, FloatArray, Scores
from stream_vae.errors import ConfigError
from stream_vae.labels.label import BOGUS, REAL, Provenance
from stream_vae.learning.suggest import (
    LEAST_OF_A_CLASS,
    Uncertainty,
    choose,
    draw_codes,
    fit_probe,
    from_moments,
    nothing_known,
    uncertainty,
)
from stream_vae.model.release import Release
from stream_vae.reservoir import Reservoir
from stream_vae.sample import Sample
from stream_vae.sampling import held_out
from stream_vae.stages.encode import Encoder
from stream_vae.stages.score import Scorer

MOST_STAMPS = 100_000
"""Drawn at most, 180 MB of stamps and all that a reservoir of the default size holds."""
HELD_OUT_MOST = 0.3
"""Of the suggestions: those that no training sees sharpen the gates, the others the model."""
_AT_A_TIME = 2048
_DRAWS = 32
_DISTRUSTED = frozenset((str(Provenance.SIMULATION), str(Provenance.CLASSIFIER)))
"""A probe that learned from a classifier's labels would be unsure where that one is."""


class Suggestion(NamedTuple):
    """A stamp to label."""

    alert_id: str
    stamp: FloatArray
    """(size, size, channels), scaled."""
    real_score: float
    real_score_std: float
    """By the release's scorer; NaN where it has none."""
    novelty: float
    entropy: float
    """Of the label, in nats."""
    information: float
    """What of the entropy knowing more would take away, in nats."""
    held_out: bool
    """No training sees it: its label serves to judge releases."""
    band: str
    stratum: str

    def document(self) -> dict[str, Any]:
        """Give plain values for JSON.

        Returns
        -------
        dict
            All but the stamp; None for NaN.
        """
        document = self._asdict()
        del document["stamp"]
        return {name: None if value != value else value for name, value in document.items()}  # noqa: PLR0124 - NaN


class Suggestions(NamedTuple):
    """What is worth a look, best first."""

    items: tuple[Suggestion, ...]
    release: str
    looked_at: int
    """Stamps without a label that can be scored."""
    labelled: int
    """Stamps with one."""
    judge: str
    """What told the uncertainty: `scorer`, `probe` on the labels, or `nothing`."""


def suggest(reservoir: Reservoir, release: Release, count: int, random: np.random.Generator) -> Suggestions:
    """Find the stamps whose labels would teach most.

    Parameters
    ----------
    reservoir : Reservoir
        Only read.
    release : Release
        The one that is served.
    count : int
        How many to suggest.
    random : numpy.random.Generator
        The same state and the same reservoir give the same suggestions.

    Returns
    -------
    Suggestions
        Fewer than `count` where there are no more; at most `HELD_OUT_MOST` of them held out.

    Raises
    ------
    ConfigError
        If Redis does not answer, the reservoir is empty or prepared for another kind of release, or all is labelled.
    """
    sample = reservoir.draw(MOST_STAMPS, random, preprocessing=release.card.preprocessing)
    codes, scores = encoded(release, sample)
    known = _finite(codes.z_mean)
    given: NDArray[np.bool_] = np.array(sample.provenances, np.str_) != ""
    candidates = np.flatnonzero(known & ~given)
    if not len(candidates):
        raise ConfigError(
            f"Each of the {len(sample.stamps):,} stamps in the reservoir of {reservoir.survey} has a label.",
            remedy="Let workers bring more alerts.",
        )
    trusted = given & ~np.isin(np.array(sample.provenances, np.str_), list(_DISTRUSTED))
    labels = np.where(trusted & known, sample.labels, -1)
    found, judge = judged(codes, scores, labels, candidates, known, random)
    apart = held_out(reservoir.survey, sample.alert_ids)
    z = standardised(codes.z_mean.astype(np.float64), known)
    # Where nothing tells what is uncertain, what is unlike all that the release was trained on goes first.
    value = scores.novelty[candidates].astype(np.float64) if judge == "nothing" else found.entropy
    chosen = choose(
        z[candidates],
        value,
        count,
        limited=apart[candidates],
        most_limited=int(HELD_OUT_MOST * count),
    )
    items = tuple(_suggestion(sample, scores, apart, found, int(candidates[row]), int(row)) for row in chosen)
    return Suggestions(items, release.id, len(candidates), int(given.sum()), judge)


def encoded(release: Release, sample: Sample) -> tuple[Codes, Scores]:
    """Encode and score stamps as serving does.

    Parameters
    ----------
    release : Release
        Verified.
    sample : Sample
        Prepared for it.

    Returns
    -------
    codes, scores : Codes, Scores
        One row a stamp; NaN where the encoder's output is not finite.
    """
    encoder, scorer = Encoder(release), Scorer(release)
    parts = []
    for start in range(0, len(sample.stamps), _AT_A_TIME):
        codes = encoder.run(sample.stamps[start : start + _AT_A_TIME])
        good = _finite(codes.z_mean) & _finite(codes.z_log_var)
        codes = Codes(*(np.where(good[:, np.newaxis], each, np.float32(np.nan)) for each in codes))
        parts.append((codes, scorer.score(codes)))
    all_codes = Codes(*(np.concatenate(column) for column in zip(*(codes for codes, _ in parts), strict=True)))
    return all_codes, Scores(*(np.concatenate(column) for column in zip(*(scores for _, scores in parts), strict=True)))


def judged(
    codes: Codes,
    scores: Scores,
    labels: NDArray[np.int8],
    candidates: NDArray[np.intp],
    known: NDArray[np.bool_],
    random: np.random.Generator,
) -> tuple[Uncertainty, str]:
    """Tell how uncertain the labels of candidates are.

    Parameters
    ----------
    codes : Codes
        Of all stamps.
    scores : Scores
        By the release.
    labels : ndarray of int8, shape (n,)
        1 and 0 where a label is known and trusted, -1 elsewhere.
    candidates : ndarray of int
        Rows without a label.
    known : ndarray of bool, shape (n,)
        Whether a stamp has a code.
    random : numpy.random.Generator
        Of the draws.

    Returns
    -------
    uncertainty : Uncertainty
        One row a candidate.
    judge : str
        What told it: `probe`, `scorer` or `nothing`.
    """
    real, bogus = np.flatnonzero(labels == REAL), np.flatnonzero(labels == BOGUS)
    if min(len(real), len(bogus)) >= LEAST_OF_A_CLASS:
        rows = np.concatenate([real, bogus])
        z_mean, z_log_var = codes.z_mean.astype(np.float64), codes.z_log_var.astype(np.float64)
        probe = fit_probe(z_mean[known], z_mean[rows], labels[rows] == REAL)
        weights = probe.draw(_DRAWS, random)
        parts = []
        for start in range(0, len(candidates), _AT_A_TIME):
            some = candidates[start : start + _AT_A_TIME]
            parts.append(probe.probabilities(draw_codes(z_mean[some], z_log_var[some], _DRAWS, random), weights))
        return uncertainty(np.concatenate(parts)), "probe"
    mean, std = scores.real_score[candidates], scores.real_score_std[candidates]
    if np.isnan(mean).all():
        return nothing_known(len(candidates)), "nothing"
    return from_moments(mean.astype(np.float64), std.astype(np.float64)), "scorer"


def standardised(z_mean: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give every unit of the latent space the same weight in distances.

    Parameters
    ----------
    z_mean : ndarray, shape (n, k)
        Codes.
    known : ndarray of bool, shape (n,)
        Which to take mean and spread from.

    Returns
    -------
    ndarray, shape (n, k)
        With mean 0 and variance 1.
    """
    standard: NDArray[np.float64] = (z_mean - z_mean[known].mean(axis=0)) / (z_mean[known].std(axis=0) + 1e-6)
    return standard


def _finite(codes: FloatArray) -> NDArray[np.bool_]:
    rows: NDArray[np.bool_] = np.asarray(np.isfinite(codes).all(axis=1))
    return rows


def _suggestion(
    sample: Sample, scores: Scores, apart: NDArray[np.bool_], found: Uncertainty, at: int, row: int
) -> Suggestion:
    return Suggestion(
        alert_id=sample.alert_ids[at],
        stamp=sample.stamps[at],
        real_score=float(scores.real_score[at]),
        real_score_std=float(scores.real_score_std[at]),
        novelty=float(scores.novelty[at]),
        entropy=float(found.entropy[row]),
        information=float(found.information[row]),
        held_out=bool(apart[at]),
        band=sample.bands[at],
        stratum=sample.strata[at],
    )
