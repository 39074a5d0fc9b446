"""A fleet: N workers in Ray actors, and the supervisor that keeps them alive.

The workers share the input's partitions as one consumer group. Whatever happens to one of them, offsets are
committed only for what is settled, so a new worker in its slot goes on where it stood; the supervisor keeps no
state that matters.

One port serves metrics and health for all, as one process would: `stream_vae.runtime.fleet_metrics` asks the
workers when it is scraped.
"""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Event
from time import monotonic, sleep
from types import FrameType

from prometheus_client import CollectorRegistry, Metric

from stream_vae import assembly
from stream_vae.errors import StreamVaeError
from stream_vae.metrics import FleetMetrics
from stream_vae.runtime.cluster import Cluster, connected
from stream_vae.runtime.fleet_metrics import FleetCollector
from stream_vae.runtime.group import Group
from stream_vae.runtime.health import HealthServer
from stream_vae.runtime.remote import RemoteWorker
from stream_vae.runtime.scaling import Scaling
from stream_vae.runtime.slot import Slot
from stream_vae.runtime.start_up import check_surroundings
from stream_vae.runtime.status import Status
from stream_vae.settings import Settings

log = logging.getLogger(__name__)

_POLL_S = 0.2
_DRAIN_MARGIN_S = 10.0
"""On top of delivery.drain_timeout_s: to finish the batch at hand before, and to leave the group after."""
_SILENT_S = 120.0
_LAG_INTERVAL_S = 5.0
"""Of a fleet that follows the lag: some requests to the brokers each time."""
_SCRAPE_TIMEOUT_S = 3.0
"""Prometheus waits 10 s by default."""


def run_fleet(
    settings: Settings, workers: int, *, exit_when_idle_s: float | None = None, ray_address: str | None = None
) -> None:
    """Run a fleet until SIGTERM, SIGINT or idleness.

    Parameters
    ----------
    settings : Settings
        Everything; every worker gets the same.
    workers : int
        How many.
    exit_when_idle_s : float, optional
        Return once all workers together have been caught up, with everything settled, for this long.
    ray_address : str, optional
        Of a Ray cluster to join; absent: one is started on this machine, for the time of this call.

    Raises
    ------
    ConfigError
        If settings, release, brokers or Ray do not let a worker start.
    FatalError
        If a worker dies again and again.
    """
    survey = assembly.profile_of(settings).name
    check_surroundings(settings)  # the workers would find out too, some seconds later
    group = Group(settings.kafka)
    partitions = len(group.input_partitions())
    _warn_of_too_many(workers, partitions)
    scaling = Scaling(settings.fleet, workers, partitions)
    registry = CollectorRegistry()
    fleet = Fleet(settings, scaling, group, FleetMetrics(survey, registry))
    registry.register(FleetCollector(fleet.sample))
    stop = Event()
    with ExitStack() as stack:
        if (port := settings.metrics.port) is not None:
            host = settings.metrics.host
            server = HealthServer(registry, host=host, port=port, ready=fleet.ready, alive=fleet.alive)
            stack.callback(server.close)
            log.info("metrics and health of the fleet on http://%s:%d/metrics", host, server.port)
        cluster = stack.enter_context(connected(settings, scaling.most, ray_address))
        stack.enter_context(_stopped_by_signals(stop))  # after Ray, which takes SIGTERM for itself
        fleet.run(cluster, stop, exit_when_idle_s)


def _warn_of_too_many(workers: int, partitions: int) -> None:
    if workers > partitions:
        log.warning(
            "%d workers for %d partitions: %d will have nothing to do. Add partitions to the input topics, or take "
            "fewer workers.",
            *(workers, partitions, workers - partitions),
        )


