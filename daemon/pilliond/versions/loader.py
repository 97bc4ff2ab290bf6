"""Builds versions in the serving process: at start, and in a thread while the loop serves."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Final

import msgspec

from pillion_protocol import Spec
from pillion_worker.model_source import Model, path_of, size_of
from pilliond.engine.interface import Engine, EngineError
from pilliond.engine.load_request import device_fields, engine_fields, plain_fields, why_device_missing, worker_fields
from pilliond.engine.parity import check_parity
from pilliond.engine.worker import WorkerEngine
from pilliond.ipc.control_channel import VersionRequest
from pilliond.limits import LOAD_COPIES, LOAD_MARGIN_BYTES, PolicyLimits
from pilliond.linux.epoll import DescriptorSet
from pilliond.linux.stall_probe import StallProbe
from pilliond.settings.schema import EngineSettings
from pilliond.versions.loaded_version import Identity, Version

_RECURRENT: Final = "a recurrent version runs on one device"


def build_version(
    request: VersionRequest, model: Model, golden: bytes | None, rows_max: int, settings: EngineSettings
) -> Version:
    """Builds and warms an ONNX version of a verified model, in this process, and checks its golden pairs, if any.

    Raises `EngineError`.
    """
    assert request.engine.kind == "onnx", request.engine.kind
    # Imported here: a serving process without inline versions need not have ONNX Runtime in its memory.
    from pilliond.engine.onnx import OnnxEngine

    parameters = request.distribution.parameters()
    one_shape = settings.one_shape_rows
    engine = OnnxEngine(
        model, request.spec, parameters, rows_max, settings.threads, request.states, one_shape, device_fields(settings)
    )
    if why := why_device_missing(settings, engine.describe()):
        raise EngineError(why)
    engine.warm_up()
    if golden is not None:
        check_parity(engine, request.spec, request.states, golden, request.tolerance, rows_max)
    return version_of(request, engine, size_of(model))


def worker_engine(
    request: VersionRequest, rows_max: int, settings: EngineSettings, code: Sequence[str], **options: Any
) -> WorkerEngine:
    """Returns the engine of a version that runs in a worker, without a worker. `code` is `trust.code`.

    `settings` are one of `settings_of_workers`. `options` are `descriptors`, `clock` and `missed` of `WorkerEngine`, or fields
    of `LoadRequest`.
    """
    return WorkerEngine(
        request.spec,
        request.distribution.parameters(),
        rows_max,
        request.states,
        check_described=partial(why_device_missing, settings),
        **engine_fields(request.engine, code),
        **{**worker_fields(settings, request.engine.kind), **plain_fields(request.fallback)},
        **options,
    )


def settings_of_workers(request: VersionRequest, settings: EngineSettings) -> list[EngineSettings]:
    """Returns the settings of each worker that runs a version. Raises `EngineError` if it is required on more devices."""
    count = settings.worker_count(is_recurrent=bool(request.states))
    if count < len(settings.devices) and settings.device_required:
        asked, first = " and ".join(settings.devices), settings.devices[0]
        raise EngineError(f"engine.device_required: expected {asked}, got {first} alone ({_RECURRENT})")
    return [settings.on_device(index) for index in range(count)]


def version_of(request: VersionRequest, engine: Engine, model_bytes: int) -> Version:
    """Returns the version that an engine runs, which is ready; raises `EngineError` if they do not fit.

    Each of several replicas has the `model_bytes` of the model.
    """
    identity = Identity(request.policy, request.version, request.digest)
    version = Version(identity, request.spec, request.distribution, engine, request.safe_action, request.metrics_index)
    version.model_bytes = model_bytes * max(1, len(engine.replicas))
    version.certificate = request.certificate
    if engine.is_inline:
        for each in request.service_us:
            version.service.learn(each.rows, round(each.p50_us * 1e3), round(each.p99_us * 1e3))
    return version


def read_descriptor(descriptor: int) -> bytes:
    """Reads all bytes of a sealed memfd, which stays open."""
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()


class Built(msgspec.Struct, frozen=True):
    """The result of a load."""

    request: VersionRequest
    version: Version | None
    error: str
    load_ns: int
    stall_ns: int


class VersionLoader:
    """Loads one version at a time, in a thread that ends with the load, while the loop serves.

    ONNX Runtime builds and runs without the interpreter's lock, so only the Python in between delays the loop: a
    `StallProbe` measures that. The golden pairs were checked during staging. Owns the thread and a descriptor; calls
    `on_built` in the loop.
    """

    bursts: ClassVar[bool] = False

    def __init__(
        self,
        descriptors: DescriptorSet,
        limits: PolicyLimits,
        settings: EngineSettings,
        on_built: Callable[[Built], None],
    ) -> None:
        self._descriptors = descriptors
        self._rows_max = limits.rows_max
        self._settings = settings
        self._on_built = on_built
        self._probe = StallProbe(descriptors)
        self._thread: threading.Thread | None = None
        self._built: Built | None = None
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        descriptors.add(self._descriptor, self)

    @property
    def is_busy(self) -> bool:
        """Whether a version is being loaded."""
        return self._thread is not None

    def start(self, request: VersionRequest, model_descriptor: int) -> None:
        """Starts a load, and takes the descriptor over; raises `OSError` if memory or descriptors are short."""
        assert self._thread is None
        self._check_room(request.spec, os.fstat(model_descriptor).st_size)
        self._probe.start()
        self._thread = threading.Thread(target=self._load, args=(request, model_descriptor), daemon=True)
        self._thread.start()

    def _check_room(self, spec: Spec, model_bytes: int) -> None:
        """Raises `OSError` if there is no memory for a version. Running out during the load could end the process."""
        row_bytes = sum(tensor.row_bytes for tensor in [*spec.observation, *spec.outputs])
        mmap.mmap(-1, LOAD_MARGIN_BYTES + LOAD_COPIES * model_bytes + self._rows_max * row_bytes).close()

    def receive(self) -> None:
        """Finishes a load, in the loop, when its thread is done."""
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
        """Waits for the thread, and drops its result."""
        if self._thread is not None:
            self._thread.join()
        self._probe.stop()
        self._descriptors.remove(self._descriptor)
        os.close(self._descriptor)

    def _load(self, request: VersionRequest, model_descriptor: int) -> None:
        began_ns = time.monotonic_ns()
        version, error = None, ""
        try:
            version = build_version(request, path_of(model_descriptor), None, self._rows_max, self._settings)
        except EngineError as refused:
            error = str(refused)
        except (MemoryError, OSError) as refused:
            error = f"no memory is left for it: {refused}"
        finally:
            os.close(model_descriptor)
            if version is None and not error:
                error = "it could not be built"
            self._built = Built(request, version, error, time.monotonic_ns() - began_ns, 0)
            os.eventfd_write(self._descriptor, 1)
