"""Many sessions over few connections, driven from one thread. Hot path.

A session's identity is in the message, so any number of them share a connection; a reply is decoded once, and finds
its session by that identity. `pillion.connect` gives each session a connection of its own.
"""

from __future__ import annotations

import time
from typing import Any, Final, NoReturn, Self

import zmq

import pillion
from pillion.carriers.interface import Carrier, open_carrier
from pillion.carriers.zmq import ZmqCarrier
from pillion.conversation import Conversation, Frames, Reply
from pillion.limits import RESEND_S, TIMEOUT_S
from pillion_protocol import Action, Begun, Error, Goodbye, Message, Ping, Welcome, decode
from pillion_protocol.steps import ActStep

_SILENCE_S_MAX: Final = TIMEOUT_S


class Rider:
    """One session of a swarm: it awaits one answer at a time."""

    __slots__ = ("_step", "awaited", "carrier", "conversation", "episode", "index", "sent_ns")

    def __init__(self, index: int, carrier: Carrier, conversation: Conversation) -> None:
        self.index = index
        self.carrier = carrier
        self.conversation = conversation
        self.episode = 0
        self.awaited = 0
        """The sequence number of the request whose answer is due; 0: none."""
        self.sent_ns = 0
        self._step: ActStep

    def begin(self, seeds: list[int]) -> None:
        """Asks for a handle; its `Begun` comes from the swarm's `receive`."""
        self._send(*self.conversation.begin(seeds))

    def begun(self, episode: int, rows: int) -> None:
        """Takes the handle that was asked for."""
        self.episode = episode
        conversation = self.conversation
        frame_bytes = [tensor.row_bytes * rows for tensor in conversation.spec.observation]
        self._step = ActStep(conversation.session, conversation.epoch, episode, rows, frame_bytes)

    def end(self) -> None:
        """Gives the handle back; nobody waits for the answer."""
        self.carrier.send_now(self.conversation.end(self.episode)[1])

    def act(self, tensors: Frames) -> None:
        """Asks for the actions of the handle."""
        self.sent_ns = time.monotonic_ns()
        step = self._step
        for place, tensor in zip(step.tensors, tensors, strict=True):
            place[:] = tensor
        self.conversation.sequence = sequence = self.conversation.sequence + 1
        step.fill(sequence, 0, True)
        self._send(sequence, step)

    def hello(self) -> None:
        """Asks for a session."""
        self._send(*self.conversation.hello())

    def _send(self, sequence: int, frames: Frames) -> None:
        self.awaited = sequence
        if not self.carrier.send(frames, RESEND_S):
            raise pillion.UnavailableError(f"nobody takes messages at {self.carrier.address}")


