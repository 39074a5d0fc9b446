"""Find candidates in a difference image, and tell by what was put there whether they are real."""

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from stream_vae.sky.artefacts import Cause
from stream_vae.sky.conditions import Conditions
from stream_vae.sky.differencing import Difference
from stream_vae.sky.psf import Image
from stream_vae.sky.scene import Transients

THRESHOLD = 5.0
"""Signal to noise of a candidate."""

_SEPARATION_PX = 4
"""Of two candidates closer than this only the more significant one is kept."""

_LONG_REGION_PX = 60
"""A region of more pixels than this is no point source's: a trail, a column, bleeding, or a bright star's ring."""

_AMBIGUOUS = "ambiguous"


@dataclass(frozen=True)
class Candidates:
    """Detections of one image pair, each array of shape (n,).

    Parameters
    ----------
    row, column : ndarray of int
        The most significant pixel of its region, or the brightest one beside it; not the centroid.
    snr : ndarray of float32
        Signal to noise of the most significant pixel, by the pipeline's noise map: positive also for negative peaks.
    flux : ndarray of float32
        Flux of the profile that fits best there, in electrons; what is no source may have the other sign than its peak.
    positive : ndarray of bool
        Whether the peak is positive: the science image is the brighter one.
    kind : ndarray of str
        Why it is there: a real kind, or the cause of a bogus one, or "ambiguous".
    real : ndarray of bool
        Whether an injected source made it.
    """

    row: npt.NDArray[np.int64]
    column: npt.NDArray[np.int64]
    snr: Image
    flux: Image
    positive: npt.NDArray[np.bool_]
    kind: npt.NDArray[np.str_]
    real: npt.NDArray[np.bool_]


def detect(conditions: Conditions, difference: Difference, transients: Transients, margin: int) -> Candidates:
    """Detect at 5 sigma and match with what was injected.

    Negative peaks are looked for if there may be fading sources: then what else is negative is found, too. Where a
    positive and a negative peak are close, as a dipole's are, the more significant one is kept.

    Parameters
    ----------
    conditions : Conditions
        Of this image pair.
    difference : Difference
        The subtracted image.
    transients : Transients
        What was injected.
    margin : int
        Detections closer than this to the border of the canvas are left out.

    Returns
    -------
    Candidates
        In order of position, including ambiguous ones: blends of a transient and something bogus.
    """
    significance = _significance(conditions, difference)
    row, column, sign = _peaks_of_both_signs(significance, margin, negative=conditions.fading > 0.0)
    snr = sign * significance[row, column]
    if conditions.centre_on_peak:
        row, column = _brightest_near(difference.image, row, column, sign)
    flux = _fitted_flux(conditions, difference, row, column)
    injected, distance, share = _match(conditions, difference, transients, (row, column, sign), flux)
    causes = _causes(difference, row, column)
    # The radius is that of a centroid's error at 5 sigma plus half a pixel's diagonal.
    radius = 1.0 + 0.3 * conditions.difference_psf.fwhm_px
    real = (distance <= radius) & (share >= 0.5)
    # Between the two the candidate is a blend, which no label would be right for.
    kind = np.where(real, injected, np.where(share > 0.15, _AMBIGUOUS, causes))
    return Candidates(row, column, snr, flux, sign > 0, kind, real)


def is_ambiguous(kind: npt.NDArray[np.str_]) -> npt.NDArray[np.bool_]:
    """Tell the candidates that are blends of a transient and something bogus.

    Parameters
    ----------
    kind : ndarray of str, (n,)
        As `Candidates` has it.

    Returns
    -------
    ndarray of bool, (n,)
        True for a blend, which has no right label.
    """
    ambiguous: npt.NDArray[np.bool_] = kind == _AMBIGUOUS
    return ambiguous


def _significance(conditions: Conditions, difference: Difference) -> Image:
    """S/N of each pixel, or of the matched filter at each pixel; masked pixels have none."""
    masked = np.isnan(difference.image)
    snr = np.where(masked, np.float32(0.0), difference.image / difference.noise)
    if conditions.matched_filter:
        snr = _matched_filter(conditions, difference, masked)
    # A pipeline scales its noise map to the scatter that it sees, and is still off by what it underestimates.
    scatter = 1.4826 * float(np.median(np.abs(snr[::3, ::3])))
    snr = snr / np.float32(max(scatter, 1e-3) * conditions.noise_underestimate)
    snr[masked] = 0.0
    return np.asarray(snr, dtype=np.float32)


