"""Labels from a table of known positions: the nearest on the sphere, within so many arcseconds and seconds.

Positions are unit vectors in a k-d tree, so that the poles and the wrap at 360 degrees are nothing special, and
distances are chords: chord = 2 sin(angle / 2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from stream_vae.errors import ConfigError
from stream_vae.labels.alerts import Facts
from stream_vae.labels.files import read_rows
from stream_vae.labels.label import REAL, Label, LabelError, Provenance, parse_label
from stream_vae.labels.timescale import SCALES, seconds_from_utc

Floats = npt.NDArray[np.float64]

_S_PER_DAY = 86_400.0
_ARCSEC_PER_RAD = 180.0 * 3600.0 / np.pi


class Match(NamedTuple):
    """An alert and what lies nearest to it."""

    label: Label
    distance_arcsec: float
    name: str
    others: int
    """Further entries within the tolerances, with another name or another label."""


@dataclass(frozen=True)
class Catalog:
    """Known positions, each array of shape (n,).

    Parameters
    ----------
    ra_deg, dec_deg : ndarray
        ICRS.
    mjd : ndarray
        When something is there; NaN: always.
    names : sequence of str
        What it is called; may be empty.
    labels : ndarray of int8
        1 real, 0 bogus, -1 unknown.
    time_scale : str
        Of `mjd`: utc, tai or tdb.
    """

    ra_deg: Floats
    dec_deg: Floats
    mjd: Floats
    names: Sequence[str]
    labels: npt.NDArray[np.int8]
    time_scale: str = "utc"

    def __len__(self) -> int:
        return len(self.ra_deg)


def read_catalog(path: Path, *, time_scale: str = "utc") -> Catalog:
    """Read a table of known positions.

    Parameters
    ----------
    path : Path
        .csv or .parquet with `ra_deg` and `dec_deg`, and perhaps `mjd` (absent or empty: always there), `name` and
        `label` (absent or empty: 1).
    time_scale : str
        Of `mjd`: utc, tai or tdb.

    Returns
    -------
    Catalog
        In the order of the rows.

    Raises
    ------
    ConfigError
        If a column is missing or a value is wrong, with its line and column; or there are no rows.
    """
    if time_scale not in SCALES:
        raise ConfigError(f"There is no time scale {time_scale}.", remedy=f"Use {', '.join(SCALES)}.")
    entries = []
    for where, row in read_rows(path, required=("ra_deg", "dec_deg"), optional=("mjd", "name", "label")):
        try:
            entries.append(_entry(row))
        except LabelError as error:
            raise ConfigError(
                f"{path}, {where}, column {error.column}: {error}.", remedy="Correct it, or leave the row out."
            ) from error
    if not entries:
        raise ConfigError(f"{path} has no rows.", remedy="Give a table with at least one position.")
    ra, dec, mjd, names, labels = zip(*entries, strict=True)
    return Catalog(np.array(ra), np.array(dec), np.array(mjd), names, np.array(labels, np.int8), time_scale)


def _entry(row: Mapping[str, Any]) -> tuple[float, float, float, str, int]:
    given = row.get("label")
    return (
        _degrees(row["ra_deg"], "ra_deg", 0.0, 360.0),
        _degrees(row["dec_deg"], "dec_deg", -90.0, 90.0),
        np.nan if row.get("mjd") in {None, ""} else _degrees(row["mjd"], "mjd", 0.0, 200_000.0),
        str(row.get("name") or ""),
        REAL if given is None or given == "" else parse_label(given),
    )


def _degrees(value: Any, column: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not low <= number <= high:
        raise LabelError(f"{value!r} is no number from {low:g} to {high:g}", column=column)
    return number


class CrossMatch:
    """Finds what of a catalog lies where alerts are.

    Parameters
    ----------
    catalog : Catalog
        Known positions.
    radius_arcsec : float
        How near, 0 to 3600.
    within_s : float or None
        How near in time, for entries that have one; None: time does not count.

    Raises
    ------
    ConfigError
        If a tolerance makes no sense.
    """

    def __init__(self, catalog: Catalog, *, radius_arcsec: float, within_s: float | None = None) -> None:
        if not 0.0 < radius_arcsec <= 3600.0:
            raise ConfigError(
                f"A radius of {radius_arcsec} arcsec makes no sense.", remedy="Give one over 0 and up to 3600."
            )
        if within_s is not None and not 0.0 <= within_s < np.inf:
            raise ConfigError(f"{within_s} s between times makes no sense.", remedy="Give zero or more seconds.")
        self._catalog = catalog
        self._tree = cKDTree(unit_vectors(catalog.ra_deg, catalog.dec_deg))
        # A relative hair more than the chord, so that what lies at the radius is judged by its own angle.
        self._chord = 2.0 * np.sin(0.5 * radius_arcsec / _ARCSEC_PER_RAD) * (1.0 + 1e-9) + 1e-15
        self._radius_arcsec = radius_arcsec
        self._within_s = within_s
        self._utc = catalog.mjd - seconds_from_utc(catalog.mjd, catalog.time_scale) / _S_PER_DAY

    def match(self, facts: Sequence[Facts], time_scale: str = "utc", at: datetime | None = None) -> list[Match]:
        """Match alerts.

        Parameters
        ----------
        facts : sequence of Facts
            Of the alerts; those without a position have no match, and those without a time none in time.
        time_scale : str
            Of the alerts' times.
        at : datetime, optional
            When the labels are made.

        Returns
        -------
        list of Match
            Of the alerts that have one, in order; with the nearest entry, and nearest in time of those equally near.
        """
        placed = [one for one in facts if _is_position(one.ra_deg, one.dec_deg)]
        if not placed:
            return []
        position = np.array([(one.ra_deg, one.dec_deg) for one in placed], np.float64)
        mjd = np.array([np.nan if one.mjd is None else one.mjd for one in placed], np.float64)
        utc = mjd - seconds_from_utc(mjd, time_scale) / _S_PER_DAY
        vectors = unit_vectors(position[:, 0], position[:, 1])
        near = self._tree.query_ball_point(vectors, self._chord)
        found = (self._nearest(*each, at) for each in zip(placed, vectors, utc, near, strict=True))
        return [match for match in found if match is not None]

    def _nearest(self, facts: Facts, vector: Floats, utc: float, near: list[int], at: datetime | None) -> Match | None:
        rows = np.array(near, np.int64)
        apart_s = np.abs(self._utc[rows] - utc) * _S_PER_DAY
        if self._within_s is not None:
            good = (apart_s <= self._within_s) | np.isnan(self._utc[rows])
            rows, apart_s = rows[good], apart_s[good]
        chord = np.linalg.norm(self._tree.data[rows] - vector, axis=1)
        distance = 2.0 * np.arcsin(np.minimum(0.5 * chord, 1.0)) * _ARCSEC_PER_RAD
        order = np.lexsort((np.nan_to_num(apart_s), distance))
        order = order[distance[order] <= self._radius_arcsec]
        if not len(order):
            return None
        first = rows[order[0]]
        catalog = self._catalog
        kinds = {(catalog.names[row] or row, int(catalog.labels[row])) for row in rows[order].tolist()}
        return self._told(facts, int(first), float(distance[order[0]]), len(kinds) - 1, at)

    def _told(self, facts: Facts, row: int, distance: float, others: int, at: datetime | None) -> Match:
        name, label = self._catalog.names[row], int(self._catalog.labels[row])
        more = f"; {others} more within {self._radius_arcsec:g} arcsec" if others else ""
        comment = f"{name or f'row {row + 1}'} at {distance:.2f} arcsec{more}"
        made = Label(facts.alert_id, label, Provenance.CROSSMATCH, labelled_at=at, comment=comment)
        return Match(made, distance, name, others)


def unit_vectors(ra_deg: Floats, dec_deg: Floats) -> Floats:
    """Put positions on the unit sphere.

    Parameters
    ----------
    ra_deg, dec_deg : ndarray, (n,)
        In degrees.

    Returns
    -------
    ndarray, (n, 3)
        x to right ascension 0, z to the north pole.
    """
    ra, dec = np.deg2rad(ra_deg), np.deg2rad(dec_deg)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def _is_position(ra_deg: float | None, dec_deg: float | None) -> bool:
    return ra_deg is not None and dec_deg is not None and bool(np.isfinite(ra_deg)) and abs(dec_deg) <= 90.0
