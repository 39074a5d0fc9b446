"""When to retrain, and what becomes of what was retrained."""

import contextlib
import json
from datetime import UTC, datetime, timedelta
from time import time

import numpy as np
import pytest
import redis
from stream_vae import assembly
from stream_vae.drift import DriftReference
from stream_vae.embedded.valkey import EmbeddedValkey
from stream_vae.errors import ConfigError, RetriableError
from stream_vae.learning.attempt import Ended
from stream_vae.learning.gates import Gate, verdict_of
from stream_vae.learning.oversight import OURS, Oversight
from stream_vae.learning.trainer import Past, Trainer, due, new_alerts
from stream_vae.metrics import TrainerMetrics
from stream_vae.model.release import Preprocessing
from stream_vae.model.store import ReleaseStore
from stream_vae.runtime.vitals import ReleaseVitals, key_of
from stream_vae.sampling import Capacities
from stream_vae.settings import (
    DriftSettings,
    KafkaSettings,
    ReleaseSettings,
    ReservoirSettings,
    RetrainSettings,
    Settings,
)

from drifting import counted, referenced
from reservoirs import batch_of

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
LONG_AGO = Past(NOW - timedelta(days=2), 1000)


@pytest.fixture(scope="module")
def valkey():
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture
def client(valkey):
    with contextlib.closing(redis.Redis.from_url(valkey.url)) as opened:
        opened.flushall()
        yield opened


@pytest.fixture
def store(tmp_path):
    opened = ReleaseStore(str(tmp_path / "store"))
    referenced(opened, tmp_path / "served", seed=1, promote=True)
    return opened


def settings_of(store, valkey, **retrain):
    kafka = KafkaSettings(
        bootstrap_servers="127.0.0.1:1", input_topics=("in",), output_topic="o", dead_letter_topic="d"
    )
    return Settings(
        survey="ztf",
        kafka=kafka,
        release=ReleaseSettings(store=store.url),
        reservoir=ReservoirSettings(url=valkey.url),
        drift=DriftSettings(least_alerts=500),
        retrain=RetrainSettings(**{"least_interval_s": 0, "trial_alerts": 500, **retrain}),
    )


def fill(settings, count, start=0):
    ids = [str(number) for number in range(start, start + count)]
    stamps = np.random.default_rng(1).uniform(-1, 1, (count, 21, 21, 1)).astype(np.float32)
    with contextlib.closing(assembly.reservoir_of(settings)) as reservoir:
        reservoir.add(batch_of("ztf", ids, stamps), preprocessing=Preprocessing(), capacities=Capacities(5000))


@pytest.mark.parametrize(
    ("asked", "past", "seen", "alarms", "expected"),
    [
        ({}, LONG_AGO, 10**6, ("latent",), None),
        ({"every_h": 24}, LONG_AGO, 1000, (), "time"),
        ({"every_h": 72}, LONG_AGO, 1000, (), None),
        ({"after_alerts": 500}, LONG_AGO, 1500, (), "count"),
        ({"after_alerts": 500}, LONG_AGO, 1499, (), None),
        ({"after_alerts": 500}, LONG_AGO, 499, (), None),  # the reservoir was cleared since
        ({"after_alerts": 400}, LONG_AGO, 499, (), "count"),
        ({"on_drift": True}, LONG_AGO, 1000, ("latent",), "drift"),
        ({"on_drift": True}, LONG_AGO, 1000, (), None),
        ({"on_drift": True, "every_h": 1}, LONG_AGO, 1000, ("latent",), "drift"),
        ({"on_drift": True, "least_interval_s": 10**6}, LONG_AGO, 1000, ("latent",), None),
    ],
)
def test_time_count_and_drift_ask_for_a_retraining_and_none_comes_too_soon(asked, past, seen, alarms, expected):
    assert due(RetrainSettings(**asked), NOW, past, seen, alarms) == expected


def test_alerts_are_counted_anew_where_the_reservoir_lost_them():
    assert new_alerts(LONG_AGO, 1200) == 200
    assert new_alerts(LONG_AGO, 300) == 300


class Attempts:
    """Stands for retrainings: tells what was asked for, and ends as it is told."""

    def __init__(self):
        self.asked, self.ended, self.stopped = [], None, 0

    def __call__(self, settings, trigger):
        del settings
        self.asked.append(trigger)
        self.ended = None
        return self

    def poll(self):
        return self.ended

    def stop(self):
        self.stopped += 1


@contextlib.contextmanager
def trainer_of(settings, attempts):
    metrics = TrainerMetrics("ztf")
    with contextlib.closing(assembly.reservoir_of(settings)) as reservoir:
        trainer = Trainer(settings, attempts, reservoir, metrics)
        with contextlib.closing(trainer):
            yield trainer, metrics


