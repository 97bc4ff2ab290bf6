"""Worker processes that really run, and a loop in small that serves one engine."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

import pillion_worker
from pillion_protocol.action_steps import DeviceTimes
from pillion_worker.arena import OK
from pilliond.engine.batch_memory import Array, BatchMemory
from pilliond.engine.worker import WorkerEngine, WorkerState
from pilliond.limits import EVENTS_MAX
from pilliond.linux.epoll import Poller
from tests.harness import WAIT_S_MAX
from tests.worker.support.policies import Policy

ON_DEVICE = [str(Path(__file__).with_name("on_device.py"))]
ROGUE = [str(Path(__file__).with_name("rogue.py"))]
WORKER = ["-m", "pillion_worker"]
PACKAGES = Path(pillion_worker.__file__ or "").parents[1]
"""Where an interpreter that has nothing of ours finds the worker."""


@contextmanager
def sealed(model: bytes) -> Iterator[int]:
    """The descriptor of a memfd with these bytes."""
    descriptor = os.memfd_create("pillion-test-model", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, model)
        yield descriptor
    finally:
        os.close(descriptor)


class Answer(NamedTuple):
    """What `on_completed` was called with, but for the engine."""

    memory: BatchMemory
    outcome: int
    message: str
    started_ns: int
    finished_ns: int
    times: DeviceTimes


class Host:
    """An engine, a poller, the processes of its workers, and all that the engine reported."""

    wait_s_max = WAIT_S_MAX
    """How long anything may take."""

    def __init__(self, policy: Policy, rows_max: int = 8, **settings: Any) -> None:
        self.policy = policy
        self.poller = Poller[Any]()
        self.engine = WorkerEngine(
            policy.spec, policy.parameters, rows_max, policy.states, descriptors=self.poller, **settings
        )
        self.engine.on_completed = self._complete
        self.engine.on_lost = lambda engine, reason: self.losses.append(reason)
        self.engine.on_ready = lambda engine: self.readies.append(engine.state)
        self.answers: list[Answer] = []
        self.written: list[Array] = []
        """For each answer of a recurrent policy, the numbers of the state rows that it wrote."""
        self.losses: list[str] = []
        self.readies: list[WorkerState] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    def _complete(self, engine: WorkerEngine, memory: BatchMemory, *answer: Any) -> None:
        self.answers.append(Answer(memory, *answer))
        self.written += [memory.states[0][1].copy()] if engine.state_rows is not None else []
        engine.release(memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
        self.poller.close()
        for process in self.processes:
            process.kill()
            process.wait(WAIT_S_MAX)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The newest worker."""
        return self.processes[-1]

    def attach(
        self, *arguments: str, program: list[str] = WORKER, python: str = sys.executable, is_late: bool = False
    ) -> None:
        """Starts a worker and attaches it. If `is_late`, it does not exist yet when it is asked to load."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, sealed(self.policy.model) as model:
            if not is_late:
                self.processes.append(spawn(theirs, *arguments, program=program, python=python))
            self.engine.attach(ours, model)
            if is_late:
                self.processes.append(spawn(theirs, *arguments, program=program, python=python))

    def start(self) -> Self:
        """Starts a worker, and waits until it is ready."""
        self.attach()
        self.pump(lambda: self.engine.state is not WorkerState.LOADING)
        assert self.engine.state is WorkerState.READY, self.engine.reason
        return self

    def pump(self, until: Callable[[], bool]) -> None:
        """Serves the descriptors until something is so."""
        deadline_s = time.monotonic() + self.wait_s_max
        while not until():
            assert time.monotonic() < deadline_s, "it did not get there"
            for descriptor, _ in self.poller.poll(0.1, EVENTS_MAX):
                source = self.poller.sources.get(descriptor)
                if source is not None:
                    source.receive()

    def pump_answers(self, count: int) -> None:
        """Serves the descriptors until there are as many answers."""
        self.pump(lambda: len(self.answers) == count)

    def submit(self, rows: list[Any] | Array) -> BatchMemory:
        """Submits these rows of the first observation, in a memory that is free."""
        memory = self.engine.free[0]
        memory.inputs[0][: len(rows)] = np.asarray(rows).reshape(len(rows), *memory.inputs[0].shape[1:])
        self.engine.submit(memory, len(rows))
        return memory

    def run(self, rows: list[Any] | Array) -> list[Any]:
        """Submits rows, and returns the first output for them when they are completed."""
        memory = self.submit(rows)
        count = len(self.answers) + 1
        self.pump(lambda: len(self.answers) == count or self.engine.state is not WorkerState.READY)
        assert len(self.answers) == count, self.engine.reason
        answer = self.answers[-1]
        assert (answer.memory, answer.outcome) == (memory, OK), answer.message
        output: list[Any] = memory.outputs[self.policy.spec.outputs[0].name][: len(rows)].reshape(-1).tolist()
        return output


def spawn(
    end: socket.socket, *arguments: str, program: list[str] = WORKER, python: str = sys.executable
) -> subprocess.Popen[bytes]:
    """Starts a worker, or a program that pretends to be one, with a copy of this end of a channel."""
    command = [python, *program, str(end.fileno()), str(os.getpid()), *arguments]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(PACKAGES)]))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, pass_fds=[end.fileno()], env=environment)


def arenas() -> int:
    """How many arenas this process has open or mapped."""
    gc.collect()
    links = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if _is_open(number)]
    return sum("pillion-arena" in link for link in links) + Path("/proc/self/maps").read_text().count("pillion-arena")


def _is_open(number: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{number}")
