"""The metrics: their names and labels, and what they take from librdkafka's statistics and from a batch."""

import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Consumer, Producer
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from stream_vae.alert import Rejected, Scores
from stream_vae.errors import Reason
from stream_vae.metrics import STAGES, Metrics, TrainerMetrics, observe_each
from stream_vae.quality import Quality

from servers import Kafka
from stage_parts import packet

UNITS = ("seconds", "bytes", "messages", "alerts", "partitions", "workers", "stamps")
BARE = {
    "real_score",
    "novelty",
    "ready",
    "release",
    "release_refused",
    "build",
    "reservoir_circuit_open",
    "alerts_in_flight",
    "shadow_score_difference",
    "drift_psi",
    "drift_alarm",
}
"""Shares and states, which have no unit."""
SCALED = re.compile(r"(^|_)(ms|us|ns|millis|micros|minutes|hours|kb|mb|kib|mib|percent)(_|$)")
CLOSED_LABELS = {
    "survey",
    "topic",
    "partition",
    "stage",
    "reason",
    "flag",
    "client",
    "broker",
    "code",
    "outcome",
    "event",
    "stratum",
    "worker",
    "band",
    "figure",
}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("ztf", CollectorRegistry())


def ours(metrics: Metrics) -> list[Any]:
    return [family for family in metrics.registry._collector_to_names if hasattr(family, "_labelnames")]


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"stream_vae_{name}", {"survey": "ztf", **labels})


def test_every_name_follows_the_style(metrics: Metrics) -> None:
    for family in ours(metrics):
        assert re.fullmatch(r"stream_vae(_[a-z]+)+", family._name)
        bare = family._name.removeprefix("stream_vae_")
        assert not SCALED.search(bare), bare
        # A counter without a unit counts what it is named after; prometheus-client adds its _total.
        assert family._type == "counter" or bare.endswith(UNITS) or bare in BARE, bare


def test_every_metric_says_what_it_is_and_for_which_survey(metrics: Metrics) -> None:
    for family in ours(metrics):
        assert family._documentation.strip(), family._name
        if family._type != "info":
            assert family._labelnames[0] == "survey", family._name


def test_labels_are_from_closed_lists_and_never_an_alerts_id(metrics: Metrics) -> None:
    for family in ours(metrics):
        assert set(family._labelnames) <= CLOSED_LABELS, family._name


def test_two_workers_in_one_process_do_not_share_their_metrics() -> None:
    first, second = Metrics("ztf"), Metrics("ztf")
    first.consumed.labels("ztf", "in", "0").inc(3)
    assert value(first, "alerts_consumed_total", topic="in", partition="0") == 3
    assert value(second, "alerts_consumed_total", topic="in", partition="0") is None


def test_the_page_that_prometheus_reads_holds_them_and_the_process() -> None:
    page = generate_latest(Metrics("ztf").registry).decode()
    assert "stream_vae_build_info{" in page
    assert "process_resident_memory_bytes" in page


def test_counters_begin_at_zero_so_that_prometheus_sees_the_first_count(metrics: Metrics) -> None:
    assert value(metrics, "reservoir_lost_total") == 0
    trainer = TrainerMetrics("ztf").registry
    for name, labels in (
        ("rollbacks_total", {}),
        ("retraining_failures_total", {"error": "ConfigError"}),
        ("trainer_looks_failed_total", {"what": "labels"}),
    ):
        assert trainer.get_sample_value(f"stream_vae_{name}", {"survey": "ztf"} | labels) == 0


def gate(name: str, outcome: str, challenger: float | None, incumbent: float | None) -> dict[str, Any]:
    return {"name": name, "outcome": outcome, "challenger": challenger, "incumbent": incumbent}


