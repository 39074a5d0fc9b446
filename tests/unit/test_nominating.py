"""Which alerts a worker offers: compared by rank before anything is decoded, and what it reads of the others."""

import time
from pathlib import Path

import numpy as np
import pytest
from stream_vae import surveys
from stream_vae.alert import Packet
from stream_vae.avro.framing import FrameReader
from stream_vae.avro.limits import DEFAULT_LIMITS
from stream_vae.errors import Reason, RejectedAlertError
from stream_vae.labels.alerts import AlertFolder
from stream_vae.labels.solar_system import Tolerances, judge
from stream_vae.model.release import Preprocessing
from stream_vae.runtime.nominating import Nominator
from stream_vae.sampling import PROVENANCES, digests, sampled_ranks, unpack_heads
from stream_vae.stages.decode import Decoder
from stream_vae.stages.stamp import Stamps

from reservoirs import NOW_S, named
from stage_parts import avro_file

ZTF = surveys.load("ztf")
PREPROCESSING = Preprocessing(stamp_size=5)
OFF = (-np.inf,) * 4
OPEN = (np.inf,) * 4


def nominator(profile=ZTF, **attributes):
    one = Nominator(profile.name, profile, 7.0)
    for name, value in attributes.items():
        setattr(one, name, value)
    return one


def offered(one, alerts, novelty=0.5, quality=0):
    """Give the batch, and the heads of its records."""
    rows = len(alerts)
    stamps = Stamps(np.zeros((rows, 5, 5, 1), np.float32), np.full(rows, quality, np.uint32))
    novelties = np.full(rows, novelty, np.float32)
    chosen, ranks = one.nominate(alerts, novelties)
    some = Stamps(stamps.stamps[chosen], stamps.quality[chosen])
    batch, too_long = one.batch([alerts[row] for row in chosen], some, novelties[chosen], ranks)
    assert too_long == 0
    return batch, unpack_heads(batch.records, PREPROCESSING)


class Undecodable:
    """An alert that must be judged by its id and time alone."""

    def __init__(self, alert_id):
        self.alert_id, self.packet = alert_id, Packet(b"", "t", 0, 0, timestamp_ms=int(NOW_S * 1000))

    def field(self, name):
        raise AssertionError(f"{name} was decoded")


def test_nothing_is_decoded_of_what_could_enter_no_stratum():
    alerts = [Undecodable(str(number)) for number in range(500)]
    rows, ranks = nominator(thresholds=OFF).nominate(alerts, np.full(500, 0.5, np.float32))
    assert (rows.size, ranks.shape) == (0, (0, 4))


def test_asteroids_are_not_looked_for_once_known_alerts_are_full():
    asteroid = {"solar_system.distance_arcsec": 0.5}
    alerts = named([str(number) for number in range(400)], timestamp_ms=1, **asteroid)
    ranks = sampled_ranks(digests("ztf", [a.alert_id for a in alerts]), np.full(400, 0.0), np.full(400, 0.5, "f4"), 7.0)
    threshold = np.sort(ranks[:, 3])[9]
    batch, heads = offered(nominator(thresholds=(-np.inf, -np.inf, -np.inf, threshold)), alerts)
    assert len(batch.alert_ids) == 10  # the one at the threshold is among them
    assert (heads.labels == 1).all()
    for alert, rank in zip(alerts, ranks[:, 3], strict=True):
        if rank > threshold:
            alert.fields["solar_system.distance_arcsec"] = AssertionError("was decoded")
    everything, _ = offered(nominator(thresholds=(np.inf, np.inf, np.inf, threshold)), alerts)
    assert len(everything.alert_ids) == 400
    assert np.isfinite(everything.ranks[:, 3]).sum() == 10


def test_an_asteroid_enters_known_and_every_sample_and_others_the_samples():
    near = named(["near"], timestamp_ms=1, **{"solar_system.distance_arcsec": 0.5})
    far = named(["far"], timestamp_ms=1, **{"solar_system.distance_arcsec": 20.0})
    batch, heads = offered(nominator(), near + far)
    assert np.isfinite(batch.ranks).tolist() == [[True] * 4, [True, True, True, False]]
    assert heads.labels.tolist() == [1, -1]
    assert [PROVENANCES[code] for code in heads.provenances] == ["solar_system", ""]


def injecting(**more):
    return ZTF.model_copy(update={"injection": surveys.Injection(injected="fake"), **more})


