"""The role that replays a recording open loop: every act at its recorded time, whatever became of the others. Hot path."""

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
from pillion_bench.errors import BenchError
from pillion_bench.process.worker import Pipe
from pillion_bench.recordings.comparison import compare
from pillion_bench.recordings.recording import Recording
from pillion_bench.recordings.track import Track
from pillion_bench.roles.virtual_users import Rider, SessionSwarm, begun, refuse
from pillion_protocol import Action, Begun, Message

SPIN_NS: Final = 100_000
"""A sleep ends this much before the next act is due, and the rest is spent looking: a sleeper wakes up late."""

_START_DELAY_S: Final = 0.02
_PR_SET_TIMERSLACK: Final = 29
_TIMER_SLACK_NS: Final = 1


class ReplayPlan(msgspec.Struct, frozen=True):
    """Which recording, by how many sessions at once, how fast (0: as fast as it goes)."""

    address: str
    file: str
    sessions: int
    speed: float


class ReplayOpened(msgspec.Struct, frozen=True):
    """What the sessions found."""

    policy: str
    version: str
    digest: str
    spec: bytes


class ReplayResult(msgspec.Struct, frozen=True):
    """An int64 for each act, in ns; how many actions were not the recorded ones, and the first of them in words."""

    latency_ns: bytes
    service_ns: bytes
    engine_ns: bytes
    duration_s: float
    mismatches: int
    first_mismatch: str


def run(pipe: Pipe) -> None:
    """Opens the sessions, says so, and replays when told."""
    plan = pipe.hear(ReplayPlan)
    if plan is None:
        raise BenchError("the bench went before it said what to do")
    recording = Recording.load(Path(plan.file))
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _TIMER_SLACK_NS)
    with SessionSwarm(plan.address, plan.sessions, 1, recording.policy) as swarm:
        swarm.open()
        first = swarm.riders[0].conversation
        welcome = first.welcome
        pipe.tell(ReplayOpened(welcome.policy, welcome.version, f"sha256:{welcome.digest.hex()}", welcome.spec))
        if pipe.hear(str) is None:
            return
        loop = OpenLoop(swarm, recording, [tensor.name for tensor in first.spec.observation], plan.speed)
        duration_s = loop.run()
        mismatches, first_mismatch = compare(recording, first.spec, loop.answers)
        pipe.tell(
            ReplayResult(
                np.concatenate([track.latency_ns for track in loop.tracks]).tobytes(),
                np.concatenate([track.service_ns for track in loop.tracks]).tobytes(),
                np.concatenate([track.engine_ns for track in loop.tracks]).tobytes(),
                duration_s,
                mismatches,
                first_mismatch,
            )
        )


class OpenLoop:
    """Replays a recording in every session of a swarm, each a little after the other."""

    def __init__(self, swarm: SessionSwarm, recording: Recording, names: list[str], speed: float) -> None:
        self.answers: list[list[Frames]] = [[] for _ in swarm.riders]
        """For each session the tensors of each action, in the order of the steps."""
        self.tracks: list[Track] = []
        self._swarm = swarm
        self._recording = recording
        self._speed = speed
        self._seeds = recording.seed.tolist()
        self._episodes = [0] * len(swarm.riders)
        self._acts: list[Frames] = [
            [recording.observation[name][step].tobytes() for name in names] for step in range(recording.steps)
        ]
        self._due: list[tuple[int, int]] = []
        """A heap of those that may act next: when it is due, and the session's number."""

    def run(self) -> float:
        """Replays to the end, and gives the seconds from the first act to the last answer."""
        self._begin_all()
        gc.collect()
        gc.disable()
        start_ns = time.monotonic_ns() + int(_START_DELAY_S * 1e9)
        self.tracks = [self._track(start_ns, index) for index in range(len(self._swarm.riders))]
        self._due = [(track.due_ns, index) for index, track in enumerate(self.tracks)]
        heapq.heapify(self._due)
        left = len(self.tracks)
        while left:
            self._send_due()
            answer = self._next_answer()
            if answer is not None:
                left -= self._take(*answer)
        gc.enable()
        return (time.monotonic_ns() - start_ns) / 1e9

    def _begin_all(self) -> None:
        """The first episode of every session: the others begin as soon as the one before them has ended."""
        self._swarm.begin([[self._seeds[0]] for _ in self._swarm.riders])

    def _track(self, start_ns: int, index: int) -> Track:
        recording = self._recording
        gaps_ns = np.diff(recording.step_time_ns)
        typical_ns = float(np.median(gaps_ns)) if len(gaps_ns) else 0.0
        offset_ns = int(typical_ns * index / len(self._swarm.riders) / self._speed) if self._speed else 0
        return Track(recording.step_time_ns, recording.episode_start, start_ns + offset_ns, self._speed)

    def _send_due(self) -> None:
        due = self._due
        while due:
            now_ns = time.monotonic_ns()
            if due[0][0] > now_ns:
                return
            _, index = heapq.heappop(due)
            track = self.tracks[index]
            track.sent(now_ns)
            self._swarm.riders[index].act(self._acts[track.step])

    def _next_answer(self) -> tuple[Rider, Message, Frames] | None:
        """The next answer, or None when an act is due before it."""
        swarm = self._swarm
        if not self._due:
            return swarm.receive()
        while (answer := swarm.receive_now()) is None:
            left_ns = self._due[0][0] - time.monotonic_ns()
            if left_ns <= 0:
                return None
            if left_ns > SPIN_NS:
                select.select([swarm.fileno()], [], [], (left_ns - SPIN_NS) / 1e9)
        return answer

    def _take(self, rider: Rider, message: Message, tensors: Frames) -> bool:
        """Notes an answer and what its session does next; True where that session is done."""
        now_ns = time.monotonic_ns()
        track = self.tracks[rider.index]
        if type(message) is Action:
            track.answered(now_ns, message.ran_ns - message.dispatched_ns)
            self.answers[rider.index].append(tensors)
            if track.is_done:
                return True
            if track.begins:
                self._begin_next(rider)
                return False
        elif isinstance(message, Begun):
            rider.begun(begun(rider, message).episode, 1)
        else:
            refuse(rider, message)
        heapq.heappush(self._due, (track.due_ns, rider.index))
        return False

    def _begin_next(self, rider: Rider) -> None:
        self._episodes[rider.index] += 1
        rider.end()
        rider.begin([self._seeds[self._episodes[rider.index]]])
