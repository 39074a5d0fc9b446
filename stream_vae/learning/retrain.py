"""Train anew on what the reservoir kept, and promote the result if it is no worse than what is served.

The rule, on held-out stamps that neither this training nor any later one sees (`stream_vae.sampling.held_out`):
the challenger's mean squared error of reconstruction is at most the incumbent's, and it has at least as many
active units. If not, it stays in the store unpromoted and the store's history says why.

Not here yet: a warm start and alignment, so a challenger has a latent space of its own; gates on scores,
calibration and latency; shadow scoring; a timer; a lock against a second retraining at the same time. The
strata beside the uniform one and the reservoir's labels are not used, so the scorer learns from simulated stamps.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stream_vae import assembly
from stream_vae.alert import FloatArray
from stream_vae.errors import ConfigError
from stream_vae.learning.compare import look
from stream_vae.learning.data.stamps import CHUNK, UNKNOWN, Chunk, StampSource
from stream_vae.learning.measures import active_units
from stream_vae.learning.recipe import Recipe, build_recipe, load_recipe
from stream_vae.model.reconstruct import DECODER
from stream_vae.model.release import Release, ReleaseCard
from stream_vae.model.store import ReleaseStore
from stream_vae.reservoir import LAYOUT, Reservoir, Sample
from stream_vae.sampling import HELD_OUT_SHARE, UNIFORM, held_out
from stream_vae.settings import Settings

LEAST_HELD_OUT = 64
"""Fewer stamps say little about which release is better."""
MOST_DRAWN = 200_000
"""Unless the recipe's data.max_stamps says otherwise: they are drawn into memory, 350 MB at 21x21."""
_STRATA = (UNIFORM,)
"""That are trained on."""


@dataclass(frozen=True)
class Figures:
    """What a release is judged by."""

    squared_error: float
    """Mean over stamps, summed over pixels."""
    active_units: int


@dataclass(frozen=True)
class Verdict:
    """What became of a retraining."""

    release: ReleaseCard
    incumbent: str
    promoted: bool
    reason: str
    held_out: int
    """Stamps that both were judged on."""
    challenger_figures: Figures
    incumbent_figures: Figures


@dataclass(frozen=True)
class _Parts:
    """A sample, parted by whether its alerts may be trained on."""

    train: Sample
    held_out: Sample


def retrain_now(
    settings: Settings, recipe: Recipe | str | None = None, *, promote: bool = True, progress: bool = True
) -> Verdict:
    """Draw stamps from the reservoir, train on them, judge the release and perhaps promote it.

    Parameters
    ----------
    settings : Settings
        ``survey``, ``[reservoir]`` and ``[release]``; the incumbent is the release that workers would load.
    recipe : Recipe or str, optional
        A recipe, a name or a file; absent: the incumbent's own.
    promote : bool
        Whether a release that is no worse gets served.
    progress : bool
        Show it.

    Returns
    -------
    Verdict
        The new release is in the store in any case.

    Raises
    ------
    ConfigError
        If there is no reservoir, no Redis, no incumbent, or there are too few stamps; nothing was trained then.
    RetriableError
        If the store cannot be reached.
    """
    store = ReleaseStore(settings.release.store)
    incumbent = store.load(settings.release.id)
    chosen = _recipe(recipe, incumbent)
    reservoir = assembly.reservoir_of(settings)
    try:
        sample = _draw(reservoir, chosen)
    finally:
        reservoir.close()
    parts = _part(sample, reservoir.survey, chosen)
    before = figures(incumbent, parts.held_out.stamps)

    from stream_vae.learning.train import train  # TensorFlow: only once it is known that there is work for it

    card = train(chosen, _source(parts, reservoir, incumbent), store, progress=progress)
    after = figures(store.load(card.id), parts.held_out.stamps)
    better, reason = judge(after, before)
    served = store.resolve(settings.release.id)
    if served != incumbent.id:
        better, reason = False, f"{served} was promoted meanwhile; judged against {incumbent.id}: {reason}"
    if better and promote:
        store.promote(card.id, reason=f"retrained: {reason}")
    else:
        kept_back = reason if promote else f"asked not to promote; {reason}"
        store.record("not_promoted", card.id, reason=kept_back, incumbent=incumbent.id)
    return Verdict(card, incumbent.id, better and promote, reason, len(parts.held_out.stamps), after, before)


