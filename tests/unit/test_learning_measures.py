import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics
from stream_vae.learning import measures


@pytest.fixture
def scored():
    random = np.random.default_rng(2)
    real = random.random(800) < 0.3
    score = np.round(np.clip(random.normal(0.4 + 0.25 * real, 0.2), 0, 1), 2)  # rounded: there are ties
    return score, real


def test_the_auc_is_that_of_scikit_learn_with_ties(scored):
    score, real = scored
    assert measures.roc_auc(score, real) == pytest.approx(sklearn_metrics.roc_auc_score(real, score))


def test_the_average_precision_is_that_of_scikit_learn(scored):
    score, real = scored
    assert measures.average_precision(score, real) == pytest.approx(
        sklearn_metrics.average_precision_score(real, score)
    )


def test_the_roc_curve_bounds_the_same_area_as_the_ranks(scored):
    score, real = scored
    false, true = measures.roc_curve(score, real)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true, false) == pytest.approx(measures.roc_auc(score, real))


def test_the_auc_lies_inside_its_bootstrap_interval(scored):
    low, high = measures.roc_auc_interval(*scored, draws=200)
    assert low < measures.roc_auc(*scored) < high
    assert high - low < 0.1


def test_no_real_stamp_is_missed_by_a_perfect_score_and_all_by_its_opposite():
    real = np.array([True] * 50 + [False] * 200)
    assert measures.missed_detection_rate(real.astype(float), real) == 0.0
    assert measures.missed_detection_rate(1.0 - real, real) == 1.0


def test_the_missed_detection_rate_tolerates_one_bogus_in_a_hundred():
    bogus = np.linspace(0.0, 0.5, 100)
    bogus[-1] = 0.95  # the one that may pass
    score, real = np.append(bogus, [0.9, 0.9, 0.9, 0.1]), np.array([False] * 100 + [True] * 4)
    assert measures.missed_detection_rate(score, real) == pytest.approx(0.25)


def test_scores_that_are_frequencies_have_no_calibration_error_and_sure_wrong_ones_have_all():
    score = np.repeat([0.2, 0.8], 1000)
    real = np.tile(np.arange(1000) < 200, 2)
    real[1000:] = ~real[1000:]
    assert measures.expected_calibration_error(score, real) == pytest.approx(0.0, abs=1e-9)
    assert measures.expected_calibration_error(np.ones(10), np.zeros(10, bool)) == 1.0


def test_a_unit_that_ignores_the_stamp_is_neither_active_nor_costly():
    random = np.random.default_rng(0)
    z_mean, z_log_var = np.zeros((500, 3)), np.zeros((500, 3))
    z_mean[:, 1], z_log_var[:, 1] = random.normal(size=500), -4.0
    assert measures.active_units(z_mean) == 1
    assert (measures.kl_per_unit(z_mean, z_log_var) > 0.1).tolist() == [False, True, False]


def test_codes_that_say_nothing_have_no_mutual_information():
    information, cap = measures.mutual_information(np.zeros((300, 4)), np.zeros((300, 4)))
    assert information == pytest.approx(0.0, abs=1e-9)
    assert cap == pytest.approx(np.log(300))


def test_codes_that_tell_every_stamp_apart_reach_the_cap():
    z_mean = np.random.default_rng(0).normal(size=(300, 10)) * 10
    information, cap = measures.mutual_information(z_mean, np.full((300, 10), -8.0))
    assert information == pytest.approx(cap, rel=1e-3)


def test_the_mutual_information_of_a_gaussian_channel_is_shannons():
    # z = signal + noise, unit variance in all: I = -0.5 log(noise variance).
    noise = 0.2
    z_mean = np.random.default_rng(1).normal(0, np.sqrt(1 - noise), (1500, 1))
    information, _ = measures.mutual_information(z_mean, np.full((1500, 1), np.log(noise)))
    assert information == pytest.approx(-0.5 * np.log(noise), abs=0.06)