def count_of(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"stream_vae_{name}", {"survey": "ztf", **labels})


def test_enough_new_alerts_start_one_retraining_and_no_second_while_it_runs(client, store, valkey):
    settings, attempts = settings_of(store, valkey, after_alerts=300), Attempts()
    with trainer_of(settings, attempts) as (trainer, metrics):
        fill(settings, 299)
        trainer.turn()
        assert attempts.asked == []
        fill(settings, 10, start=299)
        for _ in range(3):
            trainer.turn()
        assert attempts.asked == ["count"]
        assert count_of(metrics, "retraining_running") == 1
        attempts.ended = Ended(found={"release": "r", "fate": "not_promoted", "reason": "because"})
        trainer.turn()
        assert count_of(metrics, "retrainings_total", trigger="count", fate="not_promoted") == 1


def test_a_retraining_that_failed_is_not_tried_again_at_once_unless_the_fault_is_a_passing_one(client, store, valkey):
    settings = settings_of(store, valkey, after_alerts=100, least_interval_s=0.0)
    slow = settings.model_copy(update={"retrain": settings.retrain.model_copy(update={"least_interval_s": 3600.0})})
    # The release that is served was made just now: without this the interval would keep the first one away too.
    past = Past(datetime.now(UTC) - timedelta(days=1), 0)
    fill(settings, 200)
    for error, expected in ((ConfigError("too few"), 1), (RetriableError("the lock"), 2)):
        attempts = Attempts()
        with trainer_of(slow, attempts) as (trainer, metrics):
            trainer._past = lambda: past
            trainer.turn()
            attempts.ended = Ended(error=error)
            trainer.turn()
            trainer.turn()
            assert len(attempts.asked) == expected
            assert count_of(metrics, "retraining_failures_total", error=type(error).__name__) == 1


def test_the_last_retraining_is_read_from_the_store_so_that_a_new_trainer_knows_it(client, store, valkey, tmp_path):
    settings, attempts = settings_of(store, valkey, every_h=1.0), Attempts()
    fill(settings, 50)
    card = store.load().card
    from stream_vae.model.store import write_release

    write_release(
        store,
        store.load().folder,
        name="retrained",
        latent_size=card.latent_size,
        recipe={},
        data={"reservoir": {"seen": 20}},
        metrics={"verdict": verdict_of([Gate("AUC, recent", "passed", 0.9, 0.8, -0.01, 0.2, -0.01, "")]).document()},
        preprocessing=card.preprocessing,
    )
    with trainer_of(settings, attempts) as (trainer, metrics):
        trainer.turn()
        assert attempts.asked == []  # it was made just now
        assert count_of(metrics, "gate_outcome", gate="AUC, recent") == 1
        assert count_of(metrics, "gate_figure", gate="AUC, recent", release="challenger") == 0.9
        assert count_of(metrics, "gate_figure", gate="AUC, recent", release="incumbent") == 0.8
        assert count_of(metrics, "retraining_new_alerts") == 30


def test_what_lies_unfinished_goes_on_first(client, store, valkey, tmp_path):
    settings, attempts = settings_of(store, valkey, work=tmp_path / "work"), Attempts()
    fill(settings, 50)
    (tmp_path / "work" / "ztf").mkdir(parents=True)
    (tmp_path / "work" / "ztf" / "job.json").write_text("{}")
    with trainer_of(settings, attempts) as (trainer, _):
        trainer.turn()
        assert attempts.asked == ["resumed"]


class Flaky:
    """A reservoir whose server is away at times."""

    survey = "ztf"

    def __init__(self, reservoir):
        self._reservoir, self.client, self.away = reservoir, reservoir.client, False

    def seen(self):
        if self.away:
            raise ConfigError("No Redis answers.")
        return self._reservoir.seen()


def test_without_redis_it_waits_says_so_once_and_goes_on_when_it_comes_back(client, store, valkey, caplog):
    settings, attempts, metrics = settings_of(store, valkey, after_alerts=1), Attempts(), TrainerMetrics("ztf")
    fill(settings, 50)
    with contextlib.closing(assembly.reservoir_of(settings)) as reservoir:
        flaky = Flaky(reservoir)
        trainer = Trainer(settings, attempts, flaky, metrics)
        flaky.away = True
        for _ in range(3):
            trainer.turn()
        assert attempts.asked == []
        assert trainer.ready() == (False, "No Redis answers.")
        assert count_of(metrics, "trainer_looks_failed_total", what="retraining") == 3
        assert caplog.messages.count("No Redis answers.") == 1
        flaky.away = False
        trainer.turn()
        assert attempts.asked == ["count"]
        assert trainer.ready() == (True, "retraining")


