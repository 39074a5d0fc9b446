"""Every objective does what its paper says: exactly where that can be computed, else over many draws."""

import numpy as np
import pytest
from stream_vae.model import losses
from stream_vae.model.backend import keras
from stream_vae.model.cvae import CVAE
from stream_vae.model.priors import StandardNormal, VampPrior
from stream_vae.model.scae import SCAE
from stream_vae.model.schedules import KlSchedule

# TensorFlow's variables do not know numpy 2's `copy` yet; Keras converts them so when it saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

SMALL = {"filters": 4, "latent_size": 3, "stamp_size": 9}
OBJECTIVES = {
    "unit variance": {"decoder_variance": 1.0},
    "fitted variance": {},
    "linear annealing": {"anneal": "linear", "anneal_steps": 20},
    "sigmoid annealing": {"anneal": "sigmoid", "anneal_steps": 20},
    "cyclical annealing": {"anneal": "cyclical", "anneal_steps": 20},
    "geco": {"objective": "geco", "tolerance": 0.02},
    "iwae": {"objective": "iwae", "importance_samples": 4},
    "vamp": {"prior": "vamp", "pseudo_inputs": 5},
    "iwae with vamp": {"objective": "iwae", "importance_samples": 3, "prior": "vamp", "pseudo_inputs": 5},
    "noise map": {"noise_map": True},
    "labels": {"label_weight": 5.0},
}


