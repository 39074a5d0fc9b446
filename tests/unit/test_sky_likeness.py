"""Simulating like a user's stamps: conditions near those that fit, a judge who lets pass, no labels."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from stream_vae.sky import Likeness, SimulatedStamps, match, matching, simulate_stamps
from stream_vae.sky.conditions import Conditions, draw_conditions
from stream_vae.sky.likeness import stamp_statistics
from stream_vae.sky.psf import Psf
from stream_vae.sky.simulate import draw_pair_conditions, simulate_pair


class Bright:
    """Takes stamps for the user's if their central pixel is their largest."""

    def predict_proba(self, statistics: np.ndarray) -> np.ndarray:
        own = (statistics[:, 0] > 0.999).astype(float)  # the ring of radius 0 comes first
        return np.stack([1 - own, own], axis=1)


@pytest.fixture(scope="module")
def sharp() -> Conditions:
    psf = Psf(2.2, 3.5)
    return replace(
        draw_conditions(np.random.default_rng(3)), science_psf=psf, template_psf=Psf(2.0, 3.5), centre_on_peak=True
    )


def _one(conditions: Conditions) -> Likeness:
    """Only these conditions, and no judgement."""
    anything = DummyClassifier(strategy="prior").fit([[0], [0]], [0, 1])
    return Likeness((conditions,), np.ones(1), anything, ceiling=1e-9)


@pytest.fixture(scope="module")
def instrument(sharp: Conditions) -> SimulatedStamps:
    return simulate_stamps(200, seed=21, like=_one(sharp))


def test_conditions_are_near_the_one_that_fitted(sharp: Conditions) -> None:
    rng = np.random.default_rng(0)
    drawn = [_one(sharp).draw(rng) for _ in range(50)]
    widths = np.array([conditions.science_psf.fwhm_px for conditions in drawn])
    assert np.median(widths) == pytest.approx(2.2, rel=0.05)
    assert 0.02 < widths.std() / widths.mean() < 0.1
    assert all(conditions.resample_science == sharp.resample_science for conditions in drawn)
    assert all(abs(conditions.subpixel_x) <= 0.5 and conditions.noise_underestimate <= 1.0 for conditions in drawn)


def test_the_flux_scale_stays_near_one(sharp: Conditions) -> None:
    """Some percent of its error, not of itself: five percent would leave every star in the difference."""
    rng = np.random.default_rng(0)
    off = [_one(replace(sharp, flux_scale=1.01)).draw(rng).flux_scale - 1.0 for _ in range(50)]
    assert np.all((np.array(off) > 0.007) & (np.array(off) < 0.014))


def test_only_what_the_judge_lets_pass_is_kept(sharp: Conditions) -> None:
    like = replace(_one(sharp), judge=Bright(), ceiling=1.0)
    stamps = simulate_stamps(40, seed=5, like=like)
    everything = simulate_pair(5, 21, _one(sharp), 0)
    difference = stamps.stamps[..., 0]
    off = np.nan_to_num(np.abs(difference - np.nanmedian(difference, axis=(1, 2), keepdims=True)))
    largest = np.argmax(off.reshape(40, -1), axis=1)
    assert np.all(largest == 220)
    assert 0 < len(simulate_pair(5, 21, like, 0)) < len(everything)


def test_the_same_seed_gives_the_same_likeness(instrument: SimulatedStamps, monkeypatch) -> None:
    monkeypatch.setattr(matching, "_PAIRS", 12)
    monkeypatch.setattr(matching, "_ROUNDS", 1)
    one, other = (match(instrument.stamps, seed=2) for _ in range(2))
    assert one.conditions == other.conditions
    assert np.array_equal(one.weights, other.weights)


def test_the_number_of_workers_changes_nothing(sharp: Conditions) -> None:
    one, other = (simulate_stamps(30, seed=1, like=_one(sharp), workers=workers) for workers in (1, 2))
    for a, b in zip(vars(one).values(), vars(other).values(), strict=True):
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


@pytest.mark.parametrize("sign", [1, -1])
def test_fading_sources_are_simulated_for_those_who_alert_on_them(
    sign: int, instrument: SimulatedStamps, monkeypatch
) -> None:
    monkeypatch.setattr(matching, "_PAIRS", 4)
    monkeypatch.setattr(matching, "_ROUNDS", 1)
    positive = instrument.stamps[instrument.positive]
    like = match(sign * positive[:60], seed=2)
    assert all((conditions.fading > 0) == (sign < 0) for conditions in like.conditions)


def test_matching_finds_the_width_of_the_profile(instrument: SimulatedStamps, monkeypatch) -> None:
    monkeypatch.setattr(matching, "_PAIRS", 20)
    monkeypatch.setattr(matching, "_ROUNDS", 2)
    like = match(instrument.stamps[..., 0], seed=1)
    found = np.average([c.difference_psf.fwhm_px for c in like.conditions], weights=like.weights)
    drawn = [draw_pair_conditions(np.random.default_rng((1, i)), None).difference_psf.fwhm_px for i in range(200)]
    assert abs(np.log(found / 2.2)) < 0.5 * np.median(np.abs(np.log(np.array(drawn) / 2.2)))


def test_the_unit_of_the_stamps_does_not_matter(instrument: SimulatedStamps) -> None:
    stamps = instrument.stamps[:20, ..., 0]
    assert np.allclose(stamp_statistics(stamps), stamp_statistics(37.0 * stamps + 5.0), atol=1e-3)


def test_masked_stamps_have_finite_statistics() -> None:
    stamps = np.random.default_rng(0).standard_normal((3, 21, 21)).astype(np.float32)
    stamps[0] = np.nan
    stamps[1, :, :9] = np.nan
    stamps[2] = 4.0
    assert np.isfinite(stamp_statistics(stamps)).all()


@pytest.mark.parametrize("shape", [(60, 20, 20), (60, 21, 23), (60, 21), (49, 21, 21)])
def test_stamps_that_cannot_be_matched_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"stamps must be|at least 50"):
        match(np.ones(shape, np.float32))
