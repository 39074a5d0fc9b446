import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn import metrics as sklearn_metrics
from stream_vae.errors import ConfigError
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


@pytest.mark.parametrize("figure", [measures.roc_auc, measures.roc_curve, measures.average_precision])
def test_one_class_alone_and_scores_that_are_nan_are_refused_with_a_remedy(figure):
    with pytest.raises(ConfigError, match=r"are real.*both classes"):
        figure(np.ones(5), np.ones(5, bool))
    with pytest.raises(ConfigError, match=r"are bogus.*both classes"):
        figure(np.ones(5), np.zeros(5, bool))
    with pytest.raises(ConfigError, match="1 scores are NaN"):
        figure(np.array([0.1, np.nan, 0.3]), np.array([True, False, True]))


def test_the_bootstrap_interval_of_a_mean_is_that_of_the_central_limit_theorem():
    values = np.random.default_rng(3).normal(5.0, 2.0, 400)
    found = measures.bootstrap_interval(np.mean, values, draws=2000)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_strata_keep_the_number_of_each_class(scored):
    score, real = scored

    def count(_: np.ndarray, truth: np.ndarray) -> float:
        return float(truth.sum())

    assert measures.bootstrap_interval(count, score, real, strata=real)[1:] == (real.sum(), real.sum())
    low, high = measures.bootstrap_interval(count, score, real)[1:]
    assert low < real.sum() < high


def test_the_bootstrap_interval_of_the_auc_agrees_with_the_one_by_class(scored):
    score, real = scored
    found = measures.bootstrap_interval(measures.roc_auc, score, real, strata=real, draws=400)
    assert found[1:] == pytest.approx(measures.roc_auc_interval(score, real), abs=0.01)


def test_pairing_finds_a_difference_that_is_smaller_than_either_interval():
    random = np.random.default_rng(4)
    hard = random.gamma(2.0, 3.0, 500)  # what is hard for one model is hard for the other
    first, second = hard + 0.1 + random.normal(0, 0.1, 500), hard
    single = measures.bootstrap_interval(np.mean, first)
    paired = measures.paired_bootstrap(np.mean, first, second)
    assert paired.low > 0.0
    assert paired.share_above_zero == 1.0
    assert paired.high - paired.low < 0.1 * (single.high - single.low)


def test_a_pair_of_models_must_have_scored_the_same_stamps():
    with pytest.raises(ConfigError, match=r"3 and the other 4.*same stamps"):
        measures.paired_bootstrap(np.mean, np.ones(3), np.ones(4))
    with pytest.raises(ConfigError, match="no stamps"):
        measures.bootstrap_interval(np.mean, np.ones(0))


def test_at_its_threshold_a_score_misses_what_the_missed_detection_rate_says(scored):
    score, real = scored
    for tolerated in (0.0, 0.01, 0.2):
        threshold = measures.threshold_at(score, real, false_positive_rate=tolerated)
        assert (score[~real] > threshold).mean() <= tolerated
        missed = measures.missed_detection_rate(score, real, false_positive_rate=tolerated)
        assert (score[real] > threshold).mean() == pytest.approx(1.0 - missed)


def test_kinds_are_told_apart_in_what_passes():
    score = np.array([0.9, 0.8, 0.2, 0.95, 0.1, 0.1])
    real = np.array([True, True, True, False, False, False])
    kinds = np.array(["star", "star", "asteroid", "dipole", "cosmic ray", "cosmic ray"])
    rows = measures.by_kind(score, real, kinds, threshold=0.5)
    found = {row.name: (row.real, row.stamps, row.passed) for row in rows}
    assert found == {
        "asteroid": (True, 1, 0.0),
        "star": (True, 2, 1.0),
        "cosmic ray": (False, 2, 0.0),
        "dipole": (False, 1, 1.0),
    }
    assert all(row.low <= row.passed <= row.high for row in rows)
    assert {row.name: row.auc for row in rows}["dipole"] == 0.0
    assert {row.name: row.auc for row in rows}["cosmic ray"] == 1.0


def test_ranges_of_signal_to_noise_leave_out_what_is_unknown():
    score = np.linspace(0, 1, 8)
    real = np.arange(8) >= 4
    snr = np.array([5.5, 5.5, np.nan, 12.0, 5.0, 60.0, np.nan, 4.0])
    rows = measures.by_snr(score, real, snr, threshold=0.5)
    assert [(row.name, row.real, row.stamps) for row in rows] == [
        ("< 5", True, 1),
        ("5 to 7", True, 1),
        (">= 50", True, 1),
        ("5 to 7", False, 2),
        ("10 to 20", False, 1),
    ]


