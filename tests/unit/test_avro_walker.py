"""The walker finds what fastavro wrote, and nothing that it is fed makes it do worse than say no."""

import contextlib
import ctypes
import json
import mmap
import struct
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stream_vae import native
from stream_vae.avro.binary import read_long, write_bytes, write_long
from stream_vae.avro.limits import Limits
from stream_vae.avro.walker import FieldPlan, warm_up
from stream_vae.errors import Reason, RejectedAlertError

from avro_cases import Case, cases, decode, encode, expected_spans, look_up, paths_of, same

LONGEST = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    warm_up()


def record(*fields, name="R"):
    return {"type": "record", "name": name, "fields": [{"name": n, "type": t} for n, t in fields]}


def reason_of(plan, body):
    with pytest.raises(RejectedAlertError) as caught:
        plan.walk(body)
    return caught.value.reason


def plans_of(schema):
    """Plans that look for everything, for the top, and for nothing: rows without a slot are run in other ways."""
    return [FieldPlan(schema, paths_of(schema)), FieldPlan.of_top_level(schema), FieldPlan(schema, [])]


class GuardedMemory:
    """Bytes that end where readable memory ends: to read one byte further kills the process."""

    SIZE = 1 << 20

    def __init__(self):
        self._memory = mmap.mmap(-1, self.SIZE + mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(address + self.SIZE), ctypes.c_size_t(mmap.PAGESIZE), 0) != 0:
            pytest.skip("this system does not protect memory")

    def hold(self, body):
        view = memoryview(self._memory)[self.SIZE - len(body) : self.SIZE]
        view[:] = body
        return view


@pytest.fixture(scope="module")
def guarded():
    return GuardedMemory()


# --- the walker against fastavro


@LONGEST
@given(cases())
def test_spans_are_the_boundaries_of_fastavros_encoding(case: Case):
    body = encode(case.schema, case.record)
    paths = paths_of(case.schema)
    plan = FieldPlan(case.schema, paths)
    spans = plan.walk(body)
    expected = expected_spans(case.schema, case.record)
    assert plan.missing == ()
    assert {path: tuple(span) for path, span in zip(paths, spans.tolist(), strict=True)} == {
        path: expected.get(path, (-1, -1)) for path in paths
    }


@LONGEST
@given(cases())
def test_values_are_those_that_fastavro_decodes(case: Case):
    body = encode(case.schema, case.record)
    decoded = decode(case.schema, body)
    plan = FieldPlan(case.schema, paths_of(case.schema))
    spans = plan.walk(body)
    for index, path in enumerate(plan.paths):
        expected = look_up(decoded, path)
        if isinstance(expected, dict | list):
            continue
        assert same(plan.value(body, spans, index), expected), path


@LONGEST
@given(st.binary(max_size=300), st.text(max_size=99), st.booleans())
def test_a_view_is_the_content_without_its_length(content, text, optional):
    kinds = {"b": "bytes", "s": "string", "f": {"type": "fixed", "name": "F", "size": len(content)}}
    schema = record(*((name, ["null", kind] if optional else kind) for name, kind in kinds.items()))
    body = encode(schema, {"b": content, "s": text, "f": content})
    plan = FieldPlan(schema, ["b", "s", "f"])
    spans = plan.walk(body)
    assert [plan.view(body, spans, index) for index in range(3)] == [content, text.encode(), content]


def test_a_view_of_null_is_none():
    plan = FieldPlan(record(("b", ["null", "bytes"])), ["b", "absent"])
    spans = plan.walk(b"\x00")
    assert plan.view(b"\x00", spans, 0) is None
    assert plan.view(b"\x00", spans, 1) is None


@pytest.mark.parametrize("kind", ["long", "double", ["bytes", "long"], {"type": "array", "items": "bytes"}])
def test_a_view_of_what_is_not_bytes_is_rejected(kind):
    schema = record(("x", kind))
    body = encode(schema, {"x": [] if isinstance(kind, dict) else 1})
    plan = FieldPlan(schema, ["x"])
    spans = plan.walk(body)
    with pytest.raises(RejectedAlertError) as caught:
        plan.view(body, spans, 0)
    assert caught.value.reason is Reason.SCHEMA


