"""What the soak, the burst and the scaling run conclude from what they saw."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import burst
import loads
import scaling
import sizes
import soak
from growth import Windows, grown
from outcome import Out, Sent, _scored_at_us, latency
from processes import Cores, Span

from deployment import deploy
from flow import Record, decode_file, read, send

FIELDS = {"rss_bytes": 100e6, "uss_bytes": 50e6, "descriptors": 40, "threads": 20}


def _samples(**last: float) -> list[dict]:
    """An hour of one worker that comes to hold what `last` says, evenly."""
    samples = []
    for at in range(10, 3610, 10):
        reading = {name: value + (last.get(name, value) - value) * at / 3600 for name, value in FIELDS.items()}
        samples.append({"at_s": at, "processes": {"worker 1": reading | {"cpu_s": at / 10}}})
    return samples


def test_an_hour_is_judged_by_ten_minutes_after_five_and_the_last_ten():
    windows = Windows.of(3600)
    assert [windows.first(at) for at in (299, 300, 899, 900)] == [False, True, True, False]
    assert [windows.last(at) for at in (2999, 3000, 3600)] == [False, True, True]


@pytest.mark.parametrize(
    ("last", "word"),
    [
        ({}, None),
        ({"rss_bytes": 104e6}, None),
        ({"rss_bytes": 110e6}, "RSS"),
        ({"uss_bytes": 60e6}, "USS"),
        ({"uss_bytes": 40e6}, None),
        ({"descriptors": 42}, "descriptors"),
        ({"threads": 22}, "threads"),
    ],
)
def test_what_a_process_gains_over_the_hour_is_told(last, word):
    (growth,) = grown(_samples(**last), Windows.of(3600))
    problems = list(growth.problems())
    assert len(problems) == (word is not None)
    assert all(word in problem for problem in problems)
    assert growth.cpu_cores == pytest.approx((0.1, 0.1))


def test_a_process_that_came_later_is_not_compared():
    samples = _samples()
    samples[-1]["processes"]["worker 2"] = samples[-1]["processes"]["worker 1"]
    assert [growth.process for growth in grown(samples, Windows.of(3600))] == ["worker 1"]


def test_renumbered_alerts_differ_in_their_candid_alone(real_packets, monkeypatch):
    monkeypatch.setenv("ALERTS_DIR", str(real_packets("ztf")[0].parents[2]))
    candid, packet = soak.real_packets()[0]
    changed = next(soak.renumbered()).packet
    assert len(changed) == len(packet)
    assert packet.replace(soak._as_avro(candid), soak._as_avro(soak.FIRST_CANDID)) == changed
    before, after = decode_file(packet), decode_file(changed)
    assert (before["candid"], after["candid"]) == (candid, soak.FIRST_CANDID)
    assert after["candidate"].pop("candid") == soak.FIRST_CANDID
    assert before["candidate"].pop("candid") == candid
    assert {**before, "candid": 0} == {**after, "candid": 0}


def test_messages_of_the_burst_are_told_by_partition_and_offset():
    sent = Sent(np.zeros(10, np.int64), partitions=4, first=3)
    assert [sent.number(i % 4, 3 + i // 4) for i in range(10)] == list(range(10))
    assert sent.number(3, 2) < 0


def test_a_bursts_times_are_counted_from_each_messages_own():
    sent = Sent(np.array([1000, 1500, 2000]), partitions=1, first=0)
    found = latency(sent, Out(np.array([1100, 1700, -1]), np.array([1200, 2100, -1]), again=0))
    assert (found["missing"], found["backlog_at_end"], found["all_out_s"]) == (1, 2, 1.1)
    assert found["latency_s"]["max"] == 0.6
    assert found["each_second"] == {"sent": [2, 1], "scored": [2], "out": [1, 1]}
    assert found["scored_to_out_s"]["p50"] == pytest.approx(0.25)


@pytest.mark.kafka
def test_the_time_of_scoring_is_read_from_the_end_of_the_record(kafka, real_packets, tmp_path):
    deployment = deploy(kafka, tmp_path, survey="ztf")
    send(kafka, deployment.input, [Record(real_packets("ztf")[0].read_bytes())])
    deployment.run_worker()
    for topic in (deployment.output, deployment.lite):
        (record,) = read(kafka, topic)
        decoded = decode_file(record.value)
        scored_at = (decoded.get("stream_vae") or decoded["enrichment"])["scored_at"]
        assert _scored_at_us(record.value) == round(scored_at.timestamp() * 1e6)


@pytest.mark.parametrize(
    ("p99", "kept", "busy", "worker", "words"),
    [
        (0.5, True, 20, 9.9, "nothing"),
        (5, False, 12, 6, "generator"),
        (5, True, 19, 6, "broker and worker"),
        (5, True, 12, 9.5, "worker 1"),
        (5, True, 12, 6, "waiting"),
    ],
)
def test_what_a_burst_waited_for_is_named(p99, kept, busy, worker, words):
    result = {"latency_s": {"p99": p99}, "generator": {"kept_pace": kept}}
    span = Span(10, {"worker 1": worker, "broker": 8.0}, Cores(busy, 20 - busy, 0))
    assert words in burst.limit(result, span)


def test_fewer_alerts_come_at_the_bursts_pace_and_the_steady_load_stays():
    plan, less = loads.Plan(), loads.Plan().lessened(1001)
    assert [load.alerts for load in less.loads] == [4000, 1001]
    assert [load.alerts / load.over_s for load in less.loads] == pytest.approx(
        [load.alerts / load.over_s for load in plan.loads]
    )
    assert less.even(less.warm_up) == 1000


def test_a_size_is_set_beside_what_else_is_asked_for():
    plan = sizes.Plan(settings={"batch": {"max_wait_s": 0.2}, "encoder": {"threads": 1}})
    assert plan.settings_of(sizes.Size(max_alerts=16)) == {
        "batch": {"max_wait_s": 0.2, "max_alerts": 16},
        "encoder": {"threads": 1},
    }


def test_scaling_counts_what_lay_idle_as_available():
    one = scaling.Run(1, alerts=1000, wall_s=2, worker_cpu_s=1, idle_s=1, broker_cpu_s=0.5)
    two = scaling.Run(2, alerts=1500, wall_s=1, worker_cpu_s=1.5, idle_s=0, broker_cpu_s=0.5)
    found = scaling.ratios([(one, two)])
    values = [spread.median for spread in found.values()]
    assert values == pytest.approx([4.0, 1.0, 3.0])


def test_an_unhappy_end_of_a_soak_is_told():
    page = {"since": 0, "next_offset": 10, "consumed": 10, "published": 9, "dead_lettered": 1}
    document = {
        "books": [{"balanced": True, "page": page}],
        "sent": 10,
        "samples": [{"restarts": 0, "processes": {"supervisor": {}, "worker 1": {}}}],
        "settled": True,
        "lite": 9,
        "exit": 0,
    }
    fine = dict.fromkeys(("lost", "invented", "misplaced", "duplicated", "disordered"), 0)
    wrong = list(soak._wrong(document, SimpleNamespace(**fine), workers=1))
    assert [each.split()[0] for each in wrong] == ["the", "9"]
