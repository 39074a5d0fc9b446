"""What a Prometheus and a Kubernetes see of a running process."""

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from stream_vae.faults.corpus import corrupt
from stream_vae.model.store import ReleaseStore
from stream_vae.sky.packets import simulate_packets
from stream_vae.tools.audit import audit_of

from deployment import Deployment, deploy
from flow import Process, Record, running, send, until

GOOD, BAD = 150, 30
PARTITIONS = 2


@dataclass(frozen=True)
class Live:
    """A process that has read all there was, and goes on waiting."""

    process: Process
    url: str
    deployment: Deployment

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=10, trust_env=False)

    def scrape(self) -> dict[str, float]:
        """Give every sample, by name and labels in their order, but for the survey's."""
        samples = {}
        for family in text_string_to_metric_families(self.get("/metrics").text):
            for sample in family.samples:
                labels = ",".join(
                    f"{name}={value}" for name, value in sorted(sample.labels.items()) if name != "survey"
                )
                samples[f"{sample.name}{{{labels}}}"] = sample.value
        return samples


def summed(samples: dict[str, float], name: str) -> float:
    return sum(value for sample, value in samples.items() if sample.startswith(f"{name}{{"))


@pytest.fixture(scope="module")
def live(kafka, tmp_path_factory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("metrics")
    deployment = deploy(
        kafka,
        folder,
        partitions=PARTITIONS,
        metrics={"port": 0, "statistics_interval_s": 0.2},
        filter={"min_real_score": 0.3},
    )
    packets = [each.packet for each in simulate_packets(GOOD, seed=21)]
    rng = np.random.default_rng(0)
    bad = [
        corrupt(packet, kind, rng)
        for packet, kind in zip(packets[:BAD], ("bad_sync", "cutout_png") * BAD, strict=False)
    ]
    send(kafka, deployment.input, [Record(each) for each in (*packets, *bad)], partitions=PARTITIONS)
    with running(folder / "log", "run", "--settings", deployment.file, "--workers", 0) as process:
        found = until(lambda: re.search(r"http://[\d.:]+", process.text), what="it says where its metrics are")
        one = Live(process, found[0], deployment)
        until(lambda: settled(one.scrape()) == GOOD + BAD, what="all are settled")
        yield one


def settled(samples: dict[str, float]) -> float:
    return sum(
        summed(samples, f"stream_vae_alerts_{fate}_total") for fate in ("published", "dead_lettered", "filtered")
    )


def test_consumed_is_published_dead_lettered_and_filtered_for_each_partition(live):
    samples = live.scrape()
    per_partition = []
    for partition in range(PARTITIONS):
        where = f"{{partition={partition},topic={live.deployment.input}}}"
        counts = [
            samples.get(f"stream_vae_alerts_{fate}_total{where}", 0.0)
            for fate in ("consumed", "published", "dead_lettered", "filtered")
        ]
        assert counts[0] == sum(counts[1:]) > 0
        per_partition.append(counts)
    consumed, published, dead_lettered, filtered = (sum(each) for each in zip(*per_partition, strict=True))
    assert (consumed, dead_lettered) == (GOOD + BAD, BAD / 2)
    assert 0 < filtered < GOOD
    assert published == GOOD + BAD / 2 - filtered
    assert summed(samples, "stream_vae_alerts_in_flight") == 0


def test_dead_letters_and_unscored_alerts_are_counted_by_reason(live):
    samples = live.scrape()
    assert samples["stream_vae_alerts_rejected_total{reason=framing,stage=decode}"] == BAD / 2
    assert samples["stream_vae_alerts_unscored_total{flag=unreadable_cutout}"] == BAD / 2
    assert samples["stream_vae_alerts_flagged_total{flag=unreadable_cutout}"] == BAD / 2


def test_lag_and_queues_come_from_librdkafkas_statistics(live):
    def lags() -> list[float | None]:
        samples = live.scrape()
        return [
            samples.get(f"stream_vae_lag_messages{{partition={partition},topic={live.deployment.input}}}")
            for partition in range(PARTITIONS)
        ]

    until(lambda: lags() == [0, 0], what="it has caught up by its own word")
    # While nothing comes too: what librdkafka reports must be taken from it all the time.
    for name in ("stream_vae_producer_queue_messages{}", "stream_vae_consumer_queue_bytes{}"):
        until(lambda name=name: live.scrape()[name] == 0, what=f"{name} is 0", timeout_s=10)
    samples = live.scrape()
    round_trips = {name for name in samples if name.startswith("stream_vae_broker_rtt_seconds{")}
    assert {name.split("client=")[1].rstrip("}") for name in round_trips} == {"consumer", "producer"}
    assert all(0 < samples[name] < 10 for name in round_trips)


def test_time_size_and_score_are_measured(live):
    samples = live.scrape()
    for stage in ("decode", "stamp", "encode", "score", "enrich", "publish"):
        assert samples[f"stream_vae_stage_seconds_total{{stage={stage}}}"] > 0
        assert samples[f"stream_vae_stage_cpu_seconds_total{{stage={stage}}}"] > 0
    assert samples["stream_vae_latency_seconds_count{}"] == GOOD + BAD
    assert samples["stream_vae_real_score_count{}"] == GOOD
    assert samples["stream_vae_input_bytes_total{}"] > 30_000 * GOOD
    assert samples["stream_vae_output_bytes_total{}"] > 0
    assert summed(samples, "stream_vae_batch_alerts_sum") == GOOD + BAD
    assert samples["stream_vae_assigned_partitions{}"] == PARTITIONS
    assert samples["stream_vae_commits_total{outcome=succeeded}"] > 0
    assert samples["process_resident_memory_bytes{}"] > 0


def test_the_release_and_the_version_are_told(live):
    samples = live.scrape()
    release = next(name for name in samples if name.startswith("stream_vae_release_info{"))
    assert f"release={ReleaseStore(live.deployment.settings.release.store).current()}" in release
    assert any(name.startswith("stream_vae_build_info{version=") for name in samples)


def test_it_is_alive_and_ready_while_it_consumes(live):
    assert live.get("/healthz").status_code == 200
    ready = live.get("/readyz")
    assert (ready.status_code, ready.text) == (200, "consuming\n")
    assert live.scrape()["stream_vae_ready{}"] == 1
    assert live.get("/nothing-here").status_code == 404


def test_the_books_agree_with_the_scrape(live):
    samples = live.scrape()
    filtered = summed(samples, "stream_vae_alerts_filtered_total")
    lines = until(lambda: settled_books(live.deployment), what="all is committed")
    assert sum(line.page.filtered for line in lines) == filtered
    assert sum(line.page.published for line in lines) == summed(samples, "stream_vae_alerts_published_total")


def settled_books(deployment: Deployment) -> list:
    lines = audit_of(deployment.settings.kafka, deep=True)
    assert all(line.balanced for line in lines), lines
    return lines if sum(line.lag for line in lines) == 0 else []


def test_an_exit_on_sigterm_is_an_end_of_the_health_server_too(kafka, tmp_path):
    deployment = deploy(kafka, tmp_path, metrics={"port": 0})
    with running(tmp_path / "log", "run", "--settings", deployment.file, "--workers", 0) as process:
        url = until(lambda: re.search(r"http://[\d.:]+", process.text), what="it says where its metrics are")[0]
        until(lambda: httpx.get(f"{url}/readyz", trust_env=False).status_code == 200, what="it is ready")
        process.signal(signal.SIGTERM)
        assert process.wait(20) == 0, process.text
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz", trust_env=False)
