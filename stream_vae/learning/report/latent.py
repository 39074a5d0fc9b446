"""What codes look like: whether they collapsed and why, what each unit costs, the latent map, draws of the prior.

References
----------
Lucas, Tucker, Grosse & Norouzi 2019 (collapse); van der Maaten & Hinton 2008 (t-SNE).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.learning import measures
from stream_vae.learning.data.stamps import UNKNOWN
from stream_vae.learning.merits import predicted_active_units
from stream_vae.learning.report.paper import CLASSES
from stream_vae.learning.report.style import Style, frame, new_figure, show_mosaic
from stream_vae.learning.study import ModelView, Study

_DIRECTIONS = 60
_MAPPED = 700
"""Stamps of a map: t-SNE of these takes some seconds."""
LEAST_MAPPED = 30
"""Fewer make no map."""
_GRID = 15
"""A map shows at most one stamp in each of so many by so many cells."""


def draw_collapse(study: Study, spectrum: NDArray[np.float64], looks: Mapping[str, Style]) -> Any:
    """Draw the diagnosis of a collapse: what a unit must explain to pay for itself, and what units do.

    Parameters
    ----------
    study : Study
        With at least one model that has a posterior and a likelihood.
    spectrum : ndarray, shape (pixels,)
        Variances of the judged stamps along their principal directions, falling.
    looks : mapping of Style
        By model.

    Returns
    -------
    matplotlib.figure.Figure
        Covariance spectrum against sigma^2; KL of each unit; mutual information against its cap.
    """
    figure, axes = new_figure(3, width=4.3, height=3.9)
    variances, units, information = axes[0]
    views = [view for view in study.views if view.probabilistic]
    shown = spectrum[:_DIRECTIONS]
    variances.plot(np.arange(1, len(shown) + 1), shown, color="black", marker=".", linewidth=0.8, label="stamps")
    for i, view in enumerate(views):
        _one_model(variances, units, information, view, study, spectrum, looks[view.name], i, len(views))
    variances.set(xscale="log", yscale="log", xlabel="principal direction of the stamps", ylabel="variance along it")
    directions = [k for k in (1, 2, 5, 10, 20, 50) if k <= len(shown)]
    variances.set_xticks(directions, [str(k) for k in directions])
    variances.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    handles, labels = variances.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    units.set(xlabel="latent unit, sorted", ylabel="KL of the unit (nats)")
    units.xaxis.get_major_locator().set_params(integer=True)
    units.set_yscale("symlog", linthresh=0.01)
    units.axhline(0.01, color="0.7", linestyle=":", zorder=0)
    information.set_yticks(range(len(views)), [looks[view.name].short for view in views], fontsize=8)
    information.set(xlabel="mutual information (nats); grey: its cap", ylim=(max(len(views), 4) - 0.5, -0.5))
    information.set_xlim(0.0, 1.3 * information.get_xlim()[1])  # room for the numbers
    return figure


def _one_model(
    variances: Any,
    units: Any,
    information: Any,
    view: ModelView,
    study: Study,
    spectrum: Any,
    look: Style,
    at: int,
    count: int,
) -> None:
    assert view.z_mean is not None
    assert view.z_log_var is not None
    assert view.variance is not None
    z_mean, z_log_var = view.z_mean[study.judged], view.z_log_var[study.judged]
    predicted, found = predicted_active_units(spectrum, view), measures.active_units(z_mean)
    threshold = view.kl_weight * view.variance
    label = f"{look.short}: units predicted {predicted}, found {found}"
    # Models of one sigma have one line: the later ones are drawn thinner on the earlier ones.
    variances.axhline(threshold, color=look.colour, linewidth=1.2 + 1.6 * (count - 1 - at), label=label)
    kl = np.sort(measures.kl_per_unit(z_mean, z_log_var))[::-1]
    units.plot(np.arange(1, len(kl) + 1), kl, look.dash, color=look.colour, marker=look.marker, markersize=4)
    value, cap = measures.mutual_information(z_mean, z_log_var)
    information.barh(at, cap, height=0.6, color="0.9")
    information.barh(at, max(value, 0.0), height=0.6, color=look.colour)
    information.text(1.02 * max(value, cap), at, f"{value:.2f} of {cap:.2f}", va="center", fontsize=8)


def draw_units(view: ModelView, rows: NDArray[np.int64], look: Style) -> Any:
    """Draw each latent unit's divergence from the prior, sorted.

    Parameters
    ----------
    view : ModelView
        With a posterior.
    rows : ndarray of int
        Over which stamps.
    look : Style
        Of the model.

    Returns
    -------
    matplotlib.figure.Figure
        One panel.
    """
    figure, axes = new_figure(1, width=5.0)
    assert view.z_mean is not None
    assert view.z_log_var is not None
    kl = np.sort(measures.kl_per_unit(view.z_mean[rows], view.z_log_var[rows]))[::-1]
    axes[0, 0].bar(np.arange(1, len(kl) + 1), kl, color=look.colour)
    axes[0, 0].set(xlabel="latent unit, sorted", ylabel="KL (nats)")
    return figure


def draw_errors(study: Study, looks: Mapping[str, Style]) -> Any:
    """Draw the distribution of each model's reconstruction error.

    Parameters
    ----------
    study : Study
        Any.
    looks : mapping of Style
        By model.

    Returns
    -------
    matplotlib.figure.Figure
        One panel.
    """
    figure, axes = new_figure(1, width=6.0, height=3.4)
    errors = {view.name: view.squared_error[study.judged] for view in study.views if view.squared_error is not None}
    top = float(np.quantile(np.concatenate(list(errors.values())), 0.99))
    bins = np.linspace(0.0, max(top, 1e-6), 60)
    for name, values in errors.items():
        look = looks[name]
        label = f"{look.short}: mean {values.mean():.2f}"
        axes[0, 0].hist(
            values, bins, histtype="step", color=look.colour, linestyle=look.dash, label=label, linewidth=1.4
        )
    axes[0, 0].set(xlabel="summed squared error of a stamp", ylabel="stamps")
    axes[0, 0].legend(fontsize=8)
    return figure


def draw_plane(study: Study, *, count: int = 4000) -> Any:
    """Draw the first model's codes in the plane in which they vary most.

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
    codes = study.views[0].z_mean
    assert codes is not None
    rows = study.judged[:count]
    centred = codes[rows] - codes[rows].mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    _scatter(axes[0, 0], centred @ directions[:2].T, study.labels[rows], size=4.0)
    axes[0, 0].set(xlabel="first principal direction of z_mean", ylabel="second")
    axes[0, 0].legend(markerscale=3, fontsize=8)
    return figure


