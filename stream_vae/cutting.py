"""The usual cutout, for a whole batch in one compiled call: `stream_vae.cutout` without its exceptions.

Done here: a FITS image of big-endian floats, gzip'd or plain, whose header was seen before, with the stamp wholly
inside of it. Whatever is not exactly so is left for
`stream_vae.cutout`, which knows what to say about it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from stream_vae.cutout import BLOCK, Hdu
from stream_vae.inflate import inflate
from stream_vae.native import Addresses, compiled, view

MOST_HEADERS = 8
"""That are compared with; a survey writes a few, or another one for each alert, and then none helps."""
SCRATCH_BYTES = 2**19
"""Four times the largest cutout of the surveys that we know, 93 x 93 pixels of three images."""
Spans = npt.NDArray[np.int64]


class KnownHeaders:
    """FITS headers as compiled code compares them.

    Parameters
    ----------
    headers : dict
        What each of the last headers says, by its bytes.
    """

    def __init__(self, headers: dict[bytes, Hdu]) -> None:
        usable = [
            (text, hdu)
            for text, hdu in list(headers.items())
            if hdu.dtype == np.dtype(">f4")
            and (hdu.scale, hdu.zero, hdu.blank) == (1.0, 0.0, None)
            and hdu.end <= SCRATCH_BYTES  # a damaged header may say any number
        ][-MOST_HEADERS:]
        self.seen = len(headers)
        self.texts = np.frombuffer(b"".join(text for text, _ in usable), np.uint8).reshape(-1, BLOCK)
        shapes = [(hdu.offset, hdu.end, hdu.height, hdu.width) for _, hdu in usable]
        self.shapes = np.array(shapes, np.int64).reshape(-1, 4)


@compiled
def cut_each(  # noqa: C901, PLR0912 - one cutout after another, compiled
    out: Any,
    channel: int,
    rows: Any,
    addresses: Addresses,
    spans: Spans,
    texts: Any,
    shapes: Any,
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
    texts : ndarray of uint8, shape (k, 2880)
        Known headers.
    shapes : ndarray of int64, shape (k, 4)
        Their data's first byte, the byte behind data and padding, height and width.
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
    likely = 0
    for n in range(len(rows)):
        if spans[n, 0] < 0 or len(texts) == 0:
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
        if total < BLOCK:
            continue
        found = -1
        for k in range(len(texts)):
            which = (likely + k) % len(texts)
            if _same(data, texts[which]):
                found = which
                break
        if found < 0:
            continue
        likely = found
        begin, end, height, width = shapes[found]
        if end > total:
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
    nothing = KnownHeaders({})
    out, rows, where = np.zeros((0, 1, 1, 1), np.uint32), np.zeros(0, np.int64), np.zeros(0, np.uintp)
    spans, scratch = np.zeros((0, 2), np.int64), np.zeros(0, np.uint8)
    cut_each(out, 0, rows, where, spans, nothing.texts, nothing.shapes, 0, 0, 0, scratch)


@compiled
def _same(data: Any, text: Any) -> bool:
    for block in range(0, text.size, 32):
        differing = np.uint8(0)
        for i in range(32):
            differing |= data[np.uintp(block + i)] ^ text[np.uintp(block + i)]
        if differing:
            return False
    return True
