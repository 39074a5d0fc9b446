"""From the sky to pixels: one exposure, or one deep template, with its noise."""

from dataclasses import dataclass

import numpy as np
from scipy import fft

from stream_vae.sky.artefacts import (
    Cause,
    Marks,
    Mask,
    add_artefacts,
    add_edge_glow,
    add_leftover_hits,
    bleed,
    chip_edge,
)
from stream_vae.sky.conditions import Conditions
from stream_vae.sky.optics import add_ghosts, add_spikes
from stream_vae.sky.psf import Image, Psf, add_points
from stream_vae.sky.scene import Floats, Scene, galaxy_image


@dataclass(frozen=True)
class Exposure:
    """One calibrated image, in electrons of the science exposure.

    Parameters
    ----------
    image : ndarray of float32, (side, side)
        With its background; values under `mask` are filled and mean nothing.
    variance : ndarray of float32, (side, side)
        True variance of its noise.
    mask : ndarray of bool, (side, side)
        True where there are no data.
    marks : ndarray of uint8, (side, side)
        Values of `Cause`.
    background_e : float
        The background in it.
    depth : float
        Number of exposures behind it.
    signal : ndarray of float32, (side, side)
        Stars and galaxies without noise, background, transients or artefacts.
    """

    image: Image
    variance: Image
    mask: Mask
    marks: Marks
    background_e: float
    depth: float
    signal: Image


def expose_science(rng: np.random.Generator, conditions: Conditions, scene: Scene) -> Exposure:
    """Take the science exposure: everything is in it but what has faded.

    Parameters
    ----------
    rng : numpy.random.Generator
        Noise and artefacts come from it.
    conditions : Conditions
        Of this image pair.
    scene : Scene
        The sky.

    Returns
    -------
    Exposure
        On its own pixel grid: shifted by the sub-pixel offset if it is the one to be resampled.
    """
    dx, dy = (conditions.subpixel_x, conditions.subpixel_y) if conditions.resample_science else (0.0, 0.0)
    signal = _sky_image(conditions.science_psf, conditions, scene, dx, dy, distorted=False)
    image = signal + np.float32(conditions.science_background_e)
    marks = np.zeros(image.shape, np.uint8)
    _add_transients(image, conditions, scene, dx, dy)
    add_spikes(conditions, scene.stars, (dx, dy), image, marks)
    add_ghosts(rng, conditions, image, marks)
    variance = _variance(image, conditions, 1.0)
    add_artefacts(rng, conditions, scene, image, marks)
    mask = np.zeros(image.shape, np.bool_)
    if rng.uniform() < 0.25:
        mask |= chip_edge(rng, scene.side, tilted=False)
        add_edge_glow(rng, conditions, image, mask, marks)
    image += np.sqrt(variance) * rng.standard_normal(image.shape, np.float32)
    _saturate(rng, conditions, image, mask, marks)
    return Exposure(image, variance, mask, marks, conditions.science_background_e, 1.0, signal)


def expose_template(rng: np.random.Generator, conditions: Conditions, scene: Scene) -> Exposure:
    """Take the deep template: only what has faded since, most artefacts cleaned by its many exposures, less noise.

    Parameters
    ----------
    rng : numpy.random.Generator
        Its noise comes from it.
    conditions : Conditions
        Of this image pair.
    scene : Scene
        The sky.

    Returns
    -------
    Exposure
        On its own pixel grid, with the registration error, which nobody knows, in it.
    """
    dx, dy = (0.0, 0.0) if conditions.resample_science else (conditions.subpixel_x, conditions.subpixel_y)
    signal = _sky_image(conditions.template_psf, conditions, scene, dx, dy, distorted=True)
    image = signal + np.float32(conditions.template_background_e)
    marks = np.zeros(image.shape, np.uint8)
    _add_faded(image, conditions, scene, dx, dy)
    add_spikes(conditions, scene.stars, (dx, dy), image, marks, in_template=True)
    variance = _variance(image, conditions, conditions.template_depth)
    add_leftover_hits(rng, conditions, scene, image, marks)
    mask = np.zeros(image.shape, np.bool_)
    if rng.uniform() < 0.12:
        mask |= chip_edge(rng, scene.side, tilted=rng.uniform() < 0.5)
        marks[mask] = Cause.EDGE
    image += np.sqrt(variance) * rng.standard_normal(image.shape, np.float32)
    _saturate(rng, conditions, image, mask, marks)
    return Exposure(image, variance, mask, marks, conditions.template_background_e, conditions.template_depth, signal)


