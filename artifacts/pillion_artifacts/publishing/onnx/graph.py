"""Builds an ONNX graph node by node, with a free row axis."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET: Final = 17
IR_VERSION: Final = 8
ROWS: Final = "rows"
"""The name of the free axis."""


class GraphBuilder:
    """Collects nodes and names their values. The same calls build the same model."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: str, shape: list[int]) -> str:
        """A graph input of [rows, *shape]."""
        self._inputs.append(helper.make_tensor_value_info(name, element_type(dtype), [ROWS, *shape]))
        return name

    def output(self, name: str, value: str, dtype: str, shape: list[int]) -> None:
        """Makes `value`, which has [rows, *shape], the graph output `name`."""
        self._outputs.append(helper.make_tensor_value_info(name, element_type(dtype), [ROWS, *shape]))
        self._nodes.append(helper.make_node("Identity", [value], [name]))

    def constant(self, values: NDArray[Any]) -> str:
        """Adds a constant and returns its name. Equal constants are stored once."""
        array = np.ascontiguousarray(values).reshape(np.shape(values))
        key = (array.dtype.str, array.shape, array.tobytes())
        return self._constants.setdefault(key, f"constant_{len(self._constants)}")

    def float32(self, values: Any) -> str:
        """A float32 constant."""
        return self.constant(np.asarray(values, np.float32))

    def int64(self, values: Any) -> str:
        """An int64 constant."""
        return self.constant(np.asarray(values, np.int64))

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output and returns the output's name."""
        return self.nodes(operator, *inputs, outputs=1, **attributes)[0]

    def nodes(self, operator: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Adds a node with several outputs and returns their names."""
        names = [f"{operator.lower()}_{len(self._nodes)}_{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names

    def cast(self, value: str, dtype: str) -> str:
        """`value` as another dtype."""
        return self.node("Cast", value, to=element_type(dtype))

    def reshape(self, value: str, shape: list[int]) -> str:
        """`value` as [rows, *shape]."""
        return self.node("Reshape", value, self.int64([-1, *shape]))

    def build(self) -> onnx.ModelProto:
        """Builds and checks the model."""
        initializers = [
            numpy_helper.from_array(np.frombuffer(data, dtype).reshape(shape), name)
            for (dtype, shape, data), name in self._constants.items()
        ]
        graph = helper.make_graph(self._nodes, "policy", self._inputs, self._outputs, initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="pillion")
        onnx.checker.check_model(model, full_check=True)
        return model


def element_type(dtype: str) -> int:
    """ONNX's number for a numpy dtype."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


assert element_type("float32") == TensorProto.FLOAT