def array(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


@pytest.fixture(scope="module")
def stamps():
    """Gaussian sources of three sizes, which three latent units can tell apart, with some noise."""
    random = np.random.default_rng(5)
    offset = np.arange(9) - 4
    radius = offset[:, None] ** 2 + offset[None, :] ** 2
    width = random.uniform(1.0, 3.0, (192, 1, 1))
    images = np.exp(-0.5 * radius / width**2) + 0.05 * random.standard_normal((192, 9, 9))
    return images[..., np.newaxis].astype(np.float32)


def inputs(stamps):
    label = np.resize(np.array([1, 0, -1], np.float32), len(stamps))
    return {"stamp": stamps, "noise": np.full_like(stamps, 0.05), "label": label}


def fitted(stamps, *, epochs=8, **settings):
    keras.utils.set_random_seed(3)
    model = CVAE(**SMALL, **settings)
    model.compile(optimizer=keras.optimizers.Adam(5e-3))
    history = model.fit(inputs(stamps), epochs=epochs, batch_size=32, verbose=0).history
    return model, history


@pytest.mark.parametrize("settings", OBJECTIVES.values(), ids=OBJECTIVES)
def test_every_objective_learns_to_reconstruct_and_comes_back_from_its_file(stamps, settings, tmp_path):
    model, history = fitted(stamps, **settings)
    assert history["reconstruction_loss"][-1] < 0.5 * history["reconstruction_loss"][0]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    assert again.get_config() == model.get_config()
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        assert np.array_equal(one, other)
    assert np.isfinite(array(again.decoder(again.prior_sample(4)))).all()


def test_the_sparse_autoencoder_learns_a_point_code_and_comes_back_from_its_file(stamps, tmp_path):
    keras.utils.set_random_seed(3)
    model = SCAE(**SMALL)
    model.compile(optimizer=keras.optimizers.Adam(5e-3))
    history = model.fit(stamps, epochs=8, batch_size=32, verbose=0).history
    assert history["reconstruction_loss"][-1] < 0.5 * history["reconstruction_loss"][0]
    _, z_log_var = model.encoder(stamps)
    assert np.unique(array(z_log_var)).tolist() == [-20.0]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    assert np.array_equal(array(again.encoder(stamps)[0]), array(model.encoder(stamps)[0]))
    with pytest.raises(TypeError, match="no prior"):
        model.prior_sample(3)


def test_a_larger_sparsity_makes_smaller_codes(stamps):
    sizes = []
    for sparsity in (0.005, 1.0):
        keras.utils.set_random_seed(3)
        model = SCAE(**SMALL, sparsity=sparsity)
        model.compile(optimizer=keras.optimizers.Adam(5e-3))
        model.fit(stamps, epochs=8, batch_size=32, verbose=0)
        sizes.append(np.abs(array(model.encoder(stamps)[0])).sum(axis=1).mean())
    assert sizes[1] < 0.5 * sizes[0]


def test_geco_ends_at_its_tolerance(stamps):
    for tolerance in (0.01, 0.03):
        model, history = fitted(stamps, epochs=120, objective="geco", tolerance=tolerance)
        reached = np.mean(history["reconstruction_loss"][-10:]) / 81
        assert reached == pytest.approx(tolerance, rel=0.2)
        assert 0.0 < float(model.multiplier) < 1.0  # both tolerances are looser than what this model could reach


def test_geco_judges_epochs_by_the_tolerance_first_and_by_the_divergence_within_it(stamps):
    def judged(tolerance):
        model = CVAE(**SMALL, objective="geco", tolerance=tolerance)
        model.compile(optimizer=keras.optimizers.Adam())
        return model.evaluate(stamps, verbose=0, return_dict=True, batch_size=len(stamps))

    loose, tight = judged(10.0), judged(1e-3)
    assert loose["loss"] == pytest.approx(loose["kl_loss"], rel=1e-5)
    excess = tight["reconstruction_loss"] / (81 * 1e-3) - 1.0
    assert tight["loss"] == pytest.approx(tight["kl_loss"] + 10.0 * 0.5 * 81 * excess, rel=1e-4)


def linear_joint(z, stamps, matrix, variance):
    """log p(x, z) of a linear decoder."""
    mean = z @ matrix
    log_likelihood = losses.log_normal(stamps, mean, keras.ops.full_like(mean, np.log(variance)))
    return log_likelihood + StandardNormal(z.shape[-1]).log_density(z)


@pytest.fixture(scope="module")
def linear():
    """Stamps of a linear Gaussian model with a posterior that is a little off."""
    random = np.random.default_rng(2)
    matrix = random.standard_normal((2, 6)).astype(np.float32)
    variance = 0.5
    stamps = random.standard_normal((5, 2)).astype(np.float32) @ matrix
    stamps = (stamps + np.sqrt(variance) * random.standard_normal(stamps.shape)).astype(np.float32)
    covariance = np.linalg.inv(np.eye(2) + matrix @ matrix.T / variance)
    mean = (stamps @ matrix.T / variance @ covariance).astype(np.float32) + 0.1
    log_var = np.broadcast_to(np.log(np.diag(covariance)) + 0.3, mean.shape).astype(np.float32)
    whole = matrix.T @ matrix + variance * np.eye(6)
    _, log_det = np.linalg.slogdet(2 * np.pi * whole)
    exact = -0.5 * (log_det + np.einsum("ni,ij,nj->n", stamps, np.linalg.inv(whole), stamps))
    return stamps, matrix, variance, mean, log_var, exact


def bound(linear, draws, seed):
    stamps, matrix, variance, mean, log_var, _ = linear
    noise = np.random.default_rng(seed).standard_normal((draws, *mean.shape)).astype(np.float32)
    z = mean + np.exp(0.5 * log_var) * noise
    joint = lambda codes: linear_joint(codes, stamps, matrix, variance)  # noqa: E731
    return array(losses.importance_weighted(z, mean, log_var, joint))


def test_the_importance_weighted_bound_rises_to_the_evidence(linear):
    exact = linear[-1].mean()
    means = [np.mean([bound(linear, draws, seed).mean() for seed in range(200)]) for draws in (1, 5, 50)]
    assert means[0] < means[1] < means[2] <= exact + 0.01
    assert means[2] == pytest.approx(exact, abs=0.02)


def test_with_one_draw_it_is_the_bound(linear):
    stamps, matrix, variance, mean, log_var, _ = linear
    kl = array(losses.kl_per_unit(mean, log_var)).sum(axis=1)
    # E log p(x|z) of a linear decoder, in closed form.
    error = np.square(stamps - mean @ matrix).sum(axis=1) + (np.exp(log_var) @ np.square(matrix)).sum(axis=1)
    elbo = -0.5 * error / variance - 3.0 * np.log(2 * np.pi * variance) - kl
    drawn = np.mean([bound(linear, 1, seed) for seed in range(4000)], axis=0)
    assert drawn == pytest.approx(elbo, abs=0.15)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="takes gradients with TensorFlow's tape")
