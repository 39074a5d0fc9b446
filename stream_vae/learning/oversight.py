"""What the trainer makes of the workers' reports: alarms that ask for a retraining, trials, releases to take back.

Workers report to Redis what each release does with the stream (`stream_vae.runtime.vitals`). A release that was
promoted shortly ago and does harm is taken back (`stream_vae.runtime.guard`); one on trial that does no worse than
what is served is promoted, and one that does is withdrawn. Trials that people began are left to people.
"""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import redis

from stream_vae.errors import RetriableError
from stream_vae.metrics import TrainerMetrics
from stream_vae.model.challenger import Challenger
from stream_vae.model.store import ReleaseStore
from stream_vae.runtime.guard import GuardLimits, breaches, guard, worse_than
from stream_vae.runtime.vitals import Vitals, read
from stream_vae.settings import Settings

log = logging.getLogger(__name__)

OURS = "retrained: "
"""What the reason of a trial begins with that a retraining began."""


class Oversight:
    """Over one survey's releases.

    Parameters
    ----------
    settings : Settings
        ``[retrain]``, ``[drift]`` and ``[release]``.
    store : ReleaseStore
        Where they are.
    client : redis.Redis
        Where workers report.
    survey : str
        The profile's name.
    metrics : TrainerMetrics
        Where to count.
    """

    def __init__(
        self, settings: Settings, store: ReleaseStore, client: Any, survey: str, metrics: TrainerMetrics
    ) -> None:
        self._section = settings.retrain
        self._limits = GuardLimits.of(settings)
        self._pinned = settings.release.id
        self._store = store
        self._client = client
        self._survey = survey
        self._metrics = metrics
        self.alarms: tuple[str, ...] = ()
        """What of the stream is no longer as the release that is served knows it."""
        self.on_trial = False
        """Whether a release is on trial, by whomever."""

    def look(self, now: datetime | None = None) -> None:
        """Read the reports once and act on them.

        Parameters
        ----------
        now : datetime, optional
            With its time zone; absent: now.

        Raises
        ------
        ConfigError
            If store or release are damaged.
        RetriableError
            If Redis or the store cannot be reached.
        """
        now = now or datetime.now(UTC)
        try:
            vitals = read(self._client, self._survey)
        except redis.RedisError as error:
            raise RetriableError(f"The workers' reports cannot be read: {error}.") from error
        self.alarms = self._alarms(vitals)
        if self._pinned is None and (reason := guard(vitals, self._store, self._limits, now=now)) is not None:
            self._metrics.rollbacks.labels(self._metrics.survey).inc()
            log.error("the release that was served is taken back: %s", reason)
        challenger = self._store.challenger()
        self.on_trial = challenger is not None
        if challenger is not None and challenger.reason.startswith(OURS):
            self._conclude(challenger, vitals, now)

    def _alarms(self, vitals: Vitals) -> tuple[str, ...]:
        served = self._store.resolve(self._pinned)
        found = vitals.releases.get(served)
        if found is None or found.alerts < self._limits.drift.least_alerts:
            return ()
        return tuple(sorted(breaches(self._store, served, found, self._limits.drift)))

    def _conclude(self, challenger: Challenger, vitals: Vitals, now: datetime) -> None:
        found = vitals.releases.get(challenger.release)
        if found is None or found.alerts < self._section.trial_alerts:
            if now - challenger.since > timedelta(hours=self._section.trial_h):
                scored = 0 if found is None else found.alerts
                self._end("expired", challenger, f"after {self._section.trial_h:g} h it has scored {scored} alerts")
            return
        served = self._store.resolve(self._pinned)
        reasons = worse_than(
            self._store, (challenger.release, found), (served, vitals.releases.get(served)), self._limits
        )
        if reasons:
            self._end("withdrawn", challenger, f"on trial it showed {', '.join(reasons)}, which {served} does not")
        else:
            self._end(
                "promoted", challenger, f"{found.alerts} alerts on trial ({challenger.mode}) showed nothing worse"
            )

    def _end(self, end: str, challenger: Challenger, reason: str) -> None:
        if end == "promoted":
            self._store.promote(challenger.release, reason=f"{OURS}{reason}")
        else:
            self._store.withdraw(reason)
        self.on_trial = False
        self._metrics.trials.labels(self._metrics.survey, end).inc()
        log.info("the trial of %s ended, %s: %s", challenger.release, end, reason)
