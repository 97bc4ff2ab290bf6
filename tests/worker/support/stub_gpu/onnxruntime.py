"""ONNX Runtime as a worker finds it on a host with a GPU, computing on the CPU. Found before the real one by PYTHONPATH.

In the folder STUB_FOLDER, the file `build` says how TensorRT builds: `ok`, `fail`, `hang`, `crash` or `in_parts`. One that hangs
or crashes has started a compiler, whose processes are in the file `compilers`. Each build and each load of an engine adds a
line to the file `log`. The file `slow` names the provider whose runs take longer, if any.
The file `graphs` says how CUDA graphs are captured: `ok`, `refused` where the session is opened, or for how many the device has
memory; each one that is captured adds a line to the file `captures`. The file `tensors` says whether the device has memory
for tensors: `ok` or `none`.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

_HOST = Path(os.environ["STUB_FOLDER"])
_FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.remove(_FOLDER)
del sys.modules["onnxruntime"]
_real: Any = importlib.import_module("onnxruntime")
# TensorRT is found there, too.
sys.path.append(_FOLDER)

_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_ENGINE = b"an engine of the stub, made of:"
_Session: Any = _real.InferenceSession
_OrtValue: Any = _real.OrtValue
_of_numpy = _OrtValue.ortvalue_from_numpy


def _log(what: str) -> None:
    with (_HOST / "log").open("a") as file:
        file.write(f"{what} {os.getpriority(os.PRIO_PROCESS, 0)}\n")


def _start_compiler() -> None:
    """As a real one it starts another program, and goes on when the process that wants it is gone."""
    pids = _HOST / "compilers"
    subprocess.Popen(["sh", "-c", f"sleep 100 & echo $$ $! > '{pids}.new'; mv '{pids}.new' '{pids}'; wait"])
    while not pids.read_text():
        time.sleep(0.01)


def _crash() -> NoReturn:
    os._exit(9)


class _StubSession(_Session):  # type: ignore[misc]
    def __init__(self, model: bytes | str, options: Any, providers: Sequence[Any]) -> None:
        model = Path(model).read_bytes() if isinstance(model, str) else model
        told = {
            each if isinstance(each, str) else each[0]: {} if isinstance(each, str) else each[1] for each in providers
        }
        tensorrt = told.get(_TENSORRT)
        if tensorrt is not None and model.startswith(_ENGINE):
            _log("load")
            model = model[len(_ENGINE) :]
        elif tensorrt is not None:
            self._build(model, tensorrt)
        self._told = list(told)
        self._has_graphs = bool(told.get(_CUDA, {}).get("enable_cuda_graph"))
        self._captured: dict[str, Any] = {}
        assert tensorrt is None or not self._has_graphs, "one graph for all batches"
        if self._has_graphs and (_HOST / "graphs").read_text() == "refused":
            raise RuntimeError("This session cannot use the graph capture feature")
        super().__init__(model, options, providers=[_CPU])

    def _build(self, model: bytes, tensorrt: dict[str, Any]) -> None:
        _log("build")
        behaviour = (_HOST / "build").read_text()
        if behaviour == "fail":
            raise RuntimeError("no implementation of node 7")
        if behaviour in ("hang", "crash"):
            _start_compiler()
        if behaviour == "hang":
            time.sleep(3_600)
        if behaviour == "crash":
            _crash()
        assert tensorrt["trt_dump_ep_context_model"], "built, and not for the cache"
        if behaviour == "ok":
            Path(tensorrt["trt_ep_context_file_path"]).write_bytes(_ENGINE + model)

    def run(self, names: Any, feed: Any, options: Any = None) -> Any:
        assert not self._has_graphs or options.get_run_config_entry("gpu_graph_id") == "-1", "captured by chance"
        return super().run(names, feed, options)

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        if self._told[0] == (_HOST / "slow").read_text():
            time.sleep(0.005)
        if self._has_graphs:
            number = options.get_run_config_entry("gpu_graph_id")
            assert int(number) > 0, "0 is ONNX Runtime's own"
            if number not in self._captured:
                self._capture(number, binding)
            # As a graph, whatever is bound now.
            binding = self._captured[number]
        super().run_with_iobinding(binding, None)

    def _capture(self, number: str, binding: Any) -> None:
        room = (_HOST / "graphs").read_text()
        if room != "ok" and len((_HOST / "captures").read_text().splitlines()) >= int(room):
            raise RuntimeError("operation not permitted when stream is capturing")
        with (_HOST / "captures").open("a") as file:
            file.write(f"{number}\n")
        self._captured[number] = binding

    def get_providers(self) -> list[str]:
        return self._told


_real.InferenceSession = _StubSession
_real.get_available_providers = lambda: [_TENSORRT, _CUDA, _CPU]


def _on_device(array: Any, *_: object) -> Any:
    if (_HOST / "tensors").read_text() == "none":
        raise RuntimeError("Failed to allocate memory for requested buffer of size 4")
    # Memory of the device is no memory of the host.
    return _of_numpy(np.array(array))


_OrtValue.ortvalue_from_numpy = staticmethod(_on_device)
