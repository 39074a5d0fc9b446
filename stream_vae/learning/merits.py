"""Every figure of merit of every model of a study, with bootstrap intervals: what a report's numbers are.

All models are measured on the same rows with the same resamples, so that their differences are paired. Classifiers and
probes see the study's `fitted` rows and are judged on its `judged` rows. What cannot be measured (no labels, too few
stamps) is left out with a sentence that says why.

References
----------
Huijse et al. 2018, section 4 (search, classification); Burda et al. 2016 (IWAE-50); Lucas et al. 2019 (collapse).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning import few_labels, measures
from stream_vae.learning.data.stamps import REAL
from stream_vae.learning.progress import Reporter, silent
from stream_vae.learning.representation import sampled
from stream_vae.learning.resample import Resamples, resample
from stream_vae.learning.study import ModelView, Rows, Study, latent_merits, negative_log_likelihood

Array = NDArray[np.float32]
Merits = dict[str, Any]

MOST_PROBED = 6000
"""Labelled stamps that a classifier on codes is fitted on: more do not change its ROC by its interval."""
SEEDS = 315
"""Searches, as many as the field's earlier comparison had; the paper searched with its known transients."""
FOUND = 100
MOST_SEARCHED = 5000
IWAE_STAMPS = 400
IWAE_SAMPLES = 50
NEIGHBOURS = 10
COUNTS = (50, 100, 200, 500, 1000)
LABEL_DRAWS = 20
LEAST_OF_A_CLASS = 8
"""Fewer real or bogus stamps than this make neither a classifier nor a ROC curve."""
HIDDEN = 32
"""Of the classifier on the code: one hidden layer, as the paper."""
_STAND_OUT = 10.0
"""Standardised codes are clipped there: a stamp unlike any other must not decide a probe."""


@dataclass(frozen=True)
class Judgement:
    """What was measured of one model.

    Parameters
    ----------
    view : ModelView
        The model.
    merits : dict
        Plain values for JSON; a figure with an interval is `{"value": ..., "interval_95": [low, high]}`.
    score : ndarray, shape (labelled,), or None
        Of the classifier on its codes, for the labelled judged stamps.
    search : ndarray, shape (seeds, found), or None
        DNMSE of each search and length of list.
    """

    view: ModelView
    merits: Merits
    score: Array | None = None
    search: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Evaluation:
    """A study with everything measured.

    Parameters
    ----------
    study : Study
        The stamps and models.
    judgements : tuple of Judgement
        In the order of the study's views.
    resamples : Resamples
        Of the judged stamps.
    labelled : ndarray of int
        The judged rows that have a label, in the order of each `Judgement.score`.
    labelled_resamples : Resamples
        Of those.
    spectrum : ndarray, shape (pixels,)
        Variances of the judged stamps along their principal directions.
    missing : dict
        Section to the sentence that says why it is not there.
    seconds : float
        How long measuring took.
    """

    study: Study
    judgements: tuple[Judgement, ...]
    resamples: Resamples
    labelled: Rows
    labelled_resamples: Resamples
    spectrum: NDArray[np.float64]
    missing: dict[str, str]
    seconds: float

    def named(self, prefix: str) -> Judgement | None:
        """Find a model by the beginning of its name.

        Parameters
        ----------
        prefix : str
            Such as ``PCA``.

        Returns
        -------
        Judgement or None
            The first that fits.
        """
        return next((item for item in self.judgements if item.view.name.startswith(prefix)), None)


