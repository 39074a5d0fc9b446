"""From a recipe and stamps to a release: read, split, fit, score, export, measure, write."""

import logging
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.classifier import Posterior, Scorer, fit_scorer
from stream_vae.learning.continuation import incumbent_of
from stream_vae.learning.course import write_history
from stream_vae.learning.data.source import open_source, simulated
from stream_vae.learning.data.split import Split, split_by_group, split_by_hash
from stream_vae.learning.data.stamps import BOGUS, REAL, UNKNOWN, StampSet, StampSource, Thinning, read_stamps
from stream_vae.learning.export import export_networks
from stream_vae.learning.fit import Fit, decode, encode, fit_model, model_inputs
from stream_vae.learning.mapping import MAPPING
from stream_vae.learning.positive_unlabelled import check_labels, fit_positive_unlabelled, measure_positive_unlabelled
from stream_vae.learning.progress import Reporter, reporter
from stream_vae.learning.recipe import Recipe, load_recipe
from stream_vae.learning.reference import DRIFT_SAMPLE, write_reference
from stream_vae.learning.report import write_report
from stream_vae.learning.study import MAX_STUDIED, Study, measure, measure_scores, study_of
from stream_vae.learning.succession import Continuity, Succession, space_of
from stream_vae.model.release import REFERENCE, Release, ReleaseCard
from stream_vae.model.store import ReleaseStore, draft_card, space_named_after

log = logging.getLogger(__name__)

MAX_SCORED = 200_000
"""Labelled stamps that the scorer learns from at most: its one hidden layer is settled long before."""
MAX_REFERENCE = 100_000
"""Training stamps that PCA, whitening and quantiles are taken from at most: 180 MB at 21x21."""
ADDED_SEED = 500_009
"""Apart from the recipe's seed, which simulates the stamps of `sim`."""
_PIECE = 1 << 18

_UNLABELLED_TOO = "data, with unlabelled stamps"
"""Where labels of a positive-unlabelled scorer come from."""


@dataclass(frozen=True)
class _Labelled:
    """The stamps that the scorer is fitted and judged on, and where their labels come from."""

    stamps: StampSet
    split: Split
    origin: str


@dataclass(frozen=True)
class _Job:
    """What is to be done, with what, and where it goes."""

    recipe: Recipe
    data: StampSet
    split: Split
    store: ReleaseStore
    report: Reporter
    succession: Succession | None = None
    go_on: bool = False


@dataclass(frozen=True)
class _Run:
    """Everything that a release is written from."""

    recipe: Recipe
    data: StampSet
    split: Split
    labelled: _Labelled
    fit: Fit
    scorer: Scorer
    prior: dict[str, Any] | None
    """What a positive-unlabelled scorer stands on; None for any other."""


def train(
    recipe: Recipe | str,
    data: str | StampSource,
    store: ReleaseStore | str,
    *,
    survey: str | None = None,
    labels: Path | None = None,
    promote: bool = False,
    checkpoint: Path | None = None,
    resume: bool = False,
    scratch: Path | None = None,
    succession: Succession | None = None,
    go_on: bool = False,
    progress: bool = True,
) -> ReleaseCard:
    """Train a model and write it to a store as a release.

    Parameters
    ----------
    recipe : Recipe or str
        A recipe, the name of one that comes with the package, or a TOML file's path.
    data : str or StampSource
        `sim`, a .npy or .npz file of stamps, a folder of such files, a folder of alert packets, or stamps prepared as
        the recipe says.
    store : ReleaseStore or str
        Where the release goes; a store's URL will do.
    survey : str, optional
        Profile of a folder's alerts; absent: told from the packets.
    labels : Path, optional
        A table of labels by alert id, for a folder of alerts.
    promote : bool
        Make it the current release.
    checkpoint : Path, optional
        Folder that gets the state of the fit after every epoch.
    resume : bool
        Go on from that state.
    scratch : Path, optional
        Where a set too large for memory is kept while training; absent: the system's folder for temporary files.
    succession : Succession, optional
        What the release is to be held against: the verdict, and whether codes may be compared, go into its card.
    go_on : bool
        Begin as the incumbent of `succession` and hold the codes to it.
    progress : bool
        Show bars on a terminal, log lines elsewhere.

    Returns
    -------
    ReleaseCard
        Of the new release.

    Raises
    ------
    ConfigError
        If recipe, data or store are not usable; says what to do.
    RetriableError
        If the store cannot be reached.
    """
    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    store = ReleaseStore(store) if isinstance(store, str) else store
    _check_tools()
    store.ids()  # a store that cannot be reached is better known before the work than after
    if scratch is not None and not scratch.is_dir():
        raise ConfigError(f"--scratch {scratch}: there is no such folder.", remedy="Make it first.")
    with (
        reporter(show=progress) as report,
        tempfile.TemporaryDirectory(prefix="stream-vae-stamps-", dir=scratch, ignore_cleanup_errors=True) as name,
    ):
        place = Path(name)
        source = _open(recipe, data, survey, labels, report)
        stamps = _read(recipe, source, report, added=_added(recipe, source, report), spool=place)
        job = _Job(recipe, stamps, _split(recipe, stamps, place), store, report, succession, go_on)
        card = _train(job, checkpoint, resume=resume)
    if promote:
        store.promote(card.id, reason="trained with --promote")
    return card


