"""A policy with several observations and a distribution of real numbers. None of the shipped policies has these."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.harness import Daemon, publish, running

WEIGHTS = np.array(
    [[0.01, 0.0], [0.0, 0.01], [0.02, 0.0], [0.0, 0.02], [0.5, -0.25], [0.25, 0.5], [0.1, 0.1]], dtype=np.float32
)
LOG_STD = np.array([-1.0, -2.0], dtype=np.float32)
SAFE_ACTION = [0.5, -0.5]

CARD = """
schema: 1
name: driver
version: 1.2.0
description: A matrix that drives.
licence: Apache-2.0
observation:
- {name: camera, dtype: uint8, shape: [2, 2], low: [0.0], high: [255.0]}
- {name: speed, dtype: float32, shape: [2]}
- {name: gear, dtype: int64, space: Discrete, low: [-1.0], high: [5.0]}
outputs:
- {name: action, dtype: float32, shape: [2], low: [-1.0], high: [1.0]}
- {name: value, dtype: float32}
- {name: log_probability, dtype: float32}
distribution: {kind: diagonal_gaussian, log_std: log_std}
safe_action: [0.5, -0.5]
"""


def driver_model() -> bytes:
    """Returns a model with action = [camera, speed, gear] · WEIGHTS and value = speed[0]."""
    nodes = [
        helper.make_node("Cast", ["camera"], ["camera_f"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["camera_f", "flat"], ["camera_flat"]),
        helper.make_node("Cast", ["gear"], ["gear_f"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["gear_f", "column"], ["gear_flat"]),
        helper.make_node("Concat", ["camera_flat", "speed", "gear_flat"], ["features"], axis=1),
        helper.make_node("MatMul", ["features", "weights"], ["action"]),
        helper.make_node("Mul", ["action", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "log_std_row"], ["log_std"]),
        helper.make_node("Gather", ["speed", "first"], ["value"], axis=1),
        helper.make_node("ReduceSum", ["zeros", "last_axis"], ["log_probability"], keepdims=0),
    ]
    constants: dict[str, NDArray[Any]] = {
        "flat": np.array([-1, 4], np.int64),
        "column": np.array([-1, 1], np.int64),
        "weights": WEIGHTS,
        "zero": np.array(0.0, np.float32),
        "log_std_row": LOG_STD,
        "first": np.array(0, np.int64),
        "last_axis": np.array([1], np.int64),
    }
    inputs = [
        helper.make_tensor_value_info("camera", TensorProto.UINT8, ["rows", 2, 2]),
        helper.make_tensor_value_info("speed", TensorProto.FLOAT, ["rows", 2]),
        helper.make_tensor_value_info("gear", TensorProto.INT64, ["rows"]),
    ]
    outputs = [
        helper.make_tensor_value_info("action", TensorProto.FLOAT, ["rows", 2]),
        helper.make_tensor_value_info("value", TensorProto.FLOAT, ["rows"]),
        helper.make_tensor_value_info("log_probability", TensorProto.FLOAT, ["rows"]),
        helper.make_tensor_value_info("log_std", TensorProto.FLOAT, ["rows", 2]),
    ]
    initialisers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "driver", inputs, outputs, initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


@pytest.fixture(scope="session")
def driver_daemon(short_path: Path) -> Iterator[Daemon]:
    """A shared daemon that serves the driver."""
    folder = short_path / "driver"
    publish(folder / "store", "driver", "1.2.0", driver_model(), CARD)
    arguments = [
        "--store", str(folder / "store"), "--policy", "driver",
        "--admin", f"unix://{folder / 'admin.sock'}", "--listen", f"ipc://{folder / 'zmq.sock'}",
    ]  # fmt: skip
    with running(arguments, folder / "stderr") as daemon:
        yield daemon
