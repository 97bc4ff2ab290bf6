"""What travels below `/v2`, one Struct each: KServe's inference protocol, version 2, with Triton's extensions.

https://github.com/kserve/open-inference-protocol and the `protocol` folder of Triton's server: binary tensor data,
sequences, statistics, model configuration.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

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
"""The protocol's word for each dtype of a spec."""

TENSORS_MAX: Final = 64
"""Tensors of one request."""

Name = Annotated[str, msgspec.Meta(max_length=256)]
Size = Annotated[int, msgspec.Meta(ge=0)]


class InputParameters(msgspec.Struct, frozen=True):
    """Where the data of an input is, if it is not in the JSON."""

    binary_data_size: Size | None = None
    shared_memory_region: str = ""


class InputTensor(msgspec.Struct, frozen=True):
    """An input; `data` is flat, or nested as `shape` is."""

    name: Name
    shape: Annotated[list[Size], msgspec.Meta(max_length=64)]
    datatype: Name
    parameters: InputParameters = InputParameters()
    data: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class OutputParameters(msgspec.Struct, frozen=True):
    """How an output is to come."""

    binary_data: bool | None = None
    classification: Size = 0
    shared_memory_region: str = ""


class RequestedOutput(msgspec.Struct, frozen=True):
    """An output that is asked for."""

    name: Name
    parameters: OutputParameters = OutputParameters()


class InferParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a request says beside its tensors."""

    sequence_id: Size | Name = 0
    """Which sequence it belongs to; 0 or empty: none."""
    sequence_start: bool = False
    sequence_end: bool = False
    timeout: Size = 0
    """For how many µs the answer is of use; 0: as long as it takes."""
    priority: Size = 0
    """Nothing here has a priority: taken, and not heeded."""
    binary_data_output: bool = False
    deterministic: bool = True
    """False: the action is drawn from the policy's distribution."""
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**62)] | None = None
    """Of the first row; each next row has one more."""

    @property
    def begins(self) -> bool:
        """Whether episodes begin with this request."""
        return not self.sequence_id or self.sequence_start


class InferRequest(msgspec.Struct, frozen=True):
    """The JSON of an inference request."""

    inputs: Annotated[list[InputTensor], msgspec.Meta(max_length=TENSORS_MAX)]
    id: Annotated[str, msgspec.Meta(max_length=1_000)] = ""
    parameters: InferParameters = InferParameters()
    outputs: Annotated[list[RequestedOutput], msgspec.Meta(max_length=TENSORS_MAX)] = []
    """Empty: all of them."""


class BinarySize(msgspec.Struct, frozen=True):
    """An output's bytes behind the JSON."""

    binary_data_size: int


class OutputTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """An output; `data` is flat."""

    name: str
    datatype: str
    shape: list[int]
    parameters: BinarySize | None = None
    data: list[Any] | None = None


class RanParameters(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which weights answered."""

    digest: str
    """`sha256:…`, of the first row."""
    row_versions: str = ""
    """The version of each row, joined by commas, where they differ."""


class InferAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON of an inference response. `model_version` is the version whose weights ran, of the first row."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    parameters: RanParameters
    id: str = ""


class ServerMetadata(msgspec.Struct, frozen=True):
    """What answers."""

    name: str
    version: str
    extensions: list[str]


class Live(msgspec.Struct, frozen=True):
    """Whether the daemon lives."""

    live: bool


class Readiness(msgspec.Struct, frozen=True):
    """Whether it answers acts."""

    ready: bool


class ModelReadiness(msgspec.Struct, frozen=True):
    """Whether a policy is served."""

    name: str
    ready: bool


class TensorMetadata(msgspec.Struct, frozen=True):
    """A tensor; -1 in `shape` stands for the rows."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct, frozen=True):
    """A policy, and the versions of it that answer new episodes."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfig(msgspec.Struct, frozen=True):
    """A tensor as Triton's configuration has it: `dims` of one row."""

    name: str
    data_type: str
    dims: list[int]


class ModelConfig(msgspec.Struct, frozen=True):
    """The part of Triton's model configuration that has a meaning here."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]


class Duration(msgspec.Struct, frozen=True):
    """How often, and for how long in all."""

    count: int
    ns: int


class InferenceStatistics(msgspec.Struct, frozen=True):
    """Of acts: what came of them; of batches: the engine's time."""

    success: Duration
    fail: Duration
    """Those that the engine failed to run or that came too late; no time is kept of them."""
    compute_infer: Duration


class ModelStatistics(msgspec.Struct, frozen=True):
    """One version's, since it was loaded."""

    name: str
    version: str
    inference_count: int
    """Rows that were run."""
    execution_count: int
    """Batches that were run."""
    inference_stats: InferenceStatistics


class Statistics(msgspec.Struct, frozen=True):
    """Triton's statistics extension."""

    model_stats: list[ModelStatistics]


class IndexRequest(msgspec.Struct, frozen=True):
    """Which models are asked for."""

    ready: bool = False


class IndexEntry(msgspec.Struct, frozen=True):
    """A version that is loaded."""

    name: str
    version: str
    state: str
    reason: str