def _scatter(axis: Any, plane: NDArray[Any], labels: NDArray[np.int8], *, size: float) -> None:
    for label, name, colour in CLASSES:
        chosen = labels == label
        if chosen.any():
            axis.scatter(*plane[chosen].T, s=size, alpha=0.5, color=colour, label=name, linewidths=0)


def draw_map(study: Study, views: Sequence[ModelView], looks: Mapping[str, Style]) -> Any:
    """Draw codes in a plane by t-SNE, with stamps as markers.

    Parameters
    ----------
    study : Study
        Its first channel is drawn.
    views : sequence of ModelView
        A panel each; at least 30 judged stamps.
    looks : mapping of Style
        By model.

    Returns
    -------
    matplotlib.figure.Figure
        Stamps framed by class; dots where there is no room for one.
    """
    figure, axes = new_figure(len(views), width=5.8, height=5.8)
    rows = mapped(study)
    for axis, view in zip(axes[0], views, strict=True):
        assert view.z_mean is not None
        plane = project(view.z_mean[rows])
        _map_of_stamps(axis, plane, study.stamps[rows, :, :, 0], study.labels[rows])
        axis.set_title(f"{looks[view.name].short}, t-SNE", color=looks[view.name].colour, fontsize=11)
    return figure


def _map_of_stamps(axis: Any, plane: NDArray[Any], stamps: NDArray[Any], labels: NDArray[np.int8]) -> None:
    """One stamp in each cell that has any, framed by class; the other stamps as dots."""
    step, size = stamps.shape[1] + 4, stamps.shape[1]
    canvas = np.full((_GRID * step, _GRID * step), np.nan, np.float32)
    low, high = plane.min(axis=0), plane.max(axis=0)
    scaled = (plane - low) / np.maximum(high - low, 1e-12) * _GRID
    for at in spread_out(plane):
        column, row = np.minimum(scaled[at].astype(int), _GRID - 1) * step + 2
        canvas[row : row + size, column : column + size] = stamps[at]
        colour = next(colour for label, _, colour in CLASSES if label == labels[at])
        frame(axis, column, row, size, colour)
    _scatter(axis, scaled * step, labels, size=7.0)
    axis.imshow(canvas, cmap="gray", vmin=-1.0, vmax=1.0, origin="lower", interpolation="nearest", zorder=3)
    axis.set_axis_off()
    axis.legend(fontsize=8, markerscale=2, loc="upper left", bbox_to_anchor=(0.0, 0.0), ncols=3)


