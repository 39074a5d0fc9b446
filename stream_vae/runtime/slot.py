"""One place in the fleet: the worker that fills it now, and when the next may."""

import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Generic, Protocol, TypeVar

from prometheus_client import Counter

from stream_vae.errors import ConfigError, FatalError, StreamVaeError
from stream_vae.runtime.remote import WorkerLostError
from stream_vae.runtime.status import Phase, Status

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 30.0
MOST_DEATHS = 5
WINDOW_S = 120.0
"""So many deaths within so long mean that another restart will not help, if they are of the worker's own doing.

A process that had got on with its work and is gone without a word was killed from outside: for want of memory, with its
node, by hand. Whoever starts in its place gets on too, so such deaths never end the fleet.
"""
LONGEST_BACKOFF_AFTER_WORK_S = 5.0
"""For those: long enough that the group settles between two of them."""
SILENT_S = 120.0
"""A worker that says nothing, or whose loop stands still, for so long is ended."""


class Remote(Protocol):
    """What a slot asks of a worker; `stream_vae.runtime.remote.RemoteWorker` is one."""

    status: Status | None
    answered_at: float

    def poll(self) -> Status | None:
        """Give the latest status without waiting; raises a StreamVaeError if the worker is gone."""

    def stop(self) -> None:
        """Ask it to settle and leave."""

    def kill(self) -> None:
        """End it at once."""


Worker = TypeVar("Worker", bound=Remote)


class Slot(Generic[Worker]):
    """Keeps one worker alive.

    Parameters
    ----------
    number : int
        Of the slot: part of the worker's transactional id, so that a new worker fences the one before.
    launch : callable
        Makes a worker for a number.
    restarts : Counter
        Where to count those after the first.
    start_timeout_s : float
        Longest wait until a worker runs.
    kind : str
        What messages call it.
    """

    def __init__(
        self,
        number: int,
        launch: Callable[[int], Worker],
        restarts: Counter,
        *,
        start_timeout_s: float,
        kind: str = "worker",
    ) -> None:
        self.number = number
        self._name = f"{kind} {number}"
        self.worker: Worker | None = None
        self._launch = launch
        self._restarts = restarts
        self._start_timeout_s = start_timeout_s
        self._launches = 0
        self._launched_at = 0.0
        self._next_launch_at = 0.0
        self._deaths: deque[float] = deque()
        self._backoff_s = FIRST_BACKOFF_S
        self._ever_ran = False
        self._progressed = False

    @property
    def status(self) -> Status | None:
        """What the present worker last said; None while there is none."""
        worker = self.worker
        return worker.status if worker else None

    def running(self) -> bool:
        """Tell whether a worker runs here.

        Returns
        -------
        bool
            By its last answer.
        """
        status = self.status
        return status is not None and status.phase is Phase.RUNNING

    def turn(self, now: float | None = None) -> None:
        """Look after the worker: launch it, or bury it and wait.

        Parameters
        ----------
        now : float, optional
            On the monotonic clock; absent: now.

        Raises
        ------
        ConfigError
            If the settings are wrong: no worker ever ran here.
        FatalError
            If too many died in a row, other than by being killed at their work.
        """
        now = monotonic() if now is None else now
        if self.worker is None:
            if now >= self._next_launch_at:
                self._start(now)
            return
        before = self.running()
        if (trouble := self._trouble(self.worker, now)) is not None:
            self._bury(trouble, now)
        elif self.running() and not before:
            self._ever_ran = True
            assert self.status
            log.info("%s runs: process %d on %s", self._name, self.status.process, self.status.host)

    def _start(self, now: float) -> None:
        if self._launches:
            self._restarts.inc()
        self._launches += 1
        self._launched_at = now
        self._progressed = False
        self.worker = self._launch(self.number)

    def _trouble(self, worker: Worker, now: float) -> StreamVaeError | None:
        try:
            status = worker.poll()
        except StreamVaeError as error:
            return error
        self._progressed |= status is not None and status.standing.progressed
        if status is None or status.phase is Phase.STARTING:
            return self._too_late(status) if now - self._launched_at > self._start_timeout_s else None
        if status.phase is Phase.ENDED:
            return status.error or FatalError("It ended by itself.")
        if not status.alive or now - worker.answered_at > SILENT_S:
            return FatalError(f"It stood still for {SILENT_S:g} s.")
        return None

    def _too_late(self, status: Status | None) -> ConfigError:
        limit = f"within fleet.start_timeout_s = {self._start_timeout_s:g} s"
        if status is not None:
            return ConfigError(
                f"{self._name.capitalize()} did not come up {limit}.", remedy="Its log says how far it came."
            )
        return ConfigError(
            f"{self._name.capitalize()} found no place in the Ray cluster {limit}.",
            remedy="Compare the cluster's free CPUs (`ray status`) with --workers and fleet.cpus_per_worker.",
        )

    def _bury(self, trouble: StreamVaeError, now: float) -> None:
        self.end()
        if isinstance(trouble, ConfigError) and not self._ever_ran:
            raise trouble
        if now - self._launched_at > WINDOW_S:
            self._backoff_s = FIRST_BACKOFF_S
        if self._progressed and isinstance(trouble, WorkerLostError):
            self._backoff_s = min(self._backoff_s, LONGEST_BACKOFF_AFTER_WORK_S)
        else:
            self._count_death(trouble, now)
        log.error("%s died: %s A new one starts in %g s.", self._name, trouble, self._backoff_s)
        self._next_launch_at = now + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, LONGEST_BACKOFF_S)

    def _count_death(self, trouble: StreamVaeError, now: float) -> None:
        self._deaths.append(now)
        while self._deaths[0] < now - WINDOW_S:
            self._deaths.popleft()
        if len(self._deaths) >= MOST_DEATHS:
            raise _given_up(self._name, trouble)

    def stop(self) -> None:
        """Ask the worker to settle what it has and leave."""
        if self.worker is not None:
            self.worker.stop()

    def ended(self) -> StreamVaeError | bool:
        """Tell whether the worker has left, after `stop`.

        Returns
        -------
        bool or StreamVaeError
            False as long as it has not; its error if it did not leave in peace.
        """
        if self.worker is None:
            return True
        try:
            status = self.worker.poll()
        except StreamVaeError as error:
            log.warning("%s died while it was stopping: %s", self._name, error)
            self.end()
            return True
        if status is None or status.phase is not Phase.ENDED:
            return False
        self.end()
        return status.error or True

    def end(self) -> None:
        """End the worker's process, whatever it does."""
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.kill()


def _given_up(name: str, trouble: StreamVaeError) -> StreamVaeError:
    if isinstance(trouble, ConfigError):
        return trouble
    return FatalError(
        f"{name.capitalize()} died {MOST_DEATHS} times within {WINDOW_S:g} s; the last time: {trouble}",
        remedy="Offsets are untouched: a new start goes on where the last one stood.",
    )
