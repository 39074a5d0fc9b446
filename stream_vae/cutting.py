"""The usual cutout, for a whole batch in one compiled call: `stream_vae.cutout` without its exceptions.

Done here: a FITS primary image of big-endian floats in two axes, gzip'd or plain, neither scaled nor with blanks, with
the stamp wholly inside of it. Whatever is not exactly so, or not written exactly as expected, is left for
`stream_vae.cutout`, which knows what to say about it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from stream_vae.inflate import inflate
from stream_vae.native import Addresses, compiled, view

SCRATCH_BYTES = 2**19
"""Four times the largest cutout of the surveys that we know, 93 x 93 pixels of three images."""
Spans = npt.NDArray[np.int64]

_CARD = 80
_BLOCK = 2880
_MAX_BLOCKS = 8
"""Of a usual header."""
_MAX_DIGITS = 6
_UNUSUAL = -1


@compiled
def cut_each(  # noqa: C901, PLR0912 - one cutout after another, compiled
    out: Any,
    channel: int,
    rows: Any,
    addresses: Addresses,
    spans: Spans,
    nominal: int,
    max_bytes: int,
    handle: int,
    scratch: Any,
) -> Any:
    """Cut the usual ones of a batch.

    Parameters
    ----------
    out : ndarray of uint32, shape (alerts, size, size, channels)
        The bits of the stamps' float32; rows that are not done are left alone.
    channel : int
        Which of the channels.
    rows : ndarray of int64, shape (n,)
        Which of the alerts.
    addresses : ndarray of uintp, shape (n,)
        Where each record lies.
    spans : ndarray of int64, shape (n, 2)
        Of the cutout in it, with its length in front.
    nominal : int
        Smallest side of a cutout that has the candidate in its middle; 0 if all have.
    max_bytes : int
        Largest decompressed cutout.
    handle : uintp
        From `stream_vae.inflate.decompressor`; 0 if nothing can be decompressed here.
    scratch : ndarray of uint8
        Holds what is decompressed; a larger cutout is not done.

    Returns
    -------
    ndarray of bool, shape (n,)
        Which are done.
    """
    size = out.shape[1]
    done = np.zeros(len(rows), np.bool_)
    for n in range(len(rows)):
        if spans[n, 0] < 0:
            continue
        record = view(addresses[n], spans[n, 1])
        at = spans[n, 0]
        while record[at] > 0x7F:  # the walk has checked the length
            at += 1
        at += 1
        length = spans[n, 1] - at
        if length < 20:
            continue
        address: Any = addresses[n] + np.uintp(at)
        data = view(address, length)
        total = length
        if data[0] == 0x1F and data[1] == 0x8B:
            total = np.int64(0)
            for i in range(4):
                total |= np.int64(data[length - 4 + i]) << (8 * i)
            if handle == 0 or total > max_bytes or total > scratch.size:
                continue
            if not inflate(handle, address, length, scratch[:total]):
                continue
            data = scratch
        elif length > max_bytes:
            continue
        begin, height, width = _read_header(data, total)
        end = begin + -(-height * width * 4 // _BLOCK) * _BLOCK
        if begin < 0 or end > total:
            continue
        top, left = height // 2 - size // 2, width // 2 - size // 2
        if height != width or height < nominal or top < 0 or top + size > height:
            continue
        for y in range(size):
            place = begin + ((top + y) * width + left) * 4
            for x in range(size):
                pixel = np.uintp(place + 4 * x)
                out[rows[n], y, x, channel] = (
                    (np.uint32(data[pixel]) << 24)
                    | (np.uint32(data[pixel + 1]) << 16)
                    | (np.uint32(data[pixel + 2]) << 8)
                    | np.uint32(data[pixel + 3])
                )
        done[n] = True
    return done


def warm_up() -> None:
    """Compile `cut_each`, or load it from numba's cache, before the first alert comes."""
    out, rows, where = np.zeros((0, 1, 1, 1), np.uint32), np.zeros(0, np.int64), np.zeros(0, np.uintp)
    spans, scratch = np.zeros((0, 2), np.int64), np.zeros(0, np.uint8)
    cut_each(out, 0, rows, where, spans, 0, 0, 0, scratch)


@compiled
def _read_header(data: Any, size: int) -> tuple[int, int, int]:  # noqa: C901, PLR0911, PLR0912 - one pass over the cards
    """Read the usual header; gives where its data begin, their height and width, or a negative number first.

    `stream_vae.cutout` reads the same numbers from whatever is taken here.
    """
    if size < _BLOCK or not _is(data, 0, b"SIMPLE  ="):
        return _UNUSUAL, 0, 0
    bits, axes, width, height = 0, 0, 0, 0
    for at in range(_CARD, min(size, _MAX_BLOCKS * _BLOCK) - _CARD + 1, _CARD):
        first = data[np.uintp(at)]
        if first == ord("E") and _is(data, at, b"END"):
            if not _is(data, at, b"END     ") or bits != -32 or axes != 2:
                return _UNUSUAL, 0, 0
            return (at // _BLOCK + 1) * _BLOCK if width > 0 and height > 0 else _UNUSUAL, height, width
        if first == ord("B"):
            if _is(data, at, b"BITPIX"):
                if bits or not _is(data, at, b"BITPIX  ="):
                    return _UNUSUAL, 0, 0
                bits = _number(data, at)
            elif _is(data, at, b"BSCALE") or _is(data, at, b"BZERO") or _is(data, at, b"BLANK"):
                return _UNUSUAL, 0, 0
        elif first == ord("N"):
            if _is(data, at, b"NAXIS   ="):
                if axes:
                    return _UNUSUAL, 0, 0
                axes = _number(data, at)
            elif _is(data, at, b"NAXIS1  ="):
                if width:
                    return _UNUSUAL, 0, 0
                width = _number(data, at)
            elif _is(data, at, b"NAXIS2  ="):
                if height:
                    return _UNUSUAL, 0, 0
                height = _number(data, at)
            elif _is(data, at, b"NAXIS"):
                return _UNUSUAL, 0, 0
        elif _is(data, at, b"PCOUNT") or _is(data, at, b"GCOUNT"):
            return _UNUSUAL, 0, 0
    return _UNUSUAL, 0, 0


@compiled
def _is(data: Any, at: int, text: bytes) -> bool:
    for i in range(len(text)):  # noqa: SIM110 - numba has no all()
        if data[np.uintp(at + i)] != text[i]:
            return False
    return True


@compiled
def _number(data: Any, at: int) -> int:
    """Read a card's integer; 0 if it is none that is plain to read."""
    end = at + _CARD
    at += 9
    while at < end and data[np.uintp(at)] == ord(" "):
        at += 1
    sign: Any = 1
    if at < end and data[np.uintp(at)] == ord("-"):
        sign = -1
        at += 1
    number: Any = 0
    digits = 0
    while at < end and ord("0") <= data[np.uintp(at)] <= ord("9"):
        number = number * 10 + np.int64(data[np.uintp(at)]) - ord("0")
        digits += 1
        at += 1
    while at < end and data[np.uintp(at)] == ord(" "):
        at += 1
    plain = 0 < digits <= _MAX_DIGITS and (at == end or data[np.uintp(at)] == ord("/"))
    return sign * number if plain else 0
