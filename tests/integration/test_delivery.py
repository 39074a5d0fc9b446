"""What is promised about delivery: over stops, restarts, rebalances, crashes and outages nothing is lost, and where
exactly once is asked for nothing is double.
"""

import contextlib
import itertools
import json
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from stream_vae.errors import FatalError, RetriableError
from stream_vae.metrics import Metrics
from stream_vae.runtime.worker import Worker
from stream_vae.settings import Settings
from stream_vae.sky.packets import packet_schema, simulate_packets
from stream_vae.stages import transaction
from stream_vae.stages.ledger import Pages
from stream_vae.stages.source import Source
from stream_vae.stages.transaction import ExactlyOnceSink
from stream_vae.tools.audit import audit_of

from deployment import Deployment, deploy
from flow import (
    IDLE_S,
    TIMEOUT_S,
    Record,
    check_books,
    check_same,
    count_messages,
    read,
    running,
    send,
    total,
    until,
    work,
)
from schema_registry import Registry
from servers import Kafka

SMALL = {"max_alerts": 16, "max_wait_s": 0.05}  # many batches of few alerts: many places to be interrupted at
EXACTLY_ONCE = {"mode": "exactly_once"}


def alerts(count: int, *, seed: int = 0, shape: str = "candidate", schema_id: int | None = None) -> list[Record]:
    packets = simulate_packets(count, shape=shape, seed=seed, schema_id=schema_id)
    return [Record(each.packet, str(each.candid).encode()) for each in packets]


def keys(records: list[Record]) -> list[bytes]:
    return sorted(record.key for record in records)


@dataclass
class Running:
    """A worker in a thread of this process."""

    settings: Settings
    metrics: Metrics = field(default_factory=lambda: Metrics("candidate"))
    failures: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.worker = Worker(self.settings, self.metrics)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:  # noqa: BLE001 - looked at when it is stopped
            self.failures.append(error)

    def count(self, fate: str) -> int:
        return total(self.metrics, f"stream_vae_alerts_{fate}_total")

    def stop(self) -> None:
        self.worker.stop()
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        assert self.failures == []


@contextlib.contextmanager
def working(settings: Settings) -> Iterator[Running]:
    one = Running(settings)
    try:
        yield one
    finally:
        one.worker.stop()
    one.stop()


@contextlib.contextmanager
def trickling(deployment: Deployment, records: list[Record], *, a_second: float, partitions: int) -> Iterator[Callable]:
    """Send at a rate meanwhile; gives a function that waits for the end."""

    def trickle() -> None:
        start, step = time.monotonic(), 10 * partitions
        for n in range(0, len(records), step):
            send(deployment.kafka, deployment.input, records[n : n + step], partitions=partitions)
            time.sleep(max(start + (n + step) / a_second - time.monotonic(), 0))

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    yield lambda: thread.join(TIMEOUT_S)
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()


# Again, and from where it stopped.


def test_an_alert_that_is_read_again_in_other_batches_gets_the_same_bytes_but_for_the_time(kafka, tmp_path):
    deployment = deploy(kafka, tmp_path)
    sent = alerts(90, shape="ztf")
    send(kafka, deployment.input, sent)
    for group, size in (("first", 128), ("second", 7), ("third", 1)):
        section = deployment.settings.kafka.model_copy(update={"group_id": kafka.topic(group)})
        batch = deployment.settings.batch.model_copy(update={"max_alerts": size})
        work(deployment.settings.model_copy(update={"kafka": section, "batch": batch}))
    published = read(kafka, deployment.output)
    assert len(published) == 3 * 90
    assert check_same(published) == 2 * 90


