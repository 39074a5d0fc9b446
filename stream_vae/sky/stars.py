"""What an image says of itself: its background, its noise, its stars, and the profile that they share."""

from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage, optimize

from stream_vae.errors import ConfigError
from stream_vae.sky.psf import Image, Psf

Floats = npt.NDArray[np.float64]

_BOX_PX = 64
"""Side of the boxes that background and noise are taken from: larger than any star but the brightest."""
_HALF_PX = 12
"""Half side of the box that a star is fitted in: three times the half width of the widest profile."""
_STAR_SNR = 20.0
_MOST_STARS = 40
_FITTED_STARS = 20
_FEWEST_STARS = 3
_FWHM_PX = (1.2, 16.0)
"""Narrower is a cosmic ray or a hot pixel, wider is no star."""


class Stars(NamedTuple):
    """Bright isolated sources, brightest first."""

    x: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]


def background(image: Image) -> Image:
    """Estimate the background: medians of boxes, interpolated.

    Parameters
    ----------
    image : ndarray, (height, width)
        NaN where masked.

    Returns
    -------
    ndarray of float32, (height, width)
        Finite everywhere; zero if nothing in the image is finite.
    """
    return _interpolated(_box_medians(image), image.shape)


def noise_of(image: Image) -> Image:
    """Estimate the standard deviation of the sky from the image itself.

    Parameters
    ----------
    image : ndarray, (height, width)
        NaN where masked.

    Returns
    -------
    ndarray of float32, (height, width)
        1.4826 times the median absolute deviation from the background, in boxes, interpolated.
    """
    return np.float32(1.4826) * _interpolated(_box_medians(np.abs(image - background(image))), image.shape)


def find_sources(image: Image, noise: Image, snr: float = 5.0) -> Stars:
    """Find what stands out of an image.

    Parameters
    ----------
    image, noise : ndarray, (height, width)
        Without its background; its standard deviation.
    snr : float
        Least signal to noise of a peak.

    Returns
    -------
    Stars
        Peaks that are the highest pixel within 3 pixels.
    """
    filled = np.where(np.isfinite(image), image, np.float32(-np.inf))
    peak = (filled == ndimage.maximum_filter(filled, size=7)) & (filled > snr * noise)
    y, x = np.nonzero(peak)
    order = np.argsort(-filled[y, x], kind="stable")
    return Stars(x[order].astype(np.int64), y[order].astype(np.int64))


def isolated_stars(image: Image, noise: Image, saturation: float | None = None) -> Stars:
    """Choose sources that a profile can be measured from.

    Parameters
    ----------
    image, noise : ndarray, (height, width)
        Without its background; its standard deviation.
    saturation : float, optional
        Peaks over it, counted from the background, are left out; absent: over nine tenths of the highest.

    Returns
    -------
    Stars
        At most 40, whole, over 20 sigma, with no neighbour of a tenth of their height in their box.
    """
    sources = find_sources(image, noise, _STAR_SNR)
    if not len(sources.x):
        return sources
    height = image[sources.y, sources.x]
    limit = saturation if saturation is not None else (0.9 * float(height.max()) if len(height) > 10 else np.inf)
    chosen = []
    for i in np.flatnonzero(height <= limit).tolist():
        x, y = int(sources.x[i]), int(sources.y[i])
        box = _box(image, x, y)
        if box is None or not np.isfinite(box).all():
            continue
        near = np.maximum(np.abs(sources.x - x), np.abs(sources.y - y)) <= _HALF_PX
        if not np.any(near & (height > 0.1 * height[i]) & (np.arange(len(height)) != i)):
            chosen.append(i)
        if len(chosen) == _MOST_STARS:
            break
    return Stars(sources.x[chosen], sources.y[chosen])


