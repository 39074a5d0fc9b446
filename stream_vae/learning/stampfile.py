"""Stamps from .npy and .npz files, a chunk at a time, however large the file is."""

import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.noise import scaled_noise
from stream_vae.learning.stamps import BOGUS, CHUNK, REAL, UNKNOWN, Chunk, StampSource
from stream_vae.model.release import Preprocessing
from stream_vae.stages.stamp import normalise

_DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged file raises, at whatever depth the damage is."""


def stamps_from_file(
    path: Path, preprocessing: Preprocessing, *, noise: bool = False, values_of_groups: bool = False
) -> StampSource:
    """Read stamps from an array file, a chunk at a time.

    Parameters
    ----------
    path : Path
        A .npy file (memory-mapped), or a .npz file with `stamps` and perhaps `labels`, `groups`, `noise`, `kinds` and
        `snr` (read through in pieces). Stamps are (n, size, size) or (n, size, size, channels), not scaled, NaN where
        masked; noise is one standard deviation of each pixel in the same unit and shape.
    preprocessing : Preprocessing
        Larger stamps are cropped around their centre to its size.
    noise : bool
        Whether to read the noise maps, too.
    values_of_groups : bool
        Number groups by their value rather than in order, so that equal groups of two files have one number.

    Returns
    -------
    StampSource
        With labels of -1 where the file has none.

    Raises
    ------
    ConfigError
        If the file is no such file, or its arrays have not the right shape.
    """
    head = check_file(path, preprocessing)
    count, extra = head.shape[0], _columns(path) if path.suffix == ".npz" else {}
    labels, groups = extra.get("labels"), extra.get("groups")
    known = None if labels is None else _check_labels(path, labels, count)
    members = None if groups is None else _check_groups(path, groups, count, by_value=values_of_groups)
    kinds, snr = _check_kinds(path, extra.get("kinds"), count), _check_snr(path, extra.get("snr"), count)
    with_noise = noise and head.noise

    def chunks() -> Iterator[Chunk]:
        at = 0
        maps = _npz_pieces(path, "noise") if with_noise else None
        for piece in _npy_pieces(path) if path.suffix == ".npy" else _npz_pieces(path, "stamps"):
            raw = _crop(piece, preprocessing.stamp_size)
            stamps, quality = normalise(raw, preprocessing)
            part = slice(at, at + len(piece))
            at += len(piece)
            scaled = None
            if maps is not None:
                scaled = scaled_noise(raw, stamps, _crop(next(maps), preprocessing.stamp_size))
            yield Chunk(
                stamps,
                quality,
                np.full(len(piece), UNKNOWN, np.int8) if known is None else known[part],
                np.arange(at - len(piece), at) if members is None else members[part],
                scaled,
                None if kinds is None else kinds[part],
                None if snr is None else snr[part],
            )

    return StampSource("file", path.name, count, chunks, grouped=groups is not None)


class Head(NamedTuple):
    """What the head of an array file says of its stamps."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    grouped: bool
    noise: bool


def check_file(path: Path, preprocessing: Preprocessing) -> Head:
    """Read the head of an array file.

    Parameters
    ----------
    path : Path
        A .npy or .npz file.
    preprocessing : Preprocessing
        What the stamps should be.

    Returns
    -------
    Head
        Of stamps that can be used.

    Raises
    ------
    ConfigError
        If it is no such file, or its arrays have not the right shape.
    """
    grouped = noise = False
    if path.suffix == ".npy":
        array = _load(path, mmap_mode="r")
        shape, dtype = array.shape, array.dtype
    elif path.suffix == ".npz":
        with _load(path) as file:
            if "stamps" not in file.files:
                raise ConfigError(
                    f"{path} has no array `stamps`, only {', '.join(file.files) or 'nothing'}.",
                    remedy="Save it as numpy.savez(file, stamps=..., labels=..., groups=...).",
                )
            grouped, noise = "groups" in file.files, "noise" in file.files
        shape, dtype = _npz_header(path, "stamps")
    else:
        raise ConfigError(
            f"{path} is neither .npy nor .npz.",
            remedy="Give stamps as one of these, or a folder of such files or of alert packets.",
        )
    _check_shape(path, shape, dtype, preprocessing)
    if noise and _npz_header(path, "noise")[0] != shape:
        raise ConfigError(
            f"{path}: noise of shape {_npz_header(path, 'noise')[0]} for stamps of shape {shape}.",
            remedy="Give one number a pixel: the standard deviation of its noise.",
        )
    return Head(shape, dtype, grouped, noise)


def _npy_pieces(path: Path) -> Iterator[NDArray[Any]]:
    array = _load(path, mmap_mode="r")
    for i in range(0, len(array), CHUNK):
        yield array[i : i + CHUNK]


def _columns(path: Path) -> dict[str, NDArray[Any]]:
    with _load(path) as file:
        columns = {name: _column(file, name, path) for name in ("labels", "groups", "kinds", "snr")}
    return {name: column for name, column in columns.items() if column is not None}


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


def _npz_header(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        shape, _, dtype = _array_header(member, path)
    return shape, dtype


def _array_header(member: Any, path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(member)
    except _DAMAGE as error:
        raise ConfigError(f"{path}: `stamps` is damaged: {error}.", remedy="Save it again.") from error


def _npz_pieces(path: Path, name: str) -> Iterator[NDArray[Any]]:
    """Read an array of a .npz through, compressed or not, without holding all of it."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
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


def _check_groups(path: Path, groups: NDArray[Any], count: int, *, by_value: bool) -> NDArray[np.int64]:
    if groups.shape != (count,):
        raise ConfigError(f"{path}: {groups.shape} groups for {count} stamps.", remedy="Give one group a stamp.")
    if by_value and groups.dtype.kind in "iub":
        return groups.astype(np.int64)
    values, which = np.unique(groups, return_inverse=True)
    if by_value:
        digests = [hashlib.blake2b(str(value).encode(), digest_size=8).digest() for value in values]
        return np.frombuffer(b"".join(digests), np.int64)[which]
    return which.astype(np.int64)


def _check_kinds(path: Path, kinds: NDArray[Any] | None, count: int) -> NDArray[np.str_] | None:
    if kinds is not None and (kinds.shape != (count,) or kinds.dtype.kind not in "US"):
        raise ConfigError(
            f"{path}: `kinds` of shape {kinds.shape} and type {kinds.dtype} for {count} stamps.",
            remedy="Give one name a stamp, as numpy strings.",
        )
    return None if kinds is None else kinds.astype(np.str_)


def _check_snr(path: Path, snr: NDArray[Any] | None, count: int) -> NDArray[np.float32] | None:
    if snr is not None and (snr.shape != (count,) or snr.dtype.kind not in "fiu"):
        raise ConfigError(
            f"{path}: `snr` of shape {snr.shape} and type {snr.dtype} for {count} stamps.",
            remedy="Give one number a stamp, NaN where it is not known.",
        )
    return None if snr is None else snr.astype(np.float32)


def _crop(piece: NDArray[Any], size: int) -> NDArray[np.float32]:
    """Take the centre: pixel side // 2 comes to lie on size // 2, as in serving."""
    start = piece.shape[1] // 2 - size // 2
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32's range: infinite, so masked
        cut = piece[:, start : start + size, start : start + size].astype(np.float32)
    return cut if cut.ndim == 4 else cut[..., np.newaxis]
