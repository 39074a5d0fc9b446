"""Labels from the asteroids and comets that alerts themselves name: the paper's asteroids."""

import math
from datetime import datetime
from typing import Any, NamedTuple

from stream_vae.errors import ConfigError
from stream_vae.labels.alerts import Facts
from stream_vae.labels.label import REAL, Label, Provenance
from stream_vae.surveys import Profile

_AB_ZERO_NJY = 31.4
"""AB magnitude of one nanojansky."""


class Tolerances(NamedTuple):
    """What counts as the object that was predicted."""

    distance_arcsec: float = 5.0
    """In 585 real ZTF alerts the 160 objects within 30 arcsec all lie within 1 arcsec."""
    magnitude: float = 2.0
    """Prediction is in V from two parameters; rotation, colour and trailing make up to 1.3 in those alerts."""


class Verdict(NamedTuple):
    """What an alert says of the solar system."""

    label: Label | None
    implausible: bool = False
    """An object is near, but the detection is not of its brightness."""


def check_profile(profile: Profile) -> None:
    """See that a survey's alerts tell of asteroids at all.

    Parameters
    ----------
    profile : Profile
        The survey's.

    Raises
    ------
    ConfigError
        If its profile has no such fields.
    """
    if profile.solar_system is None:
        raise ConfigError(
            f"The profile {profile.name} has no [solar_system]: its alerts do not tell of asteroids.",
            remedy="Add that section to the profile, or give a --catalog of positions.",
        )


def judge(facts: Facts, tolerances: Tolerances, at: datetime | None = None) -> Verdict:
    """Tell whether an alert is of a known solar-system object.

    Parameters
    ----------
    facts : Facts
        The alert's.
    tolerances : Tolerances
        How near and how equally bright it has to be. Where the alert gives no distance, the survey's own link counts;
        where it gives no magnitudes, brightness is not judged.
    at : datetime, optional
        When the label is made.

    Returns
    -------
    Verdict
        With a label of 1, or none.
    """
    told = facts.solar_system
    if not is_near(told["distance_arcsec"], told["object_id"], tolerances):
        return Verdict(None)
    distance = _number(told["distance_arcsec"])
    predicted, seen = _number(told["magnitude"]), _magnitude(told)
    difference = None if predicted is None or seen is None else abs(seen - predicted)
    if difference is not None and difference > tolerances.magnitude:
        return Verdict(None, implausible=True)
    comment = " ".join(
        (
            str(told["name"] or told["object_id"] or "unnamed"),
            *([] if distance is None else [f"at {distance:.1f} arcsec"]),
            *([] if difference is None else [f"predicted {predicted:.1f} mag, seen {seen:.1f}"]),
        )
    )
    return Verdict(Label(facts.alert_id, REAL, Provenance.SOLAR_SYSTEM, labelled_at=at, comment=comment))


def is_near(distance_arcsec: Any, object_id: Any, tolerances: Tolerances) -> bool:
    """Tell whether an object is where the detection is, whatever its brightness: what most alerts end at.

    Parameters
    ----------
    distance_arcsec, object_id : object
        As the alert tells them; None where it does not.
    tolerances : Tolerances
        How near it has to be.

    Returns
    -------
    bool
        By the distance, or where none is told by the survey's own link.
    """
    distance = _number(distance_arcsec)
    if distance is None:
        return object_id not in {None, 0, "", "0"}
    return 0.0 <= distance <= tolerances.distance_arcsec


def _magnitude(told: dict[str, Any]) -> float | None:
    """Of the detection; infinitely faint where its flux is negative: a hole in the difference is no asteroid."""
    flux = _number(told["alert_flux_njy"])
    if told["alert_magnitude"] is not None or flux is None:
        return _number(told["alert_magnitude"])
    return _AB_ZERO_NJY - 2.5 * math.log10(flux) if flux > 0.0 else math.inf


def _number(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
