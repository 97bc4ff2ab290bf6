"""The role that acts while versions are switched: every answer is compared with the version that it names. Hot path."""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Callable
from typing import Final

import msgspec

from pillion.conversation import Frames
from pillion_bench.errors import BenchError
from pillion_bench.process.worker import Pipe
from pillion_bench.recordings.observations import real_observations
from pillion_bench.roles.virtual_users import Rider, SessionSwarm, begun, refuse
from pillion_protocol import Action, Begun, Message

OBSERVATIONS: Final = 64
"""Different observations, acted upon in turn."""

_LOOK_REPLIES: Final = 256
"""After so many replies it is looked whether to stop."""


class SwitchPlan(msgspec.Struct, frozen=True):
    """Who acts how, and what the answers must be."""

    address: str
    sessions: int
    acts_of_episode: int
    expected: dict[str, list[bytes]]
    """For each digest (hexadecimal) the outputs of each observation: all its tensors, one behind the other."""


class SwitchResult(msgspec.Struct, frozen=True):
    """An int64 for each action: when it came (CLOCK_MONOTONIC) and its round trip, in ns; and all that must not be."""

    came_ns: bytes
    latency_ns: bytes
    acts: dict[str, int]
    """Of each digest."""
    episodes: int
    wrong: int
    """Answers that are not those of the version they name, bit for bit."""
    mixed: int
    """Answers of another version than the episode leased."""
    refused: int
    doubled: int
    """Answers that came a second time. One that does not come at all ends the bench."""


class Actor:
    """One session: what it asked, and what its episode leased."""

    __slots__ = ("acts", "digest", "number", "rider")

    def __init__(self, rider: Rider) -> None:
        self.rider = rider
        self.digest = b""
        self.number = rider.index
        self.acts = 0


class Witness:
    """Acts for all sessions until it is told to stop, and keeps count of what came."""

    def __init__(self, swarm: SessionSwarm, plan: SwitchPlan, acts: list[Frames]) -> None:
        self._swarm = swarm
        self._plan = plan
        self._acts = acts
        self._actors = [Actor(rider) for rider in swarm.riders]
        self._expected = {bytes.fromhex(digest): outputs for digest, outputs in plan.expected.items()}
        self._counts = dict.fromkeys(self._expected, 0)
        self._came_ns = array("q")
        self._latency_ns = array("q")
        self._episodes = self._wrong = self._mixed = self._refused = 0

    def act_until(self, is_over: Callable[[], bool]) -> SwitchResult:
        """Every session has one request under way; what is still owed when it is over is waited for."""
        owed = len(self._actors)
        for actor in self._actors:
            self._begin(actor)
        replies = 0
        stopping = False
        while owed:
            rider, message, frames = self._swarm.receive()
            self._take(self._actors[rider.index], message, frames)
            replies += 1
            if not stopping and replies % _LOOK_REPLIES == 0:
                stopping = is_over()
            if stopping:
                owed -= 1
            else:
                self._go_on(self._actors[rider.index])
        counts = {digest.hex(): count for digest, count in self._counts.items()}
        return SwitchResult(
            self._came_ns.tobytes(), self._latency_ns.tobytes(), counts, self._episodes, self._wrong, self._mixed,
            self._refused, self._swarm.doubled,
        )  # fmt: skip

    def _begin(self, actor: Actor) -> None:
        actor.acts = 0
        actor.rider.begin([self._episodes])
        self._episodes += 1

    def _go_on(self, actor: Actor) -> None:
        if actor.acts == self._plan.acts_of_episode:
            actor.rider.end()
            self._begin(actor)
            return
        actor.acts += 1
        actor.number = (actor.number + 1) % OBSERVATIONS
        actor.rider.act(self._acts[actor.number])

    def _take(self, actor: Actor, message: Message, frames: Frames) -> None:
        now_ns = time.monotonic_ns()
        if type(message) is Action:
            self._came_ns.append(now_ns)
            self._latency_ns.append(now_ns - actor.rider.sent_ns)
            self._counts[message.digest] += 1
            self._mixed += message.digest != actor.digest
            self._wrong += b"".join(frames) != self._expected[message.digest][actor.number]
        elif type(message) is Begun:
            actor.rider.begun(begun(actor.rider, message).episode, 1)
            actor.digest = message.leases[0].digest
        else:
            self._refused += 1
            refuse(actor.rider, message)


def run(pipe: Pipe) -> None:
    """Opens the sessions, says so, and acts until the next message."""
    plan = pipe.hear(SwitchPlan)
    if plan is None:
        raise BenchError("the bench went before it said what to do")
    with SessionSwarm(plan.address, plan.sessions, plan.sessions) as swarm:
        swarm.open()
        conversation = swarm.riders[0].conversation
        observations = real_observations(conversation.welcome.policy, conversation.spec)
        acts = [observations.frames(number, 1) for number in range(OBSERVATIONS)]
        pipe.tell("ready")
        witness = Witness(swarm, plan, acts)
        gc.collect()
        gc.disable()
        result = witness.act_until(lambda: pipe.is_readable(0))
        pipe.hear(str)
        pipe.tell(result)
