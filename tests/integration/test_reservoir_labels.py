"""Labels in the reservoir: they keep their stamps for good, or wait for them, whoever writes and however often."""

import contextlib
import threading
import uuid
from datetime import UTC, datetime

import numpy as np
import pytest
from stream_vae.embedded.valkey import EmbeddedValkey
from stream_vae.errors import ConfigError, RetriableError
from stream_vae.labels import Label, LabelError, Provenance
from stream_vae.model.release import Preprocessing
from stream_vae.reservoir import Reservoir, address, connect
from stream_vae.sampling import SAMPLED, Capacities, Heads

from reservoirs import NOW_S, batch_of

PREPROCESSING = Preprocessing(stamp_size=5)
CAPACITIES = Capacities(100, 50, 50, 50, 40)
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def valkey():
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture(params=["redis_server", "valkey"])
def url(request):
    return request.getfixturevalue(request.param).url


@pytest.fixture
def survey():
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def reservoir(url, survey):
    with opened(url, survey) as one:
        yield one
        one.clear()


def opened(url, survey, anchor_capacity=40):
    client = connect(url, timeout_s=10.0)
    return contextlib.closing(Reservoir(client, survey, where=address(url), anchor_capacity=anchor_capacity))


def names(count, first=0):
    return [str(number) for number in range(first, first + count)]


def offer(reservoir, ids, *, strata=("uniform",), capacities=CAPACITIES, value=0.0, **arguments):
    stamps = np.full((len(ids), 5, 5, 1), value, np.float32)
    batch = batch_of(reservoir.survey, ids, stamps, strata=strata, **arguments)
    return reservoir.add(batch, preprocessing=PREPROCESSING, capacities=capacities)


def human(alert_id, label=1, **more):
    return Label(alert_id, label, Provenance.HUMAN, **more)


def drawn(reservoir, stratum="anchors"):
    sample = reservoir.draw(None, np.random.default_rng(0), strata=(stratum,))
    return dict(zip(sample.alert_ids, zip(sample.labels.tolist(), sample.provenances, strict=True), strict=True))


def test_a_label_keeps_the_stamp_that_another_stratum_would_have_evicted(reservoir):
    offer(reservoir, names(50))
    assert reservoir.label(human("7", 0, labelled_at=NOON)) == "anchored"
    offer(reservoir, names(3000, 50))  # more than there is room for
    assert drawn(reservoir) == {"7": (0, "human")}
    assert len(drawn(reservoir, "uniform")) == 100


def test_the_same_label_again_changes_nothing_and_another_joins_it(reservoir):
    offer(reservoir, ["a"])
    outcomes = [
        reservoir.label(label)
        for label in (human("a"), human("a"), human("a", 0, confidence=0.5, comment="a\nline"), human("a"))
    ]
    assert outcomes == ["anchored", "repeated", "added", "repeated"]
    assert set(reservoir.labels()) == {human("a"), human("a", 0, confidence=0.5, comment="a\nline")}
    stats = reservoir.stats()
    assert (stats.labels, stats.conflicts) == ({"human": {1: 1, 0: 1}}, 1)
    assert drawn(reservoir) == {"a": (-1, "human")}  # two people disagree, and neither is right by rank


def test_a_label_of_an_unknown_alert_waits_until_a_worker_sends_it(reservoir):
    offer(reservoir, names(10))
    version = offer(reservoir, names(1)).waiting_version
    assert reservoir.label(human("late")) == "waiting"
    assert reservoir.label(human("late")) == "repeated"
    assert reservoir.label(human("late", 1, confidence=0.9)) == "waiting"
    assert reservoir.stats().waiting == 1
    answer = reservoir.add(
        batch_of(reservoir.survey, [], np.empty((0, 5, 5, 1), np.float32)),
        preprocessing=PREPROCESSING,
        capacities=CAPACITIES,
        waiting_version=version,
    )
    assert answer.waiting == {"late"}
    offer(reservoir, ["late"], strata=(), value=1.0)  # no stratum would take it
    assert reservoir.stats().waiting == 0
    assert drawn(reservoir) == {"late": (1, "human")}
    asked = {"preprocessing": PREPROCESSING, "capacities": CAPACITIES, "waiting_version": answer.waiting_version}
    assert reservoir.add(batch_of(reservoir.survey, [], np.empty((0, 5, 5, 1), "f4")), **asked).waiting == frozenset()


