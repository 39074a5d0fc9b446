"""Survey profiles: those that ship, one written in the settings, and wrong ones."""

from pathlib import Path
from typing import Any

import fastavro
import pytest
from stream_vae import surveys
from stream_vae.alert import Packet, field_of_each
from stream_vae.avro.framing import FrameReader
from stream_vae.avro.limits import DEFAULT_LIMITS
from stream_vae.errors import ConfigError, Reason
from stream_vae.stages.decode import Decoder

from stage_parts import avro_file, decoded, decoder, packet

SHIPPED = ("candidate", "decam", "lsst", "pgir", "turbo", "winter", "ztf")
MINE: dict[str, Any] = {
    "time_format": "jd",
    "fields": {"alert_id": "head.number", "x_pixel": "x"},
    "cutouts": {"difference": "pixels", "encoding": "float32"},
}


def schema(**fields: Any) -> Any:
    kinds = [{"name": name, "type": kind} for name, kind in fields.items()]
    return fastavro.parse_schema({"type": "record", "name": "R", "fields": kinds})


def head(kind: Any) -> dict[str, Any]:
    return {"type": "record", "name": "Head", "fields": [{"name": "number", "type": kind}]}


def refused(data: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        surveys.load("mine", data)
    return str(caught.value)


def test_the_profiles_that_ship_are_these() -> None:
    assert tuple(surveys.names()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_profile_that_ships_loads_under_its_own_name_and_says_what_it_is(name: str) -> None:
    profile = surveys.load(name)
    assert profile.name == name
    assert profile.description
    assert all(profile.cutouts.paths(cutout) for cutout in surveys.CUTOUTS)


def test_a_profile_in_the_settings_makes_a_survey_that_nobody_heard_of() -> None:
    profile = surveys.load("mine", MINE)
    writer = schema(head=["null", head("long")], x="float", pixels="bytes")
    record = {"head": {"number": 7}, "x": 2.5, "pixels": b"1234"}
    (alert,) = decoded([avro_file(record, writer)], profile)
    assert (alert.alert_id, alert.field("x_pixel"), bytes(alert.cutout("difference") or b"")) == ("7", 2.5, b"1234")
    assert (profile.name, profile.time_format) == ("mine", "jd")


def test_a_profile_in_the_settings_wins_over_the_one_that_ships() -> None:
    assert surveys.load("ztf", MINE).fields.alert_id == ("head.number",)


def test_a_profile_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n[fields]\nalert_id = "id"\n[cutouts]\ntemplate = "t"\n')
    assert surveys.load(str(path)).cutouts.template == ("t",)


@pytest.mark.parametrize("name", ["nosuch", "/nowhere/profile.toml", "."])
def test_a_name_that_is_no_profile_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(ConfigError, match="candidate, decam, lsst"):
        surveys.load(name)


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe\x00"])
def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{path} is not valid TOML"):
        surveys.load(str(path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fields": {}}, "fields.alert_id: is required."),
        ({"fields": {"alert_id": []}}, "fields.alert_id"),
        ({"fields": {"alert_id": "id", "rae_deg": "x"}}, "fields.rae_deg: is no key; did you mean ra_deg?"),
        ({"cutouts": {}}, "cutouts: give the path of at least one of difference, science, template"),
        ({"cutouts": {"diference": "x"}}, "cutouts.diference: is no key; did you mean difference?"),
        ({"cutouts": {"science": "x", "encoding": "jpeg"}}, "cutouts.encoding"),
        ({"cutouts": {"science": "x", "nominal_size": 0}}, "cutouts.nominal_size"),
        ({"time_formats": "jd"}, "time_formats: is no key; did you mean time_format?"),
        ({"time_scale": "gps"}, "time_scale"),
        ({"name": "My Survey"}, "name"),
    ],
)
def test_a_wrong_profile_is_refused_by_its_key(change: dict[str, Any], words: str) -> None:
    message = refused(MINE | change)
    assert words in message
    assert "[survey_profile]" in message


def test_of_several_paths_the_first_that_the_schema_has_is_taken() -> None:
    profile = surveys.load("mine", MINE | {"fields": {"alert_id": ["new_id", "old_id"]}})
    both, old = schema(old_id="long", new_id="long"), schema(old_id="long")
    alerts = decoded([avro_file({"old_id": 1, "new_id": 2}, both), avro_file({"old_id": 3}, old)], profile)
    assert [alert.alert_id for alert in alerts] == ["2", "3"]


def test_two_names_may_have_one_path() -> None:
    profile = surveys.load("mine", MINE | {"fields": {"alert_id": "id", "object_id": "id"}})
    (alert,) = decoded([avro_file({"id": "a"}, schema(id="string"))], profile)
    assert (alert.alert_id, alert.field("object_id")) == ("a", "a")


@pytest.mark.parametrize("kind", ["double", "bytes", "boolean", {"type": "array", "items": "long"}])
def test_an_id_of_a_type_that_identifies_nothing_is_a_schema_fault(kind: Any) -> None:
    value = {"double": 1.5, "bytes": b"1", "boolean": True}.get(kind, [1]) if isinstance(kind, str) else [1]
    profile = surveys.load("mine", MINE | {"fields": {"alert_id": "id"}})
    alerts, (rejected,) = decoder(profile).decode([packet(avro_file({"id": value}, schema(id=kind)))])
    assert not alerts
    assert rejected.reason is Reason.SCHEMA
    assert "no integer or string id" in rejected.error


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("string", "twelve"),
        ("boolean", True),
        ({"type": "array", "items": "float"}, [1.0]),
        (["null", "int", "string"], "x"),
        ({"type": "map", "values": "long"}, {"a": 1}),
    ],
)
def test_a_field_of_a_type_that_cannot_be_used_counts_as_absent(kind: Any, value: Any) -> None:
    profile = surveys.load("mine", MINE | {"fields": {"alert_id": "id", "ra_deg": "a", "x_pixel": "a"}})
    (alert,) = decoded([avro_file({"id": 1, "a": value}, schema(id="long", a=kind))], profile)
    assert alert.field("ra_deg") is None
    assert alert.field("x_pixel") is None
    assert not alert.layout.has("ra_deg")


