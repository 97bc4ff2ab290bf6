"""The asyncio client: the calls of `pillion.session`, awaited. Runs on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from numpy.typing import ArrayLike

from pillion.carriers.interface import Carrier, open_carrier
from pillion.conversation import BegunGroup, Conversation, Frames, Reply, is_rejected
from pillion.episode_base import EpisodeBase
from pillion.errors import (
    EpisodeLostError,
    PillionError,
    RefusedError,
    RequestTimeoutError,
    no_response,
)
from pillion.limits import RESEND_S, TIMEOUT_S
from pillion.seeds import checked_seeds, random_seeds
from pillion.session_base import SessionBase
from pillion.tensors import Array, Observation, TensorCodec
from pillion_protocol import Error, Goodbye, Ping
from pillion_protocol.steps import ActStep


class Session(SessionBase):
    """A session with a daemon, for one event loop. `connect` creates it. Episodes may act concurrently."""

    def __init__(self, carrier: Carrier, conversation: Conversation, timeout_s: float) -> None:
        self._carrier = carrier
        super().__init__(conversation)
        self._timeout_s = timeout_s
        self._codec: TensorCodec
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._unsent: dict[int, Frames] = {}
        self._begin_or_end = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(carrier.fileno(), self._on_readable)

    async def begin(self, seed: int | None = None) -> Episode:
        """Begins one episode, as `pillion.session.Session.begin`."""
        seeds = random_seeds(1) if seed is None else checked_seeds([seed], 1)
        return Episode(self, await self._begin(seeds))

    async def begin_many(self, count: int, seeds: Sequence[int] | None = None) -> EpisodeGroup:
        """Begins `count` episodes that act together, as `pillion.session.Session.begin_many`."""
        drawn = random_seeds(count) if seeds is None else checked_seeds(seeds, count)
        return EpisodeGroup(self, await self._begin(drawn), count)

    async def ping(self) -> float:
        """Returns the round trip of an empty request, in seconds.

        Raises `EpisodeLostError` if the daemon no longer knows this session, `RequestTimeoutError`.
        """
        started_s = time.monotonic()
        self._conversation.ponged(await self._exchange(*self._conversation.ping()))
        return time.monotonic() - started_s

    async def close(self) -> None:
        """Says goodbye and closes the connection. Calling it again does nothing."""
        if self._carrier.is_closed:
            return
        if self._conversation.is_open:
            self._carrier.send_now(self._conversation.goodbye("closed")[1])
            self._conversation.closed("the session was closed here")
        self._loop.remove_reader(self._carrier.fileno())
        self._carrier.close()
        self._fail_all(self._conversation.lost())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _open(self) -> None:
        try:
            reply = await self._exchange(*self._conversation.hello())
        except RequestTimeoutError:
            raise no_response(self._carrier.address, self._timeout_s) from None
        self._conversation.opened(reply)
        self._codec = TensorCodec(self._conversation.spec)
        self._carrier.expect([tensor.row_bytes for tensor in self._conversation.spec.outputs])

    async def _begin(self, seeds: list[int]) -> BegunGroup:
        slots = self._carrier.passes_memory
        async with self._one_at_a_time():
            if self._conversation.is_open:
                try:
                    return self._conversation.begun(await self._exchange(*self._conversation.begin(seeds, slots)))
                except EpisodeLostError:
                    # The daemon was restarted. A new episode loses nothing by that, so open a new session and begin there.
                    pass
            self._fail_all(self._conversation.lost())
            await self._open()
            return self._conversation.begun(await self._exchange(*self._conversation.begin(seeds, slots)))

    async def _end(self, episode: int) -> None:
        async with self._one_at_a_time():
            self._conversation.ended(await self._exchange(*self._conversation.end(episode)))

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        """Waits until no other begin or end is in flight, because the daemon keeps the reply to the last one only."""
        try:
            await asyncio.wait_for(self._begin_or_end.acquire(), self._timeout_s)
        except TimeoutError:
            raise self._timed_out() from None
        try:
            yield
        finally:
            self._begin_or_end.release()

    def _timed_out(self) -> RequestTimeoutError:
        return RequestTimeoutError(f"no response from {self._carrier.address} within {self._timeout_s:g} s")

    async def _exchange(self, sequence: int, frames: Frames, budget_s: float = math.inf) -> Reply:
        """Sends a request and waits for its answer. Sends it again if no answer arrives.

        It is never sent later than `budget_s`: the daemon would not run it, or would count its budget anew.
        """
        if self._carrier.is_closed:
            raise PillionError("this session is closed; connect again")
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._waiting[sequence] = answer
        send_s_max = min(self._timeout_s, budget_s)
        resend = self._loop.call_later(RESEND_S, self._resend, sequence, frames, send_s_max - RESEND_S)
        too_late = self._loop.call_later(send_s_max, self._unsent.pop, sequence, None)
        try:
            self._send(sequence, frames)
            return await asyncio.wait_for(answer, min(self._timeout_s, max(budget_s, RESEND_S)))
        except TimeoutError:
            raise self._timed_out() from None
        finally:
            resend.cancel()
            too_late.cancel()
            del self._waiting[sequence]
            self._unsent.pop(sequence, None)

    def _send(self, sequence: int, frames: Frames) -> None:
        """Sends a request now, or as soon as there is a connection; the descriptor signals that too."""
        if not self._carrier.send_now(frames):
            self._unsent[sequence] = [bytes(frame) for frame in frames]
        # A send may consume the edge of the descriptor: read before sleeping.
        self._on_readable()

    def _resend(self, sequence: int, frames: Frames, left_s: float) -> None:
        waiting = self._waiting.get(sequence)
        if waiting is None or waiting.done() or self._carrier.is_closed or left_s <= 0:
            return
        if isinstance(frames, ActStep) and frames.sequence != sequence:
            # A newer act of the same group has overwritten this one.
            return
        self._send(sequence, frames)
        if left_s > RESEND_S:
            self._loop.call_later(RESEND_S, self._resend, sequence, frames, left_s - RESEND_S)

    def _on_readable(self) -> None:
        self._receive_all()
        while self._unsent and not self._carrier.is_closed:
            # `readiness` reads both states at once and loses no edge: if neither is ready, the descriptor will signal.
            is_readable, is_writable = self._carrier.readiness()
            if is_writable:
                sequence, frames = next(iter(self._unsent.items()))
                if not self._carrier.send_now(frames):
                    return
                del self._unsent[sequence]
            elif not is_readable:
                return
            self._receive_all()

    def _receive_all(self) -> None:
        while not self._carrier.is_closed and (received := self._carrier.receive_now()) is not None:
            reply = self._conversation.read(received)
            if reply is None:
                continue
            answer = self._waiting.get(reply.message.sequence)
            if answer is not None and not answer.done():
                answer.set_result(reply)
            else:
                self._on_unsolicited(reply)

    def _on_unsolicited(self, reply: Reply) -> None:
        """Processes a message that answers no request. Late answers are dropped."""
        message = reply.message
        if isinstance(message, Ping):
            self._carrier.send_now(self._conversation.pong(message))
        elif isinstance(message, Goodbye):
            self._conversation.closed(f"the daemon ended the session ({message.reason})")
            self._fail_all(self._conversation.lost())
        elif isinstance(message, Error) and is_rejected(message):
            self._fail_all(RefusedError.from_wire(message))

    def _fail_all(self, error: PillionError) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(error)


class Episode(EpisodeBase):
    """One episode, without a row axis. `Session.begin` creates it."""

    def __init__(self, session: Session, start: BegunGroup) -> None:
        super().__init__(session._conversation, session._codec, start, None, session._carrier.shares_clock)
        self._session = session

    async def act(
        self, observation: Observation, deterministic: bool = True, budget_us: int = 0, traceparent: str = ""
    ) -> Array:
        """Returns the action for one observation, as `pillion.session.Episode.act`."""
        sequence, frames = self._request(observation, deterministic, budget_us, None, None, traceparent)
        sent_ns = time.monotonic_ns()
        return self._take(
            await self._session._exchange(sequence, frames, budget_us / 1e6 if budget_us else math.inf), sent_ns
        )

    async def end(self) -> None:
        """Ends the episode and returns its lease. Does nothing if it has ended or is lost."""
        await _end(self, self._session)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.end()


class EpisodeGroup(EpisodeBase):
    """An episode group: several episodes that act together, one row each. `Session.begin_many` creates it."""

    def __init__(self, session: Session, start: BegunGroup, rows: int) -> None:
        super().__init__(session._conversation, session._codec, start, rows, session._carrier.shares_clock)
        self._session = session
        self.rows = rows
        """The number of rows."""

    async def act(
        self,
        observations: Observation,
        episode_start: ArrayLike | None = None,
        seeds: Sequence[int] | None = None,
        deterministic: bool = True,
        budget_us: int = 0,
        traceparent: str = "",
    ) -> Array:
        """Returns the actions of all rows, as `pillion.session.EpisodeGroup.act`."""
        sequence, frames = self._request(observations, deterministic, budget_us, episode_start, seeds, traceparent)
        sent_ns = time.monotonic_ns()
        return self._take(
            await self._session._exchange(sequence, frames, budget_us / 1e6 if budget_us else math.inf), sent_ns
        )

    async def end(self) -> None:
        """Ends the episodes and returns their leases. Does nothing if they have ended or are lost."""
        await _end(self, self._session)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.end()


class PendingSession:
    """A session that is not open yet: await it, or enter it with `async with`. `connect` returns it."""

    def __init__(self, address: str | None, conversation: Conversation, timeout_s: float) -> None:
        self._address = address
        self._conversation = conversation
        self._timeout_s = timeout_s
        self._session: Session | None = None

    def __await__(self) -> Generator[Any, None, Session]:
        return self._connect().__await__()

    async def __aenter__(self) -> Session:
        self._session = await self._connect()
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def _connect(self) -> Session:
        session = Session(open_carrier(self._address), self._conversation, self._timeout_s)
        try:
            await session._open()
        except BaseException:
            await session.close()
            raise
        return session


async def _end(episode: EpisodeBase, session: Session) -> None:
    if not episode._mark_ended():
        return
    try:
        await session._end(episode._id)
    except EpisodeLostError:
        # The daemon no longer has it, which is what the caller wants.
        return


def connect(
    address: str | None = None,
    *,
    policy: str = "",
    version: str = "",
    timeout_s: float = TIMEOUT_S,
    client_name: str = "",
    lock_step: bool = True,
    spec_hash: bytes = b"",
    fallback: str = "error",
) -> PendingSession:
    """Opens a session with the daemon at `address`, or with this user's daemon.

    Takes and raises the same as `pillion.connect`, but without `busy_poll_us`. The errors are raised when the result is
    awaited, `ValueError` at once.
    """
    return PendingSession(
        address, Conversation(client_name, policy, version, spec_hash, lock_step, fallback), timeout_s
    )
