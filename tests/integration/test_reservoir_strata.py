"""The strata on a real Redis and a real Valkey: does each keep what its law says, whoever offers and however often?"""

import contextlib
import threading
import uuid

import numpy as np
import pytest
from stream_vae.embedded.valkey import EmbeddedValkey
from stream_vae.labels import Label, Provenance
from stream_vae.model.release import Preprocessing
from stream_vae.reservoir import Batch, Reservoir, address, connect
from stream_vae.sampling import NOVELTY_FLOOR, SAMPLED, Capacities, Heads, digests, memory_bound, sampled_ranks

from reservoirs import NOW_S, batch_of

PREPROCESSING = Preprocessing(stamp_size=5)
DAY_S = 86_400.0
TAU_DAYS = 7.0
KOLMOGOROV_AT_0_1_PERCENT = 1.95
"""Largest distance of two distributions times the square root of how many: exceeded once in a thousand times."""
CHI_SQUARE_4_AT_0_1_PERCENT = 18.47


@pytest.fixture(scope="module")
def valkey():
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture(params=["redis_server", "valkey"])
def url(request):
    return request.getfixturevalue(request.param).url


@contextlib.contextmanager
def opened(url, survey):
    with contextlib.closing(Reservoir(connect(url, timeout_s=10.0), survey, where=address(url))) as reservoir:
        yield reservoir


@pytest.fixture
def reservoir(url):
    """Of a survey that no other test knows."""
    with opened(url, f"test-{uuid.uuid4().hex[:12]}") as one:
        yield one
        one.clear()


def names(count, first=0):
    return [str(number) for number in range(first, first + count)]


def blank(count):
    return np.zeros((count, 5, 5, 1), np.float32)


def offer(reservoir, ids, capacities, *, rows=None, times=NOW_S, novelty=0.5, strata=SAMPLED, **arguments):
    """Offer alerts in batches, in the order of `rows`; the last answer."""
    ids = np.asarray(ids)
    times, novelty = np.broadcast_to(times, len(ids)), np.broadcast_to(novelty, len(ids))
    rows = np.arange(len(ids)) if rows is None else rows
    for start in range(0, len(rows), 512):
        some = rows[start : start + 512]
        batch = batch_of(
            reservoir.survey,
            ids[some].tolist(),
            blank(len(some)),
            strata=strata,
            time_s=times[some],
            novelty=novelty[some],
            **{"recent_days": TAU_DAYS, **arguments},
        )
        answer = reservoir.add(batch, preprocessing=PREPROCESSING, capacities=capacities, recent_days=TAU_DAYS)
    return answer


def kept(reservoir, stratum):
    return set(reservoir.draw(None, np.random.default_rng(0), strata=(stratum,)).alert_ids)


