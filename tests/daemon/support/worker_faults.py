"""What the tests of faults share: the workers of a daemon, and clients that count how each of their acts ended."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import psutil

import pillion
from pillion.errors import RefusedError
from tests.daemon.support.policies.hostile import Poison, row
from tests.harness import WAIT_S_MAX, Daemon, wait_until

OK = "ok"
WRONG = "wrong"


def is_worker(process: psutil.Process) -> bool:
    """Whether a process is a worker, in the daemon's interpreter or in another one."""
    words = process.cmdline()
    return "pillion_worker" in words or any(word.endswith("pillion_worker/bootstrap.py") for word in words)


def worker_pids(daemon: Daemon) -> list[int]:
    """Returns the workers of a daemon that live, the newest last."""
    found = []
    for child in psutil.Process(daemon.pid).children():
        try:
            if is_worker(child) and child.status() != psutil.STATUS_ZOMBIE:
                found.append((child.create_time(), child.pid))
        except psutil.NoSuchProcess:
            continue
    return [pid for _, pid in sorted(found)]


def workers_at_a_glance(daemon: Daemon) -> set[int]:
    """Returns the same as the kernel lists them, which takes a fraction of the time; those that end meanwhile may hide others."""
    found = set()
    for tasks in Path(f"/proc/{daemon.pid}/task").glob("*/children"):
        for pid in tasks.read_text().split():
            try:
                if is_worker(psutil.Process(int(pid))):
                    found.add(int(pid))
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
    return found


def the_worker(daemon: Daemon) -> int:
    """Returns the only worker of a daemon, as soon as there is one."""
    wait_until(lambda: len(worker_pids(daemon)) == 1)
    return worker_pids(daemon)[0]


def another_worker(daemon: Daemon, than: int) -> int:
    """Returns the only worker of a daemon, as soon as it is another one."""
    wait_until(lambda: (pids := worker_pids(daemon)) != [than] and len(pids) == 1)
    return worker_pids(daemon)[0]


def send(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a worker that may have ended meanwhile."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def is_stopped(pid: int) -> bool:
    """Whether a process that got SIGSTOP has stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


class BackgroundActor:
    """A client in a thread: acts until it is stopped, checks every answer, and counts how each act ended.

    `outcomes` counts `ok`, `wrong` and the codes of refusals; every act ends in one of them, or `close` raises. Each act
    is `row(value, poison)`, with a new value.
    """

    def __init__(
        self,
        address: str,
        policy: str = "",
        *,
        poison: Poison = Poison.NONE,
        budget_us: int = 0,
        fallback: str = "error",
        seed: int = 1,
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self.late: list[pillion.Outcome] = []
        """The answers that say they were late."""
        self.sent_to_dispatched_ns: list[int] = []
        """For each act that ran, how long after it was sent its batch went to the engine."""
        self._address = address
        self._policy = policy
        self._poison = poison
        self._budget_us = budget_us
        self._fallback = fallback
        self._seed = seed
        self._is_stopping = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="background actor")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if kind is None and self._error is not None:
            raise self._error

    @property
    def acts(self) -> int:
        """Acts that have ended."""
        return self.outcomes.total()

    def wait_for(self, count: int, outcome: str = OK) -> None:
        """Waits for as many further acts that end so."""
        target = self.outcomes[outcome] + count
        wait_until(lambda: self.outcomes[outcome] >= target or not self._thread.is_alive())
        if self._error is not None:
            raise self._error

    def stop(self) -> Counter[str]:
        """Ends the thread after its act, and returns the outcomes."""
        self._is_stopping.set()
        self._thread.join(2 * WAIT_S_MAX)
        assert not self._thread.is_alive(), "an act got no answer"
        return self.outcomes

    def _run(self) -> None:
        try:
            with (
                pillion.connect(
                    self._address, policy=self._policy, timeout_s=WAIT_S_MAX, fallback=self._fallback
                ) as session,
                session.begin(seed=self._seed) as episode,
            ):
                value = self._seed * 1_000_000
                while not self._is_stopping.is_set():
                    value += 1
                    self.outcomes[self._act(episode, value)] += 1
        except BaseException as error:  # noqa: BLE001 - `__exit__` raises it in the test
            self._error = error

    def _act(self, episode: pillion.Episode, value: int) -> str:
        try:
            action = episode.act(row(value, self._poison), budget_us=self._budget_us)
        except RefusedError as refused:
            return refused.code
        last = episode.last
        if last.fallback:
            return f"fallback {last.fallback}"
        if last.late_us:
            self.late.append(last)
        return OK if action == np.int64(value) else WRONG
