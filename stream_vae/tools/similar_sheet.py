"""The answer of a search as a picture: what was searched with, and what is most like it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stream_vae.alert import FloatArray
from stream_vae.errors import ConfigError

if TYPE_CHECKING:
    from stream_vae.learning.search import Answer, Found

ACROSS = 8
MOST_SEEDS = 16
"""Seeds on the sheet: more leave no room for what was found."""
_LABELS = {1: "real", 0: "bogus"}


def write_sheet(answer: "Answer", path: Path) -> None:
    """Draw seeds, framed, and their neighbours, each with distance and score.

    Parameters
    ----------
    answer : Answer
        Of a search.
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
            remedy="Install it: pip install 'stream-vae[demo]'; the table and --out need nothing.",
        ) from error
    seeds, found = answer.seeds, answer.neighbours
    shown = min(len(seeds), MOST_SEEDS)
    seed_lines, lines = -(-shown // ACROSS), -(-len(found) // ACROSS)
    figure = Figure(figsize=(1.35 * ACROSS, 1.75 * (seed_lines + lines) + 0.6), layout="constrained")
    more = f" (the first {shown} are shown)" if shown < len(seeds) else ""
    figure.suptitle(
        f"{len(found)} nearest of {answer.searched:,} to {len(seeds)} seed{'s' * (len(seeds) != 1)}{more}, framed\n"
        f"d: distance in latent space; s: real score; release {answer.release}",
        fontsize=9,
    )
    grid = figure.add_gridspec(seed_lines + lines, ACROSS)
    for at in range(shown):
        axes = figure.add_subplot(grid[at // ACROSS, at % ACROSS])
        draw(axes, seeds.stamps[at], [f"seed {at}", *_said(seeds, at)], frame="tab:red")
    for at in range(len(found)):
        axes = figure.add_subplot(grid[seed_lines + at // ACROSS, at % ACROSS])
        number = f"{at + 1}: d {found.distance[at]:.3g}"
        draw(axes, found.stamps[at], [number + (f" of {found.seed[at]}" if len(seeds) > 1 else ""), *_said(found, at)])
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--sheet {path} cannot be written: {error}.", remedy="Give a .png in a folder.") from error


def _said(found: "Found", at: int) -> list[str]:
    score = found.real_score[at]
    parts = [f"s {score:.2f}"] if np.isfinite(score) else []
    parts += [_LABELS[int(found.label[at])]] if int(found.label[at]) in _LABELS else []
    name = found.about[at].get("object") or found.about[at].get("alert") or f"row {found.row[at]}"
    return [" ".join(parts), name[-16:]]


def draw(axes: Any, stamp: FloatArray, title: Sequence[str], frame: str | None = None) -> None:
    """Draw one stamp of a sheet.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where.
    stamp : ndarray, shape (size, size, channels)
        Scaled to within -1 and 1.
    title : sequence of str
        Lines above it; empty ones are left out.
    frame : str, optional
        Colour of a frame; absent: none.
    """
    # The first channel: the difference, unless the release was told otherwise. One scale for all, as stamps are scaled.
    axes.imshow(stamp[..., 0], cmap="gray", vmin=-1.0, vmax=1.0, interpolation="nearest", origin="lower")
    axes.set_title("\n".join(line for line in title if line), fontsize=7, pad=2)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(frame is not None)
        spine.set_color(frame or "black")
        spine.set_linewidth(2.0)
