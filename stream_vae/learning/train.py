"""From a recipe and stamps to a release: read, split, fit, score, export, measure, write."""

import logging
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.classifier import Posterior, Scorer, fit_scorer
from stream_vae.learning.data import open_source
from stream_vae.learning.export import export_networks
from stream_vae.learning.fit import Fit, decode, encode, fit_model
from stream_vae.learning.positive_unlabelled import check_labels, fit_positive_unlabelled, measure_positive_unlabelled
from stream_vae.learning.progress import Reporter, reporter
from stream_vae.learning.recipe import Recipe, load_recipe
from stream_vae.learning.reference import write_reference
from stream_vae.learning.report import write_report
from stream_vae.learning.split import Split, split_by_group
from stream_vae.learning.stamps import BOGUS, REAL, UNKNOWN, StampSet, StampSource, read_stamps
from stream_vae.learning.study import MAX_STUDIED, Study, measure, measure_scores, study_of
from stream_vae.model.release import REFERENCE, ReleaseCard
from stream_vae.model.store import ReleaseStore, write_release

log = logging.getLogger(__name__)

_UNLABELLED_TOO = "data, with unlabelled stamps"
"""Where labels of a positive-unlabelled scorer come from."""


@dataclass(frozen=True)
class _Labelled:
    """The stamps that the scorer is fitted and judged on, and where their labels come from."""

    stamps: StampSet
    split: Split
    origin: str


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
    promote: bool = False,
    progress: bool = True,
) -> ReleaseCard:
    """Train a model and write it to a store as a release.

    Parameters
    ----------
    recipe : Recipe or str
        A recipe, the name of one that comes with the package, or a TOML file's path.
    data : str or StampSource
        `sim`, a .npy or .npz file of stamps, a folder of alert packets, or stamps prepared as the recipe says.
    store : ReleaseStore or str
        Where the release goes; a store's URL will do.
    survey : str, optional
        Profile of a folder's alerts; absent: told from the packets.
    promote : bool
        Make it the current release.
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
    with reporter(show=progress) as report:
        stamps = _read(recipe, data, survey, report)
        card = _train(recipe, stamps, store, report)
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


def _read(recipe: Recipe, data: str | StampSource, survey: str | None, report: Reporter) -> StampSet:
    limits = recipe.data
    source = (
        data
        if isinstance(data, StampSource)
        else open_source(
            data,
            recipe.preprocessing,
            survey=survey,
            simulated_stamps=limits.simulated_stamps,
            seed=recipe.seed,
            report=report,
        )
    )
    return read_stamps(
        source, max_stamps=limits.max_stamps, min_stamps=limits.min_stamps, seed=recipe.seed, report=report
    )


def _train(recipe: Recipe, data: StampSet, store: ReleaseStore, report: Reporter) -> ReleaseCard:
    split = _split(recipe, data)
    labelled = _labelled(recipe, data, split, report)
    fit = fit_model(recipe, data, split.train, split.validation, report=report)
    scorer, prior = _fit_scorer(recipe, fit, labelled, report)
    run = _Run(recipe, data, split, labelled, fit, scorer, prior)
    with tempfile.TemporaryDirectory(prefix="stream-vae-train-") as name:
        return _release(run, store, Path(name))


def _release(run: _Run, store: ReleaseStore, folder: Path) -> ReleaseCard:
    recipe, fit = run.recipe, run.fit
    export_networks(folder, fit.model, run.scorer, run.data.stamps[run.split.test][:256])
    _write_reference(folder / REFERENCE, run)
    study = _study(run, folder / REFERENCE)
    metrics = measure(study) | {"score": _score_metrics(run), "fit": _describe_fit(fit)}
    write_report(folder / "report", study, metrics, title=f"Recipe {recipe.name}", history=fit.history)
    return write_release(
        store,
        folder,
        name=recipe.name,
        latent_size=recipe.model.latent_size,
        recipe=recipe.model_dump(mode="json"),
        data=run.data.snapshot | {"split": _describe_split(run.split)},
        metrics=metrics,
        preprocessing=recipe.preprocessing,
    )


def _split(recipe: Recipe, data: StampSet) -> Split:
    fractions, labels = recipe.data, data.labels
    if recipe.scorer.positive_unlabelled and (labels == REAL).any():
        labels = np.where(labels == UNKNOWN, np.int8(BOGUS), labels)  # each part needs some of these, too
    return split_by_group(
        data.groups,
        labels,
        validation_fraction=fractions.validation_fraction,
        test_fraction=fractions.test_fraction,
        seed=recipe.seed,
    )


def _labelled(recipe: Recipe, data: StampSet, split: Split, report: Reporter) -> _Labelled:
    """Choose what the scorer learns from: the data's own labels, or simulated stamps if it has none."""
    known = {int(label) for label in np.unique(data.labels)} - {UNKNOWN}
    name = data.snapshot["name"]
    if recipe.scorer.positive_unlabelled and data.snapshot["kind"] != "reservoir":  # which never has labels
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
    log.warning("%s has no labels: the scorer is trained on simulated stamps.", data.snapshot["name"])
    stamps = _read(recipe, "sim", None, report)
    return _Labelled(stamps, _split(recipe, stamps), "simulation")


def _posterior(
    fit: Fit, labelled: _Labelled, rows: NDArray[np.int64], labels: tuple[int, ...] = (REAL, BOGUS)
) -> Posterior:
    rows = rows[np.isin(labelled.stamps.labels[rows], labels)]
    z_mean, z_log_var = encode(fit.model, labelled.stamps.stamps[rows])
    return Posterior(z_mean, z_log_var, labelled.stamps.labels[rows] == REAL)


def _fit_scorer(
    recipe: Recipe, fit: Fit, labelled: _Labelled, report: Reporter
) -> tuple[Scorer, dict[str, Any] | None]:
    parts = labelled.split
    if labelled.origin != _UNLABELLED_TOO:
        train, held_out = (_posterior(fit, labelled, rows) for rows in (parts.train, parts.validation))
        return fit_scorer(train, held_out, recipe.scorer, seed=recipe.seed, report=report), None
    train, held_out = (_posterior(fit, labelled, rows, (REAL, UNKNOWN)) for rows in (parts.train, parts.validation))
    bogus = _posterior(fit, labelled, parts.train, (BOGUS,))
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


def _write_reference(path: Path, run: _Run) -> None:
    stamps = run.data.stamps[run.split.train]
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
        seed=run.recipe.seed,
    )


def _study(run: _Run, reference: Path) -> Study:
    rows = run.split.test[:MAX_STUDIED]
    stamps = run.data.stamps[rows]
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