def judge(study: Study, *, report: Reporter = silent, seed: int = 1) -> Evaluation:
    """Measure everything that can be measured.

    Parameters
    ----------
    study : Study
        Stamps and models; at least two judged rows.
    report : Reporter
        Told after each model.
    seed : int
        Of resamples, draws and probes.

    Returns
    -------
    Evaluation
        For tables and figures.

    Raises
    ------
    ConfigError
        If there are fewer than two stamps to judge by, or two models of one name.
    """
    began = time.monotonic()
    if len(study.judged) < 2:
        raise ConfigError(f"{len(study.judged)} stamps are too few to judge by.", remedy="Give more stamps.")
    names = [view.name for view in study.views]
    if len(set(names)) < len(names):
        raise ConfigError(f"Two models have one name: {', '.join(names)}.", remedy="Name each differently.")
    labelled = study.labelled(study.judged)
    groups = study.groups
    draw = Evaluation(
        study,
        (),
        resample(_of(groups, study.judged), study.labels[study.judged], seed=seed),
        labelled,
        resample(_of(groups, labelled), study.labels[labelled], seed=seed),
        measures.covariance_spectrum(study.stamps[study.judged]),
        _missing(study, labelled),
        0.0,
    )
    judgements: list[Judgement] = []
    for i, view in enumerate(study.views):
        report("measure", i, len(study.views), view.name)
        judgements.append(_judge_one(draw, view, seed))
    report("measure", len(study.views), len(study.views))
    done = replace(draw, judgements=tuple(judgements), seconds=time.monotonic() - began)
    _hold_against_pca(done)
    return done


def _of(array: NDArray[Any] | None, rows: Rows) -> NDArray[Any] | None:
    return None if array is None else array[rows]


def _missing(study: Study, labelled: Rows) -> dict[str, str]:
    """Say what cannot be measured, and why."""
    missing = {}
    if not study.both_classes(labelled, least=LEAST_OF_A_CLASS):
        missing["classification"] = (
            f"No ROC, calibration or few-label curves: they need at least {LEAST_OF_A_CLASS} labelled stamps of each "
            "class among those judged (give `labels` in the .npz, or --labels with a folder of alerts)."
        )
    elif not study.both_classes(study.fitted, least=LEAST_OF_A_CLASS):
        missing["probes"] = (
            "No classifiers on codes and no few-label curves: no labelled stamps of both classes are left to fit them "
            "on beside those judged. Only the models' own scores are shown."
        )
    if study.kinds is None and study.snr is None:
        missing["breakdown"] = "No confusion by kind or S/N: these stamps bring neither `kinds` nor `snr`."
    elif "classification" in missing:
        missing["breakdown"] = "No confusion by kind or S/N without labels of both classes."
    return missing


def _judge_one(draw: Evaluation, view: ModelView, seed: int) -> Judgement:
    study = draw.study
    merits: Merits = {"note": view.note}
    if view.squared_error is not None:
        merits["reconstruction"] = _reconstruction(draw, view)
    if view.probabilistic:
        merits["latent"] = _latent(draw, view, seed)
    elif view.z_mean is not None:
        merits["latent"] = {"units": view.z_mean.shape[1]}
    search = None
    if view.z_mean is not None and len(study.judged) > 2 * NEIGHBOURS:
        merits["neighbourhood"] = _neighbourhood(draw, view)
        search = _search(draw, view, seed)
        merits["search"] = _search_merits(draw, search, seed)
    score = _score_on_codes(draw, view, merits, seed)
    return Judgement(view, merits, score, search)


def _reconstruction(draw: Evaluation, view: ModelView) -> Merits:
    rows = draw.study.judged
    assert view.squared_error is not None
    found: Merits = {"squared_error": draw.resamples.mean(view.squared_error[rows])}
    energy = np.square(draw.study.stamps[rows]).sum(axis=(1, 2, 3)).mean()
    found["share_of_energy"] = float(view.squared_error[rows].mean() / energy)
    if view.z_log_var is not None and view.sampled_squared_error is not None:
        found["squared_error_sampled"] = draw.resamples.mean(view.sampled_squared_error[rows])
    if view.variance is not None and view.probabilistic:
        found["decoder_variance"] = view.variance
    return found


