"""Builds versions in the serving process: at its start, and beside the loop while it serves."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable
from typing import ClassVar

import msgspec

from pillion_protocol import Spec
from pilliond.engine.interface import EngineError
from pilliond.engine.onnx import OnnxEngine
from pilliond.engine.parity import check_parity
from pilliond.ipc.control_channel import VersionRequest
from pilliond.limits import LOAD_COPIES, LOAD_MARGIN_BYTES, ServingLimits
from pilliond.linux.epoll import Poller
from pilliond.linux.stall_probe import StallProbe
from pilliond.settings.schema import EngineSettings
from pilliond.versions.loaded_version import Identity, Version


def build_version(
    order: VersionRequest, model: bytes, golden: bytes | None, rows_max: int, settings: EngineSettings
) -> Version:
    """A warm version from verified bytes; runs the golden pairs, where there are some. Raises `EngineError`."""
    parameters = order.distribution.parameters()
    one_shape = settings.one_shape_rows
    engine = OnnxEngine(model, order.spec, parameters, rows_max, settings.threads, order.states, one_shape)
    engine.warm_up()
    if golden is not None:
        check_parity(engine, order.spec, order.states, golden, order.tolerance, rows_max)
    identity = Identity(order.policy, order.version, order.digest)
    version = Version(identity, order.spec, order.distribution, engine, order.safe_action, order.metrics_index)
    version.model_bytes = len(model)
    version.certificate = order.certificate
    return version


def read_descriptor(descriptor: int) -> bytes:
    """All bytes of a sealed memfd, which stays open."""
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()


class Built(msgspec.Struct, frozen=True):
    """What came of a load."""

    order: VersionRequest
    version: Version | None
    error: str
    load_ns: int
    stall_ns: int


class VersionLoader:
    """Loads one version at a time in a thread of its own, which ends with it; the loop goes on meanwhile.

    ONNX Runtime builds and runs without the interpreter's lock, so what the loop feels is the Python in between: a
    `StallProbe` measures it. The golden pairs were run where the version was staged. Owns the thread and a descriptor;
    `on_built` is called in the loop.
    """

    bursts: ClassVar[bool] = False

    def __init__(
        self, poller: Poller, limits: ServingLimits, settings: EngineSettings, on_built: Callable[[Built], None]
    ) -> None:
        self._poller = poller
        self._rows_max = limits.rows_max
        self._settings = settings
        self._on_built = on_built
        self._probe = StallProbe(poller)
        self._thread: threading.Thread | None = None
        self._built: Built | None = None
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        poller.add(self._descriptor, self)

    @property
    def is_busy(self) -> bool:
        """Whether a version is being loaded."""
        return self._thread is not None

    def start(self, order: VersionRequest, model_descriptor: int) -> None:
        """Begins to load, and takes the descriptor over; raises `OSError` where there is no memory for the version, or no
        descriptor to measure with."""
        assert self._thread is None
        self._check_room(order.spec, os.fstat(model_descriptor).st_size)
        self._probe.start()
        self._thread = threading.Thread(target=self._load, args=(order, model_descriptor), daemon=True)
        self._thread.start()

    def _check_room(self, spec: Spec, model_bytes: int) -> None:
        """Raises `OSError` where there is no room for a version: in the midst of a load that may end the process."""
        row_bytes = sum(tensor.row_bytes for tensor in [*spec.observation, *spec.outputs])
        mmap.mmap(-1, LOAD_MARGIN_BYTES + LOAD_COPIES * model_bytes + self._rows_max * row_bytes).close()

    def receive(self) -> None:
        """In the loop: the thread is done."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return
        assert self._thread is not None
        self._thread.join()
        self._thread = None
        stall_ns = self._probe.stop()
        built, self._built = self._built, None
        assert built is not None
        self._on_built(msgspec.structs.replace(built, stall_ns=stall_ns))

    def close(self) -> None:
        """Waits for the thread, whose work is of no use any more."""
        if self._thread is not None:
            self._thread.join()
        self._probe.stop()
        self._poller.remove(self._descriptor)
        os.close(self._descriptor)

    def _load(self, order: VersionRequest, model_descriptor: int) -> None:
        began_ns = time.monotonic_ns()
        version, error = None, ""
        try:
            version = build_version(order, read_descriptor(model_descriptor), None, self._rows_max, self._settings)
        except EngineError as refused:
            error = str(refused)
        except (MemoryError, OSError) as refused:
            error = f"no memory is left for it: {refused}"
        finally:
            os.close(model_descriptor)
            if version is None and not error:
                error = "it could not be built"
            self._built = Built(order, version, error, time.monotonic_ns() - began_ns, 0)
            os.eventfd_write(self._descriptor, 1)
