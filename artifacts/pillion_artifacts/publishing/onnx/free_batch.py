"""Makes the batch of a graph dynamic (free), and proves that the results stay bit-equal."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper
from onnx.tools import update_model_dims

from pillion_artifacts.card.golden_pairs import Arrays
from pillion_artifacts.errors import InvalidSourceError, ParityError, first_line
from pillion_artifacts.publishing.common.onnx_model import OnnxModel
from pillion_artifacts.publishing.onnx.graph import ROWS

_CHECKED_BATCHES: Final = (1, 3)


class Port(msgspec.Struct, frozen=True):
    """An input or output of a graph: name, dtype, and the shape of a row."""

    name: str
    dtype: str
    shape: list[int]


def ports(values: list[onnx.ValueInfoProto], what: str) -> list[Port]:
    """Inputs or outputs without their row axis. Raises `InvalidSourceError` if another axis is dynamic."""
    return [_port(value, what) for value in values]


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """The fixed batch of all inputs and outputs, None if it is free. Raises `InvalidSourceError`."""
    sizes = {_leading(value) for value in [*graph_inputs(model), *model.graph.output]}
    if len(sizes) != 1:
        shown = ", ".join("free" if size is None else str(size) for size in sorted(sizes, key=lambda size: size or 0))
        raise InvalidSourceError(f"the graph: expected one batch for all inputs and outputs, got {shown}")
    return sizes.pop()


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs without weights, which older files list as inputs too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def free_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Copies a graph of `batch` rows so that it accepts any number of rows. `prove_free_batch` checks the result."""
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    # shapes inferred for the old batch would contradict the new one
    del freed.graph.value_info[:]
    _free_reshapes(freed.graph, batch)
    kept = [value for value in freed.graph.input if value.name not in {entry.name for entry in graph_inputs(model)}]
    inputs = {value.name: [ROWS, *_row_shape(value)] for value in graph_inputs(model)}
    outputs = {value.name: [ROWS, *_row_shape(value)] for value in model.graph.output}
    inputs |= {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in kept}
    try:
        return update_model_dims.update_inputs_outputs_dims(freed, inputs, outputs)
    except (ValueError, onnx.checker.ValidationError) as error:
        raise InvalidSourceError(f"the graph: its batch of {batch} cannot be made free: {first_line(error)}") from None


def prove_free_batch(before: OnnxModel, after: OnnxModel, batch: int, inputs: Arrays) -> None:
    """Raises `ParityError` if the two differ by a bit in batches of `batch`, or if other batches have wrong row counts.

    `inputs` has a multiple of `batch` rows.
    """
    rows = len(next(iter(inputs.values())))
    for first in range(0, rows, batch):
        part = {name: values[first : first + batch] for name, values in inputs.items()}
        expected, actual = before.run(part), after.run(part)
        for name, values in expected.items():
            if values.tobytes() != actual[name].tobytes() or values.dtype != actual[name].dtype:
                raise ParityError(f"output {name!r}, row {first}: not bit-equal with a free batch")
    for size in _CHECKED_BATCHES:
        taken = np.arange(size) % rows
        try:
            actual = after.run({name: values[taken] for name, values in inputs.items()})
        except InvalidSourceError as error:
            raise InvalidSourceError(f"its batch of {batch} cannot be made free: with {size} rows {error}") from None
        for name, values in actual.items():
            if len(values) != size:
                raise ParityError(f"output {name!r}: expected {size} rows, got {len(values)}")


def _port(value: onnx.ValueInfoProto, what: str) -> Port:
    if not value.type.HasField("tensor_type"):
        raise InvalidSourceError(f"{what}: {value.name!r}: expected a tensor")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return Port(value.name, str(dtype), _row_shape(value))


def _leading(value: onnx.ValueInfoProto) -> int | None:
    dims = value.type.tensor_type.shape.dim
    if not dims:
        raise InvalidSourceError(f"the graph: {value.name!r}: expected a row axis, got a scalar or no shape")
    return dims[0].dim_value if dims[0].HasField("dim_value") else None


def _row_shape(value: onnx.ValueInfoProto) -> list[int]:
    dims = list(value.type.tensor_type.shape.dim)[1:]
    if not all(dim.HasField("dim_value") and dim.dim_value > 0 for dim in dims):
        raise InvalidSourceError(f"the graph: {value.name!r}: expected sizes for all axes but the first")
    return [dim.dim_value for dim in dims]


def _free_reshapes(graph: onnx.GraphProto, batch: int) -> None:
    """Makes the row axis of reshapes to [batch, …] free. The proof finds reshapes where that is wrong."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] in constants:
            _free_shape(constants[node.input[1]], batch)


def _free_shape(tensor: onnx.TensorProto, batch: int) -> None:
    shape = numpy_helper.to_array(tensor).copy()
    if shape.ndim == 1 and len(shape) > 0 and shape[0] == batch:
        # only one size may be -1; 0 keeps the size of the input
        shape[0] = 0 if (shape[1:] == -1).any() else -1
        tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))
