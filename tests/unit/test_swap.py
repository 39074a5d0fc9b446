"""A new release in mid-stream: taken between batches, or refused while the old one goes on."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stream_vae.metrics import Metrics
from stream_vae.model.release import SCORER
from stream_vae.model.store import ReleaseStore

from deployment import Deployment
from flow import Record, check_books, read, send, total
from following import follow, value, working
from releases import make_release, write_encoder
from servers import Kafka
from stage_parts import avro_file, candidate

WAIT_S = 20.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def publish(deployment: Deployment, count: int, metrics: Metrics) -> None:
    """Send so many alerts and wait until they are out."""
    before = total(metrics, "stream_vae_alerts_published_total")
    send(deployment.kafka, deployment.input, [Record(avro_file(candidate(n))) for n in range(count)])
    until(lambda: total(metrics, "stream_vae_alerts_published_total") == before + count)


def scored_by(deployment: Deployment, topic: str) -> list[str]:
    return [record.header("stream_vae.release").decode() for record in read(deployment.kafka, topic)]


def test_a_release_that_becomes_current_scores_from_the_next_batch_on(embedded_kafka: Kafka, tmp_path: Path) -> None:
    deployment, store, first = follow(embedded_kafka, tmp_path)
    made = make_release(store, tmp_path / "second", seed=5, promote=False)
    second = made.id
    with working(deployment) as (worker, metrics):
        publish(deployment, 10, metrics)
        assert value(metrics, "stream_vae_release_made_timestamp_seconds") < made.created_at.timestamp()
        store.promote(second)
        until(lambda: worker.release.id == second)
        publish(deployment, 10, metrics)
        assert value(metrics, "stream_vae_release_made_timestamp_seconds") == made.created_at.timestamp()
        store.rollback()
        until(lambda: worker.release.id == first)
        publish(deployment, 10, metrics)
    assert scored_by(deployment, deployment.output) == [first] * 10 + [second] * 10 + [first] * 10
    assert value(metrics, "stream_vae_release_swaps_total", outcome="taken") == 2
    assert value(metrics, "stream_vae_release_refused") == 0
    info = {"survey": "candidate", "release": first, "latent_space": worker.release.card.latent_space}
    assert metrics.registry.get_sample_value("stream_vae_release_info", info) == 1
    first_made = worker.release.card.created_at.timestamp()
    assert value(metrics, "stream_vae_release_made_timestamp_seconds") == first_made < made.created_at.timestamp()
    check_books(deployment.settings, consumed=30)


def test_a_corrupt_release_is_refused_once_and_taken_when_it_is_mended(
    embedded_kafka: Kafka, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deployment, store, first = follow(embedded_kafka, tmp_path)
    second = make_release(store, tmp_path / "second", seed=5, promote=False).id
    scorer = tmp_path / "store" / "releases" / second / SCORER
    whole = scorer.read_bytes()
    with working(deployment) as (worker, metrics), caplog.at_level(logging.ERROR, "stream_vae"):
        scorer.write_bytes(whole[:-20])
        point_to(tmp_path / "store", second)  # promoting would verify it
        until(lambda: value(metrics, "stream_vae_release_refused") == 1)
        publish(deployment, 10, metrics)
        time.sleep(0.3)  # some looks more, none of which says it again
        assert value(metrics, "stream_vae_release_swaps_total", outcome="refused") == 1
        said = [record.message for record in caplog.records if second in record.message]
        assert len(said) == 1
        assert f"{SCORER} is not the file that was released" in said[0]
        assert f"Scoring goes on with {first}" in said[0]
        scorer.write_bytes(whole)
        until(lambda: worker.release.id == second)
        publish(deployment, 10, metrics)
    assert scored_by(deployment, deployment.output) == [first] * 10 + [second] * 10
    assert value(metrics, "stream_vae_release_refused") == 0


@pytest.mark.parametrize("damage", ["pointer", "unknown", "misfit"])
def test_what_cannot_be_used_is_refused_and_the_old_one_goes_on(
    embedded_kafka: Kafka, tmp_path: Path, damage: str
) -> None:
    deployment, store, first = follow(embedded_kafka, tmp_path)
    with working(deployment) as (worker, metrics):
        publish(deployment, 5, metrics)
        if damage == "pointer":
            (tmp_path / "store" / "current.json").write_text("{", encoding="utf-8")
        elif damage == "unknown":
            point_to(tmp_path / "store", "test-20260101-000000000000")
        else:
            store.promote(make_misfit(tmp_path, store))
        until(lambda: value(metrics, "stream_vae_release_refused") == 1)
        publish(deployment, 5, metrics)
        assert worker.release.id == first
        store.promote(first)
        until(lambda: value(metrics, "stream_vae_release_refused") == 0)
    assert scored_by(deployment, deployment.output) == [first] * 10


def point_to(store: Path, release: str) -> None:
    (store / "current.json").write_text(json.dumps({"release": release}), encoding="utf-8")


def make_misfit(folder: Path, store: ReleaseStore) -> str:
    """Make a release whose digests are right and whose graph takes stamps of another size than its card says."""
    source, made = folder / "store" / "releases" / store.ids()[0], folder / "misfit"
    made.mkdir()
    for name in (SCORER, "reference.npz"):
        (made / name).write_bytes((source / name).read_bytes())
    write_encoder(made / "encoder.onnx", size=15)
    card = store.load(store.ids()[0]).card.model_copy(update={"name": "wrong", "id": ""})
    return store.publish(made, card).id


def test_a_release_that_the_settings_name_stays(embedded_kafka: Kafka, tmp_path: Path) -> None:
    store = ReleaseStore(str(tmp_path / "store"))
    first = make_release(store, tmp_path / "first", seed=9).id
    deployment, _, _ = follow(embedded_kafka, tmp_path, id=first)
    second = make_release(store, tmp_path / "second", seed=5).id
    with working(deployment) as (worker, metrics):
        time.sleep(0.3)
        publish(deployment, 5, metrics)
        assert worker.release.id == first != second
    assert scored_by(deployment, deployment.output) == [first] * 5


def test_a_store_that_is_away_for_a_while_costs_nothing(embedded_kafka: Kafka, tmp_path: Path) -> None:
    deployment, _, first = follow(embedded_kafka, tmp_path)
    folder, aside = tmp_path / "store", tmp_path / "aside"
    with working(deployment) as (worker, metrics):
        folder.rename(aside)
        folder.write_text("no store", encoding="utf-8")
        until(lambda: value(metrics, "stream_vae_release_refused") == 1)
        publish(deployment, 5, metrics)
        folder.unlink()
        aside.rename(folder)
        until(lambda: value(metrics, "stream_vae_release_refused") == 0)
        assert worker.release.id == first
