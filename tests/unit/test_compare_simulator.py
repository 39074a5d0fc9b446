"""What `training/compare_simulator.py` makes of stamps whose answer is known."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "training" / "compare_simulator.py"
    spec = importlib.util.spec_from_file_location("compare_simulator", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare_simulator"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["compare_simulator"]


def _blobs(n: int, seed: int, width: float = 2.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.indices((21, 21)) - 10.0
    off = rng.normal(0, 1.0, (2, n, 1, 1))
    spot = np.exp(-((x - off[0]) ** 2 + (y - off[1]) ** 2) / (2 * width**2))
    return (spot + 0.1 * rng.standard_normal((n, 21, 21))).astype(np.float32)


def test_eigenvalues_are_those_of_the_covariance_and_lie_in_their_intervals(script) -> None:
    stamps = _blobs(200, 1)
    found = script.eigenvalues(stamps, draws=60)
    flat = script.scaled(stamps).reshape(200, -1)
    covariance = np.cov(flat, rowvar=False)
    expected = np.linalg.eigvalsh(covariance)[::-1][:10]
    variance, share = found["variance"], found["share"]
    np.testing.assert_allclose(variance["value"], expected, rtol=1e-3)
    np.testing.assert_allclose(share["value"], expected / np.trace(covariance), rtol=0.01)
    for part in (variance, share):
        assert np.all(np.array(part["low"]) < part["high"])
        assert part["low"][0] < part["value"][0] < part["high"][0]


def test_intervals_are_wider_where_stamps_come_in_groups_that_are_alike(script) -> None:
    alike = np.concatenate([_blobs(20, group, width=1.0 + 0.2 * group) for group in range(10)])
    by_stamp = script.eigenvalues(alike, draws=60)["variance"]
    by_group = script.eigenvalues(alike, np.repeat(np.arange(10), 20), draws=60)["variance"]
    assert by_group["high"][0] - by_group["low"][0] > 1.5 * (by_stamp["high"][0] - by_stamp["low"][0])


def test_an_auc_lies_in_its_interval(script) -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 100)
    value, low, high = script._auc_interval(label + rng.standard_normal(200), label)
    assert 0.6 < low < value < high < 0.9


def test_the_figures_can_be_drawn(script, tmp_path: Path) -> None:
    one = script.eigenvalues(_blobs(40, 3), draws=5)
    found = {name: one for pair in script.PAIRS for name in pair}
    script.draw_eigenvalues(found, tmp_path / "eigenvalues.png")
    told = {"a, b": {"statistics": [0.9, 0.85, 0.95], "pixels": [0.8, 0.7, 0.85]}}
    script.draw_told_apart(told, tmp_path / "told.png")
    assert all(path.stat().st_size > 5_000 for path in tmp_path.glob("*.png"))
