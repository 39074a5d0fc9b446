"""Stamps from .npy and .npz files, a chunk at a time, however large the file is."""

import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.stamps import BOGUS, CHUNK, REAL, UNKNOWN, Chunk, StampSource
from stream_vae.model.release import Preprocessing
from stream_vae.stages.stamp import normalise

_DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged file raises, at whatever depth the damage is."""


def stamps_from_file(path: Path, preprocessing: Preprocessing) -> StampSource:
    """Read stamps from an array file, a chunk at a time.

    Parameters
    ----------
    path : Path
        A .npy file (memory-mapped), or a .npz file with `stamps` and perhaps `labels` and `groups` (read through
        in pieces). Stamps are (n, size, size) or (n, size, size, channels), not scaled, NaN where masked.
    preprocessing : Preprocessing
        Larger stamps are cropped around their centre to its size.

    Returns
    -------
    StampSource
        With labels of -1 where the file has none.

    Raises
    ------
    ConfigError
        If the file is no such file, or its arrays have not the right shape.
    """
    if path.suffix == ".npy":
        array = _load(path, mmap_mode="r")
        shape, labels, groups = array.shape, None, None

        def pieces() -> Iterator[NDArray[Any]]:
            for i in range(0, len(array), CHUNK):
                yield array[i : i + CHUNK]

        dtype = array.dtype
    elif path.suffix == ".npz":
        with _load(path) as file:
            if "stamps" not in file.files:
                raise ConfigError(
                    f"{path} has no array `stamps`, only {', '.join(file.files) or 'nothing'}.",
                    remedy="Save it as numpy.savez(file, stamps=..., labels=..., groups=...).",
                )
            labels, groups = (_column(file, name, path) for name in ("labels", "groups"))
        shape, dtype = _npz_header(path)

        def pieces() -> Iterator[NDArray[Any]]:
            return _npz_pieces(path)
    else:
        raise ConfigError(
            f"{path} is neither .npy nor .npz.", remedy="Give stamps as one of these, or a folder of alert packets."
        )
    _check_shape(path, shape, dtype, preprocessing)
    count = shape[0]
    known = np.full(count, UNKNOWN, np.int8) if labels is None else _check_labels(path, labels, count)
    members = np.arange(count) if groups is None else _check_groups(path, groups, count)

    def chunks() -> Iterator[Chunk]:
        at = 0
        for piece in pieces():
            stamps, quality = normalise(_crop(piece, preprocessing.stamp_size), preprocessing)
            part = slice(at, at + len(piece))
            yield Chunk(stamps, quality, known[part], members[part])
            at += len(piece)

    return StampSource("file", path.name, count, chunks, grouped=groups is not None)


def _load(path: Path, *, mmap_mode: Any = None) -> Any:
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except _DAMAGE as error:
        raise ConfigError(
            f"{path} cannot be read as a numpy file: {error}.",
            remedy="Save plain number arrays with numpy.save or numpy.savez; pickled objects are refused.",
        ) from error


def _column(file: Any, name: str, path: Path) -> NDArray[Any] | None:
    if name not in file.files:
        return None
    try:
        return np.asarray(file[name])
    except _DAMAGE as error:
        raise ConfigError(f"{path}: `{name}` cannot be read: {error}.", remedy="Save plain number arrays.") from error


def _npz_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with zipfile.ZipFile(path) as archive, archive.open("stamps.npy") as member:
        shape, _, dtype = _array_header(member, path)
    return shape, dtype


def _array_header(member: Any, path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(member)
    except _DAMAGE as error:
        raise ConfigError(f"{path}: `stamps` is damaged: {error}.", remedy="Save it again.") from error


def _npz_pieces(path: Path) -> Iterator[NDArray[Any]]:
    """Read the stamps of a .npz through, compressed or not, without holding them all."""
    with zipfile.ZipFile(path) as archive, archive.open("stamps.npy") as member:
        shape, by_columns, dtype = _array_header(member, path)
        if by_columns:  # Fortran order: the first stamp's pixels lie all over the file
            content = _read(member, math.prod(shape) * dtype.itemsize, path)
            whole = np.frombuffer(content, dtype).reshape(shape, order="F")
            for i in range(0, shape[0], CHUNK):
                yield whole[i : i + CHUNK]
            return
        stamp_bytes = math.prod(shape[1:]) * dtype.itemsize
        for i in range(0, shape[0], CHUNK):
            rows = min(CHUNK, shape[0] - i)
            content = _read(member, rows * stamp_bytes, path)
            yield np.frombuffer(content, dtype).reshape(rows, *shape[1:])


def _read(member: Any, count: int, path: Path) -> bytes:
    try:
        content: bytes = member.read(count)
    except _DAMAGE as error:
        raise ConfigError(f"{path}: `stamps` is damaged: {error}.", remedy="Save or copy it again.") from error
    if len(content) < count:
        raise ConfigError(f"{path}: `stamps` ends before its last stamp.", remedy="Save or copy it again.")
    return content


def _check_shape(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], preprocessing: Preprocessing) -> None:
    size, channels = preprocessing.stamp_size, len(preprocessing.cutouts)
    form = f"(n, {size}, {size}) or (n, {size}, {size}, {channels})"
    if dtype.kind not in "fiu":
        raise ConfigError(f"{path}: stamps are of type {dtype}.", remedy="Save them as float32.")
    if len(shape) not in (3, 4) or shape[1] != shape[2] or shape[1] < size:
        raise ConfigError(
            f"{path}: stamps have the shape {shape}; {form} is wanted, or larger.",
            remedy="Cut square stamps of at least this size around each candidate.",
        )
    if (shape[3] if len(shape) == 4 else 1) != channels:
        raise ConfigError(
            f"{path}: stamps of shape {shape} where the model takes {channels} ({', '.join(preprocessing.cutouts)}).",
            remedy="Give as many channels, last axis, in this order, or set preprocessing.cutouts in the recipe.",
        )


def _check_labels(path: Path, labels: NDArray[Any], count: int) -> NDArray[np.int8]:
    if labels.shape != (count,):
        raise ConfigError(f"{path}: {labels.shape} labels for {count} stamps.", remedy="Give one label a stamp.")
    if not np.isin(labels, (UNKNOWN, BOGUS, REAL)).all():
        raise ConfigError(
            f"{path}: labels are {np.unique(labels)[:6].tolist()}.", remedy="Use 1 real, 0 bogus, -1 unknown."
        )
    return labels.astype(np.int8)


def _check_groups(path: Path, groups: NDArray[Any], count: int) -> NDArray[np.int64]:
    if groups.shape != (count,):
        raise ConfigError(f"{path}: {groups.shape} groups for {count} stamps.", remedy="Give one group a stamp.")
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def _crop(piece: NDArray[Any], size: int) -> NDArray[np.float32]:
    """Take the centre: pixel side // 2 comes to lie on size // 2, as in serving."""
    start = piece.shape[1] // 2 - size // 2
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32's range: infinite, so masked
        cut = piece[:, start : start + size, start : start + size].astype(np.float32)
    return cut if cut.ndim == 4 else cut[..., np.newaxis]
