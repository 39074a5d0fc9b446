"""The machine that walks over a record: its operations, and its loop in native code.

A program is a table of numbers: the bounds, then rows of four (operation, a, b, slot), in
blocks that end with RETURN. A row with slot -k stands for k equal ones whose spans nobody
wants. `stream_vae.avro.program` writes programs, `stream_vae.avro.walker` runs them.

Operations and loop are in one file because numba keeps compiled code by that file's content:
apart, new numbers could meet old code.
"""

from typing import Any, TypeAlias

import numpy as np

from stream_vae.native import compiled, view

Bytes: TypeAlias = Any
"""An array of uint8; what it holds is a number to the machine, which mypy would tell from int."""
Longs: TypeAlias = Any
"""An array of int64."""

RETURN = 0
"""Back to the caller, or to the next item of an array."""
FIXED = 1
"""Skip a bytes."""
VARINT = 2
"""Skip an int or long."""
BYTES = 3
"""Skip a length and as many bytes."""
ENUM = 4
"""Skip the index of one of a symbols."""
OPT_FIXED = 5
"""A union of null and FIXED a; the byte b stands for null."""
OPT_VARINT = 6
"""A union of null and VARINT; the byte b stands for null."""
OPT_BYTES = 7
"""A union of null and BYTES; the byte b stands for null."""
UNION = 8
"""One of b branches; their blocks are listed from index a of the table on."""
CALL = 9
"""Run the block at index a of the table."""
ARRAY = 10
"""Items by the block at index a of the table, of at least b bytes each."""
ARRAY_FIXED = 11
"""Items of a bytes each, possibly 0."""
MARK_START = 12
"""A value with the row's slot starts here."""
MARK_END = 13
"""It ends here, unless it was null."""

NULL_BRANCH = -1
"""In a union's list: the branch is null."""
EMPTY_BRANCH = -2
"""In a union's list: a value that takes no bytes, but is one."""

NARROW_UNION = 64
"""Branches of a union whose index must be one byte, as encoders write it: then a value's branch is
known by the byte before it."""

HEADER = 4
"""Numbers before the first row: the walker's bounds."""
ROW = 4
"""Numbers in a row."""

# What a walk gives instead of the end of the record.
TRUNCATED = -1
MALFORMED = -2
TOO_DEEP = -3
TOO_MANY_STEPS = -4
TOO_MANY_EMPTY_ITEMS = -5

SYNC_BYTES = 16
"""Of an Avro file's marker."""
_LAST_VARINT_SHIFT = 63  # the tenth byte of a long holds one bit


@compiled
def _long(body: Bytes, at: int) -> tuple[int, int]:
    """Read a zigzag varint; gives the number and the next index, or a fault instead of the index."""
    raw = 0
    shift = 0
    while at < body.size:
        byte: Any = np.int64(body[np.uintp(at)])
        at += 1
        raw |= (byte & 0x7F) << shift
        if byte < 0x80:
            if shift == _LAST_VARINT_SHIFT and byte > 1:
                return raw, MALFORMED
            return ((raw >> 1) & 0x7FFFFFFFFFFFFFFF) ^ -(raw & 1), at
        shift += 7
        if shift > _LAST_VARINT_SHIFT:
            return raw, MALFORMED
    return raw, TRUNCATED


@compiled
def _skip_long(body: Bytes, at: int) -> int:
    """Step over a varint; gives the next index, or a fault."""
    if at < body.size and body[np.uintp(at)] < 0x80:
        return at + 1
    return _long(body, at)[1]


@compiled
def _skip_bytes(body: Bytes, at: int) -> int:
    """Step over a length and as many bytes; gives the next index, or a fault."""
    length, at = _long(body, at)
    if at < 0:
        return at
    if length < 0:
        return MALFORMED
    if length > body.size - at:
        return TRUNCATED
    return at + length


@compiled
def _optional(body: Bytes, at: int, null: int) -> tuple[bool, int]:
    """Read a nullable type's branch; gives whether there is a value, and the next index or a fault."""
    if at >= body.size:
        return False, TRUNCATED
    byte: Any = np.int64(body[np.uintp(at)])
    if byte & ~2:  # the zigzag of 0 or 1
        return False, MALFORMED
    return byte != null, at + 1


