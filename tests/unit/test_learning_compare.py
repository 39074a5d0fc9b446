"""Two releases on the same stamps: the figures, and what cannot be compared."""

import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from stream_vae.errors import ConfigError
from stream_vae.learning.compare import NEIGHBOURS, align, compare, nearest, recall, residual
from stream_vae.model.store import ReleaseStore

from releases import make_release

RANDOM = np.random.default_rng(7)
CODES = RANDOM.normal(size=(200, 6)).astype(np.float32)
ROTATION = np.linalg.qr(RANDOM.normal(size=(6, 6)))[0].astype(np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return ReleaseStore(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def releases(store, tmp_path_factory):
    cards = [make_release(store, tmp_path_factory.mktemp("release"), seed=seed) for seed in (1, 2)]
    return [store.load(card.id) for card in cards]


@pytest.fixture(scope="module")
def stamps_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "stamps.npz"
    # Stamps of few degrees of freedom: neighbours in noise would be an accident.
    np.savez(path, stamps=(RANDOM.normal(size=(150, 4)) @ RANDOM.normal(size=(4, 441))).reshape(150, 21, 21))
    return str(path)


def test_turned_and_moved_codes_are_turned_back():
    moved = CODES @ ROTATION + 3.0
    assert residual(moved, CODES) > 1.0
    assert residual(align(moved, CODES), CODES) < 1e-9


def test_alignment_does_not_stretch():
    # The best rotation of doubled codes is none: what is left is the code itself once more, all of its variance.
    assert residual(align(2.0 * CODES, CODES), CODES) == pytest.approx(1.0, rel=1e-3)


def test_the_nearest_are_those_of_a_search_by_hand():
    other = RANDOM.normal(size=CODES.shape)
    found = nearest(CODES, other, 5)
    for row in (0, 17, 199):
        distance = np.linalg.norm(other - CODES[row], axis=1)
        distance[row] = np.inf
        assert set(found[row]) == set(np.argsort(distance)[:5])


def test_recall_counts_what_was_found_in_any_order():
    wanted = np.array([[1, 2], [3, 4]])
    assert recall(wanted[:, ::-1], wanted) == 1.0
    assert recall(np.array([[2, 9], [8, 9]]), wanted) == 0.25


def test_codes_without_meaning_have_the_recall_of_chance():
    pixels, noise = RANDOM.normal(size=(2, 1000, 8))
    got = recall(nearest(noise, noise, NEIGHBOURS), nearest(pixels, pixels, NEIGHBOURS))
    assert got == pytest.approx(NEIGHBOURS / 999, rel=0.3)


def test_a_release_agrees_with_itself(releases, stamps_file):
    found = compare(releases[0], releases[0], data=stamps_file)
    assert (found.stamps, found.stamps_from, found.same_latent_space) == (150, "stamps.npz", True)
    assert found.scores.pearson == pytest.approx(1.0)
    assert found.scores.spearman == pytest.approx(1.0)
    assert found.scores.mean_absolute_difference == 0.0
    assert found.unaligned_residual == 0.0
    assert found.procrustes_residual < 1e-6
    near = found.retrieval
    assert near.old_against_old == near.new_against_new == near.new_against_old == near.aligned_against_old
    assert near.shared == 1.0


def test_releases_of_other_weights_do_not_agree(releases, stamps_file):
    found = compare(*releases, data=stamps_file)
    assert not found.same_latent_space
    assert abs(found.scores.pearson) < 0.9
    assert found.scores.mean_absolute_difference > 0.1
    assert found.unaligned_residual > found.procrustes_residual > 0.1
    near = found.retrieval
    # A random linear map keeps most of the distances within a space, and none across two.
    assert near.old_against_old > 0.5
    assert max(near.new_against_old, near.chance, near.shared) < 0.3


def test_what_a_release_lacks_is_none(store, releases, stamps_file, tmp_path):
    silent = store.load(make_release(store, tmp_path, seed=3, scorer=False, promote=False).id)
    found = asdict(compare(releases[0], silent, data=stamps_file))
    assert (found["scores"], found["squared_error_a"], found["squared_error_b"]) == (None, None, None)


def test_releases_that_take_other_stamps_are_not_compared(store, releases, tmp_path):
    other = store.load(make_release(store, tmp_path, size=15, promote=False).id)
    with pytest.raises(ConfigError, match="prepare stamps differently"):
        compare(releases[0], other, data="sim")


def test_a_release_without_anchors_asks_for_data(releases):
    with pytest.raises(ConfigError, match=r"no anchor stamps.*--data"):
        compare(*releases)


def test_a_handful_of_stamps_is_too_few(releases, tmp_path):
    np.savez(tmp_path / "few.npz", stamps=RANDOM.normal(size=(9, 21, 21)))
    with pytest.raises(ConfigError, match="too few"):
        compare(*releases, data=str(tmp_path / "few.npz"))


def test_comparing_loads_no_tensorflow():
    program = "import sys, stream_vae.learning.compare; print({'tensorflow', 'keras'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
