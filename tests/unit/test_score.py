"""Codes to scores, against numpy: the reference distance, the novelty, and releases that cannot tell."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_vae.alert import Codes
from stream_vae.errors import ConfigError
from stream_vae.model.release import Release
from stream_vae.model.store import ReleaseStore
from stream_vae.quality import Quality
from stream_vae.stages.score import NEIGHBOURS, Scorer, _mahalanobis, _nearest

from releases import LATENTS, make_release

RNG = np.random.default_rng(11)
MEAN = RNG.normal(0, 2, (300, LATENTS)).astype(np.float32)
CODES = Codes(MEAN, RNG.normal(-2, 1, MEAN.shape).astype(np.float32))
SIZES = (1, 2, 7, 15, 16, 64, 128, 300)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ReleaseStore:
    folder = tmp_path_factory.mktemp("releases")
    store = ReleaseStore(str(folder / "store"))
    make_release(store, folder / "scored")
    return store


@pytest.fixture(scope="module")
def release(store: ReleaseStore) -> Release:
    return store.load()


def with_reference(release: Release, folder: Path, **changes: Any) -> Release:
    """A release with another reference; not verified, and without a scorer."""
    with np.load(release.folder / "reference.npz") as arrays:
        reference = {name: arrays[name] for name in arrays.files} | changes
    np.savez(folder / "reference.npz", **{name: each for name, each in reference.items() if each is not None})
    card = release.card.model_copy(update={"files": {"reference.npz": "", "encoder.onnx": ""}})
    return Release(card, folder)


def by_numpy(codes: Codes, anchors: Codes, neighbours: int) -> np.ndarray:
    squared = np.square(codes.z_mean[:, None].astype(np.float64) - anchors.z_mean[None]).sum(axis=2)
    deviations = [np.exp(0.5 * each.z_log_var.astype(np.float64)) for each in (codes, anchors)]
    squared += np.square(deviations[0][:, None] - deviations[1][None]).sum(axis=2)
    return np.sqrt(np.sort(squared, axis=1)[:, :neighbours]).mean(axis=1)


def nearest(codes: Codes, anchors: Codes, neighbours: int = NEIGHBOURS) -> np.ndarray:
    stacked = np.concatenate([anchors.z_mean, np.exp(0.5 * anchors.z_log_var)], axis=1)
    return _nearest(*codes, np.ascontiguousarray(stacked.T), neighbours)


def random_codes(rng: np.random.Generator, rows: int, size: int) -> Codes:
    return Codes(*(rng.normal(at, 2, (rows, size)).astype(np.float32) for at in (0, -1)))


@settings(deadline=None)  # the first call compiles
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 8), st.integers(1, 30))
def test_the_reference_distance_is_the_mean_to_the_nearest_anchors(seed: int, rows: int, size: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    codes, anchors = random_codes(rng, rows, size), random_codes(rng, k, size)
    expected = by_numpy(codes, anchors, min(NEIGHBOURS, k))
    np.testing.assert_allclose(nearest(codes, anchors), expected, rtol=1e-4, atol=1e-5)


def test_a_code_is_at_no_distance_from_itself_and_at_some_from_one_less_certain() -> None:
    code = random_codes(np.random.default_rng(3), 1, 6)
    assert nearest(code, code)[0] == pytest.approx(0.0, abs=1e-5)
    wider = Codes(code.z_mean, code.z_log_var + np.float32(2 * np.log(3.0)))
    sigma = np.exp(0.5 * code.z_log_var[0])
    assert nearest(wider, code)[0] == pytest.approx(2.0 * np.linalg.norm(sigma), rel=1e-5)


def test_an_anchor_is_at_its_mean_distance_to_the_four_others_nearest() -> None:
    anchors = np.array([[0], [1], [2], [3], [4], [100]], np.float32)
    certain = Codes(anchors, np.full_like(anchors, -90.0))
    assert nearest(Codes(*(each[:1] for each in certain)), certain)[0] == pytest.approx((0 + 1 + 2 + 3 + 4) / 5)


def test_a_release_without_variances_of_its_anchors_keeps_the_distance_between_means(
    release: Release, tmp_path: Path
) -> None:
    older = with_reference(release, tmp_path, real_z_log_var=None)
    with np.load(release.folder / "reference.npz") as arrays:
        anchors = arrays["real_z_mean"]
    expected = np.sort(np.linalg.norm(MEAN[:, None] - anchors[None], axis=2), axis=1)[:, :NEIGHBOURS].mean(axis=1)
    np.testing.assert_allclose(Scorer(older).score(CODES).reference_distance, expected, rtol=1e-5)
    assert (Scorer(release).score(CODES).reference_distance > expected).all()  # deviations differ, too


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 8))
def test_the_whitened_length_is_mahalanobis_distance(seed: int, rows: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    sample = rng.normal(size=(50, size)) @ rng.normal(size=(size, size))
    precision = np.linalg.inv(np.cov(sample.T).reshape(size, size) + np.eye(size))
    whitening, center = np.linalg.cholesky(precision).T, sample.mean(axis=0)
    z_mean = rng.normal(0, 3, (rows, size)).astype(np.float32)
    offset = z_mean - center
    expected = np.sqrt(np.einsum("ni,ij,nj->n", offset, precision, offset))
    found = _mahalanobis(z_mean, center.astype(np.float32), whitening.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_novelty_is_the_share_of_the_training_set_that_lies_closer(release: Release, tmp_path: Path) -> None:
    training = np.linalg.norm(RNG.normal(size=(20_000, LATENTS)), axis=1)
    quantiles = np.quantile(training, np.linspace(0, 1, 1001)).astype(np.float32)
    scorer = Scorer(with_reference(release, tmp_path, novelty_quantiles=quantiles))
    for wanted in (2.0, 4.0, 4.6, 5.5):
        z_mean = np.zeros((1, LATENTS), np.float32)
        z_mean[0, 0] = wanted
        novelty = scorer.score(Codes(z_mean, z_mean)).novelty[0]
        assert novelty == pytest.approx((training < wanted).mean(), abs=2e-3)


def test_novelty_stays_within_zero_and_one(release: Release) -> None:
    extremes = np.stack([np.zeros(LATENTS), np.full(LATENTS, 1e6)]).astype(np.float32)
    novelty = Scorer(release).score(Codes(extremes, extremes)).novelty
    assert novelty.tolist() == [0, 1]


def test_a_row_gets_the_same_bytes_whatever_batch_it_comes_in(release: Release) -> None:
    scorer = Scorer(release)
    whole = scorer.score(CODES)
    for size in SIZES:
        for start in (0, len(MEAN) - size):
            rows = slice(start, start + size)
            part = scorer.score(Codes(CODES.z_mean[rows], CODES.z_log_var[rows]))
            for found, expected in zip(part, whole, strict=True):
                np.testing.assert_array_equal(found, expected[rows])


def test_a_row_without_a_code_gets_no_scores_and_changes_nothing_of_the_others(release: Release) -> None:
    scorer = Scorer(release)
    expected = scorer.score(CODES)
    holes = Codes(CODES.z_mean.copy(), CODES.z_log_var.copy())
    holes.z_mean[[0, 7]] = holes.z_log_var[[0, 7]] = np.nan
    scores = scorer.score(holes)
    others = np.setdiff1d(np.arange(len(MEAN)), [0, 7])
    for found, all_known in zip(scores, expected, strict=True):
        assert np.isnan(found[[0, 7]]).all()
        np.testing.assert_array_equal(found[others], all_known[others])
        assert np.isfinite(found[others]).all()


def test_no_codes_make_no_scores(release: Release) -> None:
    nothing = np.empty((0, LATENTS), np.float32)
    assert [each.shape for each in Scorer(release).score(Codes(nothing, nothing))] == [(0,)] * 4


def test_a_release_without_a_scorer_gives_everything_else_and_says_so(store: ReleaseStore, tmp_path: Path) -> None:
    card = make_release(store, tmp_path / "unscored", scorer=False, seed=1, promote=False)
    scorer = Scorer(store.load(card.id))
    scores = scorer.score(CODES)
    assert scorer.flag == Quality.NO_SCORER
    assert np.isnan(scores.real_score).all()
    assert np.isnan(scores.real_score_std).all()
    assert np.isfinite(scores.reference_distance).all()
    assert np.isfinite(scores.novelty).all()


def test_a_release_with_a_scorer_has_no_such_flag(release: Release) -> None:
    assert Scorer(release).flag == 0
    score = Scorer(release).score(CODES).real_score
    assert ((score >= 0) & (score <= 1)).all()


def test_a_release_without_reference_transients_has_no_distance(release: Release, tmp_path: Path) -> None:
    nobody = np.empty((0, LATENTS), np.float32)
    scores = Scorer(with_reference(release, tmp_path, real_z_mean=nobody, real_z_log_var=nobody)).score(CODES)
    assert np.isnan(scores.reference_distance).all()
    assert np.isfinite(scores.novelty).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"center": np.zeros(5)}, "does not fit 21 latents"),
        ({"whitening": np.eye(5)}, "does not fit 21 latents"),
        ({"real_z_mean": np.zeros((3, 5))}, "does not fit 21 latents"),
        ({"novelty_quantiles": np.zeros(1)}, "does not fit 21 latents"),
        ({"real_z_log_var": np.zeros((3, LATENTS))}, "one variance for each mean"),
        ({"center": None}, "cannot be read"),
        ({"real_z_mean": np.array([{"a": 1}], dtype=object)}, "cannot be read"),  # a pickle is never opened
    ],
)
def test_a_reference_that_does_not_fit_is_refused_at_the_start(
    release: Release, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        Scorer(with_reference(release, tmp_path, **changes))


def test_a_reference_that_is_no_archive_is_refused(release: Release, tmp_path: Path) -> None:
    damaged = with_reference(release, tmp_path)
    (tmp_path / "reference.npz").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        Scorer(damaged)
