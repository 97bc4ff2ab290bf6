"""Measures the torch engine on a CUDA device: what it adds to a copy in, a bare replay of a CUDA graph and a copy out.

    python tools/gpu_checks.py [--json FILE]

Takes some minutes. Where there is no CUDA device it says so, and ends with 0.
"""

from __future__ import annotations

import argparse
import io
import json
import mmap
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NOTHING_TRIED = "no CUDA device: nothing was tried"
BATCHES = (1, 16, 256)
RUNS = 200
ADDED_MAX = 1.2
"""What issue 13 allows: the engine's p50, as a multiple of the bare one's."""
NOT_MEASURED = "not measured here: depth = 2, two policies on one device, a switch, ONNX Runtime's CUDA and TensorRT"


class Input(NamedTuple):
    """An observation of a policy."""

    name: str
    dtype: str
    shape: list[int]


class Figure(NamedTuple):
    """What was measured of a policy with one size of batch, in µs."""

    policy: str
    rows: int
    bare_p50_us: float
    engine_p50_us: float
    engine_p99_us: float
    memory: str

    @property
    def ratio(self) -> float:
        return self.engine_p50_us / self.bare_p50_us


def main(arguments: list[str]) -> int:
    """Measures and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description="Measure the torch engine on a CUDA device.")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args(arguments)
    reason = missing()
    if reason:
        print(f"{NOTHING_TRIED} ({reason})")
        return 0
    import torch

    device = torch.cuda.get_device_name(0)
    print(f"{device}, torch {torch.__version__}, CUDA {torch.version.cuda}: p50 of {RUNS} runs each, in turns")
    print(f"{'policy':<12}{'rows':>6}{'bare µs':>12}{'engine µs':>12}{'ratio':>8}{'p99 µs':>12}  memory")
    figures = []
    for name, make in policies().items():
        module, inputs, width = make()
        for rows in BATCHES:
            figure = measure(name, module, inputs, width, rows)
            figures.append(figure)
            print(
                f"{name:<12}{rows:>6}{figure.bare_p50_us:>12.1f}{figure.engine_p50_us:>12.1f}{figure.ratio:>8.2f}"
                f"{figure.engine_p99_us:>12.1f}  {figure.memory}"
            )
    print(NOT_MEASURED)
    if options.json:
        options.json.write_text(
            json.dumps({"device": device, "figures": [each._asdict() for each in figures]}, indent=2)
        )
    above = [f"{each.policy} with {each.rows} rows" for each in figures if each.ratio > ADDED_MAX]
    print(f"above {ADDED_MAX}: {', '.join(above)}" if above else f"none is above {ADDED_MAX}")
    return 0


def missing() -> str:
    """Why there is no CUDA device; empty if there is one."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    return "" if torch.cuda.is_available() else f"torch {torch.__version__} finds none"


def policies() -> dict[str, Callable[[], tuple[Any, list[Input], int]]]:
    """Each makes a module, its inputs, and how many floats it returns for a row."""
    return {"mlp": mlp, "nature-cnn": nature_cnn, "vit-s": vit_s}


def mlp() -> tuple[Any, list[Input], int]:
    """8→64→64→4, with tanh."""
    from torch import nn

    net = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
    return net, [Input("observation", "float32", [8])], 4


def nature_cnn() -> tuple[Any, list[Input], int]:
    """The network of Mnih et al. 2015, on four frames of 84×84 bytes."""
    from torch import Tensor, nn

    class NatureCnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                *(nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()),
                *(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 18)),
            )

        def forward(self, observation: Tensor) -> Any:
            return self.net(observation.float() / 255)

    return NatureCnn(), [Input("observation", "uint8", [4, 84, 84])], 18


def vit_s() -> tuple[Any, list[Input], int]:
    """A transformer of the size of ViT-S (12 layers, width 384, 6 heads) on an image and 32 tokens of text."""
    import torch
    from torch import Tensor, nn

    class ImageAndText(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 384, 16, stride=16)
            self.words = nn.Embedding(32_000, 384)
            self.positions = nn.Parameter(torch.zeros(1, 14 * 14 + 32, 384))
            layer = nn.TransformerEncoderLayer(384, 6, 1536, activation="gelu", batch_first=True, norm_first=True)
            self.layers = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
            self.act = nn.Linear(384, 7)

        def forward(self, image: Tensor, text: Tensor) -> Any:
            seen = self.patches(image.float() / 255).flatten(2).transpose(1, 2)
            both = torch.cat([seen, self.words(text)], dim=1) + self.positions
            return self.act(self.layers(both).mean(dim=1))

    return ImageAndText(), [Input("image", "uint8", [3, 224, 224]), Input("text", "int64", [32])], 7


def exported(module: Any, inputs: list[Input]) -> bytes:
    """The module as a file of `torch.export` with any number of rows."""
    import torch

    example = tuple(torch.from_numpy(np.zeros((2, *each.shape), each.dtype)) for each in inputs)
    rows = torch.export.Dim("rows", min=1, max=4096)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(
            torch.export.export(module.eval(), example, dynamic_shapes=tuple({0: rows} for _ in inputs)), file
        )
    return file.getvalue()


def measure(name: str, module: Any, inputs: list[Input], width: int, rows: int) -> Figure:
    """Measures the engine and the bare graph, one run of each in turns."""
    from pillion_worker.arena import ArenaLayout
    from pillion_worker.engines.torch import load
    from pillion_worker.tensors import LoadRequest, Tensor

    request = LoadRequest(
        "torch",
        [Tensor(*each) for each in inputs],
        [Tensor("action", "float32", [width])],
        [],
        [],
        rows_max=rows,
        model_kind="torch",
        device="cuda:0",
    )
    engine = load(exported(module, inputs), request)
    layout = ArenaLayout(request.observation, engine.outputs, [], rows, 1)
    arena = memoryview(mmap.mmap(-1, layout.total_bytes))
    memory = "pinned" if engine.register(arena) else "pageable"
    run = engine.bind(layout.memory(arena, 0))[rows]
    bare = bare_graph(module, inputs, width, rows)
    for each in (run, bare):
        for _ in range(20):
            each()
    taken: dict[str, list[int]] = {"bare": [], "engine": []}
    for _ in range(RUNS):
        for key, each in (("bare", bare), ("engine", run)):
            began_ns = time.perf_counter_ns()
            each()
            taken[key].append(time.perf_counter_ns() - began_ns)
    p50 = {key: float(np.percentile(each, 50)) / 1_000 for key, each in taken.items()}
    return Figure(name, rows, p50["bare"], p50["engine"], float(np.percentile(taken["engine"], 99)) / 1_000, memory)


def bare_graph(module: Any, inputs: list[Input], width: int, rows: int) -> Callable[[], None]:
    """A run without Pillion: pinned copy in, replay of a CUDA graph of the module, copy out, wait."""
    import torch

    module = module.eval().cuda()
    hosts = [torch.from_numpy(np.zeros((rows, *each.shape), each.dtype)).pin_memory() for each in inputs]
    devices = [host.cuda() for host in hosts]
    result = torch.empty((rows, width), pin_memory=True)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(3):
            module(*devices)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            made = module(*devices)

    def run() -> None:
        with torch.cuda.stream(stream):
            for device, host in zip(devices, hosts, strict=True):
                device.copy_(host, non_blocking=True)
            graph.replay()
            result.copy_(made, non_blocking=True)
        stream.synchronize()

    return run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
