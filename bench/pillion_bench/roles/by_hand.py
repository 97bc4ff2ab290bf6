"""The role that loads a model as a script would: import the library, read the file, hash it, load it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from pillion_bench.process.worker import Pipe


class ByHandPlan(msgspec.Struct, frozen=True):
    """The engine, and the file of the model."""

    engine: str
    path: str


class ByHandResult(msgspec.Struct, frozen=True):
    """How long each step took, and the processor time of the whole process."""

    import_ns: int
    read_ns: int
    hash_ns: int
    load_ns: int
    cpu_ns: int


def run(pipe: Pipe) -> None:
    """Does it once, and reports the times."""
    plan = pipe.receive_plan(ByHandPlan)
    times_ns = [time.monotonic_ns()]
    load = _library(plan.engine)
    times_ns.append(time.monotonic_ns())
    data = Path(plan.path).read_bytes()
    times_ns.append(time.monotonic_ns())
    hashlib.sha256(data).digest()
    times_ns.append(time.monotonic_ns())
    loaded = load(data)
    times_ns.append(time.monotonic_ns())
    assert loaded is not None
    import_ns, read_ns, hash_ns, load_ns = (after - before for before, after in pairwise(times_ns))
    pipe.send(ByHandResult(import_ns, read_ns, hash_ns, load_ns, time.process_time_ns()))


def _library(engine: str) -> Callable[[bytes], Any]:
    """Imports what an engine needs; returns the function that loads a model with it, on one thread."""
    if engine == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return lambda data: onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])
    if engine == "torch":
        import io

        import torch

        torch.set_num_threads(1)
        return lambda data: torch.export.load(io.BytesIO(data)).module()
    from safetensors.numpy import load

    from pillion_bench.torch_policies import make_table

    return lambda data: make_table(load(data))
