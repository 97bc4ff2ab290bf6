"""What the execution providers of ONNX Runtime are told. A value that it takes as a number is one, or a text of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pillion_worker.buckets import buckets_for
from pillion_worker.tensors import LoadRequest

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"


def cuda_options(request: LoadRequest, index: int, has_graphs: bool = False) -> dict[str, Any]:
    """The options of the CUDA provider on this device. `has_graphs` is whether runs capture and replay CUDA graphs."""
    options: dict[str, Any] = {
        "device_id": index,
        "use_tf32": int(request.precision != "float32"),
        # The default tries every algorithm of every convolution in the first run of each shape, and takes memory for all.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The arena grows by what is needed: doubling it would meet its limit long before the policy does.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if request.device_memory_bytes_max:
        options["gpu_mem_limit"] = request.device_memory_bytes_max
    if has_graphs:
        options["enable_cuda_graph"] = 1
    return options


def tensorrt_options(request: LoadRequest, index: int) -> dict[str, Any]:
    """The options of the TensorRT provider on this device, with one profile that spans the buckets."""
    options: dict[str, Any] = {"device_id": index, "trt_engine_cache_enable": False}
    if request.precision in ("float16", "bfloat16"):
        options["trt_fp16_enable" if request.precision == "float16" else "trt_bf16_enable"] = True
    if request.device_memory_bytes_max:
        options["trt_max_workspace_size"] = request.device_memory_bytes_max
    least, usual, most = profile_rows(request)
    options["trt_profile_min_shapes"] = _shapes(request, least)
    options["trt_profile_opt_shapes"] = _shapes(request, usual)
    options["trt_profile_max_shapes"] = _shapes(request, most)
    return options


def profile_rows(request: LoadRequest) -> tuple[int, int, int]:
    """The fewest rows of a run, those that TensorRT shall be fastest for, and the most."""
    if request.strict_rows:
        return request.strict_rows, request.strict_rows, request.strict_rows
    buckets = buckets_for(request.rows_max)
    return buckets[0], buckets[-1], buckets[-1]


def _shapes(request: LoadRequest, rows: int) -> str:
    named: list[tuple[str, Sequence[int]]] = [(each.name, each.shape) for each in request.observation]
    named += [(state.name, state.shape) for state in request.states]
    return ",".join(f"{name}:{'x'.join(map(str, (rows, *shape)))}" for name, shape in named)
