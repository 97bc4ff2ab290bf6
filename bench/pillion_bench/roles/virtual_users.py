"""The load generator's virtual users: many sessions over few connections, driven from one thread. Hot path.

Each message has its session's number, so any number of sessions can share a connection. A reply is decoded once, and
that number finds its session. `pillion.connect`, in contrast, opens a connection for each session.
"""

from __future__ import annotations

import time
from typing import Any, NoReturn, Self

import zmq

import pillion
from pillion.carriers.interface import Carrier, open_carrier
from pillion.carriers.zmq import ZmqCarrier
from pillion.conversation import Conversation, Frames, Reply
from pillion.limits import RESEND_S, TIMEOUT_S
from pillion_protocol import Action, Begun, Error, Goodbye, Message, Ping, Welcome, decode
from pillion_protocol.steps import ActStep


class VirtualUser:
    """One session of a pool. It awaits one answer at a time."""

    __slots__ = ("_step", "awaited", "carrier", "conversation", "episode", "index", "sent_ns")

    def __init__(self, index: int, carrier: Carrier, conversation: Conversation) -> None:
        self.index = index
        self.carrier = carrier
        self.conversation = conversation
        self.episode = 0
        self.awaited = 0
        """The sequence number of the request that awaits its answer; 0: none."""
        self.sent_ns = 0
        self._step: ActStep

    def begin(self, seeds: list[int]) -> None:
        """Requests an episode group. The pool's `receive` returns its `Begun`."""
        self._send(*self.conversation.begin(seeds))

    def begun(self, episode: int, rows: int) -> None:
        """Uses `episode`, the episode group of `rows` rows that was requested, for the acts that follow."""
        self.episode = episode
        conversation = self.conversation
        frame_bytes = [tensor.row_bytes * rows for tensor in conversation.spec.observation]
        self._step = ActStep(conversation.session, conversation.epoch, episode, rows, frame_bytes)

    def end(self) -> None:
        """Ends the episode group, without waiting for the answer."""
        self.carrier.send_now(self.conversation.end(self.episode)[1])

    def act(self, tensors: Frames, budget_us: int = 0) -> None:
        """Requests the actions of the episode group for one tensor of each observation.

        `budget_us` counts from `sent_ns`; only for a daemon on this host. 0: no budget.
        """
        self.sent_ns = time.monotonic_ns()
        step = self._step
        for target, tensor in zip(step.tensors, tensors, strict=True):
            target[:] = tensor
        self.conversation.sequence = sequence = self.conversation.sequence + 1
        step.fill(sequence, budget_us, True, self.sent_ns if budget_us else 0)
        self._send(sequence, step)

    def hello(self) -> None:
        """Requests a session."""
        self._send(*self.conversation.hello())

    def _send(self, sequence: int, frames: Frames) -> None:
        self.awaited = sequence
        if not self.carrier.send(frames, RESEND_S):
            raise pillion.UnavailableError(f"{self.carrier.address} accepts no messages")


class VirtualUserPool:
    """Owns `connections` sockets and spreads `sessions` sessions over them. For one thread; a context manager."""

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
        self._by_session: dict[int, VirtualUser] = {}
        self.doubled = 0
        """Actions that no session awaited."""
        self.users = [
            VirtualUser(
                index, self._carriers[index % connections], Conversation("pillion-bench", policy, version_range)
            )
            for index in range(sessions)
        ]

    def _open_carrier(self, address: str) -> Carrier:
        return open_carrier(address) if address.startswith("lane://") else ZmqCarrier(address, self._context)

    def open(self) -> None:
        """Opens every session; raises `RefusedError` or `UnavailableError`."""
        for user in self.users:
            user.carrier.set_wait(RESEND_S)
            user.hello()
            frames = self._await_welcome(user)
            reply = user.conversation.read(frames)
            assert reply is not None
            user.conversation.opened(reply)
            user.carrier.expect([tensor.row_bytes for tensor in user.conversation.spec.outputs])
            user.awaited = 0
            self._by_session[user.conversation.session] = user

    def begin(self, seeds_of_user: list[list[int]]) -> None:
        """Begins an episode group in every session, one after the other. It has one row for each seed of the user."""
        for user, seeds in zip(self.users, seeds_of_user, strict=True):
            user.begin(seeds)
            while True:
                actual, message, _ = self.receive()
                if actual is user:
                    break
            user.begun(begun(user, message).episode, len(seeds))

    def receive(self) -> tuple[VirtualUser, Message, Frames]:
        """Returns the next awaited answer. Raises `RequestTimeoutError` if none arrives within the client's time-out."""
        while True:
            answer = self._match(self._receive_frames())
            if answer is not None:
                return answer

    def receive_now(self) -> tuple[VirtualUser, Message, Frames] | None:
        """Returns the next awaited answer, or None if there is none yet; for a pool of one connection."""
        assert self._only is not None
        while (frames := self._only.receive_now()) is not None:
            answer = self._match(frames)
            if answer is not None:
                return answer
        return None

    def fileno(self) -> int:
        """Returns the descriptor to poll; for a pool of one connection.

        It is edge-triggered: call `receive_now` after every send and receive, and before each wait.
        """
        assert self._only is not None
        return self._only.fileno()

    def close(self) -> None:
        """Closes every session and the sockets."""
        for user in self.users:
            if user.conversation.is_open:
                user.carrier.send_now(user.conversation.goodbye("the bench is done")[1])
        for carrier in self._carriers:
            carrier.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _match(self, frames: Frames) -> tuple[VirtualUser, Message, Frames] | None:
        """Returns the session that awaits a message, and the message; answers or counts any other message."""
        message = decode(frames[0])
        user = self._by_session.get(message.session)
        if user is None:
            return None
        if message.sequence == user.awaited:
            user.awaited = 0
            return user, message, frames[1:]
        if isinstance(message, Action):
            self.doubled += 1
        elif isinstance(message, Ping):
            user.carrier.send_now(user.conversation.pong(message))
        elif isinstance(message, Goodbye):
            user.conversation.closed(f"the daemon closed the session ({message.reason})")
            raise user.conversation.lost()
        return None

    def _receive_frames(self) -> Frames:
        give_up_s = time.monotonic() + TIMEOUT_S
        while True:
            frames = self._only.receive() if self._only is not None else self._receive_any()
            if frames is not None:
                return frames
            if time.monotonic() > give_up_s:
                raise pillion.RequestTimeoutError(f"the daemon sent nothing for {TIMEOUT_S:g} s")

    def _receive_any(self) -> Frames | None:
        while True:
            # One message of each socket: the level-triggered poller reports the rest, which costs less than an `Again`.
            while self._readable:
                frames = self._readable.pop().receive_now()
                if frames is not None:
                    return frames
            events = self._poller.poll(round(RESEND_S * 1_000))
            if not events:
                return None
            self._readable = [self._by_socket[socket] for socket, _ in events]

    def _await_welcome(self, user: VirtualUser) -> Frames:
        while True:
            frames = self._receive_frames()
            message = decode(frames[0])
            if isinstance(message, Welcome | Error) and message.sequence == user.awaited:
                return frames
            self._match(frames)


def begun(user: VirtualUser, message: Message) -> Begun:
    """Returns the answer to a begin; raises `RefusedError` or `EpisodeLostError`."""
    return user.conversation.begun(Reply(message, b"", [])).begun


def refuse(user: VirtualUser, message: Message) -> NoReturn:
    """Raises the error that an answer other than an action means."""
    raise user.conversation.failure("action", message)