def _check_tools() -> None:
    missing = [name for name in ("matplotlib", "onnx", "scipy") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"Training needs {', '.join(missing)} too, to export and report.",
            remedy="Install it: pip install 'stream-vae[train]'.",
        )


def _open(
    recipe: Recipe, data: str | StampSource, survey: str | None, labels: Path | None, report: Reporter
) -> StampSource:
    if isinstance(data, StampSource):
        return data
    return open_source(
        data,
        recipe.preprocessing,
        survey=survey,
        labels=labels,
        simulated_stamps=recipe.data.simulated_stamps,
        fading=recipe.data.fading,
        seed=recipe.seed,
        noise="noise" in model_inputs(recipe),
        report=report,
    )


def _added(recipe: Recipe, source: StampSource, report: Reporter) -> StampSource | None:
    if recipe.data.add_simulated == 0 or source.kind == "simulation":  # more of the same is data.simulated_stamps
        return None
    seed = recipe.seed + ADDED_SEED
    count, fading = recipe.data.add_simulated, recipe.data.fading
    return simulated(count, recipe.preprocessing, seed=seed, fading=fading, report=report)


def _read(
    recipe: Recipe,
    source: StampSource,
    report: Reporter,
    *,
    added: StampSource | None = None,
    spool: Path | None = None,
) -> StampSet:
    return read_stamps(
        source,
        max_stamps=recipe.data.max_stamps,
        min_stamps=recipe.data.min_stamps,
        seed=recipe.seed,
        noise="noise" in model_inputs(recipe),
        added=added,
        spool=spool,
        report=report,
    )


def _train(job: _Job, checkpoint: Path | None, *, resume: bool) -> ReleaseCard:
    recipe, data, split = job.recipe, job.data, job.split
    labelled = _labelled(job)
    rows = balanced(split.train, len(data) - data.added)
    following = job.succession if job.go_on else None
    fit = fit_model(
        recipe,
        data,
        rows,
        split.validation,
        checkpoint=checkpoint,
        resume=resume,
        incumbent=incumbent_of(following.incumbent, following.first) if following else None,
        report=job.report,
    )
    scorer, prior = _fit_scorer(recipe, fit, labelled, job.report)
    run = _Run(recipe, data, split, labelled, fit, scorer, prior)
    with tempfile.TemporaryDirectory(prefix="stream-vae-train-") as name:
        return _release(run, job.store, Path(name), job.succession)


def _release(run: _Run, store: ReleaseStore, folder: Path, succession: Succession | None) -> ReleaseCard:
    recipe, fit = run.recipe, run.fit
    export_networks(folder, fit.model, run.scorer, run.data.take(run.split.test[:256]))
    place = _place(run, succession, folder)
    _write_reference(folder / REFERENCE, run, place.space_anchors)
    study = _study(run, folder / REFERENCE)
    metrics = measure(study) | {"score": _score_metrics(run), "fit": _describe_fit(fit)}
    write_report(folder / "report", study, metrics, title=f"Recipe {recipe.name}", history=fit.history)
    write_history(folder / "report" / "history.csv", fit.history)
    draft = draft_card(
        folder,
        name=recipe.name,
        latent_size=recipe.model.latent_size,
        latent_space=place.space,
        recipe=recipe.model_dump(mode="json"),
        data=run.data.snapshot | {"split": _describe_split(run.split), "added_simulated": run.data.added},
        metrics=metrics,
        preprocessing=recipe.preprocessing,
    )
    if succession is not None and place.continuity is not None:
        verdict = succession.judge(Release(draft, folder)).document() | {
            "incumbent": succession.incumbent.id,
            "continuity": place.continuity.document(),
        }
        draft = draft.model_copy(update={"metrics": metrics | {"verdict": verdict}})
    return store.publish(folder, draft)


@dataclass(frozen=True)
class _Place:
    """Where a release's codes live."""

    space: str
    continuity: Continuity | None = None
    space_anchors: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    """Handed on from the first release of the space; None if this is the first."""


