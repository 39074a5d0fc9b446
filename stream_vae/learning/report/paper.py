"""Figure 2 of the paper redone: search (a), reconstructions (b), ROC curves (c), cost evolution (d).

References
----------
Huijse, Astorga, Estevez & Pignata 2018, ESANN, figure 2.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.learning import measures
from stream_vae.learning.data.stamps import BOGUS, REAL, UNKNOWN
from stream_vae.learning.merits import Evaluation, Judgement, search_resamples
from stream_vae.learning.report.style import (
    BOGUS_COLOUR,
    REAL_COLOUR,
    UNKNOWN_COLOUR,
    Style,
    frame,
    new_figure,
    show_mosaic,
)
from stream_vae.learning.resample import Resamples
from stream_vae.learning.study import ModelView, Study

CLASSES = ((REAL, "real", REAL_COLOUR), (BOGUS, "bogus", BOGUS_COLOUR), (UNKNOWN, "unlabelled", UNKNOWN_COLOUR))
_KINDS_OF_COST = (("-", "validation"), (":", "training"))
_RATES = np.geomspace(1e-3, 1.0, 121)


def draw_search(evaluation: Evaluation, looks: Mapping[str, Style]) -> Any:
    """Figure 2a: error of what a search finds, against how many are looked at.

    Parameters
    ----------
    evaluation : Evaluation
        With searches.
    looks : mapping of Style
        By model.

    Returns
    -------
    matplotlib.figure.Figure
        The curves with bands, and beside them each model's last point.
    """
    figure, axes = new_figure(2, width=5.2, height=3.8)
    curve, last = axes[0]
    resamples = search_resamples(evaluation.study)
    items = [item for item in evaluation.judgements if item.search is not None]
    for i, item in enumerate(items):
        assert item.search is not None
        look = looks[item.view.name]
        lengths = np.arange(1, item.search.shape[1] + 1)
        low, high = band(item.search, resamples)
        curve.plot(lengths, item.search.mean(axis=0), look.dash, color=look.colour, label=look.short)
        curve.fill_between(lengths, low, high, color=look.colour, alpha=0.15, linewidth=0)
        value = float(item.search[:, -1].mean())
        error = [[max(value - low[-1], 0.0)], [max(high[-1] - value, 0.0)]]
        last.errorbar(value, i, xerr=error, color=look.colour, marker=look.marker, capsize=3)
    curve.set(xscale="log", xlabel="stamps found, k", ylabel="DNMSE(k), lower is better")
    ticks = [
        k
        for k in (1, 2, 5, 10, 20, 50, 100)
        if k <= max(item.search.shape[1] for item in items if item.search is not None)
    ]
    curve.set_xticks(ticks, [str(k) for k in ticks])
    curve.minorticks_off()
    curve.legend(fontsize=8)
    last.set_yticks(range(len(items)), [looks[item.view.name].short for item in items], fontsize=8)
    last.invert_yaxis()
    found = max(item.search.shape[1] for item in items if item.search is not None)
    last.set(xlabel=f"DNMSE({found}), 95% interval")
    return figure


def band(values: NDArray[np.float64], resamples: Resamples) -> tuple[NDArray[Any], NDArray[Any]]:
    """Bootstrap a mean curve at every point.

    Parameters
    ----------
    values : ndarray, shape (n, points)
        One curve a row.
    resamples : Resamples
        Of the rows.

    Returns
    -------
    low, high : ndarray, shape (points,)
        The 95% band.
    """
    means = np.stack([values[rows].mean(axis=0) for rows in resamples.rows])
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return low, high


def draw_reconstructions(study: Study, looks: Mapping[str, Style], *, count: int = 12) -> Any:
    """Figure 2b: stamps, and below them what each model makes of them from its code.

    Parameters
    ----------
    study : Study
        Its first channel is drawn.
    looks : mapping of Style
        By model.
    count : int
        How many stamps.

    Returns
    -------
    matplotlib.figure.Figure
        A row of stamps and one for each model.
    """
    rows = examples(study, count)
    views = [view for view in study.views if view.reconstruction is not None]
    images = [view.reconstruction[rows, :, :, 0] for view in views if view.reconstruction is not None]
    figure, axes = new_figure(1, width=1.0 * len(rows) + 1.8, height=1.0 * (len(views) + 1))
    axis, size = axes[0, 0], study.stamps.shape[1]
    names = ["stamp", *(looks[view.name].short for view in views)]
    colours = ["black", *(looks[view.name].colour for view in views)]
    step = show_mosaic(axis, [study.stamps[rows, :, :, 0], *images], names, colours)
    for k, row in enumerate(rows):
        name, colour = next((name, colour) for label, name, colour in CLASSES if label == study.labels[row])
        frame(axis, k * step, 0, size, colour)
        kind = name if study.kinds is None else str(study.kinds[row]).replace("_", " ")
        axis.text(k * step + size / 2, -2.0, kind, fontsize=8, ha="center", va="bottom")
        for i, view in enumerate(views, start=1):
            assert view.squared_error is not None
            text = f"{view.squared_error[row]:.1f}"
            axis.text(k * step + size / 2, i * step + size, text, fontsize=7, ha="center", va="top")
    return figure


def examples(study: Study, count: int) -> NDArray[np.int64]:
    """Choose judged stamps evenly from the classes that there are, spread over the set.

    Parameters
    ----------
    study : Study
        Stamps.
    count : int
        How many at most.

    Returns
    -------
    ndarray of int
        Rows, real ones first.
    """
    labels = study.labels[study.judged]
    present = [label for label in (REAL, BOGUS, UNKNOWN) if (labels == label).any()]
    enough = int((labels != UNKNOWN).sum()) >= count
    wanted = [label for label in present if label != UNKNOWN] if enough else present
    parts = []
    for label in wanted:
        rows = study.judged[labels == label]
        parts.append(rows[np.linspace(0, len(rows) - 1, min(len(rows), count // len(wanted))).astype(int)])
    return np.concatenate(parts)


def draw_roc(evaluation: Evaluation, looks: Mapping[str, Style]) -> Any:
    """Figure 2c: ROC curves of the classifier on each model's codes, with bootstrap bands.

    Parameters
    ----------
    evaluation : Evaluation
        With labels of both classes.
    looks : mapping of Style
        By model.

    Returns
    -------
    matplotlib.figure.Figure
        Curves, and each model's AUC and missed detection rate.
    """
    real = evaluation.study.real(evaluation.labelled)
    figure, axes = new_figure(3 if tells_one_percent(real) else 2, width=4.1, height=3.8)
    curve, area, *others = axes[0]
    items = [item for item in evaluation.judgements if item.score is not None or "own_score" in item.merits]
    least = 1.0 / max(1, int((~real).sum()))
    for i, item in enumerate(items):
        look = looks[item.view.name]
        score, merits = _score_of(item, evaluation)
        low, high = roc_band(score, real, evaluation.labelled_resamples)
        curve.plot(_RATES, at_rates(score, real), look.dash, color=look.colour, label=look.short)
        curve.fill_between(_RATES, low, high, color=look.colour, alpha=0.12, linewidth=0)
        _point(area, merits["auc"], i, look)
        for missed in others:
            _point(missed, merits["mdr_at_1pct_fpr"], i, look)
    lowest = max(_RATES[0], 0.5 * least)
    curve.axvline(0.01, color="0.7", linestyle=":", zorder=0)
    curve.axvspan(lowest, min(max(least, lowest), 1.0), color="0.93", zorder=0)
    curve.set(xscale="log", xlim=(lowest, 1.0), xlabel="false positive rate", ylabel="true positive rate")
    curve.legend(fontsize=8, loc="lower right")
    area.set_yticks(range(len(items)), [looks[item.view.name].short for item in items], fontsize=8)
    area.set(xlabel="area under the ROC curve")
    area.invert_yaxis()
    for missed in others:
        missed.set_yticks(range(len(items)), ["" for _ in items])
        missed.set(xlabel="share of real stamps missed at 1% FPR")
        missed.invert_yaxis()
    return figure


def tells_one_percent(real: NDArray[np.bool_]) -> bool:
    """Tell whether there are bogus stamps enough to speak of one in a hundred.

    Parameters
    ----------
    real : ndarray of bool, shape (n,)
        Truth.

    Returns
    -------
    bool
        Whether at least one passes at 1%.
    """
    return int((~real).sum()) >= 100


def _score_of(item: Judgement, evaluation: Evaluation) -> tuple[NDArray[np.float32], Mapping[str, Any]]:
    if item.score is not None:
        return item.score, item.merits["classifier"]
    assert item.view.real_score is not None
    return item.view.real_score[evaluation.labelled], item.merits["own_score"]


def _point(axis: Any, merit: Mapping[str, Any], at: int, look: Style) -> None:
    value, interval = merit["value"], merit["interval_95"]
    low, high = interval if interval is not None else (value, value)
    error = [[max(value - low, 0.0)], [max(high - value, 0.0)]]
    axis.errorbar(value, at, xerr=error, color=look.colour, marker=look.marker, capsize=3)


def at_rates(score: NDArray[Any], real: NDArray[np.bool_]) -> NDArray[np.float64]:
    """True positive rate at fixed false positive rates.

    Parameters
    ----------
    score : ndarray, shape (n,)
        High for real.
    real : ndarray of bool, shape (n,)
        Truth, of both classes.

    Returns
    -------
    ndarray
        The highest reached at no more than each rate.
    """
    false, true = measures.roc_curve(score, real)
    return np.asarray(true[np.searchsorted(false, _RATES, side="right") - 1], np.float64)


def roc_band(
    score: NDArray[Any], real: NDArray[np.bool_], resamples: Resamples
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bootstrap a ROC curve at fixed false positive rates.

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
    low, high : ndarray
        The 95% band.
    """
    usable = [rows for rows in resamples.rows if real[rows].any() and not real[rows].all()]
    curves = np.stack([at_rates(score[rows], real[rows]) for rows in usable])
    low, high = np.quantile(curves, [0.025, 0.975], axis=0)
    return low, high


