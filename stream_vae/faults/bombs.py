"""Compressed zeros: a few hundred kilobytes that become hundreds of megabytes, for tests of the caps."""

import zlib
from functools import cache

_MEBIBYTE = 1 << 20


@cache
def deflated_zeros(mebibytes: int) -> bytes:
    """Deflate zeros, without a header, as Avro files have it.

    Parameters
    ----------
    mebibytes : int
        How many come out.

    Returns
    -------
    bytes
        About a thousandth as many.
    """
    deflater = zlib.compressobj(9, wbits=-15)
    # After a full flush the coder starts afresh, so one piece may be repeated.
    piece = deflater.compress(bytes(_MEBIBYTE)) + deflater.flush(zlib.Z_FULL_FLUSH)
    return piece * mebibytes + b"\x03\x00"  # an empty last block


@cache
def gzip_of_zeros(mebibytes: int) -> bytes:
    """Write a gzip file of zeros whose checksum and length are right.

    Parameters
    ----------
    mebibytes : int
        How many come out.

    Returns
    -------
    bytes
        The file.
    """
    zeros, checksum = bytes(_MEBIBYTE), 0
    for _ in range(mebibytes):
        checksum = zlib.crc32(zeros, checksum)
    header = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    length = mebibytes * _MEBIBYTE
    return header + deflated_zeros(mebibytes) + checksum.to_bytes(4, "little") + length.to_bytes(4, "little")
