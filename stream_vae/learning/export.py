"""Write the fitted networks as ONNX graphs, and check that the graphs say what the networks say.

The graphs are built from the weights, operation by operation: that works alike on every Keras backend, takes no
second, and leaves only what serving needs. NHWC becomes NCHW on the way in, which for one channel
is a change of shape and moves nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.backends.onnx import open_session
from stream_vae.errors import FatalError
from stream_vae.learning.classifier import Scorer
from stream_vae.learning.fit import decode, encode
from stream_vae.model.autoencoder import Autoencoder
from stream_vae.model.networks import LOG_VAR_LIMIT, side_lengths

Array = NDArray[np.float32]

OPSET = 17
IR_VERSION = 8
"""Both old enough for every ONNX Runtime since 1.14 and for other runtimes."""
TOLERANCE = 1e-5


class _Graph:
    """Collects nodes and constants; methods return the name of their output."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def constant(self, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = name or f"n{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def reshape(self, tensor: str, *shape: int, name: str = "") -> str:
        return self.add("Reshape", tensor, self.constant(np.array(shape, np.int64)), name=name)

    def scalar(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def save(self, path: Path, inputs: Mapping[str, Sequence[int]], outputs: Mapping[str, Sequence[int]]) -> None:
        """Write the graph; shapes are without the batch axis, which is dynamic."""
        import onnx
        from onnx import TensorProto, helper

        def describe(tensors: Mapping[str, Sequence[int]]) -> list[Any]:
            return [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape]) for name, shape in tensors.items()
            ]

        graph = helper.make_graph(self._nodes, path.stem, describe(inputs), describe(outputs), self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="stream_vae")
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(path))


def _weights(network: Any, layer: str) -> list[Array]:
    return [np.asarray(array, np.float32) for array in network.get_layer(layer).get_weights()]