@pytest.mark.parametrize("mode", ["at_least_once", "exactly_once"])
def test_a_new_worker_goes_on_where_the_last_one_stopped_and_so_do_its_books(kafka, tmp_path, mode):
    deployment = deploy(kafka, tmp_path, survey="candidate", partitions=2, delivery={"mode": mode}, batch=SMALL)
    for round_, count in enumerate((50, 70), 1):
        send(kafka, deployment.input, alerts(count, seed=round_), partitions=2)
        metrics = work(deployment.settings)
        assert total(metrics, "stream_vae_alerts_consumed_total") == count
        (first, second) = check_books(deployment.settings, consumed=50 if round_ == 1 else 120)
        assert first.page.since == second.page.since == 0
    assert len(read(kafka, deployment.output)) == 120


def test_a_worker_that_is_stopped_under_load_leaves_nothing_half_done(broker, tmp_path):
    deployment = deploy(broker, tmp_path, survey="candidate", batch=SMALL)
    sent = alerts(400)
    send(broker, deployment.input, sent)
    with working(deployment.settings) as first:
        until(lambda: first.count("published") >= 48, what="some alerts are published")
    done = first.count("published")
    assert 48 <= done < 400, "it stopped in the middle"
    assert first.count("consumed") == done
    check_books_so_far(deployment.settings, done)
    work(deployment.settings)
    assert [record.key for record in read(broker, deployment.output)] == [record.key for record in sent]
    check_books(deployment.settings, consumed=400)


def check_books_so_far(settings: Settings, done: int) -> None:
    lines = audit_of(settings.kafka, deep=True)
    assert all(line.balanced for line in lines), lines
    assert sum(line.page.next_offset for line in lines if line.page) == done
    assert sum(line.duplicates for line in lines) == 0


# Several workers.


@pytest.mark.parametrize("mode", ["at_least_once", "exactly_once"])
def test_workers_that_come_and_go_share_the_partitions_and_lose_nothing(kafka, tmp_path, mode):
    # Who leaves says so; who is late on a busy machine must not be taken for dead.
    session = {"consumer_options": {"session.timeout.ms": 20_000}}
    deployment = deploy(
        kafka, tmp_path, survey="candidate", partitions=4, batch=SMALL, delivery={"mode": mode}, kafka=session
    )
    sent = alerts(1_200)
    settings = [with_slot(deployment.settings, slot) for slot in range(2)]
    with trickling(deployment, sent, a_second=300, partitions=4) as sending_ends:
        first = Running(settings[0])
        until(lambda: first.count("published") >= 100, what="the first publishes")
        second = Running(settings[1])
        until(lambda: second.count("published") >= 100, what="the second publishes as well")
        assert [sample(each.metrics, "stream_vae_assigned_partitions") for each in (first, second)] == [2, 2]
        first.stop()
        left = first.count("published")
        until(lambda: sample(second.metrics, "stream_vae_assigned_partitions") == 4, what="the second has all")
        sending_ends()
        until(lambda: left + second.count("published") >= len(sent), what="all are published")
        second.stop()
    published = read(kafka, deployment.output)
    assert set(keys(published)) == set(keys(sent))
    again = len(published) - len(sent)
    assert again == 0 if mode == "exactly_once" else again < 4 * SMALL["max_alerts"]
    check_books(deployment.settings, consumed=len(sent), duplicates=again)
    assert first.count("consumed") == left
    assert first.count("consumed") + second.count("consumed") == len(published)


def with_slot(settings: Settings, slot: int) -> Settings:
    """Each worker has a transactional id of its own."""
    delivery = settings.delivery.model_copy(update={"transactional_id": f"{settings.kafka.group_id}-{slot}"})
    return settings.model_copy(update={"delivery": delivery})


def sample(metrics: Metrics, name: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"survey": "candidate"})


# Processes: stops and crashes.


