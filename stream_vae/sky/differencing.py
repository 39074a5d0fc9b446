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

_FIT_PX = 64
"""Side of the grid on which the matching kernel is fitted: eight times the widest profile."""


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
    science_noise, template_noise : ndarray of float32
        Their noise maps, as good as the difference's.
    science_marks, template_marks : ndarray of uint8
        Values of `Cause`.
    signal : ndarray of float32
        Stars and galaxies of the science image without noise, on the science image's own grid.
    """

    image: Image
    noise: Image
    science: Image
    template: Image
    science_noise: Image
    template_noise: Image
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
    kernel, kept = _matching_kernel(rng, conditions, taps_x, taps_y, science.image.shape[0])
    above, below = science.image - np.float32(science.background_e), template.image - np.float32(template.background_e)
    above_variance, below_variance = _estimated_variance(science), _estimated_variance(template)
    believed = np.float32(conditions.noise_underestimate)
    science_noise, template_noise = believed * np.sqrt(above_variance), believed * np.sqrt(below_variance)
    if conditions.science_is_wider:
        below, below_variance = _convolve(below, kernel), below_variance * kept
    else:
        above, above_variance = _convolve(above, kernel), above_variance * kept
    noise = np.sqrt(above_variance + below_variance)
    image = above - np.float32(conditions.flux_scale) * below + _leftover_background(rng, conditions, noise)
    image[science.mask | template.mask] = np.nan
    noise *= believed
    return Difference(
        image=image,
        noise=noise,
        science=np.where(science.mask, np.float32(np.nan), science.image),
        template=np.where(template.mask, np.float32(np.nan), template.image),
        science_noise=science_noise,
        template_noise=template_noise,
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
        mask=mask,
    )


def _shift(image: Image, taps_x: Floats, taps_y: Floats) -> Image:
    along = ndimage.correlate1d(image, taps_x, axis=1, mode="nearest")
    shifted: Image = ndimage.correlate1d(along, taps_y, axis=0, mode="nearest")
    return shifted


def _matching_kernel(
    rng: np.random.Generator, conditions: Conditions, taps_x: Floats, taps_y: Floats, side: int
) -> tuple[npt.NDArray[np.complex64], np.float32]:
    """The kernel that brings the sharper image to the other's profile, as far as it is known.

    Its Fourier transform, and the share of white noise's variance that a pixel keeps in a convolution with it.

    The best small kernel in the sense of least squares, as Alard & Lupton (1998, ApJ 503, 325) fit it: it matches what
    its basis can match, and leaves rings round bright stars where the profiles differ in other ways.
    """
    seen_science = fft.rfft2(conditions.science_psf.misjudged(rng, conditions.psf_error).image(_FIT_PX))
    seen_template = fft.rfft2(conditions.template_psf.misjudged(rng, conditions.psf_error).image(_FIT_PX))
    # The pipeline sees stars in the resampled image, so it knows what resampling does to the profile.
    response = np.abs(_transfer(taps_y, half=False)[:, None] * _transfer(taps_x, half=True)[None, :])
    if conditions.resample_science:
        seen_science = seen_science * response
    else:
        seen_template = seen_template * response
    wide, narrow = (seen_science, seen_template) if conditions.science_is_wider else (seen_template, seen_science)
    families = _kernel_families(conditions.difference_psf.fwhm_px)
    modes = np.concatenate([_modes(powers, narrow) for powers in families])
    gram, wanted = modes @ modes.T, modes @ _as_real(wide)
    gram[np.diag_indices_from(gram)] *= 1.0 + 1e-6  # the polynomials are nearly degenerate in wide profiles
    kernel = _summed(families, np.linalg.solve(gram, wanted))
    return np.asarray(fft.rfft2(_embedded(kernel, side)), dtype=np.complex64), np.float32(np.sum(kernel**2))


def _kernel_families(fwhm_px: float) -> list[Floats]:
    """Three Gaussians times powers of the distance along an axis, centred on pixel 0 and wrapped: (powers, pixels)."""
    offset = np.fft.fftfreq(_FIT_PX) * _FIT_PX
    families = []
    for width, degree in ((0.2, 4), (0.45, 2), (0.9, 2)):
        along = offset / max(width * fwhm_px, 0.5)
        families.append(np.stack([along**k * np.exp(-0.5 * along**2) for k in range(degree + 1)]))
    return families


def _pairs(powers: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Powers along the rows' and the columns' axis whose products have no higher degree than the highest."""
    down, right = np.nonzero(np.add.outer(np.arange(len(powers)), np.arange(len(powers))) < len(powers))
    return down, right


def _modes(powers: Floats, narrow: npt.NDArray[np.complexfloating]) -> Floats:
    """What a family's functions make of the sharper profile: (functions, numbers whose products are the images')."""
    down, right = _pairs(powers)
    rows, columns = fft.fft(powers)[down], fft.rfft(powers)[right]
    return _as_real(rows[:, :, None] * columns[:, None, :] * narrow)


def _as_real(transform: npt.NDArray[np.complexfloating]) -> Floats:
    """Half a real image's transform as numbers whose scalar product is, up to a factor, the images'."""
    twice = np.full(_FIT_PX // 2 + 1, np.sqrt(2.0))
    twice[[0, -1]] = 1.0
    scaled = np.ascontiguousarray(transform * twice, dtype=np.complex128)
    return scaled.view(np.float64).reshape(*scaled.shape[:-2], -1)


def _summed(families: list[Floats], weights: Floats) -> Floats:
    """The kernel: its functions by their weights."""
    kernel, first = np.zeros((_FIT_PX, _FIT_PX)), 0
    for powers in families:
        down, right = _pairs(powers)
        table = np.zeros((len(powers), len(powers)))
        table[down, right] = weights[first : first + len(down)]
        first += len(down)
        kernel += powers.T @ table @ powers
    return kernel


def _embedded(kernel: npt.NDArray[np.floating], side: int) -> Image:
    """Copy a wrapped kernel to a larger grid."""
    half = _FIT_PX // 2
    at = np.r_[0:half, side - half : side]
    larger = np.zeros((side, side), np.float32)
    larger[np.ix_(at, at)] = kernel
    return larger


def _transfer(taps: Floats, *, half: bool) -> npt.NDArray[np.complex64]:
    frequency = np.fft.rfftfreq(_FIT_PX) if half else np.fft.fftfreq(_FIT_PX)
    phase = np.exp(2j * np.pi * frequency[:, None] * np.arange(-3, 4)[None, :])
    return np.asarray(phase @ taps, dtype=np.complex64)


def _convolve(image: Image, kernel: npt.NDArray[np.complex64]) -> Image:
    out: Image = fft.irfft2(fft.rfft2(image) * kernel, s=image.shape)
    return out


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