@LONGEST
@given(cases())
def test_top_level_spans_cover_the_body(case: Case):
    body = encode(case.schema, case.record)
    plan = FieldPlan.of_top_level(case.schema)
    spans = plan.walk(body)
    assert plan.paths == tuple(field["name"] for field in case.schema["fields"])
    covered = 0
    for (start, end), field in zip(spans.tolist(), case.schema["fields"], strict=True):
        branch = 1 if isinstance(field["type"], list) else 0
        assert start in {covered + branch, -1}
        covered = end if start >= 0 else covered + branch
    assert covered == len(body)


@LONGEST
@given(cases())
def test_every_truncation_is_noticed(case: Case):
    body = encode(case.schema, case.record)
    for plan in plans_of(case.schema):
        assert plan.walk(body).shape == (len(plan.paths), 2)
        for length in range(len(body)):
            assert reason_of(plan, body[:length]) is Reason.TRUNCATED


@LONGEST
@given(cases(), st.binary(min_size=1, max_size=20))
def test_bytes_behind_the_record_are_noticed(case: Case, junk: bytes):
    body = encode(case.schema, case.record)
    assert reason_of(FieldPlan.of_top_level(case.schema), body + junk) is Reason.TRAILING_BYTES


@settings(LONGEST, suppress_health_check=[*LONGEST.suppress_health_check, HealthCheck.function_scoped_fixture])
@given(cases(), st.data())
def test_corrupt_bytes_are_walked_or_rejected_within_their_bounds(guarded, case: Case, data):
    body = bytearray(encode(case.schema, case.record))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(body)))
        kept = data.draw(st.integers(0, 3))
        body[at : at + kept] = data.draw(st.binary(max_size=12))
    for plan in plans_of(case.schema):
        _walk_guarded(guarded, plan, bytes(body))


@settings(LONGEST, suppress_health_check=[*LONGEST.suppress_health_check, HealthCheck.function_scoped_fixture])
@given(cases(), st.binary(max_size=300))
def test_random_bytes_are_walked_or_rejected_within_their_bounds(guarded, case: Case, body: bytes):
    for plan in plans_of(case.schema):
        _walk_guarded(guarded, plan, body)


def _walk_guarded(guarded, plan, body):
    view = guarded.hold(body)
    try:
        spans = plan.walk(view)
    except RejectedAlertError:
        return
    assert ((spans == -1).all(axis=1) | ((spans[:, 0] >= 0) & (spans[:, 0] <= spans[:, 1]))).all()
    assert spans.max(initial=0) <= len(body)
    for index in range(len(plan.paths)):
        with contextlib.suppress(RejectedAlertError):
            plan.value(view, spans, index)


# --- blocks as other encoders write them


@LONGEST
@given(st.lists(st.tuples(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5), st.booleans())))
def test_arrays_in_several_blocks_with_and_without_their_size(blocks):
    body = bytearray()
    for items, sized in blocks:
        content = b"".join(map(write_long, items))
        head = write_long(-len(items)) + write_long(len(content)) if sized else write_long(len(items))
        body += head + content
    body += b"\x00" + b"\x02"
    schema = record(("a", {"type": "array", "items": "long"}), ("x", "int"))
    plan = FieldPlan(schema, ["a", "x"])
    assert plan.walk(bytes(body)).tolist() == [[0, len(body) - 1], [len(body) - 1, len(body)]]
    assert decode(schema, bytes(body))["x"] == 1  # fastavro agrees that this is an array


