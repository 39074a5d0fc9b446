"""Reading single values from a record's bytes, once the walker has found their spans.

A reader takes the bytes and a span. The span of a value in a union begins behind the
branch's index, which is the byte before it (the walker accepts no longer index).
Logical types are left as what they are stored as: timestamps as int, decimals as bytes.
"""

import struct
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from stream_vae.avro.binary import read_long
from stream_vae.avro.kernel import NARROW_UNION
from stream_vae.avro.nodes import Kind, Node
from stream_vae.errors import Reason, RejectedAlertError

Value: TypeAlias = "bool | int | float | str | bytes | npt.NDArray[np.float32] | npt.NDArray[np.float64] | None"
Body: TypeAlias = bytes | memoryview
Reader: TypeAlias = Callable[[Body, int, int], Value]

_FLOAT = struct.Struct("<f")
_DOUBLE = struct.Struct("<d")
_ITEM_TYPES: dict[Kind, np.dtype[Any]] = {Kind.FLOAT: np.dtype("<f4"), Kind.DOUBLE: np.dtype("<f8")}


def reader_of(node: Node, path: str) -> Reader:
    """Make the reader for a type.

    Parameters
    ----------
    node : Node
        The field's type.
    path : str
        The field's path, for errors.

    Returns
    -------
    callable
        ``reader(body, start, end)`` gives the value; for a type that is no single value it
        raises `RejectedAlertError` with reason SCHEMA.
    """
    if node.kind is Kind.UNION:
        return _union_reader(node, path)
    if node.kind in _SIMPLE:
        return _SIMPLE[node.kind]
    if node.kind is Kind.ENUM:
        return _enum_reader(node.symbols)
    if node.kind is Kind.ARRAY and node.children[0].kind in _ITEM_TYPES:
        return _array_reader(_ITEM_TYPES[node.children[0].kind])
    return _refuse(node.kind, path)


def content_start_of(node: Node, path: str) -> Callable[[Body, int], int]:
    """Make the function that finds where the content of a bytes, string or fixed begins.

    Parameters
    ----------
    node : Node
        The field's type.
    path : str
        The field's path, for errors.

    Returns
    -------
    callable
        ``find(body, start)`` gives the index of the first byte behind the length, if there is
        one; for any other type it raises `RejectedAlertError` with reason SCHEMA.
    """
    branches = node.children if node.kind is Kind.UNION else [node]
    kinds = {child.kind for child in branches} - {Kind.NULL}
    if kinds and kinds <= {Kind.BYTES, Kind.STRING}:
        return behind_length
    if kinds == {Kind.FIXED}:
        return lambda _body, start: start

    def refuse(_body: Body, _start: int) -> int:
        raise RejectedAlertError(f"{path!r} is not bytes", reason=Reason.SCHEMA)

    return refuse


def behind_length(body: Body, start: int) -> int:
    """Find the content of bytes or a string.

    Parameters
    ----------
    body : bytes or memoryview
        The record, which was walked.
    start : int
        First byte of the value, its length.

    Returns
    -------
    int
        The first byte behind that.
    """
    while body[start] > 0x7F:
        start += 1
    return start + 1


def _union_reader(node: Node, path: str) -> Reader:
    branches = [child for child in node.children if child.kind is not Kind.NULL]
    if len(branches) == 1:
        return reader_of(branches[0], path)
    if len(node.children) > NARROW_UNION:
        return _refuse(node.kind, path)
    readers = [reader_of(child, path) for child in node.children]
    return lambda body, start, end: readers[body[start - 1] >> 1](body, start, end)


def _enum_reader(symbols: tuple[str, ...]) -> Reader:
    return lambda body, start, _end: symbols[read_long(body, start)[0]]


def _array_reader(dtype: np.dtype[Any]) -> Reader:
    def read(body: Body, start: int, _end: int) -> Value:
        parts = []
        while True:
            count, start = read_long(body, start)
            if count == 0:
                break
            if count < 0:
                count = -count
                _, start = read_long(body, start)
            parts.append(np.frombuffer(body, dtype, count, start))
            start += count * dtype.itemsize
        native = dtype.newbyteorder("=")
        return np.concatenate(parts).astype(native) if parts else np.empty(0, native)

    return read


def _refuse(kind: Kind, path: str) -> Reader:
    def read(_body: Body, _start: int, _end: int) -> Value:
        raise RejectedAlertError(f"{path!r} is of type {kind.value}, not a single value", reason=Reason.SCHEMA)

    return read


def read_integer(body: Body, start: int, end: int) -> int:
    """Read an int or long; the reader of both.

    Parameters
    ----------
    body : bytes or memoryview
        The record.
    start, end : int
        First byte of the value and the one behind it.

    Returns
    -------
    int
        The value.
    """
    del end
    return read_long(body, start)[0]


def _read_float(body: Body, start: int, _end: int) -> float:
    value: float = _FLOAT.unpack_from(body, start)[0]
    return value


def _read_double(body: Body, start: int, _end: int) -> float:
    value: float = _DOUBLE.unpack_from(body, start)[0]
    return value


def _read_boolean(body: Body, start: int, _end: int) -> bool:
    return body[start] != 0


def _read_bytes(body: Body, start: int, end: int) -> bytes:
    return bytes(body[behind_length(body, start) : end])


def _read_string(body: Body, start: int, end: int) -> str:
    try:
        return str(body[behind_length(body, start) : end], "utf-8")
    except UnicodeDecodeError as error:
        raise RejectedAlertError(f"a string at byte {start} is not UTF-8", reason=Reason.MALFORMED) from error


_SIMPLE: dict[Kind, Reader] = {
    Kind.BOOLEAN: _read_boolean,
    Kind.INT: read_integer,
    Kind.LONG: read_integer,
    Kind.FLOAT: _read_float,
    Kind.DOUBLE: _read_double,
    Kind.BYTES: _read_bytes,
    Kind.STRING: _read_string,
    Kind.FIXED: lambda body, start, end: bytes(body[start:end]),
}