@pytest.mark.parametrize(
    ("said", "injected"),
    [(True, True), (1, True), (0.5, True), ("x", True), (False, False), (0, False), ("", False), (None, False)],
)
def test_an_injected_source_enters_known_alone(said, injected):
    batch, heads = offered(nominator(injecting()), named(["a"], timestamp_ms=1, **{"injection.injected": said}))
    assert np.isfinite(batch.ranks[0]).tolist() == ([False] * 3 + [True] if injected else [True] * 3 + [False])
    assert (heads.labels[0], PROVENANCES[heads.provenances[0]]) == ((1, "injection") if injected else (-1, ""))


def test_an_injected_source_enters_nothing_where_known_alerts_are_full():
    alerts = named(["a"], timestamp_ms=1, **{"injection.injected": True})
    batch, _ = offered(nominator(injecting(), thresholds=(np.inf, np.inf, np.inf, -np.inf)), alerts)
    assert not batch.alert_ids


def test_an_alert_that_waits_for_its_stamp_is_sent_whatever_its_ranks():
    alerts = named(["a", "b"], timestamp_ms=1)
    batch, _ = offered(nominator(thresholds=OFF, waiting=frozenset({"b"})), alerts)
    assert batch.alert_ids == ["b"]
    assert np.isinf(batch.ranks).all()


def test_the_filter_goes_by_the_profiles_names_and_is_shortened_between_characters():
    alerts = [*named(["a"], band=2), *named(["b"], band="ultraviolét"), *named(["c"], band="zwölfté")]
    alerts += named(["d"], band=RejectedAlertError("no UTF-8", reason=Reason.MALFORMED))
    _, heads = offered(nominator(), alerts)
    assert [band.decode() for band in heads.bands] == ["r", "ultravio", "zwölft", ""]


def test_a_time_that_is_absent_or_in_the_future_is_now():
    before = time.time()
    alerts = [*named(["a"]), *named(["b"], timestamp_ms=9_000_000_000_000), *named(["c"], timestamp_ms=1234)]
    _, heads = offered(nominator(), alerts)
    assert before <= heads.time_s[0] <= time.time()
    assert before <= heads.time_s[1] <= time.time()
    assert heads.time_s[2] == 1.234


def test_novelty_and_quality_are_kept():
    _, heads = offered(nominator(), named(["a"]), novelty=0.75, quality=5)
    assert (heads.novelty[0], heads.quality[0]) == (0.75, 5)


@pytest.mark.parametrize("kind", ["boolean", "int", "double", "string", ["null", "boolean"]])
def test_the_path_of_injection_is_found_in_a_record(kind):
    schema = {
        "type": "record",
        "name": "alert",
        "fields": [{"name": "candid", "type": "long"}, {"name": "fake", "type": kind}],
    }
    values = {"boolean": (True, False), "int": (1, 0), "double": (1.0, 0.0), "string": ("x", "")}
    yes, no = values["boolean" if isinstance(kind, list) else kind]
    decoder = Decoder(FrameReader(), injecting(), DEFAULT_LIMITS)
    packets = [
        Packet(avro_file({"candid": 1, "fake": each}, schema), "t", 0, row) for row, each in enumerate((yes, no))
    ]
    alerts = decoder.decode(packets).alerts
    assert [bool(alert.field("injection.injected")) for alert in alerts] == [True, False]


def test_real_alerts_name_their_asteroids(real_packets, alerts_dir):
    decoder = Decoder(FrameReader(), ZTF, DEFAULT_LIMITS, solar_system=True)
    packets = [
        Packet(Path(path).read_bytes(), "t", 0, row, timestamp_ms=1) for row, path in enumerate(real_packets("ztf"))
    ]
    alerts = decoder.decode(packets).alerts
    batch, heads = offered(nominator(thresholds=OPEN), alerts)
    assert len(batch.alert_ids) == len(alerts)
    assert set(heads.bands.tolist()) <= {b"g", b"r", b"i"}
    read = AlertFolder(alerts_dir / "ztf", "ztf").read()  # as `labels match` does
    named_there = {facts.alert_id for some in read for facts in some if judge(facts, Tolerances()).label}
    known = {alert_id for alert_id, label in zip(batch.alert_ids, heads.labels, strict=True) if label == 1}
    assert known == named_there
    assert known
