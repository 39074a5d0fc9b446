"""Simulated packets are good alerts: for stock fastavro, for astropy, and for the profiles."""

import gzip
import io
import json

import fastavro
import numpy as np
import pytest
from astropy.io import fits
from stream_vae import surveys
from stream_vae.sky import BOGUS_KINDS, REAL_KINDS, simulate_stamps
from stream_vae.sky.packets import SimulatedPacket, packet_schema, simulate_packets

N = 40


@pytest.fixture(scope="module", params=["ztf", "candidate"])
def shape(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def packets(shape: str) -> list[SimulatedPacket]:
    return list(simulate_packets(N, shape=shape, seed=3))


def _alert(packet: bytes) -> dict:
    (alert,) = fastavro.reader(io.BytesIO(packet))
    return alert


def test_packets_are_the_same_for_the_same_seed_and_have_other_ids_for_another(
    shape: str, packets: list[SimulatedPacket]
) -> None:
    assert list(simulate_packets(N, shape=shape, seed=3)) == packets
    other = {packet.candid for packet in simulate_packets(N, shape=shape, seed=4)}
    assert not other & {packet.candid for packet in packets}


def test_each_packet_is_one_alert_with_its_own_id(shape: str, packets: list[SimulatedPacket]) -> None:
    alerts = [_alert(packet.packet) for packet in packets]
    name = {"ztf": "candid", "candidate": "candidate_id"}[shape]
    assert [alert[name] for alert in alerts] == [packet.candid for packet in packets]
    assert len({packet.candid for packet in packets}) == N
    objects = [alert["objectId" if shape == "ztf" else "object_id"].encode() for alert in alerts]
    assert objects == [packet.key for packet in packets]


def test_the_label_agrees_with_the_kind(packets: list[SimulatedPacket]) -> None:
    assert all(packet.kind in (REAL_KINDS if packet.label else BOGUS_KINDS) for packet in packets)
    assert {packet.label for packet in packets} == {0, 1}


def test_every_field_of_the_profile_is_there(shape: str, packets: list[SimulatedPacket]) -> None:
    profile, alert = surveys.load(shape), _alert(packets[0].packet)
    paths = [path for name in type(profile.fields).model_fields for path in getattr(profile.fields, name)]
    for path in paths:
        value = alert
        for step in path.split("."):
            value = value[step]
        assert value is not None


def test_cutouts_hold_the_simulated_pixels_and_negative_peaks_are_of_template_minus_science() -> None:
    stamps = simulate_stamps(9, size=63, seed=9)
    assert set(stamps.positive.tolist()) == {True, False}
    for i, packet in enumerate(simulate_packets(9, shape="ztf", seed=9)):
        stamps.stamps[i, :, :, 0] *= 1 if stamps.positive[i] else -1
        alert = _alert(packet.packet)
        for channel, name in enumerate(("cutoutDifference", "cutoutScience", "cutoutTemplate")):
            with fits.open(io.BytesIO(gzip.decompress(alert[name]["stampData"]))) as hdus:
                assert hdus[0].header["BITPIX"] == -32
                np.testing.assert_array_equal(hdus[0].data, stamps.stamps[i, :, :, channel])


def test_raw_stamps_hold_the_simulated_pixels() -> None:
    stamps = simulate_stamps(5, seed=9)
    for i, packet in enumerate(simulate_packets(5, shape="candidate", seed=9)):
        alert = _alert(packet.packet)
        for channel, name in enumerate(("difference", "science", "template")):
            pixels = np.frombuffer(alert[name], "<f4").reshape(alert["height"], alert["width"])
            np.testing.assert_array_equal(pixels, stamps.stamps[i, :, :, channel])


def test_with_a_schema_id_the_packet_has_confluents_wire_format(shape: str, packets: list[SimulatedPacket]) -> None:
    (framed,) = simulate_packets(1, shape=shape, seed=3, schema_id=703)
    assert framed.packet[:5] == b"\0" + (703).to_bytes(4, "big")
    schema = fastavro.parse_schema(json.loads(packet_schema(shape)))
    body = io.BytesIO(framed.packet[5:])
    alert = fastavro.schemaless_reader(body, schema, None)
    assert not body.read()
    expected = _alert(packets[0].packet)
    assert json.dumps(alert, default=repr) == json.dumps(expected, default=repr)


def test_the_alert_says_whether_its_peak_is_positive() -> None:
    stamps = simulate_stamps(30, seed=3, size=21)
    packets = simulate_packets(30, shape="ztf", seed=3, size=21)
    said = [_alert(packet.packet)["candidate"]["isdiffpos"] for packet in packets]
    assert said == ["t" if positive else "f" for positive in stamps.positive]
    assert set(said) == {"t", "f"}


def test_only_moving_objects_have_a_solar_system_match() -> None:
    for packet in simulate_packets(150, shape="ztf", seed=1, size=21):
        distance = _alert(packet.packet)["candidate"]["ssdistnr"]
        assert (0.0 <= distance <= 2.0) == (packet.kind == "asteroid")
