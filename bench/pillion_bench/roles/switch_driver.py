"""The role that acts while versions are switched, and checks each answer against the version it names. Hot path."""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Callable
from typing import Final

import msgspec

from pillion.conversation import Frames
from pillion_bench.process.worker import Pipe
from pillion_bench.recordings.observations import real_observations
from pillion_bench.roles.virtual_users import VirtualUser, VirtualUserPool, begun, refuse
from pillion_protocol import Action, Begun, Message

OBSERVATIONS: Final = 64
"""Different observations, sent one after the other."""

_REPLIES_PER_POLL: Final = 256
"""The pipe is polled for the stop message once in this many replies."""


class SwitchPlan(msgspec.Struct, frozen=True):
    """The sessions and their episodes, and the expected answers."""

    address: str
    sessions: int
    acts_of_episode: int
    expected: dict[str, list[bytes]]
    """For each digest (hexadecimal) the outputs of each observation: the bytes of all tensors, concatenated."""


class SwitchResult(msgspec.Struct, frozen=True):
    """Two int64 for each action, in ns: arrival (CLOCK_MONOTONIC) and round trip. And the counts of wrong answers."""

    received_ns: bytes
    latency_ns: bytes
    acts: dict[str, int]
    """Actions of each digest (hexadecimal)."""
    episodes: int
    wrong: int
    """Answers that differ in any bit from those of the version they name."""
    mixed: int
    """Answers of another version than the one that the episode leases."""
    refused: int
    doubled: int
    """Answers that arrived twice. A missing answer ends the bench."""


class CheckedSession:
    """One session, the observation it sent last, and the version that its episode leases."""

    __slots__ = ("acts", "digest", "number", "user")

    def __init__(self, user: VirtualUser) -> None:
        self.user = user
        self.digest = b""
        self.number = user.index
        """The index of the observation sent last."""
        self.acts = 0
        """Acts of the current episode."""


class SwitchDriver:
    """Acts for all sessions, checks every answer, and counts those that are wrong."""

    def __init__(self, pool: VirtualUserPool, plan: SwitchPlan, acts: list[Frames]) -> None:
        self._pool = pool
        self._plan = plan
        self._acts = acts
        self._sessions = [CheckedSession(user) for user in pool.users]
        self._expected = {bytes.fromhex(digest): outputs for digest, outputs in plan.expected.items()}
        self._counts = dict.fromkeys(self._expected, 0)
        self._received_ns = array("q")
        self._latency_ns = array("q")
        self._episodes = self._wrong = self._mixed = self._refused = 0

    def act_until(self, is_over: Callable[[], bool]) -> SwitchResult:
        """Keeps one request in flight for every session until `is_over`, then waits for the answers still due."""
        owed = len(self._sessions)
        for session in self._sessions:
            self._begin(session)
        replies = 0
        stopping = False
        while owed:
            user, message, frames = self._pool.receive()
            self._record_answer(self._sessions[user.index], message, frames)
            replies += 1
            if not stopping and replies % _REPLIES_PER_POLL == 0:
                stopping = is_over()
            if stopping:
                owed -= 1
            else:
                self._continue(self._sessions[user.index])
        counts = {digest.hex(): count for digest, count in self._counts.items()}
        return SwitchResult(
            self._received_ns.tobytes(), self._latency_ns.tobytes(), counts, self._episodes, self._wrong, self._mixed,
            self._refused, self._pool.doubled,
        )  # fmt: skip

    def _begin(self, session: CheckedSession) -> None:
        session.acts = 0
        session.user.begin([self._episodes])
        self._episodes += 1

    def _continue(self, session: CheckedSession) -> None:
        if session.acts == self._plan.acts_of_episode:
            session.user.end()
            self._begin(session)
            return
        session.acts += 1
        session.number = (session.number + 1) % OBSERVATIONS
        session.user.act(self._acts[session.number])

    def _record_answer(self, session: CheckedSession, message: Message, frames: Frames) -> None:
        now_ns = time.monotonic_ns()
        if type(message) is Action:
            self._received_ns.append(now_ns)
            self._latency_ns.append(now_ns - session.user.sent_ns)
            self._counts[message.digest] += 1
            self._mixed += message.digest != session.digest
            self._wrong += b"".join(frames) != self._expected[message.digest][session.number]
        elif type(message) is Begun:
            session.user.begun(begun(session.user, message).episode, 1)
            session.digest = message.leases[0].digest
        else:
            self._refused += 1
            refuse(session.user, message)


def run(pipe: Pipe) -> None:
    """Opens the sessions, reports it, and acts until the next message."""
    plan = pipe.receive_plan(SwitchPlan)
    with VirtualUserPool(plan.address, plan.sessions, plan.sessions) as pool:
        pool.open()
        conversation = pool.users[0].conversation
        observations = real_observations(conversation.welcome.policy, conversation.spec)
        acts = [observations.frames(number, 1) for number in range(OBSERVATIONS)]
        pipe.send("ready")
        witness = SwitchDriver(pool, plan, acts)
        gc.collect()
        gc.disable()
        result = witness.act_until(lambda: pipe.is_readable(0))
        pipe.receive(str)
        pipe.send(result)
