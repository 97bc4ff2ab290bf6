"""A process of the bench's own, with one role: pinned before it opens anything, told what to do over its input.

Parent and child speak in packets: eight bytes of length, one byte that says whether it worked, then msgpack.
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
from pillion_bench.process.placement import CpuSet, inherited

ROLES: Final = {
    "load": "pillion_bench.roles.load_driver:run",
    "switch": "pillion_bench.roles.switch_driver:run",
    "replay": "pillion_bench.roles.replay_driver:run",
    "zmq-echo": "pillion_bench.roles.echo:serve_zmq",
    "zmq-ping": "pillion_bench.roles.echo:ping_zmq",
    "lane-echo": "pillion_bench.roles.echo:serve_lane",
    "lane-ping": "pillion_bench.roles.echo:ping_lane",
    "engine": "pillion_bench.roles.bare_engine:run",
    "frame": "pillion_bench.roles.frame_driver:run",
    "silent": "pillion_bench.roles.idle_clients:run",
    "scrape": "pillion_bench.roles.scraper:run",
}

_LENGTH: Final = struct.Struct("<QB")
_WORKED: Final = 1
_FAILED: Final = 0
_CLOSE_S_MAX: Final = 3.0

T = TypeVar("T")


class Pipe:
    """One end of the talk between parent and child; owns neither descriptor."""

    def __init__(self, read_descriptor: int, write_descriptor: int) -> None:
        self._read_descriptor = read_descriptor
        self._write_descriptor = write_descriptor

    def tell(self, message: Any, status: int = _WORKED) -> None:
        """Sends a Struct, or anything else that msgpack knows."""
        body = msgspec.msgpack.encode(message)
        data = memoryview(_LENGTH.pack(len(body), status) + body)
        while data:
            data = data[os.write(self._write_descriptor, data) :]

    def hear(self, kind: type[T], timeout_s: float | None = None) -> T | None:
        """The next message, or None at the end of the talk. Raises `WorkerError` with what the other side complains of."""
        give_up_s = None if timeout_s is None else time.monotonic() + timeout_s
        header = self._read(_LENGTH.size, give_up_s)
        if not header:
            return None
        length, status = _LENGTH.unpack(header)
        body = self._read(length, give_up_s)
        if status == _FAILED:
            raise WorkerError(*msgspec.msgpack.decode(body, type=tuple[str, int]))
        return msgspec.msgpack.decode(body, type=kind)

    def is_readable(self, timeout_s: float | None) -> bool:
        """Whether there is something to hear, also the end of the talk, within `timeout_s`; None waits for ever."""
        return bool(select.select([self._read_descriptor], [], [], timeout_s)[0])

    def _read(self, count: int, give_up_s: float | None) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            left_s = None if give_up_s is None else max(0.0, give_up_s - time.monotonic())
            if not self.is_readable(left_s):
                raise WorkerError("a process of the bench did not answer in time")
            part = os.read(self._read_descriptor, count - len(parts))
            if not part:
                return b""
            parts += part
        return bytes(parts)


class Worker:
    """Owns a child process; a context manager. It ends when its input does.

    Without a `command` it has one of our own `ROLES`; with one it is a program that speaks in the same packets.
    """

    def __init__(
        self, role: str, plan: msgspec.Struct, cpus: CpuSet | None, command: Sequence[str | Path] = ()
    ) -> None:
        self._role = role
        with inherited(cpus):
            self._process = subprocess.Popen(
                command or [sys.executable, "-P", "-m", "pillion_bench.process.worker", role],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._pipe = Pipe(self._process.stdout.fileno(), self._process.stdin.fileno())
        self.tell(plan)

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, message: Any) -> None:
        """Gives an order; the answer comes from `hear`."""
        try:
            self._pipe.tell(message)
        except BrokenPipeError:
            raise WorkerError(f"the {self._role} process of the bench is gone") from None

    def hear(self, kind: type[T], timeout_s: float) -> T:
        """The next answer; raises `WorkerError` where there is none in time, or it says what went wrong."""
        answer = self._pipe.hear(kind, timeout_s)
        if answer is None:
            raise WorkerError(f"the {self._role} process of the bench ended before its work did")
        return answer

    def ask(self, message: Any, kind: type[T], timeout_s: float) -> T:
        """Gives an order and waits for the answer."""
        self.tell(message)
        return self.hear(kind, timeout_s)

    def close(self) -> None:
        """Ends the process, by force where it does not end by itself."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_S_MAX)
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
            # What it was doing is of no use to anybody.
            self._process.kill()
        self.close()


def main() -> int:
    """Runs the role that the command line names."""
    pipe = Pipe(os.dup(0), os.dup(1))
    # What a library prints must not get between the packets.
    os.dup2(2, 1)
    module_name, _, attribute = ROLES[sys.argv[1]].partition(":")
    import zmq

    import pillion

    try:
        role: Callable[[Pipe], None] = getattr(importlib.import_module(module_name), attribute)
        role(pipe)
    except BenchError as error:
        pipe.tell((str(error), error.exit_code), _FAILED)
    except pillion.PillionError as error:
        pipe.tell((str(error), os.EX_UNAVAILABLE), _FAILED)
    except (zmq.ZMQError, OSError) as error:
        pipe.tell((f"the {sys.argv[1]} process of the bench: {error}", os.EX_OSERR), _FAILED)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