def test_a_unit_alone_says_no_more_than_all_and_a_collapsed_one_nothing():
    random = np.random.default_rng(5)
    z_mean, z_log_var = np.zeros((400, 3)), np.zeros((400, 3))
    z_mean[:, :2], z_log_var[:, :2] = random.normal(size=(400, 2)), -2.0
    units = measures.unit_information(z_mean, z_log_var)
    together, _ = measures.mutual_information(z_mean, z_log_var)
    assert units[2] == pytest.approx(0.0, abs=1e-9)
    assert units[0] > 0.5
    assert units[:2].sum() == pytest.approx(together, rel=0.2)


def test_the_spectrum_is_that_of_the_covariance():
    stamps = np.random.default_rng(6).normal(0.1, 1.0, (300, 5, 5, 1)).astype(np.float32)
    expected = np.linalg.eigvalsh(np.cov(stamps.reshape(300, -1), rowvar=False, bias=True))[::-1]
    assert measures.covariance_spectrum(stamps) == pytest.approx(expected, rel=1e-4)


def test_a_direction_pays_only_where_its_variance_exceeds_that_of_the_decoder():
    spectrum = np.array([4.0, 0.5, 0.02, 0.001])
    assert (measures.predicted_information(spectrum, 1.0, latent_size=3) > 0).tolist() == [True, False, False]
    calibrated = measures.predicted_information(spectrum, 0.01, latent_size=3)
    assert calibrated == pytest.approx(0.5 * np.log([400.0, 50.0, 2.0]))
    assert measures.predicted_information(spectrum, 0.01, latent_size=6)[4:].tolist() == [0.0, 0.0]
    cheap = measures.predicted_information(spectrum, 1.0, latent_size=3, kl_weight=0.1)
    assert (cheap > 0).tolist() == [True, True, False]


@pytest.fixture
def linear_model():
    """A linear decoder with Gaussian noise: the evidence and the posterior are known in closed form."""
    random = np.random.default_rng(7)
    weights, variance = random.normal(0, 0.5, (3, 9)), 0.3
    z = random.normal(size=(40, 3))
    flat = z @ weights + np.sqrt(variance) * random.normal(size=(40, 9))
    evidence = multivariate_normal(np.zeros(9), weights.T @ weights + variance * np.eye(9)).logpdf(flat)
    # Orthogonal directions of the code, so that the posterior is diagonal.
    turn = np.linalg.eigh(weights @ weights.T)[1]
    weights = turn.T @ weights
    precision = 1.0 + np.square(weights).sum(axis=1) / variance
    z_mean = flat @ weights.T / variance / precision
    z_log_var = np.tile(-np.log(precision), (40, 1))
    stamps = flat.reshape(40, 3, 3, 1).astype(np.float32)
    return stamps, z_mean, z_log_var, lambda codes: (codes @ weights).reshape(-1, 3, 3, 1), variance, evidence


def test_the_importance_weighted_bound_is_tight_for_the_true_posterior(linear_model):
    stamps, z_mean, z_log_var, decode, variance, evidence = linear_model
    bound = measures.iwae_bound(stamps, z_mean, z_log_var, decode=decode, variance=variance, samples=3)
    assert bound == pytest.approx(evidence, abs=1e-3)


def test_the_importance_weighted_bound_rises_with_the_samples_towards_the_evidence(linear_model):
    stamps, z_mean, z_log_var, decode, variance, evidence = linear_model
    wide = z_log_var + 1.0  # a posterior that is wrong
    bounds = [
        measures.iwae_bound(stamps, z_mean, wide, decode=decode, variance=variance, samples=k).mean()
        for k in (1, 5, 50, 2000)
    ]
    assert np.all(np.diff(bounds) > 0)
    assert bounds[-1] == pytest.approx(evidence.mean(), abs=0.02)
    kl = measures.kl_per_unit(z_mean, wide).sum()
    error = np.square(stamps - decode(z_mean)).sum(axis=(1, 2, 3)).mean()
    assert bounds[0] < -error / (2 * variance) - 4.5 * np.log(2 * np.pi * variance) - kl + 1.0


