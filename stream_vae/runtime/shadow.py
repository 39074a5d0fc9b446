"""A challenger in the shadow: it scores some of the stamps that the current release has scored, and publishes nothing.

The worker's thread copies the stamps of the chosen alerts into a bounded queue; a thread of its own encodes and scores
them and counts where the two differ. A challenger that is slow misses alerts, and one that fails is dropped: no alert
waits for it.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from stream_vae.alert import Alert, Codes, FloatArray, Scores
from stream_vae.canary import chosen
from stream_vae.metrics import Metrics
from stream_vae.pipeline import Stages
from stream_vae.runtime.monitor import Gauge
from stream_vae.stages.stamp import Stamps

log = logging.getLogger(__name__)

_QUEUED_MOST = 1024
"""Stamps that may wait: about two megabytes for each channel."""


class _Batch(NamedTuple):
    bands: Sequence[str | None]
    stamps: Stamps
    real_score: FloatArray


class Shadow:
    """Lets a challenger score a share of the alerts beside the current release.

    Parameters
    ----------
    release_id : str
        The challenger's.
    stages : Stages
        Warmed up, of the same preprocessing as the current release's.
    share : float
        Of the alerts.
    metrics : Metrics
        Where differences are counted.
    gauge : Gauge, optional
        Counts what the challenger says.
    on_failure : callable, optional
        Told why, once, when it is dropped.
    """

    def __init__(
        self,
        release_id: str,
        stages: Stages,
        share: float,
        metrics: Metrics,
        *,
        gauge: Gauge | None = None,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        self.release_id = release_id
        self.share = share
        self.dropped = False
        self._stages = stages
        self._metrics = metrics
        self._gauge = gauge
        self._on_failure = on_failure
        self._queue: deque[_Batch] = deque()
        self._queued = 0
        self._working = False
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def observe(self, alerts: Sequence[Alert], stamps: Stamps, codes: Codes, scores: Scores) -> None:
        """Set the chosen alerts of a batch aside; the pipeline calls this.

        Parameters
        ----------
        alerts : sequence of Alert
            One a row.
        stamps : Stamps
            As they were encoded.
        codes : Codes
            Of the current release; not looked at.
        scores : Scores
            Of the current release, which are compared with.
        """
        del codes
        if self.dropped or self._closing:
            return
        try:
            self._set_aside(alerts, stamps, scores)
        except Exception as error:  # noqa: BLE001 - whatever is wrong here, the alerts must be published
            self._drop(f"{type(error).__name__}: {error}")

    def _set_aside(self, alerts: Sequence[Alert], stamps: Stamps, scores: Scores) -> None:
        rows = np.flatnonzero(chosen(self.release_id, [alert.alert_id for alert in alerts], self.share))
        if not len(rows):
            return
        some = [alerts[row] for row in rows.tolist()]
        bands = self._gauge.bands_of(some) if self._gauge else [None for _ in some]
        batch = _Batch(bands, Stamps(stamps.stamps[rows], stamps.quality[rows]), scores.real_score[rows])
        with self._changed:
            room = self._queued + len(rows) <= _QUEUED_MOST
            if room:
                self._queue.append(batch)
                self._queued += len(rows)
                self._changed.notify_all()
        if not room:
            self._metrics.shadow_skipped.labels(self._metrics.survey).inc(len(rows))

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was set aside is scored.

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
            return self._changed.wait_for(lambda: not self._queue and not self._working, timeout_s)

    def close(self, timeout_s: float = 1.0) -> None:
        """Score no more; may be called twice.

        Parameters
        ----------
        timeout_s : float
            Longest wait for the batch at hand; 0 leaves it to itself.
        """
        with self._changed:
            self._closing = True
            self._queue.clear()
            self._queued = 0
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if self._closing:
                    return
                batch = self._queue.popleft()
                self._queued -= len(batch.bands)
                self._working = True
            try:
                self._score(batch)
            except Exception as error:  # noqa: BLE001 - nothing that a challenger does may be felt elsewhere
                self._drop(f"{type(error).__name__}: {error}")
            with self._changed:
                self._working = False
                self._changed.notify_all()

    def _score(self, batch: _Batch) -> None:
        if self.dropped:
            return
        codes, stamps, poison = self._stages.encoder.encode(batch.stamps)
        scores = self._stages.scorer.score(codes)
        if self._gauge is not None:
            self._gauge.count(batch.bands, stamps, codes, scores)
        survey = self._metrics.survey
        self._metrics.shadow_alerts.labels(survey).inc(len(batch.bands))
        both = np.isfinite(scores.real_score) & np.isfinite(batch.real_score)
        theirs, ours = scores.real_score[both], batch.real_score[both]
        difference = self._metrics.shadow_difference.labels(survey)
        for value in np.abs(theirs - ours).tolist():
            difference.observe(value)
        self._metrics.shadow_disagreements.labels(survey).inc(int(np.count_nonzero((theirs > 0.5) != (ours > 0.5))))
        if poison:
            self._drop(f"its encoder fails on {len(poison)} of {len(batch.bands)} alerts")

    def _drop(self, why: str) -> None:
        if self.dropped:
            return
        self.dropped = True
        log.error("challenger %s in the shadow is dropped: %s", self.release_id, why)
        if self._on_failure is not None:
            self._on_failure(why)
