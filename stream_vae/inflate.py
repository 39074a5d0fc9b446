"""Decompress gzip'd cutouts in compiled code: by libdeflate itself, out of the package `deflate`.

Whole, and with their checksum. Where the function cannot be found `available` says no, and `stream_vae.cutout` does it
one by one.
"""

import ctypes
import gzip
from functools import cache
from importlib import import_module
from threading import local
from typing import Any

import numba
import numpy as np
from llvmlite import binding  # type: ignore[import-untyped]

from stream_vae.native import compiled

_SYMBOL = "stream_vae_libdeflate_gzip_decompress"
_thread = local()
_nothing = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_size_t] * 6)(lambda *_: 1)
"""Stands where libdeflate's function is not, for compiled code that names it: says that the bytes are damaged."""


def _find() -> Any:
    """Find libdeflate in the package that carries it."""
    try:
        library = ctypes.CDLL(str(import_module("deflate._deflate").__file__))
        function = library.libdeflate_gzip_decompress
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
def inflate(handle: int, address: int, length: int, out: Any) -> bool:
    """Decompress one gzip member that fills a buffer; for compiled code.

    Parameters
    ----------
    handle : uintp
        From `decompressor`.
    address : uintp
        Of the member.
    length : int
        Its bytes.
    out : ndarray of uint8
        The buffer, as long as the member's end says.

    Returns
    -------
    bool
        False if it is damaged, or not as long as it says.
    """
    written = np.zeros(1, np.uintp)
    status = _decompress(
        np.uintp(handle), np.uintp(address), np.uintp(length), out.ctypes.data, np.uintp(out.size), written.ctypes.data
    )
    return status == 0 and written[0] == out.size  # type: ignore[no-any-return]


@cache
def available() -> bool:
    """Tell whether compiled code may use `inflate`.

    Returns
    -------
    bool
        False where libdeflate's functions cannot be found, or do not do what they should.
    """
    if _library is None:
        return False
    data = bytes(range(256)) * 20
    packed = np.frombuffer(gzip.compress(data, mtime=0), np.uint8)
    out = np.zeros(len(data), np.uint8)
    return bool(inflate(decompressor(), packed.ctypes.data, packed.size, out)) and bytes(out) == data
