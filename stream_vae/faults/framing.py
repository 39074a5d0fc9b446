"""Faults of a message's framing, schema and record: all of them end in the dead-letter topic.

Only one does not: an alert whose schema has no cutouts is a good alert that cannot be scored.
"""

import json
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import cramjam
import numpy as np

from stream_vae.avro.binary import write_long
from stream_vae.errors import Reason
from stream_vae.faults.bombs import deflated_zeros
from stream_vae.faults.fault import Expected, Fault, Scope, dead_letter, flagged
from stream_vae.faults.unpacking import ID_FIELDS, Unpacked, unpack
from stream_vae.quality import Quality
from stream_vae.sky.packets import ocf_block

_SYNC_BYTES = 16
_MAX_LONG = (1 << 63) - 1
_BOMB_MIB = 100


def _any_bytes(make: Callable[[bytes, np.random.Generator], bytes], expected: Expected) -> Fault:
    return Fault(Scope.BYTES, lambda packet, _, rng: make(packet, rng), expected)


def _parts(make: Callable[[Unpacked, np.random.Generator], bytes], *reasons: Reason, scope: Scope = Scope.OCF) -> Fault:
    def spoil(_: bytes, parts: Unpacked | None, rng: np.random.Generator) -> bytes:
        assert parts is not None, "the scope says that there are"
        return make(parts, rng)

    return Fault(scope, spoil, dead_letter(*reasons))


def _block(parts: Unpacked, *, count: int = 1, size: int | None = None) -> bytes:
    """Write the message with another count or size in its block's header."""
    length = len(parts.body) if size is None else size
    return parts.head() + write_long(count) + write_long(length) + parts.body + parts.sync


def _cut(packet: bytes, rng: np.random.Generator, low: float, high: float) -> bytes:
    """Cut a message off somewhere between two fractions of its length."""
    return packet[: int(len(packet) * rng.uniform(low, high))]


def _random_bytes(_: bytes, rng: np.random.Generator) -> bytes:
    return b"\xa7" + rng.bytes(4095)  # the first byte begins no framing


BYTES_FAULTS: Mapping[str, Fault] = {
    "empty": _any_bytes(lambda _packet, _rng: b"", dead_letter(Reason.EMPTY)),
    "random_bytes": _any_bytes(_random_bytes, dead_letter(Reason.FRAMING)),
    "json_text": _any_bytes(lambda _packet, _rng: b'{"objectId": "ZTF", "candid": 1}', dead_letter(Reason.FRAMING)),
    "unknown_schema_id": _any_bytes(
        lambda packet, _rng: b"\0\x7f\xff\xff\xfe" + packet[5:], dead_letter(Reason.FRAMING, Reason.SCHEMA)
    ),
    "zero_bytes": _any_bytes(
        lambda packet, _rng: bytes(min(len(packet), 4096)), dead_letter(Reason.FRAMING, Reason.SCHEMA)
    ),
}
"""Nothing needs to be known of the message."""


def _bad_sync(parts: Unpacked, _: np.random.Generator) -> bytes:
    return parts.pack()[:-_SYNC_BYTES] + bytes(255 - byte for byte in parts.sync)


def _truncated_deflate(parts: Unpacked, rng: np.random.Generator) -> bytes:
    deflated = zlib.compress(parts.body, wbits=-15)
    return parts.pack(body=deflated[: int(len(deflated) * rng.uniform(0.3, 0.9))], metadata={"avro.codec": b"deflate"})


def _snappy(parts: Unpacked, _: np.random.Generator) -> bytes:
    block = bytes(cramjam.snappy.compress_raw(parts.body))
    wrong = (zlib.crc32(parts.body) ^ 1).to_bytes(4, "big")
    return parts.pack(body=block + wrong, metadata={"avro.codec": b"snappy"})


def _snappy_bomb(parts: Unpacked, rng: np.random.Generator) -> bytes:
    announced = b"\xff\xff\xff\xff\x0f"  # four gigabytes, in snappy's own varint
    return parts.pack(body=announced + rng.bytes(64), metadata={"avro.codec": b"snappy"})


def _deep_data(parts: Unpacked, _: np.random.Generator) -> bytes:
    """A linked list of ten thousand links: a recursive schema is legal."""
    link = {"type": "record", "name": "Link", "fields": [{"name": "next", "type": ["null", "Link"]}]}
    return parts.with_field(link, b"\x02" * 10_000 + b"\0")