def offered_at_once(url, survey, ids, capacities, **columns):
    """Four writers offer three quarters of the alerts each, in orders of their own, and some of them twice."""

    def write(seed):
        random = np.random.default_rng(seed)
        rows = random.permutation(len(ids))[: len(ids) * 3 // 4]
        quarter = np.arange(seed, len(ids), 4)  # so that every alert is offered
        with opened(url, survey) as own:
            offer(own, ids, capacities, rows=np.concatenate([rows, quarter]), **columns)

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()


def test_every_stratum_keeps_its_smallest_ranks_whoever_offers_in_whatever_order(url, reservoir):
    random = np.random.default_rng(5)
    ids, times, novelty = names(6000), NOW_S - random.uniform(0, 60 * DAY_S, 6000), random.uniform(0, 1, 6000)
    capacities = Capacities(700, 600, 500, 400)
    offered_at_once(url, reservoir.survey, ids, capacities, times=times, novelty=novelty)
    ranks = sampled_ranks(digests(reservoir.survey, ids), times, novelty.astype(np.float32), TAU_DAYS)
    answer = reservoir.add(Batch.empty(), preprocessing=PREPROCESSING, capacities=capacities)
    assert answer.sizes == capacities
    members = {}
    for column, stratum in enumerate(SAMPLED):
        order = np.argsort(ranks[:, column])[: capacities[column]]
        members[stratum] = {ids[row] for row in order}
        assert kept(reservoir, stratum) == members[stratum]
        assert answer.thresholds[column] == ranks[order[-1], column]  # to the last bit
    assert answer.stamps == len(set.union(*members.values()))  # what no stratum keeps is gone, and nothing else


def law(weights, threshold):
    """Chance that an exponential variate over the weight is below the threshold, which is given as its logarithm."""
    return -np.expm1(-weights * np.exp(threshold))


def test_the_ages_of_recent_alerts_are_exponential(url):
    survey, count = "test-recent", 40_000
    random = np.random.default_rng(11)
    ids, ages_s = np.array(names(count)), random.uniform(0, 56 * DAY_S, count)
    with opened(url, survey) as reservoir:
        reservoir.clear()
        offered_at_once(url, survey, ids, Capacities(1, 800), times=NOW_S - ages_s, strata=("recent",))
        answer = reservoir.add(Batch.empty(), preprocessing=PREPROCESSING, capacities=Capacities(1, 800))
        members = kept(reservoir, "recent")
        reservoir.clear()
    sampled = np.sort(ages_s[np.isin(ids, list(members))])
    assert len(sampled) == 800
    # Of alerts at a constant rate, drawn without replacement: exponential but for the youngest, of which many are in.
    at = np.linspace(0, 56 * DAY_S, 5000)
    chance = law(np.exp((NOW_S - at) / (TAU_DAYS * DAY_S) + answer.thresholds[1]), 0.0)
    expected = np.interp(sampled, at, np.cumsum(chance) / chance.sum())
    distance = np.abs(expected - (np.arange(800) + 0.5) / 800).max()
    assert distance < KOLMOGOROV_AT_0_1_PERCENT / np.sqrt(800)
    # The mean of an exponential law is its tau; that of 800 is right to 3.5 %, and the youngest add a little.
    assert sampled.mean() == pytest.approx(TAU_DAYS * DAY_S, rel=0.15)
    uniform = np.abs(sampled / (56 * DAY_S) - (np.arange(800) + 0.5) / 800).max()
    assert uniform > 5 * KOLMOGOROV_AT_0_1_PERCENT / np.sqrt(800)  # the test would see another law


def test_rare_alerts_are_kept_in_proportion_to_their_weight(url):
    survey, levels = "test-rare", np.array([0.0, 0.5, 0.9, 0.99, 1.0])
    # Twice as many of each as the sample takes from it, or more.
    counts = np.array([20_000, 10_000, 4000, 800, 200])
    novelty = np.repeat(levels, counts)
    ids = np.array(names(len(novelty)))
    with opened(url, survey) as reservoir:
        reservoir.clear()
        offered_at_once(url, survey, ids, Capacities(1, 0, 1000), novelty=novelty, strata=("rare",))
        answer = reservoir.add(Batch.empty(), preprocessing=PREPROCESSING, capacities=Capacities(1, 0, 1000))
        members = kept(reservoir, "rare")
        reservoir.clear()
    taken = np.isin(ids, list(members))
    found = np.array([taken[novelty == level].sum() for level in levels])
    chance = law(1.0 / (1.0 - levels + NOVELTY_FLOOR), answer.thresholds[2])
    assert found.sum() == 1000
    spread = ((found - counts * chance) ** 2 / (counts * chance * (1 - chance).clip(1e-9))).sum()
    assert spread < CHI_SQUARE_4_AT_0_1_PERCENT
    assert found[-1] / 200 > 20 * found[0] / 20_000


def test_an_alert_whose_novelty_is_not_known_is_not_rare(reservoir):
    novelty = np.where(np.arange(200) % 2, np.nan, 0.5)
    answer = offer(reservoir, names(200), Capacities(50, 50, 500, 0), novelty=novelty)
    assert answer.sizes == (50, 50, 100, 0, 0)
    assert kept(reservoir, "rare") == set(names(200)[::2])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_an_alert_that_comes_again_later_the_smaller_rank_and_the_later_record_count(reservoir, order):
    for which in order:
        days, novelty = ((0.0, 0.9), (3.0, 0.2))[which]
        times = NOW_S + days * DAY_S
        answer = offer(reservoir, names(100), Capacities(100, 100, 100), times=times, novelty=novelty)
    newest = sampled_ranks(
        digests(reservoir.survey, names(100)), np.full(100, times), np.full(100, 0.9, "f4"), TAU_DAYS
    )
    later = sampled_ranks(
        digests(reservoir.survey, names(100)), np.full(100, NOW_S + 3 * DAY_S), np.full(100, 0.9, "f4"), TAU_DAYS
    )
    assert answer.thresholds[1] == later[:, 1].max()
    assert answer.thresholds[2] == newest[:, 2].max()
    sample = reservoir.draw(None, np.random.default_rng(0))
    assert (sample.time_s == NOW_S + 3 * DAY_S).all()
    assert sample.novelty == pytest.approx(0.2)


def test_a_worker_with_another_decay_learns_the_one_in_force_and_mixes_nothing(reservoir):
    offer(reservoir, names(100), Capacities(1000, 1000))
    batch = batch_of(reservoir.survey, names(100, 100), blank(100), strata=("uniform", "recent"), recent_days=30.0)
    answer = reservoir.add(batch, preprocessing=PREPROCESSING, capacities=Capacities(1000, 1000), recent_days=30.0)
    assert answer.recent_days == TAU_DAYS
    assert answer.sizes[:2] == (200, 100)


def test_a_stratum_of_none_takes_nothing_and_gives_back_what_it_had(reservoir):
    offer(reservoir, names(300), Capacities(50, 300, 0, 0))
    answer = offer(reservoir, names(300), Capacities(50, 0, 0, 0))
    assert answer.sizes == (50, 0, 0, 0, 0)
    assert answer.stamps == 50
    assert answer.thresholds[1:] == (-np.inf,) * 3
    again = offer(reservoir, names(300, 300), Capacities(50, 200))
    assert (again.sizes[1], again.capacities[1]) == (200, 200)  # one that was off begins anew


def head_of(count, **columns):
    heads = Heads.empty(count)
    for name, value in columns.items():
        getattr(heads, name)[:] = value
    return heads


def test_records_give_back_what_workers_said(reservoir):
    heads = head_of(
        3,
        time_s=[1e9 + 0.125, 2e9, NOW_S],
        novelty=[0.25, np.nan, 1.0],
        quality=[0, 7, 2**31],
        bands=[b"g", b"", "é".encode()],
    )
    batch = batch_of(reservoir.survey, ["a", "b", "c"], blank(3), heads=heads)
    reservoir.add(batch, preprocessing=PREPROCESSING, capacities=Capacities(10))
    sample = reservoir.draw(None, np.random.default_rng(0))
    rows = np.argsort(sample.alert_ids)
    assert sample.time_s[rows].tolist() == [1e9 + 0.125, 2e9, NOW_S]
    assert sample.novelty[rows].tolist() == [0.25, pytest.approx(np.nan, nan_ok=True), 1.0]
    assert sample.quality[rows].tolist() == [0, 7, 2**31]
    assert [sample.bands[row] for row in rows] == ["g", "", "é"]
    assert (sample.labels == -1).all()
    assert set(sample.provenances) == {""}
    assert set(sample.strata) == {"uniform"}


def filled(reservoir):
    """400 alerts, some in several strata; anchors among them."""
    known = head_of(60, labels=1, provenances=3, time_s=NOW_S)
    capacities = Capacities(100, 80, 70, 40, 100)
    batch = batch_of(reservoir.survey, names(60), blank(60), strata=("known",), heads=known)
    reservoir.add(batch, preprocessing=PREPROCESSING, capacities=capacities, recent_days=TAU_DAYS)
    random = np.random.default_rng(3)
    offer(
        reservoir,
        names(400),
        capacities,
        times=NOW_S - random.uniform(0, 30 * DAY_S, 400),
        novelty=random.uniform(0, 1, 400),
        strata=("uniform", "recent", "rare"),
    )
    for alert_id in sorted(kept(reservoir, "uniform"))[:20]:
        assert reservoir.label(Label(alert_id, 0, Provenance.HUMAN)) == "anchored"
    return {stratum: kept(reservoir, stratum) for stratum in (*SAMPLED, "anchors")}


def test_an_alert_in_several_strata_is_drawn_once_and_says_which_they_are(reservoir):
    members = filled(reservoir)
    sample = reservoir.draw(None, np.random.default_rng(1))
    assert len(set(sample.alert_ids)) == len(sample.alert_ids) == len(set.union(*members.values()))
    for stratum, ids in members.items():
        inside = sample.within(stratum)
        assert {alert_id for alert_id, wanted in zip(sample.alert_ids, inside, strict=True) if wanted} == ids
    assert sample.within("recent", "uniform").sum() == len(members["recent"] | members["uniform"])
    assert any("+" in strata for strata in sample.strata)
    alone = reservoir.draw(None, np.random.default_rng(1), strata=("recent",))
    assert set(alone.strata) == {"recent"}  # of those that were drawn from


def test_a_small_draw_spares_anchors_and_known_alerts(reservoir):
    members = filled(reservoir)
    first = len(members["anchors"] | members["known"])
    for count in (10, 20, 30, first, first + 25):
        sample = reservoir.draw(count, np.random.default_rng(2))
        drawn = set(sample.alert_ids)
        assert len(drawn) == count
        assert len(drawn & members["anchors"]) >= min(count, 20)
        if count >= first:
            assert members["anchors"] | members["known"] <= drawn
    others = reservoir.draw(first + 60, np.random.default_rng(2)).strata[first:]
    assert {"rare", "recent", "uniform"} <= set(others)  # thinned together, not one before the other
    one, same = (reservoir.draw(50, np.random.default_rng(9)) for _ in range(2))
    assert one.alert_ids == same.alert_ids


def test_full_strata_with_labels_stay_within_the_memory_that_is_told_beforehand(url, reservoir):
    preprocessing, capacities = Preprocessing(), Capacities(1500, 1500, 1500, 1500, 1500)
    first = 0
    for stratum in SAMPLED:  # no alert in two strata: the most that there can be
        for start in range(0, 2000, 500):
            ids = [f"{2_600_000_000_000_000_000 + first + start + number}" for number in range(500)]
            stamps = np.random.default_rng(start).uniform(-1, 1, (500, 21, 21, 1)).astype(np.float32)
            batch = batch_of(reservoir.survey, ids, stamps, strata=(stratum,))
            answer = reservoir.add(batch, preprocessing=preprocessing, capacities=capacities)
        first += 2000
    with contextlib.closing(
        Reservoir(connect(url, timeout_s=10.0), reservoir.survey, where="here", anchor_capacity=1500)
    ) as own:
        record = batch.records[0]
        for number in range(1000):
            assert (
                own.label(Label(f"anchor-{number:020d}", 0, Provenance.HUMAN, comment="a cosmic ray"), record)
                == "anchored"
            )
        outcomes = [own.label(Label(f"waits-{number:020d}", 1, Provenance.HUMAN)) for number in range(1000)]
        assert outcomes.count("waiting") == 500
    assert answer.sizes[:4] == (1500,) * 4
    bound = memory_bound(capacities, preprocessing)
    client = connect(url, timeout_s=10.0)
    taken = sum(client.memory_usage(key, samples=0) for key in client.scan_iter(f"{{vae}}:{reservoir.survey}:*"))
    client.close()
    assert 0.5 * bound < taken <= bound
