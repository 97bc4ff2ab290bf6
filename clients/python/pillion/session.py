"""The blocking client. `pillion.aio` has the same calls for asyncio."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from numpy.typing import ArrayLike

from pillion.carriers.interface import Carrier, open_carrier
from pillion.conversation import BegunGroup, Conversation, Frames, Reply, is_rejected
from pillion.episode_base import EpisodeBase
from pillion.errors import (
    EpisodeLostError,
    PillionError,
    RequestTimeoutError,
    no_response,
)
from pillion.limits import READ_FIRST_AFTER_S, RESEND_S, TIMEOUT_S
from pillion.seeds import checked_seeds, random_seeds
from pillion.session_base import SessionBase
from pillion.tensors import Array, Observation, TensorCodec
from pillion_protocol import Goodbye, Ping
from pillion_protocol.steps import ActStep


class Session(SessionBase):
    """A session with a daemon, for one thread at a time. `connect` creates it; the caller closes it.

    After a restart of the daemon, the next `begin` opens a new session by itself. Earlier episodes are lost: their next
    `act` raises `EpisodeLostError`.
    """

    def __init__(self, carrier: Carrier, conversation: Conversation, timeout_s: float) -> None:
        self._carrier = carrier
        super().__init__(conversation)
        self._timeout_s = timeout_s
        self._codec: TensorCodec
        self._last_reply_s = 0.0
        self._wait_s = min(RESEND_S, timeout_s)
        carrier.set_wait(self._wait_s)
        self._open()

    def begin(self, seed: int | None = None) -> Episode:
        """Begins one episode with a seed from 0 to 2^63 - 1, or a random one if it is None.

        The same seed draws the same actions. Raises `InvalidObservationError` for any other seed, `RefusedError`
        (`overloaded`, `version_gone`, …), `RequestTimeoutError`.
        """
        return Episode(self, self._begin(random_seeds(1) if seed is None else checked_seeds([seed], 1)))

    def begin_many(self, count: int, seeds: Sequence[int] | None = None) -> EpisodeGroup:
        """Begins `count` episodes that act together, one row each. `seeds` has one seed for each row, or is None.

        Raises `InvalidObservationError` unless there are `count` seeds, `RefusedError` beyond `limits.rows_max`; else as
        `begin`.
        """
        drawn = random_seeds(count) if seeds is None else checked_seeds(seeds, count)
        return EpisodeGroup(self, self._begin(drawn), count)

    def ping(self) -> float:
        """Returns the round trip of an empty request, in seconds.

        Raises `EpisodeLostError` if the daemon no longer knows this session, `RequestTimeoutError`.
        """
        self._check_not_closed()
        started_s = time.monotonic()
        self._conversation.ponged(self._exchange(*self._conversation.ping()))
        return time.monotonic() - started_s

    def close(self) -> None:
        """Says goodbye and closes the connection. Calling it again does nothing."""
        if self._conversation.is_open:
            self._carrier.send_now(self._conversation.goodbye("closed")[1])
            self._conversation.closed("the session was closed here")
        self._carrier.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_not_closed(self) -> None:
        if self._carrier.is_closed:
            raise PillionError("this session is closed; connect again")

    def _open(self) -> None:
        self._check_not_closed()
        try:
            reply = self._exchange(*self._conversation.hello())
        except RequestTimeoutError:
            raise no_response(self._carrier.address, self._timeout_s) from None
        self._conversation.opened(reply)
        self._codec = TensorCodec(self._conversation.spec)
        self._carrier.expect([tensor.row_bytes for tensor in self._conversation.spec.outputs])

    def _begin(self, seeds: list[int]) -> BegunGroup:
        slots = self._carrier.passes_memory
        if self._conversation.is_open:
            try:
                return self._conversation.begun(self._exchange(*self._conversation.begin(seeds, slots)))
            except EpisodeLostError:
                # The daemon was restarted. A new episode loses nothing by that, so open a new session and begin there.
                pass
        self._open()
        return self._conversation.begun(self._exchange(*self._conversation.begin(seeds, slots)))

    def _exchange(self, sequence: int, frames: Frames, budget_s: float = math.inf) -> Reply:
        """Sends a request and waits for its answer. Sends it again if no answer arrives.

        It is never sent later than `budget_s`: the daemon would not run it, or would count its budget anew.
        """
        started_s = time.monotonic()
        if self._carrier.must_read_before_send and started_s - self._last_reply_s > READ_FIRST_AFTER_S:
            final = self._read_pending()
            if final is not None:
                return final
        return self._await(self._carrier.exchange(frames), sequence, frames, started_s, budget_s)

    def _act(self, sequence: int, frames: Frames, budget_us: int, started_ns: int) -> Reply | Frames:
        """Does as `_exchange` for an act. Returns the received frames undecoded if they are plainly its action."""
        carrier = self._carrier
        budget_s = budget_us / 1e6 if budget_us else math.inf
        if carrier.must_read_before_send:
            return self._exchange(sequence, frames, budget_s)
        received = carrier.exchange(frames)
        if received is not None and type(frames) is ActStep and frames.pattern.fits(received[0], frames.sequence):
            return received
        return self._await(received, sequence, frames, started_ns / 1e9, budget_s)

    def _await(
        self, received: Frames | None, sequence: int, frames: Frames, started_s: float, budget_s: float
    ) -> Reply:
        """Returns the answer to a request that was sent; `received` is the first message after it, if any."""
        carrier = self._carrier
        conversation = self._conversation
        while True:
            while received is not None:
                reply = conversation.read(received)
                if reply is not None and (reply.message.sequence == sequence or self._on_unsolicited(reply)):
                    if carrier.must_read_before_send:
                        self._last_reply_s = time.monotonic()
                    return reply
                if time.monotonic() >= started_s + max(self._wait_s, min(self._timeout_s, budget_s)):
                    break
                received = carrier.receive()
            now_s = time.monotonic()
            left_s = started_s + min(self._timeout_s, budget_s) - now_s
            if left_s <= 0:
                raise RequestTimeoutError(f"no response from {carrier.address} within {now_s - started_s:.3g} s")
            received = carrier.receive() if carrier.send(frames, min(self._wait_s, left_s)) else None

    def _read_pending(self) -> Reply | None:
        """Reads the messages that arrived since the last request. Returns the daemon's final message if there is one.

        This must precede a send: when a send fails, libzmq discards the unread messages of that connection.
        """
        while (received := self._carrier.receive_now()) is not None:
            reply = self._conversation.read(received)
            if reply is not None and self._on_unsolicited(reply):
                return reply
        return None

    def _on_unsolicited(self, reply: Reply) -> bool:
        """Processes a message that answers no request. Returns True if it is the final one. Late answers are dropped."""
        message = reply.message
        if isinstance(message, Ping):
            self._carrier.send_now(self._conversation.pong(message))
        return isinstance(message, Goodbye) or is_rejected(message)


class Episode(EpisodeBase):
    """One episode, without a row axis. `Session.begin` creates it."""

    def __init__(self, session: Session, start: BegunGroup) -> None:
        super().__init__(session._conversation, session._codec, start, None, session._carrier.shares_clock)
        self._session = session

    def act(
        self, observation: Observation, deterministic: bool = True, budget_us: int = 0, traceparent: str = ""
    ) -> Array:
        """Returns the action for one observation, with the shape and dtype of the spec's first output.

        `observation` has the spec's shape and dtype, or is a mapping of such arrays if the spec names several. A dtype
        that loses only precision is converted. An observation of space `Text` is a `str`. `deterministic` False draws from the policy's distribution.

        `budget_us` is how long the answer is useful, in µs; 0 is no limit. It counts from this call; over `tcp://`, from
        when the daemon reads the act. An act that cannot be sent or started within it is not run. If one finishes after
        it, `last.late_us` says by how much. `traceparent` is a W3C trace context.

        Raises `InvalidObservationError`, `RefusedError` (`non_finite`, `out_of_bounds`, `bad_text`, …),
        `EngineRestartingError`, `EngineOutError`, `StateLostError`, `EpisodeLostError`, `RequestTimeoutError`.
        """
        sequence, frames = self._request(observation, deterministic, budget_us, None, None, traceparent)
        sent_ns = time.monotonic_ns()
        return self._take(self._session._act(sequence, frames, budget_us, sent_ns), sent_ns)

    def end(self) -> None:
        """Ends the episode and returns its lease. Does nothing if it has ended or is lost."""
        _end(self, self._session)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()


class EpisodeGroup(EpisodeBase):
    """An episode group: several episodes that act together, one row each. `Session.begin_many` creates it."""

    def __init__(self, session: Session, start: BegunGroup, rows: int) -> None:
        super().__init__(session._conversation, session._codec, start, rows, session._carrier.shares_clock)
        self._session = session
        self.rows = rows
        """The number of rows."""

    def act(
        self,
        observations: Observation,
        episode_start: ArrayLike | None = None,
        seeds: Sequence[int] | None = None,
        deterministic: bool = True,
        budget_us: int = 0,
        traceparent: str = "",
    ) -> Array:
        """Returns the actions of all rows. `observations` and the result have a leading axis of `rows`; texts are a list.

        `episode_start` (bool [rows]) marks the rows that begin a new episode with this observation. `seeds` then has one
        seed for each of them; without `seeds` the daemon derives them. Everything else is as for `Episode.act`.
        """
        sequence, frames = self._request(observations, deterministic, budget_us, episode_start, seeds, traceparent)
        sent_ns = time.monotonic_ns()
        return self._take(self._session._act(sequence, frames, budget_us, sent_ns), sent_ns)

    def end(self) -> None:
        """Ends the episodes and returns their leases. Does nothing if they have ended or are lost."""
        _end(self, self._session)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()


def _end(episode: EpisodeBase, session: Session) -> None:
    if not episode._mark_ended():
        return
    try:
        session._conversation.ended(session._exchange(*session._conversation.end(episode._id)))
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
    busy_poll_us: int = 0,
) -> Session:
    """Opens a session with the daemon at `address` (`lane:///PATH`, `ipc:///PATH` or `tcp://HOST:PORT`).

    Without an address it uses the lane of this user's daemon, where `pilliond` listens by default: `lane.sock` in
    `$XDG_RUNTIME_DIR/pillion`, or in `/run/user/UID/pillion` if that variable is not set.

    - `policy` is one of those that the daemon serves, empty: its first; `version` (a range such as `>=1.2,<2`) is what it
      must serve of it, empty: any. Open a session for each policy.
    - `timeout_s` bounds every wait of the session, in seconds.
    - `client_name` is what operators see; by default `python-PID`.
    - `lock_step` promises at most one act in flight for each episode, so that the daemon can close a batch early.
    - `spec_hash` (32 bytes) refuses any other spec.
    - `fallback` is what an act gets if its budget runs out: `error` (`deadline_exceeded`), `last`, `zeros`, or `safe`,
      the safe action of the model card. `episode.last.fallback` then names it.
    - `busy_poll_us` is how long to poll for an answer before sleeping, in µs. It is faster but keeps a core busy.

    Raises `UnavailableError` if no daemon responds, `RefusedError` if the daemon does not serve what is asked for, and
    `ValueError` for an unknown `fallback`.
    """
    carrier = open_carrier(address, busy_poll_us)
    try:
        return Session(carrier, Conversation(client_name, policy, version, spec_hash, lock_step, fallback), timeout_s)
    except BaseException:
        carrier.close()
        raise
