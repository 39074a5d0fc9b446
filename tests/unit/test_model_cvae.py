import numpy as np
import pytest
from stream_vae.model.backend import keras
from stream_vae.model.cvae import CVAE
from stream_vae.model.networks import LOG_VAR_LIMIT, side_lengths

# TensorFlow's variables do not know numpy 2's `copy` yet; Keras converts them so when it saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


@pytest.fixture(scope="module")
def stamps():
    return np.random.default_rng(3).uniform(-1, 1, (12, 21, 21, 1)).astype(np.float32)


def evaluate(model, stamps):
    model.compile(optimizer=keras.optimizers.Adam())
    return model.evaluate(stamps, verbose=0, return_dict=True, batch_size=len(stamps))


def test_the_feature_maps_of_a_21_pixel_stamp_are_those_of_the_paper():
    assert side_lengths(21) == [21, 11, 6, 3]


@pytest.mark.parametrize("linear_skip", [False, True])
@pytest.mark.parametrize(("size", "channels"), [(21, 1), (21, 3), (30, 1), (9, 2)])
def test_a_reconstruction_has_the_shape_of_its_stamp(size, channels, linear_skip):
    model = CVAE(stamp_size=size, channels=channels, latent_size=5, filters=4, linear_skip=linear_skip)
    out = model(np.zeros((2, size, size, channels), np.float32))
    assert out["z_mean"].shape == out["z_log_var"].shape == (2, 5)
    assert out["reconstruction"].shape == (2, size, size, channels)


def test_the_encoder_has_the_papers_number_of_weights():
    # 3x3 kernels 1-32, 32-32, 32-32 with biases, then 3*3*32 features into two heads of 21.
    assert CVAE().encoder.count_params() == 320 + 9248 + 9248 + 2 * (288 * 21 + 21)


def test_the_linear_path_of_an_otherwise_silent_encoder_is_a_matrix_product(stamps):
    model = CVAE(linear_skip=True)
    for name in ("z_mean", "z_log_var"):
        layer = model.encoder.get_layer(name)
        layer.set_weights([np.zeros_like(array) for array in layer.get_weights()])
    (matrix,) = model.encoder.get_layer("skip").get_weights()
    z_mean, _ = model.encoder(stamps)
    assert np.asarray(z_mean) == pytest.approx(stamps.reshape(len(stamps), -1) @ matrix, abs=1e-4)


def test_no_stamp_can_overflow_the_log_variance():
    model = CVAE(filters=4)
    _, z_log_var = model.encoder(np.full((1, 21, 21, 1), 1e6, np.float32))
    assert np.abs(np.asarray(z_log_var)).max() <= LOG_VAR_LIMIT


def test_the_loss_is_the_negative_bound_when_the_kl_weight_is_one(stamps):
    logs = evaluate(CVAE(filters=4, kl_weight=1.0), stamps)
    assert logs["loss"] == pytest.approx(-logs["elbo"], rel=1e-5)


def test_a_kl_weight_below_one_changes_the_loss_and_leaves_the_bound(stamps):
    whole = evaluate(CVAE(filters=4, kl_weight=1.0, seed=5), stamps)
    model = CVAE(filters=4, kl_weight=0.25, seed=5)
    logs = evaluate(model, stamps)
    assert logs["loss"] == pytest.approx(-logs["elbo"] - 0.75 * logs["kl_loss"], rel=1e-5)
    assert whole["loss"] == pytest.approx(-whole["elbo"], rel=1e-5)


def test_evaluation_weighs_the_kl_term_in_full_while_annealing_has_not_begun(stamps):
    logs = evaluate(CVAE(filters=4, kl_weight=1.0, anneal_steps=1000), stamps)
    assert logs["loss"] == pytest.approx(-logs["elbo"], rel=1e-5)


def test_evaluation_moves_neither_the_variance_nor_the_schedule(stamps):
    model = CVAE(filters=4)
    evaluate(model, stamps)
    assert (float(model.variance), float(model.steps)) == (1.0, 0.0)


def test_fitting_moves_the_variance_to_the_squared_error_and_counts_its_steps(stamps):
    model = CVAE(filters=4)
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    model.fit(stamps, epochs=3, batch_size=6, verbose=0)
    assert float(model.steps) == 6.0
    assert float(model.variance) < 0.5


def test_a_fixed_variance_stays_what_the_recipe_says(stamps):
    model = CVAE(filters=4, decoder_variance=1.0)
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    model.fit(stamps, epochs=2, verbose=0)
    assert float(model.variance) == 1.0


def test_a_saved_model_comes_back_the_same_without_pickle(stamps, tmp_path):
    model = CVAE(filters=4, linear_skip=True, kl_weight=0.3)
    model.variance.assign(0.02)
    model.save(tmp_path / "cvae.keras")
    again = keras.saving.load_model(tmp_path / "cvae.keras", compile=False, safe_mode=True)
    assert again.get_config() == model.get_config()
    assert np.array_equal(np.asarray(again.encoder(stamps)[0]), np.asarray(model.encoder(stamps)[0]))
    assert float(again.variance) == pytest.approx(0.02)
