"""What light does on its way through a telescope: diffraction spikes and ghosts of bright stars.

Both are light, with its noise, and so are added before the noise; a deep template has the spikes but no ghosts, which
move with every offset of the telescope.
"""

import numpy as np

from stream_vae.sky.artefacts import Cause, Marks
from stream_vae.sky.conditions import Conditions
from stream_vae.sky.psf import Image, add_points
from stream_vae.sky.scene import Floats, Stars, power_law

_LONGEST_PX = 150.0
_STEP = 0.4
"""Of a profile's width between the points that a spike is drawn as: fine enough to be smooth."""


def add_spikes(
    conditions: Conditions,
    stars: Stars,
    offset: tuple[Floats | float, Floats | float],
    image: Image,
    marks: Marks,
    *,
    in_template: bool = False,
) -> None:
    """Add the four spikes of every star that is bright enough for them to show.

    Their surface brightness falls as 1 / (1 + (r / length)^2), the envelope of a narrow vane's diffraction.

    Parameters
    ----------
    conditions : Conditions
        Their strength and directions.
    stars : Stars
        Where they start.
    offset : tuple of ndarray or float
        To be added to the stars' positions, in pixels.
    image : ndarray of float32, (side, side)
        Electrons, changed in place.
    marks : ndarray of uint8, (side, side)
        Where a spike exceeds the sky's noise, away from its star, is marked.
    in_template : bool
        In the template's profile and direction.
    """
    psf = conditions.template_psf if in_template else conditions.science_psf
    angle = conditions.spike_angle_rad + in_template * conditions.spike_turn_rad
    noise, length, step = conditions.science_sky_noise_e, conditions.spike_length_px, _STEP * psf.fwhm_px
    per_px = stars.flux * conditions.spike_share / (2.0 * np.pi * length)  # of each of the four, where it begins
    surface = per_px / (1.06 * psf.fwhm_px)
    middle = len(image) / 2
    dx, dy = (np.broadcast_to(part, stars.x.shape) for part in offset)
    for i in np.flatnonzero(surface > noise).tolist():
        end = min(length * np.sqrt(surface[i] / (0.1 * noise)), _LONGEST_PX)
        r = np.arange(1.5 * psf.fwhm_px, end, step)  # nearer in it is lost in the star's profile
        fall = 1.0 / (1.0 + (r / length) ** 2)
        shines = surface[i] * fall > noise
        for turn in angle + np.arange(4) * np.pi / 2:
            x, y = stars.x[i] + dx[i] + r * np.cos(turn), stars.y[i] + dy[i] + r * np.sin(turn)
            inside = np.maximum(np.abs(x - middle), np.abs(y - middle)) < middle + 8
            flux = per_px[i] * step * fall
            add_points(image, psf, x[inside], y[inside], flux[inside], floor=0.05 * noise)
            _mark(marks, x[shines], y[shines], half=max(round(0.5 * step), 1))


def _mark(marks: Marks, x: Floats, y: Floats, half: int) -> None:
    """Mark squares round points."""
    side = len(marks)
    rows, columns = np.rint(y).astype(np.int64), np.rint(x).astype(np.int64)
    for down in range(-half, half + 1):
        for right in range(-half, half + 1):
            row, column = rows + down, columns + right
            there = (row >= 0) & (row < side) & (column >= 0) & (column < side)
            marks[row[there], column[there]] = Cause.SPIKE


def add_ghosts(rng: np.random.Generator, conditions: Conditions, image: Image, marks: Marks) -> None:
    """Add pupil images: light of a bright star, mostly outside the image, that was reflected twice and is out of focus.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where they come from.
    conditions : Conditions
        The noise that they are scaled by.
    image : ndarray of float32, (side, side)
        Electrons, changed in place.
    marks : ndarray of uint8, (side, side)
        The ghost's pixels are marked.
    """
    side = image.shape[0]
    for _ in range(int(rng.poisson(0.12))):
        x0, y0 = rng.uniform(0, side, 2)
        radius = float(np.exp(rng.uniform(np.log(6.0), np.log(60.0))))
        hole, shift = rng.uniform(0.2, 0.45) * radius, rng.uniform(-0.1, 0.1, 2) * radius
        level = float(power_law(rng, 1, 1.0, 30.0, -1.5)[0]) * conditions.science_sky_noise_e
        y, x = np.ogrid[:side, :side]
        outer, inner = np.hypot(x - x0, y - y0), np.hypot(x - x0 - shift[0], y - y0 - shift[1])
        # The rim is as soft as the seeing; the pupil is lit unevenly, as the beam is cut off on its way.
        soft = 0.5 * conditions.science_psf.fwhm_px
        lit = np.clip((radius - outer) / soft, 0.0, 1.0) * np.clip((inner - hole) / soft, 0.0, 1.0)
        slope = rng.uniform(-0.4, 0.4, 2) / radius
        ghost = level * lit * (1.0 + slope[0] * (x - x0) + slope[1] * (y - y0))
        image += ghost.astype(np.float32)
        marks[ghost > 0.3 * level] = Cause.GHOST
