"""Train on what the reservoir kept, judge the release, and see to what becomes of it.

One retraining: the survey's lock, a snapshot of the reservoir, a fit that goes on from the incumbent, a scorer fitted
and calibrated anew, the gates (`stream_vae.learning.gates`) and whether the latent space stays
(`stream_vae.learning.succession`). The verdict stands in the new release's card, which is in the store whatever it
says; then the release is promoted, put on trial or left. A share of all alerts (`stream_vae.sampling.held_out`) is
never trained on, in this retraining or in any other: those are what releases are judged on.

When to retrain is `stream_vae.learning.trainer`'s business.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stream_vae import assembly
from stream_vae.errors import ConfigError, FatalError
from stream_vae.learning import job as jobs
from stream_vae.learning.data.source import simulated
from stream_vae.learning.data.stamps import BOGUS, CHUNK, REAL, UNKNOWN, Chunk, StampSource, read_stamps
from stream_vae.learning.encode import EVALUATION_SEED
from stream_vae.learning.gates import LEAST_OF_A_CLASS, FrozenSet
from stream_vae.learning.job import Job
from stream_vae.learning.lock import Lease, locked
from stream_vae.learning.oversight import OURS
from stream_vae.learning.recipe import Recipe, build_recipe, load_recipe
from stream_vae.learning.succession import Succession, first_of_space
from stream_vae.model.reconstruct import DECODER
from stream_vae.model.release import KERAS, Release, ReleaseCard
from stream_vae.model.store import ReleaseStore
from stream_vae.quality import Quality
from stream_vae.reservoir import LAYOUT, Reservoir
from stream_vae.sample import Sample
from stream_vae.sampling import HELD_OUT_SHARE, STRATA, held_out
from stream_vae.settings import Settings

log = logging.getLogger(__name__)

LEAST_HELD_OUT = 64
"""Fewer stamps say little about which release is better."""
LEAST_LABELLED = 40
"""Of a class, to fit a scorer to: fewer, and simulated stamps teach it more."""
MOST_DRAWN = 200_000
"""Unless the recipe's data.max_stamps says otherwise: they are drawn into memory, 350 MB at 21x21."""
SIMULATED_TEST = 2000
"""Stamps of the frozen simulated set: the only labelled one where nobody labels."""
_NATURAL = ("recent", "uniform")
"""Strata that hold the survey's own mix: the others are of what is rare, known or chosen by people."""
LEAST_TYPICAL = 500
"""Recent stamps that the reference of drift and novelty is made of; with fewer, old ones join them."""

Fate = Literal["promoted", "on_trial", "not_promoted", "superseded"]


@dataclass(frozen=True)
class Retrained:
    """What became of a retraining."""

    release: ReleaseCard
    incumbent: str
    fate: Fate
    reason: str
    verdict: dict[str, Any]
    """Of the gates, as the card has it."""
    held_out: int
    """Stamps that both were judged on, simulated ones not counted."""
    resumed: bool = False
    labels: dict[str, int] = field(default_factory=dict)
    """That the reservoir gave for training, by what they say."""

    @property
    def promoted(self) -> bool:
        """Whether it is served now."""
        return self.fate == "promoted"

    def document(self) -> dict[str, Any]:
        """Give plain values.

        Returns
        -------
        dict
            The release by its id.
        """
        return {
            "release": self.release.id,
            "latent_space": self.release.latent_space,
            "incumbent": self.incumbent,
            "fate": self.fate,
            "promoted": self.promoted,
            "reason": self.reason,
            "verdict": self.verdict,
            "held_out": self.held_out,
            "resumed": self.resumed,
            "labels": self.labels,
            "data": self.release.data,
        }


