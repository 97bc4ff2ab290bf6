"""Sessions: who is speaking, in which episode, and whether it was said before.

Plain and synchronous: `receive` takes a message, changes state and adds the replies that are due to a list;
the loop sends them. An admitted act is handed back for the scheduler. Hot path.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from itertools import count

import msgspec

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
    Message,
    Ping,
    Pong,
    RemoteProtocolError,
    Welcome,
    decode,
    encode,
)
from pilliond import metrics_page as page_cells
from pilliond.episodes import NEVER_NS, EpisodeGroup
from pilliond.limits import HEARTBEAT_MS, SILENT_MS_MAX, ServingLimits
from pilliond.metrics_page import MetricsPage
from pilliond.routing import Router
from pilliond.transport import Incoming, Peer, Reply
from pilliond.versions import Version

_NANOSECONDS_PER_MS = 1_000_000

_opening_decoder = msgspec.msgpack.Decoder(Message)


class Session:
    """One client's conversation. Its identity is the id in the messages; `peer` is only where it was last heard."""

    __slots__ = (
        "control_reply",
        "control_request",
        "control_sequence",
        "episodes",
        "fallback",
        "hello_key",
        "id",
        "last_heard_ns",
        "lock_step",
        "peer",
        "pinged_ns",
        "version",
    )

    def __init__(self, session_id: int, peer: Peer, hello: Hello, version: Version, now_ns: int) -> None:
        self.id = session_id
        self.peer = peer
        self.hello_key = (peer, hello.sequence)
        self.lock_step = hello.lock_step
        self.fallback = hello.fallback
        self.version = version
        self.episodes: dict[int, EpisodeGroup] = {}
        self.last_heard_ns = now_ns
        self.pinged_ns = now_ns
        self.control_sequence = 0
        self.control_request: Message | None = None
        self.control_reply: bytes = b""


