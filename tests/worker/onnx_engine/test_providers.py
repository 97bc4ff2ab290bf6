"""What ONNX Runtime is told of a device."""

from __future__ import annotations

from pillion_worker.onnx_engine.providers import cuda_options, tensorrt_options
from pillion_worker.tensors import LoadRequest, State, Tensor


def request(**fields: object) -> LoadRequest:
    observation = [Tensor("pixels", "uint8", [4, 84, 84]), Tensor("speed", "float32", [])]
    states = [State("hidden", "next_hidden", "float32", [8])]
    asked = LoadRequest("onnx", observation, [], [], states, rows_max=6)
    return asked._replace(**fields)  # type: ignore[arg-type] # the fields of the test


def test_the_budget_of_a_version_bounds_the_arena_and_the_workspace() -> None:
    bounded = request(device_memory_bytes_max=5_000)
    assert cuda_options(bounded, 1)["gpu_mem_limit"] == tensorrt_options(bounded, 1)["trt_max_workspace_size"] == 5_000
    assert cuda_options(bounded, 1)["device_id"] == tensorrt_options(bounded, 1)["device_id"] == 1
    assert "gpu_mem_limit" not in cuda_options(request(), 0)
    assert "trt_max_workspace_size" not in tensorrt_options(request(), 0)


def test_the_precision_is_the_one_that_was_asked_for() -> None:
    assert [cuda_options(request(precision=each), 0)["use_tf32"] for each in ("float32", "tf32", "float16")] == [
        0,
        1,
        1,
    ]
    for precision, names in {
        "tf32": set[str](),
        "float16": {"trt_fp16_enable"},
        "bfloat16": {"trt_bf16_enable"},
    }.items():
        options = tensorrt_options(request(precision=precision), 0)
        assert {name for name in options if name.startswith(("trt_fp16", "trt_bf16"))} == names


def test_one_profile_spans_the_buckets() -> None:
    options = tensorrt_options(request(), 0)
    assert options["trt_profile_min_shapes"] == "pixels:1x4x84x84,speed:1,hidden:1x8"
    assert options["trt_profile_max_shapes"] == "pixels:6x4x84x84,speed:6,hidden:6x8"
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"]
    strict = tensorrt_options(request(strict_rows=4), 0)
    assert {strict[f"trt_profile_{each}_shapes"] for each in ("min", "opt", "max")} == {
        "pixels:4x4x84x84,speed:4,hidden:4x8"
    }
