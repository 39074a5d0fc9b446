"""What workers report of their releases, through a real Redis, and what is made of it."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from stream_vae import assembly, surveys
from stream_vae.alert import Codes, Scores
from stream_vae.drift import DriftReference
from stream_vae.embedded.valkey import EmbeddedValkey
from stream_vae.metrics import Metrics
from stream_vae.model.release import Release
from stream_vae.model.store import ReleaseStore
from stream_vae.quality import Quality
from stream_vae.reservoir import connect
from stream_vae.runtime import vitals
from stream_vae.runtime.monitor import Gauge, Monitor
from stream_vae.runtime.vitals import Poster, ReleaseVitals, key_of
from stream_vae.settings import DriftSettings
from stream_vae.stages.stamp import Stamps

from drifting import counted, referenced, sample
from flow import until
from releases import make_release
from stage_parts import avro_file, candidate, complete_settings, decoded


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with EmbeddedValkey() as server:
        yield server.url


@pytest.fixture
def client(url: str) -> Iterator:
    client = connect(url, timeout_s=5)
    client.flushall()
    yield client
    client.close()


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("release")
    store = ReleaseStore(str(folder / "store"))
    return store.load(referenced(store, folder / "made").id)


def report(release: Release, alerts: int = 100, dead: int = 0, not_finite: int = 0) -> ReleaseVitals:
    return ReleaseVitals(counted(DriftReference.of(release), alerts, 3), alerts, dead, not_finite)


def posts(metrics: Metrics, outcome: str) -> float:
    labels = {"survey": "ztf", "outcome": outcome}
    return metrics.registry.get_sample_value("stream_vae_vitals_posts_total", labels) or 0.0


def poster(url: str, slot: int, metrics: Metrics, interval_s: float = 10) -> Poster:
    return Poster(connect(url, timeout_s=0.2), "ztf", slot, metrics, interval_s=interval_s)


def batch(count: int, seed: int, shift: float = 0.0) -> tuple[list[str | None], Stamps, Codes, Scores]:
    z_mean, score = sample(count, seed, shift=shift)
    stamps = np.zeros((count, 21, 21, 1), np.float32)
    return ["g"] * count, Stamps(stamps, np.zeros(count, np.uint32)), Codes(z_mean, z_mean), Scores(*[score] * 4)


# reports


def test_reports_of_all_workers_add_up_by_release(client, url: str, release: Release) -> None:
    metrics = Metrics("ztf")
    for slot in (0, 1):
        poster(url, slot, metrics).post({"one": report(release, 100, 1, 2), f"own-{slot}": report(release, 50)})
    found = vitals.read(client, "ztf")
    assert found.workers == 2
    assert found.damaged == 0
    assert set(found.releases) == {"one", "own-0", "own-1"}
    one = found.releases["one"]
    assert (one.alerts, one.dead_lettered, one.not_finite, one.counts.total) == (200, 2, 4, 200)
    assert posts(metrics, "posted") == 2
    assert 0 < client.ttl(key_of("ztf")) <= 300


def test_a_worker_writes_over_its_own_report_and_takes_it_back_when_it_leaves(
    client, url: str, release: Release
) -> None:
    one = poster(url, 0, Metrics("ztf"))
    one.post({"one": report(release, 100)})
    one.post({"one": report(release, 300)})
    assert vitals.read(client, "ztf").releases["one"].alerts == 300
    one.close()
    one.close()
    assert vitals.read(client, "ztf") == vitals.Vitals()


def test_a_worker_that_went_away_counts_no_more_and_is_forgotten(client, url: str, release: Release) -> None:
    poster(url, 0, Metrics("ztf"), interval_s=10).post({"one": report(release)})
    assert vitals.read(client, "ztf", now=time.time() + 25).workers == 1
    assert vitals.read(client, "ztf", now=time.time() + 35) == vitals.Vitals()
    assert client.hlen(key_of("ztf")) == 1
    vitals.read(client, "ztf", now=time.time() + 7200)
    assert client.hlen(key_of("ztf")) == 0


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"time": "now", "fresh_s": 1, "releases": {}}',
        b'{"time": 1e300, "fresh_s": 1, "releases": {"a": {"counts": {}, "alerts": -1}}}',
        b'{"time": 1, "fresh_s": 1, "releases": []}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_report_is_left_out(client, url: str, release: Release, text: bytes) -> None:
    poster(url, 0, Metrics("ztf")).post({"one": report(release)})
    client.hset(key_of("ztf"), "someone", text)
    found = vitals.read(client, "ztf")
    assert (found.workers, found.damaged) == (1, 1)
    assert found.releases["one"].alerts == 100


def test_counts_in_other_bins_are_left_out(client, url: str, release: Release) -> None:
    poster(url, 0, Metrics("ztf")).post({"one": report(release)})
    name = client.hkeys(key_of("ztf"))[0]
    document = json.loads(client.hget(key_of("ztf"), name))
    document["releases"]["one"]["counts"]["latents"] = [[[1]]] * 3
    client.hset(key_of("ztf"), "someone", json.dumps(document))
    found = vitals.read(client, "ztf")
    assert (found.damaged, found.releases["one"].alerts) == (1, 100)


def test_a_redis_that_is_away_is_left_alone_for_a_while_and_said_once(
    release: Release, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics("ztf")
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        one = poster(f"redis://127.0.0.1:{refusing.getsockname()[1]}", 0, metrics, interval_s=60)
        for _ in range(3):
            one.post({"one": report(release)})
        one.close()
    assert (posts(metrics, "failed"), posts(metrics, "skipped")) == (1, 2)
    assert sum("vitals are not reported" in record.message for record in caplog.records) == 1


# windows


def test_a_window_ends_with_its_alerts_and_reports_hold_the_last_one_and_what_came_since(release: Release) -> None:
    gauge, section = Gauge(release, surveys.load("ztf")), DriftSettings(window_alerts=500, least_alerts=100)
    gauge.count(*batch(400, 1))
    assert gauge.end_window(section) is None
    gauge.count(*batch(200, 2))
    ended = gauge.end_window(section)
    assert ended is not None
    assert ended.alerts == 600
    gauge.count(*batch(50, 3))
    assert gauge.end_window(section) is None
    assert gauge.vitals().alerts == gauge.vitals().counts.total == 650


def test_a_window_ends_in_time_only_with_enough_alerts_to_say_something(release: Release) -> None:
    gauge, section = Gauge(release, surveys.load("ztf")), DriftSettings(window_s=1e-9, least_alerts=100)
    gauge.count(*batch(90, 1))
    assert gauge.end_window(section) is None
    gauge.count(*batch(20, 2))
    assert (ended := gauge.end_window(section)) is not None
    assert ended.alerts == 110


def test_alerts_that_the_encoder_fails_on_or_gives_nothing_finite_for_are_told_apart(release: Release) -> None:
    gauge = Gauge(release, surveys.load("ztf"))
    bands, stamps, codes, scores = batch(10, 1)
    codes.z_mean[:4] = np.nan
    stamps.quality[:1] = Quality.ENCODER_OUTPUT_NOT_FINITE
    stamps.quality[1:2] = Quality.MISSING_CUTOUT
    gauge.count(bands, stamps, codes, scores)
    found = gauge.vitals()
    assert (found.alerts, found.not_finite, found.dead_lettered) == (10, 1, 2)
    assert found.counts.unscoreable.sum() == 2


def test_what_fails_in_counting_is_said_once_and_raised_never(
    release: Release, caplog: pytest.LogCaptureFixture
) -> None:
    gauge = Gauge(release, surveys.load("candidate"))
    alerts = decoded([avro_file(candidate(n)) for n in range(3)])
    _, stamps, codes, scores = batch(5, 1)
    for _ in range(2):
        gauge.observe(alerts, stamps, codes, scores)  # five codes of three alerts
    assert sum("drift of" in record.message for record in caplog.records) == 1


def test_figures_are_exported_when_a_window_ends_and_forgotten_with_the_release(
    release: Release, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics("ztf")
    section = DriftSettings(window_alerts=1000, least_alerts=1000)
    monitor = Monitor(section, surveys.load("ztf"), metrics)

    def exported(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"stream_vae_drift_{name}", {"survey": "ztf", **labels})

    try:
        gauge = monitor.gauge(release, current=True)
        assert gauge is not None
        assert gauge is monitor.gauge(release)
        gauge.count(*batch(1000, 1))
        until(lambda: exported("window_alerts") == 1000, what="the first window is judged")
        assert exported("alarm", figure="latent") == 0
        gauge.count(*batch(1000, 2, shift=2.0))
        until(lambda: exported("alarm", figure="latent") == 1, what="the second one alarms")
        assert (exported("psi", band="all", figure="latent_mean") or 0) > 1
        assert (exported("psi", band="g", figure="latent_mean") or 0) > 1
        assert exported("psi", band="r", figure="latent_mean") is None
        assert sum("drift: latent_mean of all alerts" in record.message for record in caplog.records) == 1
        store = ReleaseStore(str(tmp_path / "store"))
        monitor.gauge(store.load(make_release(store, tmp_path / "next").id), current=True)
        assert exported("alarm", figure="latent") is None
    finally:
        monitor.close()
        monitor.close()


def test_a_worker_reports_what_scores_what_is_on_trial_and_what_scored_before(client, url: str, tmp_path: Path) -> None:
    settings = complete_settings("ztf", reservoir={"url": url}, drift={"post_interval_s": 0.1})
    monitor = assembly.monitor_of(settings, Metrics("ztf"), slot=3)
    assert monitor is not None
    store = ReleaseStore(str(tmp_path / "store"))
    ids = [make_release(store, tmp_path / str(seed), seed=seed).id for seed in range(6)]
    for number, name in enumerate(ids):
        gauge = monitor.gauge(store.load(name), current=number != 5)
        assert gauge is not None
        gauge.count(*batch(10 + number, number))
    try:
        until(lambda: set(vitals.read(client, "ztf").releases) == set(ids[2:]), what="the last four are reported")
        assert vitals.read(client, "ztf").releases[ids[5]].alerts == 15
    finally:
        monitor.close()


def test_drift_can_be_switched_off() -> None:
    assert assembly.monitor_of(complete_settings(drift={"enabled": False}), Metrics("candidate")) is None
