"""A worker process of the bench: it has one role, is pinned before it opens anything, and gets requests on its input.

Parent and child exchange packets: a length of eight bytes, a status byte (1: success, 0: failure), then msgpack.
"""

from __future__ import annotations

import importlib
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import msgspec

from pillion_bench.errors import BenchError, WorkerError
from pillion_bench.limits import WORKER_STOP_S_MAX
from pillion_bench.process.placement import CpuSet, pinned

ROLES: Final = {
    "load": "pillion_bench.roles.load_driver:run",
    "switch": "pillion_bench.roles.switch_driver:run",
    "replay": "pillion_bench.roles.replay_driver:run",
    "zmq-echo": "pillion_bench.roles.echo:serve_zmq",
    "zmq-ping": "pillion_bench.roles.echo:ping_zmq",
    "lane-echo": "pillion_bench.roles.echo:serve_lane",
    "lane-ping": "pillion_bench.roles.echo:ping_lane",
    "engine": "pillion_bench.roles.bare_engine:run",
    "by-hand": "pillion_bench.roles.by_hand:run",
    "frame": "pillion_bench.roles.frame_driver:run",
    "doorbell-echo": "pillion_bench.roles.doorbell:serve",
    "doorbell-ping": "pillion_bench.roles.doorbell:ping",
    "steady": "pillion_bench.roles.steady_driver:run",
    "budget": "pillion_bench.roles.budget_driver:run",
    "idle": "pillion_bench.roles.idle_clients:run",
    "scrape": "pillion_bench.roles.scraper:run",
}
"""The name of each role, and the function that runs it."""

_LENGTH: Final = struct.Struct("<QB")
_SUCCESS: Final = 1
_FAILURE: Final = 0

T = TypeVar("T")


class Pipe:
    """One end of the connection between parent and child. It does not own its descriptors."""

    def __init__(self, read_descriptor: int, write_descriptor: int) -> None:
        self._read_descriptor = read_descriptor
        self._write_descriptor = write_descriptor

    def send(self, message: Any, status: int = _SUCCESS) -> None:
        """Sends a Struct, or any other value that msgpack can encode."""
        body = msgspec.msgpack.encode(message)
        data = memoryview(_LENGTH.pack(len(body), status) + body)
        while data:
            data = data[os.write(self._write_descriptor, data) :]

    def receive(self, kind: type[T], timeout_s: float | None = None) -> T | None:
        """Returns the next message, or None if the other side closed. Raises `WorkerError` if the other side failed."""
        give_up_s = None if timeout_s is None else time.monotonic() + timeout_s
        header = self._read(_LENGTH.size, give_up_s)
        if not header:
            return None
        length, status = _LENGTH.unpack(header)
        body = self._read(length, give_up_s)
        if status == _FAILURE:
            raise WorkerError(*msgspec.msgpack.decode(body, type=tuple[str, int]))
        return msgspec.msgpack.decode(body, type=kind)

    def receive_plan(self, kind: type[T]) -> T:
        """Returns the first message of the parent; raises `BenchError` if the parent closed before it sent one."""
        plan = self.receive(kind)
        if plan is None:
            raise BenchError("the bench ended before it sent a plan")
        return plan

    def fileno(self) -> int:
        """Returns the descriptor that is readable when a message, or the end of the connection, has arrived."""
        return self._read_descriptor

    def is_readable(self, timeout_s: float | None) -> bool:
        """Returns whether a message, or the end of the connection, arrives within `timeout_s`; None: waits for ever."""
        return bool(select.select([self._read_descriptor], [], [], timeout_s)[0])

    def _read(self, count: int, give_up_s: float | None) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            left_s = None if give_up_s is None else max(0.0, give_up_s - time.monotonic())
            if not self.is_readable(left_s):
                raise WorkerError("a worker process of the bench did not answer in time")
            part = os.read(self._read_descriptor, count - len(parts))
            if not part:
                return b""
            parts += part
        return bytes(parts)


class Worker:
    """Owns a child process, which exits when its input closes; a context manager.

    Without a `command` it runs one of our own `ROLES`; with one it runs a program that uses the same packets. It inherits
    `descriptors`, under the same numbers.
    """

    def __init__(
        self,
        role: str,
        plan: msgspec.Struct,
        cpus: CpuSet | None,
        command: Sequence[str | Path] = (),
        descriptors: Sequence[int] = (),
    ) -> None:
        self._role = role
        with pinned(cpus):
            self._process = subprocess.Popen(
                command or [sys.executable, "-P", "-m", "pillion_bench.process.worker", role],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                pass_fds=descriptors,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._pipe = Pipe(self._process.stdout.fileno(), self._process.stdin.fileno())
        self.send(plan)

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._process.pid

    def send(self, message: Any) -> None:
        """Sends a request. `receive` returns the answer."""
        try:
            self._pipe.send(message)
        except BrokenPipeError:
            raise WorkerError(f"the {self._role} worker of the bench has exited") from None

    def receive(self, kind: type[T], timeout_s: float) -> T:
        """Returns the next answer. Raises `WorkerError` if none arrives in time, or if the child failed."""
        answer = self._pipe.receive(kind, timeout_s)
        if answer is None:
            raise WorkerError(f"the {self._role} worker of the bench exited before it finished")
        return answer

    def request(self, message: Any, kind: type[T], timeout_s: float) -> T:
        """Sends a request and returns the answer."""
        self.send(message)
        return self.receive(kind, timeout_s)

    def close(self) -> None:
        """Closes the input of the process and waits for its exit; kills it if it does not exit."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(WORKER_STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            # Its result is no longer needed.
            self._process.kill()
        self.close()


def main() -> int:
    """Runs the role that the command line names."""
    pipe = Pipe(os.dup(0), os.dup(1))
    # From here on standard output is standard error: what a library prints must not get between the packets.
    os.dup2(2, 1)
    module_name, _, attribute = ROLES[sys.argv[1]].partition(":")
    import zmq

    import pillion

    try:
        role: Callable[[Pipe], None] = getattr(importlib.import_module(module_name), attribute)
        role(pipe)
    except BenchError as error:
        pipe.send((str(error), error.exit_code), _FAILURE)
    except pillion.PillionError as error:
        pipe.send((str(error), os.EX_UNAVAILABLE), _FAILURE)
    except (zmq.ZMQError, OSError) as error:
        pipe.send((f"the {sys.argv[1]} worker of the bench: {error}", os.EX_OSERR), _FAILURE)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
