"""Stamps as pictures: in a terminal, two pixels a character, and as a PNG."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.color import Color
from rich.console import Group, RenderableType
from rich.style import Style
from rich.text import Text

from stream_vae.alert import FloatArray
from stream_vae.errors import ConfigError

_RAMP = " .:-=+*#%@"
"""Dark to bright, for output without colours."""
_MASKED_RGB = (70, 30, 110)
"""Violet: no shade of grey, so a masked pixel cannot be taken for a dark one."""
_MASKED_CHARACTER = "?"
_CLIPPED_PERCENT = (0.5, 99.5)
"""Grey scale: all but the most extreme pixels, as one hot pixel would make the rest black."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture and its title."""

    title: str
    pixels: FloatArray
    """(height, width), NaN where masked."""
    limits: tuple[float, float]
    """The values that are black and white."""
    below: tuple[str, ...] = ()
    """Lines under it, in a terminal."""


def limits_of(pixels: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Choose the grey scale of a picture.

    Parameters
    ----------
    pixels : ndarray
        Of any shape; NaN where masked.

    Returns
    -------
    tuple of float
        Black and white; different even where all pixels are equal.
    """
    known = pixels[np.isfinite(pixels)]
    if known.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(known, _CLIPPED_PERCENT))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _shades(panel: Panel) -> npt.NDArray[np.int64]:
    """Grey values, (height, width) from 0 to 255, and -1 where masked."""
    low, high = panel.limits
    scaled = (np.clip(panel.pixels.astype(np.float64), low, high) - low) / (high - low) * 255.0
    return np.where(np.isfinite(scaled), np.rint(np.nan_to_num(scaled)), -1).astype(np.int64)


def _colour(shade: int) -> Color:
    return Color.from_rgb(*(_MASKED_RGB if shade < 0 else (shade, shade, shade)))


def half_blocks(panel: Panel) -> list[Text]:
    """Draw with one upper half block for two pixels, the one below as the background.

    Parameters
    ----------
    panel : Panel
        Any size.

    Returns
    -------
    list of Text
        Lines as wide as the picture and half as many as it is high.
    """
    shades = _shades(panel)
    if len(shades) % 2:
        shades = np.vstack([shades, np.full((1, shades.shape[1]), -2)])  # below an odd last row: nothing
    lines = []
    for upper, lower in zip(shades[::2], shades[1::2], strict=True):
        line = Text(no_wrap=True)
        for over, under in zip(upper.tolist(), lower.tolist(), strict=True):
            line.append("▀", Style(color=_colour(over), bgcolor=None if under == -2 else _colour(under)))
        lines.append(line)
    return lines


def characters(panel: Panel) -> list[Text]:
    """Draw with characters alone, two a pixel, for output that knows no colours.

    Parameters
    ----------
    panel : Panel
        Any size.

    Returns
    -------
    list of Text
        Lines twice as wide as the picture.
    """
    shades = _shades(panel)
    steps = np.minimum(shades * len(_RAMP) // 256, len(_RAMP) - 1)
    return [
        Text("".join((_MASKED_CHARACTER if step < 0 else _RAMP[step]) * 2 for step in row), no_wrap=True)
        for row in steps.tolist()
    ]


def terminal_picture(panels: Sequence[Panel], *, width: int, colours: bool) -> RenderableType:
    """Lay pictures side by side, as many in a row as there is room for.

    Parameters
    ----------
    panels : sequence of Panel
        What to draw.
    width : int
        Columns of the terminal.
    colours : bool
        Whether it shows colours and block characters.

    Returns
    -------
    renderable
        For rich.
    """
    lines: list[Text] = []
    row: list[list[Text]] = []
    for panel in panels:
        drawn = half_blocks(panel) if colours else characters(panel)
        texts = [Text(panel.title, style="bold", no_wrap=True), *drawn]
        texts += [Text(line, no_wrap=True) for line in panel.below]
        wide = max(text.cell_len for text in texts)
        block = [_padded(text, wide) for text in texts]
        if row and sum(each[0].cell_len + 2 for each in row) + wide > width:
            lines += _side_by_side(row)
            row = []
        row.append(block)
    return Group(*lines, *(_side_by_side(row) if row else []))


def _padded(line: Text, width: int) -> Text:
    line.pad_right(width - line.cell_len)
    return line


def _side_by_side(blocks: Sequence[Sequence[Text]]) -> list[Text]:
    height = max(len(block) for block in blocks)
    lines = []
    for at in range(height):
        line = Text(no_wrap=True, overflow="crop")
        for block in blocks:
            line.append_text(block[at] if at < len(block) else Text(" " * block[0].cell_len))
            line.append("  ")
        lines.append(line)
    return lines


def write_png(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Draw the pictures in a row into a PNG.

    Parameters
    ----------
    panels : sequence of Panel
        What to draw.
    title : str
        Above them.
    path : Path
        The file.

    Raises
    ------
    ConfigError
        If matplotlib is not installed or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "A PNG needs matplotlib, which is not installed.",
            remedy="Install it: pip install 'stream-vae[demo]'; the picture in the terminal needs nothing.",
        ) from error
    figure = Figure(figsize=(2.6 * len(panels), 3.2), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for at, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), at + 1)
        low, high = panel.limits
        axes.set_facecolor([value / 255 for value in _MASKED_RGB])
        axes.imshow(np.ma.masked_invalid(panel.pixels), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(panel.title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    try:
        FigureCanvasAgg(figure).print_png(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}.", remedy="Give --png a writable path."
        ) from error