class Sessions:
    """Every session of one serving process, whose start is `epoch`."""

    def __init__(
        self,
        epoch: int,
        router: Router,
        limits: ServingLimits,
        page: MetricsPage,
        rows_waiting: Callable[[], int],
        server_name: str = "pilliond",
    ) -> None:
        self.epoch = epoch
        self.lock_step_live = 0
        self.draining = False
        self._router = router
        self._limits = limits
        self._page = page
        self._rows_waiting = rows_waiting
        self._server_name = server_name
        self._sessions: dict[int, Session] = {}
        self._hellos: dict[tuple[Peer, int], Session] = {}
        self._episode_ids = count(1)
        self._episodes_live = 0

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def episodes_live(self) -> int:
        """Handles that were begun and have not ended."""
        return self._episodes_live

    # What comes in

    def receive(self, message: Incoming, now_ns: int, replies: list[Reply]) -> EpisodeGroup | None:
        """Takes `message` (peer, head, tensors), read at `now_ns`.

        Gives the handle whose act was newly admitted, if one was; what is to be sent is added to `replies`.
        """
        peer, head = message[0], message[1]
        if isinstance(head, RemoteProtocolError):
            self._refuse(peer, Message(0, 0, 0), head, replies)
            return None
        head = bytes(head)
        try:
            decoded = decode(head)
        except RemoteProtocolError as error:
            self._refuse(peer, _opening_of(head), error, replies)
            return None
        try:
            if type(decoded) is Act:
                return self._act(peer, decoded, message, now_ns, replies)
            self._control(peer, decoded, message, now_ns, replies)
        except RemoteProtocolError as error:
            self._refuse(peer, decoded, error, replies, is_act=type(decoded) is Act)
        return None

    def _refuse(
        self, peer: Peer, opening: Message, error: RemoteProtocolError, replies: list[Reply], is_act: bool = False
    ) -> None:
        if is_act:
            self._page.outcome(error.code)
        else:
            self._page.refusal(error.code)
        reply = Error(
            opening.session, opening.epoch, opening.sequence, error.code, error.message, error.expected, error.came
        )
        replies.append([peer, encode(reply)])

    def _session(self, peer: Peer, message: Message, now_ns: int) -> Session:
        if self.draining:
            raise _draining()
        session = self._sessions.get(message.session)
        if message.epoch != self.epoch:
            raise RemoteProtocolError(
                ErrorCode.EPOCH_STALE,
                "the serving process was started again since; say hello",
                f"epoch {self.epoch}",
                f"{message.epoch}",
            )
        if session is None:
            raise RemoteProtocolError(
                ErrorCode.SESSION_UNKNOWN, "no such session; say hello", "the session id of a welcome", "another number"
            )
        session.peer = peer
        session.last_heard_ns = now_ns
        return session

    # Acts

    def _act(self, peer: Peer, act: Act, message: Incoming, now_ns: int, replies: list[Reply]) -> EpisodeGroup | None:
        session = self._session(peer, act, now_ns)
        group = session.episodes.get(act.episode)
        if group is None:
            raise _episode_unknown(act.episode)
        if act.sequence <= group.last_sequence:
            self._resend(group, act, replies)
            return None
        if group.waiting and act.sequence <= group.sequence:
            if act.sequence < group.sequence:
                raise _sequence_stale(group.sequence, act.sequence)
            return None
        self._check_act(group, act, message)
        if group.waiting:
            self.answer_error(group, _superseded(act.sequence), replies)
        else:
            self._check_room(group)
        if act.episode_start:
            group.mark_starts(act.episode_start, act.seeds)
        group.waiting = True
        group.sequence = act.sequence
        group.tensors = message[2:]
        group.received_ns = now_ns
        group.deadline_ns = now_ns + act.budget_us * 1_000 if act.budget_us else NEVER_NS
        group.deterministic = act.deterministic
        return group

    def _resend(self, group: EpisodeGroup, act: Act, replies: list[Reply]) -> None:
        """The same question again gets the same answer; an older one is stale."""
        if act.sequence < group.last_sequence or not group.last_reply:
            raise _sequence_stale(group.last_sequence, act.sequence)
        self._page.cells[page_cells.RESENDS] += 1
        replies.append([group.session.peer, *group.last_reply])

    def _check_act(self, group: EpisodeGroup, act: Act, message: Incoming) -> None:
        rows = group.rows
        version = group.version
        if act.rows != rows:
            raise RemoteProtocolError(ErrorCode.ROWS_MISMATCH, "wrong number of rows", f"{rows}", f"{act.rows}")
        if len(message) - 2 != len(version.observation_bytes):
            raise RemoteProtocolError(
                ErrorCode.SHAPE_MISMATCH,
                "wrong number of tensor frames",
                f"{len(version.observation_bytes)}",
                f"{len(message) - 2}",
            )
        for index, row_bytes in enumerate(version.observation_bytes, 2):
            if len(message[index]) != row_bytes * rows:
                raise _shape_mismatch(version, index - 2, rows, len(message[index]))
        if not act.deterministic and not version.samplable:
            raise RemoteProtocolError(
                ErrorCode.NOT_SAMPLABLE, "this policy is deterministic", "deterministic true", "deterministic false"
            )
        if act.episode_start or act.seeds:
            _check_starts(act, rows)

    def _check_room(self, group: EpisodeGroup) -> None:
        waiting = self._rows_waiting()
        if waiting + group.rows > self._limits.queue_rows_max:
            raise RemoteProtocolError(
                ErrorCode.OVERLOADED,
                "too many rows wait for the engine",
                f"at most {self._limits.queue_rows_max} rows",
                f"{waiting + group.rows}",
            )

    def answer_error(self, group: EpisodeGroup, error: RemoteProtocolError, replies: list[Reply]) -> None:
        """Answers the act that waits under `group` with an error. It is not kept: the same act may be sent again."""
        group.waiting = False
        group.tensors = []
        self._page.outcome(error.code)
        session = group.session
        reply = Error(session.id, self.epoch, group.sequence, error.code, error.message, error.expected, error.came)
        replies.append([session.peer, encode(reply)])

    # Everything else

    def _control(self, peer: Peer, message: Message, frames: Incoming, now_ns: int, replies: list[Reply]) -> None:
        if len(frames) > 2:
            raise RemoteProtocolError(
                ErrorCode.SHAPE_MISMATCH, "only an act carries tensor frames", "0", f"{len(frames) - 2}"
            )
        match message:
            case Hello():
                self._hello(peer, message, now_ns, replies)
            case Ping():
                self._session(peer, message, now_ns)
                replies.append([peer, encode(Pong(message.session, message.epoch, message.sequence))])
            case Pong():
                self._session(peer, message, now_ns)
            case Begin() | End() | Goodbye():
                self._numbered(peer, message, now_ns, replies)
            case _:
                raise RemoteProtocolError(
                    ErrorCode.UNKNOWN_MESSAGE,
                    "a client does not send this",
                    "hello, begin, act, end, ping, pong or goodbye",
                    type(message).__name__.lower(),
                )

    def _hello(self, peer: Peer, hello: Hello, now_ns: int, replies: list[Reply]) -> None:
        if hello.protocol_version != PROTOCOL_VERSION:
            raise RemoteProtocolError(
                ErrorCode.UNSUPPORTED_PROTOCOL,
                "another protocol version is spoken here",
                f"{PROTOCOL_VERSION}",
                f"{hello.protocol_version}",
            )
        session = self._hellos.get((peer, hello.sequence))
        if session is None:
            session = self._open(peer, hello, now_ns)
        replies.append([peer, session.control_reply])

    def _open(self, peer: Peer, hello: Hello, now_ns: int) -> Session:
        if self.draining:
            raise _draining()
        if len(self._sessions) >= self._limits.sessions_max:
            raise RemoteProtocolError(
                ErrorCode.OVERLOADED, "too many sessions", f"at most {self._limits.sessions_max}", "one more"
            )
        version = self._router.route(hello)
        if hello.fallback is Fallback.SAFE and version.safe_outputs is None:
            raise RemoteProtocolError(
                ErrorCode.NO_SAFE_ACTION,
                "the model card of this policy names no safe action",
                "fallback error, last or zeros",
                "safe",
            )
        session = Session(secrets.randbits(62) + 1, peer, hello, version, now_ns)
        self._sessions[session.id] = session
        self._hellos[session.hello_key] = session
        self._page.cells[page_cells.SESSIONS_OPENED] += 1
        session.control_reply = encode(
            Welcome(
                session=session.id,
                epoch=self.epoch,
                sequence=hello.sequence,
                protocol_version=PROTOCOL_VERSION,
                server_name=self._server_name,
                policy=version.identity.policy,
                version=version.identity.version,
                digest=version.digest,
                spec=version.spec_bytes,
                spec_hash=version.spec_hash,
                limits=self._limits.for_wire(),
                heartbeat_ms=HEARTBEAT_MS,
                silent_ms_max=SILENT_MS_MAX,
            )
        )
        return session

    def _numbered(self, peer: Peer, message: Begin | End | Goodbye, now_ns: int, replies: list[Reply]) -> None:
        """A request that changes the session: done once, and answered alike however often it is sent."""
        session = self._session(peer, message, now_ns)
        if message.sequence < max(1, session.control_sequence):
            raise _sequence_stale(session.control_sequence, message.sequence)
        if message.sequence > session.control_sequence:
            session.control_reply = encode(self._change(session, message))
            self._forget_hello(session)
            session.control_sequence = message.sequence
            session.control_request = message
        elif message != session.control_request:
            raise _sequence_stale(session.control_sequence, message.sequence)
        replies.append([peer, session.control_reply])

    def _change(self, session: Session, message: Begin | End | Goodbye) -> Message:
        if isinstance(message, Begin):
            return self._begin(session, message)
        if isinstance(message, End):
            group = session.episodes.get(message.episode)
            if group is None:
                raise _episode_unknown(message.episode)
            self._forget(group)
            return Ended(session.id, self.epoch, message.sequence, group.id, group.acts)
        self.close(session)
        return Goodbye(session.id, self.epoch, message.sequence, "bye")

    def _begin(self, session: Session, begin: Begin) -> Begun:
        if not 1 <= len(begin.seeds) <= self._limits.rows_max:
            raise RemoteProtocolError(
                ErrorCode.ROWS_MISMATCH,
                "wrong number of seeds",
                f"1 to {self._limits.rows_max}, one for each row",
                f"{len(begin.seeds)}",
            )
        if len(session.episodes) >= self._limits.episodes_max:
            raise RemoteProtocolError(
                ErrorCode.OVERLOADED, "too many handles in this session", f"at most {self._limits.episodes_max}",
                "one more",
            )  # fmt: skip
        group = EpisodeGroup(next(self._episode_ids), session, session.version, begin.seeds)
        group.last_sequence = begin.sequence
        session.episodes[group.id] = group
        self._episodes_live += 1
        self.lock_step_live += session.lock_step
        return Begun(session.id, self.epoch, begin.sequence, group.id, [session.version.lease])

    # Who leaves

    def _forget_hello(self, session: Session) -> None:
        if self._hellos.get(session.hello_key) is session:
            del self._hellos[session.hello_key]

    def _forget(self, group: EpisodeGroup) -> None:
        del group.session.episodes[group.id]
        self._episodes_live -= 1
        self.lock_step_live -= group.session.lock_step
        # An act that still waits is in the scheduler: it is run and answered all the same.

    def close(self, session: Session) -> None:
        """Ends a session: its episodes end, its leases are free."""
        for group in list(session.episodes.values()):
            self._forget(group)
        self._sessions.pop(session.id, None)
        self._forget_hello(session)

    def drop_peer(self, peer: Peer) -> int:
        """Ends every session that was last heard at `peer`, which is gone or does not read; gives their number."""
        dropped = [session for session in self._sessions.values() if session.peer == peer]
        for session in dropped:
            self.close(session)
        self._page.cells[page_cells.SESSIONS_DROPPED] += len(dropped)
        return len(dropped)

    def sweep(self, now_ns: int, replies: list[Reply]) -> None:
        """Pings the silent and ends those silent for too long. To be called every heartbeat or so."""
        for session in list(self._sessions.values()):
            silent_ms = (now_ns - session.last_heard_ns) // _NANOSECONDS_PER_MS
            if silent_ms >= SILENT_MS_MAX:
                goodbye = Goodbye(session.id, self.epoch, 0, f"silent for {silent_ms} ms")
                replies.append([session.peer, encode(goodbye)])
                self.close(session)
                self._page.cells[page_cells.SESSIONS_DROPPED] += 1
            elif silent_ms >= HEARTBEAT_MS and now_ns - session.pinged_ns >= HEARTBEAT_MS * _NANOSECONDS_PER_MS:
                session.pinged_ns = now_ns
                replies.append([session.peer, encode(Ping(session.id, self.epoch, 0))])

    def say_goodbye(self, reason: str, replies: list[Reply]) -> None:
        """The last word to everybody."""
        for session in list(self._sessions.values()):
            replies.append([session.peer, encode(Goodbye(session.id, self.epoch, 0, reason))])
            self.close(session)


