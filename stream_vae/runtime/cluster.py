"""Ray: start or join a cluster, and launch actors there.

Only this module and `stream_vae.runtime.remote` import Ray. A cluster that is started here lives and dies with the
process, listens on the loopback interface alone, asks for a token, keeps no dashboard and reports to nobody.
"""

import logging
import math
import os
import socket
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from stream_vae import assembly
from stream_vae.errors import ConfigError
from stream_vae.runtime.actor import WorkerActor
from stream_vae.runtime.encoder_actor import EncoderActor
from stream_vae.runtime.remote import RemoteEncoder, RemoteWorker, gist
from stream_vae.settings import Settings, to_plain

log = logging.getLogger(__name__)

# Ray takes these from the environment, most of them when it is imported; what an operator set stays.
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",  # "repeated 3x" would hide which alerts were dead letters
    "RAY_COLOR_PREFIX": "0",
}
# Without this Ray replaces 127.0.0.1 by an outside address and then listens on all interfaces. Its name tells where
# it is the default.
_LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

_OBJECT_STORE_BYTES = 100 * 2**20
"""Alerts never travel between actors; Ray wants 75 MiB at least."""
_CONCURRENT_CALLS = 4
_CONNECT_TIMEOUT_S = 5.0


class Cluster:
    """Where workers are launched.

    Parameters
    ----------
    ray : module
        Ray, connected.
    settings : Settings
        Of every worker.
    """

    def __init__(self, ray: Any, settings: Settings) -> None:
        self._ray = ray
        self._document = to_plain(settings)
        self._survey, self._store = assembly.profile_of(settings).name, settings.release.store
        self._encoder = encoder = settings.encoder
        gpus = encoder.gpus if encoder.device == "gpu" else 0
        # The supervisor decides when a new one is started, and gives the settings anew.
        # Without events: Ray's control store would keep a record of each of the last 100,000 questions to a worker.
        common = {"max_restarts": 0, "scheduling_strategy": "SPREAD", "enable_task_events": False}
        self._options = common | {
            "num_cpus": settings.fleet.cpus_per_worker,
            "num_gpus": 0 if encoder.actors else gpus,
            "max_concurrency": _CONCURRENT_CALLS,
        }
        self._encoder_options = common | {"num_cpus": encoder.cpus_per_actor, "num_gpus": gpus}
        self._workers: weakref.WeakSet[RemoteWorker] = weakref.WeakSet()
        self._encoders: dict[int, RemoteEncoder] = {}

    def launch(self, slot: int) -> RemoteWorker:
        """Make a worker; it takes seconds until it runs.

        Parameters
        ----------
        slot : int
            Its number.

        Returns
        -------
        RemoteWorker
            To be polled.
        """
        actor = self._ray.remote(WorkerActor).options(**self._options).remote(slot)
        actor.start.remote(self._document, _log_level(), list(self._encoders.values()))
        worker = RemoteWorker(self._ray, actor)
        self._workers.add(worker)
        return worker

    def launch_encoder(self, number: int) -> RemoteWorker:
        """Make an actor of the encoder pool, or a new one in its place, and tell the workers.

        Parameters
        ----------
        number : int
            Its place in the pool.

        Returns
        -------
        RemoteWorker
            To be polled.
        """
        made = self._ray.remote(EncoderActor).options(**self._encoder_options)
        actor = made.remote(self._survey, self._encoder, self._store, _log_level())
        self._encoders[number] = RemoteEncoder(actor)
        for worker in self._workers:
            worker.actor.use_encoders.remote(list(self._encoders.values()))
        return RemoteWorker(self._ray, actor)

    def wait(self, refs: list[Any], timeout_s: float) -> None:
        """Wait until all answers are there.

        Parameters
        ----------
        refs : list of ObjectRef
            Questions.
        timeout_s : float
            Longest wait.
        """
        if refs:
            self._ray.wait(refs, num_returns=len(refs), timeout=timeout_s)


def _log_level() -> int:
    return logging.getLogger("stream_vae").getEffectiveLevel()