def _doubling_records(parts: Unpacked, _: np.random.Generator) -> bytes:
    """Forty records, each of two of the one before: a few lines of schema ask for a million million values."""
    inner: dict[str, Any] = {"type": "record", "name": "R0", "fields": [{"name": "x", "type": "boolean"}]}
    for level in range(1, 41):
        fields = [{"name": "a", "type": inner}, {"name": "b", "type": f"R{level - 1}"}]
        inner = {"type": "record", "name": f"R{level}", "fields": fields}
    return parts.with_field(inner, b"")


def _deep_types(parts: Unpacked, _: np.random.Generator) -> bytes:
    inner: object = "int"
    for _level in range(300):
        inner = {"type": "array", "items": inner}
    return parts.with_field(inner, b"\0")


def _endless_record(parts: Unpacked, _: np.random.Generator) -> bytes:
    endless = {"type": "record", "name": "Endless", "fields": [{"name": "again", "type": "Endless"}]}
    return parts.with_field(endless, b"")


def _metadata_bomb(parts: Unpacked, _: np.random.Generator) -> bytes:
    """Announce a million million entries of metadata."""
    return b"Obj\x01" + write_long(1 << 40) + parts.head()[5:]


def _other_schema(parts: Unpacked, _: np.random.Generator) -> bytes:
    return parts.pack(schema={**parts.schema, "fields": _in_reverse(parts.schema["fields"])})


