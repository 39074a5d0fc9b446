"""What compiled code shares: how it is compiled, and bytes objects as it sees them, an address and a length.

So one call goes over a whole batch, without the interpreter's lock. An address is good as long as somebody keeps the
object that it is of; whoever hands addresses on keeps the objects.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from numba.core import cgutils
from numba.extending import intrinsic

Addresses = npt.NDArray[np.uintp]
F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile at the first call, or load what an earlier process compiled; runs without the interpreter's lock.

    Parameters
    ----------
    function : callable
        In the subset of Python that numba compiles. numba keeps the code by the content of the function's own file:
        numbers that several functions share belong into that file.

    Returns
    -------
    callable
        The same, compiled.
    """
    try:
        made: F = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # nowhere to keep it: a read-only container without a home
        made = numba.njit(nogil=True)(function)
    return made


def addresses(values: Sequence[bytes]) -> Addresses:
    """Tell where bytes objects keep their bytes.

    Parameters
    ----------
    values : sequence of bytes
        The caller keeps them.

    Returns
    -------
    ndarray of uintp, shape (n,)
        Not to be used once an object is gone.
    """
    pointers = (ctypes.c_char_p * len(values))(*values)
    where: Addresses = np.frombuffer(memoryview(pointers).cast("B"), np.uintp).copy()
    return where


def address(buffer: bytes | memoryview) -> int:
    """Tell where a buffer keeps its bytes.

    Parameters
    ----------
    buffer : bytes or memoryview
        The caller keeps it.

    Returns
    -------
    int
        0 for an empty one.
    """
    return int(np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]) if len(buffer) else 0


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(_context: Any, number: Any) -> Any:
    """Make a pointer to bytes of a number; for compiled code."""

    def generate(_typing: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return numba.types.CPointer(numba.types.uint8)(number), generate


@compiled
def view(address: int, length: int) -> Any:
    """Give the bytes at an address as an array; for compiled code.

    Parameters
    ----------
    address : uintp
        From `addresses`.
    length : int
        How many.

    Returns
    -------
    ndarray of uint8, shape (length,)
        No copy.
    """
    return numba.carray(_pointer(np.uintp(address)), (length,), np.uint8)