def measure_psf(image: Image, noise: Image, stars: Stars, *, name: str = "the image") -> Psf:
    """Fit an elliptical Moffat profile to each star and take the profile that most of them share.

    Parameters
    ----------
    image, noise : ndarray, (height, width)
        Without its background; its standard deviation.
    stars : Stars
        From `isolated_stars`.
    name : str
        What to call the image in errors.

    Returns
    -------
    Psf
        Medians over the half of the stars whose widths lie closest together: galaxies and cosmic rays are outside.

    Raises
    ------
    ConfigError
        If fewer than three stars can be fitted.
    """
    each = (_fit(image, noise, int(x), int(y)) for x, y in zip(stars.x, stars.y, strict=True))
    fits = list(islice((fit for fit in each if fit is not None), _FITTED_STARS))
    if len(fits) < _FEWEST_STARS:
        raise ConfigError(
            f"{name}: only {len(fits)} bright isolated stars can be fitted, too few to measure the profile.",
            remedy="Give its width in pixels with --fwhm, or an image with more stars.",
        )
    ordered = np.array(sorted(fits))  # by width
    half = max(len(ordered) // 2 + 1, _FEWEST_STARS)
    starts = np.arange(len(ordered) - half + 1)
    first = int(np.argmin(ordered[starts + half - 1, 0] / ordered[starts, 0]))
    fwhm, beta, e1, e2 = np.median(ordered[first : first + half], axis=0).tolist()
    ratio, angle = _axes(e1, e2)
    return Psf(fwhm_px=fwhm, beta=beta, axis_ratio=ratio, angle_rad=angle)


def _fit(image: Image, noise: Image, x: int, y: int) -> tuple[float, float, float, float] | None:
    """Width, beta and the two components of the ellipticity of one star; None if it is none."""
    box, sigma = _box(image, x, y), _box(noise, x, y)
    if box is None or sigma is None:
        return None
    offset = np.arange(-_HALF_PX, _HALF_PX + 1, dtype=np.float64)
    area = np.count_nonzero(box > 0.5 * box.max())
    fwhm = float(np.clip(2.0 * np.sqrt(area / np.pi), 1.5, 12.0))
    flux = float(box.max()) / Psf(fwhm, 3.0).peak()
    # Poisson noise of the star itself weighs its core down by about as much as its profile is not quite Moffat's.
    weight = 1.0 / np.hypot(sigma, 0.03 * np.abs(box))

    def residual(p: Floats) -> Floats:
        ratio, angle = _axes(p[3], p[4])
        psf = Psf(float(np.exp(p[1])), float(p[2]), ratio, angle)
        model = p[0] * flux * psf.at(offset[None, :] - p[5], offset[:, None] - p[6])
        return np.asarray(((model + p[7] - box) * weight).ravel())

    low = [0.1, np.log(0.8), 1.5, -0.4, -0.4, -1.5, -1.5, -np.inf]
    high = [10.0, np.log(24.0), 8.0, 0.4, 0.4, 1.5, 1.5, np.inf]
    found = optimize.least_squares(residual, [1.0, np.log(fwhm), 3.0, 0, 0, 0, 0, 0], bounds=(low, high), max_nfev=60)
    width = float(np.exp(found.x[1]))
    if not (_FWHM_PX[0] < width < _FWHM_PX[1]):
        return None
    return width, float(found.x[2]), float(found.x[3]), float(found.x[4])


def _axes(e1: float, e2: float) -> tuple[float, float]:
    e = float(np.hypot(e1, e2))
    return (1.0 - e) / (1.0 + e), 0.5 * float(np.arctan2(e2, e1))


def _box(image: Image, x: int, y: int, half: int = _HALF_PX) -> Image | None:
    if x < half or y < half or x + half >= image.shape[1] or y + half >= image.shape[0]:
        return None
    return image[y - half : y + half + 1, x - half : x + half + 1]


def _box_medians(image: Image) -> Image:
    """Medians of boxes of about `_BOX_PX`; boxes with nothing in them take the median of all."""
    rows, columns = (np.array_split(np.arange(n), max(round(n / _BOX_PX), 1)) for n in image.shape)
    medians = np.full((len(rows), len(columns)), np.nan, np.float32)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            box = image[row[0] : row[-1] + 1, column[0] : column[-1] + 1]
            good = box[np.isfinite(box)]
            if len(good) >= 9:
                medians[i, j] = np.median(good)
    known = medians[np.isfinite(medians)]
    return np.where(np.isfinite(medians), medians, np.median(known) if len(known) else 0.0).astype(np.float32)


def _interpolated(medians: Image, shape: tuple[int, ...]) -> Image:
    at = [(np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(shape, medians.shape, strict=True)]
    grid = np.meshgrid(*at, indexing="ij", sparse=False)
    whole: Image = ndimage.map_coordinates(medians, grid, order=1, mode="nearest", output=np.float32)
    return whole
