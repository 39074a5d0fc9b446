"""Judge releases by stamps that they may never have seen, beside PCA and a dictionary, without Keras.

The stamps are parted by image: classifiers, probes and baselines are fitted on one part, and every model is measured
on the other. The baselines are fitted on the evaluated data themselves and not on a release's training stamps: that
is what somebody who has these stamps and no release would do, and it favours them where the release comes from other
data. Where a release was trained on these very data, the part that is judged is the one its training left out.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.backends.onnx import OnnxNetwork
from stream_vae.errors import ConfigError
from stream_vae.learning import baselines as linear
from stream_vae.learning.data.source import open_source
from stream_vae.learning.data.split import split_by_group
from stream_vae.learning.data.stamps import BOGUS, REAL, UNKNOWN, StampSet, read_stamps
from stream_vae.learning.encode import EVALUATION_SEED
from stream_vae.learning.merits import LEAST_OF_A_CLASS, judge
from stream_vae.learning.progress import Reporter, reporter
from stream_vae.learning.recipe import build_recipe
from stream_vae.learning.report import write_evaluation
from stream_vae.learning.report.training import read_history
from stream_vae.learning.representation import Representation, of_release
from stream_vae.learning.study import MAX_STUDIED, ModelView, Rows, Study, measure, reference_pca, view_of
from stream_vae.model.release import REFERENCE, Preprocessing, Release
from stream_vae.model.store import ReleaseStore
from stream_vae.stages.encode import Encoder
from stream_vae.stages.score import Scorer

Array = NDArray[np.float32]

LEAST_FITTED = 64
"""With fewer stamps beside those judged, baselines and classifiers would say nothing."""
_DICTIONARY_STAMPS = 20_000
"""Stamps that a dictionary sees at least: a small set is gone through more than once."""


@dataclass(frozen=True)
class Parts:
    """Which rows models are measured on, and which others may be learned from."""

    fitted: Rows
    judged: Rows
    warnings: tuple[str, ...] = ()


def evaluate(
    store: ReleaseStore | str,
    release_id: str | Sequence[str] | None,
    data: str,
    out: Path,
    *,
    every: bool = False,
    baselines: bool = True,
    survey: str | None = None,
    labels: Path | None = None,
    simulated_stamps: int = 4000,
    command: str = "",
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate releases on stamps and write the report.

    Parameters
    ----------
    store : ReleaseStore or str
        Where releases are.
    release_id : str, sequence of str or None
        Which one, or which ones; None for the current.
    data : str
        `sim`, a .npy or .npz file of stamps, or a folder of alert packets.
    out : Path
        Folder for `metrics.json`, `metrics.csv`, `report.html` and `figures/`; made if absent.
    every : bool
        All releases of the store instead of `release_id`.
    baselines : bool
        Beside PCA, a dictionary and raw pixels.
    survey : str, optional
        Profile of a folder's alerts; absent: told from the packets.
    labels : Path, optional
        Table of labels for a folder of alerts, by alert id.
    simulated_stamps : int
        How many for `sim`; they come from another seed than any recipe's.
    command : str
        What was asked, for the page.
    progress : bool
        Show it.

    Returns
    -------
    dict
        What `metrics.json` holds. Of one release it begins with that release's figures on all stamps, as its card has
        them; ``models`` has every model's on the judged ones.

    Raises
    ------
    ConfigError
        If release, data or output are not usable; says what to do.
    """
    store = ReleaseStore(store) if isinstance(store, str) else store
    releases = _releases(store, release_id, every=every)
    _check_out(out)
    with reporter(show=progress) as report:
        stamps = _read(data, releases[0].card.preprocessing, survey, labels, simulated_stamps, report)
        parts = part(stamps, releases)
        views = [release_view(release, stamps.take(slice(None))) for release in releases]
        if baselines and len(parts.fitted):
            size = releases[0].card.latent_size
            fitted = fit_baselines(stamps.stamps, parts.fitted, components=size, report=report)
            views += [view_of(baseline, stamps.take(slice(None)), note=note) for baseline, note in fitted]
        study = study_on(stamps, tuple(views), parts)
        evaluation = judge(study, report=report)
        report("write report", 0, 1)
        headline = _headline(releases, stamps, study)
        warnings = [*parts.warnings, *_strangers(releases, stamps), *_taught(stamps)]
        names = ", ".join(release.id for release in releases)
        metrics = write_evaluation(
            out,
            evaluation,
            title=f"{names if len(releases) < 3 else f'{len(releases)} releases'} on {stamps.snapshot['name']}",
            headline=headline,
            provenance=provenance(stamps, releases, command=command, seconds=evaluation.seconds),
            warnings=warnings,
        )
        report("write report", 1, 1)
    return metrics


