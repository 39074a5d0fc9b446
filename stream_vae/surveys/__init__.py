"""Survey profiles: where each survey keeps what stream_vae needs, as data.

A profile is a small TOML file: field paths and the geometry of the cutouts, no code. ``load`` finds one by
name in this folder or by path; a settings file may carry one inline (``[survey_profile]``).
"""

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from stream_vae.errors import ConfigError

CUTOUTS = ("difference", "science", "template")
"""The channels a stamp may have, in the order that a release names them."""

_JD_OF_MJD_ZERO = 2_400_000.5

CutoutName = Literal["difference", "science", "template"]


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Paths = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""One dotted path, or several of which the first that the writer schema has is taken."""


class Fields(BaseModel):
    """Dotted paths of the alert's own fields; all but the id may be absent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alert_id: Paths = Field(min_length=1)
    object_id: Paths = ()
    ra_deg: Paths = ()
    dec_deg: Paths = ()
    time: Paths = ()
    band: Paths = ()
    x_pixel: Paths = ()
    """Zero-based column of the candidate on the detector, to place cutouts that end at its edge."""
    y_pixel: Paths = ()


class Cutouts(BaseModel):
    """Where the cutouts are and how they are written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    difference: Paths = ()
    science: Paths = ()
    template: Paths = ()
    encoding: Literal["fits", "float32"] = "fits"
    """``fits``: FITS, gzip'd or not, told from its bytes; ``float32``: raw little-endian rows."""
    height: Paths = ()
    width: Paths = ()
    """For ``float32``: the fields that hold the shape; absent: square."""
    nominal_size: int | None = Field(default=None, ge=1, le=4096)
    """Pixels on a side of a whole cutout. A smaller one was cut off at the detector's edge; absent: cutouts
    are centred on the candidate whatever their size."""

    @model_validator(mode="after")
    def _has_a_cutout(self) -> "Cutouts":
        if not (self.difference or self.science or self.template):
            raise ValueError("give the path of at least one of difference, science, template")
        return self

    def paths(self, name: str) -> tuple[str, ...]:
        """Return the paths of one channel.

        Parameters
        ----------
        name : str
            One of `CUTOUTS`.

        Returns
        -------
        tuple of str
            Candidate paths, empty if the survey has no such cutout.
        """
        return {"difference": self.difference, "science": self.science, "template": self.template}[name]


class SolarSystem(BaseModel):
    """Dotted paths of what the alert says of known solar-system objects; read for labels only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    distance_arcsec: Paths = ()
    """To the nearest known object; negative or null where there is none."""
    object_id: Paths = ()
    """Of the object that the survey has linked with the detection; zero or null where there is none."""
    name: Paths = ()
    magnitude: Paths = ()
    """Predicted for the object."""
    alert_magnitude: Paths = ()
    """Of the detection."""
    alert_flux_njy: Paths = ()
    """Of the detection, where the alert has no magnitude."""

    @model_validator(mode="after")
    def _tells_a_match(self) -> "SolarSystem":
        if not (self.distance_arcsec or self.object_id):
            raise ValueError("give the path of distance_arcsec or of object_id")
        return self


class Injection(BaseModel):
    """Dotted path of what tells a source that the survey put into its own images; read for labels only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    injected: Paths = Field(min_length=1)
    """A boolean, a number or a text: true, not zero or not empty where the source was injected."""


class Profile(BaseModel):
    """One survey: names, fields, cutouts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, pattern=r"^[a-z0-9][a-z0-9_-]*$")
    description: str = ""
    time_format: Literal["jd", "mjd"] = "mjd"
    time_scale: Literal["utc", "tai", "tdb"] = "utc"
    band_names: dict[str, str] = {}
    """How the band field's values are called, where they are numbers."""
    fields: Fields
    cutouts: Cutouts
    solar_system: SolarSystem | None = None
    """Absent: the survey's alerts say nothing of asteroids."""
    injection: Injection | None = None
    """Absent: the survey injects no sources."""

    def midpoint_mjd(self, time: float | None) -> float | None:
        """Turn the time field's value into a modified Julian date.

        Parameters
        ----------
        time : float or None
            In days, as `time_format` says; None where the alert has none.

        Returns
        -------
        float or None
            In days, on the same time scale.
        """
        return time - _JD_OF_MJD_ZERO if time is not None and self.time_format == "jd" else time

    def band(self, value: object) -> str | None:
        """Name a filter.

        Parameters
        ----------
        value : object
            Of the band field; None where the alert has none.

        Returns
        -------
        str or None
            By `band_names`, else the value as text.
        """
        return None if value is None else self.band_names.get(str(value), str(value))


def names() -> list[str]:
    """Return the names of the profiles that ship with stream_vae.

    Returns
    -------
    list of str
        Sorted.
    """
    folder = resources.files(__package__)
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def parse(data: Mapping[str, Any], *, where: str) -> Profile:
    """Validate a profile.

    Parameters
    ----------
    data : Mapping
        The parsed TOML.
    where : str
        What to call it in errors.

    Returns
    -------
    Profile
        Validated and frozen.

    Raises
    ------
    ConfigError
        Naming each wrong key.
    """
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        problems = "\n".join(
            f"  {'.'.join(map(str, problem['loc']))}: {_message(problem['type'], problem['msg'], problem['loc'])}"
            for problem in error.errors(include_url=False)
        )
        raise ConfigError(f"The survey profile {where} is wrong:\n{problems}") from None


def _message(kind: str, message: str, where: tuple[int | str, ...]) -> str:
    if kind == "missing":
        return "is required."
    if kind == "extra_forbidden":
        sections: dict[str, type[BaseModel]] = {
            "fields": Fields,
            "cutouts": Cutouts,
            "solar_system": SolarSystem,
            "injection": Injection,
        }
        known = list(sections.get(str(where[0]), Profile).model_fields)
        near = get_close_matches(str(where[-1]), known, n=1)
        return f"is no key; did you mean {near[0]}?" if near else f"is no key; known here: {', '.join(known)}."
    return message.removeprefix("Value error, ")


def load(name: str, inline: Mapping[str, Any] | None = None) -> Profile:
    """Find a profile by name or by path, or take the one that the settings carry.

    Parameters
    ----------
    name : str
        A shipped profile's name or the path of a TOML file.
    inline : Mapping, optional
        ``[survey_profile]`` of the settings; wins.

    Returns
    -------
    Profile
        Validated and frozen.

    Raises
    ------
    ConfigError
        If there is no such profile or it is wrong.
    """
    if inline is not None:
        return parse({"name": name, **inline}, where="in the settings, [survey_profile],")
    shipped = resources.files(__package__) / f"{name}.toml"
    path = Path(name)
    try:
        text = shipped.read_text(encoding="utf-8") if shipped.is_file() else path.read_text(encoding="utf-8")
        return parse(tomllib.loads(text), where=name)
    except OSError:
        raise ConfigError(
            f"survey = {name!r} is neither a shipped profile ({', '.join(names())}) nor a readable file.",
            remedy="Name one of these, give the path of a profile, or write one under [survey_profile].",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The survey profile {name} is not valid TOML: {error}.") from error