def test_the_bound_takes_another_prior_and_a_noise_map_without_its_masked_pixels(linear_model):
    stamps, z_mean, z_log_var, decode, variance, _ = linear_model
    common = {"decode": decode, "samples": 4}
    plain = measures.iwae_bound(stamps, z_mean, z_log_var, variance=variance, **common)
    noise = np.full(stamps.shape, variance, np.float32)
    assert measures.iwae_bound(stamps, z_mean, z_log_var, variance=noise, **common) == pytest.approx(plain, abs=1e-3)
    noise[:, 0, 0] = np.nan
    masked = measures.iwae_bound(stamps, z_mean, z_log_var, variance=noise, **common)
    damaged = stamps.copy()
    damaged[:, 0, 0] = 1e3
    assert np.isfinite(masked).all()
    assert measures.iwae_bound(damaged, z_mean, z_log_var, variance=noise, **common) == pytest.approx(masked)
    shifted = measures.iwae_bound(
        stamps,
        z_mean,
        z_log_var,
        variance=variance,
        log_prior=lambda z: multivariate_normal(np.zeros(3)).logpdf(z) - 2.0,
        **common,
    )
    assert shifted == pytest.approx(plain - 2.0, abs=1e-3)


def test_the_bound_refuses_codes_that_are_nan_and_a_variance_that_is_not_positive(linear_model):
    stamps, z_mean, z_log_var, decode, _, _ = linear_model
    with pytest.raises(ConfigError, match="not finite"):
        measures.iwae_bound(stamps, z_mean * np.nan, z_log_var, decode=decode, variance=1.0)
    with pytest.raises(ConfigError, match="above zero"):
        measures.iwae_bound(stamps, z_mean, z_log_var, decode=decode, variance=0.0)


@pytest.fixture
def crowd():
    return np.random.default_rng(8).normal(size=(120, 3, 3, 1))


def test_pixels_as_codes_keep_every_neighbour(crowd):
    codes = crowd.reshape(120, -1)
    assert measures.trustworthiness(crowd, codes) == 1.0
    assert measures.knn_recall(crowd, codes).tolist() == [1.0] * 120


def test_codes_that_say_nothing_keep_neighbours_by_chance_only(crowd):
    codes = np.random.default_rng(9).normal(size=(120, 2))
    assert measures.trustworthiness(crowd, codes) == pytest.approx(0.5, abs=0.08)
    assert measures.knn_recall(crowd, codes).mean() == pytest.approx(10 / 119, abs=0.03)


def test_the_neighbours_recalled_are_those_of_a_brute_force_search(crowd):
    flat, codes = crowd.reshape(120, -1), crowd.reshape(120, -1)[:, :4]

    def near(points, i):
        return set(np.argsort(np.where(np.arange(120) == i, np.inf, np.square(points - points[i]).sum(axis=1)))[:7])

    expected = [len(near(flat, i) & near(codes, i)) / 7 for i in range(120)]
    assert measures.knn_recall(crowd, codes, neighbours=7) == pytest.approx(expected)


def test_the_search_measure_of_twins_is_zero_and_of_strangers_two():
    twins = np.repeat(np.random.default_rng(10).normal(size=(2, 5, 5, 1)), 30, axis=0)
    codes = twins.reshape(60, -1)
    curve = measures.dnmse_curve(twins, codes, np.arange(0, 60, 7), neighbours=20)
    assert curve.shape == (9, 20)
    assert curve == pytest.approx(np.zeros((9, 20)))
    strangers = np.random.default_rng(11).normal(size=(400, 21, 21, 1))
    lost = measures.dnmse_curve(strangers, np.random.default_rng(12).normal(size=(400, 2)), np.arange(50))
    assert lost.mean() == pytest.approx(2.0, abs=0.05)


def test_the_search_measure_discounts_the_error_by_rank(crowd):
    flat, codes = crowd.reshape(120, -1), crowd.reshape(120, -1)[:, :2]
    found = np.argsort(np.square(codes - codes[5]).sum(axis=1))[1:4]
    error = [np.square(flat[i] - flat[5]).sum() / np.square(flat[5]).sum() for i in found]
    weight = 1 / np.log2([2, 3, 4])
    expected = [np.dot(error[:k], weight[:k]) / weight[:k].sum() for k in (1, 2, 3)]
    assert measures.dnmse_curve(crowd, codes, np.array([5]), neighbours=3)[0] == pytest.approx(expected)


def test_neighbours_cannot_be_looked_for_among_too_few_stamps_or_by_codes_that_are_nan(crowd):
    codes = crowd.reshape(120, -1)
    with pytest.raises(ConfigError, match=r"120 stamps are too few to look for 120 neighbours"):
        measures.knn_recall(crowd, codes, neighbours=120)
    with pytest.raises(ConfigError, match="not finite"):
        measures.trustworthiness(crowd, codes * np.nan)
    with pytest.raises(ConfigError, match="120 stamps have 119 codes"):
        measures.dnmse_curve(crowd, codes[1:], np.array([0]), neighbours=5)