def _opening_of(head: bytes) -> Message:
    """Who sent a head that cannot be read, as far as can be told: its reply should reach the right waiter."""
    try:
        return _opening_decoder.decode(head[1:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Message(0, 0, 0)


def _check_starts(act: Act, rows: int) -> None:
    if len(act.episode_start) != rows:
        raise RemoteProtocolError(
            ErrorCode.ROWS_MISMATCH, "episode_start has the wrong length", f"{rows} bytes", f"{len(act.episode_start)}"
        )
    started = rows - act.episode_start.count(0)
    if act.seeds and len(act.seeds) != started:
        raise RemoteProtocolError(
            ErrorCode.ROWS_MISMATCH, "wrong number of seeds", f"{started}, or none", f"{len(act.seeds)}"
        )


def _shape_mismatch(version: Version, index: int, rows: int, came_bytes: int) -> RemoteProtocolError:
    tensor = version.spec.observation[index]
    expected = f"{tensor.dtype} {[rows, *tensor.shape]}, {tensor.row_bytes * rows} bytes"
    return RemoteProtocolError(
        ErrorCode.SHAPE_MISMATCH, f"observation {tensor.name!r} has the wrong size", expected, f"{came_bytes} bytes"
    )


def _episode_unknown(episode: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        ErrorCode.EPISODE_UNKNOWN, "no such episode in this session", "a handle that was begun and not ended",
        f"{episode}",
    )  # fmt: skip


def _sequence_stale(last: int, came: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        ErrorCode.SEQUENCE_STALE, "an older request than one already taken", f"more than {last}", f"{came}"
    )


def _superseded(by: int) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.SUPERSEDED, f"act {by} of the same handle took its place before it ran")


def _draining() -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.DRAINING, "the daemon is stopping and takes no new work")
