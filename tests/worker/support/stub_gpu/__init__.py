"""A host with a GPU, as a worker sees it: the driver, ONNX Runtime and TensorRT. What they are asked for is on the CPU."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


class StubGpu:
    """Lets the workers that this process starts see a GPU, as long as the test runs."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._log = folder / "log"
        self._log.touch()
        self._contexts = folder / "contexts"
        self._contexts.touch()
        library = folder / "libcuda.so.1"
        source = FOLDER / "libcuda.c"
        subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", str(library), str(source)], check=True)
        patch.setenv("LD_LIBRARY_PATH", str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
        patch.setenv("STUB_FOLDER", str(folder))
        self.set(
            build="ok",
            tensorrt="10.9.0",
            slow="",
            devices=1,
            free_mb=1_000,
            taken_mb=300,
            graphs="ok",
            captures="",
            tensors="ok",
            compilers="",
        )

    def set(self, **values: object) -> None:
        """Sets how it behaves from now on, in all processes."""
        for name, value in values.items():
            (self._folder / name).write_text(str(value))

    def seen(self) -> list[str]:
        """What TensorRT did since the last call: `build` and `load`, each with the niceness of its process."""
        lines = self._log.read_text().splitlines()
        self._log.write_text("")
        return lines

    def contexts(self) -> list[tuple[str, int, int]]:
        """What happened to contexts since the last call: `made` or `reset`, the number of the device, and the process."""
        words = [line.split() for line in self._contexts.read_text().splitlines()]
        self._contexts.write_text("")
        return [(what, int(device), int(process)) for what, device, process in words]

    def compilers(self) -> list[int]:
        """The processes of the compiler that the last build started, if it hung or crashed."""
        return [int(pid) for pid in (self._folder / "compilers").read_text().split()]

    def captured(self) -> int:
        """How many CUDA graphs were captured so far."""
        return len((self._folder / "captures").read_text().splitlines())
