"""How far labels go, how far scores are probabilities, and where they err."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.learning import measures
from stream_vae.learning.merits import Evaluation, Judgement
from stream_vae.learning.report.paper import CLASSES
from stream_vae.learning.report.style import Style, new_figure
from stream_vae.learning.study import Study


def draw_few_labels(items: Sequence[Judgement], looks: Mapping[str, Style]) -> Any:
    """Draw the AUC of a logistic probe against the number of labels that it was shown.

    Parameters
    ----------
    items : sequence of Judgement
        With `few_labels`.
    looks : mapping of Style
        By model.

    Returns
    -------
    matplotlib.figure.Figure
        Probes on means (or codes without a posterior), and on draws from the posterior.
    """
    figure, axes = new_figure(2, width=5.6, height=4.0)
    panels = (
        ("on_mean", "probe on the mean of the code"),
        ("on_draw", "probe on a draw of the code (baselines: the code)"),
    )
    lowest = 1.0
    for axis, (key, title) in zip(axes[0], panels, strict=True):
        for i, item in enumerate(items):
            table = item.merits["few_labels"].get(key) or item.merits["few_labels"]["on_mean"]
            look = looks[item.view.name]
            labels = np.array([point["labels"] for point in table]) * 1.03 ** (i - 0.5 * len(items))
            auc = np.array([point["auc"]["value"] for point in table])
            low, high = np.array([point["auc"]["interval_95"] for point in table]).T
            lowest = min(lowest, float(auc.min()))
            error = [np.maximum(auc - low, 0.0), np.maximum(high - auc, 0.0)]
            axis.errorbar(
                labels,
                1.0 - auc,
                yerr=[error[1], error[0]],
                fmt=look.dash,
                color=look.colour,
                marker=look.marker,
                markersize=5,
                capsize=2,
                label=look.short,
                linewidth=1.3,
            )
        axis.set(
            xscale="log", yscale="log", xlabel="labels shown, half of them real", ylabel="1 - AUC, lower is better"
        )
        axis.set_title(title, fontsize=9)
        shown = [point["labels"] for point in items[0].merits["few_labels"]["on_mean"]]
        axis.set_xticks(shown, [str(count) for count in shown])
        axis.minorticks_off()
        axis.grid(axis="y", color="0.92", which="both")
    low = min(axis.get_ylim()[0] for axis in axes[0])
    high = max(axis.get_ylim()[1] for axis in axes[0])
    for axis in axes[0]:
        axis.set_ylim(low, high)
        ticks = [tick for tick in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if low <= tick <= high]
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    return figure


def draw_reliability(evaluation: Evaluation, looks: Mapping[str, Style]) -> Any:
    """Draw the share of real stamps against the score, with its calibration error.

    Parameters
    ----------
    evaluation : Evaluation
        With labels of both classes.
    looks : mapping of Style
        By model.

    Returns
    -------
    matplotlib.figure.Figure
        Classifiers on codes, and the models' own scores where there are any.
    """
    real = evaluation.study.real(evaluation.labelled)
    fitted = [(item, item.score, "classifier") for item in evaluation.judgements if item.score is not None]
    own = [
        (item, item.view.real_score[evaluation.labelled], "own_score")
        for item in evaluation.judgements
        if "own_score" in item.merits and item.view.real_score is not None and item.view.z_mean is not None
    ]
    panels = [(items, title) for items, title in ((own, "as served"), (fitted, "classifier on the code")) if items]
    figure, axes = new_figure(len(panels), width=6.0, height=4.6)
    for axis, (items, title) in zip(axes[0], panels, strict=True):
        axis.plot([0, 1], [0, 1], color="0.7", linestyle=":")
        for i, (item, score, key) in enumerate(items):
            look = looks[item.view.name]
            label = f"{look.short}: ECE {show(item.merits[key]['ece'])}"
            _reliability(axis, score, real, look.colour, look.marker, label, shift=0.004 * (i - len(items) / 2))
        axis.set(xlabel="mean score", ylabel="share of real stamps", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axis.set_title(title, fontsize=9)
        # Beside the bars, which fill the panel.
        axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def show(merit: Mapping[str, Any], digits: int = 3) -> str:
    """Write a figure with its interval.

    Parameters
    ----------
    merit : mapping
        `value` and `interval_95`.
    digits : int
        After the point.

    Returns
    -------
    str
        Such as ``0.991 (0.985 to 0.995)``.
    """
    if merit["value"] is None:
        return "none"
    text = f"{merit['value']:.{digits}f}"
    if merit["interval_95"] is None:
        return text
    low, high = merit["interval_95"]
    return f"{text} ({low:.{digits}f} to {high:.{digits}f})"


def _reliability(
    axis: Any, score: NDArray[Any], real: NDArray[np.bool_], colour: str, marker: str, label: str, *, shift: float = 0.0
) -> None:
    from scipy.stats import binomtest

    mean_score, real_share, count = measures.reliability(score, real)
    filled = np.flatnonzero(count > 0)
    intervals = [
        binomtest(round(real_share[i] * count[i]), int(count[i])).proportion_ci(method="wilson") for i in filled
    ]
    below = [max(real_share[i] - interval.low, 0.0) for i, interval in zip(filled, intervals, strict=True)]
    above = [max(interval.high - real_share[i], 0.0) for i, interval in zip(filled, intervals, strict=True)]
    axis.errorbar(
        mean_score[filled] + shift,
        real_share[filled],
        [below, above],
        marker=marker,
        color=colour,
        linestyle="none",
        markersize=4,
        linewidth=0.8,
        elinewidth=0.6,
        label=label,
    )


def draw_own_scores(study: Study) -> Any:
    """Draw the first model's own scores: histogram, and with labels of both classes ROC and reliability.

    Parameters
    ----------
    study : Study
        Its first view has scores.

    Returns
    -------
    matplotlib.figure.Figure
        One or three panels.
    """
    own = study.views[0].real_score
    assert own is not None
    rows = study.judged[np.isfinite(own[study.judged])]
    labelled = study.labelled(rows)
    both = study.both_classes(labelled)
    figure, axes = new_figure(3 if both else 1)
    for label, name, colour in CLASSES:
        scores = own[rows][study.labels[rows] == label]
        if len(scores):
            axes[0, 0].hist(scores, np.linspace(0.0, 1.0, 41), histtype="step", color=colour, label=name)
    axes[0, 0].set(xlabel="real_score", ylabel="stamps", yscale="log")
    axes[0, 0].legend(fontsize=8)
    if both:
        real, score = study.real(labelled), own[labelled]
        false, true = measures.roc_curve(score, real)
        axes[0, 1].plot(np.maximum(false, 0.5 / max(1, (~real).sum())), true, drawstyle="steps-post")
        axes[0, 1].axvline(0.01, color="0.7", linestyle=":")
        axes[0, 1].set(xscale="log", xlabel="false positive rate", ylabel="true positive rate", title="ROC")
        axes[0, 2].plot([0, 1], [0, 1], color="0.7", linestyle=":")
        _reliability(axes[0, 2], score, real, "#0072B2", "o", "")
        axes[0, 2].set(xlabel="mean real_score", ylabel="share of real stamps", title="reliability")
    return figure


def draw_breakdown(evaluation: Evaluation, looks: Mapping[str, Style]) -> Any:
    """Draw what passes at 1% false positives, by kind and by signal to noise.

    Parameters
    ----------
    evaluation : Evaluation
        With `by_kind` or `by_snr` of some classifier.
    looks : mapping of Style
        By model.

    Returns
    -------
    matplotlib.figure.Figure
        A panel for each class and breakdown.
    """
    panels = [
        (key, truth)
        for key in ("by_kind", "by_snr")
        for truth in (True, False)
        if any(row["real"] == truth for item in evaluation.judgements for row in broken_down(item, key))
    ]
    figure, axes = new_figure(len(panels), width=3.6, height=4.2)
    for axis, (key, truth) in zip(axes[0], panels, strict=True):
        items = [item for item in evaluation.judgements if broken_down(item, key)]
        names = {row["name"]: row["stamps"] for row in broken_down(items[0], key) if row["real"] == truth}
        for i, item in enumerate(items):
            rows = [row for row in broken_down(item, key) if row["real"] == truth]
            at = np.array([list(names).index(row["name"]) for row in rows]) + 0.75 * ((i + 0.5) / len(items) - 0.5)
            passed = np.array([row["passed"] for row in rows])
            low, high = np.array([row["interval_95"] for row in rows]).T
            look = looks[item.view.name]
            error = [np.maximum(passed - low, 0.0), np.maximum(high - passed, 0.0)]
            axis.errorbar(
                passed,
                at,
                xerr=error,
                color=look.colour,
                marker=look.marker,
                linestyle="none",
                markersize=4,
                linewidth=1.0,
                label=look.short,
            )
        ticks = [f"{name.replace('_', ' ')} ({count})" for name, count in names.items()]
        axis.set_yticks(range(len(names)), ticks, fontsize=8)
        axis.invert_yaxis()
        axis.grid(axis="x", color="0.92")
        axis.set_xlabel("share that passes")
        what = "kind" if key == "by_kind" else "S/N"
        axis.set_title(f"{'real kept' if truth else 'bogus let through'}, by {what}", fontsize=9)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=7)
    return figure


def broken_down(item: Judgement, key: str) -> list[dict[str, Any]]:
    """Find a model's breakdown.

    Parameters
    ----------
    item : Judgement
        Of a model.
    key : {"by_kind", "by_snr"}
        Which.

    Returns
    -------
    list of dict
        Of the classifier on its codes, else of its own score; empty if there is none.
    """
    for scores in ("classifier", "own_score"):
        found: list[dict[str, Any]] | None = item.merits.get(scores, {}).get(key)
        if found:
            return found
    return []
