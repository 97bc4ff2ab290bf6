"""A worker process as it is started: it imports its modules, and then waits for the packet that says what to load."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from contextlib import suppress
from typing import Final

from pillion_artifacts.card.model_card import EngineCard
from pilliond.ipc.placement import ENGINE_MODULES
from pilliond.ipc.worker_process import worker_command, worker_environment
from pilliond.linux.process_group import kill_group
from pilliond.linux.spawner import Spawner
from pilliond.settings.schema import EngineSettings, cpu_numbers
from pilliond.versions.placement import needs_worker

SHORTAGES: Final = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS}
"""What passes: no descriptor, process, memory or room in the channel is left now."""


class StartedWorker:
    """Owns the process and the serving process's `end` of its channel, until somebody takes them over. Raises `OSError`.

    `settings` are those of this worker alone. With `engine`, a module of `pillion_worker.engines`, it imports that and its
    library at once: the first worker is started while this process still verifies the model.
    """

    def __init__(self, spawner: Spawner, settings: EngineSettings, engine: str = "") -> None:
        self.end, worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with worker_end:
                self.process = _spawn(spawner, settings.python, worker_end.fileno(), engine)
        except BaseException:
            self.end.close()
            raise
        try:
            _pin(self.process.pid, settings)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kills the process and what it started, and waits until it has ended. Safe to repeat."""
        self.end.close()
        kill_group(self.process)
        self.process.wait()


class FirstWorker:
    """The worker of the default policy, if it is sure to need one: it starts when the card is read. Owns it until `take`.

    `engine` are the settings of that policy's engine.
    """

    def __init__(self, spawner: Spawner, engine: EngineSettings) -> None:
        self._spawner = spawner
        self._engine = engine
        self._started: StartedWorker | None = None

    def start(self, card: EngineCard) -> None:
        """Starts it for a version with this card, which is verified."""
        if needs_worker(self._engine.placement, card.kind, self._engine.devices, "", None):
            # The pool tries again, and says why it cannot.
            with suppress(OSError):
                self._started = StartedWorker(self._spawner, self._engine.on_device(0), ENGINE_MODULES[card.kind])

    def take(self) -> StartedWorker | None:
        """Returns it, once; None where there is none."""
        started, self._started = self._started, None
        return started

    def close(self) -> None:
        """Ends it, unless it was taken. Safe to repeat."""
        if started := self.take():
            started.close()


def _spawn(spawner: Spawner, python: str, descriptor: int, engine: str) -> subprocess.Popen[bytes]:
    try:
        return spawner.spawn(
            worker_command(python, descriptor, engine),
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            env=worker_environment(python),
            # What a policy starts ends with its worker. The terminal's signals are for the control process alone.
            process_group=0,
        )
    except OSError as error:
        if not python or error.errno in SHORTAGES:
            raise
        raise OSError(error.errno, f"engine.python is {python}: {error.strerror}") from error


def _pin(pid: int, settings: EngineSettings) -> None:
    assert isinstance(settings.worker_cpus, str), "these are the settings of one worker"
    if not settings.worker_cpus:
        return
    try:
        os.sched_setaffinity(pid, cpu_numbers(settings.worker_cpus))
    except ProcessLookupError:
        # It has ended already, which the serving process sees.
        return
    except OSError as error:
        raise OSError(error.errno, f"engine.worker_cpus is {settings.worker_cpus}: {error.strerror}") from error
