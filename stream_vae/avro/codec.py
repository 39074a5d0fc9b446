"""Block codecs of Avro files: null, deflate and snappy, with a cap on what comes out.

Everything else that Avro names (zstandard, bzip2, xz) no survey uses: such a file is rejected.
"""

import zlib
from enum import StrEnum

import cramjam
import deflate

from stream_vae.errors import Reason, RejectedAlertError

_CRC_BYTES = 4  # Avro puts a big-endian CRC-32 of the plain bytes behind a snappy block
_SNAPPY_MAX_RATIO = 64  # a copy of at most 64 bytes takes at least 2
_ZLIB_CHECKSUM_BYTES = 4  # some writers strip zlib's header and leave (fastavro: three bytes of) its checksum
_DEFLATE_LEVEL = 6


class Codec(StrEnum):
    """The codecs that are read and written."""

    NULL = "null"
    DEFLATE = "deflate"
    SNAPPY = "snappy"


def decompress(codec: Codec, data: bytes | memoryview, max_bytes: int) -> bytes | memoryview:
    """Decompress one block.

    Parameters
    ----------
    codec : Codec
        How it is compressed.
    data : bytes or memoryview
        The block.
    max_bytes : int
        Cap; nothing beyond it is ever allocated.

    Returns
    -------
    bytes or memoryview
        The plain bytes; the input itself for the null codec.

    Raises
    ------
    RejectedAlertError
        CODEC if it does not decompress, TOO_LARGE if it would be larger than the cap.
    """
    if codec is Codec.DEFLATE:
        return _inflate(data, max_bytes)
    if codec is Codec.SNAPPY:
        return _unsnap(data, max_bytes)
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return data


def compress(codec: Codec, data: bytes) -> bytes:
    """Compress one block.

    Parameters
    ----------
    codec : Codec
        How.
    data : bytes
        The plain bytes.

    Returns
    -------
    bytes
        The block.
    """
    if codec is Codec.DEFLATE:
        return bytes(deflate.deflate_compress(data, _DEFLATE_LEVEL))
    if codec is Codec.SNAPPY:
        return bytes(cramjam.snappy.compress_raw(data)) + zlib.crc32(data).to_bytes(_CRC_BYTES, "big")
    return data


def _inflate(data: bytes | memoryview, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)  # raw: Avro writes no zlib header
    try:
        plain = inflater.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise _damaged(str(error)) from error
    if len(plain) > max_bytes:
        raise _too_large(max_bytes)
    if not inflater.eof:
        raise _damaged("it ends early")
    if len(inflater.unused_data) > _ZLIB_CHECKSUM_BYTES:
        raise _damaged("bytes behind its end")
    return plain


def _unsnap(data: bytes | memoryview, max_bytes: int) -> bytes:
    block, checksum = bytes(data[:-_CRC_BYTES]), bytes(data[-_CRC_BYTES:])
    try:
        length = cramjam.snappy.decompress_raw_len(block)
        if length > max_bytes:
            raise _too_large(max_bytes)
        if length > _SNAPPY_MAX_RATIO * len(block):
            raise _damaged("it announces more bytes than it can hold")
        plain = bytes(cramjam.snappy.decompress_raw(block))
    except cramjam.DecompressionError as error:
        raise _damaged(str(error)) from error
    if zlib.crc32(plain).to_bytes(_CRC_BYTES, "big") != checksum:
        raise _damaged("its checksum is wrong")
    return plain


def _damaged(what: str) -> RejectedAlertError:
    return RejectedAlertError(f"a block does not decompress: {what}", reason=Reason.CODEC)


def _too_large(max_bytes: int) -> RejectedAlertError:
    return RejectedAlertError(f"the record is larger than {max_bytes} bytes", reason=Reason.TOO_LARGE)