def test_labels_may_come_before_the_first_alert(reservoir):
    assert reservoir.label(human("x")) == "waiting"
    assert reservoir.stats().waiting == 1
    assert reservoir.stats().capacity is None
    answer = offer(reservoir, ["x", "y"])
    assert (answer.status, answer.sizes.anchors, answer.stamps) == ("ok", 1, 2)


def test_a_stamp_that_is_given_with_its_label_is_kept(reservoir):
    record = batch_of("any", ["s"], np.ones((1, 5, 5, 1), np.float32)).records[0]
    with pytest.raises(ConfigError, match="does not know yet how stamps are prepared"):
        reservoir.label(human("s"), record)
    offer(reservoir, names(3))
    with pytest.raises(ConfigError, match="length differs"):
        reservoir.label(human("s"), record + b"x")
    assert reservoir.label(human("s")) == "waiting"
    assert reservoir.label(human("s"), record) == "anchored"
    assert (
        reservoir.draw(None, np.random.default_rng(0), strata=("anchors",)).stamps.tolist()
        == np.ones((1, 5, 5, 1)).tolist()
    )


def test_full_anchors_refuse_and_evict_nothing(reservoir):
    offer(reservoir, names(60))
    outcomes = [reservoir.label(human(alert_id)) for alert_id in names(60)]
    assert (outcomes.count("anchored"), outcomes.count("full")) == (40, 20)
    assert drawn(reservoir).keys() == set(names(40))
    assert reservoir.label(human("0", 0)) == "added"  # of an anchor there is room for more to say
    assert reservoir.stats().refused == 20


def test_labels_that_wait_take_at_most_half_of_the_room_and_keep_their_place(reservoir):
    offer(reservoir, names(60))
    outcomes = [reservoir.label(human(f"unknown-{number}")) for number in range(30)]
    assert (outcomes.count("waiting"), outcomes.count("full")) == (20, 10)
    outcomes = [reservoir.label(human(alert_id)) for alert_id in names(30)]
    assert (outcomes.count("anchored"), outcomes.count("full")) == (20, 10)
    offer(reservoir, [f"unknown-{number}" for number in range(30)], strata=())
    assert len(drawn(reservoir)) == 40


def test_an_endless_label_is_refused(reservoir):
    with pytest.raises(LabelError, match="too long"):
        reservoir.label(human("a", comment="x" * 5000))
    with pytest.raises(LabelError, match="too long"):
        reservoir.label(human("a" * 300))
    offer(reservoir, ["a"])
    outcomes = {reservoir.label(human("a", comment=f"{number}" + "x" * 1000)) for number in range(50)}
    assert outcomes == {"anchored", "added", "full"}  # all labels together have a bound too


def test_known_alerts_carry_their_label_and_people_have_the_last_word(reservoir):
    heads = Heads.empty(3)
    heads.labels[:], heads.provenances[:], heads.time_s[:] = 1, [2, 3, 3], NOW_S
    offer(reservoir, ["injected", "asteroid", "other"], strata=("known",), heads=heads)
    assert drawn(reservoir, "known")["injected"] == (1, "injection")
    assert drawn(reservoir, "known")["asteroid"] == (1, "solar_system")
    assert reservoir.label(human("other", 0)) == "anchored"
    assert drawn(reservoir) == {"other": (0, "human")}
    stats = reservoir.stats()
    assert stats.labels == {"human": {0: 1}, "injection": {1: 1}, "solar_system": {1: 2}}
    assert stats.conflicts == 1


