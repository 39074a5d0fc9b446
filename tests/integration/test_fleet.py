"""`run --workers N` on a real Kafka: one story of a fleet on a Ray of its own, and fleets that join a Ray.

A start of Ray takes seconds, so the story is run once and told by several tests, and the others share a Ray.
Every process that is ended here is a descendant of one that was started here.
"""

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from confluent_kafka import Consumer
from stream_vae.runtime.group import Group
from stream_vae.sky.packets import simulate_packets
from stream_vae.tools.audit import audit_of

from deployment import deploy
from fleets import LOOPBACK_RAY, STREAM_PER_S, Fleet, Stream, descendants, end, wait_for
from flow import running
from servers import Kafka

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

pytest.importorskip("ray", reason="no Ray: pip install 'stream-vae[ray]'")

PARTITIONS = 4
FIRST = 300
SECRET = "s3cr3t-of-a-fleet"  # noqa: S105 - the plain listener does not ask for it


@pytest.fixture(scope="module")
def packets() -> list[bytes]:
    return [each.packet for each in simulate_packets(60, shape="candidate", seed=3)]


@dataclass
class Story:
    """What was seen of one fleet, from its start to its end."""

    published: dict[str, float] = field(default_factory=dict)
    assigned: dict[str, float] = field(default_factory=dict)
    resident: dict[str, float] = field(default_factory=dict)
    at_first: dict[str, float] = field(default_factory=dict)
    ready: int = 0
    alive: int = 0
    listening: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    shown: list[str] = field(default_factory=list)
    killed: int = 0
    restarts: dict[str, float] = field(default_factory=dict)
    recovered_s: float = 0.0
    after: list[int] = field(default_factory=list)
    exit_code: int | None = None
    drained_s: float = 0.0
    left: list[psutil.Process] = field(default_factory=list)
    lag_at_exit: int = 0
    sent: int = 0
    found: int = 0
    balanced: bool = False
    log: str = ""


