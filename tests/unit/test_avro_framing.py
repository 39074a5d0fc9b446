"""Packets of each framing are opened, refused with the right reason, and wrapped again around the same bytes."""

import io
import json
import random
import time
import tracemalloc
import zlib

import cramjam
import fastavro
import pytest
from fastavro._read_common import HEADER_SCHEMA
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from stream_vae.avro.binary import write_bytes, write_long
from stream_vae.avro.codec import Codec
from stream_vae.avro.framing import OCF_MAGIC, FrameReader, Framing, OutputSchema, reframe, replace_body
from stream_vae.avro.limits import Limits
from stream_vae.avro.nodes import contains_itself, resolve
from stream_vae.avro.registry import HttpRegistry
from stream_vae.avro.walker import FieldPlan
from stream_vae.errors import ConfigError, Reason, RejectedAlertError
from stream_vae.native import address

from avro_cases import cases, encode

SCHEMA = {
    "type": "record",
    "name": "Alert",
    "namespace": "survey",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "stamp", "type": ["null", "bytes"], "default": None},
        {"name": "names", "type": {"type": "array", "items": "string"}},
    ],
}
ALERT = {"id": 2**40 + 1, "stamp": bytes(range(256)) * 8, "names": ["a", "bc"]}
FIELD = {
    "name": "stream_vae",
    "type": [
        "null",
        {
            "type": "record",
            "name": "Enrichment",
            "namespace": "stream_vae",
            "fields": [{"name": "release", "type": "string"}, {"name": "score", "type": ["null", "float"]}],
        },
    ],
    "default": None,
}
ENRICHMENT = {"release": "r1", "score": 0.25}
APPENDED = encode(FIELD["type"], ENRICHMENT)
BODY = encode(SCHEMA, ALERT)
SYNC = bytes(range(16))
CODECS = ["null", "deflate", "snappy"]


def ocf(records=(ALERT,), *, codec="null", schema=SCHEMA, **options):
    out = io.BytesIO()
    fastavro.writer(out, schema, list(records), codec=codec, sync_marker=SYNC, **options)
    return out.getvalue()


def header(metadata, sync=SYNC):
    entries = b"".join(write_bytes(key) + write_bytes(value) for key, value in metadata.items())
    return OCF_MAGIC + write_long(len(metadata)) + entries + b"\x00" + sync


def ocf_by_hand(*blocks, codec=b"null", schema=None, sync=SYNC, tail=b""):
    text = json.dumps(SCHEMA).encode() if schema is None else schema
    packet = header({b"avro.schema": text, b"avro.codec": codec}, sync)
    for count, size, data in blocks:
        packet += write_long(count) + write_long(len(data) if size is None else size) + data + sync
    return packet + tail


def reason_of(packet, **options):
    with pytest.raises(RejectedAlertError) as caught:
        FrameReader(**options).open(packet)
    return caught.value.reason


def stock_reader(packet, schema=None):
    """What a consumer with stock fastavro gets."""
    (record,) = fastavro.reader(io.BytesIO(packet), schema)
    return record


# --- opening


@pytest.mark.parametrize("codec", CODECS)
def test_an_avro_file_is_opened(codec):
    packet = ocf(codec=codec, metadata={"who": "me"})
    frame = FrameReader().open(packet)
    assert bytes(frame.body) == BODY
    assert (frame.framing, frame.codec, frame.sync, frame.schema_id) == (Framing.OCF, Codec(codec), SYNC, None)
    assert frame.writer.decode(frame.body) == ALERT


def test_a_null_body_is_a_view_of_the_packet():
    packet = ocf()
    body = FrameReader().open(packet).body
    assert isinstance(body, memoryview)
    assert body.obj is packet


def test_a_file_without_codec_is_not_compressed():
    packet = header({b"avro.schema": json.dumps(SCHEMA).encode()}) + b"\x02" + write_bytes(BODY) + SYNC
    assert bytes(FrameReader().open(packet).body) == BODY


def test_a_header_in_blocks_with_their_size_is_read():
    first, second = (
        write_bytes(key) + write_bytes(value)
        for key, value in ((b"avro.codec", b"null"), (b"avro.schema", json.dumps(SCHEMA).encode()))
    )
    metadata = write_long(-1) + write_long(len(first)) + first + write_long(1) + second + b"\x00"
    packet = OCF_MAGIC + metadata + SYNC + b"\x02" + write_bytes(BODY) + SYNC
    frame = FrameReader().open(packet)
    assert bytes(frame.body) == BODY
    out = OutputSchema.appending(frame, FIELD)
    assert stock_reader(b"".join(reframe(frame, APPENDED, out))) == {**ALERT, "stream_vae": ENRICHMENT}


