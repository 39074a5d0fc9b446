"""What the detector and things in front of it add to one exposure: hits, bad pixels, trails, bleeding, edges.

Each function changes the exposure in place and marks the pixels that it touched, so that a detection
there can later be told by its cause. All amplitudes are in electrons.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from stream_vae.sky.conditions import Conditions
from stream_vae.sky.psf import Image, add_points
from stream_vae.sky.scene import Floats, Scene, draw_positions, power_law

Marks = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]


class Cause(IntEnum):
    """What touched a pixel; the lower-case name is the kind of a bogus detection there."""

    NONE = 0
    GHOST = 1
    SPIKE = 2
    EDGE = 3
    BLEED = 4
    TRAIL = 5
    BAD_COLUMN = 6
    HOT_PIXEL = 7
    """Or a dead one, which is a negative peak."""
    COSMIC_RAY = 8


def add_artefacts(rng: np.random.Generator, conditions: Conditions, scene: Scene, image: Image, marks: Marks) -> None:
    """Add all that strikes one exposure, apart from what saturation does to it.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where they come from.
    conditions : Conditions
        Noise and profile that they are scaled by.
    scene : Scene
        Hits of single pixels have the same surroundings as transients: in galaxies, near stars, on empty sky.
    image : ndarray of float32, (side, side)
        The exposure in electrons, changed in place.
    marks : ndarray of uint8, (side, side)
        Values of `Cause`, changed in place.
    """
    _trails(rng, conditions, image, marks)
    _bad_columns(rng, conditions, image, marks)
    _hot_pixels(rng, conditions, scene, image, marks)
    _cosmic_rays(rng, conditions, scene, image, marks)


def add_leftover_hits(
    rng: np.random.Generator, conditions: Conditions, scene: Scene, image: Image, marks: Marks
) -> None:
    """Add the hits that rejection has left in a template, the more the fewer its exposures are.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where they come from.
    conditions : Conditions
        Depth of the template, and its noise.
    scene : Scene
        What hits lie near to, as in `add_artefacts`.
    image : ndarray of float32, (side, side)
        The template in electrons, changed in place.
    marks : ndarray of uint8, (side, side)
        Values of `Cause`, changed in place.
    """
    n = int(rng.poisson(12.0 / conditions.template_depth))
    x, y = draw_positions(rng, n, scene.side, scene.stars, scene.galaxies)
    noise = conditions.science_sky_noise_e / np.sqrt(conditions.template_depth)
    amplitude = power_law(rng, n, 5.0, 100.0, -1.3) * noise
    for i in range(n):
        pixels = _point_hit(rng, y[i], x[i])
        _deposit(image, marks, pixels, amplitude[i] * rng.gamma(4.0, 0.25, len(pixels[0])), Cause.COSMIC_RAY)


def _cosmic_rays(rng: np.random.Generator, conditions: Conditions, scene: Scene, image: Image, marks: Marks) -> None:
    n = int(rng.poisson(9))
    x, y = draw_positions(rng, n, scene.side, scene.stars, scene.galaxies)
    amplitude = power_law(rng, n, 5.0, 400.0, -1.3) * conditions.science_sky_noise_e
    diffusion = rng.uniform(0.0, 0.2)
    for i in range(n):
        if rng.uniform() < 0.65:
            rows, columns = _point_hit(rng, y[i], x[i])
        else:
            rows, columns = _worm(rng, y[i], x[i])
        charge = amplitude[i] * rng.gamma(4.0, 0.25, len(rows))
        _deposit(image, marks, (rows, columns), charge * (1.0 - diffusion), Cause.COSMIC_RAY)
        for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            _deposit(image, marks, (rows + down, columns + right), charge * diffusion / 4.0, Cause.COSMIC_RAY)


def _point_hit(rng: np.random.Generator, y: float, x: float) -> tuple[Indices, Indices]:
    """One to four pixels that touch."""
    n = int(rng.integers(1, 5))
    rows = round(y) + np.cumsum(np.r_[0, rng.integers(-1, 2, n - 1)])
    columns = round(x) + np.cumsum(np.r_[0, rng.integers(-1, 2, n - 1)])
    return rows.astype(np.int64), columns.astype(np.int64)


def _worm(rng: np.random.Generator, y: float, x: float) -> tuple[Indices, Indices]:
    """A muon's straight track, or an electron's path that wanders."""
    n = int(rng.integers(5, 30))
    wander = 0.02 if rng.uniform() < 0.5 else 0.35
    angle = rng.uniform(0, 2 * np.pi) + np.cumsum(wander * rng.standard_normal(n))
    rows = np.rint(y + np.cumsum(np.sin(angle))).astype(np.int64)
    columns = np.rint(x + np.cumsum(np.cos(angle))).astype(np.int64)
    return rows, columns


def _hot_pixels(rng: np.random.Generator, conditions: Conditions, scene: Scene, image: Image, marks: Marks) -> None:
    n = int(rng.poisson(6))
    x, y = draw_positions(rng, n, scene.side, scene.stars, scene.galaxies)
    rows, columns = np.rint(y).astype(np.int64), np.rint(x).astype(np.int64)
    amplitude = power_law(rng, n, 6.0, 300.0, -1.3) * conditions.science_sky_noise_e
    _deposit(image, marks, (rows, columns), amplitude, Cause.HOT_PIXEL)
    # Dead ones lose their light: negative peaks, and resampling rings around them.
    x, y = draw_positions(rng, int(rng.poisson(4)), scene.side, scene.stars, scene.galaxies)
    inside = (x > 0) & (x < scene.side - 1) & (y > 0) & (y < scene.side - 1)
    rows, columns = np.rint(y[inside]).astype(np.int64), np.rint(x[inside]).astype(np.int64)
    image[rows, columns] *= rng.uniform(0.0, 0.7, len(rows)).astype(np.float32)
    marks[rows, columns] = Cause.HOT_PIXEL


def _bad_columns(rng: np.random.Generator, conditions: Conditions, image: Image, marks: Marks) -> None:
    side = image.shape[0]
    for _ in range(int(rng.poisson(0.4))):
        column, start = int(rng.integers(side)), int(rng.integers(side))
        level = float(power_law(rng, 1, 4.0, 60.0, -1.5)[0]) * conditions.science_sky_noise_e
        sign = 1.0 if rng.uniform() < 0.7 else -0.3
        ripple = rng.gamma(20.0, 1 / 20.0, side - start) if rng.uniform() < 0.5 else 1.0
        image[start:, column] = np.maximum(image[start:, column] + sign * level * ripple, 0.0)
        marks[start:, column] = Cause.BAD_COLUMN


def _trails(rng: np.random.Generator, conditions: Conditions, image: Image, marks: Marks) -> None:
    """Satellites, which cross the image, and asteroids long enough to be streaks."""
    side, psf = image.shape[0], conditions.science_psf
    for _ in range(int(rng.poisson(0.15))):
        length, centre = 3.0 * side, rng.uniform(0, side, 2)
        _add_line(rng, conditions, image, marks, centre=centre, length=length, thick=rng.uniform() < 0.3)
    for _ in range(int(rng.poisson(0.5))):
        length = float(rng.uniform(1.5 * psf.fwhm_px + 4.0, 60.0))
        _add_line(rng, conditions, image, marks, centre=rng.uniform(0, side, 2), length=length, thick=False)


def _add_line(
    rng: np.random.Generator,
    conditions: Conditions,
    image: Image,
    marks: Marks,
    *,
    centre: Floats,
    length: float,
    thick: bool,
) -> None:
    """Draw a line as points half a pixel apart; a thick one (out of focus) as three lines side by side."""
    side, psf, step = image.shape[0], conditions.science_psf, 0.5
    angle = rng.uniform(0, np.pi)
    along = np.arange(-length / 2, length / 2, step)
    tumbling = 1.0 + rng.uniform(0.0, 0.6) * np.sin(along * 2 * np.pi / rng.uniform(20, 200) + rng.uniform(0, 6))
    peak = float(power_law(rng, 1, 4.0, 80.0, -1.5)[0]) * conditions.science_sky_noise_e
    # The line's peak is about the flux per pixel of length over 1.06 widths.
    flux = peak * 1.06 * psf.fwhm_px * step * tumbling
    for offset in np.array([-1.0, 0.0, 1.0]) * psf.fwhm_px if thick else np.zeros(1):
        x = centre[0] + along * np.cos(angle) - offset * np.sin(angle)
        y = centre[1] + along * np.sin(angle) + offset * np.cos(angle)
        inside = (x > -8) & (x < side + 8) & (y > -8) & (y < side + 8)
        line = np.zeros_like(image)
        add_points(line, psf, x[inside], y[inside], flux[inside], floor=0.1 * conditions.science_sky_noise_e)
        image += line
        marks[line > 0.3 * peak] = Cause.TRAIL


def _deposit(image: Image, marks: Marks, pixels: tuple[Indices, Indices], charge: Floats, cause: Cause) -> None:
    side = image.shape[0]
    rows, columns = pixels
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    np.add.at(image, (rows[inside], columns[inside]), charge[inside].astype(np.float32))
    marks[rows[inside], columns[inside]] = cause


def bleed(image: Image, full_well_e: float, marks: Marks) -> Mask:
    """Saturate an exposure: the charge above the full well runs up and down its column.

    Parameters
    ----------
    image : ndarray of float32, (side, side)
        Electrons, changed in place.
    full_well_e : float
        What a pixel holds.
    marks : ndarray of uint8, (side, side)
        Saturated pixels are marked.

    Returns
    -------
    ndarray of bool, (side, side)
        The saturated pixels.
    """
    saturated: Mask = image >= full_well_e
    for column in np.flatnonzero(saturated.any(axis=0)).tolist():
        _bleed_column(image[:, column], saturated[:, column], full_well_e)
    marks[saturated] = Cause.BLEED
    return saturated


def _bleed_column(values: Image, saturated: Mask, full_well_e: float) -> None:
    edges = np.flatnonzero(np.diff(np.r_[False, saturated, False]))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        # Part of the charge is lost to the substrate; no run is longer than half the canvas.
        excess = 0.5 * float(np.sum(values[start:stop] - full_well_e))
        reach = min(int(0.5 * excess / full_well_e), len(values) // 4)
        low, high = max(start - reach, 0), min(stop + reach, len(values))
        values[low:high] = full_well_e
        saturated[low:high] = True


def chip_edge(rng: np.random.Generator, side: int, *, tilted: bool) -> Mask:
    """Draw which part of the canvas lies beyond the edge of a chip.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where it comes from.
    side : int
        Pixels along each axis.
    tilted : bool
        The chip was turned against this grid, as one exposure of a template may be.

    Returns
    -------
    ndarray of bool, (side, side)
        True beyond the edge.
    """
    angle = rng.integers(4) * np.pi / 2 + (rng.uniform(-0.5, 0.5) if tilted else 0.0)
    x = np.arange(side) - side / 2
    distance = np.cos(angle) * x[None, :] + np.sin(angle) * x[:, None]
    beyond: Mask = distance > rng.uniform(0.15, 0.42) * side
    return beyond


def add_edge_glow(rng: np.random.Generator, conditions: Conditions, image: Image, beyond: Mask, marks: Marks) -> None:
    """Brighten, unevenly, the few pixels next to the edge of the chip.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where the amplitude comes from.
    conditions : Conditions
        The noise that it is scaled by.
    image : ndarray of float32, (side, side)
        Electrons, changed in place.
    beyond : ndarray of bool, (side, side)
        True beyond the edge.
    marks : ndarray of uint8, (side, side)
        The pixels within three of the edge are marked.
    """
    amplitude = rng.uniform(-4.0, 10.0) * conditions.science_sky_noise_e
    reached = beyond.copy()
    for step in range(4):
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        ring = grown & ~reached
        image[ring] += np.float32(amplitude * 0.5**step) * rng.gamma(4.0, 0.25, int(ring.sum())).astype(np.float32)
        marks[ring] = Cause.EDGE
        reached = grown
