import numpy as np
import pytest
from stream_vae.errors import ConfigError
from stream_vae.learning.measures import roc_auc
from stream_vae.learning.supervised import fit_supervised

SMALL = {"filters": 4, "features": 4, "hidden": 8, "batch_size": 32, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def labelled():
    """Round sources against elongated ones, one in four real."""
    random = np.random.default_rng(1)
    real = np.arange(240) % 4 == 0
    y, x = np.mgrid[-10:11, -10:11]
    long = np.where(real, 2.0, 5.0)[:, np.newaxis, np.newaxis]
    stamps = np.exp(-0.5 * (x**2 / 4.0 + y**2 / long**2)) + random.normal(0, 0.1, (240, 21, 21))
    return stamps[..., np.newaxis].astype(np.float32), real


def fit(stamps, real, **options):
    return fit_supervised(stamps, real, np.arange(160), np.arange(160, 200), **{"epochs": 8} | SMALL | options)


def test_a_network_trained_on_labels_ranks_stamps_that_it_has_not_seen(labelled):
    stamps, real = labelled
    told = []
    found = fit(stamps, real, report=lambda _, done, total, note="": told.append((done, total, note)))
    score = found.score(stamps[200:])
    assert roc_auc(score, real[200:]) > 0.95
    assert 0 < score.min() < score.max() < 1
    assert told[-1][:2] == (8, 8)
    assert told[0][2].startswith("loss ")
    assert 1 <= found.best_epoch <= len(found.history["val_loss"])


def test_it_learns_a_source_however_it_is_turned(labelled):
    stamps, real = labelled
    found = fit(stamps, real)
    turned = found.score(np.rot90(stamps[200:], axes=(1, 2)))  # elongated along the other axis
    assert roc_auc(turned, real[200:]) > 0.9


def test_the_same_seed_trains_the_same_network(labelled):
    first, second = (fit(*labelled, epochs=2, seed=3).score(labelled[0][:8]) for _ in range(2))
    assert first == pytest.approx(second, abs=1e-6)


def test_it_stops_when_the_validation_loss_no_longer_falls(labelled):
    stamps, real = labelled
    noise = np.random.default_rng(2).normal(size=stamps.shape).astype(np.float32)  # nothing to learn
    found = fit(noise, real, epochs=40, patience=2)
    assert len(found.history["val_loss"]) == found.best_epoch + 2 < 40


def test_one_class_alone_and_pixels_that_are_nan_are_refused(labelled):
    stamps, real = labelled
    with pytest.raises(ConfigError, match="both classes"):
        fit(stamps, np.zeros(240, bool))
    with pytest.raises(ConfigError, match="not finite"):
        fit(stamps * np.nan, real, epochs=1)