def test_alternating_headers_are_told_apart():
    reader = FrameReader()
    schemas = [{**SCHEMA, "doc": "x" * 3000 + str(n)} for n in range(12)]
    packets = [ocf(schema=schema) for schema in schemas]
    for n in random.Random(1).choices(range(12), k=100):
        assert reader.open(packets[n]).writer.parsed["doc"].endswith("x" + str(n))


def test_a_schema_is_parsed_once_for_files_with_different_metadata():
    reader = FrameReader()
    frames = [reader.open(ocf(metadata={"n": str(n)})) for n in range(20)]
    assert len({id(frame.writer) for frame in frames}) == 1


def test_confluent_packets_are_opened_by_their_id():
    registry = HttpRegistry("mock://here")
    schema_id = registry.register("alerts-value", json.dumps(SCHEMA))
    packet = b"\x00" + schema_id.to_bytes(4, "big") + BODY
    reader = FrameReader(schemas=registry)
    frame = reader.open(packet)
    assert (frame.framing, frame.schema_id, bytes(frame.body)) == (Framing.CONFLUENT, schema_id, BODY)
    assert reader.open(packet).writer is frame.writer
    registry.close()


def test_schemaless_packets_are_their_body():
    frame = FrameReader(framing=Framing.SCHEMALESS, schema=SCHEMA).open(BODY)
    assert (frame.framing, frame.body) == (Framing.SCHEMALESS, BODY)
    assert frame.writer.decode(frame.body) == ALERT


@pytest.mark.parametrize("framing", [Framing.SCHEMALESS, Framing.CONFLUENT])
def test_a_framing_without_its_schemas_is_a_matter_of_settings(framing):
    with pytest.raises(ConfigError) as caught:
        FrameReader(framing=framing)
    assert caught.value.remedy


# --- refusing


class NoSchemas:
    def get(self, schema_id, /):
        raise RejectedAlertError(f"unknown: {schema_id}", reason=Reason.SCHEMA)

    def register(self, subject, schema, /):
        raise AssertionError(f"nothing is registered here, not even {subject}: {schema}")


