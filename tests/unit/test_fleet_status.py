"""`stream-vae fleet status`: read from a metrics page as it is served."""

import socket

import pytest
from prometheus_client import CollectorRegistry
from stream_vae.errors import ConfigError, RetriableError
from stream_vae.metrics import EncoderMetrics, FleetMetrics, Metrics
from stream_vae.runtime.fleet_metrics import FleetCollector
from stream_vae.runtime.health import HealthServer
from stream_vae.settings import MetricsSettings
from stream_vae.tools.fleet_status import ALONE, fleet_status, page_url, read_status


def worker(*, published, lag, partitions, ready=True):
    metrics = Metrics("ztf")
    metrics.published.labels("ztf", "in", "0").inc(published)
    metrics.published.labels("ztf", "in", "1").inc(1)
    metrics.lag.labels("ztf", "in", "0").set(lag)
    metrics.assigned.labels("ztf").set(partitions)
    metrics.ready.labels("ztf").set(ready)
    metrics.release_info.info({"survey": "ztf", "release": "nightly-1", "latent_space": "space-1"})
    return metrics


def served(registry):
    up = lambda: (True, "up")  # noqa: E731 - said once
    return HealthServer(registry, host="127.0.0.1", port=0, ready=up, alive=up)


def test_a_fleet_has_a_line_for_each_worker_encoder_and_its_supervisor():
    workers = {
        "0": worker(published=4, lag=7, partitions=2),
        "10": worker(published=0, lag=0, partitions=0, ready=False),
        "encoder-0": EncoderMetrics("ztf"),
    }
    registry = CollectorRegistry()
    fleet = FleetMetrics("ztf", registry)
    fleet.wanted.set(2)
    fleet.alive.set(1)
    fleet.restarts("10").inc(3)
    fleet.restarts("encoder-0").inc(1)
    registry.register(FleetCollector(lambda: {name: list(each.registry.collect()) for name, each in workers.items()}))
    with served(registry) as server:
        found = fleet_status(f"http://127.0.0.1:{server.port}/metrics")
    assert (found.wanted, found.alive) == (2, 1)
    assert [line.worker for line in found.lines] == ["0", "10", "encoder-0", "supervisor"]
    assert [line.consumes for line in found.lines] == [True, False, None, None]
    assert [line.release for line in found.lines] == ["nightly-1", "nightly-1", "", ""]
    first, second, encoder, supervisor = found.lines
    assert (encoder.restarts, encoder.memory_bytes > 1e6) == (1, True)
    assert (first.ready, first.published, first.lag, first.partitions, first.restarts) == (1, 5, 7, 2, 0)
    assert (second.ready, second.published, second.restarts) == (0, 1, 3)
    assert supervisor.memory_bytes > 1e6


def test_a_single_worker_is_a_line_and_no_fleet():
    with served(worker(published=4, lag=7, partitions=2).registry) as server:
        found = fleet_status(f"http://127.0.0.1:{server.port}/metrics")
    assert (found.wanted, found.alive) == (None, None)
    assert [(line.worker, line.published) for line in found.lines] == [(ALONE, 5)]


def test_without_a_port_the_settings_cannot_say_where_to_look():
    assert page_url(MetricsSettings(port=9464)) == "http://127.0.0.1:9464/metrics"
    for port in (None, 0):
        with pytest.raises(ConfigError, match="--url"):
            page_url(MetricsSettings(port=port))


def test_nobody_there_and_somebody_else_there_are_told():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(RetriableError, match="does not answer"):
            fleet_status(f"http://127.0.0.1:{unused.getsockname()[1]}/metrics")
    with pytest.raises(ConfigError, match="no metrics of stream_vae"):
        read_status("up 1\n", "http://elsewhere")
    with pytest.raises(ConfigError, match="is no metrics page"):
        read_status("<html>", "http://elsewhere")