def retrain_now(
    settings: Settings,
    recipe: Recipe | str | None = None,
    *,
    promote: bool = True,
    from_scratch: bool = False,
    trigger: str = "hand",
    progress: bool = True,
) -> Retrained:
    """Retrain once, in this process.

    Parameters
    ----------
    settings : Settings
        ``survey``, ``[reservoir]``, ``[release]`` and ``[retrain]``; the incumbent is the release that workers would
        load.
    recipe : Recipe or str, optional
        A recipe, a name or a file; absent: the incumbent's own.
    promote : bool
        Whether a release that passes all gates gets served or tried, as ``retrain.promotion`` says.
    from_scratch : bool
        Begin with random weights: the latent space is another one then.
    trigger : str
        What asked for it, for the card.
    progress : bool
        Show it.

    Returns
    -------
    Retrained
        The new release is in the store in any case.

    Raises
    ------
    ConfigError
        If there is no reservoir, no Redis, no incumbent, or there are too few stamps; nothing was trained then.
    RetriableError
        If the store cannot be reached, or another retraining of the survey runs.
    FatalError
        If the lock was lost meanwhile: the release is in the store and not served.
    """
    store = ReleaseStore(settings.release.store)
    incumbent = store.load(settings.release.id)
    chosen = _recipe(recipe, incumbent)
    section = settings.retrain
    with closing(assembly.reservoir_of(settings)) as reservoir:
        reservoir.seen()  # a Redis that does not answer, or holds another's keys, is told here, with the remedy
        with (
            locked(reservoir.client, reservoir.survey, expires_s=section.lock_s) as lease,
            jobs.opened(
                section.work,
                reservoir.survey,
                incumbent=incumbent.id,
                recipe=chosen,
                draw=lambda: _draw(reservoir, chosen),
            ) as job,
        ):
            return _retrain(
                settings, store, incumbent, chosen, job, lease, _How(promote, from_scratch, trigger, progress)
            )


@dataclass(frozen=True)
class _How:
    promote: bool
    from_scratch: bool
    trigger: str
    progress: bool


def _retrain(
    settings: Settings,
    store: ReleaseStore,
    incumbent: Release,
    recipe: Recipe,
    job: Job,
    lease: Lease,
    how: _How,
) -> Retrained:
    survey = assembly.profile_of(settings).name
    apart = held_out(survey, job.sample.alert_ids)
    train_part, judged = job.sample.rows(~apart), job.sample.rows(apart)
    natural = judged.within(*_NATURAL)
    _check_enough(survey, recipe, len(train_part.stamps), int(natural.sum()))
    _check_incumbent(incumbent, from_scratch=how.from_scratch)
    recipe, labels = _scorer_of(recipe, train_part)
    sets = _sets(recipe, judged.rows(natural), judged)
    succession = Succession(incumbent, sets, first_of_space(store, incumbent))

    from stream_vae.learning.train import train  # TensorFlow: only once it is known that there is work for it

    card = train(
        recipe,
        _source(survey, train_part, labels, job, incumbent, how.trigger),
        store,
        checkpoint=job.checkpoint,
        resume=job.checkpoint is not None,
        succession=succession,
        go_on=not how.from_scratch,
        progress=how.progress,
    )
    fate, reason = _settle(settings, store, card, incumbent.id, lease, promote=how.promote)
    counts = {"real": int((labels == REAL).sum()), "bogus": int((labels == BOGUS).sum())}
    verdict = card.metrics["verdict"]
    return Retrained(card, incumbent.id, fate, reason, verdict, int(natural.sum()), job.resumed, counts)


