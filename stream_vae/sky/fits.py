"""Write a FITS file: 80-character cards and blocks of 2,880 bytes, and no more of the standard than that.

References
----------
FITS standard 4.0: Pence et al. 2010, A&A 524, A42, and https://fits.gsfc.nasa.gov/fits_standard.html.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

BLOCK_BYTES = 2880
CARD_BYTES = 80

_BITPIX = {"u1": 8, "i2": 16, "i4": 32, "i8": 64, "f4": -32, "f8": -64}

Value = bool | int | float | str


def write_fits(image: npt.NDArray[np.generic], extra: Mapping[str, Value] | None = None) -> bytes:
    """Write an image as the primary HDU of a file.

    Parameters
    ----------
    image : ndarray, (height, width)
        Of a type that FITS has: unsigned 8-bit, signed 16, 32 or 64-bit, or 32 or 64-bit floating point. Axes
        beyond two are written as they are.
    extra : mapping of str to bool, int, float or str, optional
        Further cards, such as BSCALE and BZERO; they say how the pixels are to be read and do not change them.

    Returns
    -------
    bytes
        The file.

    Raises
    ------
    KeyError
        FITS has no such type.
    """
    cards: dict[str, Value] = {"SIMPLE": True, "BITPIX": _BITPIX[image.dtype.str[1:]], "NAXIS": image.ndim}
    for axis, length in enumerate(reversed(image.shape), start=1):
        cards[f"NAXIS{axis}"] = length
    return header({**cards, **(extra or {})}) + data_blocks(image)


def header(cards: Mapping[str, Value]) -> bytes:
    """Write a header: the cards as given, END, and blanks to the end of the block.

    Parameters
    ----------
    cards : mapping of str to bool, int, float or str
        In the order in which they are written.

    Returns
    -------
    bytes
        Whole blocks.
    """
    text = b"".join(card(keyword, value) for keyword, value in cards.items()) + b"END".ljust(CARD_BYTES)
    return text.ljust(-(-len(text) // BLOCK_BYTES) * BLOCK_BYTES)


def card(keyword: str, value: Value) -> bytes:
    """Write one card in the fixed format.

    Parameters
    ----------
    keyword : str
        Up to eight capital letters and digits.
    value : bool, int, float or str
        Its value.

    Returns
    -------
    bytes
        80 bytes.
    """
    if isinstance(value, bool):
        text = f"{'T' if value else 'F':>20}"
    elif isinstance(value, str):
        text = f"'{value:<8}'"
    else:
        text = f"{value!r:>20}".upper()
    return f"{keyword:<8}= {text}".encode("ascii").ljust(CARD_BYTES)


def data_blocks(image: npt.NDArray[np.generic]) -> bytes:
    """Write pixels: big-endian, row by row, zeros to the end of the block.

    Parameters
    ----------
    image : ndarray
        The pixels.

    Returns
    -------
    bytes
        Whole blocks.
    """
    pixels = image.astype(image.dtype.newbyteorder(">"), copy=False).tobytes()
    return pixels.ljust(-(-len(pixels) // BLOCK_BYTES) * BLOCK_BYTES, b"\0")
