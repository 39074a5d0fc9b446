"""Stamps from .npy and .npz files, a chunk at a time, however large the file is."""

import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.data.noise import scaled_noise
from stream_vae.learning.data.stamps import BOGUS, CHUNK, REAL, UNKNOWN, Chunk, StampSource
from stream_vae.model.release import Preprocessing
from stream_vae.stages.stamp import normalise

_DAMAGE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged file raises, at whatever depth the damage is."""
_COLUMNS = {
    "labels": "one label a stamp: 1 real, 0 bogus, -1 unknown",
    "groups": "one group a stamp: its image or object",
    "kinds": "one name a stamp, as numpy strings",
    "snr": "one number a stamp, NaN where it is not known",
}
"""What may stand beside the stamps of a .npz."""


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
    count = head.shape[0]
    extra = _columns(path, count)
    labels, groups = extra.get("labels"), extra.get("groups")
    known = None if labels is None else _check_labels(path, labels)
    members = None if groups is None else _check_groups(path, groups, by_value=values_of_groups)
    kinds, snr = _check_kinds(path, extra.get("kinds")), _check_snr(path, extra.get("snr"))
    with_noise = noise and head.noise

    def chunks() -> Iterator[Chunk]:
        at = 0
        maps = _pieces(path, "noise") if with_noise else None
        for piece in _pieces(path, "stamps"):
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


class ArrayHead(NamedTuple):
    """What an array's head says of it."""

    shape: tuple[int, ...]
    by_columns: bool
    """Fortran's order."""
    dtype: np.dtype[Any]
    begins: int
    """Byte of its first element."""


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
    stamps = check_stamps(path)
    names = [] if path.suffix == ".npy" else _names(path)
    _check_shape(path, stamps.shape, stamps.dtype, preprocessing)
    noise = _array(path, "noise") if "noise" in names else None
    if noise is not None and (noise.shape != stamps.shape or noise.dtype.kind not in "fiu"):
        raise ConfigError(
            f"{path}: noise of shape {noise.shape} and type {noise.dtype} for stamps of shape {stamps.shape}.",
            remedy="Give one number a pixel: the standard deviation of its noise.",
        )
    return Head(stamps.shape, stamps.dtype, "groups" in names, noise is not None)


def check_stamps(path: Path) -> ArrayHead:
    """Read the head of a file's stamps, of whatever shape they are.

    Parameters
    ----------
    path : Path
        A .npy or .npz file.

    Returns
    -------
    ArrayHead
        Of an array that is all there and holds no objects.

    Raises
    ------
    ConfigError
        If it is no such file, or damaged.
    """
    if path.suffix not in (".npy", ".npz"):
        raise ConfigError(
            f"{path} is neither .npy nor .npz.",
            remedy="Give stamps as one of these, or a folder of such files or of alert packets.",
        )
    names = ["stamps"] if path.suffix == ".npy" else _names(path)
    if "stamps" not in names:
        raise ConfigError(
            f"{path} has no array `stamps`, only {', '.join(names) or 'nothing'}.",
            remedy="Save it as numpy.savez(file, stamps=..., labels=..., groups=...).",
        )
    return _array(path, "stamps")


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except _DAMAGE as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{path} cannot be read as a numpy file: {why.rstrip('.')}.",
        remedy="Save plain number arrays with numpy.save or numpy.savez; pickled objects are refused.",
    )


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[IO[bytes], int]]:
    """Open the bytes of an array, with how many they are: a .npy file, or one in a .npz."""
    if path.suffix == ".npy":
        with path.open("rb") as member:
            yield member, path.stat().st_size
        return
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        yield member, archive.getinfo(f"{name}.npy").file_size


def _array(path: Path, name: str) -> ArrayHead:
    """Read an array's head, and see that the file is as long as that says."""
    try:
        with _opened(path, name) as (member, size):
            found = _array_head(member)
    except _DAMAGE as error:
        raise _unreadable(path, f"`{name}`: {error}") from error
    if found.dtype.hasobject:
        raise ConfigError(f"{path}: `{name}` is of type object, which is not read.", remedy="Save it as plain numbers.")
    if min(found.shape, default=1) < 0:
        raise ConfigError(f"{path}: `{name}` is damaged: its shape is {found.shape}.", remedy="Save it again.")
    if size - found.begins < math.prod(found.shape) * found.dtype.itemsize:
        raise ConfigError(f"{path}: `{name}` ends before its last element.", remedy="Save or copy it again.")
    return found


