"""Pictures in the terminal and as PNG."""

import sys

import numpy as np
import pytest
from rich.console import Console
from stream_vae.errors import ConfigError
from stream_vae.tools.pictures import Panel, characters, half_blocks, limits_of, terminal_picture, write_png

RAMP = np.arange(12, dtype=np.float32).reshape(3, 4)


def panel(pixels, title="stamp", limits=(0.0, 11.0)):
    return Panel(title, np.asarray(pixels, np.float32), limits)


def test_a_half_block_shows_the_pixel_above_in_front_of_the_one_below():
    lines = half_blocks(panel(RAMP))
    assert [line.plain for line in lines] == ["▀▀▀▀", "▀▀▀▀"]
    style = lines[0].spans[1].style
    assert style.color.triplet == (23, 23, 23)  # 1 of 11, of 255
    assert style.bgcolor.triplet == (116, 116, 116)  # 5 of 11
    assert lines[1].spans[1].style.bgcolor is None  # nothing below an odd last row


def test_a_masked_pixel_is_no_shade_of_grey():
    pixels = RAMP.copy()
    pixels[0, 0] = np.nan
    red, green, blue = half_blocks(panel(pixels))[0].spans[0].style.color.triplet
    assert len({red, green, blue}) > 1
    assert characters(panel(pixels))[0].plain.startswith("??")


def test_without_colours_brighter_pixels_are_denser_characters():
    (line,) = characters(panel([[0, 5, 11]]))
    assert line.plain == "  ==@@"


def test_values_beyond_the_limits_are_black_and_white():
    (line,) = characters(panel([[-1e30, 1e30]]))
    assert line.plain == "  @@"


@pytest.mark.parametrize("value", [0.0, -3.0, np.nan])
def test_a_picture_of_one_value_has_a_grey_scale(value):
    low, high = limits_of(np.full((3, 3), value))
    assert low < high


def test_one_hot_pixel_does_not_make_the_rest_black():
    pixels = np.random.default_rng(0).normal(size=(21, 21))
    pixels[3, 3] = 1e6
    assert limits_of(pixels)[1] < 10


@pytest.mark.parametrize(("width", "rows"), [(200, 1), (30, 2), (5, 4)])
def test_pictures_wrap_where_the_terminal_ends(width, rows):
    panels = [panel(np.zeros((4, 10)), title=f"p{n}") for n in range(4)]
    console = Console(width=width, color_system="truecolor", force_terminal=True)
    with console.capture() as capture:
        console.print(terminal_picture(panels, width=width, colours=True))
    titles = [line for line in capture.get().splitlines() if "p" in line]
    assert len(titles) == rows


def test_a_png_is_written(tmp_path):
    write_png([panel(RAMP), panel(np.full((3, 3), np.nan))], "two stamps", tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_error_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ConfigError, match=r"stream-vae\[demo\]"):
        write_png([panel(RAMP)], "", tmp_path / "out.png")


def test_a_png_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(ConfigError, match="writable"):
        write_png([panel(RAMP)], "", tmp_path / "no-such-folder" / "out.png")
