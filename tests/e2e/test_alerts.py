"""A real Prometheus with our rules over a real worker and a real trainer: alerts fire for their reason, and resolve.

The rules are the file that is deployed, with every duration sixty times shorter (`monitoring.hastened`), so that five
minutes are five seconds. One stream runs all the time; each test injects a fault, and takes it away again.

PICTURES=FOLDER has the dashboards drawn from what Prometheus saw, one PNG each, and keeps its data beside them.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import OFFSET_END, TopicPartition
from confluent_kafka.admin import AdminClient
from stream_vae.faults.corpus import corrupt
from stream_vae.learning.gates import Gate, verdict_of
from stream_vae.model.store import ReleaseStore, write_release
from stream_vae.sky.packets import simulate_packets
from stream_vae.tools.audit import audit_of

from deployment import Deployment, deploy
from drifting import referenced
from flow import Process, running, until
from monitoring import RULES, Prometheus, dashboards, filled, hastened, panels, prometheus
from servers import MissingServiceError, free_ports, redis_binary, start_redis

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.usefixtures("monitoring_tools")]

FASTER = 60
PARTITIONS = 2
A_SECOND = 60
RULE_MINUTES_S = 60  # of the longest rule but those that look back for hours: fires and resolves within so long
HOLD = """
import time
from pathlib import Path
from stream_vae.errors import RetriableError
from stream_vae.runtime import worker
enriched = worker.enriched
def held(packets, stages, metrics):
    if Path({file!r}).exists():
        raise RetriableError("What encodes cannot be reached.")
    return enriched(packets, stages, metrics)
worker.enriched = held
"""
NOT_HERE = {
    "infrastructure: Errors",  # none of librdkafka's
    "infrastructure: Stamps that wait",  # no encoder pool; tests/e2e/test_fleet_page.py has one
    "infrastructure: Stamps in a batch",
    "infrastructure: Busy",
    "infrastructure: CPU of the nodes",  # no Ray
    "infrastructure: Memory of the nodes",
    "infrastructure: Object store",
    "model: Squared error of reconstructions, by filter",  # a release without a decoder
}
"""Panels that have nothing to show here."""
GATES = [
    Gate("AUC, recent", "passed", 0.93, 0.9, -0.002, 0.05, -0.01, ""),
    Gate("calibration error, recent", "passed", 0.021, 0.034, -0.02, 0.01, 0.03, ""),
    Gate("missed at 1% false positives, recent", "undecided", 0.14, 0.1, -0.03, 0.08, 0.05, ""),
    Gate("squared error, uniform", "failed", 3.4, 2.9, 0.3, 0.6, 0.06, ""),
    Gate("finite, recent", "passed", 0.0, None, None, None, 0.0, ""),
]


class Stream:
    """Sends alerts at a steady rate, some with a cutout that cannot be read, and damaged ones if asked for."""

    def __init__(self, deployment: Deployment) -> None:
        self.damaged = 0.0
        good = [each.packet for each in simulate_packets(120, seed=7)]
        rng = np.random.default_rng(0)
        self._deployment = deployment
        spoiled = [corrupt(packet, "cutout_png", rng) for packet in good[:4]]
        self._good = itertools.cycle([*good, *spoiled])
        self._bad = itertools.cycle([corrupt(packet, "bad_sync", rng) for packet in good[:20]])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        rng = np.random.default_rng(1)
        while not self._stop.wait(0.2):
            bad = rng.random(A_SECOND // 5) < self.damaged
            self._deployment.publish([next(self._bad) if each else next(self._good) for each in bad])

    def end(self) -> None:
        self._stop.set()
        self._thread.join(30)


@dataclass(frozen=True)
class Watched:
    """What runs, and what watches it."""

    deployment: Deployment
    stream: Stream
    worker: Process
    trainer: Process
    redis: subprocess.Popen[bytes]
    hold: Path
    server: Prometheus
    began: float
    ports: tuple[int, int]

    def fires(self, name: str, timeout_s: float = RULE_MINUTES_S) -> dict[str, Any]:
        """Wait until an alert fires, and give it."""
        return self._wait(lambda: self.server.firing().get(name), f"{name} fires", timeout_s)

    def resolves(self, name: str, timeout_s: float = RULE_MINUTES_S) -> None:
        self._wait(lambda: name not in self.server.firing(), f"{name} resolves", timeout_s)

    def calm(self) -> None:
        """Wait until nothing fires: what one test did must not be in another's way."""
        self._wait(lambda: not self.server.firing(), f"nothing fires, but {list(self.server.firing())}", 180)

    @staticmethod
    def _wait(condition: Callable[[], Any], what: str, timeout_s: float) -> Any:
        def looked() -> Any:
            time.sleep(0.3)
            return condition()

        return until(looked, what=what, timeout_s=timeout_s)