TEXT = json.dumps(SCHEMA).encode()
ONE = (1, None, BODY)
BOMB = zlib.compress(bytes(64 << 20), 9, -15)
REFUSED = {
    "nothing": (b"", Reason.EMPTY),
    "random bytes": (b"\x8f\x11\x22\x33\x44\x55", Reason.FRAMING),
    "JSON": (b'{"id": 1}', Reason.FRAMING),
    "a gzip file": (b"\x1f\x8b\x08\x00\x00", Reason.FRAMING),
    "an Avro file of version 2": (b"Obj\x02" + ocf()[4:], Reason.FRAMING),
    "half the magic": (b"Ob", Reason.TRUNCATED),
    "the magic alone": (OCF_MAGIC, Reason.TRUNCATED),
    "a file without schema": (header({b"avro.codec": b"null"}) + b"\x02\x00" + SYNC, Reason.SCHEMA),
    "a file with an empty schema": (ocf_by_hand(ONE, schema=b""), Reason.SCHEMA),
    "a file of ints": (ocf_by_hand((1, None, b"\x02"), schema=b'"int"'), Reason.SCHEMA),
    "codec zstandard": (ocf_by_hand(ONE, codec=b"zstandard"), Reason.CODEC),
    "codec junk": (ocf_by_hand(ONE, codec=b"\xff\xfe"), Reason.CODEC),
    "deflate that is not": (ocf_by_hand(ONE, codec=b"deflate"), Reason.CODEC),
    "deflate cut short": (ocf_by_hand((1, None, zlib.compress(BODY, 6, -15)[:-3]), codec=b"deflate"), Reason.CODEC),
    "deflate and junk": (
        ocf_by_hand((1, None, zlib.compress(BODY, 6, -15) + b"abcde"), codec=b"deflate"),
        Reason.CODEC,
    ),
    "deflate of zlib's format": (ocf_by_hand((1, None, zlib.compress(BODY)), codec=b"deflate"), Reason.CODEC),
    "deflate bomb": (ocf_by_hand((1, None, BOMB), codec=b"deflate"), Reason.TOO_LARGE),
    "snappy that is not": (ocf_by_hand(ONE, codec=b"snappy"), Reason.CODEC),
    "snappy of nothing": (ocf_by_hand((1, None, b""), codec=b"snappy"), Reason.CODEC),
    "snappy with a wrong checksum": (
        ocf_by_hand((1, None, bytes(cramjam.snappy.compress_raw(BODY)) + b"\0\0\0\0"), codec=b"snappy"),
        Reason.CODEC,
    ),
    "snappy that announces 4 GB": (
        ocf_by_hand((1, None, b"\xff\xff\xff\xff\x0f" + bytes(20)), codec=b"snappy"),
        Reason.TOO_LARGE,
    ),
    "snappy that announces 16 MB": (
        ocf_by_hand((1, None, b"\x80\x80\x80\x08" + bytes(20)), codec=b"snappy"),
        Reason.CODEC,
    ),
    "no block": (ocf_by_hand(), Reason.MULTIPLE_RECORDS),
    "no record": (ocf(records=()), Reason.MULTIPLE_RECORDS),
    "a block of no record": (ocf_by_hand((0, None, b"")), Reason.MULTIPLE_RECORDS),
    "two records in a block": (ocf(records=(ALERT, ALERT)), Reason.MULTIPLE_RECORDS),
    "two blocks": (ocf_by_hand(ONE, ONE), Reason.MULTIPLE_RECORDS),
    "a block and one of no record": (ocf_by_hand(ONE, (0, None, b"")), Reason.MULTIPLE_RECORDS),
    "2**62 records": (ocf_by_hand((2**62, None, BODY)), Reason.MULTIPLE_RECORDS),
    "a negative count": (ocf_by_hand((-1, None, BODY)), Reason.MALFORMED),
    "a negative size": (ocf_by_hand((1, -5, BODY)), Reason.MALFORMED),
    "a size beyond the end": (ocf_by_hand((1, len(BODY) + 1, BODY)), Reason.TRUNCATED),
    "a size of 2**62": (ocf_by_hand((1, 2**62, BODY)), Reason.TRUNCATED),
    "a size too small": (ocf_by_hand((1, len(BODY) - 1, BODY)), Reason.FRAMING),
    "another sync marker": (ocf()[:-16] + bytes(16), Reason.FRAMING),
    "junk behind": (ocf() + b"junk", Reason.TRAILING_BYTES),
    "a long junk behind": (ocf() + bytes(100), Reason.TRAILING_BYTES),
    "the marker twice": (ocf() + SYNC, Reason.TRAILING_BYTES),
    "a count of eleven bytes": (ocf_by_hand(tail=b"\xff" * 11), Reason.MALFORMED),
    "a header of negative length": (OCF_MAGIC + b"\x02" + write_long(-4) + bytes(99), Reason.MALFORMED),
    "a header of 2**62 entries": (OCF_MAGIC + write_long(2**62) + bytes(99), Reason.TOO_LARGE),
    "a header of -2**62 entries": (OCF_MAGIC + write_long(-(2**62)) + bytes(99), Reason.TOO_LARGE),
    "a header of many empty entries": (OCF_MAGIC + (write_long(1000) + bytes(2000)) * 400, Reason.TOO_LARGE),
    "a header of 2 MB": (header({b"avro.schema": TEXT, b"x": bytes(2 << 20)}), Reason.TOO_LARGE),
    "a message of 17 MB": (bytes(17 << 20), Reason.TOO_LARGE),
    "an unknown id": (b"\x00\x00\x00\x01\x00" + BODY, Reason.SCHEMA),
    "half an id": (b"\x00\x00\x00", Reason.TRUNCATED),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_bad_packet_is_refused_with_its_reason_at_once(what):
    packet, reason = REFUSED[what]
    reader = FrameReader(schemas=NoSchemas(), limits=Limits(max_body_bytes=20 << 20))
    tracemalloc.start()
    begun = time.process_time()
    try:
        with pytest.raises(RejectedAlertError) as caught:
            reader.open(packet)
        took_s = time.process_time() - begun
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.reason is reason
    assert took_s < 0.5  # the deflate bomb inflates up to its cap of 20 MB
    assert peak_bytes < 48 << 20
    assert len(str(caught.value)) < 400


def test_a_snappy_block_that_announces_gigabytes_allocates_none_of_them():
    packet, _ = REFUSED["snappy that announces 16 MB"]
    tracemalloc.start()
    try:
        assert reason_of(packet) is Reason.CODEC
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("framing", "packet"), [(Framing.OCF, b"\x00\x00\x00\x00\x07" + BODY), (Framing.CONFLUENT, ocf())]
)
def test_a_packet_of_another_framing_than_configured_is_refused(framing, packet):
    assert reason_of(packet, framing=framing, schemas=NoSchemas()) is Reason.FRAMING


