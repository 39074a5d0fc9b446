"""Read a folder of alerts once and label what can be labelled: by their asteroids and by a catalog."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from stream_vae.errors import ConfigError
from stream_vae.labels.alerts import AlertFolder, Facts
from stream_vae.labels.crossmatch import CrossMatch, Match, read_catalog
from stream_vae.labels.label import Label
from stream_vae.labels.solar_system import Tolerances, check_profile, judge
from stream_vae.labels.table import LabelTable
from stream_vae.learning.progress import Reporter, silent


@dataclass
class Found:
    """Labels of a folder, and what became of the alerts that have none."""

    labels: list[Label] = field(default_factory=list)
    ambiguous: list[Match] = field(default_factory=list)
    """Matches that had more than one entry of the catalog to choose from."""
    implausible: int = 0
    """Alerts with an asteroid near, of another brightness."""
    alerts: int = 0
    unreadable: int = 0

    @property
    def table(self) -> LabelTable:
        """All labels; an alert may have one of each kind."""
        return LabelTable(tuple(self.labels))

    def counts(self) -> dict[str, int]:
        """Say what was read and what was left unlabelled.

        Returns
        -------
        dict of str to int
            By what it is.
        """
        return {
            "alerts_read": self.alerts,
            "unreadable_files": self.unreadable,
            "asteroids_of_another_brightness": self.implausible,
            "ambiguous_matches": len(self.ambiguous),
        }


def find_labels(
    data: Path,
    survey: str,
    *,
    catalog: Path | None = None,
    radius_arcsec: float = 1.5,
    within_s: float | None = None,
    time_scale: str = "utc",
    asteroids: Tolerances | None = None,
    at: datetime | None = None,
    report: Reporter = silent,
) -> Found:
    """Label a folder of alerts.

    Parameters
    ----------
    data : Path
        The folder, one packet a file.
    survey : str
        Their profile.
    catalog : Path, optional
        Table of known positions.
    radius_arcsec, within_s, time_scale : float, float or None, str
        See `CrossMatch` and `read_catalog`.
    asteroids : Tolerances, optional
        Label by the asteroids that alerts name; absent: do not.
    at : datetime, optional
        When the labels are made.
    report : Reporter
        Told how far it is.

    Returns
    -------
    Found
        What memory holds is the labels, a few hundred packets, and the catalog.

    Raises
    ------
    ConfigError
        If there is nothing to read or nothing to label by.
    """
    folder = AlertFolder(data, survey)
    if asteroids is None and catalog is None:
        raise ConfigError("There is nothing to label by.", remedy="Give a --catalog, or leave --solar-system on.")
    if asteroids is not None and catalog is None:
        check_profile(folder.profile)
    if folder.profile.solar_system is None:
        asteroids = None
    known = None if catalog is None else read_catalog(catalog, time_scale=time_scale)
    cross = None if known is None else CrossMatch(known, radius_arcsec=radius_arcsec, within_s=within_s)
    found = Found()
    for facts in folder.read():
        if asteroids is not None:
            _add_asteroids(found, facts, asteroids, at)
        if cross is not None:
            matches = cross.match(facts, folder.profile.time_scale, at)
            found.labels += [match.label for match in matches]
            found.ambiguous += [match for match in matches if match.others]
        found.alerts += len(facts)
        found.unreadable = folder.unreadable
        report("match", found.alerts + found.unreadable, len(folder.files))
    return found


def _add_asteroids(found: Found, facts: list[Facts], tolerances: Tolerances, at: datetime | None) -> None:
    for one in facts:
        verdict = judge(one, tolerances, at)
        found.implausible += verdict.implausible
        if verdict.label is not None:
            found.labels.append(verdict.label)
