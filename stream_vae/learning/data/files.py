"""The files in a folder, in the order of their names, without a list of twenty million of them."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

MOST_LISTED = 500_000
"""Paths that are kept as a list; a larger folder is walked anew each time, one sub-folder's names at a time."""


def walk(folder: Path) -> Iterator[Path]:
    """Go through a folder's files at any depth, in the order of their names; hidden files are passed over.

    Parameters
    ----------
    folder : Path
        Where to begin. Only the names of the folders on the way down are in memory.

    Yields
    ------
    Path
        A file.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        path = folder / name
        if path.is_dir():
            yield from walk(path)
        elif not name.startswith(".") and path.is_file():
            yield path


class Files:
    """A folder's files, or one file by itself.

    Parameters
    ----------
    path : Path
        The folder, or the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        first = list(islice(self._walk(), MOST_LISTED + 1))
        self._listed = first if len(first) <= MOST_LISTED else None
        self._count = len(first) if self._listed is not None else sum(1 for _ in self._walk())

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Path]:
        return iter(self._listed) if self._listed is not None else self._walk()

    def at(self, rows: Sequence[int]) -> list[Path]:
        """Give some files by their place.

        Parameters
        ----------
        rows : sequence of int
            Ascending.

        Returns
        -------
        list of Path
            One a place.
        """
        if self._listed is not None:
            return [self._listed[row] for row in rows]
        wanted = set(rows)
        return [file for row, file in enumerate(self) if row in wanted]

    def batches(self, size: int) -> Iterator[list[Path]]:
        """Go through all files, some at a time.

        Parameters
        ----------
        size : int
            How many.

        Yields
        ------
        list of Path
            In order.
        """
        files = iter(self)
        while batch := list(islice(files, size)):
            yield batch

    def _walk(self) -> Iterator[Path]:
        return iter([self.path]) if self.path.is_file() else walk(self.path)
