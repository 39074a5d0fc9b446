"""A retraining on disk, and its lock: one at a time, and a killed one goes on."""

import contextlib
import threading
import time

import numpy as np
import pytest
import redis
from stream_vae.embedded.valkey import EmbeddedValkey
from stream_vae.errors import ConfigError, RetriableError
from stream_vae.learning import job as jobs
from stream_vae.learning.lock import BusyError, locked
from stream_vae.learning.recipe import Recipe
from stream_vae.model.release import Preprocessing
from stream_vae.sample import Sample


def sample(count=20, seed=0):
    random = np.random.default_rng(seed)
    return Sample(
        random.uniform(-1, 1, (count, 21, 21, 1)).astype(np.float32),
        tuple(f"alert-{number}" for number in range(count)),
        Preprocessing(),
        random.integers(-1, 2, count).astype(np.int8),
        ("",) * count,
        random.uniform(0, 1e9, count),
        random.uniform(0, 1, count).astype(np.float32),
        np.zeros(count, np.uint32),
        ("g", "r") * (count // 2),
        ("recent", "uniform") * (count // 2),
    )


class Draws:
    """Another snapshot each time, as a living reservoir gives."""

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        return sample(seed=self.count), 1000 * self.count


def opened(work, draws, *, incumbent="one", recipe=None):
    return jobs.opened(work, "ztf", incumbent=incumbent, recipe=recipe or Recipe(), draw=draws)


def killed(work, draws, **options):
    """A job in the middle of which its process ends."""
    with contextlib.suppress(KeyboardInterrupt), opened(work, draws, **options) as job:
        (job.checkpoint / "state").write_text("half a fit")
        raise KeyboardInterrupt
    return job


def test_a_killed_job_goes_on_with_the_same_stamps_and_its_checkpoint(tmp_path):
    draws = Draws()
    first = killed(tmp_path, draws)
    assert jobs.unfinished(tmp_path, "ztf")
    with opened(tmp_path, draws) as again:
        assert (again.resumed, again.snapshot, again.seen) == (True, first.snapshot, 1000)
        assert (again.sample.stamps == first.sample.stamps).all()
        assert again.sample.alert_ids == first.sample.alert_ids
        assert again.sample.strata == first.sample.strata
        assert (again.checkpoint / "state").read_text() == "half a fit"
    assert draws.count == 1


def test_a_job_that_ended_leaves_nothing(tmp_path):
    with opened(tmp_path, Draws()):
        pass
    assert not jobs.unfinished(tmp_path, "ztf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", [{"incumbent": "two"}, {"recipe": Recipe(seed=2)}])
def test_the_job_of_another_incumbent_or_recipe_is_thrown_away(tmp_path, other):
    draws = Draws()
    killed(tmp_path, draws)
    with opened(tmp_path, draws, **other) as job:
        assert not job.resumed
        assert list(job.checkpoint.iterdir()) == []
    assert draws.count == 2


@pytest.mark.parametrize("damage", ["no job file", "half a snapshot", "another snapshot", "no json"])
def test_a_job_that_was_not_whole_yet_begins_anew(tmp_path, damage):
    draws = Draws()
    killed(tmp_path, draws)
    folder = tmp_path / "ztf"
    if damage == "no job file":
        (folder / "job.json").unlink()
    elif damage == "half a snapshot":
        content = (folder / "snapshot.npz").read_bytes()
        (folder / "snapshot.npz").write_bytes(content[: len(content) // 2])
    elif damage == "another snapshot":
        sample(seed=99).save(folder / "snapshot.npz")
    else:
        (folder / "job.json").write_text("{")
    with opened(tmp_path, draws) as job:
        assert not job.resumed
    assert draws.count == 2


def test_without_a_folder_nothing_is_kept():
    with opened(None, Draws()) as job:
        assert job.checkpoint is None
    assert not jobs.unfinished(None, "ztf")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"retrain\.work.*cannot be written"), opened(tmp_path / "file", Draws()):
        pass


def test_the_snapshot_s_id_tells_stamps_ids_and_labels_apart():
    one = sample()
    assert jobs.snapshot_id(one) == jobs.snapshot_id(sample())
    others = (one.rows(np.arange(20) > 0), sample(seed=1))
    assert len({jobs.snapshot_id(each) for each in (one, *others)}) == 3


@pytest.fixture(scope="module")
def client():
    with EmbeddedValkey() as server, contextlib.closing(redis.Redis.from_url(server.url)) as opened_client:
        yield opened_client


def test_a_second_retraining_is_told_that_one_runs(client):
    with locked(client, "ztf", expires_s=5) as lease:
        assert lease.held()
        with pytest.raises(BusyError, match="Another retraining of ztf runs"), locked(client, "ztf", expires_s=5):
            pass
        with locked(client, "lsst", expires_s=5) as other:
            assert other.held()
    with locked(client, "ztf", expires_s=5) as lease:
        assert lease.held()


def test_a_lock_is_renewed_for_as_long_as_it_is_held(client):
    with locked(client, "ztf", expires_s=0.6) as lease:
        time.sleep(1.5)
        assert lease.held()


def test_a_lock_outlives_its_holder_only_so_long(client):
    # Taken and never given back or renewed: what a killed process leaves.
    client.lock("{vae}:ztf:retraining", timeout=0.5, blocking=False, thread_local=False).acquire()
    with pytest.raises(BusyError), locked(client, "ztf", expires_s=0.5):
        pass
    time.sleep(0.7)
    with locked(client, "ztf", expires_s=0.5) as lease:
        assert lease.held()


def test_who_lost_the_lock_knows_and_does_not_take_another_s_away(client):
    with locked(client, "ztf", expires_s=5) as lease:
        client.delete("{vae}:ztf:retraining")  # a Redis that lost everything
        with locked(client, "ztf", expires_s=5) as other:
            assert not lease.held()
            assert other.held()
        with locked(client, "ztf", expires_s=5) as third:
            lease.close()
            assert third.held()


def test_of_many_that_ask_at_once_one_gets_it(client):
    got, barrier = [], threading.Barrier(8)

    def ask():
        barrier.wait()
        with contextlib.suppress(BusyError), locked(client, "ztf", expires_s=5):
            got.append(threading.get_ident())
            time.sleep(0.3)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1


def test_without_redis_there_is_no_lock():
    refusing = redis.Redis(host="127.0.0.1", port=1, socket_timeout=0.2)
    with pytest.raises(RetriableError, match="cannot be had"), locked(refusing, "ztf", expires_s=5):
        pass
