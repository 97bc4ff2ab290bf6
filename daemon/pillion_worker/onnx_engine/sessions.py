"""Opens a model with ONNX Runtime on a device, with the providers that the settings ask for, or says what it does instead."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import onnxruntime

from pillion_worker.devices import cuda_index
from pillion_worker.errors import EngineError
from pillion_worker.model_source import Model
from pillion_worker.onnx_engine import graphs
from pillion_worker.onnx_engine.providers import CPU, CUDA, TENSORRT, cuda_options, tensorrt_options
from pillion_worker.onnx_engine.tensorrt import built_engine
from pillion_worker.tensors import LoadRequest

_ERROR_ONLY: Final = 3
_ONE_GRAPH: Final = "TensorRT captures one graph for all batches of a session, and each size needs its own"


class Opened(NamedTuple):
    """A session, and where it really computes."""

    session: Any
    device: str
    fallback: str
    """What was asked for and is not done, and why; empty if there is nothing."""

    graphs: str = ""
    """`graphs.CAPTURED` if its runs capture and replay CUDA graphs, or why they do not; empty on the CPU."""


def open_on(model: Model, request: LoadRequest, device: str, fallback: str, no_graphs: str = "") -> Opened:
    """Opens a model on `cpu` or `cuda:N`. Raises `EngineError` if ONNX Runtime cannot load it there.

    `no_graphs` is why CUDA graphs are not to be used; empty: they are, if ONNX Runtime can make them of this model.
    """
    fallback = "; ".join(filter(None, [fallback, request.fallback]))
    if device == "cpu":
        return Opened(open_session(model, request, [CPU]), device, fallback)
    if request.provider == "tensorrt":
        try:
            session = _open_tensorrt(model, request, cuda_index(device))
            return Opened(session, device, fallback, graphs.without(_ONE_GRAPH))
        except EngineError as error:
            fallback = f"tensorrt was asked for: {error}"
    session, no_graphs = _open_cuda(model, request, cuda_index(device), no_graphs or graphs.why_unsupported())
    if CUDA not in session.get_providers():
        # ONNX Runtime goes on without a provider that does not start.
        return Opened(session, "cpu", f"{device} was asked for: onnxruntime could not start {CUDA} there")
    return Opened(session, device, fallback, graphs.without(no_graphs) if no_graphs else graphs.CAPTURED)


def _open_cuda(model: Model, request: LoadRequest, index: int, no_graphs: str) -> tuple[Any, str]:
    """Returns a session of the CUDA provider, and why it has no graphs."""
    if not no_graphs:
        try:
            return open_session(model, request, [(CUDA, cuda_options(request, index, has_graphs=True)), CPU]), ""
        except EngineError as error:
            # It has control flow, or a node that computes on the CPU: ONNX Runtime says so here.
            no_graphs = str(error)
    return open_session(model, request, [(CUDA, cuda_options(request, index)), CPU]), no_graphs


def _open_tensorrt(model: Model, request: LoadRequest, index: int) -> Any:
    if TENSORRT not in onnxruntime.get_available_providers():
        raise EngineError(f"onnxruntime {onnxruntime.__version__} has no {TENSORRT}")
    engine = built_engine(model, request, index, open_session)
    options = tensorrt_options(request, index)
    session = open_session(engine, request, [(TENSORRT, options), (CUDA, cuda_options(request, index)), CPU])
    if TENSORRT not in session.get_providers():
        raise EngineError(f"onnxruntime could not start {TENSORRT}")
    return session


def open_session(model: Model, request: LoadRequest, providers: list[Any]) -> Any:
    """Opens a model; `providers` are the execution providers, the best first. Raises `EngineError`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERROR_ONLY
    # A spinning pool would take the core from the simulator.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises errors of its own, of many kinds
        raise EngineError(f"onnxruntime cannot load the model: {error}") from None