def _conv(graph: _Graph, tensor: str, network: Any, layer: str, *, side: int, stride: int, relu: bool) -> str:
    """A 3x3 convolution with Keras' 'same' padding, whose odd pixel goes to the end."""
    kernel, bias = _weights(network, layer)
    padding = max((-(-side // stride) - 1) * stride + 3 - side, 0)
    before, after = padding // 2, padding - padding // 2
    out = graph.add(
        "Conv",
        tensor,
        graph.constant(kernel.transpose(3, 2, 0, 1)),  # height, width, in, out -> out, in, height, width
        graph.constant(bias),
        kernel_shape=[3, 3],
        strides=[stride, stride],
        pads=[before, before, after, after],
    )
    return graph.add("Relu", out) if relu else out


def write_encoder(model: Autoencoder, path: Path) -> None:
    """Write the encoder: `stamp` to `z_mean` and `z_log_var`.

    Parameters
    ----------
    model : Autoencoder
        A fitted model.
    path : Path
        The .onnx file.
    """
    size, channels, latent = (model.get_config()[key] for key in ("stamp_size", "channels", "latent_size"))
    network, graph, sides = model.encoder, _Graph(), side_lengths(model.get_config()["stamp_size"])
    if channels == 1:
        x = graph.reshape("stamp", -1, 1, size, size)
    else:
        x = graph.add("Transpose", "stamp", perm=[0, 3, 1, 2])
    for i, side in enumerate(sides[:-1]):
        x = _conv(graph, x, network, f"conv{i + 1}", side=side, stride=2, relu=True)
    last, filters = sides[-1], model.get_config()["filters"]
    features = graph.reshape(x, -1, filters * last * last)
    heads = {}
    for head in ("z_mean", "z_log_var"):
        kernel, bias = _weights(network, head)
        # Keras flattens height, width, filter; the features here are filter, height, width.
        kernel = kernel.reshape(last, last, filters, latent).transpose(2, 0, 1, 3).reshape(-1, latent)
        heads[head] = (graph.constant(kernel), graph.constant(bias))
    if model.get_config()["linear_skip"]:
        (skip,) = _weights(network, "skip")
        pixels = graph.reshape("stamp", -1, size * size * channels)
        linear = graph.add("MatMul", pixels, graph.constant(skip))
        graph.add("Add", graph.add("Gemm", features, *heads["z_mean"]), linear, name="z_mean")
    else:
        graph.add("Gemm", features, *heads["z_mean"], name="z_mean")
    log_var = graph.add("Gemm", features, *heads["z_log_var"])
    graph.add("Clip", log_var, graph.scalar(-LOG_VAR_LIMIT), graph.scalar(LOG_VAR_LIMIT), name="z_log_var")
    graph.save(path, {"stamp": (size, size, channels)}, {"z_mean": (latent,), "z_log_var": (latent,)})


def write_decoder(model: Autoencoder, path: Path) -> None:
    """Write the decoder: `z` to `reconstruction`.

    Parameters
    ----------
    model : Autoencoder
        A fitted model.
    path : Path
        The .onnx file.
    """
    config = model.get_config()
    size, channels, latent, filters = (config[key] for key in ("stamp_size", "channels", "latent_size", "filters"))
    network, graph, sides = model.decoder, _Graph(), side_lengths(size)[::-1]
    kernel, bias = _weights(network, "unfold")
    # From Keras' height, width, filter to filter, height, width.
    order = np.arange(len(bias)).reshape(sides[0], sides[0], filters).transpose(2, 0, 1).ravel()
    x = graph.add("Relu", graph.add("Gemm", "z", graph.constant(kernel[:, order]), graph.constant(bias[order])))
    x = graph.reshape(x, -1, filters, sides[0], sides[0])
    for i, side in enumerate(sides[1:]):
        # Doubling and dropping the odd last row and column, as one choice of rows and one of columns.
        nearest = graph.constant(np.arange(side, dtype=np.int64) // 2)
        x = graph.add("Gather", graph.add("Gather", x, nearest, axis=2), nearest, axis=3)
        x = _conv(graph, x, network, f"conv{i + 1}", side=side, stride=1, relu=i + 2 < len(sides))
    if config["linear_skip"]:
        (skip,) = _weights(network, "skip")
        x = graph.add("Transpose", x, perm=[0, 2, 3, 1])
        linear = graph.reshape(graph.add("MatMul", "z", graph.constant(skip)), -1, size, size, channels)
        graph.add("Add", x, linear, name="reconstruction")
    else:
        graph.add("Transpose", x, perm=[0, 2, 3, 1], name="reconstruction")
    graph.save(path, {"z": (latent,)}, {"reconstruction": (size, size, channels)})


def write_scorer(scorer: Scorer, path: Path) -> None:
    """Write the scorer: `z_mean` and `z_log_var` to `real_score` and `real_score_std`.

    Parameters
    ----------
    scorer : Scorer
        A fitted scorer.
    path : Path
        The .onnx file.
    """
    graph = _Graph()
    draws, latent = scorer.offsets.shape
    sigma = graph.add("Exp", graph.add("Mul", "z_log_var", graph.scalar(0.5)))
    around = graph.add("Mul", graph.reshape(sigma, -1, 1, latent), graph.constant(scorer.offsets))  # (n, draws, latent)
    z = graph.add("Add", around, graph.reshape("z_mean", -1, 1, latent))
    z = graph.reshape(z, -1, latent)  # one large product instead of n small ones
    weights, bias = graph.constant(scorer.hidden_weights), graph.constant(scorer.hidden_bias)
    hidden = graph.add("Relu", graph.add("Gemm", z, weights, bias))
    out_bias = graph.constant(np.array([scorer.output_bias], np.float32))
    logit = graph.add("Gemm", hidden, graph.constant(scorer.output_weights[:, np.newaxis]), out_bias)
    probability = graph.add("Sigmoid", graph.reshape(logit, -1, draws))
    mean = graph.add("ReduceMean", probability, axes=[1], keepdims=1)
    deviation = graph.add("Sub", probability, mean)
    variance = graph.add("ReduceMean", graph.add("Mul", deviation, deviation), axes=[1], keepdims=0)
    graph.reshape(mean, -1, name="real_score")
    graph.add("Sqrt", variance, name="real_score_std")
    codes = {"z_mean": (latent,), "z_log_var": (latent,)}
    graph.save(path, codes, {"real_score": (), "real_score_std": ()})


def export_networks(folder: Path, model: Autoencoder, scorer: Scorer | None, stamps: Array) -> None:
    """Write `encoder.onnx`, `decoder.onnx`, `cvae.keras` and, if there is a scorer, `scorer.onnx`; check them.

    Parameters
    ----------
    folder : Path
        Where to; exists.
    model : Autoencoder
        A fitted model.
    scorer : Scorer or None
        Its scorer.
    stamps : ndarray, shape (n, size, size, channels)
        Normalised stamps to compare the graphs with the networks on.

    Raises
    ------
    FatalError
        If a graph differs from its network by more than rounding.
    """
    write_encoder(model, folder / "encoder.onnx")
    write_decoder(model, folder / "decoder.onnx")
    if scorer is not None:
        write_scorer(scorer, folder / "scorer.onnx")
    model.save(folder / "cvae.keras")
    z_mean, z_log_var = encode(model, stamps)
    _compare(folder / "encoder.onnx", {"stamp": stamps}, {"z_mean": z_mean, "z_log_var": z_log_var})
    _compare(folder / "decoder.onnx", {"z": z_mean}, {"reconstruction": decode(model, z_mean)})
    if scorer is not None:
        score, std = scorer.score(z_mean, z_log_var)
        _compare(
            folder / "scorer.onnx",
            {"z_mean": z_mean, "z_log_var": z_log_var},
            {"real_score": score, "real_score_std": std},
        )


def _compare(path: Path, inputs: dict[str, Array], expected: dict[str, Array]) -> None:
    for (name, values), got in zip(expected.items(), open_session(path).run(list(expected), inputs), strict=True):
        worst = float(np.max(np.abs(got - values) / (1.0 + np.abs(values)), initial=0.0))
        if not worst <= TOLERANCE:
            raise FatalError(
                f"{path.name}: {name} differs from Keras by {worst:.1e}; {TOLERANCE:.0e} would be rounding."
            )