def _place(run: _Run, succession: Succession | None, folder: Path) -> _Place:
    own = space_named_after(folder)
    if succession is None:
        return _Place(own)

    def encode_means(stamps: NDArray[np.float32]) -> NDArray[np.float32]:
        return encode(run.fit.model, stamps)[0]

    found = succession.continuity(encode_means)
    if found.same:
        return _Place(succession.incumbent.card.latent_space, found, space_of(succession.incumbent))
    log.warning("the codes are in a new latent space, %s: %s.", own, found.reason)
    succession.write_mapping(folder / MAPPING, encode_means, space=own)
    return _Place(own, found)


def _split(recipe: Recipe, data: StampSet, place: Path | None = None) -> Split:
    """Part the data's own rows; simulated ones that were added all go to training."""
    own = len(data) - data.added
    groups, labels = data.groups[:own], data.labels[:own]
    if recipe.scorer.positive_unlabelled and data.snapshot["real"] > 0:
        labels = np.where(labels == UNKNOWN, np.int8(BOGUS), labels)  # each part needs some of these, too
    part = split_by_group if place is None or not data.on_disk else partial(split_by_hash, folder=place)
    split = part(
        groups,
        labels,
        validation_fraction=recipe.data.validation_fraction,
        test_fraction=recipe.data.test_fraction,
        seed=recipe.seed,
    )
    if data.added == 0:
        return split
    return replace(split, train=np.concatenate([split.train, np.arange(own, len(data))]))


def balanced(rows: NDArray[np.int64], own: int) -> NDArray[np.int64]:
    """Repeat the data's own rows until added simulated ones are about half an epoch at most.

    Parameters
    ----------
    rows : ndarray of int
        Rows to fit to, ascending.
    own : int
        Rows from here on are added ones.

    Returns
    -------
    ndarray of int
        Ascending.
    """
    added = int((rows >= own).sum())
    times = max(1, round(added / max(1, len(rows) - added)))
    return rows if times == 1 else np.repeat(rows, np.where(rows < own, times, 1))


def _labelled(job: _Job) -> _Labelled:
    """Choose what the scorer learns from: the data's own labels, or simulated stamps if it has none."""
    recipe, data, split = job.recipe, job.data, job.split
    name = data.snapshot["name"]
    known = {label for label, count in ((REAL, "real"), (BOGUS, "bogus")) if data.snapshot[count] > 0}
    if recipe.scorer.positive_unlabelled:
        check_labels(data.snapshot["real"], data.snapshot["unlabelled"], name)
        return _Labelled(data, split, _UNLABELLED_TOO)
    if known == {REAL, BOGUS}:
        return _Labelled(data, split, "data")
    if known:
        unlabelled = "; or set scorer.positive_unlabelled = true, which learns from real and unlabelled ones (-1)"
        raise ConfigError(
            f"All labels of {name} say {'real' if known == {REAL} else 'bogus'}: a scorer needs both.",
            remedy="Add stamps of the other class, or leave `labels` out to train the scorer on simulated stamps"
            f"{unlabelled if known == {REAL} else ''}.",
        )
    log.warning("%s has no labels: the scorer is trained on simulated stamps.", name)
    stamps = _read(recipe, _open(recipe, "sim", None, None, job.report), job.report)
    return _Labelled(stamps, _split(recipe, stamps), "simulation")


def _posterior(
    fit: Fit, labelled: _Labelled, rows: NDArray[np.int64], labels: tuple[int, ...] = (REAL, BOGUS)
) -> Posterior:
    rows = _with_labels(labelled.stamps, rows, labels)
    z_mean, z_log_var = _codes(fit, labelled.stamps, rows)
    return Posterior(z_mean, z_log_var, labelled.stamps.labels[rows] == REAL)


def _with_labels(data: StampSet, rows: NDArray[np.int64], labels: tuple[int, ...]) -> NDArray[np.int64]:
    """Rows with one of these labels; of very many a random part, which is as good for a scorer and fits in memory."""
    pieces = [rows[i : i + _PIECE] for i in range(0, len(rows), _PIECE)]
    count = sum(int(np.isin(data.labels[piece], labels).sum()) for piece in pieces)
    thinning = Thinning(count, MAX_SCORED, np.random.default_rng(0))
    chosen = [np.empty(0, np.int64)]
    for piece in pieces:
        inside = piece[np.isin(data.labels[piece], labels)]
        chosen.append(inside[thinning.next(len(inside))])
    return np.concatenate(chosen)


