"""One worker in a Ray actor: its loop in a thread, so that every question is answered at once.

Nothing here imports Ray: the supervisor makes the actor of this class (`stream_vae.runtime.cluster`). What can go
wrong is told by `status` as a value, not raised through Ray, so that an error arrives as what it was.
"""

import logging
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import Metric

from stream_vae import assembly
from stream_vae.errors import FatalError, StreamVaeError
from stream_vae.metrics import Metrics
from stream_vae.runtime.encoder_pool import Pool, RemoteEncoder
from stream_vae.runtime.process import settle_memory
from stream_vae.runtime.status import Phase, Standing, Status
from stream_vae.runtime.worker import Worker
from stream_vae.settings import Settings, from_plain

log = logging.getLogger(__name__)


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
        self._pool: Pool | None = None

    def start(self, document: Mapping[str, Any], log_level: int, encoders: Sequence[RemoteEncoder] = ()) -> None:
        """Begin to work; called once.

        The settings are an argument of this call and not of the constructor: Ray keeps a constructor's arguments
        in its control store for as long as the actor lives, and there are passwords among them.

        Parameters
        ----------
        document : Mapping
            Settings as `stream_vae.settings.to_plain` wrote them.
        log_level : int
            Of the ``stream_vae`` loggers; Ray carries standard error to the supervisor's.
        encoders : sequence of RemoteEncoder
            The encoder pool; empty: the worker encodes for itself.
        """
        form = f"%(asctime)s %(levelname)s worker {self._slot} %(name)s: %(message)s"
        logging.basicConfig(level=logging.WARNING, format=form, force=True)
        logging.getLogger("stream_vae").setLevel(log_level)
        threading.Thread(target=self._run, args=(document, encoders), name="worker", daemon=True).start()

    def _run(self, document: Mapping[str, Any], encoders: Sequence[RemoteEncoder]) -> None:
        try:
            self._work(from_plain(document), encoders)
        except StreamVaeError as error:
            self._error = error
        except Exception as error:
            log.exception("the worker's loop broke")
            self._error = FatalError(f"{type(error).__name__}: {error}")
        finally:
            self._phase = Phase.ENDED

    def _work(self, settings: Settings, encoders: Sequence[RemoteEncoder]) -> None:
        if encoders:
            self._pool = Pool(encoders, self._slot, settings.encoder, settings.fleet.start_timeout_s)
        metrics = self._metrics = Metrics(assembly.profile_of(settings).name)
        worker = self._worker = Worker(
            settings, metrics, slot=self._slot, open_network=self._pool.open if self._pool else None
        )
        settle_memory()
        self._phase = Phase.RUNNING
        if self._stopping.is_set():
            worker.stop()
        worker.run()

    def use_encoders(self, encoders: Sequence[RemoteEncoder]) -> None:
        """Ask these from now on, as one of the pool was replaced.

        Parameters
        ----------
        encoders : sequence of RemoteEncoder
            The encoder pool.
        """
        if self._pool is not None:
            self._pool.renew(encoders)

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
