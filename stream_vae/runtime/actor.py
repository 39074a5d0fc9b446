"""One worker in a Ray actor: its loop in a thread, so that every question is answered at once.

Nothing here imports Ray: the supervisor makes the actor of this class (`stream_vae.runtime.cluster`). What can go
wrong is told by `status` as a value, not raised through Ray, so that an error arrives as what it was.
"""

import logging
import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from prometheus_client import Metric

from stream_vae import assembly
from stream_vae.errors import FatalError, StreamVaeError
from stream_vae.metrics import Metrics
from stream_vae.runtime.process import settle_memory
from stream_vae.runtime.worker import Standing, Worker
from stream_vae.settings import Settings, from_plain

log = logging.getLogger(__name__)


class Phase(StrEnum):
    """How far a worker is."""

    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Status:
    """What the supervisor asks for several times a second."""

    phase: Phase
    ready: bool
    """Whether it consumes."""
    reason: str
    alive: bool
    """Whether its loop turns."""
    standing: Standing
    error: StreamVaeError | None
    """Why it ended, if not because it was told to."""
    process: int
    host: str


class WorkerActor:
    """A `Worker` for the supervisor to talk to; shows as ``ray::WorkerActor`` among the processes.

    Parameters
    ----------
    slot : int
        The worker's number, stable over restarts.
    """

    def __init__(self, slot: int) -> None:
        self._slot = slot
        self._phase = Phase.STARTING
        self._worker: Worker | None = None
        self._metrics: Metrics | None = None
        self._error: StreamVaeError | None = None
        self._stopping = threading.Event()

    def start(self, document: Mapping[str, Any], log_level: int) -> None:
        """Begin to work; called once.

        The settings are an argument of this call and not of the constructor: Ray keeps a constructor's arguments
        in its control store for as long as the actor lives, and there are passwords among them.

        Parameters
        ----------
        document : Mapping
            Settings as `stream_vae.settings.to_plain` wrote them.
        log_level : int
            Of the ``stream_vae`` loggers; Ray carries standard error to the supervisor's.
        """
        form = f"%(asctime)s %(levelname)s worker {self._slot} %(name)s: %(message)s"
        logging.basicConfig(level=logging.WARNING, format=form, force=True)
        logging.getLogger("stream_vae").setLevel(log_level)
        threading.Thread(target=self._run, args=(document,), name="worker", daemon=True).start()

    def _run(self, document: Mapping[str, Any]) -> None:
        try:
            self._work(from_plain(document))
        except StreamVaeError as error:
            self._error = error
        except Exception as error:
            log.exception("the worker's loop broke")
            self._error = FatalError(f"{type(error).__name__}: {error}")
        finally:
            self._phase = Phase.ENDED

    def _work(self, settings: Settings) -> None:
        metrics = self._metrics = Metrics(assembly.profile_of(settings).name)
        worker = self._worker = Worker(settings, metrics, slot=self._slot)
        settle_memory()
        self._phase = Phase.RUNNING
        if self._stopping.is_set():
            worker.stop()
        worker.run()

    def status(self) -> Status:
        """Tell how the worker is.

        Returns
        -------
        Status
            Now.
        """
        worker, phase = self._worker, self._phase
        ready, reason = worker.ready() if worker else (False, str(phase))
        return Status(
            phase=phase,
            ready=ready and phase is Phase.RUNNING,
            reason=reason,
            alive=worker.alive()[0] if worker and phase is Phase.RUNNING else True,
            standing=worker.standing() if worker else Standing(),
            error=self._error,
            process=os.getpid(),
            host=socket.gethostname(),
        )

    def metrics(self) -> list[Metric]:
        """Take a sample of all metrics of this process.

        Returns
        -------
        list of Metric
            One a family; empty before the worker has any.
        """
        return list(self._metrics.registry.collect()) if self._metrics else []

    def stop(self) -> None:
        """Ask the worker to settle what it has and leave the group; `status` tells when it has ended."""
        self._stopping.set()
        if self._worker is not None:
            self._worker.stop()
