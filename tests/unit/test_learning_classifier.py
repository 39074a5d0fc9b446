import numpy as np
import pytest
from stream_vae.errors import ConfigError
from stream_vae.learning import measures
from stream_vae.learning.classifier import Posterior, Scorer, calibrate, fit_scorer, quasi_random_offsets
from stream_vae.learning.recipe import ScorerSection

SECTION = ScorerSection(hidden=8, draws=16, epochs=12, patience=12)


def clouds(count, seed, *, real_share=0.3, distance=2.0):
    """Codes of two overlapping classes, along the first unit."""
    random = np.random.default_rng(seed)
    real = random.random(count) < real_share
    z_mean = random.normal(size=(count, 5)).astype(np.float32)
    z_mean[:, 0] += distance * real
    return Posterior(z_mean, np.full((count, 5), -3.0, np.float32), real)


@pytest.fixture(scope="module")
def scorer():
    return fit_scorer(clouds(1500, 1), clouds(600, 2), SECTION, seed=1)


def test_the_points_have_mean_zero_and_variance_one_in_every_unit():
    offsets = quasi_random_offsets(32, 21, seed=1)
    assert offsets.mean(axis=0) == pytest.approx(np.zeros(21), abs=1e-6)
    assert offsets.std(axis=0) == pytest.approx(np.ones(21), abs=1e-5)


def test_the_points_depend_on_the_seed_alone():
    assert np.array_equal(quasi_random_offsets(16, 5, seed=1), quasi_random_offsets(16, 5, seed=1))
    assert not np.array_equal(quasi_random_offsets(16, 5, seed=1), quasi_random_offsets(16, 5, seed=2))


def test_the_scorer_parts_the_classes_almost_as_well_as_can_be(scorer):
    test = clouds(3000, 3)
    score, _ = scorer.score(test.z_mean, test.z_log_var)
    best = measures.roc_auc(test.z_mean[:, 0], test.real)  # what an ideal classifier knows
    assert measures.roc_auc(score, test.real) > best - 0.02


def test_scores_are_calibrated_to_the_held_out_mix_although_fitting_balanced_the_classes(scorer):
    test = clouds(4000, 4)
    score, _ = scorer.score(test.z_mean, test.z_log_var)
    assert score.mean() == pytest.approx(test.real.mean(), abs=0.03)
    assert measures.expected_calibration_error(score, test.real) < 0.04


def test_a_stamp_of_uncertain_code_gets_a_score_nearer_the_middle_and_a_wider_spread(scorer):
    z_mean = np.zeros((1, 5), np.float32)
    z_mean[0, 0] = 4.0
    sure, sure_std = scorer.score(z_mean, np.full((1, 5), -6.0, np.float32))
    unsure, unsure_std = scorer.score(z_mean, np.full((1, 5), 1.5, np.float32))
    assert unsure[0] < sure[0]
    assert unsure_std[0] > 3 * sure_std[0]


def test_the_expectation_over_fixed_points_is_that_of_many_random_draws(scorer):
    z_mean, z_log_var = np.full((1, 5), 0.8, np.float32), np.full((1, 5), -1.0, np.float32)
    draws = np.random.default_rng(0).normal(size=(20_000, 5)).astype(np.float32)
    many = Scorer(scorer.hidden_weights, scorer.hidden_bias, scorer.output_weights, scorer.output_bias, draws)
    few, reference = scorer.score(z_mean, z_log_var)[0], many.score(z_mean, z_log_var)[0]
    assert few == pytest.approx(reference, abs=0.03)


def test_a_stamp_gets_the_same_score_every_time(scorer):
    test = clouds(50, 6)
    assert np.array_equal(scorer.score(test.z_mean, test.z_log_var), scorer.score(test.z_mean, test.z_log_var))


