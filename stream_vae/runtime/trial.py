"""A challenger in a worker: beside the current release or instead of it for a share of the alerts, until it fails."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from stream_vae.alert import Alert, Codes, Scores
from stream_vae.canary import Canary
from stream_vae.metrics import Metrics
from stream_vae.model.challenger import Challenger
from stream_vae.pipeline import Stages
from stream_vae.runtime.monitor import Gauge
from stream_vae.runtime.shadow import Shadow
from stream_vae.runtime.swap import Prepared
from stream_vae.stages.stamp import Stamps

log = logging.getLogger(__name__)

Observer = Callable[[Sequence[Alert], Stamps, Codes, Scores], None]


def together(observers: Sequence[Observer]) -> Observer | None:
    """Make one observer of several.

    Parameters
    ----------
    observers : sequence of callable
        Each is shown everything, in order.

    Returns
    -------
    callable or None
        None where there is none.
    """
    if len(observers) < 2:
        return observers[0] if observers else None

    def observe(alerts: Sequence[Alert], stamps: Stamps, codes: Codes, scores: Scores) -> None:
        for observer in observers:
            observer(alerts, stamps, codes, scores)

    return observe


class Running:
    """A trial that a worker holds.

    Parameters
    ----------
    challenger : Challenger
        What the store says of it.
    prepared : Prepared
        The release, warmed up.
    metrics : Metrics
        Where to count.
    gauge : Gauge, optional
        Counts what the challenger says.
    observers : sequence of callable
        Shown what a canary scores besides, as the current release's are.
    most_in_shadow : float
        The most of the alerts that is scored in the shadow.
    """

    def __init__(
        self,
        challenger: Challenger,
        prepared: Prepared,
        metrics: Metrics,
        *,
        gauge: Gauge | None,
        observers: Sequence[Observer],
        most_in_shadow: float,
    ) -> None:
        self.challenger = challenger
        self.release = prepared.release
        self._metrics = metrics
        self._shadow: Shadow | None = None
        self._canary: Canary | None = None
        name, share = self.release.id, challenger.share
        if challenger.mode == "shadow":
            share = min(share, most_in_shadow)
            self._shadow = Shadow(name, prepared.stages, share, metrics, gauge=gauge, on_failure=self._failed)
        else:
            shown = [*observers, *([gauge.observe] if gauge else []), self._count]
            stages = replace(prepared.stages, observe=together(shown))
            self._canary = Canary(name, stages, share, self._failed)
        metrics.trials.labels(metrics.survey, "taken").inc()
        log.info("release %s is on trial, %s, on %.3g of the alerts", name, challenger.mode, share)

    def arm(self, stages: Stages, observers: Sequence[Observer]) -> Stages:
        """Let the trial see the alerts of the current release.

        Parameters
        ----------
        stages : Stages
            Of the current release.
        observers : sequence of callable
            Shown what it scores.

        Returns
        -------
        Stages
            To score with.
        """
        shown = [*observers, self._shadow.observe] if self._shadow else observers
        return replace(stages, observe=together(shown), canary=self._canary)

    def close(self) -> None:
        """End it; may be called twice."""
        if self._shadow is not None:
            self._shadow.close(timeout_s=0)

    def _count(self, alerts: Sequence[Alert], stamps: Stamps, codes: Codes, scores: Scores) -> None:
        del stamps, codes, scores
        self._metrics.canary_alerts.labels(self._metrics.survey).inc(len(alerts))

    def _failed(self, why: str) -> None:
        del why  # it was said
        self._metrics.trials.labels(self._metrics.survey, "failed").inc()
