"""Stands in for `pillion_worker.torch_engine.cuda` in the interpreter of a test, so that a real worker finds a device.

A `.pth` file of that interpreter calls `hook`: nothing in the worker knows of this file.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.worker.support.installed import make_environment, site_of

_REPLACED: Final = "pillion_worker.torch_engine.cuda"
_ROOT: Final = Path(__file__).parents[3]


class _Finder:
    """Finds this file where the worker imports its CUDA device."""

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, __file__) if name == _REPLACED else None


def hook() -> None:
    """Replaces the device of the workers that this interpreter runs."""
    sys.meta_path.insert(0, _Finder())


class SimulatedGpu:
    """An environment whose workers find a GPU. Each fault happens once, to a batch of acts."""

    def __init__(self, folder: Path) -> None:
        self.python = make_environment(folder)
        self._folder = folder
        (site_of(folder) / "simulated.pth").write_text(
            f"import sys; sys.path.append({str(_ROOT)!r}); import tests.worker.support.simulated_cuda as s; s.hook()\n"
        )
        self._batches = folder / "batches"
        self._batches.touch()

    @property
    def batches(self) -> int:
        """How many were begun on the device, those that keep it warm included."""
        return self._batches.stat().st_size

    def vanish(self) -> None:
        """The device is lost with the next batch."""
        (self._folder / "vanish").touch()

    def run_out_of_memory(self) -> None:
        """The next batch finds no memory."""
        (self._folder / "no-memory").touch()


# What a worker finds in place of `cuda.py`


def why_missing(index: int) -> str:
    """As in `cuda.py`."""
    return "" if index == 0 else "the simulated host has one device"


def open_device(device: str, precision: str, memory_bytes_max: int) -> Any:
    """As in `cuda.py`."""
    import torch

    from tests.worker.support.simulated_device import Copies, LostError, SimulatedDevice, SimulatedStream

    folder = Path(sys.prefix)
    faults = {"vanish": LostError("unspecified launch failure"), "no-memory": torch.OutOfMemoryError("out of memory")}

    class Gpu(SimulatedDevice):
        """Counts its batches, and fails one with rows other than zeros where a file says so."""

        def copier(self, copies: Copies, stream: SimulatedStream) -> Callable[[], None]:
            copy = super().copier(copies, stream)

            def copy_or_fail() -> None:
                if stream.name == "copy in":
                    with open(folder / "batches", "ab", buffering=0) as file:
                        file.write(b".")
                    due = [name for name in faults if (folder / name).exists()]
                    if due and any(bool(source.any()) for _, source in copies):
                        (folder / due[0]).unlink()
                        self.faults[stream.name] = [faults[due[0]]]
                copy()

            return copy_or_fail

    return Gpu()