def test_closing_ends_a_retraining_that_runs(client, store, valkey):
    settings, attempts = settings_of(store, valkey, after_alerts=1), Attempts()
    fill(settings, 50)
    with trainer_of(settings, attempts) as (trainer, _):
        trainer.turn()
    assert attempts.stopped == 1


@pytest.fixture
def overseen(client, store, valkey):
    settings = settings_of(store, valkey)
    metrics = TrainerMetrics("ztf")
    return Oversight(settings, store, client, "ztf", metrics), metrics


def report(client, store, **fares):
    """What one worker says: by release, how far its stream is shifted and how many alerts it failed on."""
    releases = {}
    for name, (shift, dead) in fares.items():
        counts = counted(DriftReference.of(store.load(name)), 1000, 5, shift=shift)
        releases[name] = ReleaseVitals(counts, 1000, dead, 0).to_plain()
    client.hset(key_of("ztf"), "0", json.dumps({"time": time(), "fresh_s": 60.0, "releases": releases}))


def other(store, tmp_path):
    return referenced(store, tmp_path / "other", seed=2).id


def test_drift_of_what_is_served_is_an_alarm(client, store, overseen):
    oversight, _ = overseen
    report(client, store, **{store.current(): (0.0, 0)})
    oversight.look()
    assert oversight.alarms == ()
    report(client, store, **{store.current(): (1.5, 0)})
    oversight.look()
    assert "latent" in oversight.alarms


@pytest.mark.parametrize("mode", ["shadow", "canary"])
def test_a_trial_that_shows_nothing_worse_ends_in_promotion(client, store, overseen, tmp_path, mode):
    oversight, metrics = overseen
    served, tried = store.current(), other(store, tmp_path)
    store.challenge(tried, mode=mode, reason=f"{OURS}all gates passed")
    report(client, store, **{served: (1.5, 0)})
    oversight.look()
    assert (store.current(), oversight.on_trial) == (served, True)  # nothing is known of it yet
    report(client, store, **{served: (1.5, 0), tried: (1.5, 0)})  # the sky changed: no fault of its own
    oversight.look()
    assert (store.current(), store.challenger(), oversight.on_trial) == (tried, None, False)
    assert "nothing worse" in store.history()[-1]["reason"]
    assert count_of(metrics, "trials_total", end="promoted") == 1


def test_a_trial_that_shows_something_worse_is_withdrawn_with_the_reason(client, store, overseen, tmp_path):
    oversight, metrics = overseen
    served, tried = store.current(), other(store, tmp_path)
    store.challenge(tried, reason=f"{OURS}all gates passed")
    report(client, store, **{served: (0.0, 0), tried: (0.0, 100)})
    oversight.look()
    assert (store.current(), store.challenger()) == (served, None)
    assert "10.0% alerts that its encoder fails on" in store.history()[-1]["reason"]
    assert count_of(metrics, "trials_total", end="withdrawn") == 1


def test_a_trial_that_sees_too_little_expires(client, store, overseen, tmp_path):
    oversight, metrics = overseen
    store.challenge(other(store, tmp_path), reason=f"{OURS}all gates passed")
    oversight.look(datetime.now(UTC) + timedelta(hours=23))
    assert oversight.on_trial
    oversight.look(datetime.now(UTC) + timedelta(hours=25))
    assert store.challenger() is None
    assert count_of(metrics, "trials_total", end="expired") == 1


def test_a_trial_that_a_person_began_is_left_to_people(client, store, overseen, tmp_path):
    oversight, _ = overseen
    served, tried = store.current(), other(store, tmp_path)
    store.challenge(tried, reason="by hand")
    report(client, store, **{served: (0.0, 0), tried: (0.0, 0)})
    oversight.look(datetime.now(UTC) + timedelta(hours=48))
    assert (store.current(), store.challenger().release, oversight.on_trial) == (served, tried, True)


def test_a_promoted_release_that_does_harm_is_taken_back(client, store, overseen, tmp_path):
    oversight, metrics = overseen
    before, new = store.current(), other(store, tmp_path)
    store.promote(new, reason=f"{OURS}all gates passed")
    report(client, store, **{before: (0.0, 0), new: (0.0, 200)})
    oversight.look()
    assert store.current() == before
    assert count_of(metrics, "rollbacks_total") == 1


def test_reports_that_cannot_be_read_are_a_passing_fault(store, valkey):
    refusing = redis.Redis(host="127.0.0.1", port=1, socket_timeout=0.2)
    oversight = Oversight(settings_of(store, valkey), store, refusing, "ztf", TrainerMetrics("ztf"))
    with pytest.raises(RetriableError, match="reports cannot be read"):
        oversight.look()
