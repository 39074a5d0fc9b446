"""The course of a fit: early stopping, history, and a checkpoint from which an interrupted run goes on.

A checkpoint is one file of plain arrays, replaced as a whole after each epoch: a run that is killed finds the last
epoch that ended. It knows which recipe and which stamps it belongs to and refuses others.
"""

import csv
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.data.stamps import StampSet
from stream_vae.learning.recipe import Recipe

CHECKPOINT = "checkpoint.npz"
_FORMAT = 1
_HASHED_ROWS = 1 << 20


@dataclass
class Course:
    """How far a fit has come.

    Parameters
    ----------
    patience : int
        Epochs without a better validation loss before it stops.
    history : dict of lists
        What Keras logged, one value an epoch.
    best_epoch : int
        From 1; 0 before the first.
    best : list of ndarray
        The model's variables after that epoch.
    stopped : bool
        Whether the validation loss no longer fell.
    seconds : float
        Spent so far, over all runs.
    """

    patience: int
    history: dict[str, list[float]] = field(default_factory=dict)
    best_epoch: int = 0
    best: list[NDArray[Any]] = field(default_factory=list)
    stopped: bool = False
    seconds: float = 0.0

    @property
    def epochs(self) -> int:
        """How many epochs have ended."""
        return len(self.history.get("val_loss", ()))

    def take(self, logs: Mapping[str, float], model: Any) -> None:
        """Note an epoch's values; keep the weights if it was the best so far.

        Parameters
        ----------
        logs : mapping
            Keras' values; `val_loss` decides.
        model : keras.Model
            After this epoch.
        """
        losses = self.history.get("val_loss", [])
        lowest = min(losses, default=np.inf)
        for name, value in logs.items():
            self.history.setdefault(name, []).append(float(value))
        if self.best_epoch == 0 or logs["val_loss"] < lowest:
            self.best_epoch, self.best = self.epochs, values_of(model.variables)
        self.stopped = self.epochs - self.best_epoch >= self.patience


def values_of(variables: list[Any]) -> list[NDArray[Any]]:
    """Copy variables to plain arrays.

    Parameters
    ----------
    variables : list
        Of Keras.

    Returns
    -------
    list of ndarray
        In the same order.
    """
    return [np.asarray(variable.value).copy() for variable in variables]


def assign(variables: list[Any], values: list[NDArray[Any]]) -> None:
    """Write arrays back to variables.

    Parameters
    ----------
    variables : list
        Of Keras.
    values : list of ndarray
        From `values_of`.
    """
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def fingerprint(
    recipe: Recipe, data: StampSet, train_rows: NDArray[Any], validation_rows: NDArray[Any], base: str = ""
) -> str:
    """Say in one string what decides a fit: the recipe and the stamps.

    Parameters
    ----------
    recipe : Recipe
        Its name, description and scorer do not count.
    data : StampSet
        By the digest in its snapshot.
    train_rows, validation_rows : ndarray of int
        By their numbers.
    base : str
        The release that the fit goes on from; empty if it begins anew.

    Returns
    -------
    str
        JSON with one entry for the recipe and one for the data.
    """
    chosen = recipe.model_dump(mode="json", exclude={"name", "description", "scorer"})
    if not base:
        del chosen["retrain"]  # has no say
    digest = hashlib.sha256()
    for rows in (train_rows, validation_rows):
        for i in range(0, len(rows), _HASHED_ROWS):
            digest.update(np.asarray(rows[i : i + _HASHED_ROWS], np.int64).tobytes())
    stamps = data.snapshot.get("sha256", f"{data.stamps.shape}")
    return json.dumps(
        {"recipe": chosen, "data": f"{stamps} {data.added} {digest.hexdigest()} {base}".rstrip()}, sort_keys=True
    )


