"""One session's half of the wire, without any socket: what to send, and what a received message means.

The blocking client, the asyncio client and the benches all speak through it. Hot path.
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

RESEND_S: Final = 1.0
"""A request not answered for this long is sent again: the daemon answers a repeated one alike, and runs it once."""

TIMEOUT_S: Final = 10.0
"""How long a request waits for its answer unless the caller says otherwise."""

_LOST: Final = frozenset({ErrorCode.EPOCH_STALE, ErrorCode.SESSION_UNKNOWN})
_REJECTED: Final = frozenset({ErrorCode.NOT_ALLOWED, ErrorCode.OVERLOADED})


class Reply:
    """A message that answers a request, the head that it was read from, and its tensor frames."""

    __slots__ = ("head", "message", "tensors")

    def __init__(self, message: Message, head: Frame, tensors: Frames) -> None:
        self.message = message
        self.head = head
        self.tensors = tensors


class Beginning(NamedTuple):
    """A handle that was begun, and the shared memory of its slots, if it has some."""

    begun: Begun
    area: memoryview | None


class Conversation:
    """Numbers the requests of a session and recognises their answers.

    Rule: it is *open* from a welcome until a goodbye or until the daemon does not know it; only a hello opens it.
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
        self.closed_because = "it was never opened"
        self.welcome: Welcome
        self.spec: Spec
        self.limits: Limits
        self._client_name = client_name or f"python-{os.getpid()}"
        self._policy = policy
        self._version_range = version_range
        self._spec_hash = spec_hash
        self._lock_step = lock_step
        self._fallback = Fallback(fallback)

    # What to send

    def hello(self) -> tuple[int, Frames]:
        """Asks for a (new) session; whatever the last one held is gone."""
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
        """Asks for a handle of `len(seeds)` rows, and for slots where the carrier can pass memory."""
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
    ) -> tuple[int, Frames]:
        """Asks for the actions of a handle, for observations in `tensors` or in a slot."""
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
            )
        )
        return sequence, [head, *tensors]

    def end(self, episode: int) -> tuple[int, Frames]:
        """Gives a handle back."""
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
        """The answer to the daemon's ping."""
        return [encode(Pong(ping.session, ping.epoch, ping.sequence))]

    def _next(self) -> int:
        self.sequence += 1
        return self.sequence

    # What was received

    def read(self, frames: Frames) -> Reply | None:
        """The message in `frames`, or None where it is not for this session: late, of another one, or unreadable."""
        try:
            message = decode(frames[0])
        except RemoteProtocolError:
            # A newer daemon may say what this client has no word for; the request is sent again and then times out.
            return None
        if message.session != self.session or message.epoch != self.epoch:
            opens = not self.session and isinstance(message, Welcome) and message.sequence == self.sequence
            if not opens and not is_rejected(message):
                return None
        return Reply(message, frames[0], frames[1:])

    def opened(self, reply: Reply) -> None:
        """Takes the answer to a hello; raises `RefusedError`."""
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

    def begun(self, reply: Reply) -> Beginning:
        """Takes the answer to a begin; raises `RefusedError` or `EpisodeLostError`."""
        message = reply.message
        if not isinstance(message, Begun):
            raise self.failure("begun", message)
        area = reply.tensors[0] if message.slots and reply.tensors else None
        return Beginning(message, area if isinstance(area, memoryview) else None)

    def ended(self, reply: Reply) -> Ended:
        """Takes the answer to an end; raises `RefusedError` or `EpisodeLostError`."""
        message = reply.message
        if isinstance(message, Ended):
            return message
        raise self.failure("ended", message)

    def ponged(self, reply: Reply) -> None:
        """Takes the answer to a ping; raises `RefusedError` or `EpisodeLostError`."""
        if not isinstance(reply.message, Pong):
            raise self.failure("pong", reply.message)

    def closed(self, reason: str) -> None:
        """Notes that the session is over."""
        self.is_open = False
        self.closed_because = reason

    def lost(self) -> EpisodeLostError:
        """The error for an episode of a session that is over."""
        return EpisodeLostError(f"the session of this episode is over: {self.closed_because}; begin a new episode")

    def failure(self, expected: str, message: Message) -> PillionError:
        """What a message means that is not the `expected` answer."""
        if isinstance(message, Goodbye):
            self.closed(f"the daemon said goodbye ({message.reason})")
            return self.lost()
        if not isinstance(message, Error):
            return _unexpected(expected, message)
        if message.code in _LOST:
            self.closed(message.message)
            return self.lost()
        return RefusedError.from_wire(message)


def is_rejected(message: Message) -> bool:
    """Whether the daemon says, unasked and as its last word, that this client may not connect."""
    return isinstance(message, Error) and not message.sequence and message.code in _REJECTED


def _unexpected(expected: str, message: Message) -> PillionError:
    actual = type(message).__name__.lower()
    return RefusedError(ErrorCode.UNKNOWN_MESSAGE, "the daemon answered with another message", expected, actual)
