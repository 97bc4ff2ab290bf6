"""The worker pool: starts a worker where the serving process needs one, and ends the lost ones."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from structlog.typing import FilteringBoundLogger

from pilliond.ipc.control_channel import ControlMessage, GiveUp, NeedWorker, WorkerReady, WorkerStarted
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.linux.sandbox import CHILD_ENVIRONMENT
from pilliond.linux.spawner import Spawner
from pilliond.settings.schema import EngineSettings, cpu_numbers
from pilliond.supervision.worker_losses import WorkerLosses


class WorkerInfo:
    """What is known of the worker of one version."""

    def __init__(self) -> None:
        self.losses = WorkerLosses()
        self.process: subprocess.Popen[bytes] | None = None
        self.state = "loading"
        """`loading`, `ready`, `lost` or `out`."""
        self.reason = ""
        """Why it is lost or out."""
        self.restarts = 0
        self.timer: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the worker; None while there is none."""
        return None if self.process is None else self.process.pid


class WorkerPool:
    """Owns the worker processes, at most one for each version. `tell` sends a control message to the serving process.

    Rule: the serving process asks for each worker, also for one that replaces a lost one. A worker that it has given up,
    or whose version it has unloaded, is killed here.
    """

    def __init__(
        self, spawner: Spawner, tell: Callable[[ControlMessage, Sequence[int]], None], log: FilteringBoundLogger
    ) -> None:
        self._spawner = spawner
        self._tell = tell
        self._log = log
        self._workers: dict[bytes, WorkerInfo] = {}
        self.losses = 0
        """Workers lost since the daemon started."""
        self.on_out: Callable[[SealedVersion, str], None] = _ignore
        """Called when a version is out, with the reason."""

    def find(self, digest: bytes) -> WorkerInfo | None:
        """Returns what is known of a version's worker; None if it runs inline."""
        return self._workers.get(digest)

    def need(self, report: NeedWorker, version: SealedVersion, settings: EngineSettings) -> None:
        """Starts a worker for a version, at once or after a pause; or gives the version up."""
        info = self._workers.setdefault(report.digest, WorkerInfo())
        if not report.reason:
            self._start(info, version, settings)
            return
        self._kill(info)
        self.losses += 1
        delay_s = info.losses.lost(time.monotonic_ns(), report.batches, report.reruns, report.is_refused)
        if delay_s is None:
            self._give_up(info, version, report.reason)
            return
        info.state, info.reason = "lost", report.reason
        self._log.error("worker_lost", version=str(version), reason=report.reason, restart_in_s=delay_s)
        info.restarts += 1
        info.timer = asyncio.get_running_loop().call_later(delay_s, self._start, info, version, settings)

    def ready(self, report: WorkerReady) -> None:
        """Notes that a replacement serves."""
        info = self._workers.get(report.digest)
        if info is not None:
            info.state, info.reason = "ready", ""
            self._log.info("worker_ready", pid=info.pid, restarts=info.restarts)

    def loaded(self, digest: bytes) -> None:
        """Notes that the first worker of a version serves."""
        info = self._workers.get(digest)
        if info is not None:
            info.state = "ready"

    def end(self, digest: bytes) -> None:
        """Ends the worker of a version that is not loaded any more, if it has one."""
        info = self._workers.pop(digest, None)
        if info is not None:
            self._kill(info)

    def close(self) -> None:
        """Ends every worker."""
        for digest in list(self._workers):
            self.end(digest)

    def _start(self, info: WorkerInfo, version: SealedVersion, settings: EngineSettings) -> None:
        info.timer = None
        info.state, info.reason = "loading", ""
        try:
            serving_end, worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            self._give_up(info, version, f"cannot start a worker: {error.strerror}")
            return
        with serving_end, worker_end:
            try:
                info.process = self._spawn(worker_end.fileno(), settings)
            except OSError as error:
                self._give_up(info, version, f"cannot start a worker: {error.strerror}")
                return
            info.losses.started(time.monotonic_ns())
            # Without a serving process nobody needs the worker any more; `close` ends it.
            with contextlib.suppress(OSError):
                self._tell(WorkerStarted(version.key), [version.model_descriptor, serving_end.fileno()])

    def _spawn(self, descriptor: int, settings: EngineSettings) -> subprocess.Popen[bytes]:
        process = self._spawner.spawn(
            [sys.executable, "-P", "-m", "pillion_worker", str(descriptor), str(os.getpid())],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **CHILD_ENVIRONMENT},
        )
        if settings.worker_cpus:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, cpu_numbers(settings.worker_cpus))
        return process

    def _give_up(self, info: WorkerInfo, version: SealedVersion, reason: str) -> None:
        info.state, info.reason = "out", reason
        self._log.error("version_out", version=str(version), reason=reason, losses=info.losses.losses)
        with contextlib.suppress(OSError):
            self._tell(GiveUp(version.key, reason), ())
        self.on_out(version, reason)

    def _kill(self, info: WorkerInfo) -> None:
        if info.timer is not None:
            info.timer.cancel()
            info.timer = None
        if info.process is not None:
            info.process.kill()
            info.process.wait()
            info.process = None


def _ignore(*_: Any) -> None:
    pass
