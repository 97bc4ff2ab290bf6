"""The interface between a worker and its engine, and how a worker finds the engine that it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from contextlib import suppress
from typing import Any, Final, Protocol, cast

import pillion_worker.engines
from pillion_worker.device_memory.meter import DeviceMeter
from pillion_worker.errors import EngineError
from pillion_worker.model_source import Model
from pillion_worker.runs.interface import Run
from pillion_worker.tensors import LoadRequest, Tensor, TensorMemory

_EXTRAS: Final = {"torch": "pillion[torch]", "onnxruntime": "pillion[daemon]"}

_failed: dict[str, Exception] = {}
"""Why engines could not be imported, by name."""


class Engine(Protocol):
    """A loaded policy. An engine is one module of this folder with a function `load` that returns one of these."""

    kind: str

    outputs: list[Tensor]
    """Every output and then every parameter of the request, with the dtype and the shape that a row really has."""

    @property
    def keeps_states(self) -> bool:
        """Whether the runs that it binds to an arena keep recurrent states on its device, by `TensorMemory.state_rows`.

        If not, they read and write `TensorMemory.states`. The states are lost with the process; `describe` then says
        `states: device`.
        """

    def bind(self, memory: TensorMemory) -> list[Run]:
        """Binds the engine to the memory of a batch, and returns its runs.

        `runs[n]()` reads the first n rows of the inputs and of the states before, and writes those of the outputs and of
        the states after; n is 0 to rows_max. Rows after them may be read and overwritten. It may raise `EngineError`.
        Counts of rows that run in the same shape share one function. Either all runs of an engine are a `PipelinedRun`,
        or none is.
        """

    def register(self, arena: memoryview) -> bool:
        """Registers the arena as page-locked with the engine's device; returns whether it did. False without one."""

    def idle_run(self) -> Run | None:
        """Returns a run of the smallest bucket in memory of its own: it keeps a device warm that slows down when it idles.

        None for a device that does not.
        """

    def describe(self) -> dict[str, Any]:
        """A description for operators: kind, version, threads, …

        Texts, truth values, integers of 64 bits and lists of these integers: at most `DESCRIPTION_KEYS_MAX` entries, and
        `DESCRIPTION_BYTES_MAX` as JSON. A worker that says more is replaced.
        """


def prepare(engine: str) -> None:
    """Imports an engine and its library before a model is there. Where that fails, `load_engine` fails too, and says why."""
    try:
        module = _module_of(engine)
    except Exception as error:  # noqa: BLE001 - a library may fail in its own ways
        # Half of the library is imported now, so that a second try may fail with another reason.
        _failed[engine] = error.with_traceback(None)
        return
    with suppress(Exception):
        if hasattr(module, "prepare"):
            module.prepare()


def load_engine(model: Model, request: LoadRequest, meter: DeviceMeter | None = None) -> Engine:
    """Loads a model with the engine of that name, which begins `meter` before it puts anything on a device.

    Raises `EngineError` if the model and its request do not agree, or the interpreter lacks the engine's package.
    """
    try:
        if request.engine in _failed:
            raise _failed[request.engine]
        module = _module_of(request.engine)
    except ModuleNotFoundError as error:
        raise EngineError(
            f"its engine needs the package {error.name!r}, which {sys.executable} does not have: "
            f"{install_command(error.name or '')}"
        ) from None
    return cast("Engine", module.load(model, request, meter))


def _module_of(engine: str) -> Any:
    names = {module.name for module in pkgutil.iter_modules(pillion_worker.engines.__path__)} - {"interface"}
    if engine not in names:
        raise EngineError(f"engine: expected one of {', '.join(sorted(names))}, got {engine!r}")
    return importlib.import_module(f"pillion_worker.engines.{engine}")


def install_command(package: str) -> str:
    """Returns the command that installs an engine's package into this interpreter: as the extra of Pillion, if it has the daemon."""
    has_daemon = importlib.util.find_spec("pilliond") is not None
    wanted = f"'{_EXTRAS[package]}'" if has_daemon and package in _EXTRAS else package
    return f"{sys.executable} -m pip install {wanted}"
