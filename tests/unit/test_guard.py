"""The guard: a new release that does worse than the last one is taken back, once, and none for the sky's fault."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from stream_vae.drift import DriftReference, Limits
from stream_vae.model.store import ReleaseStore
from stream_vae.runtime.guard import GuardLimits, guard, judge_serving
from stream_vae.runtime.vitals import ReleaseVitals, Vitals

from drifting import counted, referenced
from stage_parts import complete_settings

LIMITS = GuardLimits(drift=Limits(least_alerts=500))


@pytest.fixture
def served(tmp_path: Path) -> tuple[ReleaseStore, str, str]:
    """A store, the release that was current and the one that is."""
    store = ReleaseStore(str(tmp_path / "store"))
    old = referenced(store, tmp_path / "old", seed=1, promote=True).id
    new = referenced(store, tmp_path / "new", seed=2, promote=True).id
    return store, old, new


def fares(
    store: ReleaseStore, release: str, alerts: int = 2000, *, shift: float = 0.0, dead: int = 0, not_finite: int = 0
) -> ReleaseVitals:
    counts = counted(DriftReference.of(store.load(release)), alerts, 5, shift=shift)
    return ReleaseVitals(counts, alerts, dead, not_finite)


def test_a_release_that_fares_well_stays(served: tuple[ReleaseStore, str, str]) -> None:
    store, old, new = served
    vitals = Vitals({old: fares(store, old), new: fares(store, new)}, workers=1)
    assert judge_serving(vitals, store, LIMITS) is None
    assert guard(vitals, store, LIMITS) is None
    assert store.current() == new


def test_a_release_that_drifts_where_the_last_one_did_not_is_taken_back_once(
    served: tuple[ReleaseStore, str, str],
) -> None:
    store, old, new = served
    vitals = Vitals({old: fares(store, old), new: fares(store, new, shift=1.5)}, workers=1)
    reason = guard(vitals, store, LIMITS)
    assert reason is not None
    assert "drift of latent" in reason
    assert store.current() == old
    assert "by the guard: drift of" in store.history()[-1]["reason"]
    bad_again = Vitals({old: fares(store, old, shift=1.5), new: fares(store, new)}, workers=1)
    for vitals_now in (vitals, bad_again):
        assert guard(vitals_now, store, LIMITS) is None
    assert store.current() == old
    assert [event["event"] for event in store.history()].count("rolled_back") == 1


def test_a_drift_that_the_last_release_showed_too_is_the_skys(served: tuple[ReleaseStore, str, str]) -> None:
    store, old, new = served
    both = Vitals({old: fares(store, old, shift=1.5), new: fares(store, new, shift=1.5)}, workers=1)
    assert judge_serving(both, store, LIMITS) is None
    alone = Vitals({new: fares(store, new, shift=1.5)}, workers=1)
    assert judge_serving(alone, store, LIMITS) is None  # nobody knows what the last one showed


@pytest.mark.parametrize(
    ("fault", "words"), [({"dead": 60}, "its encoder fails on"), ({"not_finite": 60}, "not finite")]
)
def test_an_encoder_that_fails_is_blamed_unless_the_last_one_failed_too(
    served: tuple[ReleaseStore, str, str], fault: dict[str, int], words: str
) -> None:
    store, old, new = served
    worse = fares(store, new, dead=fault.get("dead", 0), not_finite=fault.get("not_finite", 0))
    as_bad = fares(store, old, dead=fault.get("dead", 0), not_finite=fault.get("not_finite", 0))
    assert judge_serving(Vitals({old: as_bad, new: worse}), store, LIMITS) is None
    for known in ({}, {old: fares(store, old)}):
        reason = judge_serving(Vitals({**known, new: worse}), store, LIMITS)
        assert reason is not None
        assert "3.0%" in reason
        assert words in reason


def test_too_few_alerts_and_an_old_release_are_not_judged(served: tuple[ReleaseStore, str, str]) -> None:
    store, old, new = served
    few = Vitals({old: fares(store, old), new: fares(store, new, 400, dead=400)})
    assert judge_serving(few, store, LIMITS) is None
    bad = Vitals({old: fares(store, old), new: fares(store, new, dead=2000)})
    assert judge_serving(bad, store, LIMITS) is not None
    later = datetime.now(UTC) + timedelta(seconds=3700)
    assert judge_serving(bad, store, LIMITS, now=later) is None
    assert judge_serving(Vitals(), store, LIMITS) is None


def test_the_first_release_has_nothing_to_go_back_to(tmp_path: Path) -> None:
    store = ReleaseStore(str(tmp_path / "store"))
    assert guard(Vitals(), store, LIMITS) is None
    only = referenced(store, tmp_path / "only", promote=True).id
    assert guard(Vitals({only: fares(store, only, dead=2000)}), store, LIMITS) is None
    assert store.current() == only


def test_a_release_that_is_not_current_any_more_is_left_alone(
    served: tuple[ReleaseStore, str, str], tmp_path: Path
) -> None:
    store, old, new = served
    bad = Vitals({old: fares(store, old), new: fares(store, new, dead=2000)})
    third = referenced(store, tmp_path / "third", seed=3, promote=True).id
    assert guard(bad, store, LIMITS) is None
    assert store.current() == third


def test_its_limits_are_the_settings() -> None:
    settings = complete_settings(
        release={"store": "unused", "probation_s": 60}, drift={"psi_limit": 0.7, "least_alerts": 300}
    )
    assert GuardLimits.of(settings) == GuardLimits(probation_s=60, drift=Limits(0.7, 300))