def test_sigterm_drains_commits_and_exits_0(kafka, tmp_path):
    session = {"session.timeout.ms": 20_000}
    deployment = deploy(
        kafka, tmp_path, survey="candidate", partitions=2, batch=SMALL, kafka={"consumer_options": session}
    )
    sent = alerts(1_500)
    with (
        running(tmp_path / "log", "run", "--settings", deployment.file, "--workers", 0) as process,
        trickling(deployment, sent, a_second=300, partitions=2) as sending_ends,
    ):
        until(lambda: count_messages(kafka, deployment.output) >= 100, what="alerts are published")
        process.signal(signal.SIGTERM)
        assert process.wait(20) == 0, process.text
        assert "SIGTERM" in process.text
        done = len(read(kafka, deployment.output))
        assert 100 <= done < 1_500
        # It left the group: the next one need not wait for its session to end.
        started = time.monotonic()
        with working(deployment.settings) as second:
            until(lambda: second.count("published"), what="the next one publishes")
            took = time.monotonic() - started
            sending_ends()
            until(lambda: done + second.count("published") == len(sent), what="all are published")
    assert took < 15
    assert keys(read(kafka, deployment.output)) == keys(sent)
    check_books(deployment.settings, consumed=1_500)


def test_exit_when_idle_exits_0_once_all_is_committed(kafka, tmp_path):
    deployment = deploy(kafka, tmp_path, survey="candidate", partitions=3)
    sent = alerts(300)
    send(kafka, deployment.input, sent, partitions=3)
    arguments = ("run", "--settings", deployment.file, "--workers", 0, "--exit-when-idle", 0.5)
    with running(tmp_path / "log", *arguments) as process:
        assert process.wait() == 0, process.text
    assert keys(read(kafka, deployment.output)) == keys(sent)
    check_books(deployment.settings, consumed=300)


# Run before the command: it dies as by a power cut at the third time that it comes to a place.
DIE_AT = """
import os, signal
from stream_vae.stages.{module} import {owner}
left, going_on = 3, {owner}.{method}
def die(self, *arguments, **options):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return going_on(self, *arguments, **options)
{owner}.{method} = die
"""


@pytest.mark.parametrize(
    ("mode", "place"),
    [
        # Everything of some batches is with the broker, but their offsets are not.
        ("at_least_once", {"module": "source", "owner": "Source", "method": "commit"}),
        # The third transaction has its messages and offsets, and is neither committed nor aborted.
        ("exactly_once", {"module": "transaction", "owner": "ExactlyOnceSink", "method": "_commit"}),
    ],
)
def test_a_process_that_is_killed_before_a_commit_loses_nothing(kafka, tmp_path, mode, place):
    deployment = deploy(kafka, tmp_path, survey="candidate", batch=SMALL, delivery={"mode": mode})
    sent = alerts(200)
    send(kafka, deployment.input, sent)
    arguments = ("run", "--settings", deployment.file, "--workers", 0, "--exit-when-idle", IDLE_S)
    with running(tmp_path / "killed", *arguments, before=DIE_AT.format(**place)) as process:
        assert process.wait() == -signal.SIGKILL, process.text
    (line,) = audit_of(deployment.settings.kafka)
    done = line.page.next_offset
    seen, there = (
        len(read(kafka, deployment.output, isolation=f"read_{each}")) for each in ("committed", "uncommitted")
    )
    assert there > done
    assert seen == (there if mode == "at_least_once" else done)
    with running(tmp_path / "next", *arguments) as process:
        assert process.wait() == 0, process.text
    published = read(kafka, deployment.output)
    assert set(keys(published)) == set(keys(sent))
    again = check_same(published)
    assert again == seen - done
    check_books(deployment.settings, consumed=200, duplicates=again)


