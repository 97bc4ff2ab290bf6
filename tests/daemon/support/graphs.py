"""ONNX models for the policies that tests publish."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper


def model_bytes(
    name: str,
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    inputs: dict[str, int],
    outputs: dict[str, int],
) -> bytes:
    """Returns a checked, serialized model; every input and output is float32 [rows, the given width]."""
    graph = helper.make_graph(nodes, name, _tensors(inputs), _tensors(outputs), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def _tensors(widths: dict[str, int]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width]) for name, width in widths.items()]