def test_gates_are_shown_with_both_figures_and_only_those_of_the_last_verdict() -> None:
    metrics = TrainerMetrics("ztf")

    def shown(name: str) -> dict[tuple[str, ...], float]:
        families = (each for each in metrics.registry.collect() if each.name == f"stream_vae_{name}")
        samples = (sample for family in families for sample in family.samples)
        return {
            (each.labels["gate"], *filter(None, [each.labels.get("release")])): each.value
            for each in samples
            if each.labels["survey"] == "ztf"
        }

    gates = [
        gate("AUC, recent", "passed", 0.9, 0.8),
        gate("calibration error, recent", "undecided", 0.04, 0.01),
        gate("finite, recent", "failed", 3.0, None),
        gate("squared error, recent", "not_judged", None, None),
    ]
    metrics.show_gates({"decision": "reject", "gates": gates})
    assert shown("gate_outcome") == {("AUC, recent",): 1, ("calibration error, recent",): 0, ("finite, recent",): -1}
    assert shown("gate_figure") == {
        ("AUC, recent", "challenger"): 0.9,
        ("AUC, recent", "incumbent"): 0.8,
        ("calibration error, recent", "challenger"): 0.04,
        ("calibration error, recent", "incumbent"): 0.01,
        ("finite, recent", "challenger"): 3.0,
    }
    metrics.show_gates({"gates": [gate("AUC, uniform", "passed", 0.7, 0.6)]})
    assert shown("gate_outcome") == {("AUC, uniform",): 1}
    assert shown("gate_figure") == {("AUC, uniform", "challenger"): 0.7, ("AUC, uniform", "incumbent"): 0.6}
    metrics.show_gates({})
    assert not shown("gate_outcome")
    assert not shown("gate_figure")


def test_a_stage_adds_its_time_and_its_own_cpu_also_when_it_fails(metrics: Metrics) -> None:
    with metrics.stage("decode"):
        time.sleep(0.03)
    with pytest.raises(ValueError, match="sleep"), metrics.stage("decode"):
        time.sleep(-1)
    wall, cpu = (
        value(metrics, "stage_seconds_total", stage="decode"),
        value(metrics, "stage_cpu_seconds_total", stage="decode"),
    )
    assert wall is not None
    assert cpu is not None
    assert wall >= 0.03
    assert cpu < 0.03
    assert "decode" in STAGES


def test_flags_and_scores_of_a_batch_are_counted_and_unknown_scores_are_not(metrics: Metrics) -> None:
    quality = np.array([0, Quality.BLANK, Quality.MASKED_PIXELS, Quality.BLANK | Quality.PADDED], np.uint32)
    real_score = np.array([0.95, np.nan, 0.15, np.nan], np.float32)
    metrics.count_quality(quality, Scores(real_score, real_score, real_score, real_score))
    assert value(metrics, "alerts_flagged_total", flag="blank") == 2
    assert value(metrics, "alerts_flagged_total", flag="masked_pixels") == 1
    assert value(metrics, "alerts_unscored_total", flag="blank") == 2
    assert value(metrics, "alerts_unscored_total", flag="masked_pixels") is None
    assert value(metrics, "real_score_count") == 2
    assert value(metrics, "real_score_sum") == pytest.approx(1.1)
    assert value(metrics, "real_score_bucket", le="0.2") == 1
    assert value(metrics, "novelty_count") == 2


def test_an_empty_batch_counts_nothing(metrics: Metrics) -> None:
    nothing = np.empty(0, np.float32)
    metrics.count_quality(np.empty(0, np.uint32), Scores(nothing, nothing, nothing, nothing))
    assert not value(metrics, "real_score_count")


