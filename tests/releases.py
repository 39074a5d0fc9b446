"""Releases for tests: real ONNX graphs with random weights, made in milliseconds and without TensorFlow."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from stream_vae.model.release import Preprocessing, ReleaseCard
from stream_vae.model.store import ReleaseStore, write_release

LATENTS = 21


def _save(path: Path, nodes: list, inputs: list, outputs: list, weights: dict) -> None:
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _tensor(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def write_encoder(path: Path, size: int = 21, channels: int = 1, latents: int = LATENTS, seed: int = 0) -> None:
    """A linear encoder; the right interface is what the stages need."""
    rng = np.random.default_rng(seed)
    pixels = size * size * channels
    weights = {
        "flat": np.array([-1, pixels], np.int64),
        "w_mean": rng.normal(0, 0.3, (pixels, latents)).astype(np.float32),
        "w_log_var": rng.normal(0, 0.01, (pixels, latents)).astype(np.float32),
        "b": np.full(latents, -3.0, np.float32),
    }
    nodes = [
        helper.make_node("Reshape", ["stamp", "flat"], ["pixels"]),
        helper.make_node("MatMul", ["pixels", "w_mean"], ["z_mean"]),
        helper.make_node("Gemm", ["pixels", "w_log_var", "b"], ["z_log_var"]),
    ]
    outputs = [_tensor("z_mean", "n", latents), _tensor("z_log_var", "n", latents)]
    _save(path, nodes, [_tensor("stamp", "n", size, size, channels)], outputs, weights)


def write_scorer(path: Path, latents: int = LATENTS, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.normal(0, 0.3, (latents, 1)).astype(np.float32),
        "shape": np.array([-1], np.int64),
        # A product and no ReduceMean: how that sums a row depends on where the row lies in memory.
        "share": np.full((latents, 1), 0.1 / latents, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["z_mean", "w"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["column"]),
        helper.make_node("Reshape", ["column", "shape"], ["real_score"]),
        helper.make_node("Exp", ["z_log_var"], ["variance"]),
        helper.make_node("MatMul", ["variance", "share"], ["spread"]),
        helper.make_node("Reshape", ["spread", "shape"], ["real_score_std"]),
    ]
    outputs = [_tensor("real_score", "n"), _tensor("real_score_std", "n")]
    _save(path, nodes, [_tensor("z_mean", "n", latents), _tensor("z_log_var", "n", latents)], outputs, weights)


def make_release(
    store: ReleaseStore,
    folder: Path,
    *,
    cutouts: tuple[str, ...] = ("difference",),
    size: int = 21,
    scorer: bool = True,
    seed: int = 0,
    promote: bool = True,
    max_masked_fraction: float = 0.5,
) -> ReleaseCard:
    """Write a release of random weights and make it current."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    write_encoder(folder / "encoder.onnx", size, len(cutouts), seed=seed)
    if scorer:
        write_scorer(folder / "scorer.onnx", seed=seed)
    np.savez(
        folder / "reference.npz",
        real_z_mean=rng.normal(size=(50, LATENTS)).astype(np.float32),
        real_z_log_var=rng.normal(-3, 1, (50, LATENTS)).astype(np.float32),
        center=np.zeros(LATENTS, np.float32),
        whitening=np.eye(LATENTS, dtype=np.float32),
        novelty_quantiles=np.linspace(0, 20, 1001, dtype=np.float32),
    )
    card = write_release(
        store,
        folder,
        name="test",
        latent_size=LATENTS,
        recipe={"name": "test"},
        data={"source": "random"},
        metrics={},
        preprocessing=Preprocessing(cutouts=cutouts, stamp_size=size, max_masked_fraction=max_masked_fraction),
    )
    if promote:
        store.promote(card.id)
    return card
