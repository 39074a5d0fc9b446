"""Decompress gzip'd cutouts in compiled code, only as far as needed: by libdeflate, out of the package `deflate`.

libdeflate decompresses into a buffer from front to back and stops where the next piece does not fit: a match of at
most 258 bytes, or a stored block, which may be longer. `inflate` tells one from the other. libdeflate's documentation
leaves open what a full buffer holds, so it is tried once. Where the functions cannot be found, or do otherwise,
`available` says no, and `stream_vae.cutout` does it one by one.
"""

import ctypes
import zlib
from functools import cache
from importlib import import_module
from threading import local
from typing import Any

import numba
import numpy as np
from llvmlite import binding  # type: ignore[import-untyped]

from stream_vae.native import compiled, view

SPARE = 1024
"""Room that `inflate` needs behind what is wanted: it stops up to 258 bytes (RFC 1951) before the end of the buffer."""
_MARK_AT = SPARE // 2
_MARK = np.uint8(0xA5)
_MARK_BYTES = 8
_INSUFFICIENT_SPACE = 3
_SYMBOL = "stream_vae_libdeflate_deflate_decompress"
_thread = local()


_nothing = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_size_t] * 6)(lambda *_: 1)
"""Stands where libdeflate's function is not, for compiled code that names it: says that the bytes are damaged."""


def _find() -> Any:
    """Find libdeflate in the package that carries it."""
    try:
        library = ctypes.CDLL(str(import_module("deflate._deflate").__file__))
        function = library.libdeflate_deflate_decompress
        make, free = library.libdeflate_alloc_decompressor, library.libdeflate_free_decompressor
    except (ImportError, OSError, AttributeError):
        binding.add_symbol(_SYMBOL, ctypes.cast(_nothing, ctypes.c_void_p).value)
        return None
    make.restype, make.argtypes, free.argtypes = ctypes.c_void_p, (), (ctypes.c_void_p,)
    binding.add_symbol(_SYMBOL, ctypes.cast(function, ctypes.c_void_p).value)
    return library


_library = _find()
_number = numba.types.uintp
# By name and not by address: so the compiled code can be kept for the next process.
_decompress = numba.types.ExternalFunction(
    _SYMBOL, numba.types.int32(_number, _number, _number, _number, _number, _number)
)


class _Decompressor:
    """libdeflate's working memory, for one thread."""

    def __init__(self) -> None:
        assert _library is not None
        self.handle = int(_library.libdeflate_alloc_decompressor() or 0)
        if not self.handle:
            raise MemoryError("libdeflate has no memory for a decompressor")

    def __del__(self) -> None:
        if _library is not None and getattr(self, "handle", None):
            _library.libdeflate_free_decompressor(self.handle)


def decompressor() -> int:
    """Give this thread's decompressor, for `inflate`.

    Returns
    -------
    int
        Its address; good as long as the thread lives.
    """
    made = getattr(_thread, "made", None)
    if made is None:
        made = _thread.made = _Decompressor()
    return made.handle


@compiled
def inflate(handle: int, address: int, length: int, out: Any, wanted: int) -> bool:
    """Decompress the first bytes of what is longer than that; for compiled code.

    What is not decompressed is not looked at, and no checksum is compared.

    Parameters
    ----------
    handle : uintp
        From `decompressor`.
    address : uintp
        Of the compressed bytes, behind gzip's header.
    length : int
        How many.
    out : ndarray of uint8
        The buffer, of at least ``wanted + SPARE`` bytes.
    wanted : int
        Bytes that must be in place.

    Returns
    -------
    bool
        Whether they are; False if they are damaged, or if there are no more than the buffer holds.
    """
    mark = out[wanted + _MARK_AT : wanted + _MARK_AT + _MARK_BYTES]
    mark[:] = _MARK
    written = np.zeros(1, np.uintp)
    size = np.uintp(wanted + SPARE)
    status = _decompress(
        np.uintp(handle), np.uintp(address), np.uintp(length), out.ctypes.data, size, written.ctypes.data
    )
    if status != _INSUFFICIENT_SPACE:
        return False
    missing = 0
    for each in mark:
        missing += each == _MARK
    return missing < _MARK_BYTES  # all of it: it stopped earlier, at a stored block


@compiled
def gzip_payload(address: int, length: int) -> int:
    """Tell where deflate's bytes begin in a gzip member (RFC 1952); for compiled code.

    Parameters
    ----------
    address : uintp
        Of the member.
    length : int
        Its bytes.

    Returns
    -------
    int
        -1 if it is none, or has other fields in its header than a file name.
    """
    data = view(address, length)
    if length < 20 or data[0] != 0x1F or data[1] != 0x8B or data[2] != 8 or data[3] & ~np.uint8(8):
        return -1
    at = 10
    if data[3]:
        while at < length - 8 and data[at]:
            at += 1
        at += 1
    return at if at < length - 8 else -1


@cache
def available() -> bool:
    """Tell whether compiled code may use `inflate`.

    Returns
    -------
    bool
        False where libdeflate's functions cannot be found, or do not leave in a full buffer what belongs there.
    """
    if _library is None:
        return False
    random = np.random.default_rng(0)
    data = bytes(np.repeat(random.integers(0, 40, 4000, np.uint8), random.integers(1, 9, 4000)))
    packed = np.frombuffer(zlib.compress(data, 6, wbits=-15), np.uint8)
    out = np.empty(len(data) + SPARE, np.uint8)
    for wanted in (1, 259, 3000, len(data) - SPARE - 1):
        out[:] = 0
        if not inflate(decompressor(), packed.ctypes.data, packed.size, out, wanted):
            return False
        if bytes(out[:wanted]) != data[:wanted]:
            return False
    return not inflate(decompressor(), packed.ctypes.data, packed.size, out, len(data))
