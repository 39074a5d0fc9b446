"""Point-spread functions: an elliptical Moffat profile with a little coma, and drawing many of them fast."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numba
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]
Image = npt.NDArray[np.float32]

_LEAST_RADIUS_PX = 6.0
_LARGEST_RADIUS_PX = 96.0
_KERNEL_RADIUS_PX = 64.0  # eight times the widest profile, where the wings are under 1e-4 of the peak

_TABLE_STEPS = 4096
"""Fineness of the table that profiles are drawn from: its error is under 1e-6 of the peak and 0.1% of the wings."""


@dataclass(frozen=True)
class Psf:
    """An elliptical Moffat profile of unit flux, with part of its light displaced (coma).

    Parameters
    ----------
    fwhm_px : float
        Geometric mean of the full widths at half maximum along the two axes.
    beta : float
        Moffat's exponent.
    axis_ratio : float
        Minor over major axis.
    angle_rad : float
        Direction of the major axis, from x to y.
    coma_weight : float
        Share of the light in the displaced component.
    coma_x, coma_y : float
        Where that component is, in pixels.

    References
    ----------
    Moffat, A. F. J. 1969, A&A 3, 455, equation 7.
    """

    fwhm_px: float
    beta: float
    axis_ratio: float = 1.0
    angle_rad: float = 0.0
    coma_weight: float = 0.0
    coma_x: float = 0.0
    coma_y: float = 0.0

    @property
    def alpha_px(self) -> float:
        """Moffat's scale length."""
        return float(self.fwhm_px / (2.0 * np.sqrt(2.0 ** (1.0 / self.beta) - 1.0)))

    def at(self, dx: FloatArray, dy: FloatArray) -> FloatArray:
        """Evaluate the profile.

        Parameters
        ----------
        dx, dy : ndarray
            Offsets from its centre in pixels, which broadcast together.

        Returns
        -------
        ndarray
            Flux per pixel for a source of unit flux.
        """
        value = (1.0 - self.coma_weight) * self._moffat(dx, dy)
        if self.coma_weight:
            value += self.coma_weight * self._moffat(dx - self.coma_x, dy - self.coma_y)
        return value

    def _moffat(self, dx: FloatArray, dy: FloatArray) -> FloatArray:
        xx, yy, xy = self._shape()
        peak = (self.beta - 1.0) / (np.pi * self.alpha_px**2)
        base = 1.0 + xx * dx * dx + yy * dy * dy + xy * dx * dy
        return float(peak) * base ** (-self.beta)

    def _shape(self) -> tuple[float, float, float]:
        """Coefficients of dx^2, dy^2 and dx dy in the squared distance in alphas."""
        cos, sin = np.cos(self.angle_rad), np.sin(self.angle_rad)
        # With one axis stretched as much as the other is squeezed the flux stays one.
        xx = (self.axis_ratio * cos * cos + sin * sin / self.axis_ratio) / self.alpha_px**2
        yy = (self.axis_ratio * sin * sin + cos * cos / self.axis_ratio) / self.alpha_px**2
        xy = 2.0 * cos * sin * (self.axis_ratio - 1.0 / self.axis_ratio) / self.alpha_px**2
        return float(xx), float(yy), float(xy)

    def peak(self) -> float:
        """Give the flux in the central pixel of a centred source of unit flux.

        Returns
        -------
        float
            Flux per pixel.
        """
        return float(self.at(np.zeros(1), np.zeros(1))[0])

    def image(self, side: int) -> Image:
        """Draw it on a square grid with its centre on pixel (0, 0), for convolutions by Fourier transform.

        Parameters
        ----------
        side : int
            Pixels along each axis.

        Returns
        -------
        ndarray of float32, (side, side)
            Unit sum, wrapped round the corners.
        """
        image = np.zeros((side, side), np.float32)
        middle, reach = np.full(1, side // 2, np.float64), np.full(1, min(side / 2, _KERNEL_RADIUS_PX))
        _draw(image, middle, middle, np.ones(1), reach, *self.for_drawing())
        normalised: Image = np.roll(image, (-(side // 2), -(side // 2)), (0, 1)) / image.sum()
        return normalised

    def for_drawing(self) -> tuple[FloatArray, Image]:
        """Give what points are drawn from.

        Returns
        -------
        tuple of ndarray
            Seven numbers (coefficients of dx^2, dy^2 and dx dy in the squared distance in alphas, the peaks of the two
            components, the second one's displacement), and a table of the profile, which is one at its centre.
        """
        xx, yy, xy = self._shape()
        peak = (self.beta - 1.0) / (np.pi * self.alpha_px**2)
        weights = ((1.0 - self.coma_weight) * peak, self.coma_weight * peak)
        return np.array([xx, yy, xy, *weights, self.coma_x, self.coma_y]), _table(self.beta)

    def misjudged(self, rng: np.random.Generator, relative: float) -> "Psf":
        """Give what a pipeline would take this profile for.

        Parameters
        ----------
        rng : numpy.random.Generator
            Where the errors come from.
        relative : float
            Standard deviation of the relative error in width, and of that in the axis ratio.

        Returns
        -------
        Psf
            The profile with those errors.
        """
        width, ratio = 1.0 + relative * rng.standard_normal(2)
        return replace(self, fwhm_px=self.fwhm_px * width, axis_ratio=float(np.clip(self.axis_ratio * ratio, 0.6, 1.0)))


@lru_cache(maxsize=16)
def _table(beta: float) -> Image:
    """Entry k holds the profile at u alphas from its centre, where u / (1 + u) = k / steps."""
    part = np.arange(_TABLE_STEPS, dtype=np.float32) / np.float32(_TABLE_STEPS)
    table = (1.0 + (part / (1.0 - part)) ** 2) ** np.float32(-beta)
    return np.append(table, np.float32(0.0))


def draw_psf(rng: np.random.Generator, fwhm_px: float) -> Psf:
    """Draw the shape of a profile of a given width.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where the shape comes from.
    fwhm_px : float
        Its width.

    Returns
    -------
    Psf
        Moffat beta 2.5 to 4.5, ellipticity up to 0.2, in half of the cases up to a tenth of the light displaced.
    """
    coma, angle = rng.uniform(0.2, 0.5) * fwhm_px, rng.uniform(0.0, 2.0 * np.pi)
    return Psf(
        fwhm_px=fwhm_px,
        beta=rng.uniform(2.5, 4.5),
        axis_ratio=1.0 - 0.2 * rng.uniform() ** 1.5,
        angle_rad=rng.uniform(0.0, np.pi),
        coma_weight=rng.uniform(0.0, 0.1) if rng.uniform() < 0.5 else 0.0,
        coma_x=float(coma * np.cos(angle)),
        coma_y=float(coma * np.sin(angle)),
    )


def add_points(image: Image, psf: Psf, x: FloatArray, y: FloatArray, flux: FloatArray, *, floor: float) -> None:
    """Add point sources to an image, in place, at positions finer than a pixel.

    Parameters
    ----------
    image : ndarray of float32, (height, width)
        Changed in place. Pixel centres are at whole numbers.
    psf : Psf
        Profile of every source.
    x, y : ndarray, (n,)
        Positions in pixels; sources outside the image contribute their wings.
    flux : ndarray, (n,)
        Total fluxes.
    floor : float
        Wings are drawn down to about this flux per pixel (a tenth of the noise will do).
    """
    if not len(x):
        return
    # Radius where the wing, flux * peak * (r / alpha)^(-2 beta), falls to the floor.
    radius = psf.alpha_px * (np.maximum(np.abs(flux), floor) * psf.peak() / floor) ** (0.5 / psf.beta)
    radius = np.clip(radius, _LEAST_RADIUS_PX, _LARGEST_RADIUS_PX)
    _draw(image, *(np.asarray(v, np.float64) for v in (x, y, flux, radius)), *psf.for_drawing())


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _draw(
    image: Image, x: FloatArray, y: FloatArray, flux: FloatArray, radius: FloatArray, shape: FloatArray, table: Image
) -> None:
    """Add points: the profile from the table, and its displaced part, out to a radius of its own for each point."""
    height, width = image.shape
    one, steps = np.float32(1.0), np.float32(len(table) - 1)
    xx, yy, xy = np.float32(shape[0]), np.float32(shape[1]), np.float32(shape[2])
    for i in range(len(x)):
        for part in range(2):
            weight = np.float32(shape[3 + part] * flux[i])
            if weight == 0.0:
                continue
            x0, y0 = x[i] + part * shape[5], y[i] + part * shape[6]
            reach = radius[i]
            for row in range(max(int(np.ceil(y0 - reach)), 0), min(int(np.floor(y0 + reach)) + 1, height)):
                half = np.sqrt(reach * reach - (row - y0) ** 2)
                dy = np.float32(row - y0)
                for column in range(max(int(np.ceil(x0 - half)), 0), min(int(np.floor(x0 + half)) + 1, width)):
                    dx = np.float32(column - x0)
                    u = np.sqrt(xx * dx * dx + yy * dy * dy + xy * dx * dy)
                    place = steps * u / (one + u)
                    k = int(place)
                    below = table[k]
                    image[row, column] += weight * (below + (place - np.float32(k)) * (table[k + 1] - below))
