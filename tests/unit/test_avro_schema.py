"""Schemas from outside: the bad ones are rejected as such, the sloppy ones mended; all are told apart by content."""

import copy
import io
import json
import time

import fastavro
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from stream_vae.avro.framing import FrameReader, Framing
from stream_vae.avro.limits import Limits
from stream_vae.avro.nodes import contains_itself, resolve
from stream_vae.avro.schema import LruCache, WriterSchema, append_field, mend, to_json
from stream_vae.avro.walker import FieldPlan
from stream_vae.errors import Reason, RejectedAlertError

from avro_cases import cases, encode

INT_RECORD = '{"type": "record", "name": "R", "fields": [{"name": "x", "type": "int"}]}'


def record(*fields, name="R", **extra):
    return {"type": "record", "name": name, "fields": [{"name": n, "type": t} for n, t in fields], **extra}


def _nested(depth):
    schema = "int"
    for n in range(depth):
        schema = record(("x", schema), name=f"R{n}")
    return schema


ENUM = {"type": "enum", "name": "E", "symbols": ["A"]}
HOSTILE = {
    "empty": b"",
    "not JSON": b"{",
    "not UTF-8": b'{"type": "\xff"}',
    "null": b"null",
    "a number": b"17",
    "a huge number": b"1" * 10_000,
    "a string": b'"int"',
    "an unknown string": b'"nothing"',
    "a list": b"[]",
    "a union at the top": f'["null", {INT_RECORD}]'.encode(),
    "an object without type": b"{}",
    "brackets 100,000 deep": b"[" * 100_000,
    "objects 1000 deep": b'{"type":' * 1000 + b'"int"' + b"}" * 1000,
    "arrays 1000 deep": b'{"type":"array","items":' * 1000 + b'"int"' + b"}" * 1000,
    "records 1000 deep": json.dumps(_nested(200)).encode(),
    "type is a number": b'{"type": 3, "name": "R", "fields": []}',
    "type is a list in itself": b'{"type": [[]], "name": "R", "fields": []}',
    "type is an object": b'{"type": {"a": 1}, "name": "R", "fields": []}',
    "no name": b'{"type": "record", "fields": []}',
    "name is a number": b'{"type": "record", "name": 1, "fields": []}',
    "name is empty": b'{"type": "record", "name": "", "fields": []}',
    "namespace is a number": b'{"type": "record", "name": "R", "namespace": 4, "fields": []}',
    "fields is an object": b'{"type": "record", "name": "R", "fields": {"a": 1}}',
    "fields is null": b'{"type": "record", "name": "R", "fields": null}',
    "a field is a string": b'{"type": "record", "name": "R", "fields": ["x"]}',
    "a field without name": b'{"type": "record", "name": "R", "fields": [{"type": "int"}]}',
    "a field without type": b'{"type": "record", "name": "R", "fields": [{"name": "x"}]}',
    "a field's name is a list": b'{"type": "record", "name": "R", "fields": [{"name": [], "type": "int"}]}',
    "two fields of one name": json.dumps(record(("x", "int"), ("x", "long"))).encode(),
    "an unknown type": json.dumps(record(("x", "Nothing"))).encode(),
    "a type before its definition": json.dumps(record(("x", "E"), ("y", ENUM))).encode(),
    "a type of another namespace": json.dumps(
        record(("x", {**ENUM, "namespace": "a"}), ("y", "b.E"), namespace="b")
    ).encode(),
    "a name defined twice": json.dumps(record(("x", ENUM), ("y", ENUM))).encode(),
    "a name of its own within": json.dumps(record(("x", record(("y", "int"))))).encode(),
    "a name of a primitive": json.dumps(record(("x", record(name="long")))).encode(),
    "a record in itself": json.dumps(record(("x", "R"))).encode(),
    "two records in each other": json.dumps(record(("x", record(("y", "R"), name="S")))).encode(),
    "a record in a union of itself": json.dumps(record(("x", ["R"]))).encode(),
    "an endless branch": json.dumps(record(("x", ["null", record(("y", "S"), name="S")]))).encode(),
    "an empty union": json.dumps(record(("x", []))).encode(),
    "a union in a union": json.dumps(record(("x", ["null", ["int", "null"]]))).encode(),
    "a union of a number": json.dumps(record(("x", ["null", 3]))).encode(),
    "an array without items": json.dumps(record(("x", {"type": "array"}))).encode(),
    "a map without values": json.dumps(record(("x", {"type": "map"}))).encode(),
    "an enum without symbols": json.dumps(record(("x", {"type": "enum", "name": "E"}))).encode(),
    "an enum of numbers": json.dumps(record(("x", {**ENUM, "symbols": [1, 2]}))).encode(),
    "an enum of objects": json.dumps(record(("x", {**ENUM, "symbols": [{}]}))).encode(),
    "an enum of no symbols": json.dumps(record(("x", {**ENUM, "symbols": []}))).encode(),
    "an enum of one symbol twice": json.dumps(record(("x", {**ENUM, "symbols": ["A", "A"]}))).encode(),
    "a fixed without size": json.dumps(record(("x", {"type": "fixed", "name": "F"}))).encode(),
    "a fixed of negative size": json.dumps(record(("x", {"type": "fixed", "name": "F", "size": -1}))).encode(),
    "a fixed of 2**60 bytes": json.dumps(record(("x", {"type": "fixed", "name": "F", "size": 2**60}))).encode(),
    "a fixed of true bytes": json.dumps(record(("x", {"type": "fixed", "name": "F", "size": True}))).encode(),
    "a fixed of a text": json.dumps(record(("x", {"type": "fixed", "name": "F", "size": "4"}))).encode(),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_schema_is_rejected_as_a_schema(what):
    with pytest.raises(RejectedAlertError) as caught:
        WriterSchema.parse(HOSTILE[what])
    assert caught.value.reason is Reason.SCHEMA
    assert len(str(caught.value)) < 400


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**40)
    | st.floats()
    | st.sampled_from(["int", "record", "array", "map", "enum", "fixed", "R", "x", "A.b", ""]),
    lambda part: (
        st.lists(part, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "name", "fields", "items", "values", "symbols", "size", "namespace", "default"]),
            part,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=400, deadline=None)