@pytest.mark.parametrize("error", [-1, 1])
@pytest.mark.parametrize("items", ["long", "float", "null"])
def test_a_block_that_does_not_end_where_it_says_is_malformed(items, error):
    content = {"long": b"\x02\x04", "float": bytes(8), "null": b""}[items]
    size = len(content) + error
    body = write_long(-2) + write_long(size) + content + b"\x00" + bytes(8)
    plan = FieldPlan(record(("a", {"type": "array", "items": items}), ("rest", "double")), ["a"])
    assert reason_of(plan, body) is Reason.MALFORMED


@pytest.mark.parametrize(("kind", "code"), [("float", "f"), ("double", "d")])
def test_an_array_of_floats_in_two_blocks_becomes_one_ndarray(kind, code):
    numbers = [1.5, -2.0, float("nan"), 1e30, 0.0]
    first, second = (struct.pack(f"<{len(part)}{code}", *part) for part in (numbers[:2], numbers[2:]))
    body = write_long(2) + first + write_long(-3) + write_long(len(second)) + second + b"\x00"
    plan = FieldPlan(record(("a", ["null", {"type": "array", "items": kind}])), ["a"])
    body = b"\x02" + body
    value = plan.value(body, plan.walk(body), 0)
    assert value.dtype == np.dtype(kind if kind == "double" else "float32")
    assert value.dtype.isnative
    np.testing.assert_array_equal(value, np.array(numbers, value.dtype))


def test_an_empty_array_of_floats_is_an_empty_ndarray():
    plan = FieldPlan(record(("a", {"type": "array", "items": "float"})), ["a"])
    value = plan.value(b"\x00", plan.walk(b"\x00"), 0)
    assert value.shape == (0,)
    assert value.dtype == np.float32


@LONGEST
@given(
    st.lists(st.tuples(st.sampled_from(["boolean", "float", "double", "long", "bytes"]), st.booleans()), max_size=12)
)
def test_runs_of_nullable_values_end_where_fastavro_ends_them(fields):
    """The walker takes runs of equal types in one go, and without looking for the end where all fit."""
    values = {"boolean": True, "float": 1.5, "double": 2.5, "long": 2**40, "bytes": b"abc"}
    for null_first in (True, False):
        schema = record(
            *((f"f{n}", ["null", kind] if null_first else [kind, "null"]) for n, (kind, _) in enumerate(fields))
        )
        body = encode(schema, {f"f{n}": values[kind] if present else None for n, (kind, present) in enumerate(fields)})
        plan = FieldPlan(schema, [])
        plan.walk(body)
        assert reason_of(plan, body + b"\x00") is Reason.TRAILING_BYTES
        for length in range(len(body)):
            assert reason_of(plan, body[:length]) is Reason.TRUNCATED


# --- paths


NESTED = record(
    ("id", "long"),
    ("source", ["null", record(("ra", "double"), ("band", ["null", "string"]), name="Source")]),
    ("previous", {"type": "array", "items": "Source"}),
    ("last", "Source"),
)
WITHOUT_SOURCE = {"id": 7, "source": None, "previous": [], "last": {"ra": 1.5, "band": "g"}}


def test_what_lies_in_a_null_record_is_null():
    body = encode(NESTED, WITHOUT_SOURCE)
    plan = FieldPlan(NESTED, ["source.ra", "source", "source.band", "last.ra", "last.band"])
    spans = plan.walk(body)
    assert spans[:3].tolist() == [[-1, -1]] * 3
    assert [plan.value(body, spans, index) for index in (0, 2, 3, 4)] == [None, None, 1.5, "g"]
    assert plan.missing == ()


def test_a_type_that_is_used_in_an_array_too_is_marked_only_on_its_path():
    alert = {**WITHOUT_SOURCE, "previous": [{"ra": 2.5, "band": None}, {"ra": 3.5, "band": "r"}]}
    body = encode(NESTED, alert)
    plan = FieldPlan(NESTED, ["last.ra"])
    assert plan.value(body, plan.walk(body), 0) == 1.5


