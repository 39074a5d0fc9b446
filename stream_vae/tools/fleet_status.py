"""What the workers of a fleet, or a single one, say of themselves on their metrics page."""

from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from stream_vae.errors import ConfigError, RetriableError
from stream_vae.settings import MetricsSettings

ALONE = ""
"""The number of a worker that is no member of a fleet."""
_TIMEOUT_S = 10.0
_COLUMNS = {
    "stream_vae_ready": "ready",
    "stream_vae_assigned_partitions": "partitions",
    "stream_vae_lag_messages": "lag",
    "stream_vae_alerts_in_flight": "in_flight",
    "stream_vae_alerts_published_total": "published",
    "stream_vae_alerts_dead_lettered_total": "dead_lettered",
    "stream_vae_fleet_restarts_total": "restarts",
    "process_resident_memory_bytes": "memory_bytes",
}


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """One worker; counts are since it started."""

    worker: str
    """Its number in the fleet, `supervisor`, ``encoder-`` and its number, or `ALONE`."""
    ready: float = 0
    partitions: float = 0
    lag: float = 0
    in_flight: float = 0
    published: float = 0
    dead_lettered: float = 0
    restarts: float = 0
    memory_bytes: float = 0
    release: str = ""
    """Which one scores there."""

    @property
    def consumes(self) -> bool | None:
        """Whether it has partitions; None of what is no worker."""
        return bool(self.ready) if self.worker == ALONE or self.worker.isdigit() else None


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """All of them."""

    lines: list[WorkerLine]
    """In order of their numbers."""
    wanted: int | None
    """Workers that there are to be; None of a single one."""
    alive: int | None


def page_url(section: MetricsSettings) -> str:
    """Tell where the settings' metrics page is.

    Parameters
    ----------
    section : MetricsSettings
        ``[metrics]``.

    Returns
    -------
    str
        Its address.

    Raises
    ------
    ConfigError
        If the settings serve none, or on any free port.
    """
    if not section.port:
        raise ConfigError(
            "The settings do not say where the metrics page is: metrics.port is absent or 0.",
            remedy="Set metrics.port, or give the address that `stream-vae run` logged: --url http://HOST:PORT/metrics.",
        )
    return f"http://{section.host}:{section.port}/metrics"


def fleet_status(url: str) -> FleetStatus:
    """Read a metrics page.

    Parameters
    ----------
    url : str
        Of a supervisor or a single worker.

    Returns
    -------
    FleetStatus
        As of now.

    Raises
    ------
    RetriableError
        If nothing answers there.
    ConfigError
        If what answers is no metrics page of ours.
    """
    try:
        text = httpx.get(url, timeout=_TIMEOUT_S).raise_for_status().text
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RetriableError(
            f"{url} does not answer: {error}.", remedy="Is `stream-vae run` up, and metrics.port its port?"
        ) from error
    return read_status(text, url)


def read_status(text: str, url: str) -> FleetStatus:
    """Make sense of a metrics page.

    Parameters
    ----------
    text : str
        In Prometheus' text format.
    url : str
        For messages.

    Returns
    -------
    FleetStatus
        One line a worker.

    Raises
    ------
    ConfigError
        If it is no metrics page of ours.
    """
    values: dict[str, dict[str, float]] = {}
    releases: dict[str, str] = {}
    fleet: dict[str, int] = {}
    try:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except ValueError as error:
        raise ConfigError(f"{url} is no metrics page: {error}.", remedy="Give the address of /metrics.") from error
    for sample in samples:
        if sample.name.startswith("stream_vae_fleet_workers_"):
            fleet[sample.name.removeprefix("stream_vae_fleet_workers_")] = int(sample.value)
        elif sample.name == "stream_vae_release_info":
            releases[sample.labels.get("worker", ALONE)] = sample.labels["release"]
        elif (column := _COLUMNS.get(sample.name)) is not None:
            line = values.setdefault(sample.labels.get("worker", ALONE), {})
            line[column] = line.get(column, 0) + sample.value
    if not any(sample.name.startswith("stream_vae_") for sample in samples):
        raise ConfigError(f"{url} has no metrics of stream_vae.", remedy="Give the address that the run logged.")
    order = sorted(values, key=lambda worker: (not worker.isdigit(), len(worker), worker))
    return FleetStatus(
        [WorkerLine(worker, **values[worker], release=releases.get(worker, "")) for worker in order],
        fleet.get("wanted"),
        fleet.get("alive"),
    )
