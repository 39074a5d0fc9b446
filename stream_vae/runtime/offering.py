"""Offer stamps to the reservoir beside the alert path: in the background, bounded, and never in its way.

`Offering.observe` is called by the pipeline for every batch. It copies what could enter the reservoir
(`stream_vae.runtime.nominating`) into a bounded queue and returns; a thread of its own sends the queue on. If Redis
is slow, hung, full or gone, stamps are dropped and counted, and alerts go on being published as if there were no
reservoir. What was dropped in an outage is missing from the sample of that time: nothing is spooled.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Literal

import numpy as np
import numpy.typing as npt
import redis

from stream_vae.alert import Alert, Codes, FloatArray, Scores
from stream_vae.metrics import Metrics
from stream_vae.model.release import Preprocessing
from stream_vae.reservoir import Answer, Batch, Reservoir, layout_error
from stream_vae.runtime.nominating import Nominator
from stream_vae.sampling import CAPACITY_SETTINGS, STRATA, Capacities, memory_bound
from stream_vae.stages.stamp import Stamps
from stream_vae.surveys import Profile

log = logging.getLogger(__name__)

TIMEOUT_S = 0.2
"""For connecting and for each answer: a thread that waits longer only fills its queue."""
_AT_A_TIME = 512
_QUEUED_MOST = 4096
_REFRESH_S = 10.0
"""After that the cached thresholds are asked for again, since the reservoir may have been cleared meanwhile; and no
more often the ids of labelled alerts that wait for their stamps."""

State = Literal["closed", "open", "half_open"]


class Circuit:
    """A circuit breaker: after a failure nothing is tried for a while, then the next call is the probe.

    Parameters
    ----------
    retry_after_s : float
        How long it stays open.
    clock : callable
        Seconds that only grow.
    """

    def __init__(self, retry_after_s: float, clock: Callable[[], float] = monotonic) -> None:
        self._retry_after_s = retry_after_s
        self._clock = clock
        self._opened_at: float | None = None

    @property
    def state(self) -> State:
        """``closed``: use it; ``open``: do not; ``half_open``: try once."""
        if self._opened_at is None:
            return "closed"
        return "half_open" if self.wait_s <= 0 else "open"

    @property
    def wait_s(self) -> float:
        """How long it stays open; 0 if it is not."""
        return 0.0 if self._opened_at is None else max(0.0, self._opened_at + self._retry_after_s - self._clock())

    def succeeded(self) -> None:
        """Close it."""
        self._opened_at = None

    def failed(self) -> None:
        """Open it, or keep it open."""
        self._opened_at = self._clock()


class Offering:
    """Offers one worker's stamps to a reservoir.

    Parameters
    ----------
    reservoir : Reservoir
        Its client should time out after `TIMEOUT_S`; closed with this.
    preprocessing : Preprocessing
        Of the release that scores.
    capacities : Capacities
        Stamps that each stratum may hold.
    metrics : Metrics
        Where to count.
    profile : Profile
        The survey's.
    recent_days : float
        Time in which an alert's chance to be in the recent stratum falls to 1/e.
    queue_stamps : int
        Stamps that may wait, about 1 kB each and channel; more are dropped.
    retry_after_s : float
        How long Redis is left alone after a failure.
    """

    def __init__(
        self,
        reservoir: Reservoir,
        preprocessing: Preprocessing,
        capacities: Capacities,
        metrics: Metrics,
        *,
        profile: Profile,
        recent_days: float = 7.0,
        queue_stamps: int = _QUEUED_MOST,
        retry_after_s: float = 5.0,
    ) -> None:
        self._reservoir = reservoir
        self._preprocessing = preprocessing
        self._capacities = capacities
        self._metrics = metrics
        self._recent_days = recent_days
        self._nominator = Nominator(reservoir.survey, profile, recent_days)
        self._most = queue_stamps
        self._circuit = Circuit(retry_after_s)
        self._name = ""
        self._stamps = 0
        self._waiting_version = ""
        self._asked_at = -_REFRESH_S
        self._queue: deque[Batch] = deque()
        self._queued = 0
        self._sending = 0
        self._changed = threading.Condition()
        self._closing = False
        self._complaint = ""
        self._failing = False
        bound = memory_bound(capacities, preprocessing) / 2**20
        shares = ", ".join(f"{number:,} {stratum}" for stratum, number in zip(STRATA, capacities, strict=True))
        log.info("reservoir at %s: up to %s stamps, %.0f MiB of its memory", reservoir.where, shares, bound)
        self._thread = threading.Thread(target=self._run, name="reservoir", daemon=True)
        self._thread.start()

    def observe(self, alerts: Sequence[Alert], stamps: Stamps, codes: Codes, scores: Scores) -> None:  # noqa: ARG002
        """Offer the scoreable stamps of a batch; never waits and never raises. The pipeline calls this.

        Parameters
        ----------
        alerts : sequence of Alert
            One a row.
        stamps : Stamps
            As they were encoded; what is kept of them is copied.
        codes : Codes
            Not kept.
        scores : Scores
            Gives the novelty.
        """
        novelty, scoreable = scores.novelty, stamps.scoreable
        if not scoreable.all():
            rows = np.flatnonzero(scoreable)
            alerts, stamps, novelty = [alerts[row] for row in rows.tolist()], _rows(stamps, rows), novelty[rows]
        if not alerts:
            return
        self._metrics.reservoir_offered.labels(self._metrics.survey).inc(len(alerts))
        try:
            self._offer(alerts, stamps, novelty)
        except Exception as error:  # noqa: BLE001 - whatever is wrong here, the alerts must be published
            self._dropped("error", len(alerts))
            self._complain(f"offering to the reservoir fails: {error!r}")

    def _offer(self, alerts: Sequence[Alert], stamps: Stamps, novelty: FloatArray) -> None:
        if self._closing or self._circuit.state == "open":
            self._dropped("closing" if self._closing else "circuit_open", len(alerts))
            return
        rows, ranks = self._nominator.nominate(alerts, novelty)
        for start in range(0, len(rows), _AT_A_TIME):
            some = rows[start : start + _AT_A_TIME]
            batch, too_long = self._nominator.batch(
                [alerts[row] for row in some.tolist()],
                _rows(stamps, some),
                novelty[some],
                ranks[start : start + _AT_A_TIME],
            )
            self._dropped("id_too_long", too_long)
            if batch.alert_ids:
                self._enqueue(batch)

    def _enqueue(self, batch: Batch) -> None:
        with self._changed:
            room = self._queued + len(batch.alert_ids) <= self._most
            if room:
                self._queue.append(batch)
                self._queued += len(batch.alert_ids)
                self._changed.notify_all()
        if not room:
            self._dropped("queue_full", len(batch.alert_ids))

    def flush(self, timeout_s: float) -> bool:
        """Wait until the queue is sent or dropped.

        Parameters
        ----------
        timeout_s : float
            How long at most.

        Returns
        -------
        bool
            Whether nothing waits any more.
        """
        with self._changed:
            return self._changed.wait_for(lambda: not self._queued and not self._sending, timeout_s)

    def close(self, timeout_s: float = 1.0) -> None:
        """Send what is queued, as long as this takes no longer than the time-out; may be called twice.

        Parameters
        ----------
        timeout_s : float
            What is not sent by then is dropped.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        self._drop_queue("closing")
        self._reservoir.close()

    def _run(self) -> None:
        self._send(Batch.empty())  # the thresholds first: a worker that starts anew need not send everything
        while True:
            with self._changed:
                wait_s = self._circuit.wait_s if self._circuit.state == "open" else _REFRESH_S
                self._changed.wait_for(lambda: self._queue or self._closing, wait_s)
                if self._closing and (not self._queue or self._circuit.state != "closed"):
                    return
                if self._circuit.state == "open":
                    continue
                batch = self._take()
            self._send(batch)
            with self._changed:
                self._sending = 0
                self._changed.notify_all()

    def _take(self) -> Batch:
        """Join waiting batches to one call; where none waits, an empty one asks for the thresholds."""
        parts, count = [Batch.empty()], 0
        while self._queue and count + len(self._queue[0].alert_ids) <= _AT_A_TIME:
            parts.append(self._queue.popleft())
            count += len(parts[-1].alert_ids)
        self._queued -= count
        self._sending = count
        return Batch(
            [alert_id for part in parts for alert_id in part.alert_ids],
            np.concatenate([part.ranks for part in parts]),
            [record for part in parts for record in part.records],
        )

    def _send(self, batch: Batch) -> None:
        asks = monotonic() - self._asked_at >= _REFRESH_S
        try:
            answer = self._reservoir.add(
                batch,
                preprocessing=self._preprocessing,
                capacities=self._capacities,
                recent_days=self._nominator.recent_days,
                waiting_version=self._waiting_version if asks else None,
            )
        except (redis.RedisError, OSError) as error:
            self._failed(batch, "redis_error", f"the reservoir at {self._reservoir.where} fails: {error}.")
        except Exception as error:  # noqa: BLE001 - the thread must outlive it
            self._failed(batch, "error", f"offering to the reservoir fails: {error!r}")
        else:
            if asks:
                self._asked_at = monotonic()
            self._take_answer(batch, answer)

    def _take_answer(self, batch: Batch, answer: Answer) -> None:
        if answer.status != "ok":
            self._failed(batch, "refused", self._refusal(answer))
            return
        if self._failing and batch.alert_ids:  # a full server answers questions and takes nothing
            log.info("the reservoir at %s takes stamps again", self._reservoir.where)
            self._complaint, self._failing = "", False
        self._circuit.succeeded()
        self._look_for_loss(answer)
        self._compare_settings(answer)
        if answer.waiting is not None:
            self._nominator.waiting = answer.waiting
            self._waiting_version = answer.waiting_version
        self._nominator.thresholds = answer.thresholds
        self._count(answer)

    def _look_for_loss(self, answer: Answer) -> None:
        """Tell once that the keys are gone; they fill again by themselves."""
        if answer.name == self._name:
            self._stamps = answer.stamps
            return
        if self._name:
            self._metrics.reservoir_lost.labels(self._metrics.survey).inc()
            log.warning(
                "the reservoir at %s lost all it had, %d stamps: it was cleared, or its server began anew or flushed "
                "its keys. It fills again; labels that were not kept elsewhere are gone.",
                self._reservoir.where,
                self._stamps,
            )
            # What waits there now has nothing to do with the version that is known here.
            self._nominator.waiting, self._waiting_version, self._asked_at = frozenset(), "", -_REFRESH_S
        self._name, self._stamps = answer.name, answer.stamps

    def _compare_settings(self, answer: Answer) -> None:
        own, kept = self._capacities, answer.capacities
        differing = [
            f"{kept[at]} stamps and not reservoir.{name} = {own[at]}"
            for at, name in enumerate(CAPACITY_SETTINGS)
            if kept[at] < own[at]
        ]
        days = self._recent_days if answer.recent_days is None else answer.recent_days
        if days != self._recent_days:
            differing.append(f"recent alerts for {days:g} days and not reservoir.recent_days = {self._recent_days:g}")
        self._nominator.recent_days = days
        if differing:
            self._complain(
                f"the reservoir keeps {'; '.join(differing)}: a sample cannot grow or change; "
                "`stream-vae reservoir clear` begins a new one."
            )

    def _count(self, answer: Answer) -> None:
        metrics, survey = self._metrics, self._metrics.survey
        metrics.reservoir_entered.labels(survey).inc(answer.entered)
        metrics.reservoir_stamps.labels(survey).set(answer.stamps)
        for stratum, size in zip(STRATA, answer.sizes, strict=True):
            metrics.reservoir_stratum_stamps.labels(survey, stratum).set(size)
        metrics.reservoir_waiting.labels(survey).set(len(self._nominator.waiting))
        metrics.reservoir_circuit_open.labels(survey).set(0)

    def _refusal(self, answer: Answer) -> str:
        where = self._reservoir.where
        if answer.status == "layout":
            return str(layout_error(self._reservoir.survey, where, answer.found))
        return (
            f"the reservoir at {where} holds stamps that were prepared in another way (digest {answer.found}) than "
            "this release's; `stream-vae reservoir export` saves them and `clear` makes room for these."
        )

    def _failed(self, batch: Batch, reason: str, complaint: str) -> None:
        self._circuit.failed()
        self._failing = True
        self._metrics.reservoir_circuit_open.labels(self._metrics.survey).set(1)
        self._dropped(reason, len(batch.alert_ids))
        self._drop_queue("circuit_open")
        self._complain(f"{complaint} Publishing goes on; stamps are dropped and counted meanwhile.")

    def _complain(self, complaint: str) -> None:
        """Log a fault when it begins, and not again while it lasts."""
        if complaint != self._complaint:
            log.warning("%s", complaint)
        self._complaint = complaint

    def _drop_queue(self, reason: str) -> None:
        with self._changed:
            count, self._queued = self._queued, 0
            self._queue.clear()
            self._changed.notify_all()
        self._dropped(reason, count)

    def _dropped(self, reason: str, count: int) -> None:
        if count:
            self._metrics.reservoir_dropped.labels(self._metrics.survey, reason).inc(count)


def _rows(stamps: Stamps, rows: npt.NDArray[np.intp]) -> Stamps:
    return Stamps(stamps.stamps[rows], stamps.quality[rows])
