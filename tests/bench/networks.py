"""A release of the paper's size with random weights: what a stamp costs does not depend on what was learnt.

The graphs are those that `stream-vae train` exports: three 3x3 convolutions of 32 filters with stride 2 and two linear
heads (Huijse et al. 2018), and a scorer with one hidden layer that averages over 32 draws from the posterior.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from stream_vae.model.release import Preprocessing
from stream_vae.model.store import ReleaseStore, write_release

LATENTS = 21
SIZE = 21
FILTERS = 32
DRAWS = 32
HIDDEN = 32
ANCHORS = 300
CUTOUTS = {1: ("difference",), 2: ("difference", "science"), 3: ("difference", "science", "template")}


class _Graph:
    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weights(self, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
        return self.constant(self._rng.normal(0, fan_in**-0.5, shape).astype(np.float32))

    def scalar(self, value: float) -> str:
        return self.constant(np.float32(value))

    def reshape(self, tensor: str, *shape: int, name: str = "") -> str:
        return self.add("Reshape", tensor, self.constant(np.array(shape, np.int64)), name=name)

    def save(self, path: Path, inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]]) -> None:
        def tensors(shapes: dict[str, tuple[int, ...]]) -> list[Any]:
            return [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *s]) for name, s in shapes.items()]

        graph = helper.make_graph(self._nodes, path.stem, tensors(inputs), tensors(outputs), self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(path))


def _write_encoder(path: Path, channels: int) -> None:
    graph = _Graph(1)
    if channels == 1:
        x = graph.reshape("stamp", -1, 1, SIZE, SIZE)
    else:
        x = graph.add("Transpose", "stamp", perm=[0, 3, 1, 2])
    side = SIZE
    for inputs in (channels, FILTERS, FILTERS):
        after = -(-side // 2)
        padding = max((after - 1) * 2 + 3 - side, 0)
        pads = [padding // 2, padding // 2, padding - padding // 2, padding - padding // 2]
        kernel, bias = graph.weights(FILTERS, inputs, 3, 3), graph.constant(np.zeros(FILTERS, np.float32))
        x = graph.add("Relu", graph.add("Conv", x, kernel, bias, kernel_shape=[3, 3], strides=[2, 2], pads=pads))
        side = after
    features = graph.reshape(x, -1, FILTERS * side * side)
    for head in ("z_mean", "z_log_var"):
        bias = graph.constant(np.zeros(LATENTS, np.float32))
        graph.add("Gemm", features, graph.weights(FILTERS * side * side, LATENTS), bias, name=head)
    codes: dict[str, tuple[int, ...]] = {"z_mean": (LATENTS,), "z_log_var": (LATENTS,)}
    graph.save(path, {"stamp": (SIZE, SIZE, channels)}, codes)


def _write_scorer(path: Path) -> None:
    graph = _Graph(2)
    sigma = graph.add("Exp", graph.add("Mul", "z_log_var", graph.scalar(0.5)))
    offsets = graph.weights(DRAWS, LATENTS)
    around = graph.add("Mul", graph.reshape(sigma, -1, 1, LATENTS), offsets)
    z = graph.reshape(graph.add("Add", around, graph.reshape("z_mean", -1, 1, LATENTS)), -1, LATENTS)
    hidden_bias = graph.constant(np.zeros(HIDDEN, np.float32))
    hidden = graph.add("Relu", graph.add("Gemm", z, graph.weights(LATENTS, HIDDEN), hidden_bias))
    logit = graph.add("Gemm", hidden, graph.weights(HIDDEN, 1), graph.constant(np.zeros(1, np.float32)))
    probability = graph.add("Sigmoid", graph.reshape(logit, -1, DRAWS))
    mean = graph.add("ReduceMean", probability, axes=[1], keepdims=1)
    deviation = graph.add("Sub", probability, mean)
    variance = graph.add("ReduceMean", graph.add("Mul", deviation, deviation), axes=[1], keepdims=0)
    graph.reshape(mean, -1, name="real_score")
    graph.add("Sqrt", variance, name="real_score_std")
    codes: dict[str, tuple[int, ...]] = {"z_mean": (LATENTS,), "z_log_var": (LATENTS,)}
    graph.save(path, codes, {"real_score": (), "real_score_std": ()})


def make_release(store_folder: Path, work: Path, cutouts: int) -> None:
    """Write the release and make it current."""
    work.mkdir(parents=True)
    _write_encoder(work / "encoder.onnx", cutouts)
    _write_scorer(work / "scorer.onnx")
    rng = np.random.default_rng(3)
    np.savez(
        work / "reference.npz",
        real_z_mean=rng.normal(size=(ANCHORS, LATENTS)).astype(np.float32),
        real_z_log_var=rng.normal(-3, 1, (ANCHORS, LATENTS)).astype(np.float32),
        center=np.zeros(LATENTS, np.float32),
        whitening=np.eye(LATENTS, dtype=np.float32),
        novelty_quantiles=np.linspace(0, 20, 1001, dtype=np.float32),
    )
    store = ReleaseStore(str(store_folder))
    card = write_release(
        store,
        work,
        name="bench",
        latent_size=LATENTS,
        recipe={"name": "random weights"},
        data={"source": "none"},
        metrics={},
        preprocessing=Preprocessing(cutouts=CUTOUTS[cutouts], stamp_size=SIZE),
    )
    store.promote(card.id)
