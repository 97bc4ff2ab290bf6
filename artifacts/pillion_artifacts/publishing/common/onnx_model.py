"""Runs a model as the daemon will: ONNX Runtime on the CPU, one thread, the published bytes."""

from __future__ import annotations

import onnx
import onnxruntime

from pillion_artifacts.card.golden_pairs import Arrays
from pillion_artifacts.errors import InvalidSourceError, first_line
from pillion_artifacts.limits import SOURCE_BYTES_MAX

_FATAL_ONLY = 4
"""Errors are raised, so ONNX Runtime need not print them too."""


class OnnxModel:
    """A session of a model. Raises `InvalidSourceError` if ONNX Runtime cannot load it."""

    def __init__(self, data: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - its errors have no other common parent
            raise InvalidSourceError(f"onnxruntime cannot load the model: {first_line(error)}") from None
        self.inputs = [entry.name for entry in self._session.get_inputs()]
        self.outputs = [entry.name for entry in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> Arrays:
        """Returns all outputs by name. Raises `InvalidSourceError` if the model cannot run on these inputs."""
        try:
            actual = self._session.run(self.outputs, {name: inputs[name] for name in self.inputs})
        except Exception as error:  # noqa: BLE001 - as above
            raise InvalidSourceError(f"the model does not run: {first_line(error)}") from None
        return dict(zip(self.outputs, actual, strict=True))

    def close(self) -> None:
        """Does nothing: the session is freed with this object."""


def serialize(model: onnx.ModelProto) -> bytes:
    """Encodes a model; the same model has the same bytes. Raises `InvalidSourceError` if it is too large."""
    if model.ByteSize() > SOURCE_BYTES_MAX - 1:
        raise InvalidSourceError(f"the model: expected less than {SOURCE_BYTES_MAX} bytes, got {model.ByteSize()}")
    data: bytes = model.SerializeToString(deterministic=True)
    return data
