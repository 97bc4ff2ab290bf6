"""A worker that a process starts for itself, to try a version in: the staging process and the shadow process.

The worker gets the priority of the process that starts it, and dies with it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from pilliond.engine.interface import EngineError
from pilliond.engine.worker import WorkerEngine
from pilliond.ipc.control_channel import VersionRequest
from pilliond.ipc.loss_cause import LossCause
from pilliond.ipc.worker_process import why_no_workers, with_exit_status, worker_command, worker_environment
from pilliond.limits import TRIAL_RUN_S_MAX, TRIAL_START_FACTOR
from pilliond.linux.sandbox import without_memory_limit
from pilliond.settings.schema import EngineSettings
from pilliond.versions.device_room import why_no_room
from pilliond.versions.golden_start import start_checked
from pilliond.versions.loaded_version import Version
from pilliond.versions.loader import settings_of_workers, version_of, worker_engine

_BYTES_PER_MB: Final = 1_000_000
_CPU_CLOCK: Final = 2
"""CPUCLOCK_SCHED of the kernel: the clock of a process that counts the time of all its threads."""


class TrialWorker:
    """One version in a worker. Owns the process and its engine; `close` ends both.

    `code` is `trust.code`. Of several devices it tries the first. Raises `EngineError` if the version cannot have all that
    are required. No pool bounds the resident memory of this worker: it is looked at while it loads; call `check_memory`
    now and then afterwards. `start_s_max` is how long it may take until it is warm, `options` are fields of `LoadRequest`.
    """

    def __init__(
        self,
        request: VersionRequest,
        rows_max: int,
        settings: EngineSettings,
        code: Sequence[str],
        start_s_max: float = 0.0,
        **options: Any,
    ) -> None:
        self.request = request
        """As it was started last: its golden pairs may only hold in float32."""
        self._rows_max = rows_max
        each = settings_of_workers(request, settings)
        self._settings = each[0]
        self._workers = sum(of_worker.devices == self._settings.devices for of_worker in each)
        """How many of its workers will be on that device."""
        self._code = code
        self._start_s_max = start_s_max or TRIAL_START_FACTOR * settings.start_s_max
        self._options = options
        self._engine = self._make_engine(request)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process id of the worker, which was started."""
        assert self._process is not None
        return self._process.pid

    def cpu_clock(self) -> int:
        """Returns the CPU time that the worker has used, in ns."""
        # It is a zombie when it has ended, whose clock stands still, until `close`.
        return time.clock_gettime_ns(~self.pid << 3 | _CPU_CLOCK)

    def start(self, model_descriptor: int, golden: bytes | None = None) -> Version:
        """Starts the worker, waits until the version is warm, and checks its golden pairs, if any, and what it takes of its
        devices. Raises `EngineError`.
        """
        python = self._settings.python
        if python and (why := why_no_workers(python)):
            raise EngineError(why)
        try:
            start = partial(self._start, model_descriptor)
            version = start_checked(start, self.request, golden, self._rows_max, self._settings)
        except OSError as error:
            raise EngineError(f"cannot start a worker: {error.strerror}") from None
        except EngineError as error:
            raise EngineError(with_exit_status(str(error), self._process)) from None
        self.check_memory()
        if why := why_no_room(self._engine.device_memory, self._settings.device_memory_mb, self._workers):
            raise EngineError(why)
        return version

    def check_memory(self) -> None:
        """Raises `EngineError` if the worker has more resident memory than the settings allow, as the pool would end it then."""
        if why := self._why_too_large():
            raise EngineError(why)

    def close(self) -> None:
        """Ends the worker. Safe to repeat."""
        self._engine.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _make_engine(self, request: VersionRequest) -> WorkerEngine:
        engine = worker_engine(request, self._rows_max, self._settings, self._code, **self._options)
        engine.run_s_max = TRIAL_RUN_S_MAX
        return engine

    def _start(self, model_descriptor: int, request: VersionRequest) -> Version:
        self.close()
        self.request = request
        self._engine = self._make_engine(request)
        self._spawn(model_descriptor)
        self._engine.wait_ready(self._start_s_max, self._lose_if_too_large)
        return version_of(request, self._engine, os.fstat(model_descriptor).st_size)

    def _lose_if_too_large(self) -> None:
        if why := self._why_too_large():
            self._engine.lose(why, LossCause.MEMORY)

    def _why_too_large(self) -> str:
        mb_max = self._settings.worker_memory_mb_max
        pages = int(_first_line(f"/proc/{self.pid}/statm").split()[1])
        resident_mb = pages * os.sysconf("SC_PAGE_SIZE") // _BYTES_PER_MB
        if resident_mb <= mb_max:
            return ""
        return f"its worker has {resident_mb} MB of resident memory, engine.worker_memory_mb_max is {mb_max}"

    def _spawn(self, model_descriptor: int) -> None:
        python = self._settings.python
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs, without_memory_limit():
                self._process = subprocess.Popen(
                    worker_command(python, theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=worker_environment(python),
                )
        except BaseException:
            ours.close()
            raise
        self._engine.attach(ours, model_descriptor)


def _first_line(path: str) -> str:
    with open(path) as file:
        return file.readline()