def _variance(image: Image, conditions: Conditions, depth: float) -> Image:
    """Poisson, read noise and the flat field's error.

    The noise is drawn from a normal distribution: at 100 electrons, the faintest sky here, Poisson's skewness is 0.1.
    """
    read = np.float32(conditions.read_noise_e**2)
    flat = np.float32(conditions.response_scatter) * image
    return (image + read) / np.float32(depth) + flat * flat


def _saturate(rng: np.random.Generator, conditions: Conditions, image: Image, mask: Mask, marks: Marks) -> None:
    saturated = bleed(image, conditions.full_well_e, marks)
    _misread(rng, conditions, image)
    if conditions.mask_saturated:
        mask |= saturated


def _misread(rng: np.random.Generator, conditions: Conditions, image: Image) -> None:
    """Spoil some of the bright pixels: real differences have salt and pepper in the cores of bright stars."""
    if conditions.misread_share:
        row, column = np.nonzero(image > 0.1 * conditions.full_well_e)
        wrong = rng.uniform(size=len(row)) < conditions.misread_share
        factor = rng.uniform(0.0, 2.0, int(wrong.sum())).astype(np.float32)
        image[row[wrong], column[wrong]] *= factor


def _sky_image(psf: Psf, conditions: Conditions, scene: Scene, dx: float, dy: float, *, distorted: bool) -> Image:
    star_dx, star_dy = _displacement(conditions, scene, scene.stars.x, scene.stars.y, distorted=distorted)
    galaxy_dx, galaxy_dy = _displacement(conditions, scene, scene.galaxies.x, scene.galaxies.y, distorted=distorted)
    galaxies = galaxy_image(scene.galaxies, scene.side, galaxy_dx + dx, galaxy_dy + dy)
    blurred = fft.rfft2(galaxies) * fft.rfft2(psf.image(scene.side))
    # Rounding leaves values a little below zero, of which there is no variance.
    image: Image = np.maximum(fft.irfft2(blurred, s=galaxies.shape), 0.0).astype(np.float32)
    floor = 0.05 * conditions.science_sky_noise_e
    add_points(image, psf, scene.stars.x + star_dx + dx, scene.stars.y + star_dy + dy, scene.stars.flux, floor=floor)
    return image


def _displacement(
    conditions: Conditions, scene: Scene, x: Floats, y: Floats, *, distorted: bool
) -> tuple[Floats, Floats]:
    if not distorted:
        return np.zeros_like(x), np.zeros_like(y)
    return conditions.displacement(x, y, scene.side)


def _add_transients(image: Image, conditions: Conditions, scene: Scene, dx: float, dy: float) -> None:
    transients = scene.transients
    there = transients.flux > 0
    for part in (-1 / 3, 0.0, 1 / 3):  # motion during the exposure, as three points
        add_points(
            image,
            conditions.science_psf,
            (transients.x + dx + part * transients.trail_x)[there],
            (transients.y + dy + part * transients.trail_y)[there],
            transients.flux[there] / 3.0,
            floor=0.02 * conditions.science_sky_noise_e,
        )


def _add_faded(image: Image, conditions: Conditions, scene: Scene, dx: float, dy: float) -> None:
    transients = scene.transients
    gone = transients.flux < 0
    x, y = transients.x[gone], transients.y[gone]
    off_x, off_y = conditions.displacement(x, y, scene.side)
    floor = 0.02 * conditions.science_sky_noise_e
    add_points(image, conditions.template_psf, x + off_x + dx, y + off_y + dy, -transients.flux[gone], floor=floor)
