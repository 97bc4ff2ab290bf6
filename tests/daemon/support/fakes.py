"""Fakes around the real serving loop: an engine that counts, a clock that tests set, a transport of two lists."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pillion_artifacts.card.model_card import Distribution
from pillion_protocol import (
    Act,
    Action,
    Begin,
    Begun,
    Error,
    Hello,
    Message,
    Spec,
    TensorSpec,
    Welcome,
    decode,
    encode,
)
from pilliond.core.routing import Router
from pilliond.core.scheduler import Scheduler
from pilliond.core.served_policy import ServedPolicy
from pilliond.engine.batch_memory import BatchMemory
from pilliond.engine.interface import Array, EngineError, InlineEngine
from pilliond.engine.service_time import ServiceTimes
from pilliond.ipc.control_channel import EventFields
from pilliond.ipc.metrics_page import MetricsPage, make_page
from pilliond.limits import ServingLimits
from pilliond.linux.epoll import Events
from pilliond.serving.__main__ import connect_cache, make_sessions
from pilliond.serving.loop import ServingLoop
from pilliond.serving.result_caching import CachingSessions
from pilliond.settings.schema import EngineSettings
from pilliond.transport.interface import Sent
from pilliond.versions.loaded_version import Identity, Version

WIDTH = 3
SPEC = Spec(
    observation=[TensorSpec("observation", "float32", [WIDTH])],
    outputs=[TensorSpec("action", "float32", []), TensorSpec("batch_index", "int64", [])],
)
DIGEST = bytes(range(32))
GAUSSIAN = Distribution("diagonal_gaussian", log_std="log_std")


class CountingEngine(InlineEngine):
    """An engine whose action is the sum of the observation; `batch_index` is the number of the batch that ran it.

    With `carries` it is recurrent: its state is the sum of the episode so far, and its action is that sum.
    """

    kind = "counting"
    strict_rows = 0

    def __init__(self, rows_max: int = 8, *, carries: bool = False) -> None:
        self.inputs: list[Array] = [np.zeros((rows_max, WIDTH), np.float32)]
        states = [(np.zeros(rows_max, np.float32), np.zeros(rows_max, np.float32))]
        self.states: list[tuple[Array, Array]] = states if carries else []
        self.batches: list[int] = []
        self.fails = False
        self.runs: list[Callable[[], None]] = [partial(self.run, rows) for rows in range(rows_max + 1)]
        self.outputs: dict[str, Array] = {
            "action": np.zeros(rows_max, np.float32),
            "batch_index": np.zeros(rows_max, np.int64),
            "log_std": np.zeros(rows_max, np.float32),
        }
        self.memories = [BatchMemory(SPEC, self.inputs, self.outputs, self.states)]
        self.free = self.memories
        self.service = ServiceTimes(list(range(1, rows_max + 1)))

    def run(self, rows: int) -> None:
        if self.fails:
            raise EngineError("a test made it fail")
        self.outputs["action"][:rows] = self.inputs[0][:rows].sum(axis=1)
        for before, after in self.states:
            self.outputs["action"][:rows] += before[:rows]
            after[:rows] = self.outputs["action"][:rows]
        self.outputs["batch_index"][:rows] = len(self.batches)
        self.batches.append(rows)

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind}


class Clock:
    """A clock that only tests advance."""

    def __init__(self) -> None:
        self.now_ns = 1_000

    def __call__(self) -> int:
        return self.now_ns


class ListPoller:
    """Reports the transports whose inbox is not empty."""

    def __init__(self) -> None:
        self.sources: dict[int, Any] = {}

    def poll(self, timeout_s: float, events_max: int) -> Events:
        return [(number, 1) for number, transport in self.sources.items() if transport.is_reported and transport.inbox]


class ListTransport:
    """A transport that receives from one list and sends to another."""

    peer_type: type = bytes
    bursts = False
    is_edge_triggered = True

    def __init__(self, number: int, poller: ListPoller) -> None:
        self.inbox: deque[list[Any]] = deque()
        self.sent: list[list[Any]] = []
        self.answers: dict[Any, Sent] = {}
        self.is_reported = True
        """Whether the poller reports it; otherwise only `pending` does."""
        self._number = number
        poller.sources[number] = self

    def receive(self) -> list[Any] | None:
        return self.inbox.popleft() if self.inbox else None

    @property
    def is_armed(self) -> bool:
        return self.is_reported

    def pending(self) -> Events:
        return [(self._number, 1)] if self.inbox else []

    def gone(self) -> list[bytes]:
        return []

    def send(self, message: list[Any]) -> Sent:
        answer = self.answers.get(message[0], Sent.OK)
        if answer is Sent.OK:
            # A copy: the daemon reuses its frames.
            self.sent.append([message[0], *(bytes(frame) for frame in message[1:])])
        return answer


class StringPeerTransport(ListTransport):
    """A second carrier; its peers are strings."""

    peer_type = str


class DataPlane:
    """The data plane of a serving process, without sockets or threads."""

    engine_settings = EngineSettings()
    make_clock = Clock

    def __init__(
        self,
        limits: ServingLimits | None = None,
        safe_action: list[float] | None = None,
        *,
        carries: bool = False,
    ) -> None:
        self.limits = limits or ServingLimits(rows_max=8, queue_rows_max=16)
        self.engine = CountingEngine(self.limits.rows_max, carries=carries)
        self.version = self.first_version(safe_action)
        self.router = Router(self.version)
        descriptor = make_page()
        self.page = MetricsPage(descriptor)
        # Hypothesis makes thousands of planes.
        os.close(descriptor)
        self.clock = self.make_clock()
        self.policy = ServedPolicy(self.router, self.limits, self.engine_settings)
        self.share = self.policy.share
        self.scheduler = Scheduler()
        self.sessions = make_sessions(7, self.served(), self.limits.sessions_max, self.page, self.clock)
        self.poller = ListPoller()
        self.transport = ListTransport(0, self.poller)
        self.other_transport = StringPeerTransport(1, self.poller)
        self.events: list[tuple[str, EventFields]] = []
        self.loop = ServingLoop(
            self.poller,  # type: ignore[arg-type]
            [self.transport, self.other_transport],  # type: ignore[list-item]
            self.sessions,
            self.scheduler,
            self.page,
            self.clock,
            lambda name, fields: self.events.append((name, fields)),
        )
        if isinstance(self.sessions, CachingSessions):
            self.set_tap = connect_cache(self.loop, self.sessions)

    def first_version(self, safe_action: list[float] | None) -> Version:
        """Returns the version that serves first."""
        return Version(Identity("counter", "1.2.3", DIGEST), SPEC, GAUSSIAN, self.engine, safe_action)

    def served(self) -> list[ServedPolicy]:
        """Returns the policies that are served, the default one first."""
        return [self.policy]

    def deliver(self, peer: bytes, message: Message, *tensors: bytes) -> None:
        """Puts a message of `peer` into the inbox of the first transport."""
        self.transport.inbox.append([peer, encode(message), *tensors])

    def replies(self) -> list[Message]:
        """Runs the loop and returns what it sent."""
        self.run()
        sent = [decode(bytes(message[1])) for message in self.transport.sent]
        self.transport.sent.clear()
        return sent

    def run(self) -> None:
        """Runs the loop until it has nothing left to read."""
        is_done = False
        while not is_done:
            ready = self.loop._wait()
            self.loop.run_once(ready)
            is_done = not ready

    def ask(self, peer: bytes, message: Message, *tensors: bytes) -> Message:
        """Delivers a message and returns the only reply."""
        self.deliver(peer, message, *tensors)
        (reply,) = self.replies()
        return reply

    def open(self, peer: bytes = b"peer", **fields: Any) -> Welcome:
        """Opens a session."""
        reply = self.ask(peer, Hello(0, 0, 1_000_000 + len(self.sessions), **fields))
        assert isinstance(reply, Welcome), reply
        return reply

    def begin(self, welcome: Welcome, sequence: int = 1, rows: int = 1, peer: bytes = b"peer") -> Begun:
        """Begins an episode group."""
        reply = self.ask(peer, Begin(welcome.session, welcome.epoch, sequence, list(range(rows))))
        assert isinstance(reply, Begun), reply
        return reply


def observation(rows: int = 1, value: float = 1.0) -> bytes:
    """Returns the tensor frame of `rows` observations whose action is 3 × `value`."""
    return np.full((rows, WIDTH), value, np.float32).tobytes()


def act(begun: Begun, sequence: int, rows: int = 1, **fields: Any) -> Act:
    """Returns an act of a group; deterministic unless `fields` says otherwise."""
    fields.setdefault("deterministic", True)
    return Act(begun.session, begun.epoch, sequence, begun.episode, rows, **fields)


def codes(messages: list[Message]) -> list[str]:
    """Returns a word for each message: an error's code, or else its type, such as `action`."""
    return [message.code if isinstance(message, Error) else type(message).__name__.lower() for message in messages]


def action_of(message: Message) -> Action:
    """Returns `message`, which must be an action."""
    assert isinstance(message, Action), message
    return message