def draw_cost(views: Sequence[ModelView], looks: Mapping[str, Style]) -> Any:
    """Figure 2d: how the parts of the cost went, epoch by epoch.

    Parameters
    ----------
    views : sequence of ModelView
        Those with a history are drawn.
    looks : mapping of Style
        By model.

    Returns
    -------
    matplotlib.figure.Figure
        Negative bound at weight 1 above its own best epoch, squared error and KL term: validation stamps as full
        lines, training stamps dotted.
    """
    figure, axes = new_figure(3, width=4.1, height=3.4)
    panels = (
        ("elbo", -1.0, "negative bound above its best (nats)"),
        ("reconstruction_loss", 1.0, "summed squared error"),
        ("kl_loss", 1.0, "KL term (nats)"),
    )
    for axis, (key, sign, title) in zip(axes[0], panels, strict=True):
        for view in views:
            if view.history is None:
                continue
            look = looks[view.name]
            for prefix, dash, width in (("", ":", 1.0), ("val_", "-", 1.6)):
                if prefix + key in view.history:
                    values = sign * np.asarray(view.history[prefix + key])
                    if key == "elbo":  # bounds of different sigma differ by hundreds of nats
                        values = values - (sign * np.asarray(view.history[f"val_{key}"])).min()
                    label = look.short if prefix else None
                    epochs = np.arange(1, len(values) + 1)
                    dot = "o" if len(values) == 1 else ""  # one epoch makes no line
                    axis.plot(epochs, values, dash, color=look.colour, marker=dot, linewidth=width, label=label)
        axis.set(xlabel="epoch", ylabel=title)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_yscale("symlog", linthresh=1.0)
    axes[0, 1].set_yscale("log")
    axes[0, 2].set_yscale("symlog", linthresh=0.1)
    axes[0, 2].set_ylim(bottom=0.0)
    for side in (axes[0, 1].yaxis.set_major_formatter, axes[0, 1].yaxis.set_minor_formatter):
        side("{x:.3g}")
    axes[0, 1].tick_params(axis="y", which="minor", labelsize=8)
    kinds = [axes[0, 2].plot([], [], dash, color="0.3", label=name)[0] for dash, name in _KINDS_OF_COST]
    axes[0, 2].legend(handles=kinds, fontsize=8, loc="center right")
    # The middle panel is the one that an autoencoder without a bound is in too.
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    return figure
