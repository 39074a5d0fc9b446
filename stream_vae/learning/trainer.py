"""Keep a survey's model current: retrain when it is time, end trials, take back what does harm.

A loop that holds no state which matters: when the last retraining was is in the release store, whether one lies
unfinished in ``retrain.work``, what workers see in Redis. So it may be killed and started anew at any time, and two of
them do no harm: the survey's lock lets one retrain.
"""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Event
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any

from stream_vae import assembly
from stream_vae.errors import RetriableError, StreamVaeError
from stream_vae.labels.intake import intake_of
from stream_vae.learning import job as jobs
from stream_vae.learning.attempt import Attempt, Ended, Launch, ProcessAttempt, RayAttempt
from stream_vae.learning.oversight import Oversight
from stream_vae.metrics import TrainerMetrics
from stream_vae.model.store import ReleaseStore
from stream_vae.reservoir import Reservoir
from stream_vae.runtime.health import HealthServer
from stream_vae.settings import RetrainSettings, Settings

if TYPE_CHECKING:
    from stream_vae.model.release import ReleaseCard

log = logging.getLogger(__name__)

_SILENT_S = 600.0
"""The loop stands still: a look takes seconds."""


@dataclass(frozen=True)
class Past:
    """The last retraining, or the training that the release which is served came from."""

    at: datetime
    seen: int
    """Alerts that the reservoir was a sample of then."""


def due(section: RetrainSettings, now: datetime, past: Past, seen: int, alarms: tuple[str, ...]) -> str | None:
    """Tell whether it is time to retrain.

    Parameters
    ----------
    section : RetrainSettings
        ``[retrain]``.
    now : datetime
        With a time zone.
    past : Past
        The last one.
    seen : int
        Alerts that the reservoir is a sample of now.
    alarms : tuple of str
        What drifts.

    Returns
    -------
    str or None
        What asks for it: `time`, `count` or `drift`.
    """
    if now - past.at < timedelta(seconds=section.least_interval_s):
        return None
    if section.on_drift and alarms:
        return "drift"
    if section.after_alerts is not None and new_alerts(past, seen) >= section.after_alerts:
        return "count"
    if section.every_h is not None and now - past.at >= timedelta(hours=section.every_h):
        return "time"
    return None


def new_alerts(past: Past, seen: int) -> int:
    """Count the alerts since a retraining.

    Parameters
    ----------
    past : Past
        It.
    seen : int
        Alerts that the reservoir is a sample of now: fewer than then, if it was cleared or lost meanwhile.

    Returns
    -------
    int
        About.
    """
    return seen - past.seen if seen >= past.seen else seen


