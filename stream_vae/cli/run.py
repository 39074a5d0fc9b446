"""``stream-vae run``: one worker, or a fleet of them."""

import signal
from types import FrameType
from typing import Annotated

import typer

from stream_vae import assembly
from stream_vae.cli import app, notes
from stream_vae.cli.options import SettingsFile, load
from stream_vae.errors import ConfigError
from stream_vae.metrics import Metrics
from stream_vae.runtime.health import HealthServer
from stream_vae.runtime.process import settle_memory
from stream_vae.runtime.start_up import check_surroundings
from stream_vae.runtime.worker import Worker
from stream_vae.settings import Settings


@app.command()
def run(
    settings: SettingsFile = None,
    workers: Annotated[int, typer.Option(min=0, help="Ray workers; 0 runs one in this process, without Ray.")] = 0,
    exit_when_idle: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="Exit 0 once caught up and nothing came for this long."),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Join this Ray cluster (host:port or auto); absent: start Ray here."),
    ] = None,
) -> None:
    """Consume alerts, score them and publish them enriched.

    Examples:

        stream-vae run --settings ztf.toml

        stream-vae run --settings ztf.toml --exit-when-idle 30    # a backfill

        stream-vae run --settings lsst.toml --workers 4

        stream-vae run --settings lsst.toml --workers 16 --ray-address head:6379
    """
    loaded = load(settings)
    if workers == 0:
        if ray_address is not None:
            raise ConfigError("--ray-address is for a fleet.", remedy="Say how many workers: --workers N.")
        if loaded.encoder.actors:
            raise ConfigError(
                f"encoder.actors = {loaded.encoder.actors} is for a fleet.",
                remedy="Say how many workers: --workers N; or leave it out: a single worker encodes for itself.",
            )
        run_here(loaded, exit_when_idle_s=exit_when_idle)
    else:
        from stream_vae.runtime.fleet import run_fleet

        run_fleet(loaded, workers, exit_when_idle_s=exit_when_idle, ray_address=ray_address)


def run_here(settings: Settings, *, exit_when_idle_s: float | None) -> None:
    """Run one worker in this process until SIGTERM, SIGINT or idleness.

    Parameters
    ----------
    settings : Settings
        Everything.
    exit_when_idle_s : float or None
        As for the command.

    Raises
    ------
    StreamVaeError
        If the worker cannot start or go on.
    """
    metrics = Metrics(assembly.profile_of(settings).name)
    check_surroundings(settings)
    worker = Worker(settings, metrics)
    settle_memory()

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        notes.print(f"{signal.Signals(number).name}: finishing the batch, then leaving the group.")
        worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    if settings.metrics.port is None:
        worker.run(exit_when_idle_s=exit_when_idle_s)
        return
    section = settings.metrics
    with HealthServer(
        metrics.registry, host=section.host, port=section.port or 0, ready=worker.ready, alive=worker.alive
    ) as server:
        notes.print(f"Metrics and health on http://{section.host}:{server.port}/metrics")
        worker.run(exit_when_idle_s=exit_when_idle_s)
