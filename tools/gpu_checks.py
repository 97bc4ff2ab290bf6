"""Measures the torch engine on a CUDA device: `python -m tools.gpu_checks [--json FILE]`.

1. What it adds to a copy in, a bare replay of a CUDA graph and a copy out, in one process.
2. What `engine.depth = 2` gains where copies take 30 % of the compute or more, in workers.
3. The p99 of a policy beside another one on the same device, and that of a switch between two resident versions.

Takes less than ten minutes. Where there is no CUDA device it says so, and ends with 0.
"""

from __future__ import annotations

import argparse
import json
import mmap
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tools.gpu_policies import Made, policies

NOTHING_TRIED = "nothing was tried"
CUDA_BUILD = "pip install --force-reinstall --no-deps --requirement locks/torch-cuda.txt"
"""Forced, as pip takes an installed 2.13.0+cpu for a 2.13.0."""
DEVICE = "cuda:0"
BATCHES = (1, 16, 256)
RUNS = 200
ADDED_MAX = 1.2
"""What issue 13 allows: the engine's p50, as a multiple of the bare one's."""
COPY_SHARE_MIN = 0.3
"""Of the compute: from there on two batches at once are to pay."""
SATURATED_S = 2.0
NOT_MEASURED = "not measured here: ONNX Runtime's CUDA and TensorRT, clients"


class Added(NamedTuple):
    """What was measured of a policy with one size of batch, in µs. The parts are by the clock of the device."""

    policy: str
    rows: int
    bare_p50_us: float
    engine_p50_us: float
    engine_p99_us: float
    copy_in_us: float
    compute_us: float
    copy_out_us: float
    memory: str

    @property
    def ratio(self) -> float:
        return self.engine_p50_us / self.bare_p50_us

    @property
    def copy_share(self) -> float:
        return (self.copy_in_us + self.copy_out_us) / self.compute_us


def main(arguments: list[str]) -> int:
    """Measures and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description="Measure the torch engine on a CUDA device.")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args(arguments)
    reason = missing()
    if reason:
        print(reason)
        return 0
    import torch

    from tools.gpu_workers import depth_gain, neighbours, switches

    began_s = time.monotonic()
    device = torch.cuda.get_device_name(0)
    print(f"{device}, torch {torch.__version__}, CUDA {torch.version.cuda}: p50 of {RUNS} runs each, in turns")
    made = {name: make() for name, make in policies().items()}
    added = [_print_added(measure(name, each, rows)) for name, each in made.items() for rows in BATCHES]
    above = [f"{each.policy} with {each.rows} rows" for each in added if each.ratio > ADDED_MAX]
    print(f"above {ADDED_MAX}: {', '.join(above)}" if above else f"none is above {ADDED_MAX}")
    report: dict[str, Any] = {
        "device": device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "added": [{**each._asdict(), "ratio": each.ratio, "copy_share": each.copy_share} for each in added],
    }
    # What this process holds on the device is not to disturb the workers.
    torch.cuda.empty_cache()
    copying = [each for each in added if each.copy_share >= COPY_SHARE_MIN and each.rows == max(BATCHES)]
    report["depth"] = [depth_gain(each.policy, made[each.policy], each.rows, DEVICE, SATURATED_S) for each in copying]
    report["neighbours"] = neighbours(made["mlp"], made["vit-s"], DEVICE, RUNS)
    report["switch"] = switches(made["nature-cnn"], DEVICE, RUNS)
    report["took_s"] = round(time.monotonic() - began_s)
    for name in ("depth", "neighbours", "switch", "took_s"):
        print(f"{name}: {json.dumps(report[name])}")
    print(NOT_MEASURED)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))
    return 0


def _print_added(figure: Added) -> Added:
    parts = f"{figure.copy_in_us:.1f} + {figure.compute_us:.1f} + {figure.copy_out_us:.1f}"
    print(
        f"{figure.policy}, {figure.rows} rows, {figure.memory}: bare {figure.bare_p50_us:.1f} µs, engine "
        f"{figure.engine_p50_us:.1f} (x {figure.ratio:.2f}, p99 {figure.engine_p99_us:.1f}; on the device {parts})",
        flush=True,
    )
    return figure


def missing() -> str:
    """One line that says why nothing was tried; empty if there is a CUDA device."""
    try:
        import torch
    except ImportError:
        return f"torch is not installed: {NOTHING_TRIED}"
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is a build without CUDA: {NOTHING_TRIED}; "
            f"install the other one: {sys.executable} -m {CUDA_BUILD}"
        )
    return f"no CUDA device: {NOTHING_TRIED} (torch {torch.__version__} finds none)"


def measure(name: str, made: Made, rows: int) -> Added:
    """Measures the engine and the bare graph, one run of each in turns."""
    from pillion_worker.arena import ArenaLayout
    from pillion_worker.engines.torch import load
    from pillion_worker.runs.interface import PipelinedRun
    from pillion_worker.tensors import LoadRequest, Tensor

    outputs = [Tensor("action", "float32", [made.width])]
    observation = [Tensor(*each) for each in made.inputs]
    request = LoadRequest(
        "torch", observation, outputs, [], [], rows_max=rows, model_kind="torch", device=DEVICE
    )  # fmt: skip
    engine = load(made.program, request)
    layout = ArenaLayout(request.observation, engine.outputs, [], rows, 1)
    arena = memoryview(mmap.mmap(-1, layout.total_bytes))
    memory = "pinned" if engine.register(arena) else "pageable"
    run = engine.bind(layout.memory(arena, 0))[rows]
    assert isinstance(run, PipelinedRun)
    bare = bare_graph(made, rows)
    for each in (run, bare):
        for _ in range(20):
            each()
    taken: dict[str, list[int]] = {"bare": [], "engine": []}
    for _ in range(RUNS):
        for key, each in (("bare", bare), ("engine", run)):
            began_ns = time.perf_counter_ns()
            each()
            taken[key].append(time.perf_counter_ns() - began_ns)
    parts = []
    for _ in range(RUNS):
        run.begin()
        parts.append(run.finish())
    p50 = {key: float(np.percentile(each, 50)) / 1_000 for key, each in taken.items()}
    p99_us = float(np.percentile(taken["engine"], 99)) / 1_000
    copy_in_us, compute_us, copy_out_us = (float(each) / 1_000 for each in np.percentile(parts, 50, axis=0))
    return Added(name, rows, p50["bare"], p50["engine"], p99_us, copy_in_us, compute_us, copy_out_us, memory)


def bare_graph(made: Made, rows: int) -> Callable[[], None]:
    """A run without Pillion: pinned copy in, replay of a CUDA graph of the module, copy out, wait."""
    import torch

    module = made.module.eval().cuda()
    hosts = [torch.from_numpy(np.zeros((rows, *each.shape), each.dtype)).pin_memory() for each in made.inputs]
    devices = [host.cuda() for host in hosts]
    result = torch.empty((rows, made.width), pin_memory=True)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(3):
            module(*devices)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            actions = module(*devices)

    def run() -> None:
        with torch.cuda.stream(stream):
            for device, host in zip(devices, hosts, strict=True):
                device.copy_(host, non_blocking=True)
            graph.replay()
            result.copy_(actions, non_blocking=True)
        stream.synchronize()

    return run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