@given(_JSON, _JSON)
def test_any_json_is_a_schema_or_is_rejected_as_one(whole, part):
    for candidate in (whole, record(("x", part))):
        try:
            writer = WriterSchema.parse(json.dumps(candidate))
        except RejectedAlertError as error:
            reason: Reason | None = error.reason
        else:
            reason = None
            FieldPlan(writer.parsed, ["x", "x.x"])
        assert reason in {None, Reason.SCHEMA}


def test_a_schema_longer_than_allowed_is_too_large():
    with pytest.raises(RejectedAlertError) as caught:
        WriterSchema.parse(INT_RECORD, Limits(max_header_bytes=20))
    assert caught.value.reason is Reason.TOO_LARGE


def test_a_megabyte_of_schema_is_judged_in_a_second():
    fields = [(f"f{n}", {**ENUM, "name": f"E{n}"}) for n in range(9000)]
    text = json.dumps(record(*fields))
    begun = time.process_time()
    WriterSchema.parse(text)
    assert time.process_time() - begun < 2


# --- names and sizes


def test_names_are_resolved_in_their_namespaces():
    schema = record(
        ("a", {**ENUM, "namespace": "other"}),
        ("b", {**ENUM, "name": "E"}),
        ("c", "E"),
        ("d", "other.E"),
        ("e", {**ENUM, "name": "full.name.E", "namespace": "ignored"}),
        ("f", "full.name.E"),
        namespace="home",
    )
    root = resolve(schema)
    assert root.name == "home.R"
    assert [node.name for node in root.fields.values()] == ["other.E", "home.E", "home.E", "other.E"] + [
        "full.name.E"
    ] * 2


def test_least_sizes_bound_what_values_take():
    root = resolve(
        record(
            ("null", "null"),
            ("float", "float"),
            ("pair", record(("a", "double"), ("b", ["null", "double"]), name="Pair")),
            ("empty", record(("n", "null"), ("f", {"type": "fixed", "name": "F", "size": 0}), name="Empty")),
            ("recursive", record(("next", ["null", "List"]), ("n", "int"), name="List")),
        )
    )
    assert [node.least_bytes for node in root.fields.values()] == [0, 4, 9, 0, 2]
    assert root.least_bytes == 15


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(cases())
def test_no_record_is_shorter_than_its_least_size(case):
    assert len(encode(case.schema, case.record)) >= resolve(case.schema).least_bytes


# --- mending


def _field(kind, default):
    return {"type": "record", "name": "R", "fields": [{"name": "x", "type": kind, "default": default}]}


REFUSED_DEFAULTS = [
    ("int", None),
    ("double", None),
    ("string", 3),
    ("boolean", 0),
    ("null", 0),
    ("float", "much"),
    (["int", "string"], None),
    ({"type": "array", "items": "int"}, None),
    ({"type": "map", "values": "int"}, []),
    (ENUM, 5),
    ({"type": "fixed", "name": "F", "size": 2}, 0),
    (record(("y", "int"), name="S"), None),
    ({"type": "long", "logicalType": "timestamp-micros"}, None),
    ("double", float("nan")),
]


@pytest.mark.parametrize(("kind", "default"), REFUSED_DEFAULTS)
def test_a_default_that_fastavro_refuses_is_stripped(kind, default):
    schema = _field(kind, default)
    before = copy.deepcopy(schema)
    mended = mend(schema)
    assert "default" not in mended["fields"][0]
    assert repr(schema) == repr(before)
    fastavro.parse_schema(mended)


KEPT_DEFAULTS = [
    ("int", 0),
    ("double", 0),
    ("double", -999.0),
    (["null", "float"], None),
    (["float", "null"], None),
    (["null", "int"], 3),
    ("string", ""),
    (["null", ENUM], "A"),
    ({"type": "array", "items": "int"}, []),
    (["null", record(("y", "int"), name="S")], None),
]


@pytest.mark.parametrize(("kind", "default"), KEPT_DEFAULTS)
def test_a_default_that_fastavro_takes_is_kept(kind, default):
    schema = _field(kind, default)
    fastavro.parse_schema(copy.deepcopy(schema))
    assert mend(schema) == schema