def test_the_doubly_reparameterised_gradient_is_the_plain_one_with_less_noise(linear):
    import tensorflow as tf

    stamps, matrix, variance, start, log_var, _ = linear
    doubly, plain = [], []
    for seed in range(300):
        noise = np.random.default_rng(seed).standard_normal((8, *start.shape)).astype(np.float32)
        mean = tf.Variable(start)

        def joint(codes):
            return linear_joint(codes, stamps, matrix, variance)

        with tf.GradientTape() as tape:
            z = mean + np.exp(0.5 * log_var) * noise
            value = tf.reduce_sum(losses.importance_weighted(z, mean, log_var, joint))
        doubly.append(tape.gradient(value, mean).numpy())
        with tf.GradientTape() as tape:
            z = mean + np.exp(0.5 * log_var) * noise
            value = tf.reduce_sum(tf.reduce_logsumexp(joint(z) - losses.log_normal(z, mean, log_var), axis=0))
        plain.append(tape.gradient(value, mean).numpy())
    doubly, plain = np.array(doubly), np.array(plain)
    error = np.sqrt((doubly.var(axis=0) + plain.var(axis=0)) / 300)
    assert (np.abs(doubly.mean(axis=0) - plain.mean(axis=0)) < 4 * error).all()
    assert doubly.var(axis=0).mean() < 0.7 * plain.var(axis=0).mean()


def test_a_mixture_of_standard_normals_is_the_standard_normal():
    encoder = CVAE(**SMALL).encoder
    for name in ("z_mean", "z_log_var"):
        layer = encoder.get_layer(name)
        layer.set_weights([np.zeros_like(weights) for weights in layer.get_weights()])
    prior = VampPrior(encoder, 7)
    random = np.random.default_rng(4)
    mean = random.standard_normal((4, 3)).astype(np.float32)
    log_var = random.standard_normal((4, 3)).astype(np.float32)
    z = (mean + np.exp(0.5 * log_var) * random.standard_normal((4000, 4, 3))).astype(np.float32)
    assert array(prior.log_density(z)) == pytest.approx(array(StandardNormal(3).log_density(z)), rel=1e-4)
    kl = array(StandardNormal(3).divergence(z, mean, log_var))
    assert array(prior.divergence(z, mean, log_var)).mean(axis=0) == pytest.approx(kl, abs=0.15)


def test_a_learned_prior_trains_its_pseudo_inputs(stamps):
    before = array(CVAE(**SMALL, prior="vamp", pseudo_inputs=5).prior.pseudo_inputs)
    model, _ = fitted(stamps, epochs=2, prior="vamp", pseudo_inputs=5)
    after = array(model.prior.pseudo_inputs)
    assert before.shape == after.shape == (5, 9, 9, 1)
    assert np.abs(after - before).max() > 1e-3


