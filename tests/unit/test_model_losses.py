import math

import numpy as np
import pytest
from stream_vae.model import losses
from stream_vae.model.schedules import KlSchedule


def values(tensor):
    return np.asarray(tensor)


def test_the_squared_error_is_summed_over_a_stamp_and_not_over_the_batch():
    stamps = np.zeros((2, 3, 3, 2), np.float32)
    shifted = stamps + np.array([1.0, 2.0], np.float32).reshape(2, 1, 1, 1)
    assert values(losses.summed_squared_error(stamps, shifted)).tolist() == [18.0, 72.0]


def test_the_likelihood_is_that_of_scipys_normal_distribution():
    from scipy.stats import norm

    residuals = np.random.default_rng(1).normal(size=(4, 5, 5, 1)).astype(np.float32)
    variance = 0.3
    expected = -norm.logpdf(residuals, scale=math.sqrt(variance)).sum(axis=(1, 2, 3))
    error = losses.summed_squared_error(residuals, np.zeros_like(residuals))
    assert values(losses.gaussian_nll(error, variance, 25)) == pytest.approx(expected, rel=1e-5)


def test_the_kl_term_is_that_of_two_normal_distributions_in_closed_form():
    z_mean = np.array([[0.0, 1.5, -2.0]], np.float32)
    z_log_var = np.array([[0.0, -1.0, 0.7]], np.float32)
    points = np.linspace(-30.0, 30.0, 200_001)
    for unit, divergence in enumerate(values(losses.kl_per_unit(z_mean, z_log_var))[0]):
        mean, variance = float(z_mean[0, unit]), math.exp(float(z_log_var[0, unit]))
        q = np.exp(-0.5 * (points - mean) ** 2 / variance) / math.sqrt(2 * math.pi * variance)
        log_ratio = -0.5 * (points - mean) ** 2 / variance - 0.5 * math.log(variance) + 0.5 * points**2
        assert divergence == pytest.approx(np.trapezoid(q * log_ratio, points), abs=1e-5)


def test_a_posterior_like_the_prior_costs_nothing():
    assert not values(losses.kl_per_unit(np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32))).any()


def test_the_fitted_variance_ends_at_the_mean_squared_error_per_pixel():
    variance = 1.0
    for step in range(500):
        variance = losses.next_variance(variance, 0.02, float(step))
    assert float(variance) == pytest.approx(0.02, rel=1e-3)


def test_the_fitted_variance_forgets_its_start_at_once():
    assert float(losses.next_variance(1.0, 0.02, 0.0)) == pytest.approx(0.02)


def test_a_perfect_fit_does_not_bring_the_variance_to_zero():
    assert float(losses.next_variance(0.0, 0.0, 100.0)) == pytest.approx(losses.MIN_VARIANCE)


def test_the_mean_squared_error_is_the_variance_with_the_highest_likelihood():
    error, pixels = np.array([4.0, 6.0], np.float32), 100
    best = float(error.mean()) / pixels

    def nll(variance):
        return float(values(losses.gaussian_nll(error, variance, pixels)).mean())

    assert nll(best) < nll(best * 1.05)
    assert nll(best) < nll(best / 1.05)


def test_an_annealed_kl_weight_rises_linearly_to_its_final_value_and_stays():
    schedule = KlSchedule(final=0.3, anneal_steps=10)
    weights = [float(schedule.at(float(step))) for step in (0, 4, 9, 10, 10_000)]
    assert weights == pytest.approx([0.03, 0.15, 0.3, 0.3, 0.3])


def test_a_kl_weight_without_annealing_is_the_same_from_the_first_step():
    assert KlSchedule(final=0.7).at(0.0) == 0.7