def _in_reverse(fields: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reverse the fields, all of simple types, so that no named type is used before it is defined."""
    simple = [{"name": field["name"], "type": "long" if field["name"] in ID_FIELDS else "float"} for field in fields]
    return simple[::-1]


def _schema(text: bytes, *reasons: Reason) -> Fault:
    return _parts(lambda parts, _: parts.pack(schema=text), *(reasons or (Reason.SCHEMA,)))


def _without_schema(parts: Unpacked, _: np.random.Generator) -> bytes:
    return parts.pack().replace(b"avro.schema", b"avro.sketch", 1)


def _with_unknown_type(parts: Unpacked, _: np.random.Generator) -> bytes:
    return parts.with_field("no.such.Type", b"\0")


def _with_repeated_field(parts: Unpacked, _: np.random.Generator) -> bytes:
    fields = parts.schema["fields"]
    return parts.pack(schema={**parts.schema, "fields": [*fields, {"name": fields[0]["name"], "type": "null"}]})


_ARRAY_OF_NULLS = {"type": "array", "items": "null"}
_ARRAY_OF_EMPTY = {"type": "array", "items": {"type": "record", "name": "Empty", "fields": []}}
_ENUM = {"type": "enum", "name": "Two", "symbols": ["a", "b"]}
_ANYTHING = (Reason.MALFORMED, Reason.TRUNCATED, Reason.TRAILING_BYTES, Reason.TOO_LARGE)


def _field(field_type: object, value: bytes, *reasons: Reason) -> Fault:
    return _parts(lambda parts, _: parts.with_field(field_type, value), *reasons)


FRAMING_FAULTS: Mapping[str, Fault] = {
    # the container
    "one_byte": _parts(lambda parts, _: parts.pack()[:1], Reason.TRUNCATED, Reason.FRAMING),
    "wrong_magic": _parts(lambda parts, _: b"Obj\x02" + parts.pack()[4:], Reason.FRAMING),
    "truncated_in_header": _parts(lambda parts, rng: _cut(parts.head(), rng, 0.1, 0.9), Reason.TRUNCATED),
    "truncated_in_sync": _parts(lambda parts, _: parts.head()[:-7], Reason.TRUNCATED),
    "truncated_in_block": _parts(
        lambda parts, rng: parts.head() + _cut(ocf_block(parts.body, parts.sync), rng, 0.1, 0.9), Reason.TRUNCATED
    ),
    "truncated_in_last_sync": _parts(lambda parts, _: parts.pack()[:-5], Reason.TRUNCATED),
    "bad_sync": _parts(_bad_sync, Reason.FRAMING),
    "no_block": _parts(lambda parts, _: parts.head(), Reason.MULTIPLE_RECORDS),
    "two_blocks": _parts(lambda parts, _: parts.pack() + ocf_block(parts.body, parts.sync), Reason.MULTIPLE_RECORDS),
    "block_of_no_records": _parts(lambda parts, _: _block(parts, count=0), Reason.MULTIPLE_RECORDS),
    "block_of_two_records": _parts(lambda parts, _: _block(parts, count=2), Reason.MULTIPLE_RECORDS),
    "block_of_minus_one_record": _parts(lambda parts, _: _block(parts, count=-1), Reason.MALFORMED),
    "block_size_negative": _parts(lambda parts, _: _block(parts, size=-5), Reason.MALFORMED),
    "block_size_beyond_the_end": _parts(lambda parts, _: _block(parts, size=_MAX_LONG), Reason.TRUNCATED),
    "block_size_too_small": _parts(lambda parts, _: _block(parts, size=len(parts.body) // 2), Reason.FRAMING),
    "endless_varint": _parts(lambda parts, _: parts.head() + b"\xff" * 64, Reason.MALFORMED),
    "junk_behind_the_block": _parts(lambda parts, rng: parts.pack() + rng.bytes(100), Reason.TRAILING_BYTES),
    "metadata_bomb": _parts(_metadata_bomb, Reason.TOO_LARGE, Reason.TRUNCATED),
    "metadata_of_negative_length": _parts(lambda parts, _: b"Obj\x01\x02\x01" + parts.head()[6:], Reason.MALFORMED),
    # its codec
    "unknown_codec": _parts(lambda parts, _: parts.pack(metadata={"avro.codec": b"zstandard"}), Reason.CODEC),
    "codec_that_was_not_used": _parts(lambda parts, _: parts.pack(metadata={"avro.codec": b"deflate"}), Reason.CODEC),
    "deflate_garbage": _parts(
        lambda parts, rng: parts.pack(body=b"\xff" + rng.bytes(999), metadata={"avro.codec": b"deflate"}), Reason.CODEC
    ),
    "deflate_truncated": _parts(_truncated_deflate, Reason.CODEC),
    "deflate_bomb": _parts(
        lambda parts, _: parts.pack(body=deflated_zeros(_BOMB_MIB), metadata={"avro.codec": b"deflate"}),
        Reason.TOO_LARGE,
    ),
    "snappy_wrong_checksum": _parts(_snappy, Reason.CODEC),
    "snappy_bomb": _parts(_snappy_bomb, Reason.TOO_LARGE, Reason.CODEC),
    # its schema
    "schema_missing": _parts(_without_schema, Reason.SCHEMA),
    "schema_not_json": _schema(b"record alert { string objectId; }"),
    "schema_not_utf8": _schema(b'{"type": "record", "name": "\xff\xfe", "fields": []}'),
    "schema_cut_short": _parts(
        lambda parts, _: parts.pack(schema=json.dumps(parts.schema).encode()[:-20]), Reason.SCHEMA
    ),
    "schema_no_record": _schema(b'"string"'),
    "schema_a_number": _schema(b"42"),
    "schema_fields_no_list": _schema(b'{"type": "record", "name": "alert", "fields": {"candid": "long"}}'),
    "schema_unknown_type": _parts(_with_unknown_type, Reason.SCHEMA),
    "schema_repeated_field": _parts(_with_repeated_field, Reason.SCHEMA),
    "schema_deep_json": _schema(b"[" * 100_000, Reason.SCHEMA, Reason.TOO_LARGE),
    "schema_deep_types": _parts(_deep_types, Reason.SCHEMA, Reason.TOO_LARGE),
    "schema_endless_record": _parts(_endless_record, Reason.SCHEMA, Reason.TOO_LARGE),
    "schema_doubling_records": _parts(_doubling_records, Reason.TOO_LARGE, Reason.SCHEMA, Reason.TRUNCATED),
    "schema_of_another_record": _parts(_other_schema, *_ANYTHING),
    # its record
    "record_cut_short": _parts(
        lambda parts, rng: parts.pack(body=_cut(parts.body, rng, 0.3, 0.95)), Reason.TRUNCATED, Reason.MALFORMED
    ),
    "record_empty": _parts(lambda parts, _: parts.pack(body=b""), Reason.TRUNCATED),
    "record_random": _parts(lambda parts, rng: parts.pack(body=rng.bytes(len(parts.body))), *_ANYTHING),
    "junk_behind_the_record": _parts(
        lambda parts, rng: parts.pack(body=parts.body + rng.bytes(50)), Reason.TRAILING_BYTES
    ),
    "array_of_nulls_bomb": _field(_ARRAY_OF_NULLS, write_long(20_000_000) + b"\0", Reason.TOO_LARGE, Reason.MALFORMED),
    "array_of_empty_records_bomb": _field(
        _ARRAY_OF_EMPTY, write_long(_MAX_LONG) + b"\0", Reason.TOO_LARGE, Reason.MALFORMED
    ),
    "array_longer_than_the_record": _field(
        {"type": "array", "items": "double"}, write_long(1 << 40), Reason.TRUNCATED, Reason.MALFORMED, Reason.TOO_LARGE
    ),
    "array_block_of_wrong_size": _field(
        {"type": "array", "items": "int"},
        write_long(-2) + write_long(50) + b"\x02\x02\0",
        Reason.MALFORMED,
        Reason.TRUNCATED,
    ),
    "map_longer_than_the_record": _field(
        {"type": "map", "values": "null"}, write_long(1 << 40), Reason.TRUNCATED, Reason.MALFORMED, Reason.TOO_LARGE
    ),
    "nested_data_bomb": _parts(_deep_data, Reason.TOO_LARGE),
    "union_branch_out_of_range": _field(["null", "int"], write_long(7) + b"\0", Reason.MALFORMED),
    "union_branch_negative": _field(["null", "int"], write_long(-1), Reason.MALFORMED),
    "enum_index_out_of_range": _field(_ENUM, write_long(2), Reason.MALFORMED),
    "string_of_negative_length": _field("string", write_long(-3) + b"abc", Reason.MALFORMED),
    "string_beyond_the_end": _field("string", write_long(1 << 30) + b"abc", Reason.TRUNCATED, Reason.MALFORMED),
    "fixed_beyond_the_end": _field({"type": "fixed", "name": "Huge", "size": 1 << 30}, b"abc", Reason.TRUNCATED),
    "overlong_varint": _field("long", b"\xff" * 10 + b"\x01", Reason.MALFORMED),
}
"""The message is an Avro file."""


def _retyped_id(parts: Unpacked, new_type: object) -> dict[str, Any]:
    """Give the schema with another type for the id at the top."""
    fields = [
        {"name": field["name"], "type": new_type} if field["name"] == parts.id_field else field
        for field in parts.schema["fields"]
    ]
    return {**parts.schema, "fields": fields}


def _null_id(parts: Unpacked, _: np.random.Generator) -> bytes:
    return parts.with_record({**parts.record, str(parts.id_field): None}, _retyped_id(parts, ["null", "long"]))


def _id_not_utf8(parts: Unpacked, _: np.random.Generator) -> bytes:
    """Write two bytes where the schema says that there is a string."""
    record = {**parts.record, str(parts.id_field): b"\xff\xfe"}
    written = unpack(parts.with_record(record, _retyped_id(parts, "bytes")))
    return parts.pack(schema=_retyped_id(parts, "string"), body=written.body)


def _without(names: Collection[str], parts: Unpacked) -> bytes:
    """Leave fields out of the record and of its schema."""
    schema = {**parts.schema, "fields": [field for field in parts.schema["fields"] if field["name"] not in names]}
    return parts.with_record({name: value for name, value in parts.record.items() if name not in names}, schema)


def _without_cutouts(_: bytes, parts: Unpacked | None, __: np.random.Generator) -> bytes:
    assert parts is not None, "the scope says that there are"
    return _without(parts.cutouts().keys(), parts)


ID_FAULTS: Mapping[str, Fault] = {
    "id_null": _parts(_null_id, Reason.MISSING_ID, scope=Scope.ID),
    "id_not_utf8": _parts(_id_not_utf8, Reason.MALFORMED, scope=Scope.ID),
    "id_not_in_schema": _parts(lambda parts, _: _without(ID_FIELDS, parts), Reason.SCHEMA, scope=Scope.ID),
    "cutouts_not_in_schema": Fault(Scope.PIXELS, _without_cutouts, flagged(Quality.MISSING_CUTOUT)),
}
"""A field at the top of the record is changed or left out."""
