"""Every real alert: the walker agrees with fastavro on each field, and the splice with a full encoding by fastavro."""

import io
import json
import math

import fastavro
import numpy as np
import pytest
from stream_vae.avro.framing import FrameReader, OutputSchema, reframe
from stream_vae.avro.nodes import Kind, resolve
from stream_vae.avro.program import record_in
from stream_vae.avro.registry import FolderRegistry
from stream_vae.avro.walker import FieldPlan, warm_up
from stream_vae.errors import RejectedAlertError

from avro_cases import decode, encode
from lsst_layouts import write_lsst_schemas

# How many there are in the data that field-notes describe, so that none is passed over in silence.
SURVEYS = {"ztf": 585, "lsst": 30, "lsst_wire": 3, "winter": 21, "pgir": 17, "turbo": 11, "decam": 1}
FIELD = {
    "name": "stream_vae",
    "type": [
        "null",
        {
            "type": "record",
            "name": "stream_vae.Enrichment",
            "fields": [
                {"name": "latent_mean", "type": {"type": "array", "items": "float"}},
                {"name": "score", "type": "float"},
            ],
        },
    ],
    "default": None,
}
ENRICHMENT = {"latent_mean": [0.5, -1.25, 3.0], "score": 0.75}
APPENDED = encode(FIELD["type"], ENRICHMENT)


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    warm_up()


@pytest.fixture(params=SURVEYS)
def packets(request, real_packets):
    """The packets of one survey."""
    read = [path.read_bytes() for path in real_packets(request.param)]
    assert len(read) >= SURVEYS[request.param]
    return read


@pytest.fixture
def reader(tmp_path):
    """Knows LSST's wire schemas."""
    write_lsst_schemas(tmp_path)
    return FrameReader(schemas=FolderRegistry(tmp_path))


def leaves(record, prefix=""):
    """List the paths of all fields, through records and nullable records."""
    for name, node in record.fields.items():
        yield prefix + name
        within = record_in(node)
        if within is not None:
            yield from leaves(within, f"{prefix}{name}.")


def look_up(alert, path):
    for name in path.split("."):
        alert = None if alert is None else alert[name]
    return alert


class Plans:
    """One plan for each writer schema."""

    def __init__(self, paths_of):
        self._paths_of = paths_of
        self._plans = {}

    def __getitem__(self, writer):
        if writer not in self._plans:
            self._plans[writer] = FieldPlan(writer.parsed, self._paths_of(resolve(writer.parsed)))
        return self._plans[writer]


def test_every_field_of_every_real_alert_is_what_fastavro_decodes(packets, reader):
    plans = Plans(lambda root: list(leaves(root)))
    for packet in packets:
        frame = reader.open(packet)
        plan = plans[frame.writer]
        spans = plan.walk(frame.body)
        alert = decode(frame.writer.parsed, frame.body)
        assert plan.missing == ()
        for index, path in enumerate(plan.paths):
            expected = look_up(alert, path)
            assert (spans[index, 0] < 0) == (expected is None), path
            if not isinstance(expected, dict | list):
                value = plan.value(frame.body, spans, index)
                assert value == expected or (math.isnan(value) and math.isnan(expected)), path


def test_the_top_level_spans_of_every_real_alert_cover_its_body(packets, reader):
    for packet in packets:
        frame = reader.open(packet)
        root = resolve(frame.writer.parsed)
        spans = FieldPlan.of_top_level(frame.writer.parsed).walk(frame.body)
        covered = 0
        for (start, end), node in zip(spans.tolist(), root.fields.values(), strict=True):
            covered += node.kind is Kind.UNION
            assert start in {covered, -1}
            covered = max(covered, end)
        assert covered == len(frame.body)


def test_every_real_alert_is_spliced_to_the_bytes_of_a_full_encoding(packets, reader):
    for packet in packets:
        frame = reader.open(packet)
        out = OutputSchema.appending(frame, FIELD)
        alert = frame.writer.decode(frame.body)
        if frame.header is None:
            assert bytes(frame.body) + APPENDED == encode(out.schema, {**alert, "stream_vae": ENRICHMENT})
            continue
        spliced = b"".join(reframe(frame, APPENDED, out))
        again = FrameReader().open(spliced)
        full = io.BytesIO()
        fastavro.writer(full, out.schema, [{**alert, "stream_vae": ENRICHMENT}], sync_marker=frame.sync)
        assert bytes(again.body) == bytes(FrameReader().open(full.getvalue()).body)
        # fastavro writes its own header, but from the block on the files are the same byte for byte
        assert spliced.split(frame.sync, 1)[1] == full.getvalue().split(frame.sync, 1)[1]


def test_every_spliced_real_alert_is_read_by_stock_readers_of_both_schemas(packets, reader):
    for packet in packets[:40]:
        frame = reader.open(packet)
        if frame.header is None:
            continue
        out = OutputSchema.appending(frame, FIELD)
        spliced = b"".join(reframe(frame, APPENDED, out))
        (new,) = fastavro.reader(io.BytesIO(spliced))
        (old,) = fastavro.reader(io.BytesIO(spliced), frame.writer.parsed)
        assert new.pop("stream_vae") == ENRICHMENT
        # By repr: NaN is not equal to itself.
        assert repr(new) == repr(old) == repr(frame.writer.decode(frame.body))


def test_real_cutouts_are_found_without_a_copy(real_packets):
    for path in real_packets("ztf"):
        packet = path.read_bytes()
        frame = FrameReader().open(packet)
        plan = FieldPlan(frame.writer.parsed, ["cutoutDifference.stampData"])
        view = plan.view(frame.body, plan.walk(frame.body), 0)
        assert view.obj is packet
        assert bytes(view[:3]) == b"\x1f\x8b\x08"


def test_real_schemas_are_several_in_ztf_and_sloppy_in_winter_and_turbo(real_packets):
    def writers(survey):
        reader = FrameReader()
        return {reader.open(path.read_bytes()).writer for path in real_packets(survey)}

    assert len(writers("ztf")) >= 5
    for survey in ("winter", "turbo"):
        for writer in writers(survey):
            fastavro.parse_schema(writer.parsed)
            with pytest.raises(fastavro.schema.SchemaParseException):
                fastavro.parse_schema(json.loads(writer.json))


def test_corrupt_real_alerts_are_walked_or_rejected(real_packets):
    random = np.random.default_rng(1)
    reader = FrameReader()
    for path in real_packets("ztf/kowalski")[:10]:
        frame = reader.open(path.read_bytes())
        plan = FieldPlan(frame.writer.parsed, ["candid", "candidate.ra", "cutoutScience.stampData"])
        clean = np.frombuffer(frame.body, np.uint8)
        for _ in range(200):
            corrupt = clean.copy()
            places = random.integers(0, len(corrupt), random.integers(1, 5))
            corrupt[places] = random.integers(0, 256, len(places))
            try:
                spans = plan.walk(corrupt.tobytes())
            except RejectedAlertError:
                continue
            assert spans.max() <= len(corrupt)
