import numpy as np
import pytest
from sklearn.decomposition import PCA
from stream_vae.errors import ConfigError
from stream_vae.learning import baselines


@pytest.fixture(scope="module")
def stamps():
    random = np.random.default_rng(1)
    shapes = random.normal(size=(6, 49)) * np.array([3, 2.5, 2, 1.5, 1, 0.7])[:, np.newaxis]
    flat = random.normal(size=(3000, 6)) @ shapes + 0.05 * random.normal(size=(3000, 49)) + 0.3
    return flat.reshape(3000, 7, 7, 1).astype(np.float32)


def error(representation, stamps):
    codes, log_var = representation.encode(stamps)
    assert log_var is None
    return np.square(representation.decode(codes) - stamps).sum(axis=(1, 2, 3)).mean()


def test_components_found_by_batches_are_those_of_all_stamps_at_once(stamps):
    found = baselines.fit_pca(baselines.Batches(stamps, size=300), 6)
    whole = PCA(6).fit(stamps.reshape(3000, -1))
    assert np.abs(np.sum(found.components * whole.components_, axis=1)) == pytest.approx(np.ones(6), abs=1e-3)
    flat = stamps.reshape(3000, -1)
    expected = np.square(whole.inverse_transform(whole.transform(flat)) - flat).sum(axis=1).mean()
    assert error(found, stamps) == pytest.approx(expected, rel=1e-3)
    assert (found.name, found.encode(stamps)[0].shape) == ("PCA-6", (3000, 6))


def test_batches_may_be_as_small_as_one_stamp_and_come_from_an_iterator(stamps):
    one_by_one = baselines.fit_pca((stamps[i : i + 1] for i in range(600)), 6)
    at_once = baselines.fit_pca([stamps[:600]], 6)
    assert error(one_by_one, stamps) == pytest.approx(error(at_once, stamps), rel=1e-3)


def test_batches_are_each_row_once_in_the_same_order_every_time(stamps):
    rows = np.arange(0, 3000, 3)
    batches = baselines.Batches(stamps, rows, size=256)
    first, second = list(batches), list(batches)
    assert [len(batch) for batch in first] == [256, 256, 256, 232]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert np.array_equal(np.sort(np.concatenate(first), axis=None), np.sort(stamps[rows], axis=None))


def test_batches_of_a_memory_mapped_file_are_those_of_the_array(stamps, tmp_path):
    np.save(tmp_path / "stamps.npy", stamps)
    mapped = np.load(tmp_path / "stamps.npy", mmap_mode="r")
    pairs = zip(baselines.Batches(mapped), baselines.Batches(stamps), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_a_dictionary_finds_the_atoms_that_stamps_are_sparsely_made_of():
    random = np.random.default_rng(2)
    atoms = np.zeros((5, 25))
    for i in range(5):
        atoms[i, 5 * i : 5 * i + 5] = 1 / np.sqrt(5)
    codes = random.laplace(0, 2, (1500, 5)) * (random.random((1500, 5)) < 0.1)
    stamps = (codes @ atoms).reshape(1500, 5, 5, 1).astype(np.float32)
    found = baselines.fit_dictionary(baselines.Batches(stamps), 5, penalty=1.0, passes=8)
    overlap = np.abs(found.components @ atoms.T)
    assert overlap.max(axis=1) == pytest.approx(np.ones(5), abs=0.01)
    assert sorted(overlap.argmax(axis=1)) == [0, 1, 2, 3, 4]
    code, _ = found.encode(stamps)
    assert error(found, stamps) < 0.15 * np.square(stamps).sum(axis=(1, 2, 3)).mean()
    assert (code != 0).mean() < 0.1


def test_a_larger_penalty_makes_sparser_codes_and_a_larger_error(stamps):
    loose, tight = (baselines.fit_dictionary(baselines.Batches(stamps), 6, penalty=p) for p in (0.01, 2.0))
    assert (loose.encode(stamps)[0] != 0).mean() > (tight.encode(stamps)[0] != 0).mean()
    assert error(loose, stamps) < error(tight, stamps)


def test_the_same_seed_learns_the_same_dictionary(stamps):
    first, second = (baselines.fit_dictionary(baselines.Batches(stamps), 6, seed=3) for _ in range(2))
    assert np.array_equal(first.components, second.components)


def test_raw_pixels_are_their_own_code_and_are_not_reconstructed(stamps):
    codes, log_var = baselines.raw_pixels().encode(stamps)
    assert np.array_equal(codes, stamps.reshape(3000, -1))
    assert log_var is None
    assert baselines.raw_pixels().decode(codes) is None


def test_no_stamps_have_no_codes(stamps):
    found = baselines.fit_pca([stamps], 6)
    assert found.encode(stamps[:0])[0].shape == (0, 6)


@pytest.mark.parametrize("fit", [baselines.fit_pca, baselines.fit_dictionary])
def test_too_few_stamps_and_pixels_that_are_nan_are_refused(stamps, fit):
    with pytest.raises(ConfigError, match="20 stamps are too few for 21 components"):
        fit([stamps[:20]], 21)
    with pytest.raises(ConfigError, match="0 stamps are too few"):
        fit([], 21)
    damaged = stamps.copy()
    damaged[7, 3, 3] = np.nan
    with pytest.raises(ConfigError, match=r"not finite.*normalise"):
        fit([damaged], 6)


def test_stamps_of_another_size_and_a_second_pass_through_an_iterator_are_refused(stamps):
    found = baselines.fit_pca([stamps], 6)
    with pytest.raises(ConfigError, match=r"\(5, 5, 1\) do not fit .* \(7, 7, 1\)"):
        found.encode(stamps[:, 1:6, 1:6])
    with pytest.raises(ConfigError, match="2 passes through an iterator"):
        baselines.fit_dictionary(iter([stamps]), 6, passes=2)