def _codes(fit: Fit, data: StampSet, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    parts = [encode(fit.model, stamps) for stamps in data.pieces(rows)]
    if not parts:
        return encode(fit.model, data.take(rows))
    z_mean, z_log_var = (np.concatenate(heads) for heads in zip(*parts, strict=True))
    return z_mean, z_log_var


def _fit_scorer(
    recipe: Recipe, fit: Fit, labelled: _Labelled, report: Reporter
) -> tuple[Scorer, dict[str, Any] | None]:
    parts = labelled.split
    if labelled.origin != _UNLABELLED_TOO:
        train, held_out = (_posterior(fit, labelled, rows) for rows in (parts.train, parts.validation))
        return fit_scorer(train, held_out, recipe.scorer, seed=recipe.seed, report=report), None
    train, held_out = (_posterior(fit, labelled, rows, (REAL, UNKNOWN)) for rows in (parts.train, parts.validation))
    known = (labelled.stamps.labels[parts.train] == BOGUS).any()
    bogus = _posterior(fit, labelled, parts.train, (BOGUS,)) if known else None
    found = fit_positive_unlabelled(train, held_out, recipe.scorer, bogus=bogus, seed=recipe.seed, report=report)
    return found.scorer, found.describe()


def _score_metrics(run: _Run) -> dict[str, Any]:
    origin = {"labels_from": run.labelled.origin, "held_out": run.labelled.split.held_out}
    rows = run.labelled.split.test
    if run.prior is not None:
        test = _posterior(run.fit, run.labelled, rows, (REAL, UNKNOWN))
        score, _ = run.scorer.score(test.z_mean, test.z_log_var)
        return origin | run.prior | measure_positive_unlabelled(score, test.real, run.prior["prior"])
    test = _posterior(run.fit, run.labelled, rows)
    score, _ = run.scorer.score(test.z_mean, test.z_log_var)
    return origin | measure_scores(score, test.real)


def _write_reference(path: Path, run: _Run, space: tuple[NDArray[np.float32], NDArray[np.float32]] | None) -> None:
    own = len(run.data) - run.data.added  # drift and novelty are measured from the data, not from the simulation
    rows = run.split.train
    rows = rows[: np.searchsorted(rows, own)]
    if run.data.typical is not None and run.data.typical[rows].any():
        rows = rows[run.data.typical[rows]]
    rows = rows[Thinning(len(rows), MAX_REFERENCE, np.random.default_rng(run.recipe.seed)).next(len(rows))]
    stamps = run.data.take(rows)
    z_mean, z_log_var = encode(run.fit.model, stamps)
    # Without labels no transient among the stamps is known: simulated ones stand for them.
    known = _posterior(run.fit, run.labelled, run.labelled.split.train)
    write_reference(
        path,
        stamps=stamps,
        z_mean=z_mean,
        real_z_mean=known.z_mean[known.real],
        real_z_log_var=known.z_log_var[known.real],
        real_score=run.scorer.score(z_mean, z_log_var)[0],
        space=space,
        seed=run.recipe.seed,
        bands=None if run.data.bands is None else np.asarray(run.data.bands[rows], np.str_),
        squared_error=_held_out_error(run),
        shares=run.data.snapshot.get("shares"),
        shares_of=run.data.snapshot.get("shares_of", 0),
    )


def _held_out_error(run: _Run) -> NDArray[np.float32]:
    rows = run.split.test[:DRIFT_SAMPLE]
    stamps = run.data.take(rows)
    reconstruction = decode(run.fit.model, encode(run.fit.model, stamps)[0])
    error: NDArray[np.float32] = np.square(reconstruction - stamps).sum(axis=(1, 2, 3), dtype=np.float32)
    return error


def _study(run: _Run, reference: Path) -> Study:
    rows = run.split.test
    if run.data.on_disk:  # in input order they may be of a single night
        rows = rows[Thinning(len(rows), MAX_STUDIED, np.random.default_rng(run.recipe.seed)).next(len(rows))]
    rows = rows[:MAX_STUDIED]
    stamps = run.data.take(rows)
    z_mean, z_log_var = encode(run.fit.model, stamps)
    return study_of(
        stamps,
        run.data.labels[rows],
        z_mean,
        z_log_var,
        run.scorer.score(z_mean, z_log_var)[0],
        decode=lambda codes: decode(run.fit.model, codes),
        variance=float(run.fit.model.variance),
        reference=reference,
        kl_weight=run.recipe.loss.kl_weight,
    )


def _describe_split(split: Split) -> dict[str, Any]:
    sizes = {part: len(getattr(split, part)) for part in ("train", "validation", "test")}
    return sizes | {"test_held_out": split.held_out}


def _describe_fit(fit: Fit) -> dict[str, Any]:
    return {
        "epochs": len(fit.history["loss"]),
        "best_epoch": fit.best_epoch,
        "seconds": round(fit.seconds, 1),
        "validation_loss": min(fit.history["val_loss"]),
    }
