"""The bench's own daemon: starts it, waits until it is ready, and stops it with the bench."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from pillion_bench.errors import DaemonStartError
from pillion_bench.limits import DAEMON_START_S_MAX, DAEMON_STOP_S_MAX
from pillion_bench.process.placement import CpuSet, pinned

WORKER_PACKAGE: Final = "pillion_worker"
"""What the command line of an inference worker names; in another interpreter, as a part of a path."""

SERVING_PACKAGE: Final = "pilliond.serving"
"""What the command line of a serving process names."""

_POLL_S: Final = 0.005


class DaemonProcess:
    """Owns a `pilliond` that serves `policy` of `store` on sockets in its own folder; a context manager.

    Both of its processes and all their threads run on `cpus`. It ignores `PILLION_` variables of the user's
    environment; `settings` sets others (`{"PILLION_LOG__LEVEL": "debug"}`). With `has_admin` it has an admin port at
    `admin_path`. It serves `others` beside the policy. Raises `DaemonStartError`.
    """

    def __init__(
        self,
        store: Path,
        policy: str,
        cpus: CpuSet | None = None,
        carrier: str = "zmq",
        settings: Mapping[str, str] | None = None,
        has_admin: bool = False,
        others: Sequence[str] = (),
    ) -> None:
        self.ready_s = 0.0
        self._store = store
        self._policies = [policy, *others]
        self._cpus = cpus
        self._carrier = carrier
        self._settings = dict(settings or {})
        self._has_admin = has_admin
        self._folder = ""
        self._errors: IO[bytes]
        self._process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """The address for clients of the chosen carrier."""
        return f"lane://{self._folder}/lane.sock" if self._carrier == "lane" else self._zmq_address

    @property
    def _zmq_address(self) -> str:
        return f"ipc://{self._folder}/zmq.sock"

    @property
    def admin_path(self) -> str:
        """The Unix socket of the admin port."""
        return f"{self._folder}/admin.sock"

    @property
    def pid(self) -> int:
        """The process id of the control process."""
        return self._process.pid

    def resident_bytes(self) -> int:
        """Returns the resident memory of both processes."""
        import psutil

        control = psutil.Process(self.pid)
        return sum(process.memory_info().rss for process in [control, *control.children(recursive=True)])

    def cpu_s(self) -> float:
        """Returns the processor time of both processes so far, in seconds."""
        import psutil

        control = psutil.Process(self.pid)
        times = [process.cpu_times() for process in [control, *control.children(recursive=True)]]
        return sum(process.user + process.system for process in times)

    def worker_pids(self) -> list[int]:
        """Returns the process ids of the inference workers, the oldest first."""
        return self._pids_of(WORKER_PACKAGE)

    def serving_pids(self) -> list[int]:
        """Returns the process ids of the serving processes, the oldest first."""
        return self._pids_of(SERVING_PACKAGE)

    def _pids_of(self, package: str) -> list[int]:
        import psutil

        # Not those that workers forked, which look as they do.
        children = psutil.Process(self.pid).children()
        found = [child for child in children if any(package in word for word in child.cmdline())]
        return [child.pid for child in sorted(found, key=psutil.Process.create_time)]

    def log_lines(self) -> int:
        """Returns the number of lines that it has logged so far."""
        return len(Path(self._errors.name).read_bytes().splitlines())

    def __enter__(self) -> Self:
        self._folder = tempfile.mkdtemp(prefix="pillion-bench-")
        try:
            self._start()
        except BaseException:
            self._remove()
            raise
        try:
            self._wait_until_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PILLION_")}
        options = ["--store", str(self._store), "--listen", self._zmq_address]
        for policy in self._policies:
            options += ["--policy", policy]
        options += ["--admin", f"unix://{self.admin_path}" if self._has_admin else ""]
        if self._carrier == "lane":
            options += ["--listen", self.address]
        self._errors = Path(self._folder, "errors.log").open("w+b")  # noqa: SIM115  # closed in _end
        self._started_s = time.monotonic()
        with pinned(self._cpus):
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pilliond", *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env=environment | self._settings,
            )

    def _wait_until_ready(self) -> None:
        # The socket appears when the engine is warm. A session then shows that the loop runs.
        import pillion

        self._wait_for(Path(self._zmq_address.removeprefix("ipc://")))
        with pillion.connect(self._zmq_address, client_name="pillion-bench"):
            self.ready_s = time.monotonic() - self._started_s
        if self._has_admin:
            # The control process opens it while the serving process loads, so either may be first.
            self._wait_for(Path(self.admin_path))

    def _wait_for(self, path: Path) -> None:
        while not path.exists():
            if self._process.poll() is not None:
                raise DaemonStartError(self._last_log_line(), self._process.returncode)
            if time.monotonic() - self._started_s > DAEMON_START_S_MAX:
                raise DaemonStartError(f"the daemon was not ready within {DAEMON_START_S_MAX:g} s")
            time.sleep(_POLL_S)

    def _last_log_line(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else f"the daemon exited with code {self._process.returncode}"

    def _end(self) -> None:
        try:
            self._process.terminate()
            self._process.wait(DAEMON_STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._errors.close()
            self._remove()

    def _remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
