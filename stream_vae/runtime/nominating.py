"""Which alerts of a batch to offer to the reservoir: those that could enter a stratum, and those that it waits for.

Once the strata are full nearly every alert ends at a comparison of its ranks with the thresholds, and nothing of it
is decoded. Of the others the filter is read; whether the source was injected; and, while alerts that label themselves
are wanted, whether it is a known asteroid.
"""

from collections.abc import Sequence
from time import time

import numpy as np
import numpy.typing as npt

from stream_vae.alert import Alert, FloatArray
from stream_vae.errors import RejectedAlertError
from stream_vae.labels.alerts import Facts
from stream_vae.labels.label import REAL, UNKNOWN, Provenance
from stream_vae.labels.solar_system import Tolerances, is_near, judge
from stream_vae.reservoir_scripts import Batch
from stream_vae.sampling import (
    KNOWN,
    LONGEST_ID,
    PROVENANCES,
    SAMPLED,
    Floats,
    Heads,
    could_enter,
    digests,
    pack,
    sampled_ranks,
)
from stream_vae.stages.stamp import Stamps
from stream_vae.surveys import Profile, SolarSystem

_KNOWN = SAMPLED.index(KNOWN)
_INJECTION, _SOLAR_SYSTEM = (
    PROVENANCES.index(provenance) for provenance in (Provenance.INJECTION, Provenance.SOLAR_SYSTEM)
)
_TOLERANCES = Tolerances()
_DISTANCE, _OBJECT_ID = "solar_system.distance_arcsec", "solar_system.object_id"
_BAND_BYTES = 8
_TOLD = tuple((name, f"solar_system.{name}") for name in SolarSystem.model_fields)


class Nominator:
    """Chooses by what the reservoir last said; its attributes are set by the thread that asks it.

    Parameters
    ----------
    survey : str
        That the reservoir is of.
    profile : Profile
        Tells how filters are called and what alerts say of themselves.
    recent_days : float
        Until the reservoir says which it is.
    """

    def __init__(self, survey: str, profile: Profile, recent_days: float) -> None:
        self._survey = survey
        self._profile = profile
        self._tells = profile.solar_system is not None or profile.injection is not None
        self.recent_days = recent_days
        self.thresholds: tuple[float, ...] = (np.inf,) * len(SAMPLED)
        self.waiting: frozenset[str] = frozenset()
        """Alerts that were labelled and are to be sent whatever their ranks are."""
        self.nominate([], np.empty(0, np.float32))  # compiles now, and not while alerts wait

    def nominate(self, alerts: Sequence[Alert], novelty: FloatArray) -> tuple[npt.NDArray[np.intp], Floats]:
        """Compare ranks with thresholds; nothing is decoded.

        Parameters
        ----------
        alerts : sequence of Alert
            With usable stamps.
        novelty : ndarray
            (n,) NaN where it is not known.

        Returns
        -------
        rows : ndarray of int
            What could enter, or is waited for.
        ranks : ndarray
            (rows, 4) as `Batch` has them, as if all of them labelled themselves; inf where an alert cannot enter.
        """
        ids = [alert.alert_id for alert in alerts]
        hashes, thresholds, waiting = digests(self._survey, ids), self._thresholds(), self.waiting
        rows = could_enter(hashes, novelty, self.recent_days, time(), thresholds)
        if waiting:
            asked = [row for row, alert_id in enumerate(ids) if alert_id in waiting]
            rows = np.union1d(rows, np.array(asked, np.intp))
        if not rows.size:
            return rows, np.empty((0, len(SAMPLED)))
        some = [alerts[row] for row in rows.tolist()]
        ranks = sampled_ranks(hashes[rows], _times(some), novelty[rows], self.recent_days)
        enters = ranks < thresholds
        # One at the threshold may be the one there, whose record says that it is known: a later one has to say so too.
        enters[:, _KNOWN] = ranks[:, _KNOWN] <= thresholds[_KNOWN]
        return rows, np.where(enters, ranks, np.inf)

    def _thresholds(self) -> tuple[float, ...]:
        """No alert enters `known` where the profile does not say what alerts tell of themselves."""
        return self.thresholds if self._tells else (*self.thresholds[:_KNOWN], -np.inf)

    def batch(self, alerts: Sequence[Alert], stamps: Stamps, novelty: FloatArray, ranks: Floats) -> tuple[Batch, int]:
        """Decode what is kept of nominated alerts, and pack them.

        Parameters
        ----------
        alerts : sequence of Alert
            The nominated ones.
        stamps : Stamps
            Theirs.
        novelty : ndarray
            (n,).
        ranks : ndarray
            (n, 4) from `nominate`.

        Returns
        -------
        batch : Batch
            Without those that turn out to belong nowhere.
        too_long : int
            Alerts that were left out because their ids have no end.
        """
        rows, bands, own, too_long = [], [], [], 0
        for row, (alert, reached) in enumerate(zip(alerts, np.isfinite(ranks).tolist(), strict=True)):
            if len(alert.alert_id.encode()) > LONGEST_ID:
                too_long += 1
                continue
            found = self._own_label(alert, asteroids=reached[_KNOWN])
            # An injected source is no natural one: the samples are of what the sky shows.
            samples = found != _INJECTION and any(reached[:_KNOWN])
            if samples or (found and reached[_KNOWN]) or alert.alert_id in self.waiting:
                rows.append(row)
                own.append(found)
                bands.append(_shortened(self._profile.band(_field(alert, "band")) or "", _BAND_BYTES))
        codes = np.array(own, np.uint8)
        chosen = ranks[rows]
        chosen[codes == _INJECTION, :_KNOWN] = np.inf
        chosen[codes == 0, _KNOWN] = np.inf
        alerts = [alerts[row] for row in rows]
        heads = Heads(
            _times(alerts),
            novelty[rows],
            stamps.quality[rows],
            np.where(codes > 0, REAL, UNKNOWN).astype(np.int8),
            codes,
            np.array(bands, f"S{_BAND_BYTES}"),
        )
        return Batch([alert.alert_id for alert in alerts], chosen, pack(stamps.stamps[rows], heads)), too_long

    def _own_label(self, alert: Alert, *, asteroids: bool) -> int:
        """Give the provenance of the label that the alert gives itself; 0 for none."""
        if self._profile.injection is not None and _field(alert, "injection.injected"):
            return _INJECTION
        if not asteroids or self._profile.solar_system is None:
            return 0
        if not is_near(_field(alert, _DISTANCE), _field(alert, _OBJECT_ID), _TOLERANCES):
            return 0
        told = {name: _field(alert, path) for name, path in _TOLD}
        verdict = judge(Facts(alert.alert_id, None, None, None, told), _TOLERANCES)
        return 0 if verdict.label is None else _SOLAR_SYSTEM


def _times(alerts: Sequence[Alert]) -> Floats:
    """When alerts were published: not in the future, where no alert would ever age."""
    now = time()
    times = np.array([alert.packet.timestamp_ms for alert in alerts], np.float64) / 1000.0  # None becomes NaN
    return np.fmin(times, now)


def _field(alert: Alert, name: str) -> object:
    """Read one field; a text that is none says nothing."""
    try:
        return alert.field(name)
    except RejectedAlertError:
        return None


def _shortened(text: str, most: int) -> bytes:
    return text.encode()[:most].decode("utf-8", "ignore").encode()