@contextmanager
def _stopped_by_signals(stop: Event) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        log.info("%s: the workers finish their batches and leave the group", signal.Signals(number).name)
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Fleet:
    """The supervisor's view: one slot a worker.

    Parameters
    ----------
    settings : Settings
        Everything.
    scaling : Scaling
        How many slots there are to be.
    group : Group
        The consumer group that the workers form.
    metrics : FleetMetrics
        Where to count.
    """

    def __init__(self, settings: Settings, scaling: Scaling, group: Group, metrics: FleetMetrics) -> None:
        self._settings = settings
        self._scaling = scaling
        self._group = group
        self._metrics = metrics
        self._cluster: Cluster | None = None
        self._turned_at = monotonic()
        self._look_at = monotonic()
        self._slots: list[Slot[RemoteWorker]] = []
        self._leaving: dict[Slot[RemoteWorker], float] = {}
        """Slots that are given up, and until when their workers may settle."""
        self._encoders: list[Slot[RemoteWorker]] = [
            self._slot(number, self._launch_encoder, kind="encoder") for number in range(settings.encoder.actors)
        ]
        self._resize(scaling.least)

    def _slot(self, number: int, launch: Callable[[int], RemoteWorker], *, kind: str = "worker") -> Slot[RemoteWorker]:
        restarts = self._metrics.restarts(f"encoder-{number}" if kind == "encoder" else str(number))
        return Slot(number, launch, restarts, start_timeout_s=self._settings.fleet.start_timeout_s, kind=kind)

    def _launch(self, slot: int) -> RemoteWorker:
        assert self._cluster, "run has begun"
        return self._cluster.launch(slot)

    def _launch_encoder(self, number: int) -> RemoteWorker:
        assert self._cluster, "run has begun"
        return self._cluster.launch_encoder(number)

    def run(self, cluster: Cluster, stop: Event, exit_when_idle_s: float | None = None) -> None:
        """Keep the workers alive until told to stop, then drain them.

        Parameters
        ----------
        cluster : Cluster
            Where they run.
        stop : Event
            Set by whoever wants the end.
        exit_when_idle_s : float, optional
            As for `run_fleet`.

        Raises
        ------
        ConfigError
            If no worker can start.
        FatalError
            If a worker dies again and again, or could not settle at the end.
        """
        self._cluster = cluster
        failure: StreamVaeError | None = None
        try:
            try:
                self._watch(stop, exit_when_idle_s)
            except StreamVaeError as error:
                failure = error
            unsettled = self._drain()
        finally:
            for slot in (*self._slots, *self._leaving, *self._encoders):
                slot.end()
            self._metrics.alive.set(0)
        if (first := failure or unsettled) is not None:
            raise first

    def _watch(self, stop: Event, exit_when_idle_s: float | None) -> None:
        while not stop.wait(_POLL_S):
            self._turn()
            if exit_when_idle_s is not None and self.idle(exit_when_idle_s):
                log.info("all workers are caught up, and nothing came for %g s", exit_when_idle_s)
                return

    def _turn(self) -> None:
        self._follow_lag()
        for slot in (*self._encoders, *self._slots):  # a worker asks the encoders when it starts
            slot.turn()
        self._let_go()
        self._metrics.alive.set(sum(slot.running() for slot in self._slots))
        self._turned_at = monotonic()

    def _follow_lag(self) -> None:
        now = monotonic()
        if self._scaling.fixed or now < self._look_at:
            return
        self._look_at = now + _LAG_INTERVAL_S
        lag = self._group.lag()
        if lag is None:
            return
        wanted = self._scaling.wanted(lag, now)
        if wanted != len(self._slots):
            log.info("%d messages wait: %d workers instead of %d", lag, wanted, len(self._slots))
            self._resize(wanted)

    def _let_go(self) -> None:
        """Look after the workers that leave: one that does not in time is killed, and its alerts are read again."""
        for slot, deadline in list(self._leaving.items()):
            ended = slot.ended()
            if ended is False and monotonic() < deadline:
                continue
            if ended is not True:
                log.warning("worker %d did not leave in peace%s", slot.number, f": {ended}" if ended else " in time")
            slot.end()
            del self._leaving[slot]

    def _resize(self, wanted: int) -> None:
        """Add slots at the end, or let the last ones leave; a number that is still leaving is not taken yet."""
        leaving = {slot.number for slot in self._leaving}
        while len(self._slots) < wanted and (number := len(self._slots)) not in leaving:
            self._slots.append(self._slot(number, self._launch))
        for slot in self._slots[wanted:]:
            slot.stop()
            self._leaving[slot] = monotonic() + self._settings.delivery.drain_timeout_s + _DRAIN_MARGIN_S
        del self._slots[wanted:]
        self._metrics.wanted.set(len(self._slots))

    def _statuses(self) -> list[Status]:
        return [slot.status for slot in self._slots if slot.running() and slot.status is not None]

    def idle(self, seconds: float) -> bool:
        """Tell whether all workers have been caught up together for so long.

        A worker without partitions counts as caught up, but only if the group confirms that the others own all.

        Parameters
        ----------
        seconds : float
            How long.

        Returns
        -------
        bool
            False while a worker is missing or partitions change hands.
        """
        standings = [status.standing for status in self._statuses()]
        if len(standings) < len(self._slots):
            return False
        if any(standing.idle_s is None or standing.idle_s < seconds for standing in standings):
            return False
        return self._group.agrees({standing.member_id: standing.partitions for standing in standings})

    def _drain(self) -> StreamVaeError | None:
        deadline = monotonic() + self._settings.delivery.drain_timeout_s + _DRAIN_MARGIN_S
        errors: list[StreamVaeError] = []
        waiting = [slot for slot in (*self._slots, *self._leaving) if slot.worker is not None]
        for slot in waiting:
            slot.stop()
        while waiting and monotonic() < deadline:
            self._turned_at = monotonic()
            # Workers stop at once when told, so these are seconds together, not one after the other.
            verdicts = [(slot, slot.ended()) for slot in waiting]
            waiting = [slot for slot, ended in verdicts if ended is False]
            errors += [ended for _, ended in verdicts if isinstance(ended, StreamVaeError)]
            sleep(_POLL_S)
        for slot in waiting:
            log.warning("worker %d did not stop in time and is killed; what it held will be read again", slot.number)
        return errors[0] if errors else None

    def ready(self) -> tuple[bool, str]:
        """Tell whether the fleet takes work.

        Returns
        -------
        ready : bool
            True while any worker consumes: the group gives it the partitions of those that do not.
        reason : str
            One line.
        """
        consuming = sum(status.ready for status in self._statuses())
        return consuming > 0, f"{consuming} of {len(self._slots)} workers consume"

    def alive(self) -> tuple[bool, str]:
        """Tell whether the supervisor still looks after the workers, which it restarts itself.

        Returns
        -------
        alive : bool
            False if its loop stands still.
        reason : str
            One line.
        """
        silent = monotonic() - self._turned_at
        return silent < _SILENT_S, f"last look at the workers {silent:.0f} s ago"

    def sample(self) -> dict[str, list[Metric]]:
        """Ask every running worker for its metrics; safe from other threads.

        Returns
        -------
        dict
            Metric families by slot number; an encoder's by ``encoder-`` and its number.
        """
        if self._cluster is None:
            return {}
        workers = {str(slot.number): slot.worker for slot in self._slots if slot.running()}
        workers |= {f"encoder-{slot.number}": slot.worker for slot in self._encoders if slot.running()}
        present = {number: worker for number, worker in workers.items() if worker is not None}
        self._cluster.wait([worker.ask_metrics() for worker in present.values()], _SCRAPE_TIMEOUT_S)
        return {number: worker.metrics() for number, worker in present.items()}