class Trainer:
    """One survey's.

    Parameters
    ----------
    settings : Settings
        Everything.
    launch : callable
        Begins a retraining.
    reservoir : Reservoir
        To look at; closed by whoever opened it.
    metrics : TrainerMetrics
        Where to count.
    intake : callable, optional
        Takes in the labels that have come; closed by whoever opened it. Absent: there is no topic for them.
    """

    def __init__(
        self,
        settings: Settings,
        launch: Launch,
        reservoir: Reservoir,
        metrics: TrainerMetrics,
        *,
        intake: Callable[[], None] | None = None,
    ) -> None:
        self._settings = settings
        self._section = settings.retrain
        self._launch = launch
        self._reservoir = reservoir
        self._metrics = metrics
        self._store = ReleaseStore(settings.release.store)
        self._attempt: Attempt | None = None
        self._trigger = ""
        self._began = datetime.min.replace(tzinfo=UTC)
        self._cards: dict[str, ReleaseCard] = {}
        self._folders: list[str] = []
        self._complaints: dict[str, str] = {}
        self._turned_at = monotonic()
        self.oversight = Oversight(settings, self._store, reservoir.client, reservoir.survey, metrics)
        self._chores: list[tuple[str, Callable[[], None]]] = [
            ("releases", self.oversight.look),
            ("retraining", self._look),
        ]
        if intake is not None:
            self._chores.insert(0, ("labels", intake))  # first: a retraining takes what is there when it begins

    def turn(self) -> None:
        """Look at everything once; what fails is said and tried again next time."""
        for what, chore in self._chores:
            try:
                chore()
            except StreamVaeError as error:
                self._complain(what, error)
            else:
                self._complaints.pop(what, None)
        self._turned_at = monotonic()

    def close(self) -> None:
        """End a retraining that runs; what it left in ``retrain.work`` goes on next time."""
        if self._attempt is not None:
            log.info("the retraining that runs is ended")
            self._attempt.stop()
            self._attempt = None

    def ready(self) -> tuple[bool, str]:
        """Tell whether it can do its work.

        Returns
        -------
        ready : bool
            False while store or Redis do not answer.
        reason : str
            One line.
        """
        if self._complaints:
            return False, "; ".join(self._complaints.values())
        return True, "retraining" if self._attempt is not None else "waiting"

    def alive(self) -> tuple[bool, str]:
        """Tell whether the loop still turns.

        Returns
        -------
        alive : bool
            False if it stands still.
        reason : str
            One line.
        """
        silent = monotonic() - self._turned_at
        return silent < max(_SILENT_S, 10 * self._section.poll_s), f"last look {silent:.0f} s ago"

    def _look(self) -> None:
        if self._attempt is not None:
            ended = self._attempt.poll()
            if ended is None:
                return
            self._end(ended)
        past, seen = self._past(), self._reservoir.seen()
        self._metrics.last.labels(self._metrics.survey).set(past.at.timestamp())
        self._metrics.new_alerts.labels(self._metrics.survey).set(new_alerts(past, seen))
        if self.oversight.on_trial:
            return  # one novelty at a time: what is served must be known before it is gone on from
        now = datetime.now(UTC)
        if jobs.unfinished(self._section.work, self._reservoir.survey) and self._rested(now):
            self._start("resumed", now)
        elif (trigger := due(self._section, now, past, seen, self.oversight.alarms)) and self._rested(now):
            self._start(trigger, now)

    def _rested(self, now: datetime) -> bool:
        """Also an attempt that failed counts: what ails it is not mended by trying at once."""
        return now - self._began >= timedelta(seconds=self._section.least_interval_s)

    def _start(self, trigger: str, now: datetime) -> None:
        log.info("retraining %s: asked for by %s", self._reservoir.survey, trigger)
        self._trigger, self._began = trigger, now
        self._attempt = self._launch(self._settings, trigger)
        self._metrics.running.labels(self._metrics.survey).set(1)

    def _end(self, ended: Ended) -> None:
        if self._attempt is not None:
            self._attempt.stop()
        self._attempt = None
        self._metrics.running.labels(self._metrics.survey).set(0)
        if ended.found is not None:
            found = ended.found
            self._metrics.retrainings.labels(self._metrics.survey, self._trigger, found["fate"]).inc()
            log.info("release %s: %s; %s", found["release"], found["fate"].replace("_", " "), found["reason"])
            return
        error = ended.error or StreamVaeError("nothing came back")
        self._metrics.failures.labels(self._metrics.survey, type(error).__name__).inc()
        if isinstance(error, RetriableError):
            self._began = datetime.min.replace(tzinfo=UTC)  # a passing fault: as soon as it is looked again
        log.error("the retraining failed: %s", error)

    def _past(self) -> Past:
        """Read the store's cards, those that were not read before."""
        folders = self._store.folders()
        if folders != self._folders:
            self._cards = {card.id: card for card in self._store.cards()}
            self._folders = folders
        retrained = [card for card in self._cards.values() if "reservoir" in card.data]
        if retrained:
            last = max(retrained, key=lambda card: card.created_at)
            self._metrics.show_gates(last.metrics.get("verdict") or {})
            return Past(last.created_at, int(last.data["reservoir"].get("seen", 0)))
        served = self._store.resolve(self._settings.release.id)
        card = self._cards.get(served)
        return Past(card.created_at if card else datetime.min.replace(tzinfo=UTC), 0)

    def _complain(self, what: str, error: StreamVaeError) -> None:
        """Say a fault when it begins, and not again while it lasts."""
        self._metrics.looks_failed.labels(self._metrics.survey, what).inc()
        if self._complaints.get(what) != str(error):
            log.warning("%s", error)
        self._complaints[what] = str(error)


def run_trainer(settings: Settings, *, ray_address: str | None = None, stop: Event | None = None) -> None:
    """Keep a survey's model current until SIGTERM or SIGINT.

    Parameters
    ----------
    settings : Settings
        Everything.
    ray_address : str, optional
        Of the Ray cluster that retrainings are tasks of; absent: each is a process of this machine.
    stop : Event, optional
        Set by whoever wants the end; absent: signals do.

    Raises
    ------
    ConfigError
        If there is no reservoir, no store, no release, no labels topic where one is set, or the cluster cannot be
        joined.
    RetriableError
        If the store cannot be reached.
    """
    ReleaseStore(settings.release.store).resolve(settings.release.id)
    survey = assembly.profile_of(settings).name
    metrics = TrainerMetrics(survey)
    with ExitStack() as stack:
        reservoir = stack.enter_context(closing(assembly.reservoir_of(settings)))
        reservoir.seen()
        launch: Callable[[Settings, str], Any] = ProcessAttempt
        if ray_address is not None:
            from stream_vae.runtime.cluster import joined

            launch = partial(RayAttempt, stack.enter_context(joined(ray_address, cpus=settings.retrain.cpus)))
        intake = intake_of(settings, reservoir, metrics)
        if intake is not None:
            stack.callback(intake.close)
        trainer = Trainer(settings, launch, reservoir, metrics, intake=intake)
        stack.callback(trainer.close)
        if (port := settings.metrics.port) is not None:
            host = settings.metrics.host
            server = HealthServer(metrics.registry, host=host, port=port, ready=trainer.ready, alive=trainer.alive)
            stack.callback(server.close)
            log.info("metrics and health of the trainer on http://%s:%d/metrics", host, server.port)
        ended = stop or stack.enter_context(_signalled())
        log.info("retraining of %s: %s", survey, _triggers(settings.retrain))
        while True:
            trainer.turn()
            if ended.wait(settings.retrain.poll_s):
                return


def _triggers(section: RetrainSettings) -> str:
    asked = [
        f"every {section.every_h:g} h" if section.every_h is not None else "",
        f"after {section.after_alerts:,} alerts" if section.after_alerts is not None else "",
        "on drift" if section.on_drift else "",
    ]
    return ", ".join(filter(None, asked)) or "by hand only (set retrain.every_h, after_alerts or on_drift)"


@contextmanager
def _signalled() -> Iterator[Event]:
    stop = Event()

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        log.info("%s: the trainer ends", signal.Signals(number).name)
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
