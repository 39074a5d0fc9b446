"""Subtract a user's own pair of registered images: the sharper one is convolved to the other's profile.

References
----------
Alard, C. & Lupton, R. H. 1998, ApJ 503, 325: the kernel is a sum of Gaussians times polynomials, whose weights are a
linear least-squares fit to the pixels around stars (equations 2 to 4). One kernel serves the whole image here.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage, signal

from stream_vae.errors import ConfigError
from stream_vae.sky.psf import Image, Psf
from stream_vae.sky.stars import Stars

Floats = npt.NDArray[np.float64]

_FIT_HALF_PX = 14
_FEWEST_STARS = 3


class Subtracted(NamedTuple):
    """A difference in the science image's counts, on its grid."""

    image: Image
    """(height, width); NaN where either image has no data."""
    noise: Image
    """(height, width), propagated through the kernel."""
    kernel: Floats
    """(2 half + 1, 2 half + 1), its sum the ratio of the two flux scales."""
    convolves_science: bool
    """The science image was the sharper one."""

    def as_in_difference(self, source: Image) -> Image:
        """Tell what light in the science image becomes in the difference.

        Parameters
        ----------
        source : ndarray, (height, width)
            In the science image.

        Returns
        -------
        ndarray of float32, (height, width)
            In the difference.
        """
        return _convolved(source, self.kernel) / np.float32(self.kernel.sum()) if self.convolves_science else source


def subtract_pair(
    science: Image,
    template: Image,
    noises: tuple[Image, Image],
    profiles: tuple[Psf, Psf],
    stars: Stars,
    *,
    kernel: Floats | None = None,
    name: str = "the pair",
) -> Subtracted:
    """Subtract a template from a science image on the same pixel grid.

    Parameters
    ----------
    science, template : ndarray of float32, (height, width)
        Without their backgrounds; NaN where masked.
    noises : tuple of ndarray
        Their standard deviations.
    profiles : tuple of Psf
        Their measured profiles; they decide which is convolved and with what widths.
    stars : Stars
        Where the kernel is fitted.
    kernel : ndarray, optional
        Of an earlier subtraction of this pair; it is not fitted again then.
    name : str
        What to call the pair in errors.

    Returns
    -------
    Subtracted
        Science minus template.

    Raises
    ------
    ConfigError
        If fewer than three stars are whole in both images, or they do not match.
    """
    convolves_science = profiles[0].fwhm_px < profiles[1].fwhm_px
    sharp, wide = (science, template) if convolves_science else (template, science)
    sharp_noise, wide_noise = noises if convolves_science else noises[::-1]
    narrow_px, wide_px = sorted(profile.fwhm_px for profile in profiles)
    if kernel is None:
        kernel = _fit(sharp, wide, wide_noise, _basis(narrow_px, wide_px), stars, name)
    spoilt = ndimage.binary_dilation(~np.isfinite(sharp), iterations=2) | ~np.isfinite(wide)
    kept = np.float32(np.sum(kernel**2))  # of the variance of white noise; the rest has become covariance
    image = wide - _convolved(sharp, kernel)
    noise = np.sqrt(wide_noise**2 + kept * sharp_noise**2).astype(np.float32)
    if convolves_science:
        scale = np.float32(kernel.sum())
        image, noise = -image / scale, noise / scale
    image[spoilt] = np.nan
    return Subtracted(image, noise, kernel, convolves_science)


def _basis(narrow_px: float, wide_px: float) -> Floats:
    """Three Gaussians with polynomials of degree 4, 2 and 2: (functions, rows, columns)."""
    sigma = max(float(np.sqrt(wide_px**2 - narrow_px**2)) / 2.355, 0.8)
    # A smaller one loses the wings, and with them some percent of the flux scale.
    half = int(np.ceil(min(max(6.0 * sigma, 3.0 * wide_px), 30.0)))
    offset = np.arange(-half, half + 1, dtype=np.float64)
    functions = []
    for factor, degree in ((0.5, 4), (1.0, 2), (2.0, 2)):
        width = max(factor * sigma, 0.6)
        powers = [(offset / width) ** k * np.exp(-0.5 * (offset / width) ** 2) for k in range(degree + 1)]
        functions += [np.outer(powers[j], powers[i]) for i in range(degree + 1) for j in range(degree + 1 - i)]
    return np.stack([function / np.abs(function).sum() for function in functions])


def _fit(sharp: Image, wide: Image, noise: Image, basis: Floats, stars: Stars, name: str) -> Floats:
    """The kernel from the pixels around the stars; stars that do not fit are left out once."""
    each = (
        _equations(sharp, wide, noise, basis, x, y) for x, y in zip(stars.x.tolist(), stars.y.tolist(), strict=True)
    )
    parts = [part for part in each if part is not None]
    if len(parts) < _FEWEST_STARS:
        raise ConfigError(
            f"{name}: only {len(parts)} stars are whole in both images, too few to match their profiles.",
            remedy="Give larger images, or your own --difference.",
        )
    weights = _solve(parts)
    misfit = np.array([np.mean((matrix @ weights - target) ** 2) for matrix, target in parts])
    kept = [part for part, bad in zip(parts, misfit > 4.0 * np.median(misfit), strict=True) if not bad]
    weights = _solve(kept) if len(kept) >= _FEWEST_STARS else weights
    kernel: Floats = np.tensordot(weights[:-1], basis, axes=1)
    if not kernel.sum() > 0.0:
        raise ConfigError(
            f"{name}: the stars of the two images do not match.", remedy="Register them on one pixel grid first."
        )
    return kernel


def _equations(sharp: Image, wide: Image, noise: Image, basis: Floats, x: int, y: int) -> tuple[Floats, Floats] | None:
    """Rows of the fit: the basis convolved with the sharp image, and a constant, against the wide one."""
    half, reach = _FIT_HALF_PX, _FIT_HALF_PX + basis.shape[1] // 2
    if min(x, y) < reach or x + reach >= sharp.shape[1] or y + reach >= sharp.shape[0]:
        return None
    box = sharp[y - reach : y + reach + 1, x - reach : x + reach + 1].astype(np.float64)
    target = wide[y - half : y + half + 1, x - half : x + half + 1].astype(np.float64)
    if not (np.isfinite(box).all() and np.isfinite(target).all()):
        return None
    columns = signal.fftconvolve(box[None], basis, mode="valid", axes=(1, 2)).reshape(len(basis), -1)
    weight = 1.0 / float(np.median(noise[y - half : y + half + 1, x - half : x + half + 1]))
    matrix = np.vstack([columns, np.ones(columns.shape[1])]).T * weight
    return matrix, target.ravel() * weight


def _solve(parts: list[tuple[Floats, Floats]]) -> Floats:
    gram = sum((matrix.T @ matrix for matrix, _ in parts), np.zeros(1))
    right = sum((matrix.T @ target for matrix, target in parts), np.zeros(1))
    gram[np.diag_indices_from(gram)] *= 1.0 + 1e-6  # the polynomials are nearly degenerate
    return np.asarray(np.linalg.solve(gram, right))


def _convolved(image: Image, kernel: Floats) -> Image:
    filled = np.where(np.isfinite(image), image, np.float32(0.0))
    out: Image = signal.oaconvolve(filled, kernel.astype(np.float32), mode="same")
    return out.astype(np.float32)