def _latent(draw: Evaluation, view: ModelView, seed: int) -> Merits:
    assert view.z_mean is not None
    assert view.z_log_var is not None
    assert view.variance is not None
    study, rows = draw.study, draw.study.judged
    pixels = study.stamps[0].size
    z_mean, z_log_var = view.z_mean[rows], view.z_log_var[rows]
    found = latent_merits(view, rows, pixels=pixels)
    kl = 0.5 * (np.exp(z_log_var) + z_mean**2 - 1.0 - z_log_var).sum(axis=1)
    bound = -negative_log_likelihood(view, rows, pixels=pixels) - kl
    found |= {"elbo": draw.resamples.mean(bound), "kl": draw.resamples.mean(kl), "units": z_mean.shape[1]}
    found["predicted_active_units"] = predicted_active_units(draw.spectrum, view)
    if view.decode is not None:
        some = np.random.default_rng(seed).permutation(rows)[:IWAE_STAMPS]
        decode = cast("Callable[[Array], Array]", view.decode)
        tight = measures.iwae_bound(
            study.stamps[some],
            view.z_mean[some],
            view.z_log_var[some],
            decode=decode,
            variance=view.variance,
            samples=IWAE_SAMPLES,
            seed=seed,
        )
        found["iwae_50"] = resample(_of(study.groups, some), study.labels[some], seed=seed).mean(tight)
        found["iwae_50_stamps"] = len(some)
    return found


def predicted_active_units(spectrum: NDArray[np.float64], view: ModelView) -> int:
    """Count the units that pay for themselves in the best linear VAE of this sigma and KL weight.

    Parameters
    ----------
    spectrum : ndarray, shape (pixels,)
        Variances of the stamps along their principal directions, falling.
    view : ModelView
        With codes and a likelihood.

    Returns
    -------
    int
        Directions of more variance than the KL weight times sigma^2, at most as many as there are units.

    References
    ----------
    Lucas et al. 2019, section 4.
    """
    assert view.z_mean is not None
    assert view.variance is not None
    units = view.z_mean.shape[1]
    predicted = measures.predicted_information(spectrum, view.variance, latent_size=units, kl_weight=view.kl_weight)
    return int((predicted > 0.0).sum())


def _neighbourhood(draw: Evaluation, view: ModelView) -> Merits:
    rows = draw.study.judged[:MOST_SEARCHED]
    assert view.z_mean is not None
    stamps, codes = draw.study.stamps[rows], view.z_mean[rows]
    shares = measures.knn_recall(stamps, codes, neighbours=NEIGHBOURS)
    return {
        "neighbours": NEIGHBOURS,
        "trustworthiness": measures.trustworthiness(stamps, codes, neighbours=NEIGHBOURS),
        "knn_recall": resample(None, np.zeros(len(shares), np.int8)).mean(shares),
    }


def searches_with_real(study: Study) -> bool:
    """Tell whether enough stamps are known to be real to search with these alone.

    Parameters
    ----------
    study : Study
        Stamps.

    Returns
    -------
    bool
        If not, any stamps are searched with.
    """
    return int((study.labels[study.judged] == REAL).sum()) >= LEAST_OF_A_CLASS


def searched(study: Study, *, seed: int = 1) -> tuple[Rows, NDArray[np.int64]]:
    """Choose the stamps that are searched among, and those to search with.

    Parameters
    ----------
    study : Study
        Stamps.
    seed : int
        Of the choice.

    Returns
    -------
    rows : ndarray of int
        Judged rows, at most `MOST_SEARCHED`.
    seeds : ndarray of int
        Positions in `rows`, at most `SEEDS`: real stamps where enough are labelled, else any.
    """
    random = np.random.default_rng(seed)
    rows = np.sort(random.permutation(study.judged)[:MOST_SEARCHED])
    seeds = np.flatnonzero(study.labels[rows] == REAL) if searches_with_real(study) else np.arange(len(rows))
    return rows, np.sort(random.permutation(seeds)[:SEEDS])


