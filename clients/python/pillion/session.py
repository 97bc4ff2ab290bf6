"""The blocking client."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from numpy.typing import ArrayLike

from pillion.carriers.interface import Carrier, open_carrier
from pillion.conversation import RESEND_S, TIMEOUT_S, Beginning, Conversation, Frames, Reply, is_rejected
from pillion.described import Described
from pillion.episode_base import EpisodeBase
from pillion.errors import (
    EpisodeLostError,
    PillionError,
    RequestTimeoutError,
    nobody_answers,
)
from pillion.seeds import checked_seeds, random_seeds
from pillion.tensors import Array, Observation, TensorCodec
from pillion_protocol import Goodbye, Ping
from pillion_protocol.steps import ActStep

LISTEN_AFTER_S = 0.001
"""After a pause this long a request first looks for what the daemon said meanwhile; in a tight loop it costs 2 %."""


class Session(Described):
    """A conversation with a daemon. Made by `connect`; for one thread at a time.

    When the daemon is started again the session opens itself anew at the next `begin`; episodes begun before are
    lost, and say so.
    """

    def __init__(self, carrier: Carrier, conversation: Conversation, timeout_s: float) -> None:
        self._carrier = carrier
        super().__init__(conversation)
        self._timeout_s = timeout_s
        self._codec: TensorCodec
        self._heard_s = 0.0
        self._wait_s = min(RESEND_S, timeout_s)
        carrier.set_wait(self._wait_s)
        self._open()

    def begin(self, seed: int | None = None) -> Episode:
        """Begins one episode. The same seed draws the same actions; None draws a seed."""
        return Episode(self, self._begin(random_seeds(1) if seed is None else checked_seeds([seed], 1)))

    def begin_many(self, count: int, seeds: Sequence[int] | None = None) -> EpisodeGroup:
        """Begins `count` episodes that act together, a row each; `seeds` holds one for each of them.

        Raises `InvalidObservationError` where there are not `count` seeds, `RefusedError` beyond `limits.rows_max`.
        """
        drawn = random_seeds(count) if seeds is None else checked_seeds(seeds, count)
        return EpisodeGroup(self, self._begin(drawn), count)

    def ping(self) -> float:
        """The seconds that the daemon takes to answer nothing at all.

        Raises `EpisodeLostError` where it does not know this session any more.
        """
        self._check_not_closed()
        started_s = time.monotonic()
        self._conversation.ponged(self._exchange(*self._conversation.ping()))
        return time.monotonic() - started_s

    def close(self) -> None:
        """Says goodbye and closes the connection; harmless to repeat."""
        if self._conversation.is_open:
            self._carrier.send_now(self._conversation.goodbye("closed")[1])
            self._conversation.closed("it was closed here")
        self._carrier.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_not_closed(self) -> None:
        if self._carrier.is_closed:
            raise PillionError("this session was closed: connect again")

    def _open(self) -> None:
        self._check_not_closed()
        try:
            reply = self._exchange(*self._conversation.hello())
        except RequestTimeoutError:
            raise nobody_answers(self._carrier.address, self._timeout_s) from None
        self._conversation.opened(reply)
        self._codec = TensorCodec(self._conversation.spec)
        self._carrier.expect([tensor.row_bytes for tensor in self._conversation.spec.outputs])

    def _begin(self, seeds: list[int]) -> Beginning:
        slots = self._carrier.passes_memory
        if self._conversation.is_open:
            try:
                return self._conversation.begun(self._exchange(*self._conversation.begin(seeds, slots)))
            except EpisodeLostError:
                # The daemon was started again since: nothing of ours is lost by opening anew.
                pass
        self._open()
        return self._conversation.begun(self._exchange(*self._conversation.begin(seeds, slots)))

    def _exchange(self, sequence: int, frames: Frames, useful_s: float = math.inf) -> Reply:
        """Sends a request and waits for its answer, sending it again where none comes.

        What is of use for `useful_s` only is not sent later than that: its budget would begin anew over there.
        """
        started_s = time.monotonic()
        if self._carrier.must_listen and started_s - self._heard_s > LISTEN_AFTER_S:
            last_word = self._listen()
            if last_word is not None:
                return last_word
        return self._await(self._carrier.exchange(frames), sequence, frames, started_s, useful_s)

    def _act(self, sequence: int, frames: Frames, budget_us: int, started_ns: int) -> Reply | Frames:
        """As `_exchange`, for an act; gives the frames that came where they are plainly its action."""
        carrier = self._carrier
        useful_s = budget_us / 1e6 if budget_us else math.inf
        if carrier.must_listen:
            return self._exchange(sequence, frames, useful_s)
        received = carrier.exchange(frames)
        if received is not None and type(frames) is ActStep and frames.is_answered_by(received[0]):
            return received
        return self._await(received, sequence, frames, started_ns / 1e9, useful_s)

    def _await(
        self, received: Frames | None, sequence: int, frames: Frames, started_s: float, useful_s: float
    ) -> Reply:
        """The answer to a request that was sent; `received` is what came first."""
        carrier = self._carrier
        conversation = self._conversation
        while True:
            while received is not None:
                reply = conversation.read(received)
                if reply is not None and (reply.message.sequence == sequence or self._heed(reply)):
                    if carrier.must_listen:
                        self._heard_s = time.monotonic()
                    return reply
                if time.monotonic() >= started_s + max(self._wait_s, min(self._timeout_s, useful_s)):
                    break
                received = carrier.receive()
            now_s = time.monotonic()
            left_s = started_s + min(self._timeout_s, useful_s) - now_s
            if left_s <= 0:
                raise RequestTimeoutError(f"no answer from {carrier.address} within {now_s - started_s:.3g} s")
            received = carrier.receive() if carrier.send(frames, min(self._wait_s, left_s)) else None

    def _listen(self) -> Reply | None:
        """Takes what came while nobody waited; gives the daemon's last word, if it was said.

        This must come before a send: with the first one that fails, libzmq throws unread messages of that
        connection away.
        """
        while (received := self._carrier.receive_now()) is not None:
            reply = self._conversation.read(received)
            if reply is not None and self._heed(reply):
                return reply
        return None

    def _heed(self, reply: Reply) -> bool:
        """Takes what the daemon said unasked; True where it was the last word. A late answer is dropped."""
        message = reply.message
        if isinstance(message, Ping):
            self._carrier.send_now(self._conversation.pong(message))
        return isinstance(message, Goodbye) or is_rejected(message)


class Episode(EpisodeBase):
    """One episode: a row without a row axis. Made by `Session.begin`."""

    def __init__(self, session: Session, start: Beginning) -> None:
        super().__init__(session._conversation, session._codec, start, None)
        self._session = session

    def act(
        self, observation: Observation, deterministic: bool = True, budget_us: int = 0, traceparent: str = ""
    ) -> Array:
        """The action for one observation, with the shape and dtype of the spec's first output.

        `observation` has the spec's shape, or is a mapping where the spec names several. `deterministic` False draws
        from the policy's distribution. `budget_us` is how long the answer is still of use (0: for ever); what cannot
        be run within it is not run, and what cannot be sent within it is not sent. Raises `InvalidObservationError`, `RefusedError` (`non_finite`,
        `deadline_exceeded`, …), `EpisodeLostError`, `RequestTimeoutError`.
        """
        sequence, frames = self._request(observation, deterministic, budget_us, None, None, traceparent)
        sent_ns = time.monotonic_ns()
        return self._take(self._session._act(sequence, frames, budget_us, sent_ns), sent_ns)

    def end(self) -> None:
        """Ends the episode and gives its lease back; harmless to repeat, or where it is lost."""
        _end(self, self._session)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()


class EpisodeGroup(EpisodeBase):
    """Several episodes that act together, a row each. Made by `Session.begin_many`."""

    def __init__(self, session: Session, start: Beginning, rows: int) -> None:
        super().__init__(session._conversation, session._codec, start, rows)
        self._session = session
        self.rows = rows

    def act(
        self,
        observations: Observation,
        episode_start: ArrayLike | None = None,
        seeds: Sequence[int] | None = None,
        deterministic: bool = True,
        budget_us: int = 0,
        traceparent: str = "",
    ) -> Array:
        """The actions for all rows: `observations` and the result have a leading axis of `rows`.

        `episode_start` (bool [rows]) marks rows that begin a new episode with this observation; `seeds` then holds
        one for each of them, else the daemon derives them. The rest is as for `Episode.act`.
        """
        sequence, frames = self._request(observations, deterministic, budget_us, episode_start, seeds, traceparent)
        sent_ns = time.monotonic_ns()
        return self._take(self._session._act(sequence, frames, budget_us, sent_ns), sent_ns)

    def end(self) -> None:
        """Ends the episodes and gives their leases back; harmless to repeat, or where they are lost."""
        _end(self, self._session)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()


def _end(handle: EpisodeBase, session: Session) -> None:
    if not handle._mark_ended():
        return
    try:
        session._conversation.ended(session._exchange(*session._conversation.end(handle._id)))
    except EpisodeLostError:
        # Gone is what was asked for.
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

    Without an address it takes the lane of this user's daemon: `lane.sock` in `$XDG_RUNTIME_DIR/pillion`, or where
    that variable is not set in `/run/user/UID/pillion`; that is where `pilliond` listens unless it is told otherwise.

    `policy` and `version` (a range such as `>=1.2,<2`) say what must be served there; empty takes what is.
    `timeout_s` bounds every wait of the session. `lock_step` promises one act at a time for each episode, so that a
    batch need not wait for more. `spec_hash` refuses any other spec. `fallback` says what an act gets whose budget is
    spent before it could be run: `error` (`deadline_exceeded`), `last`, `zeros`, or `safe`, the model card's safe
    action; `episode.last.fallback` then says so. `busy_poll_us` is how long to look for an answer before going to
    sleep: quicker, and a core is busy meanwhile. Raises `UnavailableError` where nobody
    answers, `RefusedError` where the daemon does not serve that.
    """
    carrier = open_carrier(address, busy_poll_us)
    try:
        return Session(carrier, Conversation(client_name, policy, version, spec_hash, lock_step, fallback), timeout_s)
    except BaseException:
        carrier.close()
        raise