@contextlib.contextmanager
def own_redis() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A Redis to be stopped and continued."""
    try:
        binary = redis_binary()
    except MissingServiceError as error:
        pytest.skip(str(error))
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="stream-vae-redis-") as folder:
        process = start_redis(binary, port, Path(folder))
        try:
            yield process, f"redis://127.0.0.1:{port}/0"
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def watched(kafka, tmp_path_factory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("alerts")
    labels = kafka.fresh_topic(stem="labels")
    ports = free_ports(2)
    with contextlib.ExitStack() as stack:
        redis, url = stack.enter_context(own_redis())
        deployment = deploy(
            kafka,
            folder,
            partitions=PARTITIONS,
            metrics={"port": ports[0], "statistics_interval_s": 0.5},
            release={"poll_s": 0.5},
            reservoir={"url": url},
            drift={"window_alerts": 300, "least_alerts": 200, "window_s": 3, "post_interval_s": 1},
            limits={"max_dead_letter_ratio": 1.0},
            retrain={"poll_s": 0.5},
            labels={"topic": labels},
        )
        retrained(deployment, folder)
        stream = Stream(deployment)
        stack.callback(stream.end)
        for number in range(5):
            label = {"alert_id": f"{number}", "label": number % 2, "provenance": "human"}
            deployment.publish([json.dumps(label).encode()], labels)
        hold = folder / "hold"
        worker = stack.enter_context(
            running(folder / "worker.log", "run", "-s", deployment.file, before=HOLD.format(file=str(hold)))
        )
        trainer = stack.enter_context(
            running(
                folder / "trainer.log",
                *("retrain", "-s", deployment.file),
                environment={"STREAM_VAE_METRICS__PORT": str(ports[1])},
            )
        )
        stack.callback(worker.signal, signal.SIGCONT)
        until(lambda: "partitions assigned: " in worker.text, what="the worker is there")
        until(lambda: "retraining of" in trainer.text, what="the trainer is there")
        addresses = {
            f"stream-vae{what}": [f"127.0.0.1:{port}"] for what, port in zip(("", "-trainer"), ports, strict=True)
        }
        kept = Path(os.environ["PICTURES"], "prometheus") if "PICTURES" in os.environ else None
        server = stack.enter_context(prometheus(addresses, hastened(RULES, FASTER), folder=kept))
        yield Watched(deployment, stream, worker, trainer, redis, hold, server, time.time(), tuple(ports))


def retrained(deployment: Deployment, folder: Path) -> None:
    """Put a release with a reference into the store, and one as a retraining leaves it; neither is served."""
    store = ReleaseStore(deployment.settings.release.store)
    known = store.load(referenced(store, folder / "known", seed=3).id)
    write_release(
        store,
        known.folder,
        name="retrained",
        latent_size=known.card.latent_size,
        recipe={},
        data={"reservoir": {"seen": 20}},
        metrics={"verdict": verdict_of(GATES).document()},
        preprocessing=known.card.preprocessing,
    )


def test_in_health_all_targets_are_up_all_rules_are_evaluated_and_nothing_fires(watched):
    rate = "sum(rate(stream_vae_alerts_published_total[10s]))"
    watched._wait(lambda: (watched.server.query(rate) or [({}, 0.0)])[0][1] > A_SECOND / 3, "alerts flow", 60)
    time.sleep(20)  # twenty minutes of the rules' time
    targets = watched.server.get("targets")["activeTargets"]
    assert {each["labels"]["job"]: each["health"] for each in targets} == {
        "stream-vae": "up",
        "stream-vae-trainer": "up",
    }
    rules = [rule for group in watched.server.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == sum(len(group["rules"]) for group in hastened(RULES, FASTER)["groups"])
    assert [(rule["name"], rule.get("lastError", "")) for rule in rules if rule["health"] != "ok"] == []
    assert watched.server.query('max_over_time(ALERTS{alertstate="firing"}[5m])') == []


def test_damaged_messages_fire_dead_letters_and_good_ones_resolve_it(watched):
    watched.calm()
    watched.stream.damaged = 0.4
    alert = watched.fires("StreamVaeDeadLetters")
    assert alert["labels"]["survey"] == "ztf"
    assert alert["labels"]["job"] == "stream-vae"
    assert "instance" not in alert["labels"]
    assert "% of the messages that job stream-vae reads" in alert["annotations"]["description"]
    assert set(watched.server.firing()) == {"StreamVaeDeadLetters"}
    watched.stream.damaged = 0.0
    watched.resolves("StreamVaeDeadLetters")


def test_a_redis_that_hangs_opens_the_circuit_and_one_that_answers_closes_it(watched):
    watched.calm()
    watched.redis.send_signal(signal.SIGSTOP)
    try:
        watched.fires("StreamVaeRedisCircuitOpen")
        published = watched.server.query("sum(rate(stream_vae_alerts_published_total[5s]))")[0][1]
        assert published > A_SECOND / 3, "alerts go on"
        assert set(watched.server.firing()) <= {"StreamVaeRedisCircuitOpen", "StreamVaeTrainerBlind"}
    finally:
        watched.redis.send_signal(signal.SIGCONT)
    watched.resolves("StreamVaeRedisCircuitOpen")


def test_alerts_that_wait_and_are_not_published_are_told_until_they_are(watched):
    watched.calm()
    watched.hold.touch()
    try:
        alert = watched.fires("StreamVaePartitionsStuck")
        assert alert["value"] == f"{PARTITIONS}e+00"
    finally:
        watched.hold.unlink()
    watched.resolves("StreamVaePartitionsStuck")


def test_a_stopped_process_is_down_and_what_kafka_deletes_meanwhile_is_a_gap(watched):
    watched.calm()
    topic = watched.deployment.input
    watched.worker.signal(signal.SIGSTOP)
    try:
        down = watched.fires("StreamVaeTargetDown")
        assert down["labels"]["instance"] == f"127.0.0.1:{watched.ports[0]}"
        assert watched.fires("StreamVaeNotConsuming")["labels"]["severity"] == "critical"
        admin = AdminClient({"bootstrap.servers": watched.deployment.kafka.bootstrap_servers})
        ends = [TopicPartition(topic, number, OFFSET_END) for number in range(PARTITIONS)]
        for deleted in admin.delete_records(ends).values():
            deleted.result(30)
    finally:
        watched.worker.signal(signal.SIGCONT)
    gap = watched.fires("StreamVaeOffsetGaps")
    assert gap["labels"]["topic"] == topic
    assert float(gap["value"]) > 0
    watched.resolves("StreamVaeTargetDown")
    watched.resolves("StreamVaeNotConsuming")
    watched.resolves("StreamVaeOffsetGaps", timeout_s=150)  # the hour that the rule looks back is a minute here


def test_a_release_that_does_not_know_the_stream_is_taken_back_and_that_is_told(watched):
    watched.calm()
    store = ReleaseStore(watched.deployment.settings.release.store)
    before = store.current()
    (known,) = [name for name in store.ids() if name.startswith("referenced")]
    store.promote(known, reason="a test")
    alert = watched.fires("StreamVaeRolledBack")
    assert alert["labels"]["job"] == "stream-vae-trainer"
    assert store.current() == before


def test_the_panels_have_data(watched):
    """But for those whose cause did not happen here, of which there is a list."""
    end = time.time()
    assert watched.server.query('max_over_time(ALERTS{alertname="StreamVaeBooksUnbalanced"}[15m]) == 2') == []
    if folder := os.environ.get("PICTURES"):
        from pictures import draw

        for name, dashboard in dashboards().items():
            draw(watched.server, dashboard, watched.began, end, Path(folder) / f"{name}.png")
    empty = set()
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            found = [
                watched.server.get(
                    "query_range",
                    query=filled(target["expr"], interval="10s", span="10m"),
                    start=str(watched.began),
                    end=str(end),
                    step="2",
                )["result"]
                for target in panel["targets"]
            ]
            if not any(found):
                empty.add(f"{name}: {panel['title']}")
    assert sorted(empty - NOT_HERE) == []


def test_the_books_of_kafka_balance_at_the_end(watched):
    watched.stream.end()

    def all_settled() -> bool:
        lines = audit_of(watched.deployment.settings.kafka)
        return all(line.balanced for line in lines) and sum(line.lag for line in lines) == 0

    until(all_settled, what="all is settled and the books balance")
    assert watched.worker.running, watched.worker.text[-2000:]
    assert watched.trainer.running, watched.trainer.text[-2000:]