def figures(release: Release, stamps: FloatArray) -> Figures:
    """Measure what a release is judged by, through its exported graphs.

    Parameters
    ----------
    release : Release
        Verified.
    stamps : ndarray, shape (n, size, size, channels)
        Scaled, prepared as the release wants them.

    Returns
    -------
    Figures
        On these stamps.

    Raises
    ------
    ConfigError
        If it cannot reconstruct.
    """
    view = look(release, stamps)
    if view.squared_error is None:
        raise ConfigError(
            f"Release {release.id} has no {DECODER}, so nothing can be compared with it.",
            remedy="Export the reservoir and train on the file: `stream-vae train --data FILE.npz --promote`.",
        )
    return Figures(float(view.squared_error.mean()), active_units(view.z_mean))


def judge(challenger: Figures, incumbent: Figures) -> tuple[bool, str]:
    """Apply the rule.

    Parameters
    ----------
    challenger, incumbent : Figures
        On the same stamps.

    Returns
    -------
    no_worse : bool
        In neither figure.
    reason : str
        Both figures of both.
    """
    error_fits = challenger.squared_error <= incumbent.squared_error
    units_fit = challenger.active_units >= incumbent.active_units
    reason = (
        f"squared error {challenger.squared_error:.4g} {'<=' if error_fits else '>'} {incumbent.squared_error:.4g}, "
        f"active units {challenger.active_units} {'>=' if units_fit else '<'} {incumbent.active_units}"
    )
    return error_fits and units_fit, reason


def _recipe(recipe: Recipe | str | None, incumbent: Release) -> Recipe:
    if recipe is None:
        chosen = build_recipe(incumbent.card.recipe)
    else:
        chosen = load_recipe(recipe) if isinstance(recipe, str) else recipe
    if chosen.preprocessing != incumbent.card.preprocessing:
        raise ConfigError(
            f"Recipe {chosen.name} prepares stamps differently ({chosen.preprocessing}) than {incumbent.id}, which is "
            f"served ({incumbent.card.preprocessing}).",
            remedy="Give a recipe with the same [preprocessing]; for another one train from alerts or exported stamps.",
        )
    return chosen


def _draw(reservoir: Reservoir, recipe: Recipe) -> Sample:
    most = MOST_DRAWN if recipe.data.max_stamps is None else recipe.data.max_stamps
    count = int(np.ceil(most / (1.0 - HELD_OUT_SHARE)))
    random = np.random.default_rng(recipe.seed)
    return reservoir.draw(count, random, preprocessing=recipe.preprocessing, strata=_STRATA)


def _part(sample: Sample, survey: str, recipe: Recipe) -> _Parts:
    apart = held_out(survey, sample.alert_ids)
    kept, least = int((~apart).sum()), recipe.data.min_stamps
    if kept < least or len(apart) - kept < LEAST_HELD_OUT:
        wanted = int(np.ceil(max(least / (1.0 - HELD_OUT_SHARE), LEAST_HELD_OUT / HELD_OUT_SHARE) * 1.1))
        raise ConfigError(
            f"The reservoir of {survey} holds {len(apart)} stamps, {kept} of them to train on; retraining needs "
            f"{least} of these and {LEAST_HELD_OUT} others, about {wanted} in all.",
            remedy="Let the workers score more alerts first; `stream-vae reservoir stats` tells how many there are.",
        )
    return _Parts(sample.rows(~apart), sample.rows(apart))


def _source(parts: _Parts, reservoir: Reservoir, incumbent: Release) -> StampSource:
    """Give the stamps as they are: they were scaled when they were scored."""
    stamps = parts.train.stamps

    def chunks() -> Iterator[Chunk]:
        for start in range(0, len(stamps), CHUNK):
            some = stamps[start : start + CHUNK]
            members = np.arange(start, start + len(some), dtype=np.int64)
            yield Chunk(some, np.zeros(len(some), np.uint32), np.full(len(some), UNKNOWN, np.int8), members)

    lineage = {
        "incumbent": incumbent.id,
        "reservoir": {
            "survey": reservoir.survey,
            "strata": list(_STRATA),
            "layout": LAYOUT,
            "drawn": len(stamps) + len(parts.held_out.stamps),
            "held_out": len(parts.held_out.stamps),
            "alert_ids_sha256": _digest(parts.train.alert_ids),
            "held_out_ids_sha256": _digest(parts.held_out.alert_ids),
        },
    }
    name = f"reservoir of {reservoir.survey}"
    return StampSource("reservoir", name, len(stamps), chunks, grouped=False, lineage=lineage)


def _digest(alert_ids: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(sorted(alert_ids)).encode()).hexdigest()