@compiled
def _skip_optional_fixed(body: Bytes, at: int, width: int, null: int, count: int) -> int:
    """Step over `count` nullable values of one size; gives the next index, or a fault."""
    if count <= (body.size - at) // (1 + width):
        # They fit whatever is null: no bounds to check, and nothing that a CPU could guess wrongly.
        wrong = 0
        for _ in range(count):
            byte: Any = np.int64(body[np.uintp(at)])
            wrong |= byte
            at += 1 + (((byte ^ null) & 2) >> 1) * width
        return MALFORMED if wrong & ~2 else at
    for _ in range(count):
        present, at = _optional(body, at, null)
        if at < 0:
            return at
        if present:
            if width > body.size - at:
                return TRUNCATED
            at += width
    return at


@compiled
def _block_of_items(body: Bytes, at: int) -> tuple[int, int, int]:
    """Read the head of an array's block.

    Gives the items, the index where they must end (-1: not said), and the next index or a fault.
    """
    count, at = _long(body, at)
    if at < 0 or count >= 0:
        return count, -1, at
    length, at = _long(body, at)
    if at < 0:
        return count, -1, at
    if length < 0 or -count < 0:  # the least long has no opposite
        return count, -1, MALFORMED
    if length > body.size - at:
        return count, -1, TRUNCATED
    return -count, at + length, at


@compiled
def walk(body: Bytes, table: Longs, spans: Longs) -> int:  # noqa: C901, PLR0911, PLR0912, PLR0915 - one machine
    """Run a program over a record.

    Parameters
    ----------
    body : ndarray
        (bytes,) uint8, the record.
    table : ndarray
        (length,) int64, the program.
    spans : ndarray
        (paths, 2) int64, overwritten with where each path's value starts and ends; -1 where it is null.

    Returns
    -------
    int
        The record's end, or a fault (negative).
    """
    max_depth: int = table[0]
    steps: int = table[1]
    empties: int = table[2]
    size: int = body.size
    spans[:] = -1
    # One frame for each open call or array: the row to go on from behind it, the block of the array's
    # items (0 for a call), the items left in this block, where the block must end, an item's least size.
    frames = np.empty((max_depth, 5), np.int64)
    depth = 0
    at = 0
    pc = HEADER
    while True:
        operation = table[np.uintp(pc)]
        a = table[np.uintp(pc + 1)]
        b = table[np.uintp(pc + 2)]
        slot = table[np.uintp(pc + 3)]
        pc += ROW
        repeat = 1 if slot >= 0 else -slot
        steps -= repeat
        if steps < 0:
            return TOO_MANY_STEPS
        start = at

        if operation == OPT_FIXED:
            if slot < 0:
                at = _skip_optional_fixed(body, at, a, b, repeat)
                if at < 0:
                    return at
                continue
            present, at = _optional(body, at, b)
            if at < 0:
                return at
            if not present:
                continue
            if a > size - at:
                return TRUNCATED
            start = at
            at += a
        elif operation in (OPT_VARINT, OPT_BYTES):
            present = False
            for _ in range(repeat):
                present, at = _optional(body, at, b)
                if at < 0:
                    return at
                start = at
                if present:
                    at = _skip_long(body, at) if operation == OPT_VARINT else _skip_bytes(body, at)
                    if at < 0:
                        return at
            if not present:
                continue
        elif operation == VARINT:
            for _ in range(repeat):
                at = _skip_long(body, at)
                if at < 0:
                    return at
        elif operation == BYTES:
            for _ in range(repeat):
                at = _skip_bytes(body, at)
                if at < 0:
                    return at
        elif operation == FIXED:
            if a > size - at:
                return TRUNCATED
            at += a
        elif operation == ENUM:
            index, at = _long(body, at)
            if at < 0:
                return at
            if index < 0 or index >= a:
                return MALFORMED
        elif operation == MARK_START:
            spans[slot, 0] = at
            continue
        elif operation == MARK_END:
            if spans[slot, 0] >= 0:
                spans[slot, 1] = at
            continue
        elif operation == ARRAY_FIXED:
            while True:
                count, limit, at = _block_of_items(body, at)
                if at < 0:
                    return at
                if count == 0:
                    break
                if a == 0:
                    empties -= min(count, empties + 1)
                    if empties < 0:
                        return TOO_MANY_EMPTY_ITEMS
                elif count > (size - at) // a:
                    return TRUNCATED
                at += count * a
                if limit >= 0 and at != limit:
                    return MALFORMED
                steps -= 1
                if steps < 0:
                    return TOO_MANY_STEPS
            continue
        elif operation in (CALL, UNION):
            target = a
            if operation == UNION:
                index, at = _long(body, at)
                if at < 0:
                    return at
                if index < 0 or index >= b or (b <= NARROW_UNION and at != start + 1):
                    return MALFORMED
                target = table[np.uintp(a + index)]
                if slot >= 0 and target != NULL_BRANCH:
                    spans[slot, 0] = at
                if target in (NULL_BRANCH, EMPTY_BRANCH):
                    continue
            if depth == max_depth:
                return TOO_DEEP
            frames[depth, 0] = pc
            frames[depth, 1] = 0
            depth += 1
            pc = target
            continue
        else:  # RETURN or ARRAY
            if operation == ARRAY:
                if depth == max_depth:
                    return TOO_DEEP
                frames[depth, 0] = pc
                frames[depth, 1] = a
                frames[depth, 4] = b
                depth += 1
            elif depth == 0:
                return at
            elif frames[depth - 1, 1] == 0:
                depth -= 1
                pc = frames[depth, 0]
                continue
            else:
                frames[depth - 1, 2] -= 1
                if frames[depth - 1, 2] > 0:
                    pc = frames[depth - 1, 1]
                    continue
                if frames[depth - 1, 3] >= 0 and frames[depth - 1, 3] != at:
                    return MALFORMED
            count, limit, at = _block_of_items(body, at)
            if at < 0:
                return at
            if count > (size - at) // frames[depth - 1, 4]:
                return TRUNCATED
            if count == 0:
                depth -= 1
                pc = frames[depth, 0]
            else:
                frames[depth - 1, 2] = count
                frames[depth - 1, 3] = limit
                pc = frames[depth - 1, 1]
            continue

        if slot >= 0:
            spans[slot, 0] = start
            spans[slot, 1] = at


