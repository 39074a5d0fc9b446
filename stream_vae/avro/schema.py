"""Writer schemas: parsed once, cached by content, mended, and given one more field.

Schemas are never told apart by a version field inside the alert: ZTF's "3.3" stands for
nine different ones in real data. What counts is the header's bytes or the registry's id.
"""

import hashlib
import io
import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Self, TypeVar

import fastavro

from stream_vae.avro.limits import DEFAULT_LIMITS, Limits
from stream_vae.avro.nodes import PRIMITIVES, contains_itself, resolve, schema_error
from stream_vae.errors import Reason, RejectedAlertError

K = TypeVar("K")
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """A bounded mapping that forgets what was used longest ago.

    Parameters
    ----------
    entries : int
        How many are kept.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._kept: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: K) -> V | None:
        """Look up a key and mark it as used.

        Parameters
        ----------
        key : hashable
            What was put.

        Returns
        -------
        object or None
            The value, None if it is not (or no longer) here.
        """
        value = self._kept.get(key)
        if value is not None:
            self._kept.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> V:
        """Keep a value, and drop the oldest if there are too many.

        Parameters
        ----------
        key : hashable
            Under which `get` finds it.
        value : object
            Anything but None.

        Returns
        -------
        object
            The value.
        """
        self._kept[key] = value
        self._kept.move_to_end(key)
        if len(self._kept) > self._entries:
            self._kept.popitem(last=False)
        return value


@dataclass(frozen=True, eq=False)
class WriterSchema:
    """The schema that an alert was written with; equal and hashable by its content's digest.

    Parameters
    ----------
    json : str
        The text as it came.
    parsed : dict
        The same as an object, mended so that stock fastavro accepts it. Not to be changed.
    digest : str
        SHA-256 of the text, in hex.
    """

    json: str
    parsed: dict[str, Any]
    digest: str

    @classmethod
    def parse(cls, text: bytes | str, limits: Limits = DEFAULT_LIMITS) -> Self:
        """Parse and check a schema that came from outside.

        Parameters
        ----------
        text : bytes or str
            JSON; bytes are UTF-8.
        limits : Limits
            Bounds on its length and nesting.

        Returns
        -------
        WriterSchema
            Of a record.

        Raises
        ------
        RejectedAlertError
            TOO_LARGE if it is longer than `max_header_bytes`, SCHEMA for all else that is wrong.
        """
        raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)
        if len(raw) > limits.max_header_bytes:
            raise RejectedAlertError(f"a schema of {len(raw)} bytes", reason=Reason.TOO_LARGE)
        try:
            decoded = raw.decode()
            schema = json.loads(decoded)
        except (ValueError, RecursionError) as error:
            raise schema_error(f"not JSON: {error}") from error
        resolve(schema, max_depth=limits.max_depth)
        return cls(json=decoded, parsed=mend(schema), digest=hashlib.sha256(raw).hexdigest())

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, WriterSchema) and self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def _ready(self) -> Any:
        return fastavro.parse_schema(self.parsed)

    def decode(self, body: bytes | memoryview) -> dict[str, Any]:
        """Decode a whole record with fastavro: for tools and tests, a hundred times slower than a walk.

        Parameters
        ----------
        body : bytes or memoryview
            The record's Avro binary.

        Returns
        -------
        dict
            The alert.

        Raises
        ------
        RejectedAlertError
            MALFORMED if fastavro cannot decode it, TRAILING_BYTES if bytes are left.
        """
        stream = io.BytesIO(body)
        try:
            record: dict[str, Any] = fastavro.schemaless_reader(stream, self._ready, None)
        except Exception as error:  # fastavro raises whatever its decoder stumbles on
            raise RejectedAlertError(f"fastavro cannot decode the record: {error!r}") from error
        if stream.tell() != len(body):
            raise RejectedAlertError("bytes behind the record", reason=Reason.TRAILING_BYTES)
        return record


def mend(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Take out of a schema what stock fastavro refuses and the bytes do not depend on.

    Those are defaults of a wrong type (WINTER and TURBO write `"type": "int", "default": null`),
    defaults that are no JSON number (NaN), decimal parameters out of range, and a type wrapped
    in an object for no reason. Default values only serve readers, and these serve none.

    Parameters
    ----------
    schema : Mapping
        A schema that `stream_vae.avro.nodes.resolve` accepts. It is not changed.

    Returns
    -------
    dict
        A copy that shares the parts which were sound.

    Raises
    ------
    RejectedAlertError
        With reason SCHEMA if it is nested without bounds.
    """
    try:
        mended: dict[str, Any] = _mended(schema)
    except RecursionError as error:
        raise schema_error("nested too deeply") from error
    return mended


