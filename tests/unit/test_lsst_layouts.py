"""The layouts are right if real packets decode to their last byte and to values that make sense."""

import io
import json
import struct

import fastavro
import pytest

from lsst_layouts import SCHEMA_IDS, lsst_schema, write_lsst_schemas

CUTOUTS = ("cutoutDifference", "cutoutScience", "cutoutTemplate")


@pytest.fixture(params=SCHEMA_IDS)
def decoded(request, real_packets):
    """One real packet: its path, its record, and how many bytes were left over."""
    for path in real_packets("lsst_wire"):
        packet = path.read_bytes()
        magic, schema_id = struct.unpack(">bI", packet[:5])
        assert magic == 0
        if schema_id == request.param:
            stream = io.BytesIO(packet[5:])
            record = fastavro.schemaless_reader(stream, fastavro.parse_schema(lsst_schema(schema_id)), None)
            return path, record, len(stream.read())
    pytest.skip(f"no real packet with schema id {request.param}")


def test_a_real_packet_decodes_to_its_last_byte(decoded):
    _, _, left_over = decoded
    assert left_over == 0


def test_a_real_packet_names_the_source_that_its_file_is_named_after(decoded):
    path, record, _ = decoded
    assert record["diaSource"]["diaSourceId"] == int(path.stem)


def test_a_real_packet_holds_three_fits_files(decoded):
    _, record, _ = decoded
    assert all(record[cutout].startswith(b"SIMPLE  =") and len(record[cutout]) % 2880 == 0 for cutout in CUTOUTS)


def test_a_real_packet_holds_values_that_make_sense(decoded):
    _, record, _ = decoded
    sources = [record["diaSource"], *(record["prvDiaSources"] or ())]
    for source in sources:
        assert 0 <= source["ra"] < 360
        assert -90 <= source["dec"] <= 90
        assert 57_000 < source["midpointMjdTai"] < 62_000  # 701 is a precursor survey of 2016
        assert 0 <= source["detector"] < 189  # the camera's science CCDs
        assert source["band"] in set("ugrizy")
        assert 0 <= source["x"] < 4_300  # pixels of one CCD, of LSST's or the precursor's camera
        assert 0 <= source["y"] < 4_300
        assert 0 <= source["reliability"] <= 1
        assert source["psfNdata"] == 41 * 41
        assert source["psfFluxErr"] > 0
    # Apart in the layout, so that a field too many or too few between them shows.
    trigger = record["diaSource"]
    assert trigger["snr"] == pytest.approx(abs(trigger["psfFlux"] / trigger["psfFluxErr"]), rel=0.1)
    assert trigger["iyyPSF"] == pytest.approx(trigger["ixxPSF"], rel=0.1)  # a round point-spread function
    for forced in record["prvDiaForcedSources"] or ():
        assert forced["diaObjectId"] == record["diaObject"]["diaObjectId"]
        assert forced["ra"] == pytest.approx(trigger["ra"], abs=0.01)
        assert forced["band"] in set("ugrizy")
    if record["diaObject"] is not None:
        assert record["diaObject"]["ra"] == pytest.approx(trigger["ra"], abs=0.01)


def test_one_field_less_does_not_decode(decoded, real_packets):
    """What the tests above prove rests on this: a wrong layout shows."""
    path, record, _ = decoded
    schema = lsst_schema(struct.unpack(">I", path.read_bytes()[1:5])[0])
    dia_source = next(field for field in schema["fields"] if field["name"] == "diaSource")["type"]
    del dia_source["fields"][40]
    stream = io.BytesIO(path.read_bytes()[5:])
    try:
        wrong = fastavro.schemaless_reader(stream, fastavro.parse_schema(schema), None)
    except (EOFError, IndexError, ValueError, struct.error):
        return
    assert stream.read() != b"" or wrong["cutoutScience"] != record["cutoutScience"]


@pytest.mark.parametrize("schema_id", SCHEMA_IDS)
def test_a_layout_is_a_schema_whose_records_have_no_field_twice(schema_id):
    schema = lsst_schema(schema_id)
    fastavro.parse_schema(schema)
    for record in records_of(schema):
        names = [field["name"] for field in record["fields"]]
        assert len(names) == len(set(names)), record["name"]


def records_of(node):
    if isinstance(node, dict) and node.get("type") == "record":
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from records_of(child)


def test_the_schemas_can_be_laid_out_as_a_folder_registry(tmp_path):
    write_lsst_schemas(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["701.avsc", "703.avsc", "900.avsc"]
    assert json.loads((tmp_path / "900.avsc").read_text())["namespace"] == "lsst.v9_0"


def test_an_id_that_is_not_in_the_tables_is_a_key_error():
    with pytest.raises(KeyError):
        lsst_schema(101)


def test_version_9_agrees_with_the_schema_inside_real_files(real_packets):
    """Fink's files carry the schema of the packets they were made from (all nullable there, but in the same order)."""
    with real_packets("lsst")[0].open("rb") as file:
        inside = {field["name"]: field["type"] for field in fastavro.reader(file).writer_schema["fields"]}
    ours = {record["name"]: [field["name"] for field in record["fields"]] for record in records_of(lsst_schema(900))}
    for name in ("diaSource", "diaObject", "ssSource", "MPCORB"):
        (theirs,) = records_of(inside[name])
        assert ours[name] == [field["name"] for field in theirs["fields"]]
