"""An encoder's ONNX graph in other number formats and forms."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

BFLOAT16_OPSET = 22
"""The first in which a convolution may be one of bfloat16."""
CALIBRATION_BATCH = 64


class _Batches(CalibrationDataReader):
    def __init__(self, stamps: NDArray[np.float32]) -> None:
        self._batches = (
            {"stamp": stamps[at : at + CALIBRATION_BATCH]}
            for at in range(0, len(stamps) - CALIBRATION_BATCH + 1, CALIBRATION_BATCH)
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


def variants(encoder: Path, stamps: NDArray[np.float32], folder: Path) -> dict[str, Path]:
    """Write the graph in other forms; static quantisation learns its ranges from `stamps`."""
    found = {"float16": folder / "float16.onnx", "bfloat16": folder / "bfloat16.onnx"}
    found["both heads in one product"] = folder / "heads.onnx"
    model = onnx.load(encoder)
    onnx.save(narrowed(model, TensorProto.FLOAT16), found["float16"])
    newer = version_converter.convert_version(model, BFLOAT16_OPSET)
    onnx.save(narrowed(newer, TensorProto.BFLOAT16), found["bfloat16"])
    onnx.save(with_joined_heads(onnx.load(encoder)), found["both heads in one product"])
    prepared = folder / "prepared.onnx"
    quant_pre_process(str(encoder), str(prepared), skip_symbolic_shape=True)
    found["int8, dynamic"] = folder / "dynamic.onnx"
    quantize_dynamic(prepared, found["int8, dynamic"], weight_type=QuantType.QUInt8)
    ways = {
        "int8, static": {},
        "int8, static, convolutions alone": {"op_types_to_quantize": ["Conv", "Relu"]},
    }
    for number, (name, how) in enumerate(ways.items()):
        found[name] = folder / f"static{number}.onnx"
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(prepared, found[name], _Batches(stamps), per_channel=True, **kinds, **how)
    return found


def narrowed(model: Any, kind: int) -> Any:
    """Compute in a format of 16 bits; what goes in and comes out stays float32."""
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    body, dtype = graph.graph, helper.tensor_dtype_to_np_dtype(kind)
    for constant in body.initializer:
        if constant.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(constant).astype(dtype)
            constant.CopyFrom(numpy_helper.from_array(values, constant.name))
    renamed = {each.name: f"{each.name}_narrow" for each in itertools.chain(body.input, body.output)}
    for node in body.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    nodes = list(body.node)
    first = [helper.make_node("Cast", [each.name], [renamed[each.name]], to=kind) for each in body.input]
    last = [helper.make_node("Cast", [renamed[each.name]], [each.name], to=TensorProto.FLOAT) for each in body.output]
    del body.node[:]
    body.node.extend([*first, *nodes, *last])
    del body.value_info[:]
    return graph


def with_joined_heads(model: Any) -> Any:
    """Compute the products of both heads as one, split afterwards."""
    body = model.graph
    constants = {each.name: numpy_helper.to_array(each) for each in body.initializer}
    heads = [node for node in body.node if node.op_type == "Gemm"]
    assert len(heads) == 2, "an encoder has two heads"
    for position, name in ((1, "joined_kernel"), (2, "joined_bias")):
        joined = np.concatenate([constants[node.input[position]] for node in heads], axis=-1)
        body.initializer.append(numpy_helper.from_array(joined, name))
    sizes = np.array([constants[node.input[2]].size for node in heads], np.int64)
    body.initializer.append(numpy_helper.from_array(sizes, "joined_sizes"))
    new = [
        helper.make_node("Gemm", [heads[0].input[0], "joined_kernel", "joined_bias"], ["joined"]),
        helper.make_node("Split", ["joined", "joined_sizes"], [node.output[0] for node in heads], axis=1),
    ]
    rest = list(body.node)
    at = rest.index(heads[0])
    del body.node[:]
    body.node.extend([*rest[:at], *new, *(node for node in rest[at:] if node not in heads)])
    return model
