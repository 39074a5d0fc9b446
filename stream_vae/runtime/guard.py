"""Whether a release that became current shortly ago should be taken back: judged by what the workers report.

A drift of the sky is no release's fault, so a new release is blamed only for what its predecessor did not show with
its last alerts. Nothing here runs by itself: whoever watches over releases calls `guard` now and then.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from stream_vae.drift import ALL, DriftReference, Limits, drift
from stream_vae.errors import ConfigError
from stream_vae.model.store import ReleaseStore
from stream_vae.runtime.vitals import ReleaseVitals, Vitals
from stream_vae.settings import Settings


@dataclass(frozen=True)
class GuardLimits:
    """What a new release may do.

    Parameters
    ----------
    probation_s : float
        So long it is judged after it became current.
    drift : Limits
        Of its figures, and the least number of alerts to judge by.
    not_finite_share : float
        Of its alerts that its encoder gives NaN or infinity for.
    dead_letter_share : float
        Of its alerts that its encoder fails on.
    """

    probation_s: float = 3600.0
    drift: Limits = field(default_factory=Limits)
    not_finite_share: float = 0.01
    dead_letter_share: float = 0.01

    @classmethod
    def of(cls, settings: Settings) -> "GuardLimits":
        """Take them from the settings.

        Parameters
        ----------
        settings : Settings
            ``release.probation_s`` and ``[drift]``.

        Returns
        -------
        GuardLimits
            With the default shares.
        """
        return cls(settings.release.probation_s, Limits(settings.drift.psi_limit, settings.drift.least_alerts))


def judge_serving(
    vitals: Vitals, store: ReleaseStore, limits: GuardLimits | None = None, *, now: datetime | None = None
) -> str | None:
    """Tell whether the current release should be taken back.

    Parameters
    ----------
    vitals : Vitals
        From `stream_vae.runtime.vitals.read`.
    store : ReleaseStore
        Where it is current.
    limits : GuardLimits, optional
        Absent: the defaults.
    now : datetime, optional
        With its time zone; absent: now.

    Returns
    -------
    str or None
        The reason; None if there is none: it is no longer on probation, was rolled back to, has no predecessor, has
        scored too few alerts, or does no worse than its predecessor did. Drift is held against it only where its
        predecessor's figures are known; a failing encoder always.

    Raises
    ------
    ConfigError
        If the store's pointer or history is damaged, or a release in it.
    RetriableError
        If the store cannot be reached.
    """
    limits = limits or GuardLimits()
    event = _became_current(store)
    if event is None or event["event"] != "promoted" or not event.get("previous"):
        return None
    age_s = ((now or datetime.now(UTC)) - datetime.fromisoformat(event["time"])).total_seconds()
    if age_s > limits.probation_s:
        return None
    release, previous = str(event["release"]), str(event["previous"])
    found, before = vitals.releases.get(release), vitals.releases.get(previous)
    if release == previous or found is None or found.alerts < limits.drift.least_alerts:
        return None
    reasons = worse_than(store, (release, found), (previous, before), limits)
    if not reasons:
        return None
    return f"{', '.join(reasons)}, which {previous} did not show ({found.alerts} alerts, {age_s:.0f} s after)"


def guard(
    vitals: Vitals, store: ReleaseStore, limits: GuardLimits | None = None, *, now: datetime | None = None
) -> str | None:
    """Take the current release back if it should be; may be called again and again.

    Parameters
    ----------
    vitals : Vitals
        From `stream_vae.runtime.vitals.read`.
    store : ReleaseStore
        Where it is current.
    limits : GuardLimits, optional
        Absent: the defaults.
    now : datetime, optional
        With its time zone; absent: now.

    Returns
    -------
    str or None
        The reason, if it was taken back; what is current then was rolled back to, and is not judged again.

    Raises
    ------
    ConfigError
        If the store's pointer or history is damaged, or there is nothing to roll back to.
    RetriableError
        If the store cannot be reached.
    """
    judged = store.current()
    reason = judge_serving(vitals, store, limits, now=now)
    if reason is None or store.current() != judged:
        return None
    store.rollback(reason=f"by the guard: {reason}")
    return reason


def worse_than(
    store: ReleaseStore,
    release: tuple[str, ReleaseVitals],
    other: tuple[str, ReleaseVitals | None],
    limits: GuardLimits,
) -> list[str]:
    """Tell what a release does that another one does not.

    Parameters
    ----------
    store : ReleaseStore
        With both.
    release, other : tuple of str and ReleaseVitals
        Their ids and what workers report of them; nothing of the other one, if None.
    limits : GuardLimits
        What a release may do.

    Returns
    -------
    list of str
        Empty if it does no worse.

    Raises
    ------
    ConfigError
        If a release is damaged.
    RetriableError
        If the store cannot be reached.
    """
    (name, found), (previous, before) = release, other
    reasons = _failures(found, before, limits)
    if reasons or before is None or before.alerts < limits.drift.least_alerts:
        return reasons
    new = breaches(store, name, found, limits.drift) - breaches(store, previous, before, limits.drift)
    return [f"drift of {figure}" for figure in sorted(new)]


def _became_current(store: ReleaseStore) -> Mapping[str, Any] | None:
    """The event that made the current release current."""
    current = store.current()
    served = [event for event in store.history() if event["event"] in ("promoted", "rolled_back")]
    return served[-1] if served and served[-1]["release"] == current else None


def _failures(found: ReleaseVitals, before: ReleaseVitals | None, limits: GuardLimits) -> list[str]:
    reasons = []
    for name, limit, words in (
        ("not_finite", limits.not_finite_share, "codes that are not finite"),
        ("dead_lettered", limits.dead_letter_share, "alerts that its encoder fails on"),
    ):
        share = getattr(found, name) / found.alerts
        earlier = getattr(before, name) / before.alerts if before is not None and before.alerts else 0.0
        if share > limit >= earlier:
            reasons.append(f"{share:.1%} {words}")
    return reasons


def breaches(store: ReleaseStore, release_id: str, vitals: ReleaseVitals, limits: Limits) -> set[str]:
    """Name the figures of all alerts that are over the limit.

    Parameters
    ----------
    store : ReleaseStore
        With the release.
    release_id : str
        Its id.
    vitals : ReleaseVitals
        What workers report of it.
    limits : Limits
        Of drift.

    Returns
    -------
    set of str
        From `stream_vae.drift.FIGURES`.

    Raises
    ------
    ConfigError
        If the release is damaged, or the report is of other bins.
    RetriableError
        If the store cannot be reached.
    """
    reference = DriftReference.of(store.load(release_id))
    if vitals.counts.latents.shape[1:] != (len(reference.latent_edges), reference.latent_edges.shape[1] + 1):
        raise ConfigError(f"What workers report of {release_id} is not in the bins of its reference.")
    return {figure.name for figure in drift(reference, vitals.counts, limits) if figure.alarm and figure.band == ALL}