def _array_head(member: IO[bytes]) -> ArrayHead:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return ArrayHead(*read(member), member.tell())


def _columns(path: Path, count: int) -> dict[str, NDArray[Any]]:
    """Read what stands beside the stamps of a .npz, once its length is known to be theirs."""
    if path.suffix == ".npy":
        return {}
    found = {}
    for name in set(_names(path)) & _COLUMNS.keys():
        head = _array(path, name)
        if head.shape != (count,):
            raise ConfigError(
                f"{path}: {name} of shape {head.shape} for {count} stamps.", remedy=f"Give {_COLUMNS[name]}."
            )
        try:
            with _opened(path, name) as (member, _):
                found[name] = np.lib.format.read_array(member, allow_pickle=False)
        except _DAMAGE as error:
            raise ConfigError(f"{path}: `{name}` is damaged: {error}.", remedy="Save or copy it again.") from error
    return found


def _pieces(path: Path, name: str) -> Iterator[NDArray[Any]]:
    """Read an array through, compressed or not, without holding or mapping all of it."""
    with _opened(path, name) as (member, _):
        shape, by_columns, dtype, begins = _array_head(member)
        if by_columns:  # the first stamp's pixels lie all over the file
            if path.suffix == ".npy":
                whole: NDArray[Any] = np.memmap(path, dtype, "r", begins, shape, order="F")
            else:
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
        raise ConfigError(f"{path}: `stamps` ends before its last element.", remedy="Save or copy it again.")
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


def _check_labels(path: Path, labels: NDArray[Any]) -> NDArray[np.int8]:
    if not np.isin(labels, (UNKNOWN, BOGUS, REAL)).all():
        raise ConfigError(
            f"{path}: labels are {np.unique(labels)[:6].tolist()}.", remedy="Use 1 real, 0 bogus, -1 unknown."
        )
    return labels.astype(np.int8)


def _check_groups(path: Path, groups: NDArray[Any], *, by_value: bool) -> NDArray[np.int64]:
    if groups.dtype.kind == "f" and not np.isfinite(groups).all():
        raise ConfigError(
            f"{path}: {int((~np.isfinite(groups)).sum())} of {len(groups)} groups are NaN or infinite.",
            remedy="Give each stamp its image or object, as a whole number or a name; each of unknown ones its own.",
        )
    if by_value and groups.dtype.kind in "iub":
        return groups.astype(np.int64)
    values, which = np.unique(groups, return_inverse=True)
    if by_value:
        digests = [hashlib.blake2b(str(value).encode(), digest_size=8).digest() for value in values]
        return np.frombuffer(b"".join(digests), np.int64)[which]
    return which.astype(np.int64)


def _check_kinds(path: Path, kinds: NDArray[Any] | None) -> NDArray[np.str_] | None:
    if kinds is not None and kinds.dtype.kind not in "US":
        raise ConfigError(f"{path}: kinds of type {kinds.dtype}.", remedy=f"Give {_COLUMNS['kinds']}.")
    return None if kinds is None else kinds.astype(np.str_)


def _check_snr(path: Path, snr: NDArray[Any] | None) -> NDArray[np.float32] | None:
    if snr is not None and snr.dtype.kind not in "fiu":
        raise ConfigError(f"{path}: snr of type {snr.dtype}.", remedy=f"Give {_COLUMNS['snr']}.")
    return None if snr is None else snr.astype(np.float32)


def _crop(piece: NDArray[Any], size: int) -> NDArray[np.float32]:
    """Take the centre: pixel side // 2 comes to lie on size // 2, as in serving."""
    start = piece.shape[1] // 2 - size // 2
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32's range: infinite, so masked
        cut = piece[:, start : start + size, start : start + size].astype(np.float32)
    return cut if cut.ndim == 4 else cut[..., np.newaxis]