def test_dead_letters_are_counted_by_reason_and_logged_with_their_origin(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    rejected = [
        Rejected(packet(offset=7), Reason.TRUNCATED, "decode", "ends early"),
        Rejected(packet(offset=8), Reason.TRUNCATED, "decode", "ends early"),
        Rejected(packet(offset=9), Reason.POISON, "encode", "fails"),
    ]
    with caplog.at_level(logging.WARNING, "stream_vae.dead_letter"):
        metrics.count_rejected(rejected)
    assert value(metrics, "alerts_rejected_total", stage="decode", reason="truncated") == 2
    assert value(metrics, "alerts_rejected_total", stage="encode", reason="poison") == 1
    assert "dead letter in/0/7 at decode (truncated): ends early" in caplog.text


# librdkafka's statistics, from real clients


@pytest.fixture(scope="module")
def statistics(embedded_kafka: Kafka) -> tuple[str, dict[str, str]]:
    """A topic of 200 messages of which a consumer read 60, and what both clients say."""
    topic = embedded_kafka.fresh_topic(1)
    said: dict[str, list[str]] = {"producer": [], "consumer": []}
    common = {"bootstrap.servers": embedded_kafka.bootstrap_servers, "statistics.interval.ms": 100}
    producer = Producer({**common, "linger.ms": 1500, "stats_cb": said["producer"].append})
    for _ in range(200):
        producer.produce(topic, bytes(1000))
    until(lambda: producer.poll(0.1) is None or any(json.loads(each)["msg_cnt"] for each in said["producer"]))
    waiting = next(each for each in said["producer"] if json.loads(each)["msg_cnt"])
    assert producer.flush(20) == 0
    consumer = Consumer(
        {
            **common,
            **embedded_kafka.consumer_options,
            "group.id": topic,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "stats_cb": said["consumer"].append,
        }
    )
    consumer.subscribe([topic])
    read: list[Any] = []
    until(lambda: read.extend(consumer.consume(60 - len(read), 0.1)) or len(read) == 60)
    consumer.commit(message=read[-1], asynchronous=False)
    consumer.pause(consumer.assignment())
    seen = len(said["consumer"])
    until(lambda: consumer.poll(0.1) is not None or len(said["consumer"]) > seen + 3)
    consumer.close()
    return topic, {"producer": waiting, "consumer": said["consumer"][-1]}


def until(done: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline


def test_the_consumers_lag_and_queue_come_from_its_statistics(
    metrics: Metrics, statistics: tuple[str, dict[str, str]]
) -> None:
    topic, said = statistics
    metrics.take_statistics("consumer", said["consumer"])
    partitions = json.loads(said["consumer"])["topics"][topic]["partitions"]
    assert value(metrics, "lag_messages", topic=topic, partition="0") == 140
    assert value(metrics, "lag_messages", topic=topic, partition="-1") is None  # librdkafka's own, for what has none
    assert value(metrics, "consumer_queue_bytes") == sum(each["fetchq_size"] for each in partitions.values())


def test_the_producers_queue_comes_from_its_statistics(
    metrics: Metrics, statistics: tuple[str, dict[str, str]]
) -> None:
    metrics.take_statistics("producer", statistics[1]["producer"])
    assert value(metrics, "producer_queue_messages") == 200


def test_round_trips_are_in_seconds_and_of_real_brokers_only(
    metrics: Metrics, statistics: tuple[str, dict[str, str]]
) -> None:
    document = statistics[1]["consumer"]
    metrics.take_statistics("consumer", document)
    found = {
        sample.labels["broker"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "stream_vae_broker_rtt_seconds"
    }
    brokers = json.loads(document)["brokers"]
    real = {name: each["rtt"]["avg"] / 1e6 for name, each in brokers.items() if each["nodeid"] >= 0}
    assert found == {name: pytest.approx(rtt) for name, rtt in real.items() if rtt}
    assert any(each["nodeid"] < 0 for each in brokers.values())


def test_a_partition_that_left_has_no_lag_any_more(metrics: Metrics, statistics: tuple[str, dict[str, str]]) -> None:
    topic, said = statistics
    metrics.take_statistics("consumer", said["consumer"])
    document = json.loads(said["consumer"])
    document["topics"][topic]["partitions"]["0"]["fetch_state"] = "none"
    metrics.take_statistics("consumer", json.dumps(document))
    assert value(metrics, "lag_messages", topic=topic, partition="0") is None


@pytest.mark.parametrize("document", ["{}", '{"brokers": {}, "topics": {}}', '{"topics": {"t": {}}}'])
@pytest.mark.parametrize("client", ["consumer", "producer"])
def test_statistics_without_what_is_wanted_are_no_fault(metrics: Metrics, client: str, document: str) -> None:
    metrics.take_statistics(client, document)
    name = {"consumer": "consumer_queue_bytes", "producer": "producer_queue_messages"}[client]
    assert value(metrics, name) == 0


def test_many_values_are_observed_as_one_after_another_would_be():
    values = np.array([-1.0, 0.0, 0.1, 0.10001, 0.5, 1.0, 7.0, np.nan, np.inf, 0.3])
    registry = CollectorRegistry()
    one, other = (Histogram(name, "x", buckets=(0.1, 0.3, 1.0), registry=registry) for name in ("one", "other"))
    observe_each(one, values)
    observe_each(one, values[:0])
    for value in values[np.isfinite(values)].tolist():
        other.observe(value)
    for suffix in ("_sum", "_count"):
        assert registry.get_sample_value(f"one{suffix}") == pytest.approx(registry.get_sample_value(f"other{suffix}"))
    for bound in ("0.1", "0.3", "1.0", "+Inf"):
        labels = {"le": bound}
        assert registry.get_sample_value("one_bucket", labels) == registry.get_sample_value("other_bucket", labels)
