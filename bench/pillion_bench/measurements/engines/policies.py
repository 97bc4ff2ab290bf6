"""A policy that takes as long as it is told to, and a store that has it beside the policies that ship."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import monotonic_ns
from typing import Final

import msgspec
import numpy as np

from pillion_artifacts import ModelCard, Store
from pillion_artifacts.card.layers import CARD_NAME, MODEL_NAME
from pillion_artifacts.card.model_card import TensorCard
from pillion_bench.process.placement import CpuSet, pinned
from pillion_bench.shipped import examples_folder
from pilliond.engine.onnx import OnnxEngine

POLICY: Final = "looping"
"""Its graph has a Loop, so it is not bounded, and `auto` runs it in a worker."""

_OBSERVATION: Final = 8
_OPSET: Final = 18
_IR_VERSION: Final = 9
_TRIAL_TURNS: Final = 2_000
_TRIALS: Final = 7


@contextmanager
def store_with_looping(run_ms: float, cpus: CpuSet | None) -> Iterator[Path]:
    """Yields a temporary store of the shipped policies and `looping@1.0.0`, one run of which takes about `run_ms` on `cpus`."""
    with tempfile.TemporaryDirectory(prefix="pillion-bench-") as folder:
        root = Path(folder, "store")
        shutil.copytree(examples_folder(), root)
        publish_looping(Store(root), turns_for(run_ms, cpus) if run_ms else 1)
        yield root


def publish_looping(store: Store, turns: int) -> None:
    """Publishes `looping@1.0.0`: takes float32 [8], multiplies it `turns` times, returns the sum as float32 [1]."""
    with tempfile.TemporaryDirectory(prefix="pillion-bench-") as folder:
        Path(folder, MODEL_NAME).write_bytes(_model(turns))
        Path(folder, CARD_NAME).write_bytes(msgspec.yaml.encode(_card()))
        store.publish(POLICY, "1.0.0", Path(folder))


def turns_for(run_ms: float, cpus: CpuSet | None) -> int:
    """Measures how many turns of the loop take `run_ms` on `cpus`."""
    with pinned(cpus):
        engine = OnnxEngine(_model(_TRIAL_TURNS), _card().spec(), [], 1)
        taken_ns = []
        for _ in range(_TRIALS):
            began_ns = monotonic_ns()
            engine.runs[1]()
            taken_ns.append(monotonic_ns() - began_ns)
    return max(1, round(_TRIAL_TURNS * run_ms * 1e6 / median(taken_ns)))


def _card() -> ModelCard:
    return ModelCard(
        schema=3,
        name=POLICY,
        version="1.0.0",
        description="Multiplies its observation again and again, and returns the sum.",
        licence="Apache-2.0",
        observation=[TensorCard("observation", "float32", [_OBSERVATION])],
        outputs=[TensorCard("action", "float32", [1])],
    )


def _model(turns: int) -> bytes:
    from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

    def info(name: str, kind: int, shape: list[int | str] | None) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["continues"]),
            helper.make_node("Mul", ["value", "factor"], ["product"]),
        ],
        "turn",
        [info("turn", TensorProto.INT64, []), info("condition", TensorProto.BOOL, []), info("value", 1, None)],
        [info("continues", TensorProto.BOOL, []), info("product", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(1.0000001, np.float32), "factor")],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Loop", ["turns", "always", "observation"], ["last"], body=body),
            helper.make_node("ReduceSum", ["last", "axis"], ["action"], keepdims=1),
        ],
        "loop",
        [info("observation", TensorProto.FLOAT, ["rows", _OBSERVATION])],
        [info("action", TensorProto.FLOAT, ["rows", 1])],
        [
            numpy_helper.from_array(np.array(turns, np.int64), "turns"),
            numpy_helper.from_array(np.array(True), "always"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    return bytes(model.SerializeToString())
