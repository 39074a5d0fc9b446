"""A worker that follows its release store, for the tests of what becomes of it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stream_vae.metrics import Metrics
from stream_vae.model.store import ReleaseStore
from stream_vae.runtime.worker import Worker

from deployment import Deployment, deploy
from releases import make_release
from servers import Kafka

WAIT_S = 20.0


@contextmanager
def working(deployment: Deployment) -> Iterator[tuple[Worker, Metrics]]:
    metrics = Metrics("candidate")
    worker = Worker(deployment.settings, metrics)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker, metrics
    finally:
        worker.stop()
        thread.join(WAIT_S)
    assert not thread.is_alive()


def follow(kafka: Kafka, folder: Path, **release: object) -> tuple[Deployment, ReleaseStore, str]:
    """A deployment that looks for releases all the time, its store, and the release that it begins with."""
    store = ReleaseStore(str(folder / "store"))
    first = store.ids()[0] if store.folders() else make_release(store, folder / "first", seed=9).id
    section = {"poll_s": 0.05, **release}
    deployment = deploy(kafka, folder, survey="candidate", release=section)  # makes a release of its own, seed 0
    store.promote(first)
    return deployment, store, first


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, {"survey": "candidate", **labels}) or 0.0
