"""TensorRT engines: built once, while a version is staged, and kept in a cache; a worker that serves only loads them.

A build takes minutes and all of a device. What it makes depends on the model, the device, the driver and the versions of
TensorRT and ONNX Runtime: its key. The engine is an ONNX model with one node that holds it (an EPContext), so that reading
it never builds another.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime

from pillion_worker.cuda_driver import CudaDriver
from pillion_worker.errors import DriverError, EngineError, one_line
from pillion_worker.model_source import Model, view_of
from pillion_worker.onnx_engine.engine_cache import EngineCache
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
    if not request.engine_cache:
        raise EngineError("engine.tensorrt_cache_dir is not set, and this user has no home")
    key = _key_of(model, request, index)
    try:
        return _read_or_build(model, request, index, open_session, key)
    except OSError as error:
        raise EngineError(f"its cache {request.engine_cache}: {error.strerror}") from None


def _read_or_build(
    model: Model, request: LoadRequest, index: int, open_session: OpenSession, key: dict[str, Any]
) -> bytes:
    cache = EngineCache(request.engine_cache, request.engine_cache_bytes_max)
    try:
        return cache.read(key)
    except EngineError:
        if not request.builds_engine:
            raise
    with cache.noted(key):
        try:
            engine = _build(model, request, index, open_session, cache)
        except EngineError as error:
            raise EngineError(f"its build failed: {error}") from None
        cache.write(key, engine)
    return engine


def _key_of(model: Model, request: LoadRequest, index: int) -> dict[str, Any]:
    """Everything that an engine depends on."""
    try:
        driver = CudaDriver(index)
        device = {"gpu": driver.name(), "compute": driver.compute_capability(), "driver": driver.driver()}
    except DriverError as error:
        raise EngineError(str(error)) from None
    return {
        "model": hashlib.sha256(view_of(model)).hexdigest(),
        **device,
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


def _build(model: Model, request: LoadRequest, index: int, open_session: OpenSession, cache: EngineCache) -> bytes:
    with cache.scratch() as folder:
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