def _matched_filter(conditions: Conditions, difference: Difference, masked: npt.NDArray[np.bool_]) -> Image:
    weight = np.where(masked, np.float32(0.0), difference.noise ** np.float32(-2.0))
    weighted = np.where(masked, np.float32(0.0), difference.image * weight)
    profile = conditions.difference_psf.image(weight.shape[0])
    transform, squared = np.conj(fft.rfft2(profile)), np.conj(fft.rfft2(profile * profile))
    signal = fft.irfft2(fft.rfft2(weighted) * transform, s=weight.shape)
    variance = fft.irfft2(fft.rfft2(weight) * squared, s=weight.shape)
    floor = np.float32(1e-3) * np.median(variance[::4, ::4])
    return np.asarray(signal / np.sqrt(np.maximum(variance, floor)), dtype=np.float32)


def _peaks_of_both_signs(
    significance: Image, margin: int, *, negative: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Image]:
    """Rows, columns and signs (1 or -1) of the peaks."""
    row, column = _peaks(significance, margin)
    if not negative:
        return row, column, np.ones(len(row), np.float32)
    faint_row, faint_column = _peaks(-significance, margin)
    sign = np.repeat(np.array([1.0, -1.0], np.float32), [len(row), len(faint_row)])
    row, column = np.concatenate([row, faint_row]), np.concatenate([column, faint_column])
    snr = sign * significance[row, column]
    apart = np.maximum(np.abs(row[:, None] - row), np.abs(column[:, None] - column))
    beaten = (apart < _SEPARATION_PX) & (sign[:, None] != sign) & (snr[:, None] < snr)
    kept = ~beaten.any(axis=1)
    return row[kept], column[kept], sign[kept]


