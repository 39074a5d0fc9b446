"""Drift: what is counted, how windows add up, and what is told from a reference."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stream_vae.drift import BINS, Counts, DriftReference, Figure, Limits, Tally, drift
from stream_vae.model.store import ReleaseStore
from stream_vae.quality import Quality

from drifting import counted, referenced, sample
from releases import LATENTS, make_release

NOTHING = np.zeros(0, np.float32)
CLEAN = {"masked": (20.0, 2000.0), "unscoreable": (2.0, 2000.0)}


def reference(count: int = 2000, bands: np.ndarray | None = None, errors: np.ndarray = NOTHING) -> DriftReference:
    z_mean, score = sample(count, 1)
    return DriftReference.from_sample(z_mean, score, np.full(count, "") if bands is None else bands, errors, CLEAN)


def by_name(figures: tuple[Figure, ...], band: str = "all") -> dict[str, Figure]:
    return {figure.name: figure for figure in figures if figure.band == band}


def alarms(figures: tuple[Figure, ...]) -> set[tuple[str, str]]:
    return {(figure.name, figure.band) for figure in figures if figure.alarm}


def plain(counts: Counts) -> str:
    return json.dumps(counts.to_plain(), sort_keys=True)


# counting


def test_every_alert_is_counted_once_in_its_band_and_each_unit_has_a_bin_for_it() -> None:
    tally = Tally(reference(), ("g", "r"))
    z_mean, score = sample(300, 5)
    z_mean[:10], score[:10] = np.nan, np.nan
    quality = np.zeros(300, np.uint32)
    quality[:10] = Quality.BLANK
    quality[5:25] |= np.uint32(Quality.MASKED_PIXELS)
    tally.add(tally.numbers(["g"] * 100 + ["r"] * 150 + ["z", None] * 25), z_mean, score, quality)
    counts = tally.counts()
    assert counts.bands == ("g", "r", "other")
    assert counts.alerts.tolist() == [100, 150, 50]
    assert counts.unscoreable.tolist() == [10, 0, 0]
    assert counts.masked.tolist() == [20, 0, 0]
    assert counts.latents.sum(axis=2).tolist() == [[90] * LATENTS, [150] * LATENTS, [50] * LATENTS]
    assert counts.real_score.sum(axis=1).tolist() == [90, 150, 50]


def test_bins_are_those_that_a_histogram_has() -> None:
    known = reference()
    tally = Tally(known, ())
    z_mean, score = sample(500, 6)
    tally.add(tally.numbers([None] * 500), z_mean, score, np.zeros(500, np.uint32))
    for unit in (0, 7, LATENTS - 1):
        edges = [-np.inf, *known.latent_edges[unit].tolist(), np.inf]
        assert tally.counts().latents.sum(axis=0)[unit].tolist() == np.histogram(z_mean[:, unit], edges)[0].tolist()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(0, 10**6))
def test_counts_of_parts_add_up_to_those_of_the_whole(sizes: list[int], seed: int) -> None:
    known = _SHARED
    z_mean, score = sample(sum(sizes), seed)
    bands = np.random.default_rng(seed).choice(["g", "r", "i"], sum(sizes)).tolist()
    quality = np.zeros(sum(sizes), np.uint32)
    whole, parts, start = Tally(known, ("g", "r")), [], 0
    whole.add(whole.numbers(bands), z_mean, score, quality)
    for size in sizes:
        part, rows = Tally(known, ("g", "r")), slice(start, start + size)
        part.add(part.numbers(bands[rows]), z_mean[rows], score[rows], quality[rows])
        parts.append(part.counts())
        start += size
    joined = parts[0]
    for each in parts[1:]:
        joined = joined + each
    assert plain(joined) == plain(whole.counts())


_SHARED = reference()


def test_workers_that_know_other_bands_add_up_too() -> None:
    first, second = Tally(_SHARED, ("g",)), Tally(_SHARED, ("r", "g"))
    for tally, bands in ((first, ["g", "r"]), (second, ["g", "r"])):
        tally.add(tally.numbers(bands), *sample(2, 3), np.zeros(2, np.uint32))
    joined = first.counts() + second.counts()
    assert dict(zip(joined.bands, joined.alerts.tolist(), strict=True)) == {"g": 2, "other": 1, "r": 1}


def test_counts_survive_json_and_what_is_no_counts_is_refused() -> None:
    counts = counted(_SHARED, 50, 3)
    text = json.dumps(counts.to_plain())
    assert plain(Counts.from_plain(json.loads(text))) == plain(counts)
    for change in (
        {"alerts": [1]},
        {"alerts": [-1, 0, 0]},
        {"alerts": [0.5, 0, 0]},
        {"latents": [[1], [2], [3]]},
        {"latents": [[[1], [2, 3]]]},
        {"bands": 7},
        {"bands": [str(n) for n in range(99)]},
        {"real_score": "many"},
        {"masked": None},
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - whatever its words are
            Counts.from_plain(json.loads(text) | change)


def test_counts_in_other_bins_do_not_add() -> None:
    z_mean, score = sample(2000, 1, latents=5)
    other = DriftReference.from_sample(z_mean, score, np.full(2000, ""), NOTHING, {})
    tally = Tally(other, ("g", "r"))
    with pytest.raises(ValueError, match="do not add"):
        counted(_SHARED, 10, 1) + tally.counts()


# comparing


def test_a_stream_like_the_reference_has_an_index_about_zero_without_its_bias() -> None:
    psi = [by_name(drift(_SHARED, counted(_SHARED, 2000, seed), Limits()))["latent_mean"].psi for seed in range(20, 40)]
    # What was subtracted is (10 - 1) (1 / 2000 + 1 / 2000) = 0.009; below zero it is cut off, unit by unit.
    assert 0 <= np.mean(psi) < 0.004
    assert not any(alarms(drift(_SHARED, counted(_SHARED, 2000, seed), Limits())) for seed in range(20, 40))


def test_the_bias_that_is_subtracted_is_the_one_there_is() -> None:
    rng = np.random.default_rng(3)
    n, m, values = 1000, 2000, []
    for _ in range(2000):
        a, e = (rng.multinomial(size, [1 / BINS] * BINS) / size for size in (n, m))
        values.append(((a - e) * np.log(a / e)).sum())
    assert np.mean(values) == pytest.approx((BINS - 1) * (1 / n + 1 / m), rel=0.05)


def test_a_shift_is_told_with_its_worst_unit_and_too_few_alerts_say_nothing() -> None:
    counts = counted(_SHARED, 2000, 5, shift=1.0)
    found = by_name(drift(_SHARED, counts, Limits()))
    assert found["latent"].alarm
    assert found["latent_mean"].alarm
    assert found["real_score"].alarm
    # Two normal distributions a deviation apart: the index is 1 for fine bins, and KS is 0.383.
    assert found["latent_mean"].psi == pytest.approx(1.0, abs=0.12)
    assert found["latent_mean"].ks == pytest.approx(0.383, abs=0.03)
    assert drift(_SHARED, counted(_SHARED, 900, 5, shift=1.0), Limits(least_alerts=1000)) == ()


def test_one_unit_that_changes_is_named() -> None:
    tally = Tally(_SHARED, ())
    z_mean, score = sample(2000, 8)
    z_mean[:, 13] *= 3
    tally.add(tally.numbers([None] * 2000), z_mean, score, np.zeros(2000, np.uint32))
    found = by_name(drift(_SHARED, tally.counts(), Limits()))
    assert (found["latent"].unit, found["latent"].alarm, found["latent_mean"].alarm) == (13, True, False)


def test_a_unit_that_says_nothing_is_not_listened_to() -> None:
    z_mean, score = sample(2000, 1)
    z_mean[:, 4] *= 0.01
    known = DriftReference.from_sample(z_mean, score, np.full(2000, ""), NOTHING, {})
    tally = Tally(known, ())
    window, window_score = sample(2000, 9)
    window[:, 4] = 0.05
    tally.add(tally.numbers([None] * 2000), window, window_score, np.zeros(2000, np.uint32))
    assert alarms(drift(known, tally.counts(), Limits())) == set()


def test_another_mix_of_filters_is_no_drift_where_the_reference_knows_the_bands() -> None:
    z_mean, score = sample(4000, 1)
    bands = np.array(["g", "r"] * 2000)
    z_mean[bands == "r"] += 1.5
    window, window_score = sample(2000, 7)
    of = ["g"] * 200 + ["r"] * 1800
    window[200:] += 1.5
    found = {}
    for name, known_bands in (("by band", bands), ("unknown", np.full(4000, ""))):
        known = DriftReference.from_sample(z_mean, score, known_bands, NOTHING, {})
        tally = Tally(known, ("g", "r"))
        tally.add(tally.numbers(of), window, window_score, np.zeros(2000, np.uint32))
        found[name] = alarms(drift(known, tally.counts(), Limits(psi=0.2)))
    assert found["by band"] == set()
    assert ("latent", "all") in found["unknown"]


def test_one_band_that_breaks_is_told_by_its_name() -> None:
    z_mean, score = sample(4000, 1)
    known = DriftReference.from_sample(z_mean, score, np.array(["g", "r"] * 2000), NOTHING, {})
    counts = counted(known, 6000, 7) + counted(known, 1500, 8, band="r", shift=1.5)
    found = alarms(drift(known, counts, Limits()))
    assert ("latent", "r") in found
    assert not {name for name, band in found if band == "g"}


def test_squared_errors_and_flags_are_judged_where_the_reference_knows_them() -> None:
    rng = np.random.default_rng(4)
    known = reference(errors=rng.gamma(4, 1, 1000).astype(np.float32))
    quality = np.zeros(2000, np.uint32)
    quality[:100] = Quality.MISSING_CUTOUT
    ordinary = counted(known, 2000, 6, errors=rng.gamma(4, 1, 400).astype(np.float32))
    assert alarms(drift(known, ordinary, Limits())) == set()
    bad = counted(known, 2000, 6, errors=rng.gamma(4, 2, 400).astype(np.float32), quality=quality)
    assert {("squared_error", "all"), ("unscoreable", "all")} <= alarms(drift(known, bad, Limits()))
    few = counted(known, 2000, 6, errors=rng.gamma(4, 2, 100).astype(np.float32))
    assert "squared_error" not in by_name(drift(known, few, Limits()))
    blind = DriftReference.from_sample(*sample(2000, 1), np.full(2000, ""), NOTHING, {})
    assert set(by_name(drift(blind, counted(blind, 2000, 6, quality=quality), Limits()))) == {
        "latent",
        "latent_mean",
        "real_score",
    }


# the reference of a release


def test_a_release_without_a_sample_is_counted_and_never_judged(tmp_path: Path) -> None:
    store = ReleaseStore(str(tmp_path / "store"))
    known = DriftReference.of(store.load(make_release(store, tmp_path / "new").id))
    counts = counted(known, 2000, 3)
    assert counts.total == 2000
    assert drift(known, counts, Limits()) == ()


def test_what_the_reference_was_told_is_read_again(tmp_path: Path) -> None:
    store = ReleaseStore(str(tmp_path / "store"))
    bare = DriftReference.of(store.load(referenced(store, tmp_path / "bare").id))
    assert bare.bands == ()
    assert bare.shares == {}
    assert bare.squared_error.sum() == 0
    bands = np.array(["g"] * 1850 + ["r"] * 150)
    known = referenced(
        store,
        tmp_path / "known",
        bands=bands,
        squared_error=np.ones(300, np.float32),
        shares={"masked": 0.02},
        shares_of=5000,
    )
    found = DriftReference.of(store.load(known.id))
    assert found.bands == ("g",)  # of r there are too few to compare it with itself
    assert found.shares == {"masked": (100.0, 5000.0)}
    assert found.squared_error.sum() == 300
    assert set(by_name(drift(found, counted(found, 2000, 3), Limits()))) == {
        "latent",
        "latent_mean",
        "real_score",
        "masked",
    }
