"""Offer stamps to the reservoir beside the alert path: in the background, bounded, and never in its way.

`Offering.observe` is called by the pipeline for every batch. It hashes the ids, copies what could enter the
reservoir into a bounded queue and returns; a thread of its own sends the queue on. If Redis is slow, hung, full or
gone, stamps are dropped and counted, and alerts go on being published as if there were no reservoir. What was
dropped in an outage is missing from the sample of that time: nothing is spooled.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Literal, NamedTuple

import numpy as np
import redis

from stream_vae.alert import Alert, Codes, FloatArray, Scores
from stream_vae.metrics import Metrics
from stream_vae.model.release import Preprocessing
from stream_vae.reservoir import Answer, Reservoir, layout_error
from stream_vae.sampling import LONGEST_ID, RANKS, memory_bound, pack, ranks
from stream_vae.stages.stamp import Stamps

log = logging.getLogger(__name__)

TIMEOUT_S = 0.2
"""For connecting and for each answer: a thread that waits longer only fills its queue."""
_AT_A_TIME = 512
_QUEUED_MOST = 4096
_REFRESH_S = 10.0
"""At the latest the cached threshold is asked for again: the reservoir may have been cleared meanwhile."""

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


class _Batch(NamedTuple):
    alert_ids: list[str]
    ranks: list[int]
    records: list[bytes]


class Offering:
    """Offers one worker's stamps to a reservoir.

    Parameters
    ----------
    reservoir : Reservoir
        Its client should time out after `TIMEOUT_S`; closed with this.
    preprocessing : Preprocessing
        Of the release that scores.
    capacity : int
        Stamps that the reservoir may hold.
    metrics : Metrics
        Where to count.
    queue_stamps : int
        Stamps that may wait, about 1 kB each and channel; more are dropped.
    retry_after_s : float
        How long Redis is left alone after a failure.
    """

    def __init__(
        self,
        reservoir: Reservoir,
        preprocessing: Preprocessing,
        capacity: int,
        metrics: Metrics,
        *,
        queue_stamps: int = _QUEUED_MOST,
        retry_after_s: float = 5.0,
    ) -> None:
        self._reservoir = reservoir
        self._preprocessing = preprocessing
        self._capacity = capacity
        self._metrics = metrics
        self._most = queue_stamps
        self._circuit = Circuit(retry_after_s)
        self._threshold = RANKS
        self._queue: deque[_Batch] = deque()
        self._queued = 0
        self._sending = 0
        self._changed = threading.Condition()
        self._closing = False
        self._complaint = ""
        bound = memory_bound(capacity, preprocessing) / 2**20
        log.info("reservoir at %s: up to %d stamps, %.0f MiB of its memory", reservoir.where, capacity, bound)
        self._thread = threading.Thread(target=self._run, name="reservoir", daemon=True)
        self._thread.start()

    def observe(self, alerts: Sequence[Alert], stamps: Stamps, codes: Codes, scores: Scores) -> None:
        """Offer the scoreable stamps of a batch; the pipeline calls this.

        Parameters
        ----------
        alerts : sequence of Alert
            One a row.
        stamps : Stamps
            As they were encoded.
        codes : Codes
            Not looked at.
        scores : Scores
            Not looked at.
        """
        del codes, scores
        scoreable = stamps.scoreable
        if scoreable.all():
            self.offer([alert.alert_id for alert in alerts], stamps.stamps)
        else:
            ids = [alert.alert_id for alert, usable in zip(alerts, scoreable.tolist(), strict=True) if usable]
            self.offer(ids, stamps.stamps[scoreable])

    def offer(self, alert_ids: Sequence[str], stamps: FloatArray) -> None:
        """Queue what could enter; never waits and never raises.

        Parameters
        ----------
        alert_ids : sequence of str
            One a stamp.
        stamps : ndarray
            (n, size, size, channels) scaled float32; copied.
        """
        if not alert_ids:
            return
        self._metrics.reservoir_offered.labels(self._metrics.survey).inc(len(alert_ids))
        try:
            self._offer(alert_ids, stamps)
        except Exception as error:  # noqa: BLE001 - whatever is wrong here, the alerts must be published
            self._dropped("error", len(alert_ids))
            self._complain(f"offering to the reservoir fails: {error!r}")

    def _offer(self, alert_ids: Sequence[str], stamps: FloatArray) -> None:
        if self._closing or self._circuit.state == "open":
            self._dropped("closing" if self._closing else "circuit_open", len(alert_ids))
            return
        order = ranks(self._reservoir.survey, alert_ids)
        rows = [int(row) for row in np.flatnonzero(order < self._threshold)]
        fitting = [row for row in rows if len(alert_ids[row].encode()) <= LONGEST_ID]
        self._dropped("id_too_long", len(rows) - len(fitting))
        for start in range(0, len(fitting), _AT_A_TIME):
            some = fitting[start : start + _AT_A_TIME]
            self._enqueue(_Batch([alert_ids[row] for row in some], order[some].tolist(), pack(stamps[some])))

    def _enqueue(self, batch: _Batch) -> None:
        with self._changed:
            room = self._queued + len(batch.ranks) <= self._most
            if room:
                self._queue.append(batch)
                self._queued += len(batch.ranks)
                self._changed.notify_all()
        if not room:
            self._dropped("queue_full", len(batch.ranks))

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
        self._send(_Batch([], [], []))  # the threshold first: a worker that starts anew need not send everything
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

    def _take(self) -> _Batch:
        """Join waiting batches to one call; where none waits, an empty one asks for the threshold."""
        batch = _Batch([], [], [])
        while self._queue and len(batch.ranks) + len(self._queue[0].ranks) <= _AT_A_TIME:
            part = self._queue.popleft()
            batch.alert_ids.extend(part.alert_ids)
            batch.ranks.extend(part.ranks)
            batch.records.extend(part.records)
        self._queued -= len(batch.ranks)
        self._sending = len(batch.ranks)
        return batch

    def _send(self, batch: _Batch) -> None:
        try:
            answer = self._reservoir.add(*batch, preprocessing=self._preprocessing, capacity=self._capacity)
        except (redis.RedisError, OSError) as error:
            self._failed(batch, "redis_error", f"the reservoir at {self._reservoir.where} fails: {error}.")
        except Exception as error:  # noqa: BLE001 - the thread must outlive it
            self._failed(batch, "error", f"offering to the reservoir fails: {error!r}")
        else:
            self._take_answer(batch, answer)

    def _take_answer(self, batch: _Batch, answer: Answer) -> None:
        if answer.status != "ok":
            self._failed(batch, "refused", self._refusal(answer))
            return
        if self._circuit.state != "closed":
            log.info("the reservoir at %s takes stamps again", self._reservoir.where)
            self._complaint = ""
        if answer.capacity < self._capacity:
            self._complain(
                f"the reservoir keeps {answer.capacity} stamps and not reservoir.capacity = {self._capacity}: "
                "a sample cannot grow; `stream-vae reservoir clear` begins a larger one."
            )
        self._circuit.succeeded()
        self._threshold = answer.threshold
        survey = self._metrics.survey
        self._metrics.reservoir_entered.labels(survey).inc(answer.entered)
        self._metrics.reservoir_stamps.labels(survey).set(answer.size)
        self._metrics.reservoir_circuit_open.labels(survey).set(0)

    def _refusal(self, answer: Answer) -> str:
        where = self._reservoir.where
        if answer.status == "layout":
            return str(layout_error(self._reservoir.survey, where, answer.found))
        return (
            f"the reservoir at {where} holds stamps that were prepared in another way (digest {answer.found}) than "
            "this release's; `stream-vae reservoir export` saves them and `clear` makes room for these."
        )

    def _failed(self, batch: _Batch, reason: str, complaint: str) -> None:
        self._circuit.failed()
        self._metrics.reservoir_circuit_open.labels(self._metrics.survey).set(1)
        self._dropped(reason, len(batch.ranks))
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
