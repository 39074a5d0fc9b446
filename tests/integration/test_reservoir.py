"""The reservoir on a real Redis or Valkey: is it the sample that it claims to be?"""

import contextlib
import threading
import uuid

import numpy as np
import pytest
import redis
from stream_vae import surveys
from stream_vae.errors import ConfigError
from stream_vae.metrics import Metrics
from stream_vae.model.release import Preprocessing
from stream_vae.reservoir import Batch, Reservoir, address, connect
from stream_vae.runtime.offering import Offering
from stream_vae.sampling import Capacities, memory_bound, ranks
from stream_vae.tools.checks_reservoir import WORKERS_RIGHTS

from reservoirs import batch_of, named, observed

PREPROCESSING = Preprocessing(stamp_size=9)
CHI_SQUARE_19_AT_0_1_PERCENT = 43.82
"""What 20 equally likely classes exceed once in a thousand times."""


@pytest.fixture
def survey(redis_server):
    """A survey that no other test knows, so that its keys are its own."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    with redis_server.client() as client:
        if keys := list(client.scan_iter(f"{{vae}}:{name}:*")):
            client.unlink(*keys)


@pytest.fixture
def reservoir(redis_server, survey):
    with contextlib.closing(open_reservoir(redis_server.url, survey)) as opened:
        yield opened


def open_reservoir(url, survey, timeout_s=5.0):
    return Reservoir(connect(url, timeout_s=timeout_s), survey, where=address(url))


def marked(numbers):
    """Stamps that tell which alert they are of."""
    stamps = np.zeros((len(numbers), 9, 9, 1), np.float32)
    stamps[:, 0, 0, 0] = 1.0
    for bit in range(20):
        stamps[:, 1 + bit // 9, bit % 9, 0] = (np.asarray(numbers) >> bit) & 1
    return stamps


def number_of(stamp):
    return sum(int(stamp[1 + bit // 9, bit % 9, 0]) << bit for bit in range(20))


def add(reservoir, numbers, *, capacity=1000, each=512, preprocessing=PREPROCESSING):
    """Offer alerts by number, in batches; the last answer."""
    for start in range(0, len(numbers), each):
        some = numbers[start : start + each]
        batch = batch_of(reservoir.survey, [str(number) for number in some], marked(some))
        answer = reservoir.add(batch, preprocessing=preprocessing, capacities=Capacities(capacity))
    return answer


def kept(reservoir):
    return set(reservoir.draw(None, np.random.default_rng(0)).alert_ids)


def test_it_keeps_the_smallest_ranks_and_each_with_its_own_stamp(reservoir):
    answer = add(reservoir, range(5000))
    ids = np.array([str(number) for number in range(5000)])
    order = np.argsort(ranks(reservoir.survey, ids))
    assert kept(reservoir) == set(ids[order[:1000]])
    assert answer.thresholds[0] == np.sort(ranks(reservoir.survey, ids))[999]
    sample = reservoir.draw(None, np.random.default_rng(0))
    assert [number_of(stamp) for stamp in sample.stamps] == [int(each) for each in sample.alert_ids]


def test_early_and_late_alerts_are_kept_alike(redis_server):
    # Fixed names, because the survey's name decides the ranks: the test gives the same figures every time.
    totals = np.zeros(20)
    for name in ("test-uniform-1", "test-uniform-2", "test-uniform-3"):
        with contextlib.closing(open_reservoir(redis_server.url, name)) as reservoir:
            reservoir.clear()
            add(reservoir, range(20_000), capacity=2000)
            totals += np.bincount([int(each) * 20 // 20_000 for each in kept(reservoir)], minlength=20)
            reservoir.clear()
    assert totals.sum() == 6000
    assert ((totals - 300) ** 2 / 300).sum() < CHI_SQUARE_19_AT_0_1_PERCENT


def test_what_comes_twice_counts_once(reservoir):
    add(reservoir, range(3000))
    before = kept(reservoir)
    answer = add(reservoir, list(range(3000))[::-1])
    assert answer.entered == 0
    assert kept(reservoir) == before


def test_writers_at_the_same_time_make_the_sample_of_one(redis_server, reservoir):
    def write(seed):
        with contextlib.closing(open_reservoir(redis_server.url, reservoir.survey)) as own:
            add(own, np.random.default_rng(seed).permutation(4000).tolist(), each=100)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = np.array([str(number) for number in range(4000)])
    assert kept(reservoir) == set(ids[np.argsort(ranks(reservoir.survey, ids))[:1000]])
    assert reservoir.stats().stamps == 1000


def test_two_workers_offer_in_the_background(redis_server, reservoir):
    metrics = Metrics(reservoir.survey)
    # A busy machine takes longer than a worker would wait; what happens then is another test's.
    own = [open_reservoir(redis_server.url, reservoir.survey, 20.0) for _ in range(2)]
    profile = surveys.load("candidate")
    workers = [
        Offering(each, PREPROCESSING, Capacities(500), metrics, profile=profile, queue_stamps=10_000) for each in own
    ]
    for start in range(0, 4000, 100):
        ids = [str(number) for number in range(start, start + 100)]
        for worker in workers:  # each alert is delivered to both
            worker.observe(*observed(named(ids), marked(range(start, start + 100))))
    assert all(worker.flush(30) for worker in workers)
    for worker in workers:
        worker.close()
    ids = np.array([str(number) for number in range(4000)])
    assert kept(reservoir) == set(ids[np.argsort(ranks(reservoir.survey, ids))[:500]])
    read = metrics.registry.get_sample_value
    assert read("stream_vae_reservoir_offered_total", {"survey": reservoir.survey}) == 8000
    assert 500 <= read("stream_vae_reservoir_entered_total", {"survey": reservoir.survey}) < 4000
    assert read("stream_vae_reservoir_stamps", {"survey": reservoir.survey}) == 500


def test_stats_count_until_it_is_full_and_estimate_from_then_on(reservoir):
    assert reservoir.stats().stamps == 0
    assert reservoir.stats().capacity is None
    add(reservoir, range(700))
    assert (reservoir.stats().stamps, reservoir.stats().seen) == (700, 700)
    add(reservoir, range(20_000))
    stats = reservoir.stats()
    assert (stats.stamps, stats.capacity, stats.preprocessing) == (1000, 1000, PREPROCESSING.model_dump(mode="json"))
    assert stats.seen == pytest.approx(20_000, rel=4 / np.sqrt(1000))
    assert 0 < stats.memory_bytes <= memory_bound(Capacities(1000), PREPROCESSING)


def test_a_draw_is_uniform_and_repeatable(reservoir):
    add(reservoir, range(3000), capacity=400)
    counts = dict.fromkeys(kept(reservoir), 0)
    random = np.random.default_rng(3)
    for _ in range(200):
        for alert_id in reservoir.draw(100, random).alert_ids:
            counts[alert_id] += 1
    # 200 draws of a quarter: mean 50, variance 37.5; the sum over 400 alerts has 399 degrees of freedom.
    spread = sum((count - 50) ** 2 / 37.5 for count in counts.values())
    assert abs(spread - 399) < 4 * np.sqrt(2 * 399)
    one, same = (reservoir.draw(50, np.random.default_rng(5)) for _ in range(2))
    assert one.alert_ids == same.alert_ids
    assert len(set(one.alert_ids)) == 50


def test_what_was_evicted_during_a_draw_is_passed_over(redis_server, reservoir):
    add(reservoir, range(100))
    with redis_server.client() as client:
        client.hdel(f"{{vae}}:{reservoir.survey}:stamps", *range(40))
    assert len(reservoir.draw(None, np.random.default_rng(0)).alert_ids) == 60
    assert len(reservoir.draw(50, np.random.default_rng(0)).alert_ids) == 50


def test_an_export_is_a_file_of_stamps(reservoir, tmp_path):
    from stream_vae.learning.data.stampfile import stamps_from_file

    add(reservoir, range(300))
    sample = reservoir.draw(None, np.random.default_rng(0))
    sample.save(tmp_path / "stamps.npz")
    with np.load(tmp_path / "stamps.npz", allow_pickle=False) as file:
        assert (file["labels"] == -1).all()
        assert tuple(file["alert_ids"]) == sample.alert_ids
        assert (file["stamps"] == sample.stamps).all()
    source = stamps_from_file(tmp_path / "stamps.npz", PREPROCESSING)
    (chunk,) = source.chunks()
    assert chunk.scoreable.all()
    assert np.abs(chunk.stamps - sample.stamps).max() < 1e-3  # scaling what is scaled changes nothing


def test_stamps_prepared_in_another_way_are_refused_and_not_mixed(reservoir):
    other = Preprocessing(stamp_size=9, fill=0.25)
    add(reservoir, range(100))
    answer = add(reservoir, range(100, 200), preprocessing=other)
    assert answer.status == "preprocessing"
    assert reservoir.stats().stamps == 100
    with pytest.raises(ConfigError, match=r'"fill":0.25.* is wanted'):
        reservoir.draw(10, np.random.default_rng(0), preprocessing=other)
    assert len(reservoir.draw(10, np.random.default_rng(0), preprocessing=PREPROCESSING).alert_ids) == 10


@pytest.mark.parametrize("layout", ["0", "1", None])
def test_keys_of_another_version_are_refused_and_can_be_cleared(redis_server, reservoir, layout):
    meta = f"{{vae}}:{reservoir.survey}:meta"
    add(reservoir, range(100))
    with redis_server.client() as client:
        client.hset(meta, "layout", layout) if layout else client.delete(meta)
    assert add(reservoir, range(100, 200)).status == "layout"
    for question in (reservoir.stats, lambda: reservoir.draw(1, np.random.default_rng(0))):
        with pytest.raises(ConfigError, match=r"layout.*reservoir clear"):
            question()
    assert reservoir.clear() == 100
    assert add(reservoir, range(100, 200)).stamps == 100


def test_keys_of_another_type_are_told_and_can_be_cleared(redis_server, reservoir):
    with redis_server.client() as client:
        client.set(f"{{vae}}:{reservoir.survey}:uniform:ranks", "a string")
    assert add(reservoir, range(10)).status == "layout"
    with pytest.raises(ConfigError, match=r"unknown layout.*reservoir clear"):
        reservoir.stats()
    assert reservoir.clear() == 0
    assert add(reservoir, range(10)).stamps == 10


def test_a_smaller_capacity_trims_and_a_larger_one_waits_for_a_clear(reservoir):
    add(reservoir, range(3000), capacity=1500)
    smaller = add(reservoir, range(3000, 3100), capacity=800)
    ids = np.array([str(number) for number in range(3100)])
    order = np.argsort(ranks(reservoir.survey, ids))
    assert kept(reservoir) == set(ids[order[:800]])
    larger = add(reservoir, range(3100, 6000), capacity=2000)
    assert (smaller.capacities[0], larger.capacities[0], larger.stamps) == (800, 800, 800)
    reservoir.clear()
    assert add(reservoir, range(3000), capacity=2000).stamps == 2000


def test_a_question_without_stamps_writes_nothing(redis_server, reservoir):
    answer = reservoir.add(Batch.empty(), preprocessing=PREPROCESSING, capacities=Capacities(10))
    assert (answer.status, answer.stamps, answer.thresholds) == ("ok", 0, (np.inf, -np.inf, -np.inf, -np.inf))
    with redis_server.client() as client:
        assert not list(client.scan_iter(f"{{vae}}:{reservoir.survey}:*"))
    with pytest.raises(ConfigError, match="is empty"):
        reservoir.draw(1, np.random.default_rng(0))


def test_a_server_that_lost_its_scripts_is_taught_again(redis_server, reservoir):
    add(reservoir, range(10))
    with redis_server.client() as client:
        client.script_flush()
    assert add(reservoir, range(20)).entered == 10


def test_a_worker_needs_no_more_rights_than_the_script(redis_server, survey):
    user = f"worker-{survey}"
    with redis_server.client() as client:
        try:
            client.acl_setuser(user, enabled=True, passwords=["+secret"], keys=["{vae}:*"], commands=WORKERS_RIGHTS)
        except redis.ResponseError as error:
            pytest.skip(f"this Redis lets no users be made: {error}")
        try:
            limited = redis.Redis(
                connection_pool=redis.ConnectionPool.from_url(redis_server.url, username=user, password="secret")  # noqa: S106 - made above
            )
            with contextlib.closing(Reservoir(limited, survey, where="here")) as own:
                assert add(own, range(2000)).stamps == 1000
                with pytest.raises(ConfigError, match="refuses"):
                    own.clear()
        finally:
            client.acl_deluser(user)
