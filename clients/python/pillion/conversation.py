"""The client's side of the protocol, without any I/O: what to send, and what a received message means.

The blocking client, the asyncio client and the bench share it. Hot path.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from pillion.errors import EpisodeLostError, PillionError, RefusedError
from pillion_protocol import (
    PROTOCOL_VERSION,
    Act,
    Begin,
    Begun,
    End,
    Ended,
    Error,
    ErrorCode,
    Fallback,
    Goodbye,
    Hello,
    Limits,
    Message,
    Ping,
    Pong,
    RemoteProtocolError,
    Spec,
    Welcome,
    decode,
    decode_spec,
    encode,
)

Frame = bytes | memoryview
Frames = list[Frame]
"""The frames of one message: its head, then its tensors."""

_LOST: Final = frozenset({ErrorCode.EPOCH_STALE, ErrorCode.SESSION_UNKNOWN})
_REJECTED: Final = frozenset({ErrorCode.NOT_ALLOWED, ErrorCode.OVERLOADED})


class Reply:
    """A message for this session, the head that it was decoded from, and its tensor frames."""

    __slots__ = ("head", "message", "tensors")

    def __init__(self, message: Message, head: Frame, tensors: Frames) -> None:
        self.message = message
        self.head = head
        self.tensors = tensors


class BegunGroup(NamedTuple):
    """A new episode group, and the shared memory of its slots if it has any."""

    begun: Begun
    slot_memory: memoryview | None


class Conversation:
    """Numbers the requests of a session and recognises their answers.

    Rule: it is *open* from a welcome until a goodbye, or until the daemon answers that it does not know the session.
    Only a hello opens it again.
    """

    def __init__(
        self,
        client_name: str = "",
        policy: str = "",
        version_range: str = "",
        spec_hash: bytes = b"",
        lock_step: bool = True,
        fallback: str = Fallback.ERROR,
    ) -> None:
        self.session = 0
        self.epoch = 0
        self.sequence = 0
        self.is_open = False
        self.close_reason = "the session was never opened"
        self.welcome: Welcome
        self.spec: Spec
        self.limits: Limits
        self._client_name = client_name or f"python-{os.getpid()}"
        self._policy = policy
        self._version_range = version_range
        self._spec_hash = spec_hash
        self._lock_step = lock_step
        self._fallback = _fallback_named(fallback)

    # What to send

    def hello(self) -> tuple[int, Frames]:
        """Asks for a new session. Everything that the last one held is lost."""
        self.session = self.epoch = 0
        self.is_open = False
        self.sequence = secrets.randbits(48) + 1
        return self.sequence, [
            encode(
                Hello(
                    0,
                    0,
                    self.sequence,
                    PROTOCOL_VERSION,
                    self._client_name,
                    self._policy,
                    self._version_range,
                    self._spec_hash,
                    self._lock_step,
                    self._fallback,
                )
            )
        ]

    def begin(self, seeds: Sequence[int], slots: bool = False) -> tuple[int, Frames]:
        """Begins an episode group of `len(seeds)` rows; `slots` is true if the carrier can pass memory."""
        sequence = self._next()
        return sequence, [encode(Begin(self.session, self.epoch, sequence, list(seeds), slots))]

    def act(
        self,
        episode: int,
        rows: int,
        tensors: Frames,
        budget_us: int,
        deterministic: bool,
        episode_start: bytes = b"",
        seeds: Sequence[int] = (),
        traceparent: str = "",
        slot: int = 0,
        generation: int = 0,
        sent_ns: int = 0,
    ) -> tuple[int, Frames]:
        """Asks for the actions of an episode group, for observations in `tensors` or in a slot.

        `sent_ns` is this host's CLOCK_MONOTONIC if the act has a budget and the daemon is on the same host, else 0.
        """
        self.sequence = sequence = self.sequence + 1
        head = encode(
            Act(
                self.session,
                self.epoch,
                sequence,
                episode,
                rows,
                budget_us,
                deterministic,
                episode_start,
                list(seeds),
                traceparent,
                slot,
                generation,
                sent_ns,
            )
        )
        return sequence, [head, *tensors]

    def end(self, episode: int) -> tuple[int, Frames]:
        """Ends an episode group."""
        sequence = self._next()
        return sequence, [encode(End(self.session, self.epoch, sequence, episode))]

    def ping(self) -> tuple[int, Frames]:
        """Asks whether the daemon is there."""
        sequence = self._next()
        return sequence, [encode(Ping(self.session, self.epoch, sequence))]

    def goodbye(self, reason: str) -> tuple[int, Frames]:
        """Ends the session."""
        sequence = self._next()
        return sequence, [encode(Goodbye(self.session, self.epoch, sequence, reason))]

    def pong(self, ping: Ping) -> Frames:
        """Answers the daemon's ping."""
        return [encode(Pong(ping.session, ping.epoch, ping.sequence))]

    def _next(self) -> int:
        self.sequence += 1
        return self.sequence

    # What was received

    def read(self, frames: Frames) -> Reply | None:
        """Returns the message in `frames`, or None if it is unreadable or belongs to another session."""
        try:
            message = decode(frames[0])
        except RemoteProtocolError:
            # A newer daemon may send a message that this client does not know. The request is sent again, then times out.
            return None
        if message.session != self.session or message.epoch != self.epoch:
            is_welcome = not self.session and isinstance(message, Welcome) and message.sequence == self.sequence
            if not is_welcome and not is_rejected(message):
                return None
        return Reply(message, frames[0], frames[1:])

    def opened(self, reply: Reply) -> None:
        """Processes the answer to a hello. Raises `RefusedError` if it is not a welcome with a readable spec."""
        message = reply.message
        if isinstance(message, Error):
            raise RefusedError.from_wire(message)
        if not isinstance(message, Welcome):
            raise _unexpected("welcome", message)
        try:
            spec = decode_spec(message.spec)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RefusedError(
                ErrorCode.MALFORMED, "the spec in the welcome cannot be read", "a spec of protocol 1", str(error)
            ) from None
        self.session = message.session
        self.epoch = message.epoch
        self.welcome = message
        self.limits = message.limits
        self.spec = spec
        self.is_open = True

    def begun(self, reply: Reply) -> BegunGroup:
        """Processes the answer to a begin. Raises `RefusedError` or `EpisodeLostError`."""
        message = reply.message
        if not isinstance(message, Begun):
            raise self.failure("begun", message)
        memory = reply.tensors[0] if message.slots and reply.tensors else None
        return BegunGroup(message, memory if isinstance(memory, memoryview) else None)

    def ended(self, reply: Reply) -> Ended:
        """Processes the answer to an end. Raises `RefusedError` or `EpisodeLostError`."""
        message = reply.message
        if isinstance(message, Ended):
            return message
        raise self.failure("ended", message)

    def ponged(self, reply: Reply) -> None:
        """Processes the answer to a ping. Raises `RefusedError` or `EpisodeLostError`."""
        if not isinstance(reply.message, Pong):
            raise self.failure("pong", reply.message)

    def closed(self, reason: str) -> None:
        """Marks the session as closed, with the reason that later errors state."""
        self.is_open = False
        self.close_reason = reason

    def lost(self) -> EpisodeLostError:
        """Returns the error for an episode whose session has ended."""
        return EpisodeLostError(f"this episode is lost: {self.close_reason}; begin a new one")

    def failure(self, expected: str, message: Message) -> PillionError:
        """Returns the error for a message that is not the `expected` answer."""
        if isinstance(message, Goodbye):
            self.closed(f"the daemon ended the session ({message.reason})")
            return self.lost()
        if not isinstance(message, Error):
            return _unexpected(expected, message)
        if message.code in _LOST:
            self.closed(message.message)
            return self.lost()
        return RefusedError.from_wire(message)


def is_rejected(message: Message) -> bool:
    """Returns True if the daemon refuses this connection. Such an error answers no request, and the connection closes."""
    return isinstance(message, Error) and not message.sequence and message.code in _REJECTED


def _fallback_named(name: str) -> Fallback:
    try:
        return Fallback(name)
    except ValueError:
        raise ValueError(f"fallback: expected {', '.join(Fallback)}, got {name!r}") from None


def _unexpected(expected: str, message: Message) -> PillionError:
    actual = type(message).__name__.lower()
    return RefusedError(ErrorCode.UNKNOWN_MESSAGE, "the daemon sent the wrong reply", expected, actual)