class Checkpoint:
    """A fit's state in a folder.

    Parameters
    ----------
    folder : Path
        Made if absent.
    identity : str
        From `fingerprint`.

    Raises
    ------
    ConfigError
        If the folder cannot be made.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._path = folder / CHECKPOINT
        self._identity = identity
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--checkpoint {folder} cannot be made a folder: {error.strerror}.", remedy="Name another."
            ) from error

    @property
    def exists(self) -> bool:
        """Whether a run has left something here."""
        return self._path.is_file()

    def save(self, model: Any, course: Course) -> None:
        """Replace what is there by the state after an epoch.

        Parameters
        ----------
        model : keras.Model
            Compiled.
        course : Course
            With this epoch taken.

        Raises
        ------
        ConfigError
            If it cannot be written.
        """
        arrays = _named("model", values_of(model.variables)) | _named("best", course.best)
        arrays |= _named("optimizer", values_of(model.optimizer.variables))
        state = {
            "format": _FORMAT,
            "identity": self._identity,
            "history": course.history,
            "best_epoch": course.best_epoch,
            "stopped": course.stopped,
            "seconds": course.seconds,
        }
        partial = self._path.with_name(f".{CHECKPOINT}.partial")
        try:
            with partial.open("wb") as file:
                np.savez(file, state=np.frombuffer(json.dumps(state).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path)
        except OSError as error:
            raise ConfigError(
                f"The checkpoint {self._path} cannot be written: {error.strerror}.",
                remedy="Make room or name another folder with --checkpoint; what was there before is whole.",
            ) from error

    def load(self, model: Any, patience: int) -> Course:
        """Put a model and its optimiser where the interrupted run left them.

        Parameters
        ----------
        model : keras.Model
            Compiled, of the same recipe; its optimiser is built.
        patience : int
            The recipe's.

        Returns
        -------
        Course
            To go on from.

        Raises
        ------
        ConfigError
            If it is another recipe's or other data's, or damaged.
        """
        try:
            with self._path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            state = json.loads(arrays.pop("state").tobytes())
            whole = state["format"] == _FORMAT
        except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
            raise self._damaged(str(error)) from error
        except Exception as error:  # zipfile and zlib have their own, without a common base
            raise self._damaged(str(error)) from error
        if not whole:
            raise self._damaged(f"format {state['format']}")
        self._check_identity(state["identity"])
        try:
            assign(model.variables, _list(arrays, "model"))
            assign(model.optimizer.variables, _list(arrays, "optimizer"))
        except ValueError as error:
            raise self._damaged(str(error)) from error
        return Course(
            patience,
            state["history"],
            state["best_epoch"],
            _list(arrays, "best"),
            state["stopped"],
            state["seconds"],
        )

    def _check_identity(self, identity: str) -> None:
        if identity == self._identity:
            return
        was, now = json.loads(identity), json.loads(self._identity)
        if was["recipe"] == now["recipe"]:
            what = "other stamps"
        else:
            keys = _differences(was["recipe"], now["recipe"])
            what = f"another recipe ({', '.join(keys) or 'of an older version'})"
        raise ConfigError(
            f"The checkpoint {self._path} belongs to {what}.",
            remedy="Resume with the recipe and the data that it was begun with, or name an empty folder.",
        )

    def _damaged(self, why: str) -> ConfigError:
        return ConfigError(
            f"The checkpoint {self._path} cannot be used: {why}.", remedy="Name an empty folder and begin anew."
        )


def write_history(path: Path, history: Mapping[str, list[float]]) -> None:
    """Write a fit's history, one row an epoch.

    Parameters
    ----------
    path : Path
        The .csv file.
    history : mapping of lists
        A value an epoch each.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["epoch", *history])
        rows.writerows(
            [epoch, *(f"{value:.9g}" for value in row)]
            for epoch, row in enumerate(zip(*history.values(), strict=True), start=1)
        )


def _named(kind: str, values: list[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {f"{kind}_{i:04d}": value for i, value in enumerate(values)}


def _list(arrays: Mapping[str, NDArray[Any]], kind: str) -> list[NDArray[Any]]:
    return [arrays[name] for name in sorted(arrays) if name.startswith(f"{kind}_")]


def _differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ, as `section.key`."""
    keys = []
    for name in sorted({*was, *now}):
        old, new = was.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            keys += [f"{name}.{key}" for key in _differences(old, new)]
        elif old != new:
            keys.append(name)
    return keys
