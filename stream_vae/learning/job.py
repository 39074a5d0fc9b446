"""A retraining on disk: the snapshot of the reservoir and the fit's checkpoint, so that a killed one goes on.

::

    <work>/<survey>/job.json        what it is: incumbent, recipe, snapshot; written last
    <work>/<survey>/snapshot.npz    the stamps that were drawn
    <work>/<survey>/checkpoint/     see `stream_vae.learning.course`

A job goes on only if the incumbent and the recipe are still the same; another one's is thrown away. It is removed when
its release is in the store.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from stream_vae.errors import ConfigError
from stream_vae.learning.recipe import Recipe
from stream_vae.model.release import Preprocessing
from stream_vae.sample import Sample

_JOB, _SNAPSHOT, _CHECKPOINT = "job.json", "snapshot.npz", "checkpoint"


@dataclass(frozen=True)
class Job:
    """What is being done, and on which stamps.

    Parameters
    ----------
    snapshot : str
        Digest of the stamps, ids and labels that were drawn.
    sample : Sample
        They.
    seen : int
        Alerts that the reservoir was a sample of then, about.
    checkpoint : Path or None
        Folder of the fit's state; None where nothing is kept.
    resumed : bool
        Whether it goes on from an earlier attempt.
    """

    snapshot: str
    sample: Sample
    seen: int
    checkpoint: Path | None
    resumed: bool


Draw = Callable[[], tuple[Sample, int]]
"""Gives the stamps, and how many alerts they are a sample of."""


@contextmanager
def opened(work: Path | None, survey: str, *, incumbent: str, recipe: Recipe, draw: Draw) -> Iterator[Job]:
    """Go on with the job that lies there, or begin one; remove it when the block ends well.

    Parameters
    ----------
    work : Path or None
        Folder of all surveys' jobs; None keeps nothing.
    survey : str
        The profile's name.
    incumbent : str
        The release that is served.
    recipe : Recipe
        By which is trained.
    draw : callable
        Draws from the reservoir; not called where a job goes on.

    Yields
    ------
    Job
        With its stamps.

    Raises
    ------
    ConfigError
        If the folder cannot be written.
    """
    if work is None:
        sample, seen = draw()
        yield Job(snapshot_id(sample), sample, seen, None, resumed=False)
        return
    folder = work / survey
    about = {"incumbent": incumbent, "recipe": recipe.model_dump(mode="json")}
    job = _found(folder, about, recipe.preprocessing) or _begun(folder, about, draw)
    yield job
    shutil.rmtree(folder, ignore_errors=True)


def unfinished(work: Path | None, survey: str) -> bool:
    """Tell whether a job was begun and not ended.

    Parameters
    ----------
    work : Path or None
        Folder of all surveys' jobs.
    survey : str
        The profile's name.

    Returns
    -------
    bool
        True also if it is another incumbent's, and will be thrown away.
    """
    return work is not None and (work / survey / _JOB).is_file()


def snapshot_id(sample: Sample) -> str:
    """Digest what was drawn.

    Parameters
    ----------
    sample : Sample
        In the order in which it was drawn.

    Returns
    -------
    str
        16 hexadecimal digits: the same for the same stamps, ids and labels.
    """
    digest = hashlib.sha256(np.ascontiguousarray(sample.stamps).data)
    digest.update("\n".join(sample.alert_ids).encode())
    digest.update(np.ascontiguousarray(sample.labels).data)
    return digest.hexdigest()[:16]


def _found(folder: Path, about: dict[str, Any], preprocessing: Preprocessing) -> Job | None:
    try:
        said = json.loads((folder / _JOB).read_text("utf-8"))
        if {name: said.get(name) for name in about} != about:
            return None
        sample = Sample.load(folder / _SNAPSHOT, preprocessing)
    except (OSError, ValueError, KeyError, BadZipFile, ConfigError):
        return None  # none, another version's, or one that was killed before it was whole
    if snapshot_id(sample) != said.get("snapshot"):
        return None
    return Job(said["snapshot"], sample, int(said["seen"]), folder / _CHECKPOINT, resumed=True)


def _begun(folder: Path, about: dict[str, Any], draw: Draw) -> Job:
    sample, seen = draw()
    snapshot = snapshot_id(sample)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / _CHECKPOINT).mkdir(parents=True, exist_ok=True)
        sample.save(folder / _SNAPSHOT)
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".", delete=False, encoding="utf-8") as file:
            json.dump(about | {"snapshot": snapshot, "seen": seen}, file)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(folder / _JOB)
    except OSError as error:
        raise ConfigError(
            f"retrain.work: {folder} cannot be written: {error.strerror}.",
            remedy="Name a folder with room for a gigabyte, or leave retrain.work out: a killed retraining then begins "
            "anew.",
        ) from error
    return Job(snapshot, sample, seen, folder / _CHECKPOINT, resumed=False)