def _settle(
    settings: Settings, store: ReleaseStore, card: ReleaseCard, incumbent: str, lease: Lease, *, promote: bool
) -> tuple[Fate, str]:
    verdict = card.metrics["verdict"]
    reason = "; ".join(verdict["reasons"])
    if not lease.held():
        store.record("not_promoted", card.id, reason="the lock of its retraining was lost", incumbent=incumbent)
        raise FatalError(
            f"The lock of this retraining was lost before {card.id} could be promoted.",
            remedy="It is in the store: `stream-vae releases promote` serves it, if no other was trained meanwhile.",
        )
    served = store.resolve(settings.release.id)
    if served != incumbent:
        reason = f"{served} was promoted meanwhile; judged against {incumbent}: {reason}"
        store.record("not_promoted", card.id, reason=reason, incumbent=incumbent)
        return "superseded", reason
    way = settings.retrain.promotion if promote else "none"
    if verdict["decision"] == "reject" or way == "none":
        kept_back = reason if verdict["decision"] == "reject" or promote else f"asked not to promote; {reason}"
        store.record("not_promoted", card.id, reason=kept_back, incumbent=incumbent)
        return "not_promoted", reason
    if verdict["decision"] == "promote" and way == "direct":
        store.promote(card.id, reason=f"{OURS}{reason}")
        return "promoted", reason
    # What the gates could not decide is looked at unseen, whatever the way.
    mode: Literal["shadow", "canary"] = "canary" if way == "canary" and verdict["decision"] == "promote" else "shadow"
    store.challenge(card.id, mode=mode, share=settings.retrain.trial_share, reason=f"{OURS}{reason}")
    return "on_trial", reason


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


def _check_incumbent(incumbent: Release, *, from_scratch: bool) -> None:
    lacking = [name for name in (DECODER, *(() if from_scratch else (KERAS,))) if not incumbent.path(name)]
    if lacking:
        raise ConfigError(
            f"Release {incumbent.id} has no {' and no '.join(lacking)}, so no release can go on from it or be held "
            "against it.",
            remedy="Export the reservoir and train on the file: `stream-vae train --data FILE.npz --promote`"
            + (", or retrain with --from-scratch." if DECODER not in lacking else "."),
        )


def _draw(reservoir: Reservoir, recipe: Recipe) -> tuple[Sample, int]:
    most = MOST_DRAWN if recipe.data.max_stamps is None else recipe.data.max_stamps
    count = int(np.ceil(most / (1.0 - HELD_OUT_SHARE)))
    seen = reservoir.seen()
    sample = reservoir.draw(count, np.random.default_rng(recipe.seed), preprocessing=recipe.preprocessing)
    return sample, seen


def _check_enough(survey: str, recipe: Recipe, kept: int, apart: int) -> None:
    least = recipe.data.min_stamps
    if kept >= least and apart >= LEAST_HELD_OUT:
        return
    wanted = int(np.ceil(max(least / (1.0 - HELD_OUT_SHARE), LEAST_HELD_OUT / HELD_OUT_SHARE) * 1.1))
    raise ConfigError(
        f"The reservoir of {survey} holds {kept} stamps to train on and {apart} others to judge by; retraining needs "
        f"{least} of the first and {LEAST_HELD_OUT} of the second, about {wanted} in all.",
        remedy="Let the workers score more alerts first; `stream-vae reservoir stats` tells how many there are.",
    )


def _scorer_of(recipe: Recipe, sample: Sample) -> tuple[Recipe, NDArray[np.int8]]:
    """Choose what the scorer learns from: both labels, real against unlabelled, or simulated stamps."""
    real, bogus = (int((sample.labels == label).sum()) for label in (REAL, BOGUS))
    asked = recipe.scorer.positive_unlabelled
    labels = sample.labels
    if min(real, bogus) >= LEAST_LABELLED and not asked:
        learns = False
    elif real >= LEAST_LABELLED and (sample.labels == UNKNOWN).any():
        learns = True
        log.info("%d stamps are labelled real and %d bogus: the scorer learns from real and unlabelled.", real, bogus)
    else:
        learns = False
        labels = np.full(len(sample.labels), UNKNOWN, np.int8)
        if real or bogus:
            log.warning(
                "%d real and %d bogus labels are too few for a scorer (%d of real ones): it learns from simulated "
                "stamps, and what people labelled has no say yet.",
                *(real, bogus, LEAST_LABELLED),
            )
    scorer = recipe.scorer.model_copy(
        update={"positive_unlabelled": learns, "prior": recipe.scorer.prior if learns else None}
    )
    return recipe.model_copy(update={"scorer": scorer}), labels


