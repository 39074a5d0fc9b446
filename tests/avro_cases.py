"""Random Avro schemas with random records, and what fastavro makes of them, for the tests of `stream_vae.avro`."""

import io
import math
from typing import Any, NamedTuple

import fastavro
from hypothesis import strategies as st

PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
LOGICAL = (
    {"type": "long", "logicalType": "timestamp-micros"},
    {"type": "int", "logicalType": "date"},
    {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
)
_MAX_DATA_DEPTH = 4
_MAX_PATH_DOTS = 2
_FLOAT32 = st.floats(width=32, allow_nan=True)


class Case(NamedTuple):
    """A writer schema and a record of it."""

    schema: dict[str, Any]
    record: dict[str, Any]


class _SchemaMaker:
    """Draws types; remembers the named ones so that they are referred to again, from within themselves too."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.definitions: dict[str, Any] = {}
        self.finished: list[str] = []  # may be used anywhere
        self.open: list[str] = []  # may be used where a value can do without

    def type(self, depth: int, *, in_union: bool = False) -> Any:
        kinds = ["primitive", "logical", "enum", "fixed"]
        if depth > 0:
            kinds += ["record", "array", "map"] + ([] if in_union else ["nullable", "nullable", "union"])
        if self.finished:
            kinds.append("reference")
        return getattr(self, self.draw(st.sampled_from(kinds)))(depth)

    def primitive(self, _depth: int) -> Any:
        return self.draw(st.sampled_from(PRIMITIVES))

    def logical(self, _depth: int) -> Any:
        return dict(self.draw(st.sampled_from(LOGICAL)))

    def reference(self, _depth: int) -> Any:
        return self.draw(st.sampled_from(self.finished))

    def enum(self, _depth: int) -> Any:
        symbols = [f"S{n}" for n in range(self.draw(st.integers(1, 70)))]
        return self._done({"type": "enum", "name": self._name(), "symbols": symbols})

    def fixed(self, _depth: int) -> Any:
        return self._done({"type": "fixed", "name": self._name(), "size": self.draw(st.integers(0, 9))})

    def array(self, depth: int) -> Any:
        return {"type": "array", "items": self._part(depth)}

    def map(self, depth: int) -> Any:
        return {"type": "map", "values": self._part(depth)}

    def _part(self, depth: int) -> Any:
        if self.open and self.draw(st.booleans()):
            return self.draw(st.sampled_from(self.open))
        return self.type(depth - 1)

    def nullable(self, depth: int) -> Any:
        part = self._part(depth)
        if isinstance(part, list) or part == "null":
            return part
        return ["null", part] if self.draw(st.booleans()) else [part, "null"]

    def union(self, depth: int) -> Any:
        # fastavro tells branches by the datum's type: one of each family is enough for it to find the right one.
        families = [["null"], ["boolean"], ["int", "long"], ["float", "double"], ["bytes"], ["string"]]
        branches: list[Any] = [self.draw(st.sampled_from(family)) for family in families]
        if depth > 0:
            branches.append(self.record(depth - 1))
        return self.draw(st.permutations(branches))[: self.draw(st.integers(1, len(branches)))]

    def record(self, depth: int) -> Any:
        name = self._name()
        schema: dict[str, Any] = {"type": "record", "name": name, "fields": []}
        self.definitions[name] = schema
        self.open.append(name)
        for n in range(self.draw(st.integers(0, 4))):
            schema["fields"].append({"name": f"f{n}", "type": self.type(depth - 1)})
        self.open.remove(name)
        self.finished.append(name)
        return schema

    def _done(self, schema: dict[str, Any]) -> dict[str, Any]:
        self.definitions[schema["name"]] = schema
        self.finished.append(schema["name"])
        return schema

    def _name(self) -> str:
        return f"T{len(self.definitions)}"


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a record schema and a record."""
    maker = _SchemaMaker(draw)
    schema = maker.record(draw(st.integers(1, 4)))
    # A type defined within a union's dropped branch would be unknown to later references.
    used = _defined_in(schema)
    _mend_references(schema, maker.definitions, used)
    return Case(schema, _datum(draw, schema, maker.definitions, 0))


def _defined_in(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_defined_in, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    own = {schema["name"]} if "name" in schema else set()
    parts = [field["type"] for field in schema.get("fields", [])]
    parts += [schema[key] for key in ("items", "values") if key in schema]
    return own.union(*map(_defined_in, parts)) if parts else own


def _mend_references(schema: Any, definitions: dict[str, Any], used: set[str]) -> None:
    """Replace references to types that were dropped by an int."""

    def mended(part: Any) -> Any:
        return "int" if isinstance(part, str) and part in definitions and part not in used else part

    if isinstance(schema, list):
        for at, branch in enumerate(schema):
            schema[at] = mended(branch)
            _mend_references(branch, definitions, used)
    elif isinstance(schema, dict):
        for field in schema.get("fields", []):
            field["type"] = mended(field["type"])
            _mend_references(field["type"], definitions, used)
        for key in ("items", "values"):
            if key in schema:
                schema[key] = mended(schema[key])
                _mend_references(schema[key], definitions, used)


def _datum(draw: st.DrawFn, schema: Any, definitions: dict[str, Any], depth: int) -> Any:  # noqa: PLR0911 - one a kind
    if isinstance(schema, list):
        if depth > _MAX_DATA_DEPTH and "null" in schema:
            return None
        return _datum(draw, draw(st.sampled_from(schema)), definitions, depth + 1)
    if isinstance(schema, str) and schema in definitions:
        schema = definitions[schema]
    kind = schema if isinstance(schema, str) else schema["type"]
    if kind == "record":
        return {field["name"]: _datum(draw, field["type"], definitions, depth + 1) for field in schema["fields"]}
    if kind in {"array", "map"}:
        size = 0 if depth > _MAX_DATA_DEPTH else draw(st.integers(0, 3))
        part = schema["items" if kind == "array" else "values"]
        items = [_datum(draw, part, definitions, depth + 1) for _ in range(size)]
        return items if kind == "array" else {f"k{n}": item for n, item in enumerate(items)}
    if kind == "enum":
        return draw(st.sampled_from(schema["symbols"]))
    if kind == "fixed":
        return draw(st.binary(min_size=schema["size"], max_size=schema["size"]))
    return draw(_SCALARS[kind])


_SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "null": st.none(),
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": _FLOAT32,
    "double": st.floats(),
    "bytes": st.binary(max_size=200),
    "string": st.text(max_size=80),
}


def encode(schema: Any, value: Any) -> bytes:
    """Encode one value with fastavro."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, value)
    return out.getvalue()


def decode(schema: Any, body: bytes) -> Any:
    """Decode one value with fastavro, logical types as what they are stored as; all bytes must be used."""
    stream = io.BytesIO(body)
    value = fastavro.schemaless_reader(stream, without_logical_types(schema), None)
    assert stream.tell() == len(body)
    return value


def without_logical_types(schema: Any) -> Any:
    """Take the logical types out of a schema."""
    if isinstance(schema, list):
        return [without_logical_types(branch) for branch in schema]
    if isinstance(schema, dict):
        kept = {key: value for key, value in schema.items() if key != "logicalType"}
        return {
            key: without_logical_types(value) if key in {"type", "items", "values", "fields"} else value
            for key, value in kept.items()
        }
    return schema


def definitions_in(schema: Any, found: dict[str, Any] | None = None) -> dict[str, Any]:
    """Give every named type of a schema by its (bare) name."""
    found = {} if found is None else found
    if isinstance(schema, list):
        for branch in schema:
            definitions_in(branch, found)
    elif isinstance(schema, dict):
        if "name" in schema and schema["type"] in {"record", "enum", "fixed"}:
            found[schema["name"]] = schema
        for field in schema.get("fields", []):
            definitions_in(field["type"], found)
        for key in ("items", "values"):
            definitions_in(schema.get(key), found)
    return found


def standalone(schema: Any, definitions: dict[str, Any], seen: set[str] | None = None) -> Any:
    """Write out each named type where it is first used, so that a part of a schema stands alone."""
    seen = set() if seen is None else seen
    if isinstance(schema, list):
        return [standalone(branch, definitions, seen) for branch in schema]
    if isinstance(schema, str):
        return (
            schema
            if schema not in definitions or schema in seen
            else standalone(definitions[schema], definitions, seen)
        )
    if schema.get("name") in seen:
        return schema["name"]
    if "name" in schema:
        seen.add(schema["name"])
    whole = dict(schema)
    for key in ("items", "values"):
        if key in whole:
            whole[key] = standalone(whole[key], definitions, seen)
    if "fields" in whole:
        whole["fields"] = [{**field, "type": standalone(field["type"], definitions, seen)} for field in whole["fields"]]
    return whole


def expected_spans(schema: Any, record: Any) -> dict[str, tuple[int, int]]:
    """Give the span of each field, nested ones too, from the lengths of fastavro's encodings of the parts."""
    definitions = definitions_in(schema)
    spans: dict[str, tuple[int, int]] = {}

    def measure(within: Any, values: Any, at: int, prefix: str) -> None:
        for field in within["fields"]:
            path, value, kind = prefix + field["name"], values[field["name"]], field["type"]
            kind = definitions.get(kind, kind) if isinstance(kind, str) else kind
            length = len(encode(standalone(field["type"], definitions), value))
            start = at + 1 if isinstance(kind, list) else at
            spans[path] = (-1, -1) if value is None else (start, at + length)
            inner = _record_of(kind, definitions)
            if inner is not None and isinstance(value, dict) and path.count(".") < _MAX_PATH_DOTS:
                measure(inner, value, start, f"{path}.")
            at += length

    measure(schema, record, 0, "")
    return spans


def paths_of(schema: Any) -> list[str]:
    """Give the path of each field that `expected_spans` could measure."""
    definitions = definitions_in(schema)

    def below(record: Any, prefix: str) -> list[str]:
        paths = []
        for field in record["fields"]:
            path, kind = prefix + field["name"], field["type"]
            inner = _record_of(definitions.get(kind, kind) if isinstance(kind, str) else kind, definitions)
            paths.append(path)
            if inner is not None and path.count(".") < _MAX_PATH_DOTS:
                paths += below(inner, f"{path}.")
        return paths

    return below(schema, "")


def _record_of(kind: Any, definitions: dict[str, Any]) -> Any:
    branches = [
        definitions.get(b, b) if isinstance(b, str) else b for b in (kind if isinstance(kind, list) else [kind])
    ]
    records = [branch for branch in branches if isinstance(branch, dict) and branch["type"] == "record"]
    maps = [branch for branch in branches if isinstance(branch, dict) and branch["type"] == "map"]
    return records[0] if len(records) == 1 and not maps else None


def look_up(record: Any, path: str) -> Any:
    """Follow a dotted path through a decoded record."""
    for name in path.split("."):
        record = record[name] if isinstance(record, dict) else None
    return record


def same(left: Any, right: Any) -> bool:
    """Compare values, NaN with NaN as equal."""
    if isinstance(left, float) and isinstance(right, float):
        return left == right or (math.isnan(left) and math.isnan(right))
    return type(left) is type(right) and left == right
