"""Noise maps in the units of the scaled stamp."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def scaled_noise(raw: Array, stamps: Array, noise: Array) -> Array:
    """Divide noise maps by what their stamps were divided by.

    The divisor is read off the stamp before and after scaling, as the ratio of the two ranges: scaling itself, which
    every alert goes through, need not give it.

    Parameters
    ----------
    raw : ndarray, shape (n, size, size, channels)
        Stamps before scaling; NaN where masked.
    stamps : ndarray, shape (n, size, size, channels)
        The same after scaling.
    noise : ndarray, shape (n, size, size, channels)
        One standard deviation of each pixel, in the unit of `raw`.

    Returns
    -------
    ndarray of float32, shape (n, size, size, channels)
        In the unit of `stamps`; NaN where the pixel is masked, the stamp unscoreable, or the noise not above zero.
    """
    known = np.isfinite(raw)
    spans = []
    for values in (raw, stamps):
        highest = np.where(known, values, -np.inf).max(axis=(1, 2), keepdims=True).astype(np.float64)
        lowest = np.where(known, values, np.inf).min(axis=(1, 2), keepdims=True).astype(np.float64)
        spans.append(highest - lowest)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scaled = noise * (spans[1] / spans[0])
        usable = known & np.isfinite(scaled) & (scaled > 0.0)
        return np.where(usable, scaled, np.nan).astype(np.float32)
