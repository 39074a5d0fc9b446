"""Where gathered stamps go: into memory while they fit, else once to disk, from where they are memory-mapped.

On disk a pixel is float16. Scaled stamps lie within [-1, 1], where it is off by 0.00024 at most, a hundredth of
the noise in a pixel; it halves the room and the reading, and the page cache holds twice as many stamps. Sums and
gradients are float32 all the same. Labels and groups go to disk too: at 19 million stamps they are 170 MB.
"""

import errno
import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError

IN_MEMORY_BYTES = 256 << 20
"""Largest set that stays in memory: 150,000 stamps of 21x21."""
_KIND = np.dtype("U24")
_ON_DISK = {"stamps": np.float16, "noise": np.float16, "labels": np.int8, "groups": np.int64, "snr": np.float32}


class Columns(Protocol):
    """Takes rows as they come and gives them back as whole columns."""

    def add(self, name: str, rows: NDArray[Any]) -> None:
        """Append rows to a column.

        Parameters
        ----------
        name : str
            The column.
        rows : ndarray
            First axis: rows.
        """

    def finish(self) -> dict[str, NDArray[Any]]:
        """Give the columns.

        Returns
        -------
        dict of ndarray
            In memory or memory-mapped.
        """


class MemoryColumns:
    """Columns in memory."""

    def __init__(self) -> None:
        self._parts: dict[str, list[NDArray[Any]]] = {}

    def add(self, name: str, rows: NDArray[Any]) -> None:
        """Append rows to a column.

        Parameters
        ----------
        name : str
            The column.
        rows : ndarray
            First axis: rows.
        """
        self._parts.setdefault(name, []).append(rows)

    def finish(self) -> dict[str, NDArray[Any]]:
        """Give the columns.

        Returns
        -------
        dict of ndarray
            In memory.
        """
        return {name: np.concatenate(parts) for name, parts in self._parts.items()}


class DiskColumns:
    """Columns in a folder, one raw file each; written through, so that a full disk is an error and no signal.

    Parameters
    ----------
    folder : Path
        Exists; whoever made it removes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tails: dict[str, tuple[int, ...]] = {}

    def add(self, name: str, rows: NDArray[Any]) -> None:
        """Append rows to a column.

        Parameters
        ----------
        name : str
            The column.
        rows : ndarray
            First axis: rows.

        Raises
        ------
        ConfigError
            If the disk is full.
        """
        mode = "ab" if name in self._tails else "wb"  # what an earlier run may have left is not ours
        self._tails[name] = rows.shape[1:]
        with np.errstate(over="ignore"):  # a noise beyond float16's range becomes infinite: such a pixel says nothing
            content = np.ascontiguousarray(rows, _dtype(name))
        try:
            with self._path(name).open(mode) as file:
                file.write(content.data)
        except OSError as error:
            raise _no_room(self._folder, error) from error

    def finish(self) -> dict[str, NDArray[Any]]:
        """Give the columns.

        Returns
        -------
        dict of ndarray
            Memory-mapped, read only.
        """
        return {
            name: np.memmap(self._path(name), _dtype(name), "r").reshape(-1, *tail)
            for name, tail in self._tails.items()
            if self._path(name).stat().st_size  # no rows at all: nothing can be mapped
        }

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.raw"


def columns_for(count: int, rows: dict[str, NDArray[Any]], folder: Path | None) -> Columns:
    """Choose memory or disk for a set.

    Parameters
    ----------
    count : int
        Rows to come at most.
    rows : dict of ndarray
        Some rows of every column.
    folder : Path or None
        Where to go if they are too many; None keeps any number in memory.

    Returns
    -------
    Columns
        Empty.

    Raises
    ------
    ConfigError
        If the folder's disk has not the room.
    """
    each = sum(column.itemsize * int(np.prod(column.shape[1:])) for column in rows.values())
    if folder is None or each * count <= IN_MEMORY_BYTES:
        return MemoryColumns()
    each = sum(_dtype(name).itemsize * int(np.prod(column.shape[1:])) for name, column in rows.items())
    needed, free = each * count, shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"{count:,} stamps need {needed / 1e9:.1f} GB of disk, but {folder.parent} has {free / 1e9:.1f} GB free.",
            remedy="Name a folder on a larger disk with --scratch DIR, or set data.max_stamps in the recipe.",
        )
    return DiskColumns(folder)


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(_ON_DISK.get(name, _KIND))


def _no_room(folder: Path, error: OSError) -> ConfigError:
    why = "the disk is full" if error.errno == errno.ENOSPC else str(error.strerror)
    return ConfigError(
        f"Stamps cannot be written to {folder.parent}: {why}.",
        remedy="Make room, name a folder on a larger disk with --scratch DIR, or set data.max_stamps in the recipe.",
    )
