"""Times on one scale: modified Julian dates of UTC, TAI and TDB, as far as a second counts."""

import numpy as np
import numpy.typing as npt

SCALES = ("utc", "tai", "tdb")

_LEAPS = ((56109.0, 35.0), (57204.0, 36.0), (57754.0, 37.0))
"""MJD (UTC) from which TAI - UTC is so many seconds, by IERS Bulletin C; before July 2012 it is taken as 34."""
_TT_MINUS_TAI_S = 32.184
"""TDB differs from TT by at most 2 ms."""


def seconds_from_utc(mjd: npt.NDArray[np.float64], scale: str) -> npt.NDArray[np.float64]:
    """Say how far a time scale is ahead of UTC.

    Parameters
    ----------
    mjd : ndarray
        Times on that scale; NaN for none.
    scale : str
        One of `SCALES`.

    Returns
    -------
    ndarray
        In seconds, right to a few milliseconds but within a minute of a leap second; zero for UTC.
    """
    ahead = np.zeros_like(mjd)
    if scale == "utc":
        return ahead
    ahead += 34.0
    for since, leap in _LEAPS:
        ahead[mjd >= since] = leap
    return ahead + _TT_MINUS_TAI_S if scale == "tdb" else ahead