def test_calibration_mends_an_overconfident_scorer():
    held_out, test = clouds(3000, 7, distance=1.0), clouds(3000, 8, distance=1.0)
    weights = np.zeros((5, 2), np.float32)
    weights[0] = [1.0, -1.0]  # relu(x) - relu(-x) = x
    offsets = quasi_random_offsets(8, 5, seed=1)
    sure = Scorer(weights, np.zeros(2, np.float32), np.array([9.0, -9.0], np.float32), 4.0, offsets)
    mended = calibrate(sure, held_out)

    def error(scorer):
        return measures.expected_calibration_error(scorer.score(test.z_mean, test.z_log_var)[0], test.real)

    assert error(mended) < 0.05 < error(sure)


def test_perfectly_parted_classes_do_not_lead_to_certainty():
    scorer = fit_scorer(clouds(400, 9, distance=30.0), clouds(100, 10, distance=30.0), SECTION, seed=1)
    test = clouds(100, 11, distance=30.0)
    score, _ = scorer.score(test.z_mean, test.z_log_var)
    assert score.min() > 0.0
    assert score.max() < 1.0


def test_no_stamps_have_no_scores(scorer):
    empty = np.empty((0, 5), np.float32)
    assert [len(column) for column in scorer.score(empty, empty)] == [0, 0]


def changed(part, **columns):
    return Posterior(**(vars(part) | columns))


@pytest.mark.parametrize(
    ("train", "held_out", "words"),
    [
        (lambda part: changed(part, real=np.ones(200, np.bool_)), None, r"training part has 200 real and 0 bogus"),
        (lambda part: changed(part, real=np.zeros(200, np.bool_)), None, r"training part has 0 real and 200 bogus"),
        (None, lambda part: changed(part, real=np.ones(200, np.bool_)), r"validation part has 200 real and 0 bogus"),
        (lambda part: Posterior(part.z_mean[:3], part.z_log_var[:3], np.arange(3) < 2), None, "2 real and 1 bogus"),
        (lambda part: Posterior(part.z_mean[:0], part.z_log_var[:0], part.real[:0]), None, "0 real and 0 bogus"),
    ],
)
def test_too_few_labels_of_a_class_are_refused_with_what_to_do(train, held_out, words):
    part = clouds(200, 1)
    pair = [change(part) if change else part for change in (train, held_out)]
    remedy = "Label more stamps .* leave `labels` out .* set scorer.positive_unlabelled"
    with pytest.raises(ConfigError, match=rf"{words}.*{remedy}"):
        fit_scorer(*pair, SECTION, seed=1)


@pytest.mark.parametrize("column", ["z_mean", "z_log_var"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_codes_that_are_not_finite_are_refused(column, value):
    part = clouds(200, 1)
    broken = changed(part, **{column: getattr(part, column).copy()})
    getattr(broken, column)[7, 2] = value
    with pytest.raises(ConfigError, match=r"codes of 1 of 200 training stamps are not finite.*Lower fit.learning_rate"):
        fit_scorer(broken, part, SECTION, seed=1)


def test_codes_that_are_all_alike_are_refused_as_a_collapsed_model():
    part = clouds(200, 1)
    constant = changed(part, z_mean=np.full_like(part.z_mean, 0.25))
    with pytest.raises(ConfigError, match=r'same code.*collapsed.*loss.sigma = "analytic"'):
        fit_scorer(constant, part, SECTION, seed=1)


def test_a_unit_that_never_varies_takes_nothing_from_the_others():
    train, held_out, test = (clouds(600, seed) for seed in (1, 2, 3))
    dead = [
        changed(
            part,
            z_mean=np.hstack([part.z_mean, np.zeros((600, 1), np.float32)]),
            z_log_var=np.hstack([part.z_log_var, np.full((600, 1), -20.0, np.float32)]),
        )
        for part in (train, held_out, test)
    ]
    scorer = fit_scorer(*dead[:2], SECTION, seed=1)
    score, _ = scorer.score(dead[2].z_mean, dead[2].z_log_var)
    assert measures.roc_auc(score, test.real) > measures.roc_auc(test.z_mean[:, 0], test.real) - 0.06
