"""ONNX Runtime as a worker finds it on a host with a GPU, computing on the CPU. Found before the real one by PYTHONPATH.

In the folder STUB_FOLDER, the file `build` says how TensorRT builds: `ok`, `fail`, `hang`, `crash` or `in_parts`. Each build
and each load of an engine adds a line to the file `log`. The file `slow` names the provider whose runs take longer, if any.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

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
        super().__init__(model, options, providers=[_CPU])

    def _build(self, model: bytes, tensorrt: dict[str, Any]) -> None:
        _log("build")
        behaviour = (_HOST / "build").read_text()
        if behaviour == "fail":
            raise RuntimeError("no implementation of node 7")
        if behaviour == "hang":
            time.sleep(3_600)
        if behaviour == "crash":
            _crash()
        assert tensorrt["trt_dump_ep_context_model"], "built, and not for the cache"
        if behaviour == "ok":
            Path(tensorrt["trt_ep_context_file_path"]).write_bytes(_ENGINE + model)

    def run_with_iobinding(self, binding: Any) -> None:
        if self._told[0] == (_HOST / "slow").read_text():
            time.sleep(0.005)
        super().run_with_iobinding(binding)

    def get_providers(self) -> list[str]:
        return self._told


_real.InferenceSession = _StubSession
_real.get_available_providers = lambda: [_TENSORRT, _CUDA, _CPU]
_OrtValue.ortvalue_from_numpy = staticmethod(lambda array, *_: _of_numpy(array))
