"""One actor of the encoder pool: batches what many workers send, and holds the GPU.

While one batch is computed, what the workers send meanwhile gathers to the next: at little load an answer comes at
once, under load batches fill up to `EncoderSettings.max_stamps`. Nothing here imports Ray, as
`stream_vae.runtime.actor` explains.
"""

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import NamedTuple

import numpy as np
from prometheus_client import Metric

from stream_vae.alert import FloatArray
from stream_vae.backends import Network, network_of
from stream_vae.errors import ConfigError, RetriableError, StreamVaeError
from stream_vae.metrics import EncoderMetrics
from stream_vae.model.store import ReleaseStore
from stream_vae.runtime.encoder_pool import Failure, Packed, unpack
from stream_vae.runtime.status import Phase, Standing, Status
from stream_vae.settings import EncoderSettings
from stream_vae.stages.encode import Encoder

log = logging.getLogger(__name__)

_KEPT_RELEASES = 3
"""Workers swap one after the other, and a rollback should find its release warm."""
_LONGEST_QUEUE = 64
"""Full batches that may wait; more means that workers gave up waiting for them long ago."""
_STUCK_S = 60.0
"""A batch that takes longer is none that will come: the driver hangs, say, and a new process may find it well."""


class _Request(NamedTuple):
    network: Network
    stamps: Packed
    answer: "asyncio.Future[FloatArray | Failure]"


class EncoderActor:
    """Encodes for all workers; shows as ``ray::EncoderActor`` among the processes.

    Parameters
    ----------
    survey : str
        For metrics.
    section : EncoderSettings
        ``[encoder]``.
    store : str
        URL of the release store.
    log_level : int
        Of the ``stream_vae`` loggers.
    """

    def __init__(self, survey: str, section: EncoderSettings, store: str, log_level: int) -> None:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s encoder %(name)s: %(message)s")
        logging.getLogger("stream_vae").setLevel(log_level)
        self._section = section
        self._store = store
        self._metrics = EncoderMetrics(survey)
        self._phase = Phase.RUNNING
        self._networks: dict[str, asyncio.Task[Network | StreamVaeError]] = {}
        self._queue: deque[_Request] = deque()
        self._waiting = 0
        self._arrived = asyncio.Event()
        self._device = ThreadPoolExecutor(1, "encode")
        self._serving: asyncio.Task[None] | None = None
        self._encoded = False
        self._began_at: float | None = None

    async def load(self, release_id: str) -> str | StreamVaeError:
        """Fetch a release, build its network and run it once.

        Parameters
        ----------
        release_id : str
            A full id.

        Returns
        -------
        str or StreamVaeError
            What runs it, or why it cannot be used.
        """
        network = await self._network(release_id)
        return network if isinstance(network, StreamVaeError) else network.name

    async def _network(self, release_id: str) -> Network | StreamVaeError:
        task = self._networks.pop(release_id, None)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(self._open, release_id))
        self._networks[release_id] = task  # at the end: the one that was used last
        while len(self._networks) > _KEPT_RELEASES:
            self._networks.pop(next(iter(self._networks)))
        network = await asyncio.shield(task)
        if isinstance(network, StreamVaeError) and self._networks.get(release_id) is task:
            del self._networks[release_id]  # the store may be mended
        return network

    def _open(self, release_id: str) -> Network | StreamVaeError:
        try:
            release = ReleaseStore(self._store).load(release_id)
            network = Encoder(release, network_of(self._section, release)).network  # tries it
        except StreamVaeError as error:
            return error  # the worker that asked says it
        except Exception as error:
            log.exception("release %s cannot be opened", release_id)
            return ConfigError(f"Release {release_id} cannot be opened: {type(error).__name__}: {error}.")
        log.info("release %s: %s", release_id, network.name)
        return network

    async def encode(self, release_id: str, stamps: Packed) -> FloatArray | Failure:
        """Encode a worker's stamps, together with others'.

        Parameters
        ----------
        release_id : str
            Whose encoder.
        stamps : ndarray
            (n, size, size, channels) as `pack` makes them, or float32.

        Returns
        -------
        ndarray or Failure
            (n, 2 * latent size) float32: means, then log-variances.
        """
        network = await self._network(release_id)
        if isinstance(network, StreamVaeError):
            return Failure(str(network), network)
        if self._waiting > _LONGEST_QUEUE * self._section.max_stamps:
            return Failure("", RetriableError("The encoder pool is overloaded."))
        request = _Request(network, stamps, asyncio.get_running_loop().create_future())
        self._queue.append(request)
        self._waiting += len(stamps)
        self._arrived.set()
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        return await request.answer

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            batch = self._gather()
            if not batch:
                self._arrived.clear()
                continue
            self._began_at = monotonic()
            answers = await loop.run_in_executor(self._device, self._answers, batch)
            self._began_at, self._encoded = None, True
            for request, answer in zip(batch, answers, strict=True):
                if not request.answer.done():  # a worker that waits no longer has cancelled it
                    request.answer.set_result(answer)

    def _gather(self) -> list[_Request]:
        """Take what waits for the same network as the first, up to a full batch."""
        batch: list[_Request] = []
        others: deque[_Request] = deque()
        stamps = 0
        while self._queue:
            request = self._queue.popleft()
            if request.answer.done():
                self._waiting -= len(request.stamps)
            elif batch and (
                request.network is not batch[0].network or stamps + len(request.stamps) > self._section.max_stamps
            ):
                others.append(request)
            else:
                batch.append(request)
                stamps += len(request.stamps)
        self._queue = others
        self._waiting -= stamps
        self._metrics.waiting_stamps.set(self._waiting)
        return batch

    def _answers(self, batch: Sequence[_Request]) -> list[FloatArray | Failure]:
        try:
            with self._metrics.batch(sum(len(request.stamps) for request in batch)):
                stamps = [unpack(request.stamps) for request in batch]
                codes = batch[0].network.run(stamps[0] if len(stamps) == 1 else np.concatenate(stamps))
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no base class
            if len(batch) == 1:
                return [Failure(f"{type(error).__name__}: {error}")]
            return [answer for request in batch for answer in self._answers([request])]
        ends = np.cumsum([len(each) for each in stamps])[:-1]
        return list(np.split(np.concatenate(codes, axis=1), ends))

    async def status(self) -> Status:
        """Tell how the actor is.

        Returns
        -------
        Status
            Now.
        """
        running = self._phase is Phase.RUNNING
        stuck = self._began_at is not None and monotonic() - self._began_at > _STUCK_S
        return Status(
            phase=self._phase,
            ready=running,
            reason="encodes",
            alive=not stuck,
            standing=Standing(progressed=self._encoded),
            error=None,
            process=os.getpid(),
            host=socket.gethostname(),
        )

    async def metrics(self) -> list[Metric]:
        """Take a sample of all metrics of this process.

        Returns
        -------
        list of Metric
            One a family.
        """
        return list(self._metrics.registry.collect())

    async def stop(self) -> None:
        """Be done: workers have left, and nothing waits here."""
        self._phase = Phase.ENDED