def _search(draw: Evaluation, view: ModelView, seed: int) -> NDArray[np.float64]:
    rows, seeds = searched(draw.study, seed=seed)
    assert view.z_mean is not None
    found = min(FOUND, max(NEIGHBOURS, len(rows) // 5))  # whoever finds nearly all of them finds nothing
    return measures.dnmse_curve(draw.study.stamps[rows], view.z_mean[rows], seeds, neighbours=found)


def search_resamples(study: Study, *, seed: int = 1) -> Resamples:
    """Draw bootstrap samples of the searches.

    Parameters
    ----------
    study : Study
        Stamps.
    seed : int
        As for `searched`.

    Returns
    -------
    Resamples
        Of the rows of `Judgement.search`.
    """
    rows, seeds = searched(study, seed=seed)
    return resample(_of(study.groups, rows[seeds]), np.zeros(len(seeds), np.int8), seed=seed)


def _search_merits(draw: Evaluation, search: NDArray[np.float64], seed: int) -> Merits:
    resamples = search_resamples(draw.study, seed=seed)
    lengths = sorted({1, 10, search.shape[1]} & set(range(1, search.shape[1] + 1)))
    curve = {f"dnmse_at_{k}": resamples.mean(search[:, k - 1]) for k in lengths}
    return {"seeds": len(search), "found": search.shape[1], "dnmse": resamples.mean(search[:, -1])} | curve


def _standardised(fitted: Array, *others: Array) -> list[Array]:
    centre, spread = fitted.mean(axis=0), fitted.std(axis=0) + 1e-8
    return [np.clip((codes - centre) / spread, -_STAND_OUT, _STAND_OUT) for codes in (fitted, *others)]


def _classify(fitted: Array, real: NDArray[np.bool_], judged: Array, seed: int) -> Array:
    """The paper's one-hidden-layer classifier on standardised codes."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from sklearn.utils._testing import ignore_warnings

    train, test = _standardised(fitted, judged)
    network = MLPClassifier(HIDDEN, alpha=1e-2, learning_rate_init=3e-3, max_iter=60, random_state=seed)
    ignore_warnings(category=ConvergenceWarning)(network.fit)(train, real)  # sixty epochs are what is asked for
    return cast("Array", network.predict_proba(test)[:, 1].astype(np.float32))


def _score_on_codes(draw: Evaluation, view: ModelView, merits: Merits, seed: int) -> Array | None:
    """Fit classifiers and probes on the fitted rows; what they say of the judged ones goes into `merits`."""
    study, rows = draw.study, draw.labelled
    if "classification" in draw.missing:
        return None
    real = study.real(rows)
    own = None if view.real_score is None else view.real_score[rows]
    if own is not None and np.isfinite(own).all():
        merits["own_score"] = score_merits(own, real, draw.labelled_resamples)
        _add_breakdown(draw, merits, "own_score", own)
    if "probes" in draw.missing or view.z_mean is None:
        if own is not None and view.z_mean is None:
            merits["classifier"] = merits["own_score"]
            return own
        return None
    fitted = np.random.default_rng(seed).permutation(study.labelled(study.fitted))[:MOST_PROBED]
    truth = study.real(fitted)
    score = _classify(view.z_mean[fitted], truth, view.z_mean[rows], seed)
    merits["classifier"] = score_merits(score, real, draw.labelled_resamples)
    _add_breakdown(draw, merits, "classifier", score)
    if view.probabilistic:
        codes = sampled(view.z_mean, view.z_log_var, seed=seed)
        drawn = _classify(codes[fitted], truth, codes[rows], seed)
        merits["classifier_on_draw"] = score_merits(drawn, real, draw.labelled_resamples)
    merits["few_labels"] = {"on_mean": _few_labels(view, fitted, study, rows, None, seed)}
    if view.probabilistic:
        merits["few_labels"]["on_draw"] = _few_labels(view, fitted, study, rows, view.z_log_var, seed)
    return score


def score_merits(score: Array, real: NDArray[np.bool_], resamples: Resamples) -> Merits:
    """Measure scores with intervals.

    Parameters
    ----------
    score : ndarray, shape (n,)
        High for real.
    real : ndarray of bool, shape (n,)
        Truth, of both classes.
    resamples : Resamples
        Of the n stamps.

    Returns
    -------
    dict
        AUC, AUPRC, MDR at 1% FPR and ECE, each with its interval; how many of each class.
    """
    found: Merits = {"real": int(real.sum()), "bogus": int((~real).sum())}
    statistics: dict[str, Callable[[Array, NDArray[np.bool_]], float]] = {
        "auc": measures.roc_auc,
        "auprc": measures.average_precision,
        "mdr_at_1pct_fpr": measures.missed_detection_rate,
        "ece": measures.expected_calibration_error,
    }
    for name, statistic in statistics.items():
        found[name] = {
            "value": float(statistic(score, real)),
            "interval_95": resamples.interval(_of_rows(statistic, score, real)),
        }
    return found


def _of_rows(
    statistic: Callable[[Array, NDArray[np.bool_]], float], score: Array, real: NDArray[np.bool_]
) -> Callable[[Rows], float]:
    def on(rows: Rows) -> float:
        some = real[rows]
        return float("nan") if some.all() or not some.any() else statistic(score[rows], some)

    return on


def _add_breakdown(draw: Evaluation, merits: Merits, which: str, score: Array) -> None:
    study, rows = draw.study, draw.labelled
    real = study.real(rows)
    threshold = measures.threshold_at(score, real)
    if study.kinds is not None:
        kinds = measures.by_kind(score, real, study.kinds[rows], threshold=threshold)
        merits[which]["by_kind"] = [_row(row) for row in kinds]
    if study.snr is not None:
        snr = measures.by_snr(score, real, study.snr[rows].astype(np.float64), threshold=threshold)
        merits[which]["by_snr"] = [_row(row) for row in snr]


def _row(row: measures.Row) -> Merits:
    return {
        "name": row.name,
        "real": row.real,
        "stamps": row.stamps,
        "passed": row.passed,
        "interval_95": [row.low, row.high],
    }


def _few_labels(
    view: ModelView, fitted: Rows, study: Study, judged: Rows, z_log_var: Array | None, seed: int
) -> list[Merits]:
    """The curve on means, or with log-variances on codes that each draw takes anew from their posteriors."""
    assert view.z_mean is not None
    table = few_labels.curve(
        view.z_mean[fitted],
        study.real(fitted),
        view.z_mean[judged],
        study.real(judged),
        counts=[count for count in COUNTS if count <= len(fitted)],
        draws=LABEL_DRAWS,
        seed=seed,
        train_log_var=_of(z_log_var, fitted),
        test_log_var=_of(z_log_var, judged),
    )
    return [
        {
            "labels": point.labels,
            "real": point.real,
            "bogus": point.bogus,
            "auc": {"value": point.mean, "interval_95": [point.low, point.high]},
            "std": point.std,
        }
        for point in table
    ]


def _hold_against_pca(evaluation: Evaluation) -> None:
    """Add each model's paired differences to PCA, which is the one to beat."""
    pca = evaluation.named("PCA")
    if pca is None:
        return
    study = evaluation.study
    real = study.real(evaluation.labelled)
    searches = search_resamples(study)
    for item in evaluation.judgements:
        found: Merits = {}
        if item is not pca and item.view.squared_error is not None and pca.view.squared_error is not None:
            difference = (item.view.squared_error - pca.view.squared_error)[study.judged]
            found["squared_error"] = evaluation.resamples.mean(difference)
        if item is not pca and item.search is not None and pca.search is not None:
            found["dnmse"] = searches.mean(item.search[:, -1] - pca.search[:, -1])
        if item is not pca and item.score is not None and pca.score is not None:
            one, other = (_of_rows(measures.roc_auc, score, real) for score in (item.score, pca.score))
            every = np.arange(len(real))
            found["auc"] = {
                "value": one(every) - other(every),
                "interval_95": evaluation.labelled_resamples.interval(_minus(one, other)),
            }
        if found:
            item.merits["minus_pca"] = found


def _minus(one: Callable[[Rows], float], other: Callable[[Rows], float]) -> Callable[[Rows], float]:
    return lambda rows: one(rows) - other(rows)
