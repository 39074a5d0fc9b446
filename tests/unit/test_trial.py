"""A challenger in a running worker: in the shadow or as a canary, and what is wrong with it costs no alert."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from stream_vae.canary import chosen
from stream_vae.metrics import Metrics
from stream_vae.model.challenger import Challenger
from stream_vae.model.release import ENCODER
from stream_vae.model.store import ReleaseStore
from stream_vae.runtime.worker import Worker

from deployment import Deployment
from flow import Record, check_books, read, send, total, until, work
from following import follow, value, working
from releases import LATENTS, make_release
from servers import Kafka
from stage_parts import avro_file, candidate


def put_on_trial(deployment: Deployment, release: str, mode: str, share: float) -> None:
    """Write the pointer, whatever the store would say of it."""
    pointer = Challenger(release=release, mode=mode, share=share, since=datetime.now(UTC))  # type: ignore[arg-type]
    path = Path(deployment.settings.release.store) / "challenger.json"
    path.write_text(pointer.model_dump_json(), encoding="utf-8")


def trials(metrics: Metrics, outcome: str) -> float:
    return value(metrics, "stream_vae_challenger_trials_total", outcome=outcome)


def publish(deployment: Deployment, numbers: Iterable[int], metrics: Metrics) -> None:
    """Send these alerts and wait until they are out."""
    before, records = total(metrics, "stream_vae_alerts_published_total"), [avro_file(candidate(n)) for n in numbers]
    send(deployment.kafka, deployment.input, map(Record, records))
    until(
        lambda: total(metrics, "stream_vae_alerts_published_total") == before + len(records),
        what="all alerts are published",
    )


def scored_by(deployment: Deployment) -> list[str]:
    return [record.header("stream_vae.release").decode() for record in read(deployment.kafka, deployment.output)]


def expected(challenger: str, current: str, numbers: Iterable[int], share: float) -> list[str]:
    picked = chosen(challenger, [str(n) for n in numbers], share)
    return [challenger if theirs else current for theirs in picked]


def make_fragile(folder: Path, store: ReleaseStore) -> str:
    """Make a release whose encoder runs on a stamp of zeros, as it is tried, and on no other."""
    first = store.load()
    folder.mkdir()
    for name in ("scorer.onnx", "reference.npz"):
        (folder / name).write_bytes((first.folder / name).read_bytes())
    tensors = {
        "pixels": np.array([-1, 441], np.int64),
        "weights": np.zeros((441, LATENTS), np.float32),
        "million": np.array(1e6, np.float32),
        "width": np.array([LATENTS], np.int64),
        "any": np.array([-1], np.int64),
    }
    nodes = [
        helper.make_node("Reshape", ["stamp", "pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["mean"]),
        # Its last step wants a width that grows with the largest pixel: right only where all are zero.
        helper.make_node("Abs", ["flat"], ["size"]),
        helper.make_node("ReduceMax", ["size"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["largest", "million"], ["many"]),
        helper.make_node("Cast", ["many"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Add", ["whole", "width"], ["wanted"]),
        helper.make_node("Concat", ["any", "wanted"], ["target"], axis=0),
        helper.make_node("Reshape", ["mean", "target"], ["z_mean"]),
        helper.make_node("Identity", ["z_mean"], ["z_log_var"]),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", LATENTS]) for name in ("z_mean", "z_log_var")
    ]
    stamp = helper.make_tensor_value_info("stamp", TensorProto.FLOAT, ["n", 21, 21, 1])
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "fragile", [stamp], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / ENCODER)
    return store.publish(folder, first.card.model_copy(update={"name": "fragile", "id": ""})).id


@pytest.fixture
def flow(embedded_kafka: Kafka, tmp_path: Path) -> tuple[Deployment, ReleaseStore, str, str]:
    """A deployment, its store, the release that is current and another one."""
    deployment, store, first = follow(embedded_kafka, tmp_path, shadow_share=0.5)
    second = make_release(store, tmp_path / "second", seed=5, promote=False).id
    return deployment, store, first, second


def test_a_canary_publishes_its_share_in_order_until_it_is_withdrawn(
    flow: tuple[Deployment, ReleaseStore, str, str],
) -> None:
    deployment, store, first, second = flow
    with working(deployment) as (_, metrics):
        publish(deployment, range(20), metrics)
        store.challenge(second, "canary", 0.3)
        until(lambda: trials(metrics, "taken") == 1, what="the challenger is taken")
        publish(deployment, range(20, 220), metrics)
        store.withdraw()
        until(lambda: trials(metrics, "ended") == 1, what="the trial is over")
        publish(deployment, range(220, 240), metrics)
    found = scored_by(deployment)
    assert found == [first] * 20 + expected(second, first, range(20, 220), 0.3) + [first] * 20
    theirs = found.count(second)
    assert abs(theirs - 60) < 5 * np.sqrt(200 * 0.3 * 0.7)
    assert value(metrics, "stream_vae_canary_alerts_total") == theirs
    origins = [record.origin for record in read(deployment.kafka, deployment.output)]
    assert origins == [(deployment.input, 0, offset) for offset in range(240)]
    check_books(deployment.settings, consumed=240)


def test_a_shadow_scores_its_share_and_nothing_of_it_is_published(
    flow: tuple[Deployment, ReleaseStore, str, str],
) -> None:
    deployment, store, first, second = flow
    with working(deployment) as (_, metrics):
        store.challenge(second, "shadow", 0.4)
        until(lambda: trials(metrics, "taken") == 1, what="the challenger is taken")
        publish(deployment, range(200), metrics)
        chosen_ones = chosen(second, [str(n) for n in range(200)], 0.4).sum()
        until(lambda: value(metrics, "stream_vae_shadow_alerts_total") == chosen_ones, what="the shadow has caught up")
        assert value(metrics, "stream_vae_shadow_score_difference_count") == chosen_ones
        assert 0 < value(metrics, "stream_vae_shadow_disagreements_total") < chosen_ones
    assert scored_by(deployment) == [first] * 200
    check_books(deployment.settings, consumed=200)


def test_a_worker_spends_no_more_on_a_shadow_than_its_settings_allow(
    flow: tuple[Deployment, ReleaseStore, str, str],
) -> None:
    deployment, store, _, second = flow
    with working(deployment) as (_, metrics):
        store.challenge(second, "shadow", 1.0)
        until(lambda: trials(metrics, "taken") == 1, what="the challenger is taken")
        publish(deployment, range(100), metrics)
        half = chosen(second, [str(n) for n in range(100)], 0.5).sum()
        until(lambda: value(metrics, "stream_vae_shadow_alerts_total") == half, what="the shadow has caught up")


def test_a_challenger_that_is_promoted_scores_everything(flow: tuple[Deployment, ReleaseStore, str, str]) -> None:
    deployment, store, _, second = flow
    with working(deployment) as (worker, metrics):
        store.challenge(second, "canary", 0.5)
        until(lambda: trials(metrics, "taken") == 1, what="the challenger is taken")
        store.promote(second)
        until(lambda: worker.release.id == second and trials(metrics, "ended") == 1, what="it is current")
        publish(deployment, range(30), metrics)
    assert scored_by(deployment) == [second] * 30


@pytest.mark.parametrize("mode", ["shadow", "canary"])
@pytest.mark.parametrize("fault", ["corrupt", "other preprocessing", "unknown", "damaged pointer"])
def test_a_challenger_that_cannot_be_tried_is_refused_once_and_costs_no_alert(
    flow: tuple[Deployment, ReleaseStore, str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    mode: str,
    fault: str,
) -> None:
    deployment, store, first, second = flow
    words = {
        "corrupt": "is not the file that was released",
        "other preprocessing": "prepares stamps in another way",
        "unknown": "is not there",
        "damaged pointer": "is damaged",
    }
    if fault == "corrupt":
        graph = Path(deployment.settings.release.store) / "releases" / second / ENCODER
        graph.write_bytes(graph.read_bytes()[:-20])
    elif fault == "other preprocessing":
        second = make_release(store, tmp_path / "other", seed=6, max_masked_fraction=0.3, promote=False).id
    elif fault == "unknown":
        second = "test-20260101-000000000000"
    with working(deployment) as (_, metrics):
        if fault == "damaged pointer":
            (Path(deployment.settings.release.store) / "challenger.json").write_text("{", encoding="utf-8")
        else:
            put_on_trial(deployment, second, mode, 0.5)
        until(lambda: trials(metrics, "refused") == 1, what="it is refused")
        time.sleep(0.3)  # some looks more, none of which says it again
        publish(deployment, range(30), metrics)
        assert trials(metrics, "refused") == 1
        assert trials(metrics, "taken") == 0
    assert sum(words[fault] in record.message for record in caplog.records) == 1
    assert scored_by(deployment) == [first] * 30
    check_books(deployment.settings, consumed=30)


@pytest.mark.parametrize("mode", ["shadow", "canary"])
def test_a_challenger_that_fails_in_mid_stream_is_dropped_and_no_alert_is_lost(
    flow: tuple[Deployment, ReleaseStore, str, str], tmp_path: Path, mode: str
) -> None:
    deployment, store, first, _ = flow
    fragile = make_fragile(tmp_path / "fragile", store)
    with working(deployment) as (_, metrics):
        publish(deployment, range(20), metrics)
        store.challenge(fragile, mode, 0.5)  # type: ignore[arg-type]
        until(lambda: trials(metrics, "taken") == 1, what="it is taken: it runs on what it is tried with")
        publish(deployment, range(20, 80), metrics)
        until(lambda: trials(metrics, "failed") == 1, what="it is dropped")
        publish(deployment, range(80, 100), metrics)
    assert scored_by(deployment) == [first] * 100
    assert value(metrics, "stream_vae_canary_alerts_total") == 0
    check_books(deployment.settings, consumed=100)


def test_a_release_that_the_settings_name_has_no_challenger(embedded_kafka: Kafka, tmp_path: Path) -> None:
    deployment, store, first = follow(embedded_kafka, tmp_path)
    second = make_release(store, tmp_path / "second", seed=5, promote=False).id
    store.challenge(second, "canary", 0.5)
    named = deployment.settings.model_copy(
        update={"release": deployment.settings.release.model_copy(update={"id": first})}
    )
    send(deployment.kafka, deployment.input, [Record(avro_file(candidate(n))) for n in range(30)])
    Worker(named, Metrics("candidate")).run(exit_when_idle_s=0.5)
    assert scored_by(deployment) == [first] * 30


def test_alerts_that_come_again_go_the_same_way(flow: tuple[Deployment, ReleaseStore, str, str]) -> None:
    deployment, store, first, second = flow
    with working(deployment) as (_, metrics):
        store.challenge(second, "canary", 0.5)
        until(lambda: trials(metrics, "taken") == 1, what="the challenger is taken")
        publish(deployment, range(40), metrics)
        publish(deployment, reversed(range(40)), metrics)
    found = scored_by(deployment)
    assert found[:40] == expected(second, first, range(40), 0.5) == found[:39:-1]


def test_a_worker_that_starts_amid_a_trial_knows_of_it_before_its_first_alert(
    flow: tuple[Deployment, ReleaseStore, str, str],
) -> None:
    deployment, store, first, second = flow
    store.challenge(second, "canary", 0.5)
    send(deployment.kafka, deployment.input, [Record(avro_file(candidate(n))) for n in range(30)])
    slow = deployment.settings.release.model_copy(update={"poll_s": 600.0})
    work(deployment.settings.model_copy(update={"release": slow}))
    assert scored_by(deployment) == expected(second, first, range(30), 0.5)
