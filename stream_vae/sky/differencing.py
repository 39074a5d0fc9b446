"""Image subtraction as a pipeline does it: resample, match the profiles, subtract, and guess the noise."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from stream_vae.sky.artefacts import Marks
from stream_vae.sky.conditions import Conditions
from stream_vae.sky.exposure import Exposure
from stream_vae.sky.psf import Image

Floats = npt.NDArray[np.float64]

_LANCZOS_ORDER = 3


@dataclass(frozen=True)
class Difference:
    """Science minus template on one pixel grid, in electrons; every array is (side, side).

    Parameters
    ----------
    image : ndarray of float32
        The difference; NaN where either image has no data.
    noise : ndarray of float32
        The pipeline's noise map, which knows nothing of correlation or of the flat field's error.
    science, template : ndarray of float32
        The two images as they would be cut out: on one grid, not convolved, NaN where masked.
    science_marks, template_marks : ndarray of uint8
        Values of `Cause`.
    signal : ndarray of float32
        Stars and galaxies of the science image without noise.
    """

    image: Image
    noise: Image
    science: Image
    template: Image
    science_marks: Marks
    template_marks: Marks
    signal: Image


def subtract(rng: np.random.Generator, conditions: Conditions, science: Exposure, template: Exposure) -> Difference:
    """Subtract the template from the science image.

    Parameters
    ----------
    rng : numpy.random.Generator
        The pipeline's errors come from it.
    conditions : Conditions
        Of this image pair.
    science, template : Exposure
        On their own grids.

    Returns
    -------
    Difference
        On the common grid.
    """
    taps_x, taps_y = _taps(conditions, conditions.subpixel_x), _taps(conditions, conditions.subpixel_y)
    if conditions.resample_science:
        science = _resample(science, taps_x, taps_y)
    else:
        template = _resample(template, taps_x, taps_y)
    kernel = _matching_kernel(rng, conditions, taps_x, taps_y, science.image.shape[0])
    above, below = science.image - np.float32(science.background_e), template.image - np.float32(template.background_e)
    above_variance, below_variance = _estimated_variance(science), _estimated_variance(template)
    if conditions.science_is_wider:
        below, below_variance = _convolve(below, kernel), np.abs(_convolve(below_variance, _squared(kernel)))
    else:
        above, above_variance = _convolve(above, kernel), np.abs(_convolve(above_variance, _squared(kernel)))
    noise = np.sqrt(above_variance + below_variance)
    image = above - np.float32(conditions.flux_scale) * below + _leftover_background(rng, conditions, noise)
    image[science.mask | template.mask] = np.nan
    noise *= np.float32(conditions.noise_underestimate)
    return Difference(
        image=image,
        noise=noise,
        science=np.where(science.mask, np.float32(np.nan), science.image),
        template=np.where(template.mask, np.float32(np.nan), template.image),
        science_marks=science.marks,
        template_marks=template.marks,
        signal=science.signal,
    )


def _taps(conditions: Conditions, shift: float) -> Floats:
    """Weights that sample an image `shift` pixels further along, from 3 pixels before to 3 pixels after."""
    distance = np.arange(-3, 4) - shift
    if conditions.lanczos:
        weight = np.sinc(distance) * np.sinc(distance / _LANCZOS_ORDER) * (np.abs(distance) < _LANCZOS_ORDER)
    else:
        weight = np.maximum(1.0 - np.abs(distance), 0.0)
    return np.asarray(weight / weight.sum(), dtype=np.float64)


def _resample(exposure: Exposure, taps_x: Floats, taps_y: Floats) -> Exposure:
    """Shift an exposure; masked pixels spoil their neighbours, and the noise becomes correlated."""
    filled = np.where(exposure.mask, np.float32(exposure.background_e), exposure.image)
    # Each pixel keeps this part of its variance, on average; the rest has become covariance, which no noise map has.
    kept = np.float32(np.sum(taps_x**2) * np.sum(taps_y**2))
    mask = ndimage.binary_dilation(exposure.mask, iterations=1) if exposure.mask.any() else exposure.mask
    return replace(
        exposure,
        image=_shift(filled, taps_x, taps_y),
        variance=exposure.variance * kept,
        signal=_shift(exposure.signal, taps_x, taps_y),
        mask=mask,
    )


def _shift(image: Image, taps_x: Floats, taps_y: Floats) -> Image:
    along = ndimage.correlate1d(image, taps_x, axis=1, mode="nearest")
    shifted: Image = ndimage.correlate1d(along, taps_y, axis=0, mode="nearest")
    return shifted


def _matching_kernel(
    rng: np.random.Generator, conditions: Conditions, taps_x: Floats, taps_y: Floats, side: int
) -> npt.NDArray[np.complex64]:
    """The Fourier transform of the kernel that brings the sharper image to the other's profile, as far as it is known.

    A ratio of the profiles' transforms with a floor, which is Wiener's for a white noise of a thousandth.
    """
    seen_science = fft.rfft2(conditions.science_psf.misjudged(rng, conditions.psf_error).image(side))
    seen_template = fft.rfft2(conditions.template_psf.misjudged(rng, conditions.psf_error).image(side))
    # The pipeline sees stars in the resampled image, so it knows what resampling does to the profile.
    response = _transfer(taps_y, side, half=False)[:, None] * _transfer(taps_x, side, half=True)[None, :]
    if conditions.resample_science:
        seen_science = seen_science * np.abs(response)
    else:
        seen_template = seen_template * np.abs(response)
    wide, narrow = (seen_science, seen_template) if conditions.science_is_wider else (seen_template, seen_science)
    kernel = wide * np.conj(narrow) / (np.abs(narrow) ** 2 + 1e-6)
    return np.asarray(kernel / kernel[0, 0].real, dtype=np.complex64)


def _transfer(taps: Floats, side: int, *, half: bool) -> npt.NDArray[np.complex64]:
    frequency = np.fft.rfftfreq(side) if half else np.fft.fftfreq(side)
    phase = np.exp(2j * np.pi * frequency[:, None] * np.arange(-3, 4)[None, :])
    return np.asarray(phase @ taps, dtype=np.complex64)


def _convolve(image: Image, kernel: npt.NDArray[np.complex64]) -> Image:
    out: Image = fft.irfft2(fft.rfft2(image) * kernel, s=image.shape)
    return out


def _squared(kernel: npt.NDArray[np.complex64]) -> npt.NDArray[np.complex64]:
    side = kernel.shape[0]
    real = fft.irfft2(kernel, s=(side, side))
    squared: npt.NDArray[np.complex64] = fft.rfft2(real * real)
    return squared


def _estimated_variance(exposure: Exposure) -> Image:
    """What a pipeline takes the variance for: the sky's from statistics, Poisson's from the pixel itself."""
    sky = np.float32(np.median(exposure.variance[::4, ::4]))
    above: Image = np.maximum(exposure.image - np.float32(exposure.background_e), 0.0)
    return sky + above / np.float32(exposure.depth)


def _leftover_background(rng: np.random.Generator, conditions: Conditions, noise: Image) -> Image:
    side = noise.shape[0]
    along = np.linspace(-1.0, 1.0, side, dtype=np.float32)
    level = np.float32(conditions.background_error * float(np.median(noise[::4, ::4])))
    tilt_x, tilt_y = rng.standard_normal(2).astype(np.float32)
    plane: Image = level * (1.0 + 0.5 * tilt_x * along[None, :] + 0.5 * tilt_y * along[:, None])
    return plane
