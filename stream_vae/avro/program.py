"""A schema and some field paths, compiled to the table of numbers that the walker runs.

The machine and its operations are `stream_vae.avro.kernel`. Each record type, array item and union branch is a block,
shared by all who refer to it; only along the asked-for paths a record gets a block of its
own, whose rows carry the slots into which spans are written. Equal rows
in a row become one that repeats: alerts have long runs of nullable floats. Types whose values take
no bytes leave no rows, so every block that is called consumes input.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stream_vae.avro.kernel import (
    ARRAY,
    ARRAY_FIXED,
    BYTES,
    CALL,
    EMPTY_BRANCH,
    ENUM,
    FIXED,
    HEADER,
    MARK_END,
    MARK_START,
    NULL_BRANCH,
    OPT_BYTES,
    OPT_FIXED,
    OPT_VARINT,
    RETURN,
    ROW,
    UNION,
    VARINT,
)
from stream_vae.avro.nodes import Kind, Node

_FIXED_BYTES = {Kind.BOOLEAN: 1, Kind.FLOAT: 4, Kind.DOUBLE: 8}
_OPTIONAL = {FIXED: OPT_FIXED, VARINT: OPT_VARINT, BYTES: OPT_BYTES}
_REPEATABLE = {VARINT, BYTES, OPT_FIXED, OPT_VARINT, OPT_BYTES}


@dataclass(slots=True)
class Spot:
    """A place in the tree of asked-for paths.

    Parameters
    ----------
    slot : int
        Where its span goes; -1 if only something within it was asked for.
    within : dict
        The asked-for fields of the record here.
    """

    slot: int = -1
    within: "dict[str, Spot]" = field(default_factory=dict)


def find(root: Node, path: str) -> Node | None:
    """Find the type of a field.

    Parameters
    ----------
    root : Node
        The record at the top.
    path : str
        Names with dots between; through records, and unions with one record among their branches.

    Returns
    -------
    Node or None
        None if the schema has no such field.
    """
    node: Node | None = root
    for name in path.split("."):
        record = None if node is None else record_in(node)
        node = None if record is None else record.fields.get(name)
    return node


def record_in(node: Node) -> Node | None:
    """Give the record that a path goes through.

    Parameters
    ----------
    node : Node
        Any type.

    Returns
    -------
    Node or None
        The node itself, or the only record among a union's branches; None if there is no one such.
    """
    if node.kind is Kind.UNION:
        records = [child for child in node.children if child.kind is Kind.RECORD]
        return records[0] if len(records) == 1 else None
    return node if node.kind is Kind.RECORD else None


def assemble(root: Node, paths: Sequence[str], bounds: Iterable[int]) -> npt.NDArray[np.int64]:
    """Compile a schema.

    Parameters
    ----------
    root : Node
        The record at the top.
    paths : sequence of str
        Fields whose spans are wanted; each is found by `find` or its slot stays untouched.
    bounds : iterable of int
        `HEADER` numbers for the walker.

    Returns
    -------
    ndarray of int64, shape (HEADER + ROW * rows,)
        The program; it starts behind the bounds. It is read-only.
    """
    top = Spot()
    for slot, path in enumerate(paths):
        if find(root, path) is not None:
            spot = top
            for name in path.split("."):
                spot = spot.within.setdefault(name, Spot())
            spot.slot = slot
    rows = _Assembler().run(root, top)
    table = np.concatenate([np.array(list(bounds), np.int64), np.array(rows, np.int64).ravel()])
    table.flags.writeable = False
    return table


class _Assembler:
    """Emits block after block; a call names a block by its number until all have their place."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.blocks: list[tuple[Node, Spot | None, bool]] = []
        self.numbers: dict[tuple[int, int, bool], int] = {}
        self.unions: list[list[int]] = []
        self.start = 0  # first row of the block at hand

    def run(self, root: Node, top: Spot) -> list[list[int]]:
        self.block(root, top)
        places: list[int] = []
        while len(places) < len(self.blocks):
            node, spot, keyed = self.blocks[len(places)]
            self.start = len(self.rows)
            places.append(_place(self.start))
            if keyed:  # the entries of a map: key, value
                self.emit(BYTES)
            if node.kind is Kind.RECORD:
                self.fields(node, spot)
            else:
                self.value(node, None)
            self.emit(RETURN)
        for row in self.rows:
            if row[0] in {CALL, ARRAY}:
                row[1] = places[row[1]]
        return self.rows + self.union_lists(places)

    def union_lists(self, places: list[int]) -> list[list[int]]:
        """Put the lists of branches behind the code, padded to whole rows."""
        lists: list[list[int]] = []
        for row in self.rows:
            if row[0] == UNION:
                branches = self.unions[row[1]]
                targets = [places[number] if number >= 0 else number for number in branches]
                targets += [NULL_BRANCH] * (-len(targets) % ROW)
                row[1] = _place(len(self.rows) + len(lists))
                lists += [targets[at : at + ROW] for at in range(0, len(targets), ROW)]
        return lists

    def emit(self, operation: int, a: int = 0, b: int = 0, slot: int = -1) -> None:
        if slot < 0 and operation in _REPEATABLE and len(self.rows) > self.start:
            last = self.rows[-1]
            if last[:3] == [operation, a, b] and last[3] < 0:
                last[3] -= 1
                return
        self.rows.append([operation, a, b, slot])

    def block(self, node: Node, spot: Spot | None, *, keyed: bool = False) -> int:
        """Give the number of a block, to be emitted if it is new."""
        key = (id(node), id(spot), keyed)  # nodes and spots outlive the assembler
        if key not in self.numbers:
            self.numbers[key] = len(self.blocks)
            self.blocks.append((node, spot, keyed))
        return self.numbers[key]

    def fields(self, record: Node, spot: Spot | None) -> None:
        for name, part in record.fields.items():
            inner = None if spot is None else spot.within.get(name)
            if part.least_bytes > 0 or inner is not None:
                self.value(part, inner)

    def value(self, node: Node, spot: Spot | None) -> None:
        slot = -1 if spot is None else spot.slot
        within = spot if spot is not None and spot.within else None
        leaf = _leaf(node)
        if leaf is not None:
            self.leaf(*leaf, slot)
        elif node.kind is Kind.UNION:
            self.union(node, slot, within)
        elif node.kind is not Kind.NULL:
            if slot >= 0:
                self.emit(MARK_START, slot=slot)
            self.container(node, within)
            if slot >= 0:
                self.emit(MARK_END, slot=slot)

    def leaf(self, operation: int, a: int, slot: int) -> None:
        if operation == FIXED and slot < 0 and len(self.rows) > self.start:
            last = self.rows[-1]
            if last[0] == FIXED and last[3] < 0:
                last[1] += a
                return
        self.emit(operation, a, slot=slot)

    def container(self, node: Node, within: Spot | None) -> None:
        if node.kind is Kind.RECORD:
            self.emit(CALL, self.block(node, within))
            return
        (part,) = node.children
        size = _item_bytes(part)
        if node.kind is Kind.MAP:
            self.emit(ARRAY, self.block(part, None, keyed=True), 1 + part.least_bytes)
        elif size is not None:
            self.emit(ARRAY_FIXED, size)
        else:
            self.emit(ARRAY, self.block(part, None), part.least_bytes)

    def union(self, node: Node, slot: int, within: Spot | None) -> None:
        kinds = [child.kind for child in node.children]
        if len(kinds) == 2 and kinds.count(Kind.NULL) == 1:
            null = kinds.index(Kind.NULL)
            operation, a = _leaf(node.children[1 - null]) or (RETURN, 0)
            if operation in _OPTIONAL:
                self.emit(_OPTIONAL[operation], a, 2 * null, slot)  # a union's index is a zigzag number
                return
        record = record_in(node)
        branches = [self.branch(child, within if child is record else None) for child in node.children]
        self.unions.append(branches)
        self.emit(UNION, len(self.unions) - 1, len(branches), slot)
        if slot >= 0:
            self.emit(MARK_END, slot=slot)

    def branch(self, node: Node, within: Spot | None) -> int:
        if node.kind is Kind.NULL:
            return NULL_BRANCH
        if node.least_bytes == 0 and within is None:
            return EMPTY_BRANCH
        return self.block(node, within)


def _place(row: int) -> int:
    """Give a row's index in the table."""
    return HEADER + ROW * row


def _leaf(node: Node) -> tuple[int, int] | None:
    """Give the operation and its `a` for a type without parts."""
    if node.kind is Kind.FIXED:
        return FIXED, node.size
    if node.kind in _FIXED_BYTES:
        return FIXED, _FIXED_BYTES[node.kind]
    if node.kind in {Kind.INT, Kind.LONG}:
        return VARINT, 0
    if node.kind in {Kind.BYTES, Kind.STRING}:
        return BYTES, 0
    if node.kind is Kind.ENUM:
        return ENUM, len(node.symbols)
    return None


def _item_bytes(node: Node) -> int | None:
    """Give the size of a type whose values all have one size, as far as it is plain to see."""
    if node.least_bytes == 0:
        return 0
    return node.size if node.kind is Kind.FIXED else _FIXED_BYTES.get(node.kind)
