"""A challenger on trial in the stream: it scores and publishes a share of the alerts instead of the current release.

Which ones is decided by a keyed hash of the alert's id, so that an alert that is delivered again goes the same way. A
challenger that fails costs no alert: it is dropped there and then, and the current release scores the whole batch.
"""

import logging
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from stream_vae.alert import Alert, Outcome, Rejected
from stream_vae.errors import RetriableError
from stream_vae.metrics import Metrics
from stream_vae.pipeline import Scored, Stages, messages, score
from stream_vae.stages.stamp import Stamps

log = logging.getLogger(__name__)


def chosen(release_id: str, alert_ids: Sequence[str], share: float) -> NDArray[np.bool_]:
    """Choose alerts for a challenger: the same ones whenever and wherever they are seen.

    Parameters
    ----------
    release_id : str
        The challenger's: each has a choice of its own.
    alert_ids : sequence of str
        Any.
    share : float
        Of all alerts, 0 to 1.

    Returns
    -------
    ndarray of bool
        (n,).
    """
    key = blake2b(release_id.encode(), digest_size=32).digest()
    joined = b"".join(blake2b(name.encode(), digest_size=8, key=key).digest() for name in alert_ids)
    # Below 2**53 a float64 holds every number: a share of 1 is all of them, and one of 0 none.
    picked: NDArray[np.bool_] = (np.frombuffer(joined, "<u8") >> np.uint64(11)) < share * 2.0**53
    return picked


class Canary:
    """A challenger that publishes.

    Parameters
    ----------
    release_id : str
        Its id.
    stages : Stages
        Warmed up, of the same preprocessing as the current release's.
    share : float
        Of the alerts that it is to score.
    on_failure : callable, optional
        Told why, once, when it is dropped.
    """

    def __init__(
        self, release_id: str, stages: Stages, share: float, on_failure: Callable[[str], None] | None = None
    ) -> None:
        self.release_id = release_id
        self.share = share
        self.dropped = False
        self._stages = stages
        self._on_failure = on_failure

    def divide(
        self, alerts: Sequence[Alert], stamps: Stamps, stages: Stages, metrics: Metrics
    ) -> list[Outcome | Rejected]:
        """Score a batch with two releases.

        Parameters
        ----------
        alerts : sequence of Alert
            Decoded alerts.
        stamps : Stamps
            One row an alert.
        stages : Stages
            Of the current release.
        metrics : Metrics
            Where time, scores and flags are counted.

        Returns
        -------
        list of Outcome or Rejected
            One an alert, in the order of the alerts.

        Raises
        ------
        RetriableError
            If something outside cannot be reached for now; nothing was published.
        """
        picked = self._picked(alerts)
        theirs, ours = np.flatnonzero(picked), np.flatnonzero(~picked)
        # All is scored before the first is shown to an observer: a batch that must be tried again is shown once.
        tried = self._try(_rows(alerts, stamps, theirs), metrics) if len(theirs) else None
        left = score(*_rows(alerts, stamps, ours), stages, metrics) if tried and len(ours) else None
        published = self._publish(tried, metrics) if tried else None
        if published is None:
            return messages(score(alerts, stamps, stages, metrics), metrics)
        results = dict(zip(theirs.tolist(), published, strict=True))
        if left is not None:
            results |= zip(ours.tolist(), messages(left, metrics), strict=True)
        return [results[row] for row in range(len(alerts))]

    def _picked(self, alerts: Sequence[Alert]) -> NDArray[np.bool_]:
        if self.dropped:
            return np.zeros(len(alerts), np.bool_)
        return chosen(self.release_id, [alert.alert_id for alert in alerts], self.share)

    def _try(self, part: tuple[Sequence[Alert], Stamps], metrics: Metrics) -> Scored | None:
        try:
            found = score(*part, self._stages, metrics)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the alerts must be published
            self._drop(f"{type(error).__name__}: {error}")
            return None
        if found.poison:
            self._drop(f"its encoder fails on {len(found.poison)} of {len(part[0])} alerts")
            return None
        return found

    def _publish(self, found: Scored, metrics: Metrics) -> list[Outcome | Rejected] | None:
        try:
            return messages(found, metrics)
        except RetriableError:
            raise  # the registry's fault
        except Exception as error:  # noqa: BLE001 - codes or scores of a shape that nobody expects
            self._drop(f"{type(error).__name__}: {error}")
            return None

    def _drop(self, why: str) -> None:
        self.dropped = True
        log.error("challenger %s is dropped, and the current release scores all alerts: %s", self.release_id, why)
        if self._on_failure is not None:
            self._on_failure(why)


def _rows(alerts: Sequence[Alert], stamps: Stamps, rows: NDArray[np.intp]) -> tuple[list[Alert], Stamps]:
    return [alerts[row] for row in rows], Stamps(stamps.stamps[rows], stamps.quality[rows])
