"""Alerts to stamps: the cutouts that the release asks for, cropped around the candidate and scaled.

Every alert gets a row. What was done to it (filled, padded) and why it cannot be scored, if so, is in its
quality flags; an unscoreable alert's row is zero.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from stream_vae import inflate
from stream_vae.alert import Alert, FloatArray
from stream_vae.cutout import (
    CutoutError,
    centre_of,
    crop_into,
    decompress,
    read_fits,
    read_float32,
    read_variance,
)
from stream_vae.cutting import SCRATCH_BYTES, cut_each
from stream_vae.model.release import Preprocessing
from stream_vae.quality import UNSCOREABLE, Quality
from stream_vae.surveys import Cutouts

if TYPE_CHECKING:
    from stream_vae.layout import Layout

Flags = npt.NDArray[np.uint32]

# Plain integers: an IntFlag's | costs a microsecond, and there are several an alert.
_UNSCOREABLE = int(UNSCOREABLE)
_MISSING = int(Quality.MISSING_CUTOUT)
_PADDED = int(Quality.PADDED)
_NOT_SQUARE = int(Quality.NOT_SQUARE)
_MASKED = int(Quality.MASKED_PIXELS)
_BLANK = int(Quality.BLANK)
_TOO_MANY = int(Quality.TOO_MANY_MASKED)


class Stamps(NamedTuple):
    """A batch of stamps, one row an alert."""

    stamps: FloatArray
    """(n, size, size, channels) scaled; zero where unscoreable."""
    quality: Flags
    """(n,) `Quality` bits."""

    @property
    def scoreable(self) -> npt.NDArray[np.bool_]:
        """(n,) whether the row may be encoded."""
        scoreable: npt.NDArray[np.bool_] = (self.quality & _UNSCOREABLE) == 0
        return scoreable


class Stamper:
    """Cuts the stamps that one release wants out of one survey's alerts.

    Parameters
    ----------
    preprocessing : Preprocessing
        The release's channels, size and limits.
    cutouts : Cutouts
        The survey's encoding and geometry.
    max_cutout_bytes : int
        Largest decompressed cutout.
    """

    def __init__(self, preprocessing: Preprocessing, cutouts: Cutouts, max_cutout_bytes: int) -> None:
        self.preprocessing = preprocessing
        self._cutouts = cutouts
        self._max_bytes = max_cutout_bytes
        self._inflates = inflate.available()

    def cut(self, alerts: Sequence[Alert]) -> Stamps:
        """Cut and scale the stamps of a batch.

        Parameters
        ----------
        alerts : sequence of Alert
            Decoded alerts.

        Returns
        -------
        Stamps
            One row an alert, in order.
        """
        raw, quality = self.cut_raw(alerts)
        stamps, found = normalise(raw, self.preprocessing)
        found[(quality & _UNSCOREABLE) != 0] = 0  # a row without pixels is blank: that says nothing about the sky
        return Stamps(stamps, quality | found)

    def cut_raw(self, alerts: Sequence[Alert]) -> tuple[FloatArray, Flags]:
        """Cut the stamps of a batch and leave them in the survey's unit.

        Parameters
        ----------
        alerts : sequence of Alert
            Decoded alerts.

        Returns
        -------
        raw : ndarray
            (n, size, size, channels) float32; NaN where masked or beyond the cutout, zero where unscoreable.
        quality : ndarray
            (n,) `Quality` bits of the cutting.
        """
        wanted = self.preprocessing
        raw = np.empty((len(alerts), wanted.stamp_size, wanted.stamp_size, len(wanted.cutouts)), np.float32)
        quality = np.zeros(len(alerts), np.uint32)
        with np.errstate(over="ignore", invalid="ignore"):  # a float64 beyond float32's range becomes inf: masked
            for channel, name in enumerate(wanted.cutouts):
                for row in self._cut_usual(raw, channel, alerts, name):
                    quality[row] |= self._cut_one(raw[row, :, :, channel], alerts[row], name)
        raw[(quality & _UNSCOREABLE) != 0] = 0.0
        return raw, quality

    def _cut_usual(self, raw: FloatArray, channel: int, alerts: Sequence[Alert], name: str) -> Sequence[int]:
        """Cut what needs no thought in one call a writer schema; give the rows that are left."""
        if self._cutouts.encoding == "float32":
            return range(len(alerts))
        rows_of: dict[Layout, list[int]] = {}
        for row, alert in enumerate(alerts):
            rows_of.setdefault(alert.layout, []).append(row)
        left: list[int] = []
        for layout, rows in rows_of.items():
            index = layout.span_index(name)
            if index is None or not layout.plan.is_bytes(index):
                left += rows
                continue
            where = np.array([alerts[row].frame.address for row in rows], np.uintp)
            spans = np.array([alerts[row].spans[index] for row in rows], np.int64)
            spans[where == 0] = -1
            done = cut_each(
                raw.view(np.uint32),
                channel,
                np.array(rows, np.int64),
                where,
                spans,
                self._cutouts.nominal_size or 0,
                self._max_bytes,
                inflate.decompressor() if self._inflates else 0,
                np.empty(SCRATCH_BYTES, np.uint8),
            )
            left += [row for row, it_is in zip(rows, done.tolist(), strict=True) if not it_is]
        return sorted(left)

    def cut_noise(self, alerts: Sequence[Alert]) -> FloatArray:
        """Cut the noise maps of a batch, for training; serving needs none.

        Parameters
        ----------
        alerts : sequence of Alert
            Decoded alerts.

        Returns
        -------
        ndarray
            (n, size, size, channels) float32, one standard deviation of each pixel in the survey's unit; NaN where
            the alert does not say.
        """
        wanted = self.preprocessing
        noise = np.full((len(alerts), wanted.stamp_size, wanted.stamp_size, len(wanted.cutouts)), np.nan, np.float32)
        for row, alert in enumerate(alerts):
            for channel, name in enumerate(wanted.cutouts):
                variance = self._variance(alert, name)
                if variance is not None:
                    centre = self._candidate_pixel(variance.shape, alert)
                    with np.errstate(invalid="ignore", over="ignore"):
                        crop_into(noise[row, :, :, channel], np.sqrt(variance), *centre)
        return noise

    def _variance(self, alert: Alert, name: str) -> npt.NDArray[np.generic] | None:
        cutout = alert.cutout(name)
        if cutout is None or len(cutout) == 0 or self._cutouts.encoding == "float32":
            return None
        try:
            return read_variance(decompress(cutout, self._max_bytes))
        except CutoutError:  # the stamp itself says what is wrong with it
            return None

    def _cut_one(self, out: FloatArray, alert: Alert, name: str) -> int:
        cutout = alert.cutout(name)
        if cutout is None or len(cutout) == 0:
            return _MISSING
        try:
            image = self._image(cutout, alert)
        except CutoutError as error:
            return int(error.quality)
        row, column = self._candidate_pixel(image.shape, alert)
        padded = crop_into(out, image, row, column)
        square = image.shape[0] == image.shape[1]
        return (_PADDED if padded else 0) | (0 if square else _NOT_SQUARE)

    def _image(self, cutout: bytes | memoryview, alert: Alert) -> npt.NDArray[np.generic]:
        if self._cutouts.encoding == "float32":
            if len(cutout) > self._max_bytes:
                raise CutoutError(f"stamp of {len(cutout)} bytes", quality=Quality.OVERSIZED_CUTOUT)
            return read_float32(cutout, alert.field("height"), alert.field("width"))
        return read_fits(decompress(cutout, self._max_bytes))

    def _candidate_pixel(self, shape: tuple[int, ...], alert: Alert) -> tuple[int, int]:
        nominal = self._cutouts.nominal_size
        if nominal is None or (shape[0] >= nominal and shape[1] >= nominal):
            return shape[0] // 2, shape[1] // 2
        return (
            centre_of(shape[0], nominal, alert.field("y_pixel")),
            centre_of(shape[1], nominal, alert.field("x_pixel")),
        )


def normalise(raw: FloatArray, preprocessing: Preprocessing) -> tuple[FloatArray, Flags]:
    """Scale stamps as Huijse et al. (2018, section 3) do: minus the median, over the largest absolute value.

    Each channel is scaled by itself. Pixels that are not finite count as masked: they take no part in
    median and scale, and hold ``preprocessing.fill`` afterwards.

    Parameters
    ----------
    raw : ndarray
        (n, size, size, channels) float32 in any unit.
    preprocessing : Preprocessing
        Fill value and largest share of masked pixels.

    Returns
    -------
    stamps : ndarray
        (n, size, size, channels) float32 within [-1, 1]; zero where unscoreable.
    quality : ndarray
        (n,) uint32 of MASKED_PIXELS, BLANK and TOO_MANY_MASKED bits.
    """
    raw = np.ascontiguousarray(raw, np.float32)
    return _normalise(raw, np.float32(preprocessing.fill), preprocessing.max_masked_fraction)  # type: ignore[no-any-return]


@numba.njit(nogil=True, cache=True)
def _normalise(  # noqa: C901 - one pass over the pixels, compiled
    raw: FloatArray, fill: np.float32, max_masked: float
) -> tuple[FloatArray, Flags]:
    rows, height, width, channels = raw.shape
    pixels = height * width
    out = np.empty_like(raw)
    quality = np.zeros(rows, np.uint32)
    known = np.empty(pixels, np.float32)
    keys = np.empty(pixels, np.int32)
    for n in range(rows):
        flags = 0
        for c in range(channels):
            count = 0
            for y in range(height):
                for x in range(width):
                    if np.isfinite(raw[n, y, x, c]):
                        known[count] = raw[n, y, x, c]
                        count += 1
            if count < pixels:
                flags |= _MASKED
            if count == 0 or pixels - count > max_masked * pixels:
                flags |= _TOO_MANY
                continue
            median = _median(known[:count], keys[:count])
            scale = np.float32(0.0)
            for k in range(count):
                scale = max(scale, abs(known[k] - median))
            # Infinite when values near float32's limits differ by more than it holds.
            if not (scale > 0.0 and np.isfinite(scale)):
                flags |= _BLANK if scale == 0.0 else _TOO_MANY
                continue
            for y in range(height):
                for x in range(width):
                    value = raw[n, y, x, c]
                    out[n, y, x, c] = (value - median) / scale if np.isfinite(value) else fill
        if flags & (_BLANK | _TOO_MANY):
            out[n] = 0.0
        quality[n] = flags
    return out, quality


@numba.njit(nogil=True, cache=True)
def _median(values: FloatArray, keys: npt.NDArray[np.int32]) -> np.float32:
    """Median of finite values by bisection over their bits.

    Counting 441 pixels below a bound takes a few vector instructions, so 32 counts are five times as fast as
    np.median's selection, which branches on every pixel.
    """
    bits = values.view(np.int32)
    for i in range(len(bits)):
        # Integers in the order of the numbers: the bits of negative floats count backwards.
        keys[i] = bits[i] ^ ((bits[i] >> 31) & np.int32(0x7FFFFFFF))
    upper = _number(_kth(keys, len(keys) // 2))
    if len(keys) % 2:
        return upper  # type: ignore[no-any-return]
    lower = _number(_kth(keys, len(keys) // 2 - 1))
    return np.float32(lower / 2 + upper / 2)  # halved first: their sum may be infinite


@numba.njit(nogil=True, cache=True)
def _kth(keys: npt.NDArray[np.int32], k: int) -> np.int32:
    """Largest integer that has at most k keys below it: the k-th smallest key, from 0."""
    found = np.int32(-(2**31))
    for bit in range(31, -1, -1):
        bound = np.int32(found + (1 << bit))
        below = np.int32(0)
        for i in range(len(keys)):  # by index, or LLVM does not make vectors of it
            below += np.int32(keys[i] < bound)
        if below <= k:
            found = bound
    return found


@numba.njit(nogil=True, cache=True)
def _number(key: np.int32) -> np.float32:
    one = np.array([key ^ ((key >> 31) & np.int32(0x7FFFFFFF))], np.int32)
    return one.view(np.float32)[0]  # type: ignore[no-any-return]