def test_absent_paths_are_named_and_have_no_span():
    body = encode(NESTED, WITHOUT_SOURCE)
    absent = ["nothing", "source.nothing", "id.deeper", "previous.ra", ""]
    plan = FieldPlan(NESTED, [*absent, "id"])
    spans = plan.walk(body)
    assert plan.missing == tuple(absent)
    assert spans[:-1].tolist() == [[-1, -1]] * len(absent)
    assert plan.value(body, spans, 0) is None
    assert plan.value(body, spans, len(absent)) == 7


def test_a_path_given_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        FieldPlan(NESTED, ["id", "id"])


def test_a_record_cannot_be_read_as_a_value():
    body = encode(NESTED, WITHOUT_SOURCE)
    plan = FieldPlan(NESTED, ["last"])
    spans = plan.walk(body)
    with pytest.raises(RejectedAlertError, match="record") as caught:
        plan.value(body, spans, 0)
    assert caught.value.reason is Reason.SCHEMA


def test_a_string_that_is_not_utf8_is_rejected_when_it_is_read():
    plan = FieldPlan(record(("s", "string")), ["s"])
    body = write_bytes(b"\xff\xfe")
    spans = plan.walk(body)
    with pytest.raises(RejectedAlertError) as caught:
        plan.value(body, spans, 0)
    assert caught.value.reason is Reason.MALFORMED


@pytest.mark.parametrize("container", [bytes, bytearray, memoryview])
def test_a_body_may_be_any_kind_of_bytes(container):
    body = container(encode(NESTED, WITHOUT_SOURCE))
    plan = FieldPlan(NESTED, ["last.band", "id"])
    spans = plan.walk(body)
    assert plan.value(body, spans, 0) == "g"
    assert bytes(plan.view(body, spans, 0)) == b"g"


def test_a_union_of_seventy_branches_is_walked():
    branches = [{"type": "fixed", "name": f"F{n}", "size": n + 1} for n in range(70)]
    body = write_long(69) + bytes(70) + b"\x02"
    plan = FieldPlan(record(("u", branches), ("x", "int")), ["u", "x"])
    assert plan.walk(body).tolist() == [[2, 72], [72, 73]]


def test_deep_recursion_within_bounds_is_walked():
    schema = record(("next", ["null", "R"]), ("n", "int"))
    value = None
    for n in range(60):
        value = {"next": value, "n": n}
    body = encode(schema, value)
    plan = FieldPlan(schema, ["next.next.n", "n"])
    spans = plan.walk(body)
    assert [plan.value(body, spans, index) for index in range(2)] == [57, 59]


# --- bombs: refused at once and without memory


def _exponential(levels, innermost):
    """A record that holds two of a record that holds two of ... : 2**levels of the innermost."""
    schema = innermost
    for level in range(levels):
        inner = {**schema, "name": f"L{level}"}
        schema = record(("a", inner), ("b", f"L{level}"))
    return {**schema, "name": "Top"}