@pytest.fixture(scope="module")
def story(kafka: Kafka, packets: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    metrics = {"port": 0, "statistics_interval_s": 1}
    secrets = {"sasl_username": "me", "sasl_password": SECRET, "options": {"ssl.key.password": SECRET}}
    deployment = deploy(kafka, folder, survey="candidate", partitions=PARTITIONS, metrics=metrics, kafka=secrets)
    deployment.publish(itertools.islice(itertools.cycle(packets), FIRST))
    fleet, seen = Fleet(deployment, folder, "--workers", 2), Story()
    family: list[psutil.Process] = []
    try:
        _watch_it_work(fleet, seen)
        family = descendants(fleet.process.pid)
        seen.tokens = {each.environ().get("RAY_AUTH_MODE", "none") for each in family if _is_rays(each)}
        seen.listening = _listening([psutil.Process(fleet.process.pid), *family])
        stream = Stream(deployment, packets)
        _kill_one_worker(fleet, seen)
        family += descendants(fleet.process.pid)
        seen.shown = _shown(family)
        _terminate(fleet, seen)
        seen.sent = FIRST + stream.end()
    finally:
        seen.left = end(fleet.process, family)
        seen.log = fleet.said()
    seen.lag_at_exit = sum(line.lag for line in audit_of(deployment.settings.kafka))
    deployment.run_worker()  # what came after the end
    lines = audit_of(deployment.settings.kafka, deep=True)
    seen.found = sum(line.found or 0 for line in lines)
    seen.balanced = all(line.balanced and line.lag == 0 for line in lines)
    return seen


def _watch_it_work(fleet: Fleet, seen: Story) -> None:
    name = "stream_vae_alerts_published_total"
    wait_for(lambda: sum(fleet.samples(name).values()) >= FIRST, "the first alerts", process=fleet.process)
    wait_for(lambda: fleet.samples("stream_vae_fleet_workers_alive") == {"": 2}, "two workers", process=fleet.process)
    one_each = {"0": PARTITIONS / 2, "1": PARTITIONS / 2}
    wait_for(lambda: fleet.samples("stream_vae_assigned_partitions") == one_each, "equal shares", process=fleet.process)
    seen.published, seen.assigned = fleet.samples(name), fleet.samples("stream_vae_assigned_partitions")
    seen.resident = fleet.samples("process_resident_memory_bytes")
    seen.at_first = fleet.samples("stream_vae_fleet_restarts_total")
    seen.ready = httpx.get(fleet.url("readyz"), timeout=10).status_code
    seen.alive = httpx.get(fleet.url("healthz"), timeout=10).status_code


def _listening(processes: list[psutil.Process]) -> set[str]:
    found = set()
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {c.laddr.ip for c in each.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    return found


def _is_rays(process: psutil.Process) -> bool:
    return process.name() in {"gcs_server", "raylet"} or process.name().startswith("ray::Worker")


def _shown(family: list[psutil.Process]) -> list[str]:
    """Find what has the secret in it: Ray's logs, and the processes' command lines."""
    lines = [" ".join(each.cmdline()) for each in family if each.is_running()]
    (session,) = {found.group(1) for line in lines if (found := re.search(r"--session_dir=(\S+)", line))}
    logs = [each for each in Path(session, "logs").rglob("*") if each.is_file()]
    assert logs
    found = [str(each) for each in logs if SECRET.encode() in each.read_bytes()]
    return found + [line for line in lines if SECRET in line]


def _kill_one_worker(fleet: Fleet, seen: Story) -> None:
    def both_work() -> bool:
        counts = fleet.samples("stream_vae_alerts_published_total")
        return all(counts.get(worker, 0) > seen.published.get(worker, 0) for worker in ("0", "1"))

    wait_for(both_work, "both workers at work", process=fleet.process)
    victim = fleet.workers()[0]
    seen.killed = victim.pid
    victim.kill()
    began = time.monotonic()
    wait_for(
        lambda: sum(fleet.samples("stream_vae_fleet_restarts_total").values()) == 1, "a restart", process=fleet.process
    )
    shares = {"0": PARTITIONS / 2, "1": PARTITIONS / 2}
    wait_for(lambda: fleet.samples("stream_vae_assigned_partitions") == shares, "equal shares", process=fleet.process)
    seen.recovered_s = time.monotonic() - began
    seen.restarts = fleet.samples("stream_vae_fleet_restarts_total")
    seen.after = [each.pid for each in fleet.workers()]


def _terminate(fleet: Fleet, seen: Story) -> None:
    fleet.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    seen.exit_code = fleet.wait(60)
    seen.drained_s = time.monotonic() - began


def test_two_workers_share_the_partitions(story):
    assert story.assigned == {"0": 2, "1": 2}


def test_one_page_of_metrics_adds_up_to_the_whole_fleet(story):
    assert sum(story.published.values()) >= FIRST  # more only if partitions changed hands before a commit
    assert story.at_first == {"0": 0, "1": 0}
    assert set(story.resident) == {"0", "1", "supervisor"}
    assert (story.ready, story.alive) == (200, 200)


def test_a_ray_of_its_own_listens_on_this_machine_only(story):
    assert story.listening
    assert story.listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_a_ray_of_its_own_asks_for_a_token(story):
    assert story.tokens == {"token"}


def test_no_secret_is_in_rays_logs_nor_in_ours(story):
    assert story.shown == []
    assert SECRET not in story.log


def test_a_killed_worker_is_replaced(story):
    assert sum(story.restarts.values()) == 1
    assert len(story.after) == 2
    assert story.killed not in story.after


def test_sigterm_drains_and_exits_0(story):
    assert story.exit_code == 0, story.log[-3000:]
    assert "the workers finish their batches" in story.log
    assert "did not stop in time" not in story.log
    assert story.drained_s < 30


def test_no_process_is_left(story):
    assert story.left == []


def test_nothing_is_lost(story):
    assert story.sent > FIRST + STREAM_PER_S  # the stream went on while the worker was dead
    assert story.found == story.sent
    assert story.balanced


@pytest.fixture(scope="module")
def ray_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray to join, with 2 CPUs."""
    log = tmp_path_factory.mktemp("ray") / "head.log"
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, client_port = one.getsockname()[1], other.getsockname()[1]
    ray = Path(sys.executable).parent / "ray"
    options = ["--node-ip-address=127.0.0.1", "--include-dashboard=false", f"--ray-client-server-port={client_port}"]
    command = [ray, "start", "--head", "--block", f"--port={port}", "--num-cpus=2", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | LOOPBACK_RAY)
    try:
        wait_for(lambda: "block forever" in log.read_text(encoding="utf-8"), "Ray's head", process=process)
        yield f"127.0.0.1:{port}"
    finally:
        assert end(process, descendants(process.pid)) == []


def test_a_fleet_exits_once_all_is_done_though_a_worker_has_no_partitions(kafka, packets, ray_address, tmp_path):
    deployment = deploy(kafka, tmp_path, survey="candidate", partitions=2, fleet={"cpus_per_worker": 0.5})
    deployment.publish([*packets, b"junk"])
    fleet = Fleet(deployment, tmp_path, "--workers", 3, "--exit-when-idle", 0.5, "--ray-address", ray_address)
    try:
        assert fleet.wait() == 0, fleet.said()
    finally:
        end(fleet.process, [])
    assert "3 workers for 2 partitions" in fleet.said()
    lines = audit_of(deployment.settings.kafka, deep=True)
    assert all(line.balanced and line.lag == 0 for line in lines)
    assert sum(line.found or 0 for line in lines) == len(packets) + 1


@pytest.mark.parametrize(
    ("before", "workers", "words"),
    [
        ("import ray; ray.__version__ = '1.2.3'", 1, ("another version", "1.2.3", "same Ray")),
        ("", 9, ("9 workers want 9 CPUs", "has 2", "fleet.wait_for_cpus")),
    ],
    ids=["another version", "too few CPUs"],
)
def test_a_cluster_that_does_not_fit_is_told_at_once(kafka, ray_address, tmp_path, before, workers, words):
    deployment = deploy(kafka, tmp_path, survey="candidate", partitions=workers)
    arguments = ("run", "-s", deployment.file, "--workers", workers, "--ray-address", ray_address)
    with running(tmp_path / "log", *arguments, before=before, environment=LOOPBACK_RAY) as process:
        assert process.wait(60) == 2, process.text
        for word in ("ConfigError", *words):
            assert word in process.text
        assert "Traceback" not in process.text
    arguments = ("-q", "doctor", "-s", deployment.file, "--workers", workers, "--ray-address", ray_address)
    with running(tmp_path / "doctor", *arguments, before=before, environment=LOOPBACK_RAY) as process:
        assert process.wait(60) == 1, process.text
        assert words[0] in process.text


def test_a_wrong_release_ends_the_fleet_with_the_words_of_the_worker(kafka, ray_address, tmp_path):
    deployment = deploy(kafka, tmp_path, survey="candidate", release={"id": "no-such-release"})
    fleet = Fleet(deployment, tmp_path, "--workers", 1, "--ray-address", ray_address)
    try:
        assert fleet.wait() == 2, fleet.said()
    finally:
        end(fleet.process, [])
    from stream_vae.errors import ConfigError

    with pytest.raises(ConfigError) as alone:
        deployment.run_worker()
    assert f"ConfigError: {alone.value}" in fleet.said()
    assert "Traceback" not in fleet.said()


def test_a_group_agrees_only_when_every_partition_has_the_owner_that_claims_it(kafka, tmp_path):
    deployment = deploy(kafka, tmp_path, partitions=2)
    section = deployment.settings.kafka
    group, both = Group(section), frozenset({(deployment.input, 0), (deployment.input, 1)})
    assert group.input_partitions() == both
    assert not group.agrees({"": frozenset()})
    options = {"bootstrap.servers": kafka.bootstrap_servers, "group.id": section.group_id}
    consumer = Consumer(options | kafka.consumer_options)
    consumer.subscribe([deployment.input])
    wait_for(lambda: consumer.poll(0.2) is None and len(consumer.assignment()) == 2, "an assignment")
    member = consumer.memberid()
    wait_for(lambda: group.agrees({member: both}), "agreement")
    assert not group.agrees({member: frozenset({(deployment.input, 0)})})
    assert not group.agrees({member: both, "another": frozenset()})
    consumer.close()
    assert not group.agrees({member: both})


def test_a_fleet_that_follows_the_lag_grows_shrinks_and_loses_nothing(kafka, packets, ray_address, tmp_path):
    # Long enough that the second worker has begun before nothing asks for it any more.
    follow = {"max_workers": 2, "lag_per_worker": 200, "scale_down_after_s": 25, "cpus_per_worker": 0.5}
    deployment = deploy(kafka, tmp_path, survey="candidate", partitions=PARTITIONS, metrics={"port": 0}, fleet=follow)
    deployment.publish(itertools.islice(itertools.cycle(packets), 4_000))
    group = Group(deployment.settings.kafka)
    assert group.lag() == 4_000
    fleet = Fleet(deployment, tmp_path, "--workers", 1, "--ray-address", ray_address)
    try:
        alive, wanted = "stream_vae_fleet_workers_alive", "stream_vae_fleet_workers_wanted"
        wait_for(lambda: sum(fleet.samples(alive).values()) == 2, "a second worker", process=fleet.process)
        wait_for(lambda: sum(fleet.samples(wanted).values()) == 1, "no lag", process=fleet.process)
        deployment.publish(itertools.islice(itertools.cycle(packets), 150))  # too few for two
        wait_for(lambda: group.lag() == 0, "all is settled", process=fleet.process)
        assert sum(fleet.samples(wanted).values()) == 1
        fleet.process.terminate()
        assert fleet.wait() == 0, fleet.said()
    finally:
        end(fleet.process, [])
    lines = audit_of(deployment.settings.kafka, deep=True)
    assert all(line.balanced for line in lines)
    assert sum(line.page.consumed for line in lines if line.page) == 4_150
    assert sum(line.duplicates or 0 for line in lines) == 0