def test_a_confluent_packet_without_any_registry_says_what_to_do():
    with pytest.raises(RejectedAlertError, match="registry"):
        FrameReader().open(b"\x00\x00\x00\x00\x07" + BODY)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("seen", [False, True])
def test_every_truncation_of_an_avro_file_is_refused(codec, seen):
    packet = ocf([{**ALERT, "stamp": b"short"}], codec=codec)
    reader = FrameReader()
    if seen:
        reader.open(packet)
    for length in range(len(packet)):
        with pytest.raises(RejectedAlertError) as caught:
            reader.open(packet[:length])
        assert caught.value.reason in {Reason.EMPTY, Reason.TRUNCATED, Reason.MULTIPLE_RECORDS}


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(CODECS))
def test_a_corrupt_packet_is_opened_and_walked_or_rejected(data, codec):
    packet = bytearray(ocf([{**ALERT, "stamp": b"short"}], codec=codec))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(packet)))
        packet[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=5))
    try:
        frame = FrameReader(schemas=NoSchemas()).open(bytes(packet))
        FieldPlan(frame.writer.parsed, ["id", "stamp"]).walk(frame.body)
    except RejectedAlertError as error:
        assert isinstance(error.reason, Reason)  # noqa: PT017 - corruption need not be noticed


# --- wrapping again


@pytest.mark.parametrize("codec", CODECS)
def test_a_spliced_file_is_read_with_the_new_schema_and_the_old(codec):
    frame = FrameReader().open(ocf(codec=codec, metadata={"who": "me"}))
    out = OutputSchema.appending(frame, FIELD)
    packet = b"".join(reframe(frame, APPENDED, out))
    assert stock_reader(packet) == {**ALERT, "stream_vae": ENRICHMENT}
    assert stock_reader(packet, SCHEMA) == ALERT
    assert stock_reader(ocf(), out.schema) == {**ALERT, "stream_vae": None}
    metadata = fastavro.schemaless_reader(io.BytesIO(packet), HEADER_SCHEMA, None)["meta"]
    assert (metadata["who"], metadata["avro.codec"]) == (b"me", codec.encode())
    assert packet.endswith(SYNC)


@pytest.mark.parametrize("codec", CODECS)
def test_a_spliced_file_holds_the_same_bytes_as_a_full_encoding(codec):
    frame = FrameReader().open(ocf(codec=codec))
    out = OutputSchema.appending(frame, FIELD)
    again = FrameReader().open(b"".join(reframe(frame, APPENDED, out)))
    assert bytes(again.body) == encode(out.schema, {**ALERT, "stream_vae": ENRICHMENT})
    assert (again.codec, again.sync) == (frame.codec, frame.sync)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(cases(), st.sampled_from(CODECS))
def test_any_spliced_file_holds_the_same_bytes_as_a_full_encoding(case, codec):
    assume(not contains_itself(resolve(case.schema)))
    frame = FrameReader().open(ocf([case.record], schema=case.schema, codec=codec))
    out = OutputSchema.appending(frame, FIELD)
    again = FrameReader().open(b"".join(reframe(frame, APPENDED, out)))
    assert bytes(again.body) == encode(out.schema, {**case.record, "stream_vae": ENRICHMENT})
    FieldPlan(again.writer.parsed, ["stream_vae.score"]).walk(again.body)


def test_a_spliced_confluent_packet_bears_the_registered_id():
    with HttpRegistry("mock://here") as registry:
        schema_id = registry.register("alerts-value", json.dumps(SCHEMA))
        frame = FrameReader(schemas=registry).open(b"\x00" + schema_id.to_bytes(4, "big") + BODY)
        out = OutputSchema.appending(frame, FIELD, registry=registry, subject="scored-value")
        packet = b"".join(reframe(frame, APPENDED, out))
        assert packet == b"\x00" + out.schema_id.to_bytes(4, "big") + BODY + APPENDED
        again = FrameReader(schemas=registry).open(packet)
        assert again.writer.decode(again.body) == {**ALERT, "stream_vae": ENRICHMENT}


