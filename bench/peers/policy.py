"""The policy that every peer serves: the same `model.onnx`, run as Pillion's own engine runs it."""

from __future__ import annotations

import argparse
import time
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[Any]

WARM_UP_RUNS: Final = 3
_ORT_ERROR_ONLY: Final = 3


class Policy:
    """An ONNX session on the CPU: one thread, no spinning. `output` is the name of the graph's action output."""

    def __init__(self, model: str, output: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = _ORT_ERROR_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        (entry,) = self._session.get_inputs()
        self._name = entry.name
        self._outputs = [output]
        self.dtype = np.dtype({"tensor(float)": "float32"}.get(entry.type, entry.type[len("tensor(") : -1]))
        self.shape = tuple(entry.shape[1:])
        for _ in range(WARM_UP_RUNS):
            self.act(np.zeros(self.shape, self.dtype))

    def act(self, observation: Array) -> tuple[Array, int]:
        """Returns the action for one observation, both without a row axis, and the time of the run in ns."""
        actions, engine_ns = self.act_many(observation[np.newaxis])
        return actions.reshape(actions.shape[1:]), engine_ns

    def act_many(self, observations: Array) -> tuple[Array, int]:
        """Does the same for rows of observations."""
        feed = {self._name: observations}
        started_ns = time.monotonic_ns()
        (actions,) = self._session.run(self._outputs, feed)
        return actions, time.monotonic_ns() - started_ns


class ServerOptions(argparse.Namespace):
    """The options of a server: the model file, the name of the action output, and the port on 127.0.0.1."""

    model: str
    output: str
    port: int


def server_options() -> ServerOptions:
    """Parses the command line. Options that it does not know are left for the peer's own parser."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--port", type=int, required=True)
    options, _ = parser.parse_known_args(namespace=ServerOptions())
    return options
