"""What all figures of a report share: colours that everyone can tell apart, the same for a model throughout."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stream_vae.errors import ConfigError

_MODELS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#8C510A", "#5E3C99")
"""Vermillion, green, purple, orange (Okabe & Ito 2008); brown and violet for a fifth and a sixth model."""
_BASELINES = (("PCA", "#0072B2", "s"), ("SDL", "#56B4E9", "D"), ("raw", "#888888", "x"), ("supervised", "#000000", "*"))
"""Blue, sky blue, grey and black, for what every report has."""
_MARKERS = "o^vPhX"
GAP = 8
"""Pixels between the stamps of a mosaic: room for a line of small print."""
REAL_COLOUR, BOGUS_COLOUR, UNKNOWN_COLOUR = "#DDAA33", "#004488", "#999999"
"""Of classes: gold and dark blue (P. Tol, high contrast), which no model has."""


@dataclass(frozen=True)
class Style:
    """How a model looks in every figure."""

    colour: str
    marker: str
    dash: str
    short: str
    """Its name, cut to what a legend has room for."""


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Give each model its colour, marker and line.

    Parameters
    ----------
    names : sequence of str
        In the order of the report.

    Returns
    -------
    dict of Style
        By name; baselines look the same in every report.
    """
    found: dict[str, Style] = {}
    others = 0
    for name in names:
        baseline = next((item for item in _BASELINES if name.startswith(item[0])), None)
        if baseline is not None:
            found[name] = Style(baseline[1], baseline[2], "--", short(name))
        else:
            dash = "-" if others < len(_MODELS) else ":"
            found[name] = Style(_MODELS[others % len(_MODELS)], _MARKERS[others % len(_MARKERS)], dash, short(name))
            others += 1
    return found


def short(name: str) -> str:
    """Cut a release's id to its recipe and the beginning of its digest.

    Parameters
    ----------
    name : str
        A model's name.

    Returns
    -------
    str
        For legends.
    """
    release = re.fullmatch(r"(.+)-\d{8}-([0-9a-f]{12})", name)
    return f"{release[1]} {release[2][:4]}" if release else name


def new_figure(columns: int, rows: int = 1, *, width: float = 4.0, height: float = 3.2) -> tuple[Any, Any]:
    """Make an empty figure, without pyplot, so that nothing global is touched.

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
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def show_mosaic(axis: Any, rows: Sequence[Any], names: Sequence[str], colours: Sequence[str]) -> int:
    """Draw rows of stamps as one image, always from -1 to 1, so that brightness may be compared.

    One image and not a panel for each stamp: laying out a hundred panels takes ten seconds.

    Parameters
    ----------
    axis : matplotlib.axes.Axes
        Where to; its axes are hidden.
    rows : sequence of ndarray, each (columns, size, size)
        One channel, as many stamps in each row.
    names, colours : sequence of str
        What stands before each row, and in which colour.

    Returns
    -------
    int
        Pixels from one stamp to the next: stamp k of row i begins at column k and row i times that.
    """
    size = int(rows[0].shape[1])
    step = size + GAP
    canvas = np.full((len(rows) * step - GAP, len(rows[0]) * step - GAP), np.nan, np.float32)
    for i, row in enumerate(rows):
        for k, stamp in enumerate(row):
            # Row 0 of a stamp is its lower edge, row 0 of the canvas its upper one.
            canvas[i * step : i * step + size, k * step : k * step + size] = stamp[::-1]
    axis.imshow(canvas, cmap="gray", vmin=-1.0, vmax=1.0, interpolation="nearest", aspect="equal")
    axis.set_axis_off()
    for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
        axis.text(-GAP, i * step + size / 2, name, color=colour, fontsize=9, ha="right", va="center")
    return step


def frame(axis: Any, column: float, row: float, size: float, colour: str) -> None:
    """Draw a frame round a stamp of a mosaic.

    Parameters
    ----------
    axis : matplotlib.axes.Axes
        Of the mosaic.
    column, row : float
        Its first pixel.
    size : float
        Its side.
    colour : str
        Of the frame.
    """
    from matplotlib.patches import Rectangle

    corner = (column - 1.0, row - 1.0)
    axis.add_patch(
        Rectangle(corner, size + 1.0, size + 1.0, fill=False, edgecolor=colour, linewidth=2.0, clip_on=False)
    )