@pytest.mark.parametrize(("kind", "value"), [("string", "pixels"), ("long", 3), (["null", "bytes", "long"], b"x")])
def test_a_cutout_of_a_type_that_cannot_be_used_counts_as_absent(kind: Any, value: Any) -> None:
    profile = surveys.load("mine", MINE | {"fields": {"alert_id": "id"}})
    (alert,) = decoded([avro_file({"id": 1, "pixels": value}, schema(id="long", pixels=kind))], profile)
    assert alert.cutout("difference") is None


def test_a_cutout_is_a_view_of_the_packet() -> None:
    profile = surveys.load("mine", MINE | {"fields": {"alert_id": "id"}})
    value = avro_file({"id": 1, "pixels": b"\x01\x02"}, schema(id="long", pixels=["null", "bytes"]))
    (alert,) = decoded([value], profile)
    cutout = alert.cutout("difference")
    assert isinstance(cutout, memoryview)
    assert cutout.obj is alert.packet.value


def test_null_is_null_and_a_null_id_is_rejected() -> None:
    profile = surveys.load("mine", MINE)
    writer = schema(head=["null", head("long")], x=["null", "float"], pixels=["null", "bytes"])
    fine = avro_file({"head": {"number": 1}, "x": None, "pixels": None}, writer)
    bad = avro_file({"head": None, "x": 1.0, "pixels": b""}, writer)
    (alert,), (rejected,) = decoder(profile).decode([packet(fine), packet(bad, 1)])
    assert alert.field("x_pixel") is None
    assert alert.cutout("difference") is None
    assert (rejected.reason, rejected.packet.offset, rejected.stage) == (Reason.MISSING_ID, 1, "decode")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("int", [1, 2, -3]),
        (["null", "long"], [1, None, 2**40]),
        ("string", ["g", "", "r"]),
        (["null", "string"], [None, "g", "z"]),
    ],
)
def test_a_field_of_each_alert_of_a_batch_is_what_each_alert_says_alone(kind: Any, values: list[Any]) -> None:
    profile = surveys.load("mine", MINE | {"fields": {"alert_id": "id", "band": "filter", "object_id": "name"}})
    writer = schema(id="long", filter=kind, pixels="bytes")
    records = [{"id": n, "filter": value, "pixels": b"1234"} for n, value in enumerate(values)]
    alerts = decoded([avro_file(record, writer) for record in records], profile)
    assert field_of_each(alerts, "band") == [alert.field("band") for alert in alerts] == values
    assert field_of_each(alerts, "object_id") == [None] * len(values)

    other = schema(pixels="bytes", filter="string", id="long")
    mixed = [*alerts, *decoded([avro_file({"id": 9, "filter": "y", "pixels": b"1234"}, other)], profile)]
    assert field_of_each(mixed, "band") == [*values, "y"]
    assert field_of_each([], "band") == []


def test_the_layouts_of_old_schemas_are_forgotten() -> None:
    limits = DEFAULT_LIMITS
    profile = surveys.load("mine", MINE | {"fields": {"alert_id": "id"}})
    decoder = Decoder(FrameReader(), profile, limits)
    for number in range(limits.schema_cache_entries + 5):
        value = avro_file({"id": number, f"f{number}": 0}, schema(**{"id": "long", f"f{number}": "int"}))
        alerts, _ = decoder.decode([Packet(value, "in", 0, number)])
        assert alerts[0].alert_id == str(number)
    assert len(decoder._layouts) == limits.schema_cache_entries


def test_a_misspelt_key_of_injection_is_told_with_the_right_one():
    profile = {"name": "x", "fields": {"alert_id": "id"}, "cutouts": {"difference": "d"}}
    assert surveys.parse(profile | {"injection": {"injected": "fake"}}, where="x").injection.injected == ("fake",)
    with pytest.raises(ConfigError, match="did you mean injected"):
        surveys.parse(profile | {"injection": {"injectd": "fake"}}, where="x")