@pytest.mark.parametrize("kind", [{"type": {"type": "int"}}, {"type": ["null", "int"]}, {"type": "double"}])
def test_a_type_wrapped_for_no_reason_is_unwrapped_or_kept_readable(kind):
    mended = mend(_field(kind, 0) if kind != {"type": ["null", "int"]} else _field(kind, None))
    fastavro.parse_schema(mended)
    assert "default" in mended["fields"][0]


def test_a_reference_wrapped_in_an_object_is_unwrapped():
    mended = mend(record(("a", ENUM), ("b", {"type": "E"})))
    assert mended["fields"][1]["type"] == "E"
    fastavro.parse_schema(mended)


@pytest.mark.parametrize("bad", [{"precision": 0}, {"precision": 3, "scale": 4}, {"precision": 90}, {"scale": -1}, {}])
def test_a_bad_decimal_becomes_plain_bytes(bad):
    kind = {"type": "fixed", "name": "F", "size": 4, "logicalType": "decimal", **bad}
    mended = mend(record(("x", kind)))
    assert mended["fields"][0]["type"] == {"type": "fixed", "name": "F", "size": 4}
    fastavro.parse_schema(mended)


def test_nested_illegal_defaults_are_found():
    schema = record(("a", {"type": "array", "items": ["null", _field("int", None)]}), name="Top")
    writer = WriterSchema.parse(json.dumps(schema))
    fastavro.parse_schema(writer.parsed)
    assert writer.decode(encode(writer.parsed, {"a": [{"x": 4}]})) == {"a": [{"x": 4}]}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(cases())
def test_mending_a_sound_schema_changes_nothing(case):
    assert mend(case.schema) == case.schema


# --- appending


APPENDED = {"name": "extra", "type": ["null", record(("y", "float"), name="E.x")], "default": None}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(cases(), st.none() | st.floats(width=32, allow_nan=False))
def test_the_bytes_of_an_appended_field_follow_those_of_the_record(case, value):
    assume(not contains_itself(resolve(case.schema)))
    schema = append_field(case.schema, APPENDED)
    extra = None if value is None else {"y": value}
    body = encode(case.schema, case.record)
    appended = encode(APPENDED["type"], extra)
    assert encode(schema, {**case.record, "extra": extra}) == body + appended


def test_a_field_or_type_of_a_taken_name_cannot_be_appended():
    taken = [record(("extra", "int")), record(("z", record(("y", "float"), name="E.x")))]
    for schema in taken:
        with pytest.raises(RejectedAlertError) as caught:
            append_field(schema, APPENDED)
        assert caught.value.reason is Reason.SCHEMA


@pytest.mark.parametrize("kind", [["null", "R"], {"type": "array", "items": record(("r", ["null", "R"]), name="S")}])
def test_nothing_can_be_appended_to_a_record_that_contains_itself(kind):
    with pytest.raises(RejectedAlertError, match="contains itself") as caught:
        append_field(record(("x", kind)), APPENDED)
    assert caught.value.reason is Reason.SCHEMA


def test_a_schema_parsed_by_fastavro_can_be_extended_and_written():
    schema = append_field(fastavro.parse_schema(record(("x", "int"))), APPENDED)
    assert json.loads(to_json(schema))["fields"][-1] == APPENDED


def test_a_schema_with_nan_is_no_json():
    with pytest.raises(RejectedAlertError) as caught:
        to_json({"type": "record", "name": "R", "fields": [], "x": float("nan")})
    assert caught.value.reason is Reason.SCHEMA


# --- identity and caching


def test_writer_schemas_are_told_apart_by_their_text():
    one, same, other = (WriterSchema.parse(text) for text in (INT_RECORD, INT_RECORD.encode(), INT_RECORD + " "))
    assert one == same
    assert len({one, same, other}) == 2
    assert one.json == INT_RECORD
    assert one != INT_RECORD


def test_decoding_refuses_junk_and_short_bodies():
    writer = WriterSchema.parse(INT_RECORD)
    assert writer.decode(memoryview(b"\x04")) == {"x": 2}
    for body, reason in ((b"", Reason.MALFORMED), (b"\x04\x00", Reason.TRAILING_BYTES)):
        with pytest.raises(RejectedAlertError) as caught:
            writer.decode(body)
        assert caught.value.reason is reason


def test_the_cache_forgets_what_was_used_longest_ago():
    cache = LruCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    assert cache.put("c", 3) == 3
    assert (cache.get("a"), cache.get("b"), cache.get("c"), len(cache)) == (1, None, 3, 2)


def test_the_schemas_that_a_reader_keeps_are_bounded():
    reader = FrameReader(framing=Framing.OCF, limits=Limits(schema_cache_entries=4))
    for n in range(30):
        out = io.BytesIO()
        fastavro.writer(out, record((f"x{n}", "int")), [{f"x{n}": n}])
        assert reader.open(out.getvalue()).writer.parsed["fields"][0]["name"] == f"x{n}"
    assert len(reader._by_text) == 4
    assert len(reader._recent) <= 8
