"""Point-spread functions: an elliptical Moffat profile with a little coma, and drawing many of them fast."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]
Image = npt.NDArray[np.float32]

# Half sizes of the boxes that points are drawn in: a few sizes, so that points of one size are evaluated together.
_HALF_SIZES = (6, 12, 24, 48, 96)


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
        cos, sin = np.cos(self.angle_rad), np.sin(self.angle_rad)
        # With one axis stretched as much as the other is squeezed the flux stays one.
        xx = (self.axis_ratio * cos * cos + sin * sin / self.axis_ratio) / self.alpha_px**2
        yy = (self.axis_ratio * sin * sin + cos * cos / self.axis_ratio) / self.alpha_px**2
        xy = 2.0 * cos * sin * (self.axis_ratio - 1.0 / self.axis_ratio) / self.alpha_px**2
        peak = (self.beta - 1.0) / (np.pi * self.alpha_px**2)
        base = 1.0 + float(xx) * dx * dx + float(yy) * dy * dy + float(xy) * dx * dy
        return float(peak) * base ** (-self.beta)

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
        offset = (np.fft.fftfreq(side) * side).astype(np.float32)
        image = self.at(offset[None, :], offset[:, None]).astype(np.float32)
        normalised: Image = image / image.sum()
        return normalised

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
    radius = psf.alpha_px * (np.maximum(flux, floor) * psf.peak() / floor) ** (0.5 / psf.beta)
    classes = np.minimum(np.searchsorted(_HALF_SIZES, radius), len(_HALF_SIZES) - 1)
    for index in np.unique(classes):
        members = classes == index
        _add_boxes(image, psf, np.stack([x[members], y[members]]), flux[members], _HALF_SIZES[index])


def _add_boxes(image: Image, psf: Psf, positions: FloatArray, flux: FloatArray, half: int) -> None:
    height, width = image.shape
    x, y = positions
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    offset = np.arange(-half, half + 1, dtype=np.float32)
    dx = offset[None, None, :] - (x - column).astype(np.float32)[:, None, None]
    dy = offset[None, :, None] - (y - row).astype(np.float32)[:, None, None]
    boxes = psf.at(dx, dy) * flux.astype(np.float32)[:, None, None]  # (n, 2 half + 1, 2 half + 1)
    for box, i, j in zip(boxes, row.tolist(), column.tolist(), strict=True):
        top, bottom = max(i - half, 0), min(i + half + 1, height)
        left, right = max(j - half, 0), min(j + half + 1, width)
        if top < bottom and left < right:
            image[top:bottom, left:right] += box[top - i + half : bottom - i + half, left - j + half : right - j + half]
