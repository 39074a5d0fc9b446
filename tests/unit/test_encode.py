"""Stamps to codes: the same bytes whatever batch they come in, and no bad stamp takes its batch along."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from stream_vae.backends.onnx import open_session
from stream_vae.errors import ConfigError
from stream_vae.model.release import Release
from stream_vae.model.store import ReleaseStore
from stream_vae.quality import Quality
from stream_vae.stages.encode import Encoder
from stream_vae.stages.stamp import Stamps

from releases import LATENTS, make_release, write_encoder

SIZES = (1, 2, 7, 15, 16, 17, 64, 128, 500)
STAMPS = np.random.default_rng(3).uniform(-1, 1, (512, 21, 21, 1)).astype(np.float32)


def write_convolutions(path: Path) -> None:
    """The paper's encoder with random weights: three convolutions of 32 filters with stride 2 and two linear heads."""
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Transpose", ["stamp"], ["c0"], perm=[0, 3, 1, 2])]
    weights: dict[str, Any] = {"flat": np.array([-1, 288], np.int64)}
    for n, depth in enumerate((1, 32, 32)):
        weights[f"w{n}"] = rng.normal(0, (9 * depth) ** -0.5, (32, depth, 3, 3)).astype(np.float32)
        conv = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
        nodes.append(helper.make_node("Conv", [f"c{n}", f"w{n}"], [f"a{n}"], **conv))
        nodes.append(helper.make_node("Relu", [f"a{n}"], [f"c{n + 1}"]))
    nodes.append(helper.make_node("Reshape", ["c3", "flat"], ["features"]))
    for head in ("z_mean", "z_log_var"):
        weights[f"w_{head}"] = rng.normal(0, 288**-0.5, (288, LATENTS)).astype(np.float32)
        weights[f"b_{head}"] = rng.normal(0, 0.1, LATENTS).astype(np.float32)
        nodes.append(helper.make_node("Gemm", ["features", f"w_{head}", f"b_{head}"], [head]))
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "encoder",
        [tensor("stamp", TensorProto.FLOAT, ["n", 21, 21, 1])],
        [tensor(head, TensorProto.FLOAT, ["n", LATENTS]) for head in ("z_mean", "z_log_var")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("releases")
    store = ReleaseStore(str(folder / "store"))
    make_release(store, folder / "new")
    return store.load()


@pytest.fixture(scope="module")
def paper(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The paper's encoder in a release; not verified."""
    folder = tmp_path_factory.mktemp("paper")
    write_convolutions(folder / "encoder.onnx")
    return Release(release.card, folder)


@pytest.fixture
def encoder(release: Release) -> Encoder:
    return Encoder(release)


def batch(stamps: np.ndarray, **flags: Quality) -> Stamps:
    quality = np.zeros(len(stamps), np.uint32)
    for row, flag in flags.items():
        quality[int(row.removeprefix("row"))] = flag
    return Stamps(stamps, quality)


@pytest.mark.parametrize("which", ["release", "paper"])
def test_a_stamp_gets_the_same_bytes_whatever_batch_it_comes_in(which: str, request: pytest.FixtureRequest) -> None:
    encoder = Encoder(request.getfixturevalue(which))
    whole = encoder.run(STAMPS)
    assert np.isfinite(whole.z_mean).all()
    assert np.ptp(whole.z_mean, axis=0).min() > 0
    for size in SIZES:
        for start in (0, 3, len(STAMPS) - size):
            part = encoder.run(STAMPS[start : start + size])
            np.testing.assert_array_equal(part.z_mean, whole.z_mean[start : start + size])
            np.testing.assert_array_equal(part.z_log_var, whole.z_log_var[start : start + size])


def test_the_codes_are_those_of_the_graph(encoder: Encoder, release: Release) -> None:
    graph = onnx.load(release.folder / "encoder.onnx").graph
    weights = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    codes = encoder.run(STAMPS[:20])
    flat = STAMPS[:20].reshape(20, -1).astype(np.float64)
    np.testing.assert_allclose(codes.z_mean, flat @ weights["w_mean"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(codes.z_log_var, flat @ weights["w_log_var"] + weights["b"], rtol=1e-4, atol=1e-5)


def test_an_unscoreable_row_gets_no_code_and_changes_nothing_of_the_others(encoder: Encoder) -> None:
    expected = encoder.run(STAMPS[:40])
    codes, after, poison = encoder.encode(batch(STAMPS[:40], row3=Quality.BLANK, row20=Quality.MISSING_CUTOUT))
    assert np.isnan(codes.z_mean[[3, 20]]).all()
    assert np.isnan(codes.z_log_var[[3, 20]]).all()
    others = np.setdiff1d(np.arange(40), [3, 20])
    np.testing.assert_array_equal(codes.z_mean[others], expected.z_mean[others])
    assert (after.quality[[3, 20]] == [Quality.BLANK, Quality.MISSING_CUTOUT]).all()
    assert not after.quality[others].any()
    assert poison == []


def test_flags_that_do_not_forbid_scoring_do_not(encoder: Encoder) -> None:
    codes, after, _ = encoder.encode(batch(STAMPS[:1], row0=Quality.MASKED_PIXELS | Quality.PADDED))
    assert np.isfinite(codes.z_mean).all()
    assert after.quality[0] == Quality.MASKED_PIXELS | Quality.PADDED


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_batch_with_nothing_to_encode_does_not_trouble_the_encoder(encoder: Encoder, rows: int) -> None:
    encoder.network = None  # type: ignore[assignment] - whoever calls it fails
    codes, _, poison = encoder.encode(Stamps(STAMPS[:rows], np.full(rows, Quality.BLANK, np.uint32)))
    assert codes.z_mean.shape == (rows, LATENTS)
    assert np.isnan(codes.z_mean).all()
    assert poison == []


class FakeSession:
    """Gives the mean of each stamp as its code; fails or gives NaN on stamps that begin with a mark."""

    POISON = 0.125
    NOT_A_NUMBER = 0.25
    ONLY_THE_VARIANCE = 0.375

    def __init__(self) -> None:
        self.calls: list[int] = []

    def run(self, _outputs: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        stamps = inputs["stamp"]
        self.calls.append(len(stamps))
        marks = stamps[:, 0, 0, 0]
        if (marks == self.POISON).any():
            raise RuntimeError("cannot encode this")
        mean = np.repeat(stamps.mean(axis=(1, 2)), LATENTS, axis=1)
        log_var = -mean
        mean[marks == self.NOT_A_NUMBER, 5] = np.nan
        log_var[marks == self.ONLY_THE_VARIANCE, 0] = np.inf
        return [mean, log_var]


@pytest.fixture
def fake(encoder: Encoder) -> FakeSession:
    encoder.network._session = session = FakeSession()  # type: ignore[attr-defined]
    return session


def marked(rows: int, marks: dict[int, float]) -> np.ndarray:
    stamps = STAMPS[:rows].copy()
    for row, mark in marks.items():
        stamps[row, 0, 0, 0] = mark
    return stamps


@pytest.mark.parametrize("rows", [[0], [99], [42], [0, 99], [10, 11, 12], list(range(100))])
def test_only_the_alerts_on_which_the_encoder_fails_are_poison(
    encoder: Encoder, fake: FakeSession, rows: list[int]
) -> None:
    stamps = marked(100, dict.fromkeys(rows, FakeSession.POISON))
    codes, after, poison = encoder.encode(batch(stamps))
    assert sorted(poison) == rows
    others = np.setdiff1d(np.arange(100), rows)
    np.testing.assert_allclose(codes.z_mean[others, 0], stamps[others].mean(axis=(1, 2, 3)), rtol=1e-5, atol=1e-6)
    assert np.isnan(codes.z_mean[rows]).all()
    assert not after.quality.any()  # a dead letter has no quality


def test_one_poison_alert_costs_about_as_many_calls_as_halvings(encoder: Encoder, fake: FakeSession) -> None:
    encoder.encode(batch(marked(512, {300: FakeSession.POISON})))
    assert len(fake.calls) == 1 + 2 * 9


def test_a_poison_row_among_unscoreable_ones_is_named_by_its_own_number(encoder: Encoder, fake: FakeSession) -> None:
    stamps = marked(30, {7: FakeSession.POISON})
    _, _, poison = encoder.encode(batch(stamps, row0=Quality.BLANK, row3=Quality.BLANK, row6=Quality.BLANK))
    assert poison == [7]


@pytest.mark.parametrize("mark", [FakeSession.NOT_A_NUMBER, FakeSession.ONLY_THE_VARIANCE])
def test_an_encoder_that_gives_nan_or_infinity_flags_the_alert(
    encoder: Encoder, fake: FakeSession, mark: float
) -> None:
    codes, after, poison = encoder.encode(batch(marked(10, {4: mark})))
    assert poison == []
    assert after.quality.tolist() == [0, 0, 0, 0, Quality.ENCODER_OUTPUT_NOT_FINITE, 0, 0, 0, 0, 0]
    assert np.isnan(codes.z_mean[4]).all()
    assert np.isnan(codes.z_log_var[4]).all()
    assert np.isfinite(np.delete(codes.z_mean, 4, axis=0)).all()


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: write_encoder(path, size=15), "takes stamps (15, 15, 1); its card says (21, 21, 1)"),
        (lambda path: write_encoder(path, channels=3), "takes stamps (21, 21, 3)"),
        (lambda path: write_encoder(path, latents=5), "gives 5 latents; its card says 21"),
        (lambda path: path.write_bytes(b"no graph"), "cannot run encoder.onnx"),
    ],
)
def test_an_encoder_that_is_not_what_its_card_says_is_refused_at_the_start(
    release: Release, tmp_path: Path, write: Callable[[Path], None], words: str
) -> None:
    write(tmp_path / "encoder.onnx")
    with pytest.raises(ConfigError) as caught:
        Encoder(Release(release.card, tmp_path))
    assert words in str(caught.value)


def test_an_absent_graph_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot run absent\.onnx.*Export the release again"):
        open_session(tmp_path / "absent.onnx")