def _sets(recipe: Recipe, natural: Sample, judged: Sample) -> tuple[FrozenSet, ...]:
    """What releases are judged on: strata apart, so that gain and forgetting are seen apart; labels; simulation."""
    sets = [FrozenSet("held out", natural.stamps, natural.labels)]
    recent = natural.within("recent")
    for name, chosen in (("recent", recent), ("older", ~recent)):
        if LEAST_HELD_OUT <= chosen.sum() < len(chosen):
            sets.append(FrozenSet(name, natural.stamps[chosen], natural.labels[chosen]))
    sets.append(_labelled(natural, judged) or _simulated(recipe))
    return tuple(sets)


def _labelled(natural: Sample, judged: Sample) -> FrozenSet | None:
    """Held-out stamps with labels; of real ones alone, against what nobody labelled; None if there are too few."""
    real, bogus = judged.labels == REAL, judged.labels == BOGUS
    if min(real.sum(), bogus.sum()) >= LEAST_OF_A_CLASS:
        return FrozenSet("labelled", judged.stamps[real | bogus], judged.labels[real | bogus], natural=False)
    others = natural.stamps[natural.labels != REAL]
    if min(real.sum(), len(others)) < LEAST_OF_A_CLASS:
        return None
    labels = np.repeat(np.array([REAL, BOGUS], np.int8), [int(real.sum()), len(others)])
    stamps = np.concatenate([judged.stamps[real], others])
    return FrozenSet("real against unlabelled", stamps, labels, natural=False, ranked=True)


def _simulated(recipe: Recipe) -> FrozenSet:
    source = simulated(SIMULATED_TEST, recipe.preprocessing, seed=EVALUATION_SEED, fading=recipe.data.fading)
    test = read_stamps(source, max_stamps=None, min_stamps=1, seed=1)
    return FrozenSet("simulated", test.stamps, test.labels, natural=False)


def _source(
    survey: str, sample: Sample, labels: NDArray[np.int8], job: Job, incumbent: Release, trigger: str
) -> StampSource:
    """Give the stamps as they are: they were scaled when they were scored."""
    stamps, bands = sample.stamps, np.array(sample.bands, np.str_)

    def chunks() -> Iterator[Chunk]:
        for start in range(0, len(stamps), CHUNK):
            some = slice(start, start + CHUNK)
            members = np.arange(start, start + len(stamps[some]), dtype=np.int64)
            yield Chunk(
                stamps[some], sample.quality[some], labels[some], members, bands=bands[some], typical=typical[some]
            )

    natural, typical = sample.within(*_NATURAL), _typical(sample)
    masked = (sample.quality[natural] & np.uint32(Quality.MASKED_PIXELS)) != 0
    lineage = {
        "incumbent": incumbent.id,
        "trigger": trigger,
        # How many alerts cannot be scored is not known: none of those is kept.
        "shares": {"masked": float(masked.mean())} if len(masked) else {},
        "shares_of": len(masked),
        "reservoir": {
            "survey": survey,
            "snapshot": job.snapshot,
            "layout": LAYOUT,
            "seen": job.seen,
            "drawn": len(job.sample.stamps),
            "held_out": len(job.sample.stamps) - len(stamps),
            "strata": {name: int(job.sample.within(name).sum()) for name in STRATA},
            "alert_ids_sha256": _digest(sample.alert_ids),
        },
    }
    return StampSource("reservoir", f"reservoir of {survey}", len(stamps), chunks, grouped=False, lineage=lineage)


def _typical(sample: Sample) -> NDArray[np.bool_]:
    """Which stamps stand for the survey as it is now: what drift and novelty are to be measured from."""
    recent, natural = sample.within("recent"), sample.within(*_NATURAL)
    if recent.sum() >= LEAST_TYPICAL:
        return recent
    return natural if natural.any() else np.ones(len(natural), np.bool_)


def _digest(alert_ids: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(sorted(alert_ids)).encode()).hexdigest()
