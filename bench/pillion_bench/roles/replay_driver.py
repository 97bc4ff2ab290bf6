"""The role that replays a recording in an open loop: each act at its recorded time. Hot path."""

from __future__ import annotations

import ctypes
import gc
import heapq
import select
import time
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from pillion.conversation import Frames
from pillion_bench.process.worker import Pipe
from pillion_bench.recordings.comparison import compare
from pillion_bench.recordings.recording import Recording
from pillion_bench.recordings.schedule import ReplaySchedule
from pillion_bench.roles.virtual_users import VirtualUser, VirtualUserPool, begun, refuse
from pillion_protocol import Action, Begun, Message

SPIN_NS: Final = 100_000
"""A sleep ends this long before the next act is due, and a busy wait does the rest: a sleeping process wakes up late."""

_START_DELAY_S: Final = 0.02
"""From the preparation to the first act."""

_PR_SET_TIMERSLACK: Final = 29
_TIMER_SLACK_NS: Final = 1


class ReplayPlan(msgspec.Struct, frozen=True):
    """The recording (`file`), the number of concurrent sessions, and the speed (0: as fast as possible)."""

    address: str
    file: str
    sessions: int
    speed: float


class ReplayOpened(msgspec.Struct, frozen=True):
    """What the daemon serves."""

    policy: str
    version: str
    digest: str
    spec: bytes


class ReplayResult(msgspec.Struct, frozen=True):
    """Three int64 for each act, in ns; the number of actions that differ from the recording, and the first as text."""

    latency_ns: bytes
    service_ns: bytes
    engine_ns: bytes
    duration_s: float
    mismatches: int
    first_mismatch: str


def run(pipe: Pipe) -> None:
    """Opens the sessions, reports them, and replays on request."""
    plan = pipe.receive_plan(ReplayPlan)
    recording = Recording.load(Path(plan.file))
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _TIMER_SLACK_NS)
    with VirtualUserPool(plan.address, plan.sessions, 1, recording.policy) as pool:
        pool.open()
        first = pool.users[0].conversation
        welcome = first.welcome
        pipe.send(ReplayOpened(welcome.policy, welcome.version, f"sha256:{welcome.digest.hex()}", welcome.spec))
        if pipe.receive(str) is None:
            return
        loop = OpenLoop(pool, recording, [tensor.name for tensor in first.spec.observation], plan.speed)
        duration_s = loop.run()
        mismatches, first_mismatch = compare(recording, first.spec, loop.answers)
        pipe.send(
            ReplayResult(
                np.concatenate([schedule.latency_ns for schedule in loop.schedules]).tobytes(),
                np.concatenate([schedule.service_ns for schedule in loop.schedules]).tobytes(),
                np.concatenate([schedule.engine_ns for schedule in loop.schedules]).tobytes(),
                duration_s,
                mismatches,
                first_mismatch,
            )
        )


class OpenLoop:
    """Replays a recording in every session of a pool. Each session starts a little after the one before it."""

    def __init__(self, pool: VirtualUserPool, recording: Recording, names: list[str], speed: float) -> None:
        self.answers: list[list[Frames]] = [[] for _ in pool.users]
        """For each session the tensors of each action, in step order."""
        self.schedules: list[ReplaySchedule] = []
        self._pool = pool
        self._recording = recording
        self._speed = speed
        self._seeds = recording.seed.tolist()
        self._episodes = [0] * len(pool.users)
        self._acts: list[Frames] = [
            [recording.observation[name][step].tobytes() for name in names] for step in range(recording.steps)
        ]
        self._due: list[tuple[int, int]] = []
        """A heap of the sessions that may act next: the time when the act is due, and the session's number."""

    def run(self) -> float:
        """Replays to the end; returns the seconds from the first act to the last answer."""
        self._begin_all()
        gc.collect()
        gc.disable()
        start_ns = time.monotonic_ns() + int(_START_DELAY_S * 1e9)
        self.schedules = [self._schedule(start_ns, index) for index in range(len(self._pool.users))]
        self._due = [(schedule.due_ns, index) for index, schedule in enumerate(self.schedules)]
        heapq.heapify(self._due)
        left = len(self.schedules)
        while left:
            self._send_due()
            answer = self._next_answer()
            if answer is not None:
                left -= self._record_answer(*answer)
        gc.enable()
        return (time.monotonic_ns() - start_ns) / 1e9

    def _begin_all(self) -> None:
        # Only the first episode of every session: each later one begins when the one before it ends.
        self._pool.begin([[self._seeds[0]] for _ in self._pool.users])

    def _schedule(self, start_ns: int, index: int) -> ReplaySchedule:
        recording = self._recording
        gaps_ns = np.diff(recording.step_time_ns)
        typical_ns = float(np.median(gaps_ns)) if len(gaps_ns) else 0.0
        offset_ns = int(typical_ns * index / len(self._pool.users) / self._speed) if self._speed else 0
        return ReplaySchedule(recording.step_time_ns, recording.episode_start, start_ns + offset_ns, self._speed)

    def _send_due(self) -> None:
        due = self._due
        while due:
            now_ns = time.monotonic_ns()
            if due[0][0] > now_ns:
                return
            _, index = heapq.heappop(due)
            schedule = self.schedules[index]
            schedule.sent(now_ns)
            self._pool.users[index].act(self._acts[schedule.step])

    def _next_answer(self) -> tuple[VirtualUser, Message, Frames] | None:
        """Returns the next answer, or None if an act is due before it."""
        pool = self._pool
        if not self._due:
            return pool.receive()
        while (answer := pool.receive_now()) is None:
            left_ns = self._due[0][0] - time.monotonic_ns()
            if left_ns <= 0:
                return None
            if left_ns > SPIN_NS:
                select.select([pool.fileno()], [], [], (left_ns - SPIN_NS) / 1e9)
        return answer

    def _record_answer(self, user: VirtualUser, message: Message, tensors: Frames) -> bool:
        """Records an answer and schedules the next act; returns True if that session is done."""
        now_ns = time.monotonic_ns()
        schedule = self.schedules[user.index]
        if type(message) is Action:
            schedule.answered(now_ns, message.ran_ns - message.dispatched_ns)
            self.answers[user.index].append(tensors)
            if schedule.is_done:
                return True
            if schedule.begins:
                self._begin_next(user)
                return False
        elif isinstance(message, Begun):
            user.begun(begun(user, message).episode, 1)
        else:
            refuse(user, message)
        heapq.heappush(self._due, (schedule.due_ns, user.index))
        return False

    def _begin_next(self, user: VirtualUser) -> None:
        self._episodes[user.index] += 1
        user.end()
        user.begin([self._seeds[self._episodes[user.index]]])
