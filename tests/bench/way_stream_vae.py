"""The first way: stream_vae's own worker, as `stream-vae run --workers 0` runs it."""

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import corpus
from job import Job, Meter
from prometheus_client import Counter
from stream_vae.alert import Packet
from stream_vae.metrics import STAGES, Metrics
from stream_vae.pipeline import enriched
from stream_vae.runtime.process import settle_memory
from stream_vae.runtime.worker import Worker


class _TimedWorker(Worker):
    """Stops when all is settled, and notes when it read first and settled last."""

    def __init__(self, job: Job, metrics: Metrics) -> None:
        super().__init__(job.settings(), metrics)
        self._wanted = job.alerts
        self.settled = 0
        self.meter = Meter()

    def warm_up(self, packets: list[bytes]) -> None:
        taken = [Packet(value, "warm-up", 0, offset) for offset, value in enumerate(packets)]
        enriched(taken, self._stages, Metrics("warm-up"))

    def _turn(self) -> None:
        began, before = perf_counter(), self.settled
        super()._turn()
        self.settled = _settled(self._metrics)
        if self.settled > before:
            self.meter.batch(began)
        if self.settled >= self._wanted:
            self.stop()


def run(job: Job) -> dict[str, Any]:
    metrics = Metrics(job.survey)
    worker = _TimedWorker(job, metrics)
    worker.warm_up(corpus.load(Path(job.corpus)))
    settle_memory()  # by whoever owns the process: here, and the command
    worker.meter.start()
    worker.run()
    measured = worker.meter.stop()
    cpu = {labels["stage"]: value for labels, value in _samples(metrics.stage_cpu_seconds)}
    stages = {name: cpu[name] for name in STAGES if name in cpu}
    published = sum(value for _, value in _samples(metrics.published))
    return {"alerts": worker.settled, "published": int(published), "stages": stages, **measured}


def _settled(metrics: Metrics) -> int:
    fates = (metrics.published, metrics.dead_lettered, metrics.filtered)
    return int(sum(value for counter in fates for _, value in _samples(counter)))


def _samples(counter: Counter) -> Iterator[tuple[dict[str, str], float]]:
    for metric in counter.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                yield sample.labels, sample.value
