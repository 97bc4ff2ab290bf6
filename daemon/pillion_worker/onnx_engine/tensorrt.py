"""TensorRT engines: built once, while a version is staged, and kept in a cache; a worker that serves only loads them.

A build takes minutes and all of a device. What it makes depends on the model, the device, the driver and the versions of
TensorRT and ONNX Runtime: its key. The engine is an ONNX model with one node that holds it (an EPContext), so that reading
it never builds another.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnxruntime

from pillion_worker.builds.cache import read_or_build
from pillion_worker.builds.host import gpu_key, model_digest
from pillion_worker.errors import EngineError, one_line
from pillion_worker.model_source import Model
from pillion_worker.onnx_engine.providers import CPU, CUDA, TENSORRT, cuda_options, profile_rows, tensorrt_options
from pillion_worker.tensors import LoadRequest, State, Tensor

OpenSession = Callable[[Model, LoadRequest, list[Any]], Any]
"""Opens a model with these providers; raises `EngineError`."""


def built_engine(model: Model, request: LoadRequest, index: int, open_session: OpenSession) -> bytes:
    """Returns the engine of a model for the device `cuda:index` from the cache; builds it if the request says so.

    Raises `EngineError` if there is none, it cannot be trusted, or it cannot be built.
    """
    if request.precision == "float32":
        raise EngineError("it computes in tf32 or less, and engine.precision is float32")
    key = _key_of(model, request, index)
    return read_or_build(request, key, partial(_build, model, request, index, open_session))


def _key_of(model: Model, request: LoadRequest, index: int) -> dict[str, Any]:
    """Everything that an engine depends on."""
    return {
        "model": model_digest(model),
        **gpu_key(index),
        "tensorrt": _tensorrt_version(),
        "onnxruntime": onnxruntime.__version__,
        "precision": request.precision,
        "rows": list(profile_rows(request)),
        "workspace_bytes": request.device_memory_bytes_max,
    }


def _tensorrt_version() -> str:
    """Imports TensorRT, whose libraries ONNX Runtime does not find by itself, and returns its version."""
    try:
        return str(importlib.import_module("tensorrt").__version__)
    except Exception as error:  # noqa: BLE001 - its package loads libraries, and fails in its own ways without them
        raise EngineError(f"the package tensorrt cannot be imported: {one_line(error)}") from None


def _build(model: Model, request: LoadRequest, index: int, open_session: OpenSession, folder: str) -> bytes:
    file = os.path.join(folder, "engine.onnx")
    options = {
        **tensorrt_options(request, index),
        "trt_dump_ep_context_model": True,
        "trt_ep_context_embed_mode": 1,
        "trt_ep_context_file_path": file,
    }
    session = open_session(model, request, [(TENSORRT, options), (CUDA, cuda_options(request, index)), CPU])
    if TENSORRT not in session.get_providers():
        raise EngineError(f"onnxruntime could not start {TENSORRT}")
    # Some versions of ONNX Runtime write the file in the first run, or when the session ends.
    _run_largest(session, request)
    del session
    gc.collect()
    if not os.path.exists(file):
        raise EngineError("TensorRT does not take the graph as a whole")
    with open(file, "rb") as built:
        return built.read()


def _run_largest(session: Any, request: LoadRequest) -> None:
    _, _, rows = profile_rows(request)
    given: list[Tensor | State] = [*request.observation, *request.states]
    feed = {tensor.name: np.zeros((rows, *tensor.shape), tensor.dtype) for tensor in given}
    try:
        session.run(None, feed)
    except Exception as error:  # noqa: BLE001 - as in `open_session`
        raise EngineError(f"it does not run: {one_line(error)}") from None
