"""The pictures of a report, drawn without pyplot so that nothing global is touched."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning import measures
from stream_vae.learning.stamps import BOGUS, REAL, UNKNOWN
from stream_vae.learning.study import Study

_CLASSES = ((REAL, "real", "tab:blue"), (BOGUS, "bogus", "tab:orange"), (UNKNOWN, "unlabelled", "0.6"))


def new_figure(columns: int, rows: int = 1, *, width: float = 4.0, height: float = 3.2) -> tuple[Any, Any]:
    """Make an empty figure.

    Parameters
    ----------
    columns, rows : int
        Its panels.
    width, height : float
        Of a panel, inches.

    Returns
    -------
    figure, axes
        Axes as an array of shape (rows, columns).

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("Reports need matplotlib.", remedy="Install it: pip install 'stream-vae[train]'.") from error
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def draw_history(history: Mapping[str, Sequence[float]]) -> Any:
    """Draw how the loss and its parts went.

    Parameters
    ----------
    history : mapping of sequences
        What Keras logged, one value an epoch.

    Returns
    -------
    matplotlib.figure.Figure
        Three panels.
    """
    figure, axes = new_figure(3)
    titles = {"loss": "loss (nats)", "reconstruction_loss": "squared error", "kl_loss": "KL (nats)"}
    for axis, (name, title) in zip(axes[0], titles.items(), strict=True):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            epochs = np.arange(1, len(history[key]) + 1)
            axis.plot(epochs, history[key], label=label, marker=".")
        axis.set(title=title, xlabel="epoch")
    axes[0, 0].legend()
    return figure


def draw_reconstructions(study: Study, *, count: int = 10) -> Any:
    """Draw stamps above their reconstructions and what is left; half of them real where labels say so.

    Parameters
    ----------
    study : Study
        Its first channel is drawn.
    count : int
        How many stamps.

    Returns
    -------
    matplotlib.figure.Figure
        Three rows.
    """
    rows = _examples(study.labels, count)
    figure, axes = new_figure(len(rows), 3, width=1.0, height=1.05)
    stamps, reconstructions = study.stamps[rows, :, :, 0], study.reconstruction[rows, :, :, 0]
    images = (stamps, reconstructions, stamps - reconstructions)
    names = {label: name for label, name, _ in _CLASSES}
    for axis_row, image_row, title in zip(axes, images, ("stamp", "reconstruction", "residual"), strict=True):
        for axis, image, row in zip(axis_row, image_row, rows, strict=True):
            axis.imshow(image, origin="lower", cmap="gray", vmin=-1.0, vmax=1.0)
            axis.set(xticks=[], yticks=[])
            if title == "stamp":
                axis.set_title(names[int(study.labels[row])], fontsize=7)
        axis_row[0].set_ylabel(title, fontsize=7)
    return figure


def draw_errors(study: Study) -> Any:
    """Draw the distribution of the reconstruction error beside PCA's.

    Parameters
    ----------
    study : Study
        Any.

    Returns
    -------
    matplotlib.figure.Figure
        One panel.
    """
    figure, axes = new_figure(1, width=5.0)
    top = float(np.quantile(np.concatenate([study.squared_error, study.pca_squared_error]), 0.99))
    bins = np.linspace(0.0, max(top, 1e-6), 60)
    for errors, label in ((study.squared_error, "this release"), (study.pca_squared_error, "PCA of the same size")):
        axes[0, 0].hist(errors, bins, histtype="step", label=f"{label}: {errors.mean():.2f}")
    axes[0, 0].set(xlabel="summed squared error of a stamp", ylabel="stamps")
    axes[0, 0].legend()
    return figure


def draw_units(study: Study) -> Any:
    """Draw each latent unit's divergence from the prior, sorted.

    Parameters
    ----------
    study : Study
        Any.

    Returns
    -------
    matplotlib.figure.Figure
        One panel.
    """
    figure, axes = new_figure(1, width=5.0)
    kl = np.sort(measures.kl_per_unit(study.z_mean, study.z_log_var))[::-1]
    axes[0, 0].bar(np.arange(1, len(kl) + 1), kl)
    axes[0, 0].set(xlabel="latent unit", ylabel="KL (nats)")
    return figure


def draw_latent_map(study: Study, *, count: int = 4000) -> Any:
    """Draw codes in the plane in which they vary most.

    Parameters
    ----------
    study : Study
        Any.
    count : int
        At most so many stamps.

    Returns
    -------
    matplotlib.figure.Figure
        One panel.
    """
    figure, axes = new_figure(1, width=5.0, height=4.5)
    centred = study.z_mean - study.z_mean.mean(axis=0)
    _, _, directions = np.linalg.svd(centred[:count], full_matrices=False)
    plane = centred[:count] @ directions[:2].T
    for label, name, colour in _CLASSES:
        chosen = study.labels[:count] == label
        if chosen.any():
            axes[0, 0].scatter(*plane[chosen].T, s=4, alpha=0.5, color=colour, label=name, linewidths=0)
    axes[0, 0].set(xlabel="first principal direction of z_mean", ylabel="second")
    axes[0, 0].legend(markerscale=3)
    return figure


def draw_scores(study: Study) -> Any:
    """Draw score histograms, and with labels of both classes the ROC curve and the reliability diagram.

    Parameters
    ----------
    study : Study
        With scores.

    Returns
    -------
    matplotlib.figure.Figure
        One or three panels.
    """
    known = (study.labels != UNKNOWN) & np.isfinite(study.real_score)
    real = study.labels[known] == REAL
    both = bool(real.any() and not real.all())
    figure, axes = new_figure(3 if both else 1)
    for label, name, colour in _CLASSES:
        scores = study.real_score[(study.labels == label) & np.isfinite(study.real_score)]
        if len(scores):
            axes[0, 0].hist(scores, np.linspace(0.0, 1.0, 41), histtype="step", color=colour, label=name)
    axes[0, 0].set(xlabel="real_score", ylabel="stamps", yscale="log")
    axes[0, 0].legend()
    if both:
        _draw_roc(axes[0, 1], study.real_score[known], real)
        _draw_reliability(axes[0, 2], study.real_score[known], real)
    return figure


def _draw_roc(axis: Any, score: NDArray[np.float32], real: NDArray[np.bool_]) -> None:
    false, true = measures.roc_curve(score, real)
    axis.plot(np.maximum(false, 0.5 / max(1, (~real).sum())), true, drawstyle="steps-post")
    axis.axvline(0.01, color="0.7", linestyle=":")
    axis.set(xscale="log", xlabel="false positive rate", ylabel="true positive rate", title="ROC")


def _draw_reliability(axis: Any, score: NDArray[np.float32], real: NDArray[np.bool_]) -> None:
    mean_score, real_share, count = measures.reliability(score, real)
    filled = count > 0
    error = np.sqrt(real_share[filled] * (1.0 - real_share[filled]) / count[filled])
    axis.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    axis.errorbar(mean_score[filled], real_share[filled], error, marker="o", linestyle="none")
    axis.set(xlabel="mean real_score", ylabel="share of real stamps", title="reliability")


def _examples(labels: NDArray[np.int8], count: int) -> NDArray[np.int64]:
    """Rows evenly from the classes that there are, spread over the set."""
    present = [label for label in (REAL, BOGUS, UNKNOWN) if (labels == label).any()]
    parts = []
    for label in present:
        rows = np.flatnonzero(labels == label)
        parts.append(rows[np.linspace(0, len(rows) - 1, min(len(rows), count // len(present))).astype(int)])
    return np.concatenate(parts)