def test_writers_and_workers_at_the_same_time_lose_no_label_and_no_stamp(url, survey, reservoir):
    ids = names(200)
    capacity = {"capacities": Capacities(50, 0, 0, 0, 500)}

    def label(seed):
        with opened(url, survey, 500) as own:
            for row in np.random.default_rng(seed).permutation(200):
                own.label(human(ids[row], int(row % 2), comment=f"writer {seed % 2}"))  # two of four say the same

    def work(seed):
        with opened(url, survey, 500) as own:
            for _ in range(2):
                order = np.random.default_rng(seed).permutation(200)
                for start in range(0, 200, 20):
                    offer(own, [ids[row] for row in order[start : start + 20]], **capacity)

    threads = [threading.Thread(target=label, args=(seed,)) for seed in range(4)]
    threads += [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    offer(reservoir, ids, **capacity)  # whatever was labelled after its alert had passed comes once more
    assert drawn(reservoir) == {alert_id: (row % 2, "human") for row, alert_id in enumerate(ids)}
    stats = reservoir.stats()
    assert (stats.waiting, stats.refused, stats.conflicts) == (0, 0, 0)
    assert len(reservoir.labels()) == 400


def test_two_servers_reservoirs_merge_to_the_one_that_saw_everything(redis_server, valkey, survey):
    random = np.random.default_rng(8)
    ids = np.array(names(3000))
    times, novelty = NOW_S - random.uniform(0, 3e6, 3000), random.uniform(0, 1, 3000)
    halves = random.permutation(3000)
    heads = Heads.empty(100)
    heads.labels[:], heads.provenances[:], heads.time_s[:] = 1, 3, NOW_S - 10

    def fill(reservoir, rows):
        for start in range(0, len(rows), 500):
            some = rows[start : start + 500]
            offer(reservoir, ids[some].tolist(), strata=SAMPLED[:3], time_s=times[some], novelty=novelty[some])
        offer(reservoir, [f"known-{row}" for row in rows[:100]], strata=("known",), heads=heads)

    with (
        opened(redis_server.url, survey) as one,
        opened(valkey.url, survey) as other,
        opened(valkey.url, f"{survey}-all") as whole,
    ):
        whole.survey = survey  # the same ranks under other keys
        fill(one, halves[:1700])
        fill(other, halves[1300:])  # and some alerts in both
        fill(whole, halves[:1700])
        fill(whole, halves[1300:])
        for label, of in ((human("1", 0), one), (human("2"), other), (human("nowhere"), other), (human("1"), other)):
            of.label(label, record_of(label))
            whole.label(label, record_of(label))
        merged = one.merge(other)
        assert (merged.labels, merged.refused) == (3, 0)
        assert merged.entered > 0
        for stratum in (*SAMPLED, "anchors"):
            assert drawn(one, stratum) == drawn(whole, stratum)
        assert set(one.labels()) == set(whole.labels())
        assert one.stats().waiting == 1
        assert one.stats().strata[0].seen == whole.stats().strata[0].seen
        assert one.merge(other).entered == 0  # again changes nothing
        for reservoir in (one, other, whole):
            reservoir.clear()


def record_of(label):
    stamp = np.zeros((1, 5, 5, 1), np.float32)
    return None if label.alert_id == "nowhere" else batch_of("any", [label.alert_id], stamp).records[0]


def test_reservoirs_of_stamps_that_differ_do_not_merge(redis_server, valkey, survey):
    with opened(redis_server.url, survey) as one, opened(valkey.url, survey) as other:
        offer(one, names(10))
        batch = batch_of(survey, names(10), np.zeros((10, 9, 9, 1), np.float32))
        other.add(batch, preprocessing=Preprocessing(stamp_size=9), capacities=CAPACITIES)
        with pytest.raises(ConfigError, match="do not fit together"):
            one.merge(other)
        one.clear()
        other.clear()


def test_a_server_without_room_says_that_the_label_can_be_given_again(survey):
    with EmbeddedValkey(max_memory="2mb") as small, opened(small.url, survey) as reservoir:
        client = connect(small.url, timeout_s=5.0)
        client.config_set("maxmemory", 1)
        with pytest.raises(RetriableError, match="maxmemory"):
            reservoir.label(human("a"))
        client.config_set("maxmemory", "100mb")
        assert reservoir.label(human("a")) == "waiting"
        client.close()


def test_labels_of_another_version_are_not_touched(reservoir):
    client = connect_of(reservoir)
    client.hset(f"{{vae}}:{reservoir.survey}:meta", "layout", "1")
    with pytest.raises(ConfigError, match=r"layout '1'.*reservoir clear"):
        reservoir.label(human("a"))


def connect_of(reservoir):
    return reservoir._client