def test_a_spliced_schemaless_packet_is_the_body_and_the_field():
    frame = FrameReader(framing=Framing.SCHEMALESS, schema=SCHEMA).open(BODY)
    out = OutputSchema.appending(frame, FIELD)
    assert b"".join(reframe(frame, APPENDED, out)) == encode(out.schema, {**ALERT, "stream_vae": ENRICHMENT})


def test_an_output_schema_without_id_cannot_make_a_confluent_packet():
    with HttpRegistry("mock://here") as registry:
        registry.register("alerts-value", json.dumps(SCHEMA))
        frame = FrameReader(schemas=registry).open(b"\x00\x00\x00\x00\x01" + BODY)
        with pytest.raises(ConfigError):
            reframe(frame, APPENDED, OutputSchema.appending(frame, FIELD))


@pytest.mark.parametrize("codec", CODECS)
def test_another_record_is_wrapped_the_same_way(codec):
    lite = {"type": "record", "name": "Lite", "fields": [{"name": "id", "type": "long"}]}
    frame = FrameReader().open(ocf(codec=codec))
    packet = b"".join(replace_body(frame, encode(lite, {"id": 5}), OutputSchema.of(lite)))
    assert stock_reader(packet) == {"id": 5}


def test_a_mended_schema_goes_out_so_that_stock_readers_can_read_it():
    schema = copy_with_bad_default()
    packet = ocf_by_hand(ONE, schema=json.dumps(schema).encode())
    with pytest.raises(fastavro.schema.SchemaParseException):
        stock_reader(packet)
    frame = FrameReader().open(packet)
    assert stock_reader(b"".join(reframe(frame, APPENDED, OutputSchema.appending(frame, FIELD))))["id"] == ALERT["id"]


def copy_with_bad_default():
    fields = [{**field, **({"default": None} if field["name"] == "id" else {})} for field in SCHEMA["fields"]]
    return {**SCHEMA, "fields": fields}


def test_an_enriched_packet_cannot_be_enriched_again():
    frame = FrameReader().open(ocf())
    again = FrameReader().open(b"".join(reframe(frame, APPENDED, OutputSchema.appending(frame, FIELD))))
    with pytest.raises(RejectedAlertError) as caught:
        OutputSchema.appending(again, FIELD)
    assert caught.value.reason is Reason.SCHEMA


# --- batches


def fate(reader, packet):
    """What `open` says of one packet."""
    try:
        frame = reader.open(packet)
    except RejectedAlertError as error:
        return error.reason, str(error)
    return frame.writer.digest, bytes(frame.body), frame.framing, frame.codec, frame.sync, frame.header.metadata


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_batch_is_opened_as_its_packets_are_one_by_one(data):
    """Whole ones, ones of other headers and codecs, cut off and with bytes changed anywhere, in any order."""
    whole = [ocf(), ocf(codec="deflate"), ocf(metadata={"survey": "x"}), ocf([ALERT, ALERT]), b"", b"junk" * 50]
    packets = data.draw(st.lists(st.sampled_from(whole), min_size=1, max_size=12))
    for row in data.draw(st.lists(st.integers(0, len(packets) - 1), max_size=4)):
        changed = bytearray(packets[row])
        at = data.draw(st.integers(0, max(0, len(changed) - 1)))
        if data.draw(st.booleans()):
            del changed[at:]
        elif changed:
            changed[at] ^= data.draw(st.integers(1, 255))
        packets[row] = bytes(changed)
    limits = Limits(max_packet_bytes=data.draw(st.sampled_from([1_000, 10**7])))
    batch, alone = (FrameReader(framing=Framing.OCF, limits=limits) for _ in range(2))
    for _ in range(2):  # the second time all headers are known
        for packet, opened in zip(packets, batch.open_each(packets), strict=True):
            if isinstance(opened, RejectedAlertError):
                assert (opened.reason, str(opened)) == fate(alone, packet)
            else:
                found = (opened.writer.digest, bytes(opened.body), opened.framing, opened.codec, opened.sync)
                assert (*found, opened.header.metadata) == fate(alone, packet)
                assert opened.address == address(opened.body)
