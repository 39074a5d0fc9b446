"""The compose files as an operator brings them up: build, wait for health, stream, kill containers, count.

`make test-compose`; needs a Docker with compose, whose project and ports are the test's own. What is published is read
from outside, through the port that Kafka has on this machine.
"""

import io
import json
import os
import shutil
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fastavro
import httpx
import pytest
from confluent_kafka import Consumer

from flow import Record, read, until
from servers import REPOSITORY, Kafka, free_ports

FOLDER = REPOSITORY / "deploy" / "compose"
RATE = 30
ENDLESS, FEW = 1_000_000, 600
PLAIN, SECURE = ("compose.yaml",), ("compose.yaml", "compose.secure.yaml")
SETTINGS = ("--settings", "/etc/stream-vae/settings.toml")
HEALTHY_S = 600  # images are there; one release is trained


@dataclass(frozen=True)
class Stack:
    """A project of compose."""

    files: tuple[str, ...]
    environment: dict[str, str]
    kafka_port: int
    prometheus: str

    def compose(self, *arguments: str, timeout_s: float = 120, check: bool = True) -> str:
        files = [part for file in self.files for part in ("-f", file)]
        done = subprocess.run(
            ["docker", "compose", *files, *arguments],
            cwd=FOLDER,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0 or not check, f"{arguments}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def up(self, *arguments: str) -> None:
        self.compose("up", "--detach", "--wait", *arguments, timeout_s=HEALTHY_S)

    def exit_code(self, service: str) -> int | None:
        """Tell how a service's container ended; None while it runs."""
        lines = self.compose("ps", "--all", "--format", "json", service).splitlines()
        (state,) = [json.loads(line) for line in lines]
        return state["ExitCode"] if state["State"] == "exited" else None

    def audit(self, *arguments: str) -> dict[str, Any]:
        done = self.compose("exec", "-T", "worker", "stream-vae", "audit", *SETTINGS, "--json", *arguments, check=False)
        return json.loads(done)

    def read(self, topic: str) -> list[Record]:
        """Read a topic from this machine, to its end."""
        return read(Kafka(f"127.0.0.1:{self.kafka_port}"), topic)

    def query(self, expression: str) -> list[dict[str, Any]]:
        return self.ask("query", query=expression)["result"]

    def ask(self, what: str, **parameters: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.prometheus}/api/v1/{what}", params=parameters, trust_env=False).raise_for_status()
        return answer.json()["data"]


@pytest.fixture(scope="module")
def docker() -> None:
    """A Docker with compose, or a skip with the reason."""
    if shutil.which("docker") is None:
        pytest.skip("there is no docker")
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        if (done := subprocess.run(command, capture_output=True, text=True)).returncode:
            pytest.skip(f"`{' '.join(command)}`: {done.stderr.strip() or done.stdout.strip()}")


def brought_up(files: tuple[str, ...], alerts: int) -> Iterator[Stack]:
    kafka_port, prometheus_port = free_ports(2)
    stack = Stack(
        files,
        {
            "COMPOSE_PROJECT_NAME": f"stream-vae-test-{uuid.uuid4().hex[:8]}",
            "COMPOSE_PROFILES": "demo",
            "KAFKA_PORT": str(kafka_port),
            "PROMETHEUS_PORT": str(prometheus_port),
            "REPLAY_COUNT": str(alerts),
            "REPLAY_RATE": str(RATE),
        },
        kafka_port,
        f"http://127.0.0.1:{prometheus_port}",
    )
    subprocess.run([FOLDER / "make-secrets"], check=True, capture_output=True)
    stack.compose("build", timeout_s=1800)
    try:
        began = time.monotonic()
        stack.up()
        print(f"\n{' + '.join(files)}: up and healthy in {time.monotonic() - began:.0f} s")
        yield stack
    finally:
        print(stack.compose("logs", "--no-color", "--tail", "25", "worker", "trainer", "replayer", check=False))
        stack.compose("down", "--volumes", timeout_s=180)


@pytest.fixture(scope="module")
def stack(docker) -> Iterator[Stack]:
    yield from brought_up(PLAIN, ENDLESS)


def enrichment_of(packet: bytes) -> dict[str, Any]:
    (record,) = fastavro.reader(io.BytesIO(packet))
    return record["stream_vae"]


def settled(stack: Stack) -> dict[str, Any] | None:
    books = stack.audit()
    lag = sum(partition["lag"] for partition in books["partitions"])
    return books if books["balanced"] and lag == 0 else None


def test_every_container_is_healthy_and_prometheus_sees_worker_and_trainer(stack):
    def jobs() -> list[str]:
        targets = stack.ask("targets")["activeTargets"]
        return sorted(target["labels"]["job"] for target in targets if target["health"] == "up")

    until(lambda: jobs() == ["stream-vae-trainer", "stream-vae-worker"], what="both are scraped", timeout_s=60)
    groups = stack.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len([rule for rule in rules if rule["type"] == "alerting"]) >= 10
    until(
        lambda: all(
            rule["health"] == "ok" for group in stack.ask("rules")["groups"] for rule in group["rules"]
        ),
        what="every rule is evaluated",
        timeout_s=60,
    )  # fmt: skip
    assert [alert for alert in stack.ask("alerts")["alerts"] if alert["state"] == "firing"] == []


def test_alerts_come_out_enriched_and_prometheus_counts_them(stack):
    until(lambda: len(stack.read("ztf-enriched")) > 50, what="alerts are enriched", timeout_s=60)
    scores = [enrichment_of(record.value) for record in stack.read("ztf-enriched")]
    assert all(len(each["latent_mean"]) == 21 for each in scores if each["latent_mean"] is not None)
    assert sum(each["real_score"] is not None for each in scores) > 40
    until(
        lambda: [
            each for each in stack.query("sum(stream_vae_alerts_published_total)") if float(each["value"][1]) > 50
        ],
        what="Prometheus has counted",
        timeout_s=60,
    )


def test_nothing_is_lost_when_worker_kafka_and_valkey_are_killed(stack):
    for service in ("worker", "kafka", "valkey"):
        stack.compose("kill", service)
        time.sleep(3)
        stack.compose("start", service)
        until(lambda service=service: _healthy(stack, service), what=f"{service} is healthy again", timeout_s=180)
    assert stack.exit_code("replayer") is None, "the replay went on meanwhile"
    stack.compose("stop", "replayer")
    until(lambda: settled(stack), what="all is settled", timeout_s=180)
    books = stack.audit("--deep")
    assert books["balanced"], books
    sent = stack.read("ztf-alerts")
    assert len(sent) > 1_000
    there = Counter(record.origin for topic in ("ztf-enriched", "ztf-dead-letters") for record in stack.read(topic))
    lost = [record.position for record in sent if record.position not in there]
    assert lost == []
    print(f"{len(sent)} sent, none lost, {sum(there.values()) - len(there)} twice")


def _healthy(stack: Stack, service: str) -> bool:
    states = [json.loads(line) for line in stack.compose("ps", "--format", "json", service).splitlines()]
    return bool(states) and all(state["Health"] == "healthy" for state in states)


def test_labels_and_a_retraining_work_with_the_trainers_rights(stack):
    def trainer(*arguments: str, check: bool = True) -> str:
        return stack.compose("exec", "-T", "trainer", "stream-vae", *arguments, timeout_s=400, check=check)

    stats = json.loads(trainer("reservoir", "stats", *SETTINGS, "--json"))
    assert stats["stamps"] > 500
    result = json.loads(trainer("retrain", *SETTINGS, "--now", "--json"))
    releases = json.loads(trainer("releases", "list", "--store", "/releases", "--json"))
    assert len(releases) == 2, result
    assert "NOPERM" not in stack.compose("logs", "trainer")


def test_a_worker_that_is_stopped_settles_and_exits_0(stack):
    stack.compose("stop", "worker")
    assert stack.exit_code("worker") == 0
    stack.up("worker")


def test_no_container_runs_as_root_or_may_write_its_own_image(stack):
    for service in ("worker", "trainer"):
        identity = stack.compose("exec", "-T", service, "id", "-u").strip()
        assert identity == "10001"
        done = stack.compose("exec", "-T", service, "sh", "-c", "touch /opt/x 2>&1 || true")
        assert "Read-only file system" in done


@pytest.fixture(scope="module")
def secure(docker) -> Iterator[Stack]:
    yield from brought_up(SECURE, FEW)


def test_with_passwords_over_tls_alerts_flow_and_no_one_comes_in_without(secure):
    until(lambda: settled(secure) if secure.exit_code("replayer") == 0 else None, what="all is settled", timeout_s=400)
    (published,) = secure.query("sum(stream_vae_alerts_published_total)")
    assert float(published["value"][1]) > FEW * 0.9
    anyone = Consumer({"bootstrap.servers": f"127.0.0.1:{secure.kafka_port}", "group.id": "x", "log_level": 0})
    with pytest.raises(Exception, match=r"(?i)transport|timed out|disconnect"):
        anyone.list_topics(timeout=5)
    anyone.close()


def test_without_secrets_compose_refuses(docker, tmp_path):
    shutil.copytree(FOLDER.parent, tmp_path / "deploy", ignore=shutil.ignore_patterns("secrets", ".env"))
    done = subprocess.run(
        ["docker", "compose", "up", "--no-build", "--no-start"],
        cwd=tmp_path / "deploy" / "compose",
        env=os.environ | {"COMPOSE_PROJECT_NAME": f"stream-vae-test-{uuid.uuid4().hex[:8]}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "secrets/valkey_worker_password" in done.stdout + done.stderr