HUGE = write_long(2**31)
ARRAY_OF_NULL = record(("a", {"type": "array", "items": "null"}))
ARRAY_OF_RECORD = record(("a", {"type": "array", "items": record(name="Empty")}))
LIST = record(("next", ["null", "R"]))
TREE = record(("children", {"type": "array", "items": "R"}))
BOMBS = {
    "array of 2**31 nulls": (ARRAY_OF_NULL, HUGE + b"\x00", Reason.TOO_LARGE),
    "array of 2**63-1 nulls": (ARRAY_OF_NULL, write_long(2**63 - 1) + b"\x00", Reason.TOO_LARGE),
    "array of nulls, negative count": (ARRAY_OF_NULL, write_long(-(2**62)) + b"\x00\x00", Reason.TOO_LARGE),
    "many blocks of nulls": (ARRAY_OF_NULL, write_long(60_000) * 1000 + b"\x00", Reason.TOO_LARGE),
    "array of empty records": (ARRAY_OF_RECORD, HUGE + b"\x00", Reason.TOO_LARGE),
    "array of some nothing": (
        record(("a", {"type": "array", "items": _exponential(6, record())})),
        HUGE + b"\x00",
        Reason.TOO_LARGE,
    ),
    "exponential records": (_exponential(30, record(("x", "int"))), bytes(1000), Reason.TRUNCATED),
    "exponential records, long body": (_exponential(30, record(("x", "int"))), bytes(8 << 20), Reason.TOO_LARGE),
    "array of 2**31 ints": (record(("a", {"type": "array", "items": "int"})), HUGE + bytes(9), Reason.TRUNCATED),
    "array of 2**60 doubles": (
        record(("a", {"type": "array", "items": "double"})),
        write_long(2**60) + bytes(9),
        Reason.TRUNCATED,
    ),
    "map of 2**31": (record(("m", {"type": "map", "values": "null"})), HUGE + bytes(9), Reason.TRUNCATED),
    "count of -2**63": (ARRAY_OF_NULL, write_long(-(2**63)) + b"\x00\x00", Reason.MALFORMED),
    "count of -2**63, ints": (
        record(("a", {"type": "array", "items": "int"})),
        write_long(-(2**63)) + b"\x00\x00",
        Reason.MALFORMED,
    ),
    "negative block size": (ARRAY_OF_NULL, write_long(-1) + write_long(-1) + b"\x00", Reason.MALFORMED),
    "block size beyond the end": (
        record(("a", {"type": "array", "items": "int"})),
        write_long(-1) + write_long(2**40) + b"\x00\x00",
        Reason.TRUNCATED,
    ),
    "negative length": (record(("s", "string")), write_long(-5) + bytes(9), Reason.MALFORMED),
    "length of -2**63": (record(("s", "bytes")), write_long(-(2**63)) + bytes(9), Reason.MALFORMED),
    "length of 2**63-1": (record(("s", "bytes")), write_long(2**63 - 1) + bytes(9), Reason.TRUNCATED),
    "varint of eleven bytes": (record(("x", "long")), b"\xff" * 10 + b"\x01", Reason.MALFORMED),
    "varint of 65 bits": (record(("x", "long")), b"\xff" * 9 + b"\x02", Reason.MALFORMED),
    "megabyte of varint": (record(("x", "long")), b"\xff" * (1 << 20), Reason.MALFORMED),
    "length as a long varint": (record(("s", "string")), b"\x80" * 200, Reason.MALFORMED),
    "branch that is not there": (record(("u", ["null", "int"])), b"\x04\x00", Reason.MALFORMED),
    "negative branch": (record(("u", ["null", "int"])), b"\x01\x00", Reason.MALFORMED),
    "branch of a long union that is not there": (
        record(("u", ["null", "int", "string"])),
        b"\x06\x00",
        Reason.MALFORMED,
    ),
    "negative branch of a long union": (record(("u", ["null", "int", "string"])), b"\x05\x00", Reason.MALFORMED),
    "branch in two bytes": (record(("u", ["null", "int", "string"])), b"\x82\x00\x00", Reason.MALFORMED),
    "symbol that is not there": (
        record(("e", {"type": "enum", "name": "E", "symbols": ["A", "B"]})),
        b"\x04",
        Reason.MALFORMED,
    ),
    "negative symbol": (record(("e", {"type": "enum", "name": "E", "symbols": ["A"]})), b"\x01", Reason.MALFORMED),
    "fixed of 2 GB": (record(("f", {"type": "fixed", "name": "F", "size": 2**31 - 1})), bytes(9), Reason.TRUNCATED),
    "deep list": (LIST, b"\x02" * 100_000 + b"\x00", Reason.TOO_LARGE),
    "deep tree": (TREE, b"\x02" * 100_000 + b"\x00", Reason.TOO_LARGE),
    "wide array of arrays": (
        record(("a", {"type": "array", "items": {"type": "array", "items": "int"}})),
        write_long(8 << 20) + bytes((8 << 20) + 1),
        Reason.TOO_LARGE,
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_milliseconds_without_memory(name):
    schema, body, reason = BOMBS[name]
    plan = FieldPlan(schema, [schema["fields"][0]["name"]])
    tracemalloc.start()
    begun = time.process_time()
    try:
        assert reason_of(plan, body) is reason
        took_s = time.process_time() - begun
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert took_s < 0.1
    assert peak_bytes < 200_000


def test_nothing_at_all_nested_a_billion_times_is_refused_since_a_reader_of_our_output_would_visit_it_all():
    with pytest.raises(RejectedAlertError) as refused:
        FieldPlan(_exponential(30, record()), ["a"])
    assert refused.value.reason is Reason.SCHEMA


def test_some_nothing_is_nothing():
    plan = FieldPlan(_exponential(6, record()), ["a"])
    assert plan.walk(b"").tolist() == [[0, 0]]


def test_items_without_size_are_walked_up_to_the_bound():
    plan = FieldPlan(ARRAY_OF_NULL, ["a"], Limits(max_zero_size_items=100))
    body = write_long(100) + b"\x00"
    assert plan.walk(body).tolist() == [[0, len(body)]]
    assert reason_of(plan, write_long(101) + b"\x00") is Reason.TOO_LARGE
    assert reason_of(plan, write_long(60) + write_long(60) + b"\x00") is Reason.TOO_LARGE


def test_steps_are_bounded():
    schema = record(("a", {"type": "array", "items": "string"}))
    plan = FieldPlan(schema, ["a"], Limits(max_steps=1000))
    assert plan.walk(encode(schema, {"a": ["x"] * 400})).shape == (1, 2)
    assert reason_of(plan, encode(schema, {"a": ["x"] * 1100})) is Reason.TOO_LARGE


# --- compiled code


def test_a_machine_that_cannot_keep_compiled_code_compiles_it_each_time(monkeypatch):
    def without_cache(*, nogil, cache=False):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_now(nogil=nogil)

    compile_now = native.numba.njit
    monkeypatch.setattr(native.numba, "njit", without_cache)
    assert native.compiled(lambda x: x + 1)(41) == 42


def test_threads_share_a_plan():
    alerts = [{**WITHOUT_SOURCE, "id": n, "last": {"ra": float(n), "band": "g" * n}} for n in range(200)]
    plan = FieldPlan(NESTED, ["id", "last.ra"])

    def read(alert):
        body = encode(NESTED, alert)
        spans = plan.walk(body)
        return plan.value(body, spans, 0), plan.value(body, spans, 1)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(read, alerts)) == [(n, float(n)) for n in range(200)]


# --- numbers


@given(st.integers(-(2**63), 2**63 - 1), st.binary(max_size=3))
def test_a_long_is_read_as_it_was_written(value, before):
    written = write_long(value)
    assert read_long(before + written + b"\xff", len(before)) == (value, len(before) + len(written))
    assert encode("long", value) == written


@given(st.binary(max_size=12))
def test_any_bytes_read_as_a_long_or_are_rejected(data):
    plan = FieldPlan(record(("x", "long")), ["x"])
    try:
        value, end = read_long(data, 0)
    except RejectedAlertError as error:
        reason: Reason | None = error.reason
    else:
        reason = None
    if reason is not None:
        assert reason_of(plan, data) is reason
        return
    assert plan.walk(data[:end]).tolist() == [[0, end]]
    assert decode("long", data[:end]) == value


def test_a_schema_text_of_many_types_is_planned_quickly():
    fields = [
        (f"f{n}", record(("x", ["null", "float"]), ("y", f"T{n - 1}" if n else "int"), name=f"T{n}"))
        for n in range(5000)
    ]
    schema = json.loads(json.dumps(record(*fields)))
    begun = time.process_time()
    FieldPlan(schema, ["f4999.x", "f10.y.y.x"])
    assert time.process_time() - begun < 2