def test_equal_noise_everywhere_is_a_fixed_variance(stamps):
    other = np.zeros_like(stamps)
    error = losses.summed_squared_error(stamps, other)
    expected = array(losses.gaussian_nll(error, 0.04, 81))
    noise = np.full_like(stamps, 0.2)
    assert array(losses.noise_map_nll(stamps, other, noise, 0.0)) == pytest.approx(expected, rel=1e-4)
    shared = np.full_like(stamps, np.sqrt(0.03))
    assert array(losses.noise_map_nll(stamps, other, shared, 0.01)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("unknown", [np.nan, 0.0, -1.0, np.inf])
def test_a_pixel_of_unknown_noise_counts_nothing_and_breaks_no_gradient(stamps, unknown):
    noise = np.full_like(stamps, 0.05)
    noise[:, 2:4] = unknown
    changed = stamps.copy()
    changed[:, 2:4] = 7.0
    zeros = np.zeros_like(stamps)
    assert np.array_equal(
        array(losses.noise_map_nll(stamps, zeros, noise, 0.01)),
        array(losses.noise_map_nll(changed, zeros, noise, 0.01)),
    )
    keras.utils.set_random_seed(1)
    model = CVAE(**SMALL, noise_map=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    model.fit({"stamp": stamps, "noise": noise}, epochs=1, batch_size=64, verbose=0)
    assert all(np.isfinite(weights).all() for weights in model.get_weights())


def test_the_variance_beside_a_noise_map_is_what_the_map_does_not_explain():
    random = np.random.default_rng(9)
    noise = np.full((64, 9, 9, 1), 0.3, np.float32)
    residuals = (np.sqrt(0.09 + 0.04) * random.standard_normal(noise.shape)).astype(np.float32)
    assert float(losses.excess_variance(residuals, 0.0 * residuals, noise)) == pytest.approx(0.04, rel=0.15)


def test_labels_part_the_codes_and_unlabelled_stamps_contribute_nothing(stamps):
    model, history = fitted(stamps, epochs=3, label_weight=5.0)
    assert np.isfinite(history["label_loss"]).all()
    z = model.sample(*model.encoder(stamps))
    unlabelled = model._label_loss(np.full(len(stamps), -1.0, np.float32), z)
    assert not array(unlabelled).any()
    mixed = array(model._label_loss(np.resize(np.array([1, 0, -1], np.float32), len(stamps)), z))
    assert (mixed[0::3] > 0).all()
    assert (mixed[1::3] > 0).all()
    assert not mixed[2::3].any()


def test_labels_that_follow_the_stamps_are_learned(stamps):
    keras.utils.set_random_seed(3)
    model = CVAE(**SMALL, label_weight=30.0)
    model.compile(optimizer=keras.optimizers.Adam(5e-3))
    wide = stamps[:, 0, 4, 0] > np.median(stamps[:, 0, 4, 0])
    history = model.fit(
        {"stamp": stamps, "label": wide.astype(np.float32)}, epochs=25, batch_size=32, verbose=0
    ).history
    assert history["label_loss"][-1] < 0.6 * history["label_loss"][0]


def test_evaluation_leaves_labels_out(stamps):
    keras.utils.set_random_seed(3)
    model = CVAE(**SMALL, label_weight=5.0)
    model.compile(optimizer=keras.optimizers.Adam())
    logs = model.evaluate({"stamp": stamps}, verbose=0, return_dict=True, batch_size=len(stamps))
    assert logs["loss"] == pytest.approx(-logs["elbo"], rel=1e-5)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [0.05, 0.25, 0.5, 0.5]),
        ("sigmoid", [0.5 / (1 + np.exp(4.8)), 0.25, 0.5, 0.5]),
        ("cyclical", [0.0, 0.5, 0.5, 0.5]),
        ("none", [0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_a_schedule_rises_to_its_final_weight_and_stays(shape, expected):
    schedule = KlSchedule(final=0.5, anneal_steps=10, shape=shape, cycles=2)
    assert [float(schedule.at(step)) for step in (0.0, 4.0, 9.0, 99.0)] == pytest.approx(expected, abs=1e-6)


def test_a_cyclical_schedule_begins_again():
    schedule = KlSchedule(final=1.0, anneal_steps=40, shape="cyclical", cycles=2)
    assert [float(schedule.at(float(step))) for step in (0, 5, 10, 19, 20, 30, 39, 40)] == pytest.approx(
        [0.0, 0.5, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    )