def _peaks(significance: Image, margin: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The most significant pixel of each connected region over the threshold; of long regions some pixels more."""
    inner = significance[margin:-margin, margin:-margin]
    over = inner > THRESHOLD
    labels, _ = ndimage.label(over, np.ones((3, 3)))
    row, column = np.nonzero(over)
    order = np.argsort(-inner[row, column], kind="stable")
    row, column = row[order], column[order]
    kept = _thin_out(row, column, labels[row, column])
    kept = kept[np.lexsort((column[kept], row[kept]))]
    return row[kept].astype(np.int64) + margin, column[kept].astype(np.int64) + margin


def _brightest_near(
    image: Image, row: npt.NDArray[np.int64], column: npt.NDArray[np.int64], sign: Image
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The brightest pixel, or faintest of a negative peak, within two of each; the margin is wide enough for that."""
    offset = np.arange(-2, 3)
    boxes = image[row[:, None, None] + offset[None, :, None], column[:, None, None] + offset[None, None, :]]
    boxes = sign[:, None, None] * boxes
    best = np.argmax(np.where(np.isnan(boxes), -np.inf, boxes).reshape(len(row), offset.size**2), axis=1)
    return row + offset[best // 5], column + offset[best % 5]


def _thin_out(
    row: npt.NDArray[np.intp], column: npt.NDArray[np.intp], region: npt.NDArray[np.int32]
) -> npt.NDArray[np.int64]:
    """Keep the first pixel of each region, and of long ones two more that are far enough away for another stamp."""
    if not len(row):
        return np.zeros(0, np.int64)
    order = np.argsort(region, kind="stable")  # region by region, the most significant pixel first
    start = np.flatnonzero(np.diff(region[order], prepend=-1))
    size = np.diff(start, append=len(order))
    offered = [order[start]]
    for first, length in zip(start[size > _LONG_REGION_PX], size[size > _LONG_REGION_PX], strict=True):
        offered.append(order[first : first + length : max(length // 12, 1)])
    kept: npt.NDArray[np.int64] = _far_enough(np.unique(np.concatenate(offered)), row, column, region)
    return kept


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _far_enough(
    offered: npt.NDArray[np.int64],
    row: npt.NDArray[np.int64],
    column: npt.NDArray[np.int64],
    region: npt.NDArray[np.int32],
) -> npt.NDArray[np.int64]:
    """Of the offered pixels, the most significant first, those that no kept one is too near to."""
    kept = np.empty(len(offered), np.int64)
    seen = np.zeros(region.max() + 1, np.int64)
    count = 0
    for i in offered:
        reach = _SEPARATION_PX if seen[region[i]] == 0 else _LONG_REGION_PX // 3
        apart = seen[region[i]] < 3
        for k in kept[:count]:
            apart = apart and max(abs(row[i] - row[k]), abs(column[i] - column[k])) >= reach
        if apart:
            kept[count] = i
            seen[region[i]] += 1
            count += 1
    return kept[:count]


def _match(
    conditions: Conditions,
    difference: Difference,
    transients: Transients,
    peaks: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Image],
    flux: Image,
) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """For each detection the kind and distance of the injected source that is brightest there, and its share of it.

    Only those of the peak's own sign count: a source that has faded explains no light.
    """
    row, column, sign = peaks
    n = len(row)
    if not n or not len(transients.x):
        return np.full(n, "", "<U12"), np.full(n, np.inf), np.zeros(n)
    off_x, off_y = conditions.displacement(transients.x, transients.y, difference.image.shape[0])
    gone = transients.flux < 0  # seen in the template only, which is off by the error of its registration
    dx = column[:, None] - (transients.x + gone * off_x)[None, :]
    dy = row[:, None] - (transients.y + gone * off_y)[None, :]
    injected = sign[:, None] * transients.flux  # (detections, injected)
    expected = conditions.difference_psf.at(dx, dy) * injected
    best = np.argmax(expected, axis=1)
    each = np.arange(n)
    if conditions.matched_filter:
        # The filtered profile falls off more slowly; so does the share of what it finds.
        seen = sign * flux
        falloff = conditions.difference_psf.at(dx / np.sqrt(2.0), dy / np.sqrt(2.0)) / conditions.difference_psf.peak()
        share = injected[each, best] * falloff[each, best] / np.maximum(seen, 1e-6)
    else:
        seen = sign * difference.image[row, column]
        share = expected[each, best] / np.maximum(seen, 1e-6)
    return transients.kind[best], np.hypot(dx, dy)[each, best], share


def _fitted_flux(
    conditions: Conditions, difference: Difference, row: npt.NDArray[np.int64], column: npt.NDArray[np.int64]
) -> Image:
    """Flux of the profile that fits best around each pixel, in the sense of least squares."""
    half = 6
    offset = np.arange(-half, half + 1)
    boxes = difference.image[row[:, None, None] + offset[None, :, None], column[:, None, None] + offset[None, None, :]]
    profile = conditions.difference_psf.at(offset[None, :].astype(float), offset[:, None].astype(float))
    good = np.isfinite(boxes)
    norm = np.sum(good * profile**2, axis=(1, 2))
    flux = np.sum(np.where(good, boxes, 0.0) * profile, axis=(1, 2)) / np.maximum(norm, 1e-12)
    return np.asarray(flux, dtype=np.float32)


def _causes(difference: Difference, row: npt.NDArray[np.int64], column: npt.NDArray[np.int64]) -> npt.NDArray[np.str_]:
    """Why a detection that is no transient is there: a cause within two pixels, else a source, else noise."""
    offset = np.arange(-2, 3)
    near = (row[:, None, None] + offset[None, :, None], column[:, None, None] + offset[None, None, :])
    mark = np.maximum(difference.science_marks[near], difference.template_marks[near]).max(axis=(1, 2))
    source = difference.signal[near].max(axis=(1, 2)) > 3.0 * difference.noise[row, column]
    edge = np.isnan(difference.image[near]).any(axis=(1, 2))
    kinds = np.where(source, "dipole", np.where(edge, Cause.EDGE.name.lower(), "noise")).astype("<U12")
    for cause in Cause:
        if cause is not Cause.NONE:
            kinds[mark == cause] = cause.name.lower()
    return kinds