def append_field(schema: Mapping[str, Any], field: Mapping[str, Any]) -> dict[str, Any]:
    """Give a record schema one more field at its end.

    Avro encodes a record as its fields in order, so a record of the new schema is a record
    of the old one followed by the encoding of this field.

    Parameters
    ----------
    schema : Mapping
        The record.
    field : Mapping
        An Avro field: name, type, default.

    Returns
    -------
    dict
        A new schema that shares the parts of the old one.

    Raises
    ------
    RejectedAlertError
        With reason SCHEMA if the field's name, or that of a type in it, is taken; or if the record
        contains itself, since then the records within would grow as well.
    """
    bare = {key: value for key, value in schema.items() if not key.startswith("__")}  # fastavro's marks
    extended = {**bare, "fields": [*bare["fields"], dict(field)]}
    if contains_itself(resolve(extended)):
        raise schema_error(f"{schema.get('name')!r} contains itself, so no field can be appended to it alone")
    return extended


def to_json(schema: Mapping[str, Any]) -> str:
    """Write a schema as compact JSON.

    Parameters
    ----------
    schema : Mapping
        A schema.

    Returns
    -------
    str
        ASCII only, the keys in the order they have.

    Raises
    ------
    RejectedAlertError
        With reason SCHEMA if it holds a number that JSON does not have.
    """
    try:
        return json.dumps(schema, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise schema_error(f"not JSON: {error}") from error


def _mended(schema: Any) -> Any:  # noqa: PLR0911 - one for each shape of a type
    if isinstance(schema, list):
        return [_mended(branch) for branch in schema]
    if not isinstance(schema, Mapping):
        return schema
    kind = schema.get("type")
    if kind == "record" or kind == "error":  # noqa: PLR1714 - a hostile `kind` may be unhashable
        return {**schema, "fields": [_mended_field(entry) for entry in schema.get("fields", [])]}
    if kind == "array":
        return {**schema, "items": _mended(schema["items"])}
    if kind == "map":
        return {**schema, "values": _mended(schema["values"])}
    if kind == "enum":
        return schema
    if isinstance(kind, str) and (kind == "fixed" or kind in PRIMITIVES):
        return _without_bad_decimal(schema)
    return _mended(kind)  # {"type": {"type": ...}} or {"type": "Name"}


def _mended_field(entry: Mapping[str, Any]) -> dict[str, Any]:
    mended = {**entry, "type": _mended(entry["type"])}
    if "default" in mended and not _default_fits(mended["default"], mended["type"]):
        del mended["default"]
    elif isinstance(mended["type"], Mapping) and mended["type"]["type"] in {"float", "double"} and "default" in mended:
        mended["default"] = float(mended["default"])  # {"type": {"type": "double"}, "default": 0} is refused as well
    if not isinstance(mended.get("aliases", []), list):
        del mended["aliases"]
    return mended


def _without_bad_decimal(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Drop a decimal's parameters where they do not fit: Avro says to ignore such a logical type."""
    if schema.get("logicalType") != "decimal":
        return schema
    precision, scale = schema.get("precision"), schema.get("scale", 0)
    if (
        isinstance(precision, int)
        and isinstance(scale, int)
        and 0 <= scale <= precision
        and 0 < precision <= _most_digits(schema)
    ):
        return schema
    return {key: value for key, value in schema.items() if key not in {"logicalType", "precision", "scale"}}


def _most_digits(schema: Mapping[str, Any]) -> float:
    return math.floor(math.log10(2) * (8 * schema["size"] - 1)) if schema["type"] == "fixed" else math.inf


def _default_fits(default: Any, schema: Any) -> bool:
    """Tell whether fastavro takes this default: of a union, any branch will do for it."""
    if isinstance(schema, list):
        return any(_default_fits(default, branch) for branch in schema)
    if isinstance(default, float) and not math.isfinite(default):
        return False  # Python reads NaN from JSON, no other parser does
    kind = schema["type"] if isinstance(schema, Mapping) else schema
    accepted = _DEFAULT_TYPES.get(kind)
    return accepted is None or isinstance(default, accepted)


# A name of another type is left out: its default is taken as it is, as fastavro does.
_DEFAULT_TYPES: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "int": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "bytes": (str,),
    "string": (str,),
    "fixed": (str,),
    "enum": (str,),
    "array": (list,),
    "map": (dict,),
    "record": (dict,),
    "error": (dict,),
}