@compiled
def walk_each(addresses: Longs, lengths: Longs, table: Longs, spans: Longs, ends: Longs) -> None:
    """Run a program over the records of a batch.

    Parameters
    ----------
    addresses : ndarray
        (n,) uintp, where each record lies in memory.
    lengths : ndarray
        (n,) int64, its bytes.
    table : ndarray
        (length,) int64, the program.
    spans : ndarray
        (n, paths, 2) int64, overwritten as `walk` does.
    ends : ndarray
        (n,) int64, overwritten with what `walk` gives.
    """
    for n in range(len(addresses)):
        ends[n] = walk(view(addresses[n], lengths[n]), table, spans[n])


@compiled
def read_longs(addresses: Longs, starts: Longs, stops: Longs, out: Longs) -> None:
    """Read one integer of each record of a batch, where the walk found it.

    Parameters
    ----------
    addresses : ndarray
        (n,) uintp, where each record lies in memory.
    starts, stops : ndarray
        (n,) int64, the span; a start below 0 is left alone.
    out : ndarray
        (n,) int64, overwritten.
    """
    for n in range(len(addresses)):
        if starts[n] >= 0:
            out[n] = _long(view(addresses[n], stops[n]), starts[n])[0]


@compiled
def find_blocks(addresses: Longs, lengths: Longs, prefixes: Longs, sizes: Longs, which: Longs, blocks: Longs) -> None:
    """Open Avro files of one block of one record, whose headers are known.

    Parameters
    ----------
    addresses, lengths : ndarray
        (n,) uintp and int64, the packets.
    prefixes, sizes : ndarray
        (k,) uintp and int64, known headers up to the sync marker.
    which : ndarray
        (n,) int64, overwritten with the number of the header; -1 where anything is not as it should be.
    blocks : ndarray
        (n, 2) int64, overwritten with the record's first byte and the one behind it.
    """
    for n in range(len(addresses)):
        which[n] = -1
        packet = view(addresses[n], lengths[n])
        for k in range(len(prefixes)):
            head = sizes[k]
            if lengths[n] < head + 2 * SYNC_BYTES + 2 or not _same(packet, 0, view(prefixes[k], head), 0, head):
                continue
            count, at = _long(packet, head + SYNC_BYTES)
            if at < 0 or count != 1:
                break
            size, at = _long(packet, at)
            # Subtracted and not added: a sum could be beyond what the number holds.
            if at < 0 or size < 0 or size != lengths[n] - SYNC_BYTES - at:
                break
            if _same(packet, head, packet, at + size, SYNC_BYTES):
                which[n], blocks[n, 0], blocks[n, 1] = k, at, at + size
            break


@compiled
def _same(one: Bytes, at: int, other: Bytes, place: int, count: int) -> bool:
    """Tell whether `count` bytes are the same; 64 at a time, which become vector instructions."""
    done = 0
    while done + 64 <= count:
        differing = np.uint8(0)
        for i in range(64):
            differing |= one[np.uintp(at + done + i)] ^ other[np.uintp(place + done + i)]
        if differing:
            return False
        done += 64
    differing = np.uint8(0)
    for i in range(done, count):
        differing |= one[np.uintp(at + i)] ^ other[np.uintp(place + i)]
    return not differing
