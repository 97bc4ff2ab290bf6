"""The messages below `/v2`, one Struct each: KServe's inference protocol, version 2, with Triton's extensions.

https://github.com/kserve/open-inference-protocol and the `protocol` folder of Triton's server: binary tensor data,
sequences, statistics, model configuration.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from pilliond.limits import KSERVE_TENSORS_MAX

DATATYPES: Final = {
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "bool": "BOOL",
}
"""The protocol's name for each dtype of a spec."""

TEXT_DATATYPE: Final = "BYTES"
"""The protocol's name for texts: one element of any length for each row."""

Name = Annotated[str, msgspec.Meta(max_length=256)]
Size = Annotated[int, msgspec.Meta(ge=0)]


class InputParameters(msgspec.Struct, frozen=True):
    """Where the data of an input is if it is not in the JSON."""

    binary_data_size: Size | None = None
    shared_memory_region: str = ""


class InputTensor(msgspec.Struct, frozen=True):
    """An input. `data` is flat, or nested like `shape`."""

    name: Name
    shape: Annotated[list[Size], msgspec.Meta(max_length=64)]
    datatype: Name
    parameters: InputParameters = InputParameters()
    data: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class OutputParameters(msgspec.Struct, frozen=True):
    """How to return an output."""

    binary_data: bool | None = None
    classification: Size = 0
    shared_memory_region: str = ""


class RequestedOutput(msgspec.Struct, frozen=True):
    """A requested output."""

    name: Name
    parameters: OutputParameters = OutputParameters()


class InferParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters of a request."""

    sequence_id: Size | Name = 0
    """The sequence that it belongs to; 0 or empty: none."""
    sequence_start: bool = False
    sequence_end: bool = False
    timeout: Size = 0
    """Time budget in µs; 0: none."""
    priority: Size = 0
    """Accepted and ignored: no request here has a priority."""
    binary_data_output: bool = False
    deterministic: bool = True
    """False: sample the action from the policy's distribution."""
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**62)] | None = None
    """Seed of the first row; each next row adds 1."""

    @property
    def begins(self) -> bool:
        """Whether this request begins episodes."""
        return not self.sequence_id or self.sequence_start


class InferRequest(msgspec.Struct, frozen=True):
    """The JSON of an inference request."""

    inputs: Annotated[list[InputTensor], msgspec.Meta(max_length=KSERVE_TENSORS_MAX)]
    id: Annotated[str, msgspec.Meta(max_length=1_000)] = ""
    parameters: InferParameters = InferParameters()
    outputs: Annotated[list[RequestedOutput], msgspec.Meta(max_length=KSERVE_TENSORS_MAX)] = []
    """Empty: all of them."""


class BinarySize(msgspec.Struct, frozen=True):
    """The size of an output after the JSON, in bytes."""

    binary_data_size: int


class OutputTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """An output. `data` is flat."""

    name: str
    datatype: str
    shape: list[int]
    parameters: BinarySize | None = None
    data: list[Any] | None = None


class InferResponseParameters(msgspec.Struct, frozen=True, omit_defaults=True):
    """The weights that ran."""

    digest: str
    """`sha256:…` of the weights that ran the first row."""
    row_versions: str = ""
    """The version of each row, separated by commas, if they differ."""


class InferResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON of an inference response. `model_version` is the version that ran the first row."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    parameters: InferResponseParameters
    id: str = ""


class ServerMetadata(msgspec.Struct, frozen=True):
    """The server and its extensions."""

    name: str
    version: str
    extensions: list[str]


class Live(msgspec.Struct, frozen=True):
    """Whether the daemon is alive."""

    live: bool


class Readiness(msgspec.Struct, frozen=True):
    """Whether the daemon answers acts."""

    ready: bool


class ModelReadiness(msgspec.Struct, frozen=True):
    """Whether a policy answers requests."""

    name: str
    ready: bool


class TensorMetadata(msgspec.Struct, frozen=True):
    """A tensor. The first dimension, -1, is the number of rows."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct, frozen=True):
    """A policy, and its versions that answer new episodes."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfig(msgspec.Struct, frozen=True):
    """A tensor in Triton's model configuration. `dims` is the shape of one row."""

    name: str
    data_type: str
    dims: list[int]


class ModelConfig(msgspec.Struct, frozen=True):
    """The part of Triton's model configuration that applies here."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]


class Duration(msgspec.Struct, frozen=True):
    """A count, and the total time."""

    count: int
    ns: int


class InferenceStatistics(msgspec.Struct, frozen=True):
    """Acts by outcome, and the engine's time for batches."""

    success: Duration
    fail: Duration
    """Acts that the engine failed to run or that were too late. Their time is not measured."""
    compute_infer: Duration


class ModelStatistics(msgspec.Struct, frozen=True):
    """Statistics of one version since it was loaded."""

    name: str
    version: str
    inference_count: int
    """Rows that the engine ran."""
    execution_count: int
    """Batches that the engine ran."""
    inference_stats: InferenceStatistics


class Statistics(msgspec.Struct, frozen=True):
    """Triton's statistics extension."""

    model_stats: list[ModelStatistics]


class IndexRequest(msgspec.Struct, frozen=True):
    """Which versions to list."""

    ready: bool = False


class IndexEntry(msgspec.Struct, frozen=True):
    """A loaded version."""

    name: str
    version: str
    state: str
    reason: str
