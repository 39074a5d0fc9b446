from types import SimpleNamespace

import numpy as np
import pytest
from stream_vae.learning.representation import BATCH, ReleaseRepresentation, of_model, sampled
from stream_vae.model.cvae import CVAE


@pytest.fixture(scope="module")
def model():
    return CVAE(stamp_size=9, latent_size=3, filters=2, decoder_variance=0.25)


def test_a_model_is_seen_through_its_encoder_and_decoder(model):
    stamps = np.random.default_rng(1).normal(size=(5, 9, 9, 1)).astype(np.float32)
    seen = of_model("a name", model)
    z_mean, z_log_var = seen.encode(stamps)
    expected = [np.asarray(head) for head in model.encoder(stamps)]
    assert np.array_equal(z_mean, expected[0])
    assert np.array_equal(z_log_var, expected[1])
    assert seen.decode(z_mean).shape == stamps.shape
    assert (seen.name, seen.variance) == ("a name", 0.25)


class _Recording:
    """Stands for the stages, and remembers how many stamps it was given at a time."""

    def __init__(self):
        self.sizes = []

    def run(self, stamps):
        self.sizes.append(len(stamps))
        return SimpleNamespace(z_mean=stamps[:, 0, 0], z_log_var=-stamps[:, 0, 0])

    def reconstruct(self, codes):
        self.sizes.append(len(codes))
        return codes[:, np.newaxis, np.newaxis]


def release(metrics):
    seen = ReleaseRepresentation.__new__(ReleaseRepresentation)
    seen.release = SimpleNamespace(card=SimpleNamespace(metrics=metrics))
    seen._encoder = seen._decoder = _Recording()
    return seen


def test_a_release_encodes_and_decodes_a_bounded_number_at_a_time_in_order():
    seen = release({})
    stamps = np.arange(2 * BATCH + 5, dtype=np.float32).reshape(-1, 1, 1, 1)
    z_mean, z_log_var = seen.encode(stamps)
    assert np.array_equal(z_mean, stamps[:, 0, 0])
    assert np.array_equal(z_log_var, -z_mean)
    assert np.array_equal(seen.decode(z_mean), stamps)
    assert seen._encoder.sizes == [BATCH, BATCH, 5] * 2


@pytest.mark.parametrize(
    ("metrics", "variance"),
    [({"reconstruction": {"decoder_variance": 0.01}}, 0.01), ({}, None), ({"reconstruction": None}, None)],
)
def test_a_release_has_the_variance_that_its_card_states_if_any(metrics, variance):
    assert release(metrics).variance == variance


def test_draws_scatter_as_the_posterior_says_and_without_one_codes_stay():
    z_mean = np.full((20_000, 2), 3.0, np.float32)
    z_log_var = np.broadcast_to(np.log([0.25, 1e-8]).astype(np.float32), z_mean.shape)
    drawn = sampled(z_mean, z_log_var, seed=1)
    assert drawn.mean(axis=0) == pytest.approx([3.0, 3.0], abs=0.02)
    assert drawn.std(axis=0) == pytest.approx([0.5, 1e-4], rel=0.03)
    assert np.array_equal(drawn, sampled(z_mean, z_log_var, seed=1))
    assert not np.array_equal(drawn, sampled(z_mean, z_log_var, seed=2))
    assert sampled(z_mean, None, seed=1) is z_mean
