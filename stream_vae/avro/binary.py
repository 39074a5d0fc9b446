"""Avro's numbers in Python, for the few bytes around a record; the record itself is the walker's."""

from stream_vae.errors import Reason, RejectedAlertError

_MAX_VARINT_BYTES = 10  # 64 bits, seven a byte


def read_long(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Read one zigzag varint.

    Parameters
    ----------
    data : bytes or memoryview
        Where it is.
    at : int
        Index of its first byte.

    Returns
    -------
    value : int
        The number.
    end : int
        Index of the byte behind it.

    Raises
    ------
    RejectedAlertError
        TRUNCATED if the data end first, MALFORMED if it is longer than a long.
    """
    raw = shift = 0
    for byte in data[at : at + _MAX_VARINT_BYTES]:
        raw |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if raw >> 64:
                break
            return (raw >> 1) ^ -(raw & 1), at + shift // 7
    if shift == 7 * _MAX_VARINT_BYTES:
        raise RejectedAlertError(f"the number at byte {at} is longer than a long", reason=Reason.MALFORMED)
    raise RejectedAlertError(f"the bytes end in the number at byte {at}", reason=Reason.TRUNCATED)


def write_long(value: int) -> bytes:
    """Write one zigzag varint.

    Parameters
    ----------
    value : int
        A long.

    Returns
    -------
    bytes
        One to ten bytes.
    """
    raw = (value << 1) ^ (value >> 63)
    out = bytearray()
    while raw > 0x7F:
        out.append(raw & 0x7F | 0x80)
        raw >>= 7
    out.append(raw)
    return bytes(out)


def write_bytes(value: bytes) -> bytes:
    """Write a length and the bytes.

    Parameters
    ----------
    value : bytes
        The bytes (UTF-8 for a string).

    Returns
    -------
    bytes
        Their Avro encoding.
    """
    return write_long(len(value)) + value


def read_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    """Read a length and the bytes.

    Parameters
    ----------
    data : bytes
        Where they are.
    at : int
        Index of the length's first byte.

    Returns
    -------
    value : bytes
        A copy of the bytes.
    end : int
        Index of the byte behind them.

    Raises
    ------
    RejectedAlertError
        TRUNCATED if they run beyond the data, MALFORMED if the length is negative.
    """
    length, start = read_long(data, at)
    if length < 0:
        raise RejectedAlertError(f"the length at byte {at} is negative", reason=Reason.MALFORMED)
    if length > len(data) - start:
        raise RejectedAlertError(f"{length} bytes are announced at byte {at}, beyond the end", reason=Reason.TRUNCATED)
    return data[start : start + length], start + length