def test_a_survivor_takes_over_from_a_worker_that_was_killed_in_a_transaction(kafka, tmp_path):
    # The dead one never comes back, so its transaction ends by time-out: 30 s by default, here 5 s.
    patience = {"transaction.timeout.ms": 5_000, "message.timeout.ms": 4_000}
    deployment = deploy(
        kafka,
        tmp_path,
        survey="candidate",
        partitions=4,
        batch=SMALL,
        delivery=EXACTLY_ONCE,
        kafka={"producer_options": patience},
    )
    sent = alerts(400)
    arguments = ("run", "--settings", deployment.file, "--workers", 0)
    before = DIE_AT.format(module="transaction", owner="ExactlyOnceSink", method="_commit")
    slot = {"STREAM_VAE_DELIVERY__TRANSACTIONAL_ID": f"{deployment.settings.kafka.group_id}-victim"}
    with working(deployment.settings) as survivor:
        with running(tmp_path / "killed", *arguments, before=before, environment=slot) as victim:
            assigned = "stream_vae_assigned_partitions"
            until(lambda: sample(survivor.metrics, assigned) == 2, what="both have partitions")
            send(kafka, deployment.input, sent, partitions=4)
            assert victim.wait() == -signal.SIGKILL, victim.text
        until(lambda: survivor.count("published") == 400 - 32, what="the survivor does the rest")
    published = read(kafka, deployment.output)
    assert keys(published) == keys(sent)
    uncommitted = read(kafka, deployment.output, isolation="read_uncommitted")
    assert len(uncommitted) > len(published), "it was killed within a transaction"
    check_books(deployment.settings, consumed=400)


def expel(kafka: Kafka, group: str, member: str) -> None:
    """Ask the broker, in its own protocol, to put a member out of a group: as it does when a session ends."""

    def text(value: str) -> bytes:
        return struct.pack(">h", len(value)) + value.encode()

    leave_group, version, number = 13, 0, 1
    request = struct.pack(">hhi", leave_group, version, number) + text("test") + text(group) + text(member)
    host, port = kafka.bootstrap_servers.split(":")
    with socket.create_connection((host, int(port)), TIMEOUT_S) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        answer = connection.recv(64)
    assert struct.unpack(">iih", answer) == (6, number, 0)


def test_a_worker_that_the_group_expelled_in_a_transaction_commits_nothing(kafka, tmp_path, monkeypatch):
    deployment = deploy(kafka, tmp_path, survey="candidate", partitions=2, batch=SMALL, delivery=EXACTLY_ONCE)
    sent, going_on, calls, others = alerts(200), Source.offsets, itertools.count(1), []

    def expelled(pages: Pages) -> list:
        if next(calls) == 3:
            source = one.worker._source
            expel(kafka, deployment.settings.kafka.group_id, source.member_id)
            until(lambda: not source.member_id, what="its client has been told")
            others.append(Running(with_slot(deployment.settings, 1)))
            until(lambda: others[0].count("published") >= 200 - 32, what="another does the rest")
        return going_on(pages)

    monkeypatch.setattr(Source, "offsets", staticmethod(expelled))
    one = Running(with_slot(deployment.settings, 0))
    send(kafka, deployment.input, sent, partitions=2)
    until(lambda: others and sample(others[0].metrics, "stream_vae_assigned_partitions") == 1, what="it joins again")
    one.stop()
    others[0].stop()
    assert keys(read(kafka, deployment.output)) == keys(sent)
    check_books(deployment.settings, consumed=200)


def test_an_aborted_transaction_is_tried_again_in_the_same_process(kafka, tmp_path, monkeypatch):
    deployment = deploy(kafka, tmp_path, survey="candidate", batch=SMALL, delivery=EXACTLY_ONCE)
    sent = alerts(100)
    send(kafka, deployment.input, sent)
    commit, left = ExactlyOnceSink._commit, [3]

    def fail_once(sink: ExactlyOnceSink) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise RetriableError("a broker that does not answer in time")
        commit(sink)

    monkeypatch.setattr(ExactlyOnceSink, "_commit", fail_once)
    metrics = work(deployment.settings)
    assert left[0] < -1, "it went on"
    assert [record.key for record in read(kafka, deployment.output)] == [record.key for record in sent]
    assert len(read(kafka, deployment.output, isolation="read_uncommitted")) == 100 + 16
    check_books(deployment.settings, consumed=100)
    assert total(metrics, "stream_vae_alerts_published_total") == 100
    assert total(metrics, "stream_vae_alerts_consumed_total") == 100


