"""An Avro schema's JSON, checked and resolved to a graph of nodes.

The JSON comes from a message's header or a registry, so everything about it is checked
here once: shapes, names, duplicates, nesting, and that a value of it can end at all.
What is wrong becomes `RejectedAlertError(reason=SCHEMA)`; the modules that use the graph
need no checks of their own. Defaults, docs and aliases do not bear on the bytes of a
record and are left to `stream_vae.avro.schema`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from stream_vae.avro.limits import DEFAULT_LIMITS
from stream_vae.errors import Reason, RejectedAlertError


class Kind(StrEnum):
    """The types of Avro; `error` counts as a record."""

    NULL = "null"
    BOOLEAN = "boolean"
    INT = "int"
    LONG = "long"
    FLOAT = "float"
    DOUBLE = "double"
    BYTES = "bytes"
    STRING = "string"
    FIXED = "fixed"
    ENUM = "enum"
    RECORD = "record"
    ARRAY = "array"
    MAP = "map"
    UNION = "union"


PRIMITIVES = {
    kind.value: kind
    for kind in (
        Kind.NULL,
        Kind.BOOLEAN,
        Kind.INT,
        Kind.LONG,
        Kind.FLOAT,
        Kind.DOUBLE,
        Kind.BYTES,
        Kind.STRING,
    )
}

_LEAST_BYTES = {Kind.NULL: 0, Kind.FLOAT: 4, Kind.DOUBLE: 8}
_MAX_FIXED_BYTES = (1 << 31) - 1
_MAX_PARTS_OF_NOTHING = 256  # nulls and empty records inside each other; real schemas have none
_SATURATED = 1 << 40  # nested records can multiply least sizes without end; beyond this the number says nothing


@dataclass(slots=True, eq=False)
class Node:
    """One type of a schema. Recursive types make the graph cyclic, so nodes compare by identity.

    Parameters
    ----------
    kind : Kind
        Which type.
    name : str
        Full name of a record, enum or fixed; empty otherwise.
    size : int
        Bytes of a fixed.
    symbols : tuple of str
        Symbols of an enum.
    fields : dict
        Fields of a record, in order.
    children : list of Node
        Branches of a union; the items of an array; the values of a map.
    least_bytes : int
        No value takes fewer bytes; 0 if and only if every value takes none. Bounds array counts.
    """

    kind: Kind
    name: str = ""
    size: int = 0
    symbols: tuple[str, ...] = ()
    fields: "dict[str, Node]" = field(default_factory=dict)
    children: "list[Node]" = field(default_factory=list)
    least_bytes: int = 1


def resolve(schema: object, *, max_depth: int = DEFAULT_LIMITS.max_depth) -> Node:
    """Check a schema and resolve its names.

    Parameters
    ----------
    schema : object
        The schema as `json.loads` gives it; an alert's is a record, so a mapping.
    max_depth : int
        Deepest nesting of types that is accepted.

    Returns
    -------
    Node
        The record at the top.

    Raises
    ------
    RejectedAlertError
        With reason SCHEMA: a shape, a name or a type that Avro does not have; a name that is
        defined twice or not at all; a type no value of which can end; no record at the top.
    """
    resolver = _Resolver(max_depth)
    root = resolver.node(schema, namespace="", depth=0)
    if root.kind is not Kind.RECORD:
        raise schema_error(f"an alert is a record, this schema is of type {root.kind.value}")
    _check_that_values_end(resolver.records)
    return root


def contains_itself(record: Node) -> bool:
    """Tell whether a record is among the types of its own fields, however deep.

    Parameters
    ----------
    record : Node
        A record.

    Returns
    -------
    bool
        True if a value of it may hold another.
    """
    seen: set[int] = set()
    pending = list(record.fields.values())
    while pending:
        node = pending.pop()
        if node is record:
            return True
        if id(node) not in seen:
            seen.add(id(node))
            pending += [*node.fields.values(), *node.children]
    return False


def schema_error(message: str) -> RejectedAlertError:
    """Make the error for a bad schema.

    Parameters
    ----------
    message : str
        What is wrong with it; cut to a readable length, since it may quote hostile text.

    Returns
    -------
    RejectedAlertError
        To be raised.
    """
    return RejectedAlertError(f"bad Avro schema: {message[:300]}", reason=Reason.SCHEMA)


class _Resolver:
    """Walks the JSON in document order; a name must be defined before it is used."""

    def __init__(self, max_depth: int) -> None:
        self.max_depth = max_depth
        self.names: dict[str, Node] = {}
        self.records: list[Node] = []  # in the order in which they were completed: inner ones first
        self._nothing: dict[int, int] = {}  # parts of the records that take no bytes, by identity
        self._primitives = {
            name: Node(kind, least_bytes=_LEAST_BYTES.get(kind, 1)) for name, kind in PRIMITIVES.items()
        }

    def node(self, schema: object, namespace: str, depth: int) -> Node:
        if depth > self.max_depth:
            raise schema_error(f"types nested deeper than {self.max_depth}")
        if isinstance(schema, str):
            return self._named(schema, namespace)
        if isinstance(schema, list):
            return self._union(schema, namespace, depth)
        if isinstance(schema, Mapping):
            return self._complex(schema, namespace, depth)
        raise schema_error(f"a type is a name, a list or an object, not {type(schema).__name__}")

    def _named(self, name: str, namespace: str) -> Node:
        if name in self._primitives:
            return self._primitives[name]
        full = f"{namespace}.{name}" if namespace and "." not in name else name
        if full not in self.names:
            raise schema_error(f"unknown type {full!r}")
        return self.names[full]

    def _union(self, branches: Sequence[object], namespace: str, depth: int) -> Node:
        if not branches:
            raise schema_error("a union without branches")
        children = [self.node(branch, namespace, depth + 1) for branch in branches]
        if any(child.kind is Kind.UNION for child in children):
            raise schema_error("a union directly within a union")
        return Node(Kind.UNION, children=children)

    def _complex(self, schema: Mapping[str, object], namespace: str, depth: int) -> Node:
        kind = schema.get("type")
        if kind == "record" or kind == "error":  # noqa: PLR1714 - a hostile `kind` may be unhashable
            return self._record(schema, namespace, depth)
        if kind == "array":
            return Node(Kind.ARRAY, children=[self._part(schema, "items", namespace, depth)])
        if kind == "map":
            return Node(Kind.MAP, children=[self._part(schema, "values", namespace, depth)])
        if kind == "enum":
            return self._enum(schema, namespace)
        if kind == "fixed":
            return self._fixed(schema, namespace)
        return self._part(schema, "type", namespace, depth)  # {"type": "int", "logicalType": ...} and the like

    def _part(self, schema: Mapping[str, object], key: str, namespace: str, depth: int) -> Node:
        if key not in schema:
            raise schema_error(f"a type without {key!r}")
        return self.node(schema[key], namespace, depth + 1)

    def _define(self, node: Node, schema: Mapping[str, object], namespace: str) -> str:
        """Name a node; returns the namespace within it."""
        name, space = schema.get("name"), schema.get("namespace", namespace)
        if not isinstance(name, str) or not name:
            raise schema_error(f"a {node.kind.value} without a name")
        if space is not None and not isinstance(space, str):
            raise schema_error(f"the namespace of {name!r} is no string")
        if "." in name:
            space = name.rpartition(".")[0]
        elif space:
            name = f"{space}.{name}"
        if name in self.names or name in PRIMITIVES:
            raise schema_error(f"{name!r} is defined twice")
        node.name = name
        self.names[name] = node
        return space or ""

    def _record(self, schema: Mapping[str, object], namespace: str, depth: int) -> Node:
        record = Node(Kind.RECORD)
        namespace = self._define(record, schema, namespace)
        fields = schema.get("fields", [])
        if not isinstance(fields, list):
            raise schema_error(f"the fields of {record.name!r} are no list")
        for entry in fields:
            name = entry.get("name") if isinstance(entry, Mapping) else None
            if not isinstance(name, str) or not name:
                raise schema_error(f"a field of {record.name!r} is no object with a name")
            if name in record.fields:
                raise schema_error(f"{record.name!r} has two fields {name!r}")
            record.fields[name] = self._part(entry, "type", namespace, depth)
        # A record that refers to itself, or to one that is still open, takes at least a byte or never
        # ends, so the 1 that an open record counts for is a true lower bound.
        record.least_bytes = min(sum(part.least_bytes for part in record.fields.values()), _SATURATED)
        if record.least_bytes == 0:
            self._count_nothing(record)
        self.records.append(record)
        return record

    def _count_nothing(self, record: Node) -> None:
        """Refuse a record of no bytes with countless parts: our walk skips it, a reader of our output would not."""
        parts = 1 + sum(self._nothing.get(id(part), 1) for part in record.fields.values())
        if parts > _MAX_PARTS_OF_NOTHING:
            raise schema_error(f"{record.name!r} takes no bytes and has {parts} parts")
        self._nothing[id(record)] = parts

    def _enum(self, schema: Mapping[str, object], namespace: str) -> Node:
        symbols = schema.get("symbols")
        if not isinstance(symbols, list) or not symbols or not all(isinstance(symbol, str) for symbol in symbols):
            raise schema_error("the symbols of an enum are no list of strings")
        if len(set(symbols)) != len(symbols):
            raise schema_error("an enum has a symbol twice")
        node = Node(Kind.ENUM, symbols=tuple(symbols))
        self._define(node, schema, namespace)
        return node

    def _fixed(self, schema: Mapping[str, object], namespace: str) -> Node:
        size = schema.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_FIXED_BYTES:
            raise schema_error("the size of a fixed is no length")
        node = Node(Kind.FIXED, size=size, least_bytes=size)
        self._define(node, schema, namespace)
        return node


def _check_that_values_end(records: Sequence[Node]) -> None:
    """Refuse a record that contains itself with no union, array or map between."""
    ends: set[int] = set()
    pending = list(records)
    while pending:
        # A record refers to those before it in this order or to one of the (at most max_depth) open
        # ones around it, so the passes are few.
        left = [record for record in pending if not _all_end(record, ends)]
        if len(left) == len(pending):
            raise schema_error(f"no value of {left[0].name!r} can end: it always contains another")
        pending = left


def _all_end(record: Node, ends: set[int]) -> bool:
    """Tell whether every field's values can end, and remember it."""
    if not all(_ends(part, ends) for part in record.fields.values()):
        return False
    ends.add(id(record))
    return True


def _ends(node: Node, ends: set[int]) -> bool:
    if node.kind is Kind.RECORD:
        return id(node) in ends
    if node.kind is Kind.UNION:
        return any(_ends(child, ends) for child in node.children)
    return True