def _releases(store: ReleaseStore, wanted: str | Sequence[str] | None, *, every: bool) -> list[Release]:
    if every:
        ids: list[str | None] = [*store.ids()]
        if not ids:
            raise ConfigError("The store has no releases.", remedy="Make one: stream-vae train --store ...")
    else:
        ids = [wanted] if wanted is None or isinstance(wanted, str) else [*dict.fromkeys(wanted)] or [None]
    releases = [store.load(release_id) for release_id in ids]
    first = releases[0]
    for other in releases[1:]:
        if other.card.preprocessing != first.card.preprocessing:
            raise ConfigError(
                f"{first.id} and {other.id} prepare stamps differently ({first.card.preprocessing} and "
                f"{other.card.preprocessing}), so they cannot be measured on the same ones.",
                remedy="Name releases of the same cutouts, size and scaling with --release, one report for each kind.",
            )
    return releases


def _check_out(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be made a folder: {error.strerror}.", remedy="Name another.") from error


def _read(
    data: str,
    preprocessing: Preprocessing,
    survey: str | None,
    labels: Path | None,
    simulated_stamps: int,
    report: Reporter,
) -> StampSet:
    source = open_source(
        data,
        preprocessing,
        survey=survey,
        simulated_stamps=simulated_stamps,
        seed=EVALUATION_SEED,
        labels=labels,
        report=report,
    )
    return read_stamps(source, max_stamps=MAX_STUDIED, min_stamps=2, seed=1, report=report)


def part(stamps: StampSet, releases: Sequence[Release] = (), *, seed: int = 1) -> Parts:
    """Part stamps into those that everything is measured on, and those that classifiers and baselines learn from.

    Parameters
    ----------
    stamps : StampSet
        All of them.
    releases : sequence of Release
        Where some were trained on these very stamps, only what all of those left out is judged.
    seed : int
        Of the split.

    Returns
    -------
    Parts
        By group where there are groups; nothing to fit on if one group is all there is.
    """
    own = [rows for release in releases if (rows := held_out_by(release, stamps)) is not None]
    if own:
        judged = own[0]
        for rows in own[1:]:
            judged = np.intersect1d(judged, rows)
        if len(judged) >= LEAST_FITTED // 2:
            seen = np.isin(stamps.groups, stamps.groups[judged])
            return Parts(np.flatnonzero(~seen), judged)
    labels = stamps.labels
    if min((labels == kind).sum() for kind in (REAL, BOGUS)) < LEAST_OF_A_CLASS:  # nothing will be learned from them
        labels = np.full(len(labels), UNKNOWN, np.int8)
    try:
        split = split_by_group(stamps.groups, labels, validation_fraction=0.25, test_fraction=0.25, seed=seed)
    except ConfigError as error:
        return Parts(np.arange(0), np.arange(len(stamps.stamps)), (_unparted(str(error.args[0])),))
    if len(split.train) < LEAST_FITTED:
        few = f"{len(split.train)} stamps would be left to fit on"
        return Parts(np.arange(0), np.arange(len(stamps.stamps)), (_unparted(few),))
    return Parts(split.train, np.union1d(split.validation, split.test))


def _unparted(why: str) -> str:
    return f"The stamps cannot be parted, so no baselines and no classifiers were fitted: {why}"


def held_out_by(release: Release, stamps: StampSet) -> Rows | None:
    """Find the stamps that a release's training left out, if it was trained on these.

    Parameters
    ----------
    release : Release
        Any.
    stamps : StampSet
        All stamps of a file or folder.

    Returns
    -------
    ndarray of int or None
        Rows of its test part; None if it was trained on other stamps, or its split cannot be repeated.
    """
    card = release.card
    if stamps.snapshot["sha256"] != card.data.get("sha256"):
        return None
    try:
        recipe = build_recipe(card.recipe)
        split = split_by_group(
            stamps.groups,
            stamps.labels,
            validation_fraction=recipe.data.validation_fraction,
            test_fraction=recipe.data.test_fraction,
            seed=recipe.seed,
        )
    except ConfigError:
        return None
    if not split.held_out or card.data.get("split", {}).get("test") != len(split.test):
        return None
    return split.test


def _strangers(releases: Sequence[Release], stamps: StampSet) -> list[str]:
    """Warn of releases that have seen what they are judged on."""
    return [
        f"{release.id} was trained on these stamps, and which ones it left out is not known."
        for release in releases
        if stamps.snapshot["sha256"] == release.card.data.get("sha256") and held_out_by(release, stamps) is None
    ]


def _taught(stamps: StampSet) -> list[str]:
    """Warn of labels that are another classifier's opinion."""
    count = sum(stamps.snapshot.get("labels", {}).get("classifier", {}).values())
    return (
        [f"{count:,} of the labels are another classifier's: held against these, a score says how far it agrees."]
        if count
        else []
    )


def release_view(release: Release, stamps: Array) -> ModelView:
    """Look at stamps with a release, as serving would.

    Parameters
    ----------
    release : Release
        Verified.
    stamps : ndarray, shape (n, size, size, channels)
        Scaled as its card says.

    Returns
    -------
    ModelView
        With its own scores, and its training's history if it kept that.

    Raises
    ------
    ConfigError
        If its graphs do not run here, or its card does not say the decoder's variance.
    """
    representation = of_release(release, threads=2)
    if representation.variance is None:
        raise ConfigError(
            f"The card of {release.id} does not say the decoder's variance.",
            remedy="Evaluate a release that `stream-vae train` made.",
        )
    card = release.card
    loss = card.recipe.get("loss", {}) if isinstance(card.recipe, dict) else {}
    labelled = ", its fit used labels" if float(loss.get("label_weight", 0.0)) > 0 else ""
    trained = f"{card.data.get('name', 'unknown stamps')}, {card.data.get('used', 'unknown')} stamps"
    return view_of(
        representation,
        stamps,
        real_score=_scores(release, stamps),
        kl_weight=float(loss.get("kl_weight", 1.0)),
        history=read_history(release),
        note=f"release, recipe {card.recipe.get('name', card.name)}, trained on {trained}{labelled}",
    )


def _scores(release: Release, stamps: Array) -> Array:
    encoder, scorer = Encoder(release, OnnxNetwork(release, threads=2)), Scorer(release)
    parts = [scorer.score(encoder.run(stamps[i : i + 2048])).real_score for i in range(0, len(stamps), 2048)]
    return np.concatenate(parts)


def fit_baselines(
    stamps: NDArray[Any], fitted: Rows, *, components: int, report: Reporter, seed: int = 1
) -> list[tuple[Representation, str]]:
    """Fit PCA and a dictionary, a batch at a time; raw pixels need none.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        Scaled; may be memory-mapped.
    fitted : ndarray of int
        Rows to fit on.
    components : int
        As many as the codes that they are compared with have units.
    report : Reporter
        Told after each.
    seed : int
        Of the order and the dictionary.

    Returns
    -------
    list of (Representation, str)
        PCA, dictionary, raw pixels; each with a note for the reader.

    Raises
    ------
    ConfigError
        If there are fewer stamps than components.
    """
    note = f"fitted on {len(fitted):,} stamps that are not judged"
    batches = linear.Batches(stamps, fitted, seed=seed)
    report("fit baselines", 0, 2, "PCA")
    pca = linear.fit_pca(batches, components)
    report("fit baselines", 1, 2, "dictionary")
    passes = max(1, _DICTIONARY_STAMPS // len(fitted))
    dictionary = linear.fit_dictionary(batches, components, passes=passes, seed=seed)
    report("fit baselines", 2, 2)
    penalty = f"{note}, l1 penalty {linear.PENALTY:g}, {passes} passes"
    return [
        (pca, note),
        (dictionary, f"sparse dictionary (online dictionary learning), {penalty}"),
        (linear.raw_pixels(), f"all {stamps[0].size} pixels as the code: no reduction, shown for reference"),
    ]


def study_on(stamps: StampSet, views: tuple[ModelView, ...], parts: Parts) -> Study:
    """Put stamps and models together.

    Parameters
    ----------
    stamps : StampSet
        All of them.
    views : tuple of ModelView
        The models.
    parts : Parts
        Which rows are for what.

    Returns
    -------
    Study
        With groups only where the source knows any.
    """
    groups = stamps.groups if stamps.snapshot.get("groups") is not None else None
    return Study(
        stamps.take(slice(None)),
        stamps.labels,
        views,
        parts.fitted,
        parts.judged,
        groups,
        stamps.kinds,
        stamps.snr,
    )


def _headline(releases: Sequence[Release], stamps: StampSet, study: Study) -> dict[str, Any]:
    if len(releases) > 1:
        return {"releases": [release.id for release in releases], "data": stamps.snapshot}
    release = releases[0]
    pca = view_of(reference_pca(release.folder / REFERENCE), study.stamps)
    rows = np.arange(len(study.stamps))
    whole = Study(study.stamps, study.labels, (study.views[0], pca), np.arange(0), rows)
    headline: dict[str, Any] = {"release": release.id, "data": stamps.snapshot} | measure(whole)
    if stamps.snapshot["sha256"] == release.card.data.get("sha256"):
        headline["warning"] = "these are the stamps that the release was trained on"
    return headline


def provenance(
    stamps: StampSet, releases: Sequence[Release] = (), *, command: str = "", seconds: float = 0.0, **more: str
) -> dict[str, str]:
    """Say what a report is of: data, releases, versions, date, command.

    Parameters
    ----------
    stamps : StampSet
        What was evaluated.
    releases : sequence of Release
        With what.
    command : str
        What was asked; left out if empty.
    seconds : float
        How long measuring took.
    **more : str
        Further lines.

    Returns
    -------
    dict of str
        In the order of the page.
    """
    data = ", ".join(f"{key} {value}" for key, value in stamps.snapshot.items() if value is not None)
    found = {"data": data}
    for release in releases:
        card = release.card
        trained = f"{card.data.get('name')} (sha256 {str(card.data.get('sha256'))[:12]})"
        found[release.id] = (
            f"recipe {card.recipe.get('name', card.name)}, seed {card.recipe.get('seed', 'unknown')}, made "
            f"{card.created_at:%Y-%m-%d} by stream_vae {card.stream_vae_version}, trained on {trained}"
        )
    found |= more
    if command:
        found["command"] = command
    found["measured"] = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, in {seconds:.0f} s"
    found["versions"] = ", ".join(f"{name} {text}" for name, text in _versions().items())
    return found


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in ("stream-vae", "numpy", "scikit-learn", "onnxruntime", "tensorflow", "keras", "matplotlib"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