def hanging(monkeypatch, call: str, times: int, *, done: bool) -> list[str]:
    """Let librdkafka hang in a call about a transaction, before or after it is done; give the calls as they come."""
    calls: list[str] = []
    bounded = transaction._bounded

    def hang(function, *arguments):
        calls.append(function.__name__)
        if function.__name__ != call or calls.count(call) not in range(3, 3 + times):
            bounded(function, *arguments)
            return
        if done:
            bounded(function, *arguments)
        raise transaction._HungError(f"it hangs in {call}")

    monkeypatch.setattr(transaction, "_bounded", hang)
    return calls


@pytest.mark.parametrize(
    ("call", "done"),
    [("send_offsets_to_transaction", False), ("commit_transaction", False), ("commit_transaction", True)],
    ids=["offsets", "commit", "commit that was carried out"],
)
def test_a_producer_that_hangs_in_a_transaction_is_replaced_in_the_same_process(
    kafka, tmp_path, monkeypatch, call, done
):
    deployment = deploy(kafka, tmp_path, survey="candidate", batch=SMALL, delivery=EXACTLY_ONCE)
    sent = alerts(100)
    send(kafka, deployment.input, sent)
    calls = hanging(monkeypatch, call, 1, done=done)
    work(deployment.settings)
    assert calls.count("init_transactions") == 1
    assert calls.count("abort_transaction") == 0, "who hangs is not asked for more"
    assert [record.key for record in read(kafka, deployment.output)] == [record.key for record in sent]
    check_books(deployment.settings, consumed=100)


def test_a_worker_whose_producers_hang_again_and_again_stops(kafka, tmp_path, monkeypatch):
    monkeypatch.setattr(transaction, "_MOST_HUNG", 1)
    deployment = deploy(kafka, tmp_path, survey="candidate", batch=SMALL, delivery=EXACTLY_ONCE)
    send(kafka, deployment.input, alerts(100))
    hanging(monkeypatch, "commit_transaction", 2, done=False)
    with pytest.raises(FatalError, match=r"hangs in commit_transaction, the 2th time.*Start the worker again"):
        work(deployment.settings)


# The registry goes away and comes back.


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry({7: packet_schema("candidate")}) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("mode", ["at_least_once", "exactly_once"])
def test_while_the_registry_is_away_the_worker_waits_and_then_goes_on_and_nothing_is_lost(
    kafka, tmp_path, registry, mode
):
    deployment = deploy(
        kafka, tmp_path, survey="candidate", registry={"url": registry.url}, delivery={"mode": mode}, batch=SMALL
    )
    registry.instead = (503, {"error_code": 50301, "message": "no leader"})
    sent = alerts(60, schema_id=7)
    send(kafka, deployment.input, sent)
    with working(deployment.settings) as one:
        until(lambda: "registry" in one.worker.ready()[1], what="it says what it waits for")
        assert one.worker.ready()[0] is False
        assert one.worker.alive()[0]
        assert read(kafka, deployment.output) == read(kafka, deployment.dead_letters) == []
        registry.instead = None
        until(lambda: one.count("published") == 60, what="all are published")
        assert one.worker.ready()[0]

        # Once more, in the middle of the stream: a new schema is on its way.
        registry.schemas[8] = json.dumps(json.loads(registry.schemas[7]) | {"doc": "Another."})
        registry.instead = (500, b"")
        more = alerts(60, seed=1, schema_id=7)
        mixed = [
            each if n % 2 else each._replace(value=b"\0\0\0\0\x08" + each.value[5:]) for n, each in enumerate(more)
        ]
        send(kafka, deployment.input, mixed)
        until(lambda: not one.worker.ready()[0], what="it waits")
        registry.instead = None
        until(lambda: one.count("published") == 120, what="all are published")
    assert [record.key for record in read(kafka, deployment.output)] == [record.key for record in (*sent, *mixed)]
    assert one.count("consumed") == 120
    check_books(deployment.settings, consumed=120)
