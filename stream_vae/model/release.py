"""Releases: immutable, digest-verified folders that hold one trained model.

::

    card.json encoder.onnx scorer.onnx decoder.onnx cvae.keras reference.npz report/

The id ends in a digest of the card, and the card holds a digest of every other file, so a release whose id
is right is the release that was trained. Nothing in it is ever unpickled.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stream_vae.errors import ConfigError
from stream_vae.surveys import CutoutName

CARD = "card.json"
ENCODER = "encoder.onnx"
SCORER = "scorer.onnx"
REFERENCE = "reference.npz"
KERAS = "cvae.keras"
REQUIRED = (ENCODER, REFERENCE)
_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""A release's name begins its id, which is the name of its folder."""
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


class Preprocessing(BaseModel):
    """How a cutout becomes what the encoder saw in training; part of the release, never of the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cutouts: tuple[CutoutName, ...] = Field(default=("difference",), min_length=1)
    """The channels, in order."""
    stamp_size: int = Field(default=21, ge=3, le=255)
    crop: Literal["candidate"] = "candidate"
    """The candidate's pixel comes to lie on ``stamp[size // 2, size // 2]``."""
    scaling: Literal["median_maxabs"] = "median_maxabs"
    """Minus the median of the known pixels, over the largest absolute value, per channel (Huijse et al. 2018)."""
    fill: float = 0.0
    """What masked and padded pixels hold after scaling."""
    max_masked_fraction: float = Field(default=0.5, gt=0, le=1)
    """A channel with a larger share of masked and padded pixels is not scored."""

    @field_validator("cutouts")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each cutout may be named once")
        return value


class ReleaseCard(BaseModel):
    """What a release is: everything needed to use it, compare it and trace it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    id: str = ""
    name: str = Field(pattern=_NAME)
    created_at: datetime
    latent_space: str
    """Vectors of two releases may be compared if and only if this is equal."""
    latent_size: int = Field(ge=1)
    recipe: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, Any]
    preprocessing: Preprocessing
    stream_vae_version: str
    files: dict[str, str]
    """sha256 of every file but this one, by relative path."""

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _FILE.fullmatch(name):
                raise ValueError(f"{name!r} is no path inside a release")
        return value

    def digest(self) -> str:
        """Digest everything but the id.

        Returns
        -------
        str
            sha256 of the canonical JSON, in hexadecimal.
        """
        content = json.loads(self.model_dump_json(exclude={"id"}))  # through JSON: what a reader of the card sees
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def named(self) -> "ReleaseCard":
        """Return the card with the id that its content gives it.

        Returns
        -------
        ReleaseCard
            ``<name>-<date>-<digest>``.
        """
        return self.model_copy(update={"id": f"{self.name}-{self.created_at:%Y%m%d}-{self.digest()[:12]}"})


@dataclass(frozen=True, slots=True)
class Release:
    """A verified release in a local folder."""

    card: ReleaseCard
    folder: Path
    store: object = field(default=None, repr=False, compare=False)
    """Kept alive: a copy of a remote release goes with its store."""

    @property
    def id(self) -> str:
        """The release's id."""
        return self.card.id

    def path(self, name: str) -> Path | None:
        """Return the path of one of its files.

        Parameters
        ----------
        name : str
            Relative path, as in the card.

        Returns
        -------
        Path or None
            None if the release has no such file.
        """
        return self.folder / name if name in self.card.files else None

    def check_input(self, shape: tuple[object, ...]) -> None:
        """Check that an encoder takes the stamps that the card says.

        Parameters
        ----------
        shape : tuple
            Of one stamp, as the encoder has it: (size, size, channels).

        Raises
        ------
        ConfigError
            If it does not.
        """
        wanted = self.card.preprocessing
        expected = (wanted.stamp_size, wanted.stamp_size, len(wanted.cutouts))
        if shape != expected:
            raise ConfigError(f"The encoder of {self.id} takes stamps {shape}; its card says {expected}.")


def sha256(path: Path) -> str:
    """Digest a file.

    Parameters
    ----------
    path : Path
        Any file.

    Returns
    -------
    str
        sha256 in hexadecimal.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def problems(folder: Path) -> list[str]:
    """Check a release folder against its card.

    Parameters
    ----------
    folder : Path
        A local copy of a release.

    Returns
    -------
    list of str
        What is wrong, one sentence each; empty if nothing is.
    """
    try:
        card = ReleaseCard.model_validate_json((folder / CARD).read_bytes())
    except OSError as error:
        return [f"{CARD} cannot be read: {error.strerror}"]
    except ValidationError as error:
        return [f"{CARD} is no release card: {problem['loc']}: {problem['msg']}" for problem in error.errors()]
    found = []
    if card.id != card.named().id:
        found.append(f"the id should be {card.named().id} for what {CARD} says, and is {card.id}")
    found += [f"{name} is missing from the card" for name in REQUIRED if name not in card.files]
    for name, expected in card.files.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif sha256(path) != expected:
            found.append(f"{name} is not the file that was released: its digest differs")
    return found
