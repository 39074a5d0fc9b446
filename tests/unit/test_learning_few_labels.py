import numpy as np
import pytest
from stream_vae.errors import ConfigError
from stream_vae.learning import few_labels
from stream_vae.learning.few_labels import curve
from stream_vae.learning.measures import roc_auc


@pytest.fixture
def codes():
    random = np.random.default_rng(1)
    real = random.random(600) < 0.8
    z = random.normal(size=(600, 5))
    z[:, 2] += 1.5 * real
    return z[:300].astype(np.float32), real[:300], z[300:].astype(np.float32), real[300:]


def test_more_labels_make_a_better_probe_with_less_scatter(codes):
    few, many = curve(*codes, counts=(6, 100), draws=20)
    assert many.mean > few.mean
    assert many.std < few.std
    assert 0.7 < many.low <= many.mean <= many.high < 1.0
    assert len(many.aucs) == 20


def test_half_of_each_class_is_shown_until_the_rarer_one_is_used_up(codes):
    bogus = int((~codes[1]).sum())
    few, many = curve(*codes, counts=(20, 200), draws=2)
    assert (few.real, few.bogus) == (10, 10)
    assert (many.real, many.bogus) == (200 - bogus, bogus)
    assert many.labels == 200


def test_the_scale_of_a_unit_does_not_matter(codes):
    z_train, real_train, z_test, real_test = codes
    scale = np.array([1e-3, 1, 100, 1, 1], np.float32)
    plain, scaled = (
        curve(z_train * by, real_train, z_test * by, real_test, counts=(50,), draws=3)[0] for by in (1, scale)
    )
    assert scaled.mean == pytest.approx(plain.mean, abs=0.01)


def test_the_same_seed_shows_the_same_labels_to_every_representation(codes):
    first, second = (curve(*codes, counts=(50,), draws=3, seed=s)[0].aucs for s in (4, 4))
    assert first == second
    assert curve(*codes, counts=(50,), draws=3, seed=5)[0].aucs != first


def test_on_draws_from_wide_posteriors_what_the_means_hardly_tell_is_lost(codes):
    z_train, real_train, z_test, real_test = codes
    tiny = z_train * 1e-3, real_train, z_test * 1e-3, real_test  # a collapsed code, which standardising blows up
    wide = np.zeros_like(z_train)
    on_means = curve(*tiny, counts=(100,), draws=5)[0]
    on_draws = curve(*tiny, counts=(100,), draws=5, train_log_var=wide, test_log_var=wide)[0]
    assert on_means.mean > 0.8
    assert on_draws.mean == pytest.approx(0.5, abs=0.06)


def test_the_weighted_auc_is_that_of_stamps_that_are_there_as_often():
    random = np.random.default_rng(2)
    score, real, weight = random.integers(0, 9, 60), random.random(60) < 0.5, random.integers(0, 4, 60)
    expected = roc_auc(np.repeat(score, weight), np.repeat(real, weight))
    ranks = np.unique(score, return_inverse=True)[1]
    assert few_labels._weighted_auc(ranks, real, weight) == pytest.approx(expected)


def test_more_labels_than_there_are_or_too_few_for_both_classes_are_refused(codes):
    with pytest.raises(ConfigError, match=r"301 labels cannot be drawn: there are 300.*2 to 300"):
        curve(*codes, counts=(301,))
    with pytest.raises(ConfigError, match="1 labels cannot be drawn"):
        curve(*codes, counts=(1,))


def test_one_class_alone_codes_that_are_nan_and_labels_that_do_not_match_are_refused(codes):
    z_train, real_train, z_test, real_test = codes
    with pytest.raises(ConfigError, match="both classes"):
        curve(z_train, np.ones(300, bool), z_test, real_test, counts=(10,))
    with pytest.raises(ConfigError, match="Some test codes are not finite"):
        curve(z_train, real_train, z_test * np.nan, real_test, counts=(10,))
    with pytest.raises(ConfigError, match="300 training codes have 299 labels"):
        curve(z_train, real_train[1:], z_test, real_test, counts=(10,))
