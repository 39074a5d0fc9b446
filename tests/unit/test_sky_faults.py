"""Bad messages of every kind: made alike by the same seed, and treated as the list says."""

import numpy as np
import pytest
from stream_vae import surveys
from stream_vae.alert import Packet
from stream_vae.avro.framing import FrameReader
from stream_vae.avro.limits import Limits
from stream_vae.errors import Reason
from stream_vae.faults.corpus import EXPECTED, KINDS, Outcome, corrupt, kinds_for
from stream_vae.model.release import Preprocessing
from stream_vae.quality import UNSCOREABLE, Quality
from stream_vae.sky.packets import simulate_packets
from stream_vae.stages.decode import Decoder
from stream_vae.stages.stamp import Stamper

MAX_KAFKA_MESSAGE_BYTES = 1_000_000  # a broker's default is a little more
PACKETS = {shape: next(simulate_packets(1, shape=shape, seed=5)).packet for shape in ("ztf", "candidate")}
CASES = [(shape, kind) for shape, packet in PACKETS.items() for kind in kinds_for(packet)]


def test_there_are_at_least_forty_kinds_and_each_has_its_expected_end() -> None:
    assert len(KINDS) >= 40
    assert set(EXPECTED) == set(KINDS)
    for expected in EXPECTED.values():
        assert (expected.outcome is Outcome.DEAD_LETTER) == bool(expected.reasons)
        assert (expected.outcome is Outcome.FLAGGED) == bool(expected.quality & UNSCOREABLE)


def test_every_reason_and_flag_that_bytes_can_cause_is_caused_by_some_kind() -> None:
    reasons = frozenset().union(*(expected.reasons for expected in EXPECTED.values()))
    of_labels = {Reason.NO_LABEL, Reason.NO_ROOM}
    assert set(Reason) - reasons == {Reason.POISON, Reason.TOO_LARGE_TO_PUBLISH} | of_labels
    flags = Quality(0)
    for expected in EXPECTED.values():
        flags |= expected.quality
    assert UNSCOREABLE & ~flags == Quality.ENCODER_OUTPUT_NOT_FINITE


def test_an_alert_like_ztfs_can_have_every_fault_but_those_of_raw_stamps() -> None:
    assert set(KINDS) - set(kinds_for(PACKETS["ztf"])) == {kind for kind in KINDS if kind.startswith("raw_")}


def test_every_kind_can_be_had_by_one_shape_or_the_other() -> None:
    assert {kind for _, kind in CASES} == set(KINDS)


@pytest.mark.parametrize(("shape", "kind"), CASES)
def test_a_fault_is_the_same_for_the_same_seed_and_spoils_the_message(shape: str, kind: str) -> None:
    bad = corrupt(PACKETS[shape], kind, np.random.default_rng(1))
    assert bad != PACKETS[shape]
    assert bad == corrupt(PACKETS[shape], kind, np.random.default_rng(1))
    assert len(bad) < MAX_KAFKA_MESSAGE_BYTES


@pytest.mark.parametrize(("shape", "kind"), CASES)
def test_a_bad_message_ends_where_the_list_says(shape: str, kind: str) -> None:
    bad = corrupt(PACKETS[shape], kind, np.random.default_rng(2))
    outcome, reason, quality = _treat(shape, bad)
    expected = EXPECTED[kind]
    assert outcome is expected.outcome
    assert reason is None or reason in expected.reasons
    assert quality & expected.quality == expected.quality


def _treat(shape: str, packet: bytes) -> tuple[Outcome, Reason | None, Quality]:
    profile = surveys.load(shape)
    decoded = Decoder(FrameReader(), profile, Limits()).decode([Packet(packet, "alerts", 0, 0)])
    if decoded.rejected:
        return Outcome.DEAD_LETTER, decoded.rejected[0].reason, Quality(0)
    preprocessing = Preprocessing(cutouts=("difference", "science", "template"))
    stamps = Stamper(preprocessing, profile.cutouts, 4 << 20).cut(decoded.alerts)
    outcome = Outcome.SCORED if stamps.scoreable[0] else Outcome.FLAGGED
    return outcome, None, Quality(int(stamps.quality[0]))


def test_a_message_without_its_schema_can_only_have_faults_that_need_none() -> None:
    (framed,) = simulate_packets(1, shape="candidate", seed=5, schema_id=7)
    kinds = kinds_for(framed.packet)
    assert "random_bytes" in kinds
    assert "bad_sync" not in kinds
    with pytest.raises(ValueError, match="bad_sync"):
        corrupt(framed.packet, "bad_sync", np.random.default_rng(0))


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(KeyError):
        corrupt(PACKETS["ztf"], "no_such_kind", np.random.default_rng(0))