def mapped(study: Study) -> NDArray[np.int64]:
    """Choose the stamps of a map: as many of each class, so that the rarer one is seen; any if few have a label.

    Parameters
    ----------
    study : Study
        Stamps.

    Returns
    -------
    ndarray of int
        Judged rows.
    """
    labels = study.labels[study.judged]
    random = np.random.default_rng(1)
    present = [*np.unique(labels)]
    if (labels != UNKNOWN).sum() >= LEAST_MAPPED:
        present = [label for label in present if label != UNKNOWN]
    parts = [random.permutation(study.judged[labels == label])[: _MAPPED // len(present)] for label in present]
    return random.permutation(np.concatenate(parts))


def project(codes: NDArray[Any]) -> NDArray[np.float64]:
    """Lay codes in a plane so that near ones stay near.

    Parameters
    ----------
    codes : ndarray, shape (n, k)
        Codes, at least 30.

    Returns
    -------
    ndarray, shape (n, 2)
        The plane; its axes mean nothing.
    """
    from sklearn.manifold import TSNE

    standardised = (codes - codes.mean(axis=0)) / (codes.std(axis=0) + 1e-8)
    perplexity = min(30.0, (len(codes) - 1) / 3.0)
    plane = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", max_iter=500, random_state=1)
    return np.asarray(plane.fit_transform(np.clip(standardised, -10.0, 10.0).astype(np.float64)), np.float64)


def spread_out(plane: NDArray[Any], cells: int = _GRID) -> NDArray[np.int64]:
    """Choose at most one point in each cell of a grid, so that stamps drawn there do not overlap much.

    Parameters
    ----------
    plane : ndarray, shape (n, 2)
        Points.
    cells : int
        Of the grid, along each side.

    Returns
    -------
    ndarray of int
        Of each cell the point nearest to its middle.
    """
    low, high = plane.min(axis=0), plane.max(axis=0)
    scaled = (plane - low) / np.maximum(high - low, 1e-12) * cells
    cell = np.minimum(scaled.astype(int), cells - 1)
    off = np.square(scaled - cell - 0.5).sum(axis=1)
    order = np.lexsort((off, cell[:, 0] * cells + cell[:, 1]))
    keys = (cell[:, 0] * cells + cell[:, 1])[order]
    return np.asarray(order[np.append(True, np.diff(keys) > 0)], np.int64)


def draw_prior(views: Sequence[ModelView], looks: Mapping[str, Style], *, count: int = 14) -> Any:
    """Draw stamps decoded from draws of each model's prior.

    Parameters
    ----------
    views : sequence of ModelView
        With `prior_stamps`.
    looks : mapping of Style
        By model.
    count : int
        How many of each.

    Returns
    -------
    matplotlib.figure.Figure
        A row a model.
    """
    count = min(count, *(len(view.prior_stamps) for view in views if view.prior_stamps is not None))
    rows = [view.prior_stamps[:count, :, :, 0] for view in views if view.prior_stamps is not None]
    figure, axes = new_figure(1, width=0.8 * count + 1.0, height=0.8 * len(views))
    show_mosaic(
        axes[0, 0], rows, [looks[view.name].short for view in views], [looks[view.name].colour for view in views]
    )
    return figure
