"""Drift on a release that was trained on simulated nights of one survey: what alarms, and what does not."""

import contextlib
import importlib.util
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from stream_vae.drift import Limits
from stream_vae.model.store import ReleaseStore
from stream_vae.runtime import vitals
from stream_vae.runtime.worker import Worker

from deployment import Deployment, deploy
from flow import Record, send, total, until
from following import working
from releases import make_release
from servers import REPOSITORY, Kafka, RedisServer
from stage_parts import avro_file, candidate

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
"""Keras saves a model with TensorFlow so."""

WINDOW = 2000
LIMITS = Limits()
TRAINED = pytest.mark.timeout(1200)
"""The first of them trains: a minute on a quiet machine, and many on a busy one."""


@pytest.fixture(scope="session")
def script() -> ModuleType:
    """The script that counts false alarms, which has the nights."""
    path = REPOSITORY / "training" / "drift_false_alarms.py"
    spec = importlib.util.spec_from_file_location("drift_false_alarms", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def judge(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A release that was trained on fifty nights, with what they give for its reference."""
    from stream_vae.learning.train import train

    folder = tmp_path_factory.mktemp("nights")
    script.training_stamps(folder / "stamps.npz", 4500)
    store = ReleaseStore(str(folder / "store"))
    train("quick", str(folder / "stamps.npz"), store, promote=True, progress=False)
    return script.Judge(store.url, folder / "stamps.npz", as_shipped=False)


@pytest.fixture(scope="session")
def nights(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """Six ordinary nights that no release was trained on."""
    folder = tmp_path_factory.mktemp("ordinary")
    return [script.kept(folder / f"{k}.npz", script.ordinary(500 + k), WINDOW, 77_000 + k) for k in range(6)]


def alarms(judge: Any, night: tuple[Any, ...]) -> set[str]:
    return {figure.name for figure in judge.figures(*night, LIMITS) if figure.alarm}


@pytest.mark.slow
@TRAINED
def test_ordinary_nights_do_not_alarm(judge: Any, nights: list[tuple[Any, ...]]) -> None:
    assert [alarms(judge, night) for night in nights] == [set()] * len(nights)


@pytest.mark.slow
@TRAINED
def test_nights_of_another_seeing_do(judge: Any, script: ModuleType, tmp_path: Path) -> None:
    for k in range(2):
        night = script.kept(tmp_path / f"{k}.npz", script.CHANGES["seeing 2 times the site's"](k), WINDOW, 88_000 + k)
        assert {"latent", "latent_mean"} <= alarms(judge, night)


@pytest.mark.slow
@TRAINED
@pytest.mark.parametrize(
    ("kind", "figure"),
    [
        ("a quarter is rings", "latent_mean"),  # a new kind of artefact
        ("a quarter is striped", "squared_error"),  # a CCD whose every third column reads high
        ("a twentieth is blank", "unscoreable"),  # one that is dead
    ],
)
def test_new_artefacts_and_a_broken_ccd_do(
    judge: Any, nights: list[tuple[Any, ...]], script: ModuleType, kind: str, figure: str
) -> None:
    for number, (stamps, quality, bands) in enumerate(nights[:3]):
        spoiled = script.spoiled(kind, stamps, quality, number)
        assert figure in alarms(judge, (*spoiled, bands))


# through Kafka and Redis


@pytest.fixture
def survey(redis_server: RedisServer) -> Iterator[str]:
    """A survey that no other test knows."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    with redis_server.client() as client:
        if keys := list(client.scan_iter(f"{{vae}}:{name}:*")):
            client.unlink(*keys)


def deployed(kafka: Kafka, redis_server: RedisServer, folder: Path, survey: str) -> Deployment:
    profile = {
        "time_format": "mjd",
        "fields": {"alert_id": "candidate_id", "ra_deg": "ra_deg", "dec_deg": "dec_deg", "band": "band"},
        "cutouts": {"difference": "difference", "encoding": "float32", "height": "height", "width": "width"},
    }
    return deploy(
        kafka,
        folder,
        survey=survey,
        survey_profile=profile,
        release={"poll_s": 0.05},
        reservoir={"url": redis_server.url},
        drift={"post_interval_s": 0.1},
    )


def test_workers_report_each_alert_under_the_release_that_scored_it(
    embedded_kafka: Kafka, redis_server: RedisServer, tmp_path: Path, survey: str
) -> None:
    deployment = deployed(embedded_kafka, redis_server, tmp_path, survey)
    store = ReleaseStore(deployment.settings.release.store)
    current = store.current()
    assert current is not None
    second = make_release(store, tmp_path / "second", seed=5, promote=False).id
    bands = ["g", "r", "i", "z"]
    with contextlib.closing(redis_server.client()) as client, working(deployment) as (_, metrics):

        def reported() -> dict[str, vitals.ReleaseVitals]:
            return vitals.read(client, survey).releases

        def publish(numbers: range) -> None:
            records = [Record(avro_file(candidate(n, band=bands[n % 4]))) for n in numbers]
            send(deployment.kafka, deployment.input, records)

        publish(range(60))
        until(lambda: current in reported() and reported()[current].alerts == 60, what="sixty are reported")
        counts = reported()[current].counts
        assert counts.total == 60
        store.challenge(second, "canary", 0.5)
        until(lambda: total(metrics, "stream_vae_challenger_trials_total") == 1, what="the challenger is taken")
        publish(range(60, 160))
        until(lambda: sum(each.alerts for each in reported().values()) == 160, what="all are reported")
        theirs = reported()[second]
        assert theirs.alerts == total(metrics, "stream_vae_canary_alerts_total")
        assert 20 < theirs.alerts < 80
        store.withdraw()
        store.challenge(second, "shadow", 0.1)
        until(lambda: total(metrics, "stream_vae_challenger_trials_total") >= 3, what="it is in the shadow")
        publish(range(160, 260))
        until(
            lambda: (
                reported()[second].alerts == theirs.alerts + total(metrics, "stream_vae_shadow_alerts_total")
                and reported()[current].alerts == 260 - theirs.alerts
            ),
            what="the shadow's are reported under its own name",
        )
        assert reported()[second].alerts > theirs.alerts
        store.promote(second)
        until(lambda: total(metrics, "stream_vae_release_swaps_total") == 1, what="it is current")
        assert current in reported(), "what scored before is still there to compare with"
    with contextlib.closing(redis_server.client()) as client:
        assert vitals.read(client, survey).workers == 0


def test_two_workers_reports_add_up(
    embedded_kafka: Kafka, redis_server: RedisServer, tmp_path: Path, survey: str
) -> None:
    deployment = deployed(embedded_kafka, redis_server, tmp_path, survey)
    current = ReleaseStore(deployment.settings.release.store).current()
    assert current is not None
    with contextlib.closing(redis_server.client()) as client, working(deployment) as (worker, _):
        first = Worker(deployment.settings, worker._metrics, slot=1)
        send(deployment.kafka, deployment.input, [Record(avro_file(candidate(n))) for n in range(50)])
        assert first._gauge is not None
        stamps, codes, scores = _batch(30)
        first._gauge.count(["g"] * 30, stamps, codes, scores)
        until(
            lambda: (found := vitals.read(client, survey)).workers == 2 and found.releases[current].alerts == 80,
            what="both are reported",
        )
        first.close()
        assert vitals.read(client, survey).workers == 1


def _batch(count: int) -> tuple[Any, Any, Any]:
    from stream_vae.alert import Codes, Scores
    from stream_vae.stages.stamp import Stamps

    codes = np.random.default_rng(0).normal(size=(count, 21)).astype(np.float32)
    score = np.full(count, 0.5, np.float32)
    stamps = Stamps(np.zeros((count, 21, 21, 1), np.float32), np.zeros(count, np.uint32))
    return stamps, Codes(codes, codes), Scores(score, score, score, score)
