import logging

import numpy as np
import pytest
from stream_vae.errors import ConfigError
from stream_vae.learning.batches import Batches, turn
from stream_vae.learning.data.stamps import StampSet
from stream_vae.learning.fit import decode, encode, fit_model, new_model
from stream_vae.learning.progress import reporter, silent
from stream_vae.learning.recipe import build_recipe

TINY = {"model": {"filters": 4, "latent_size": 4}, "fit": {"epochs": 3, "batch_size": 16}}


def in_memory(stamps):
    count = len(stamps)
    return StampSet(stamps, np.full(count, -1, np.int8), np.arange(count), {})


def fit(recipe, stamps, **options):
    return fit_model(recipe, in_memory(stamps), np.arange(len(stamps)), np.arange(32), **options)


@pytest.fixture(scope="module")
def blobs():
    """Round and elongated blobs, which a small model can learn."""
    random = np.random.default_rng(5)
    y, x = np.mgrid[-10:11, -10:11]
    width = random.uniform(1.5, 4.0, (96, 1, 1))
    stamps = np.exp(-0.5 * (x**2 / width**2 + y**2 / width[::-1] ** 2)) + random.normal(0, 0.02, (96, 21, 21))
    return stamps[..., np.newaxis].astype(np.float32)


def test_the_eight_symmetries_of_a_stamp_are_all_different_and_keep_its_pixels():
    stamp = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1)
    turned = turn(np.repeat(stamp, 8, axis=0), np.arange(8))
    assert len({tuple(image.ravel()) for image in turned}) == 8
    assert all(sorted(image.ravel()) == list(range(9)) for image in turned)
    assert np.array_equal(turned[:1], stamp)


def test_all_channels_of_a_stamp_are_turned_together():
    image = np.random.default_rng(0).normal(size=(1, 5, 5, 1)).astype(np.float32)
    for symmetry in range(8):
        turned = turn(np.concatenate([image, 2 * image], axis=-1), np.array([symmetry]))
        assert np.array_equal(turned[..., 1], 2 * turned[..., 0])


def test_an_epoch_shows_every_stamp_once_and_the_next_in_another_order():
    stamps = np.arange(64, dtype=np.float32).reshape(64, 1, 1, 1)
    batches = Batches(in_memory(stamps), np.arange(len(stamps)), batch_size=16, seed=1, augment=True)
    first = np.concatenate([batches[i][0].ravel() for i in range(len(batches))])
    batches.on_epoch_end()
    second = np.concatenate([batches[i][0].ravel() for i in range(len(batches))])
    assert sorted(first) == sorted(second) == list(range(64))
    assert not np.array_equal(first, second)


def test_fewer_stamps_than_a_batch_make_one_batch():
    assert (
        len(Batches(in_memory(np.zeros((5, 1, 1, 1), np.float32)), np.arange(5), batch_size=128, seed=1, augment=False))
        == 1
    )


def test_fitting_lowers_the_loss_and_reports_every_epoch(blobs):
    steps = []

    def report(step, done, total, note=""):
        steps.append((step, done, total))

    fitted = fit(build_recipe(TINY), blobs, report=report)
    assert fitted.history["val_loss"][-1] < fitted.history["val_loss"][0]
    assert steps == [("fit", done, 3) for done in (0, 1, 2, 3, 3)]
    assert fitted.best_epoch == int(np.argmin(fitted.history["val_loss"])) + 1


def test_the_same_seed_fits_the_same_model_and_another_seed_another(blobs):
    def codes(seed):
        return encode(fit(build_recipe(TINY | {"seed": seed}), blobs).model, blobs)[0]

    first, again, other = codes(1), codes(1), codes(2)
    assert again == pytest.approx(first, abs=1e-4)  # sums of several threads round as they come
    assert np.abs(other - first).max() > 1e-2


def test_training_stops_when_the_loss_no_longer_falls_and_keeps_the_best_epoch(blobs):
    # A step this long only does harm after a while.
    recipe = build_recipe(TINY | {"fit": {"epochs": 60, "batch_size": 16, "patience": 2, "learning_rate": 0.05}})
    fitted = fit(recipe, blobs)
    losses = fitted.history["val_loss"]
    assert len(losses) < 60
    assert len(losses) == fitted.best_epoch + 2


def test_stamps_that_are_not_finite_end_training_with_a_remedy(blobs):
    broken = blobs.copy()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(ConfigError, match="training diverged"):
        fit(build_recipe(TINY), broken)


def test_annealing_is_counted_in_epochs_of_this_data_set():
    recipe = build_recipe({"loss": {"anneal": "linear", "anneal_epochs": 3, "kl_weight": 0.5}})
    assert new_model(recipe, steps_per_epoch=7).schedule.anneal_steps == 21


def test_without_annealing_the_epochs_given_for_it_do_not_matter():
    recipe = build_recipe({"loss": {"anneal": "none", "anneal_epochs": 3}})
    assert new_model(recipe, steps_per_epoch=7).schedule.at(0.0) == 1.0


def test_the_recipes_sigma_is_squared_into_the_decoders_variance():
    model = new_model(build_recipe({"loss": {"sigma": 0.5}}), steps_per_epoch=1)
    assert float(model.variance) == pytest.approx(0.25)
    assert not model.fits_variance


def test_encoding_in_pieces_gives_what_encoding_at_once_gives(blobs):
    model = new_model(build_recipe(TINY), steps_per_epoch=1)
    whole, pieces = encode(model, blobs), encode(model, blobs, batch_size=10)
    assert pieces[0] == pytest.approx(whole[0], abs=1e-5)
    assert decode(model, whole[0], batch_size=10) == pytest.approx(decode(model, whole[0]), abs=1e-5)


def test_progress_goes_to_the_log_where_there_is_no_terminal(caplog):
    with caplog.at_level(logging.INFO, "stream_vae.learning.progress"), reporter() as report:
        for done in range(4):
            report("fit", done, 3, "loss 1")
    assert [record.getMessage() for record in caplog.records] == ["fit: 0 of 3 loss 1", "fit: 3 of 3 loss 1"]


def test_progress_can_be_silent():
    with reporter(show=False) as report:
        assert report is silent
