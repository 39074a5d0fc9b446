"""The field walker: finds where the asked-for fields of a record lie, and decodes nothing else.

`FieldPlan` compiles a writer schema and some paths once (`stream_vae.avro.program`); `walk`
then runs the program over a record's bytes in native code (`stream_vae.avro.kernel`) without
the interpreter's lock.
The bytes are not trusted: every read is checked against their end, every count against
what is left, and depth, steps and items without size are bounded, so that the worst bytes
cost a few milliseconds and no memory.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from stream_vae.avro.kernel import (
    MALFORMED,
    TOO_DEEP,
    TOO_MANY_EMPTY_ITEMS,
    TOO_MANY_STEPS,
    TRUNCATED,
    find_blocks,
    read_longs,
    walk,
    walk_each,
)
from stream_vae.avro.limits import DEFAULT_LIMITS, Limits
from stream_vae.avro.nodes import resolve
from stream_vae.avro.program import assemble, find
from stream_vae.avro.values import Reader, Value, behind_length, content_start_of, read_integer, reader_of
from stream_vae.errors import Reason, RejectedAlertError
from stream_vae.native import Addresses, addresses

Spans = npt.NDArray[np.int64]

_FAULTS = {
    TRUNCATED: (Reason.TRUNCATED, "the bytes end before the record does"),
    MALFORMED: (Reason.MALFORMED, "a length, count, index or number that no encoder writes"),
    TOO_DEEP: (Reason.TOO_LARGE, "data nested too deeply"),
    TOO_MANY_STEPS: (Reason.TOO_LARGE, "a record of too many values"),
    TOO_MANY_EMPTY_ITEMS: (Reason.TOO_LARGE, "arrays of too many items that take no bytes"),
}


class FieldPlan:
    """Where to find some fields in the records of one writer schema.

    Parameters
    ----------
    writer : Mapping
        The writer schema, a record.
    paths : sequence of str
        Fields, with dots through records and nullable records: ``candidate.ra``. Not through arrays.
    limits : Limits
        Bounds on the data.

    Attributes
    ----------
    paths : tuple of str
        As given; the order of the spans.
    missing : tuple of str
        Those that this schema does not have; their spans are always (-1, -1).

    Raises
    ------
    RejectedAlertError
        With reason SCHEMA if the schema is bad.
    ValueError
        If a path is given twice.
    """

    __slots__ = ("_contents", "_readers", "_table", "missing", "paths")

    def __init__(self, writer: Mapping[str, Any], paths: Sequence[str], limits: Limits = DEFAULT_LIMITS) -> None:
        if len(set(paths)) != len(paths):
            raise ValueError("a path is given twice")
        root = resolve(writer, max_depth=limits.max_depth)
        nodes = [find(root, path) for path in paths]
        self.paths = tuple(paths)
        self.missing = tuple(path for path, node in zip(paths, nodes, strict=True) if node is None)
        self._readers: list[Reader | None] = [
            None if node is None else reader_of(node, path) for path, node in zip(paths, nodes, strict=True)
        ]
        self._contents = [
            None if node is None else content_start_of(node, path) for path, node in zip(paths, nodes, strict=True)
        ]
        bounds = (limits.max_depth, limits.max_steps, limits.max_zero_size_items, len(paths))
        self._table = assemble(root, paths, bounds)

    @classmethod
    def of_top_level(cls, writer: Mapping[str, Any], limits: Limits = DEFAULT_LIMITS) -> Self:
        """Plan for every field of the record at the top.

        Parameters
        ----------
        writer : Mapping
            The writer schema, a record.
        limits : Limits
            Bounds on the data.

        Returns
        -------
        FieldPlan
            Its paths are the fields' names, in order.

        Raises
        ------
        RejectedAlertError
            With reason SCHEMA if the schema is bad.
        """
        return cls(writer, tuple(resolve(writer, max_depth=limits.max_depth).fields), limits)

    def walk(self, body: bytes | memoryview) -> npt.NDArray[np.int64]:
        """Walk over a record.

        Parameters
        ----------
        body : bytes or memoryview
            The record's Avro binary, all of it and nothing else.

        Returns
        -------
        ndarray of int64, shape (len(paths), 2)
            First byte of each field's value and the byte behind it. The index of a union's branch
            is not part of the value. (-1, -1) where the value or a record around it is null, or
            the schema lacks the field.

        Raises
        ------
        RejectedAlertError
            TRUNCATED, MALFORMED, TOO_LARGE or TRAILING_BYTES.
        """
        data = np.frombuffer(body, np.uint8)
        if data.flags.writeable:  # one compiled version serves all
            data.flags.writeable = False
        spans = np.empty((len(self.paths), 2), np.int64)
        end = walk(data, self._table, spans)
        if end != data.size:
            raise fault(end, data.size)
        return spans

    def walk_each(self, addresses: Addresses, lengths: npt.NDArray[np.int64]) -> tuple[Spans, npt.NDArray[np.int64]]:
        """Walk over the records of a batch in one call.

        Parameters
        ----------
        addresses : ndarray of uintp, shape (n,)
            Where each record lies; the caller keeps them there.
        lengths : ndarray of int64, shape (n,)
            Their bytes.

        Returns
        -------
        spans : ndarray of int64, shape (n, len(paths), 2)
            As `walk` gives them.
        ends : ndarray of int64, shape (n,)
            Where a record's walk ended: its spans are good if that is its length, and else `fault` tells what it is.
        """
        spans = np.empty((len(addresses), len(self.paths), 2), np.int64)
        ends = np.empty(len(addresses), np.int64)
        walk_each(addresses, lengths, self._table, spans, ends)
        return spans, ends

    def is_integer(self, index: int) -> bool:
        """Tell whether a path's values are an int or long, or null; then `integers` may read them.

        Parameters
        ----------
        index : int
            Which of the paths.

        Returns
        -------
        bool
            False for a path that the schema lacks.
        """
        return self._readers[index] is read_integer

    def is_bytes(self, index: int) -> bool:
        """Tell whether a path's values are bytes or a string, or null: a length and as many bytes.

        Parameters
        ----------
        index : int
            Which of the paths.

        Returns
        -------
        bool
            False for a path that the schema lacks.
        """
        return self._contents[index] is behind_length

    def integers(self, addresses: Addresses, spans: Spans, index: int) -> list[int | None]:
        """Read one integer field of each record of a batch.

        Parameters
        ----------
        addresses : ndarray of uintp, shape (n,)
            As for `walk_each`.
        spans : ndarray of int64, shape (n, len(paths), 2)
            What `walk_each` gave.
        index : int
            Which of the paths: one that `is_integer`.

        Returns
        -------
        list of int or None
            None where the span is (-1, -1).
        """
        starts = np.ascontiguousarray(spans[:, index, 0])
        out = np.zeros(len(addresses), np.int64)
        read_longs(addresses, starts, np.ascontiguousarray(spans[:, index, 1]), out)
        found: list[int | None] = [*out.tolist()]
        for row in np.flatnonzero(starts < 0).tolist():
            found[row] = None
        return found

    def value(self, body: bytes | memoryview, spans: npt.NDArray[np.int64], index: int) -> Value:
        """Read one field that is a single value, or an array of float or double.

        Parameters
        ----------
        body : bytes or memoryview
            The record that was walked.
        spans : ndarray of int64, shape (len(paths), 2)
            What `walk` gave for it.
        index : int
            Which of the paths.

        Returns
        -------
        bool, int, float, str, bytes, ndarray or None
            None where the span is (-1, -1); an enum's symbol as str. Logical types as what they
            are stored as. Arrays have shape (items,) and the native byte order.

        Raises
        ------
        RejectedAlertError
            MALFORMED if a string is not UTF-8, SCHEMA if the field is no single value.
        """
        reader = self._readers[index]
        start = spans.item(index, 0)
        if reader is None or start < 0:
            return None
        return reader(body, start, spans.item(index, 1))

    def view(self, body: bytes | memoryview, spans: npt.NDArray[np.int64], index: int) -> memoryview | None:
        """Give the content of a field of type bytes, string or fixed without a copy.

        Parameters
        ----------
        body : bytes or memoryview
            The record that was walked.
        spans : ndarray of int64, shape (len(paths), 2)
            What `walk` gave for it.
        index : int
            Which of the paths; its type may be nullable.

        Returns
        -------
        memoryview or None
            The bytes behind the length; None where the span is (-1, -1).

        Raises
        ------
        RejectedAlertError
            With reason SCHEMA if the field is of another type.
        """
        find_content = self._contents[index]
        start = spans.item(index, 0)
        if find_content is None or start < 0:
            return None
        return memoryview(body)[find_content(body, start) : spans.item(index, 1)]


def warm_up() -> None:
    """Compile the walker, or load it from numba's cache, before the first alert comes.

    Takes seconds the first time, a fraction of one later.
    """
    plan = FieldPlan({"type": "record", "name": "warm_up", "fields": [{"name": "x", "type": "int"}]}, ["x"])
    plan.walk(b"\x00")
    records = [b"\x00"]
    where, sizes = addresses(records), np.ones(1, np.int64)
    spans, _ = plan.walk_each(where, sizes)
    plan.integers(where, spans, 0)
    find_blocks(where, sizes, where, sizes, np.empty(1, np.int64), np.empty((1, 2), np.int64))


def fault(end: int, size: int) -> RejectedAlertError:
    """Say what is wrong with a record.

    Parameters
    ----------
    end : int
        What the walk gave.
    size : int
        The record's bytes.

    Returns
    -------
    RejectedAlertError
        TRUNCATED, MALFORMED, TOO_LARGE or TRAILING_BYTES.
    """
    if end >= 0:
        return RejectedAlertError(f"{size - end} bytes behind the record", reason=Reason.TRAILING_BYTES)
    reason, text = _FAULTS[end]
    return RejectedAlertError(text, reason=reason)