class SessionSwarm:
    """Owns `connections` sockets and opens `sessions` sessions over them, in turn. For one thread; a context manager."""

    def __init__(
        self, address: str, sessions: int, connections: int, policy: str = "", version_range: str = ""
    ) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._carriers = [self._open_carrier(address) for _ in range(connections)]
        self._only = self._carriers[0] if connections == 1 else None
        self._poller = zmq.Poller()
        self._by_socket: dict[Any, Carrier] = {}
        for carrier in self._carriers:
            watched = carrier.socket if isinstance(carrier, ZmqCarrier) else carrier.fileno()
            self._by_socket[watched] = carrier
            self._poller.register(watched, zmq.POLLIN)
        self._readable: list[Carrier] = []
        self._by_session: dict[int, Rider] = {}
        self.doubled = 0
        """Actions that came though nobody awaited them."""
        self.riders = [
            Rider(index, self._carriers[index % connections], Conversation("pillion-bench", policy, version_range))
            for index in range(sessions)
        ]

    def _open_carrier(self, address: str) -> Carrier:
        return open_carrier(address) if address.startswith("lane://") else ZmqCarrier(address, self._context)

    def open(self) -> None:
        """Says hello for every session; raises `RefusedError` or `UnavailableError`."""
        for rider in self.riders:
            rider.carrier.set_wait(RESEND_S)
            rider.hello()
            frames = self._await_welcome(rider)
            reply = rider.conversation.read(frames)
            assert reply is not None
            rider.conversation.opened(reply)
            rider.carrier.expect([tensor.row_bytes for tensor in rider.conversation.spec.outputs])
            rider.awaited = 0
            self._by_session[rider.conversation.session] = rider

    def begin(self, seeds_of_rider: list[list[int]]) -> None:
        """Begins a handle in every session, one after the other."""
        for rider, seeds in zip(self.riders, seeds_of_rider, strict=True):
            rider.begin(seeds)
            while True:
                actual, message, _ = self.receive()
                if actual is rider:
                    break
            rider.begun(begun(rider, message).episode, len(seeds))

    def receive(self) -> tuple[Rider, Message, Frames]:
        """The next answer that somebody awaits. Raises `RequestTimeoutError` where the daemon is silent for long."""
        while True:
            answer = self._understand(self._receive_frames())
            if answer is not None:
                return answer

    def receive_now(self) -> tuple[Rider, Message, Frames] | None:
        """The next answer that somebody awaits, or None where none is there; for a swarm of one connection."""
        assert self._only is not None
        while (frames := self._only.receive_now()) is not None:
            answer = self._understand(frames)
            if answer is not None:
                return answer
        return None

    def fileno(self) -> int:
        """Edge-triggered: after every send and receive look at `receive_now` again; for a swarm of one connection."""
        assert self._only is not None
        return self._only.fileno()

    def close(self) -> None:
        """Says goodbye for every session and closes the sockets."""
        for rider in self.riders:
            if rider.conversation.is_open:
                rider.carrier.send_now(rider.conversation.goodbye("the bench is done")[1])
        for carrier in self._carriers:
            carrier.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _understand(self, frames: Frames) -> tuple[Rider, Message, Frames] | None:
        message = decode(frames[0])
        rider = self._by_session.get(message.session)
        if rider is None:
            return None
        if message.sequence == rider.awaited:
            rider.awaited = 0
            return rider, message, frames[1:]
        if isinstance(message, Action):
            self.doubled += 1
        elif isinstance(message, Ping):
            rider.carrier.send_now(rider.conversation.pong(message))
        elif isinstance(message, Goodbye):
            rider.conversation.closed(f"the daemon said goodbye ({message.reason})")
            raise rider.conversation.lost()
        return None

    def _receive_frames(self) -> Frames:
        give_up_s = time.monotonic() + _SILENCE_S_MAX
        while True:
            frames = self._only.receive() if self._only is not None else self._receive_any()
            if frames is not None:
                return frames
            if time.monotonic() > give_up_s:
                raise pillion.RequestTimeoutError(f"the daemon was silent for {_SILENCE_S_MAX:g} s")

    def _receive_any(self) -> Frames | None:
        while True:
            # One message of each: the poller is level-triggered and tells of the rest, at less than an `Again` costs.
            while self._readable:
                frames = self._readable.pop().receive_now()
                if frames is not None:
                    return frames
            events = self._poller.poll(round(RESEND_S * 1_000))
            if not events:
                return None
            self._readable = [self._by_socket[socket] for socket, _ in events]

    def _await_welcome(self, rider: Rider) -> Frames:
        while True:
            frames = self._receive_frames()
            message = decode(frames[0])
            if isinstance(message, Welcome | Error) and message.sequence == rider.awaited:
                return frames
            self._understand(frames)


def begun(rider: Rider, message: Message) -> Begun:
    """The answer to a begin; raises `RefusedError` or `EpisodeLostError`."""
    return rider.conversation.begun(Reply(message, b"", [])).begun


def refuse(rider: Rider, message: Message) -> NoReturn:
    """Raises what an answer that is no action means."""
    raise rider.conversation.failure("action", message)