@contextmanager
def connected(settings: Settings, workers: int, address: str | None) -> Iterator[Cluster]:
    """Start a cluster on this machine, or join one.

    Parameters
    ----------
    settings : Settings
        Of every worker.
    workers : int
        How many there will be; a cluster that is started has room for them, whatever the number of cores.
    address : str or None
        Of a cluster to join: ``host:port``, ``ray://host:port`` or ``auto``. None: start one.

    Yields
    ------
    Cluster
        Until the end of the block, which ends every worker that is left.

    Raises
    ------
    ConfigError
        If Ray is not installed, or the cluster cannot be joined or is too small.
    """
    with joined(address, cpus=_wanted(settings, workers)["CPU"]) as ray:
        _compare(settings, workers, ray.cluster_resources())
        yield Cluster(ray, settings)


@contextmanager
def joined(address: str | None, *, cpus: float) -> Iterator[Any]:
    """Start Ray on this machine, or join a cluster.

    Parameters
    ----------
    address : str or None
        As for `connected`.
    cpus : float
        That a cluster which is started here is to have room for, whatever the number of cores.

    Yields
    ------
    module
        Ray, until the end of the block.

    Raises
    ------
    ConfigError
        If Ray is not installed, or the cluster cannot be joined.
    """
    ray = _import_ray(_ENVIRONMENT if address else _ENVIRONMENT | _LOOPBACK_ONLY)
    quiet = {"logging_level": logging.ERROR, "log_to_driver": True}
    if address is None:
        own = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        size = {"num_cpus": max(math.ceil(cpus), 1)}
        _joining("local", ray.init, address="local", _node_ip_address="127.0.0.1", **size, **own, **quiet)
    else:
        _check_reachable(address)
        _joining(address, ray.init, address=address, **quiet)
    try:
        yield ray
    finally:
        ray.shutdown()


def _import_ray(environment: Mapping[str, str]) -> Any:
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "Ray is not installed, and a fleet, or a retraining with --ray-address, needs it.",
            remedy="pip install 'stream-vae[ray]', or use run --workers 0: one worker in one process.",
        ) from error
    return ray


def _joining(name: str, init: Callable[..., Any], **options: Any) -> None:
    try:
        init(**options)
    except Exception as error:  # RuntimeError, ConnectionError, ValueError and Ray's own
        if "Version mismatch" in str(error):
            raise ConfigError(
                f"Ray at {name} is of another version: {_versions(error)}.",
                remedy="Install the same Ray and the same Python here as in the cluster.",
            ) from error
        raise ConfigError(
            f"Ray at {name} cannot be used: {gist(error)}.",
            remedy="Check --ray-address, that every node has the same Ray and Python, and the token (RAY_AUTH_TOKEN).",
        ) from error


def _versions(error: BaseException) -> str:
    """Put Ray's table of versions on one line."""
    return "; ".join(" ".join(line.split()) for line in str(error).splitlines()[1:] if line.strip()).rstrip(".")


def _wanted(settings: Settings, workers: int) -> dict[str, float]:
    """Tell what all actors need of the cluster, by Ray's names."""
    encoder = settings.encoder
    cpus = workers * settings.fleet.cpus_per_worker + encoder.actors * encoder.cpus_per_actor
    return {"CPU": cpus, "GPU": (encoder.actors or workers) * encoder.gpus if encoder.device == "gpu" else 0.0}


def _compare(settings: Settings, workers: int, there: Mapping[str, float]) -> None:
    short = {name: wanted for name, wanted in _wanted(settings, workers).items() if wanted > there.get(name, 0.0)}
    if not short:
        return
    who = f"{workers} workers" + f" and {settings.encoder.actors} encoder actors" * (settings.encoder.actors > 0)
    lack = " and ".join(
        f"{wanted:g} {name}s and the Ray cluster has {there.get(name, 0.0):g}" for name, wanted in short.items()
    )
    if not settings.fleet.wait_for_cpus:
        raise ConfigError(
            f"{who} want {lack}.",
            remedy="Take fewer --workers, lower fleet.cpus_per_worker or encoder.gpus, add nodes, or set "
            "fleet.wait_for_cpus = true where the cluster adds them on demand.",
        )
    log.warning("%s want %s: some will wait for it to grow", who, lack)


def _check_reachable(address: str) -> None:
    """Fail in seconds where Ray itself would try for minutes."""
    if address == "auto":
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or port is None:
        raise ConfigError(
            f"--ray-address {address!r} is no address.", remedy="Give host:port, ray://host:port or auto."
        )
    try:
        socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConfigError(
            f"No Ray cluster answers at --ray-address {address}: {error}.",
            remedy="`ray status` on its head node tells the address; leave the option out to start Ray here.",
        ) from error
