"""The supervisor's decisions, with workers that are only pretended: who is restarted, when, and what is shown."""

import pickle
import socket
import sys
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from stream_vae import settings
from stream_vae.errors import ConfigError, FatalError, RetriableError, StreamVaeError
from stream_vae.runtime import cluster, slot
from stream_vae.runtime.cluster import connected
from stream_vae.runtime.fleet_metrics import FleetCollector, merged
from stream_vae.runtime.remote import WorkerLostError
from stream_vae.runtime.slot import Slot
from stream_vae.runtime.status import Phase, Standing
from stream_vae.settings import Settings

from pretended import RUNNING, Pretended
from stage_parts import complete_settings


class Bench:
    """A slot with a clock of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.made: list[Pretended] = []
        self.restarts = Counter("restarts", "of the test", registry=CollectorRegistry())
        self.slot = Slot(0, self.launch, self.restarts, start_timeout_s=60)

    def launch(self, number: int) -> Pretended:  # noqa: ARG002 - as the cluster has it
        self.made.append(Pretended())
        self.made[-1].answered_at = self.now
        return self.made[-1]

    def turn(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.slot.turn(self.now)

    def run(self) -> Pretended:
        """Launch a worker and see it run."""
        while self.slot.worker is None:
            self.turn(0.5)
        self.made[-1].next = RUNNING
        self.made[-1].answered_at = self.now
        self.turn()
        assert self.slot.running()
        return self.made[-1]

    def die(self, error: StreamVaeError, standing: Standing = RUNNING.standing) -> float:
        """Let the worker die, and tell how long its slot stays empty."""
        self.made[-1].next = replace(RUNNING, phase=Phase.ENDED, error=error, standing=standing)
        self.turn()
        assert self.slot.worker is None
        died_at = self.now
        while self.slot.worker is None:
            self.turn(0.5)
        return self.now - died_at


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_worker_that_dies_is_replaced_after_a_backoff_that_doubles(bench):
    bench.run()
    pauses = []
    for _ in range(7):
        pauses.append(bench.die(FatalError("broken")))
        bench.run()
        bench.turn(40)  # lives long enough that the fleet does not give up
        bench.made[-1].answered_at = bench.now
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert bench.restarts._value.get() == 7
    assert all(worker.killed for worker in bench.made[:-1])


def test_the_backoff_begins_anew_after_a_long_life(bench):
    bench.run()
    assert bench.die(FatalError("broken")) == 1
    worker = bench.run()
    bench.now += slot.WINDOW_S + 1
    worker.answered_at = bench.now
    assert bench.die(FatalError("broken")) == 1


def test_five_deaths_within_two_minutes_end_the_fleet(bench):
    for _ in range(slot.MOST_DEATHS - 1):
        bench.run()
        bench.die(FatalError("the last words"))
    bench.run()
    with pytest.raises(FatalError, match=r"5 times within 120 s.*the last words"):
        bench.die(FatalError("the last words"))


def _killed_at_work(bench: Bench, *, progressed: bool) -> float:
    """Run a worker that settles something or not, kill it, and tell how long its slot stays empty."""
    worker = bench.run()
    worker.next = replace(RUNNING, standing=Standing(progressed=progressed))
    bench.turn()
    worker.next = WorkerLostError("killed")
    bench.turn()
    assert bench.slot.worker is None
    died_at = bench.now
    while bench.slot.worker is None:
        bench.turn(0.5)
    return bench.now - died_at


def test_workers_that_are_killed_at_their_work_never_end_the_fleet_and_are_replaced_in_seconds(bench):
    pauses = [_killed_at_work(bench, progressed=True) for _ in range(3 * slot.MOST_DEATHS)]
    assert pauses == [1, 2, 4, *[5] * (3 * slot.MOST_DEATHS - 3)]
    assert bench.restarts._value.get() == 3 * slot.MOST_DEATHS


def test_workers_that_are_lost_before_they_settle_anything_end_the_fleet(bench):
    _killed_at_work(bench, progressed=True)  # the one before got on
    for _ in range(slot.MOST_DEATHS - 1):
        _killed_at_work(bench, progressed=False)
    with pytest.raises(FatalError, match=r"5 times within 120 s.*killed"):
        _killed_at_work(bench, progressed=False)


def test_workers_that_say_why_they_stop_end_the_fleet_though_they_settled_something(bench):
    for _ in range(slot.MOST_DEATHS - 1):
        bench.run()
        bench.die(FatalError("too many dead letters"), Standing(progressed=True))
    bench.run()
    with pytest.raises(FatalError, match="too many dead letters"):
        bench.die(FatalError("too many dead letters"), Standing(progressed=True))


def test_a_configuration_error_ends_the_fleet_if_no_worker_ever_ran(bench):
    bench.turn()
    with pytest.raises(ConfigError, match="no such release") as caught:
        bench.die(ConfigError("no such release.", remedy="Train one."))
    assert caught.value.remedy == "Train one."


def test_a_configuration_error_of_a_replacement_is_tried_again_for_brokers_may_be_away(bench):
    bench.run()
    bench.die(FatalError("broken"))
    for _ in range(slot.MOST_DEATHS - 2):
        bench.die(ConfigError("No Kafka broker answers."))
    with pytest.raises(ConfigError, match="No Kafka broker answers"):
        bench.die(ConfigError("No Kafka broker answers."))


def test_a_lost_process_is_a_death(bench):
    bench.run().next = WorkerLostError("killed")
    bench.turn()
    assert bench.slot.worker is None
    bench.turn(1)
    assert len(bench.made) == 2


@pytest.mark.parametrize("sign", ["its loop stands still", "it does not answer"])
def test_a_worker_that_stands_still_is_replaced(bench, sign):
    worker = bench.run()
    if sign == "it does not answer":
        bench.now += slot.SILENT_S + 1
    else:
        worker.next = replace(RUNNING, alive=False)
    bench.turn()
    assert worker.killed
    bench.turn(1)
    assert len(bench.made) == 2


def test_a_worker_without_a_place_in_the_cluster_is_a_configuration_error(bench):
    bench.turn()
    bench.made[-1].next = None
    bench.turn(59)
    with pytest.raises(ConfigError, match=r"no place in the Ray cluster.*cpus_per_worker"):
        bench.turn(2)


def test_a_stopped_worker_is_not_replaced(bench):
    worker = bench.run()
    assert bench.slot.ended() is False
    bench.slot.stop()
    assert bench.slot.ended() is True
    assert worker.killed


def test_the_error_of_a_worker_that_cannot_settle_is_kept(bench):
    worker = bench.run()
    worker.next = replace(RUNNING, phase=Phase.ENDED, error=FatalError("not acknowledged"))
    ended = bench.slot.ended()
    assert isinstance(ended, FatalError)


@pytest.mark.parametrize("kind", [ConfigError, FatalError, RetriableError, WorkerLostError])
def test_errors_cross_processes_whole(kind):
    error = pickle.loads(pickle.dumps(replace(RUNNING, error=kind("what", remedy="Do this.")))).error  # noqa: S301
    assert type(error) is kind
    assert str(error) == "what Do this."


def _families(consumed: int) -> list:
    registry = CollectorRegistry()
    Counter("alerts_total", "Alerts", ("survey",), registry=registry).labels("ztf").inc(consumed)
    Gauge("ready", "Ready", registry=registry).set(1)
    Histogram("latency_seconds", "Latency", buckets=(1, 2), registry=registry).observe(1.5)
    Info("release", "Release", registry=registry).info({"release": "abc"})
    return pickle.loads(pickle.dumps(list(registry.collect())))  # noqa: S301 - as Ray carries them


def test_metrics_of_workers_stand_side_by_side_in_one_family():
    registry = CollectorRegistry()
    registry.register(FleetCollector(lambda: {"0": _families(3), "1": _families(4)}))
    text = generate_latest(registry).decode()
    found = {family.name: family for family in text_string_to_metric_families(text)}
    alerts = {sample.labels["worker"]: sample.value for sample in found["alerts"].samples if "_total" in sample.name}
    assert alerts == {"0": 3, "1": 4}
    assert sum(s.value for s in found["latency_seconds"].samples if s.name.endswith("_count")) == 2
    assert {s.labels["worker"] for s in found["process_resident_memory_bytes"].samples} == {"supervisor"}
    assert text.count("# TYPE alerts_total counter") == 1


def test_a_label_that_says_worker_already_is_kept():
    registry = CollectorRegistry()
    Counter("restarts", "Restarts", ("worker",), registry=registry).labels("7").inc()
    (family,) = merged({"supervisor": list(registry.collect())})
    assert {sample.labels["worker"] for sample in family.samples} == {"7"}


def test_settings_arrive_as_they_were_sent_whatever_the_environment_there(monkeypatch, tmp_path):
    (tmp_path / "schema.avsc").write_text("{}")
    sent = Settings(
        survey="ztf",
        survey_profile={"name": "mine"},
        kafka={
            "bootstrap_servers": "k:9092",
            "input_topics": ["in", "^in-.*"],
            "output_topic": "out",
            "dead_letter_topic": "dead",
            "framing": "schemaless",
            "schema_file": tmp_path / "schema.avsc",
            "sasl_password": "hunter2",
            "options": {"security.protocol": "SASL_SSL"},
        },
        release={"store": "s3://releases"},
    )
    document = settings.to_plain(sent)
    monkeypatch.setenv("STREAM_VAE_KAFKA__OPTIONS", '{"debug": "all"}')
    monkeypatch.setenv("STREAM_VAE_KAFKA__LITE_TOPIC", "elsewhere")
    arrived = settings.from_plain(document)
    assert arrived.model_dump() == sent.model_dump()
    assert arrived.kafka.sasl_password is not None
    assert arrived.kafka.sasl_password.get_secret_value() == "hunter2"
    assert {type(value) for value in document["kafka"].values()} <= {str, list, dict, bool, type(None)}
    assert "hunter2" not in repr(arrived)


def test_settings_of_another_version_are_refused_without_showing_them():
    document = {"survey": "ztf", "kafka": {"sasl_password": "hunter2", "unknown": 1}}
    with pytest.raises(ConfigError, match="same stream_vae") as caught:
        settings.from_plain(document)
    assert "hunter2" not in str(caught.value)


@pytest.fixture
def quiet_environment(monkeypatch):
    """What `connected` sets for Ray goes away with the test."""
    for name in cluster._ENVIRONMENT | cluster._LOOPBACK_ONLY:
        monkeypatch.setenv(name, "0")


def test_without_ray_the_error_names_the_extra(monkeypatch, quiet_environment):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"stream-vae\[ray\]"), connected(complete_settings(), 1, None):
        pass


def test_a_ray_address_that_does_not_answer_fails_in_seconds(monkeypatch, quiet_environment):
    monkeypatch.setitem(sys.modules, "ray", object())  # it is not asked
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConfigError, match=address), connected(complete_settings(), 1, address):
            pass


@pytest.mark.parametrize("address", ["nonsense", "host:port", "host"])
def test_a_ray_address_that_is_none_is_refused(monkeypatch, quiet_environment, address):
    monkeypatch.setitem(sys.modules, "ray", object())
    with pytest.raises(ConfigError, match="is no address"), connected(complete_settings(), 1, address):
        pass
