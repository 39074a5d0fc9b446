"""Suggested stamps, in a terminal and as a sheet."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stream_vae.alert import FloatArray
from stream_vae.errors import ConfigError
from stream_vae.tools.pictures import Panel, limits_of
from stream_vae.tools.similar_sheet import ACROSS, draw

if TYPE_CHECKING:
    from stream_vae.learning.suggestions import Suggestion, Suggestions

_ID_LETTERS = 21
"""As many as a stamp is wide; the last ones of an id tell alerts apart."""


def panel_of(item: "Suggestion", number: int) -> Panel:
    """Make the picture of a stamp for a terminal.

    Parameters
    ----------
    item : Suggestion
        The stamp; its channels are shown beside each other.
    number : int
        Its place, from 1 on.

    Returns
    -------
    Panel
        With what is known of it underneath.
    """
    pixels = flat(item.stamp)
    title = f"{number}. {item.band}".rstrip() + (" (held out)" if item.held_out else "")
    told = [item.alert_id[-_ID_LETTERS:], f"score {score_of(item)}", f"novelty {_number(item.novelty)}"]
    return Panel(title, pixels, limits_of(pixels), tuple(told))


def flat(stamp: FloatArray) -> FloatArray:
    """Lay the channels of a stamp beside each other, north up as FITS images have it: the first row below.

    Parameters
    ----------
    stamp : ndarray, shape (size, size, channels)
        Any.

    Returns
    -------
    ndarray, shape (size, size * channels)
        The first channel on the left.
    """
    return np.concatenate(list(np.moveaxis(stamp, -1, 0)), axis=1)[::-1]


def score_of(item: "Suggestion") -> str:
    """Write a score with its spread.

    Parameters
    ----------
    item : Suggestion
        Perhaps of a release without a scorer.

    Returns
    -------
    str
        Or a dash.
    """
    if np.isnan(item.real_score):
        return "-"
    return f"{item.real_score:.2f} ± {item.real_score_std:.2f}"


def write_label_sheet(found: "Suggestions", path: Path) -> None:
    """Draw suggested stamps, those held out framed, each with its id, score and novelty.

    Parameters
    ----------
    found : Suggestions
        Best first.
    path : Path
        The file to write; its suffix says whether PNG, SVG or PDF.

    Raises
    ------
    ConfigError
        If matplotlib is not installed or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "A sheet needs matplotlib, which is not installed.",
            remedy="Install it: pip install 'stream-vae[demo]'; the pictures in the terminal need nothing.",
        ) from error
    lines = -(-len(found.items) // ACROSS)
    figure = Figure(figsize=(1.45 * ACROSS, 1.95 * lines + 0.6), layout="constrained")
    figure.suptitle(
        f"{len(found.items)} stamps whose labels would teach most, of {found.looked_at:,} without one; "
        f"those framed are held out\ns: real score; n: novelty; release {found.release}",
        fontsize=9,
    )
    grid = figure.add_gridspec(lines, ACROSS)
    for at, item in enumerate(found.items):
        axes = figure.add_subplot(grid[at // ACROSS, at % ACROSS])
        draw(axes, item.stamp, _caption(item, at), frame="tab:blue" if item.held_out else None)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--sheet {path} cannot be written: {error}.", remedy="Give a .png in a folder.") from error


def _caption(item: "Suggestion", at: int) -> Sequence[str]:
    return [f"{at + 1} {item.band}", item.alert_id[-_ID_LETTERS:], f"s {score_of(item)}", f"n {_number(item.novelty)}"]


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"
