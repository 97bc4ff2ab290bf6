"""Sessions: decides what each message of a client means, and what to answer. Hot path.

Plain and synchronous: `receive` takes a message, changes state, and appends the replies that are due to a list; the
loop sends them. An admitted act is returned to the loop, which gives it to the scheduler.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Final

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
from pillion_protocol.lane import Frame
from pillion_protocol.limits import UNSIGNED_MAX
from pillion_protocol.steps import (
    ACT_STEP_BYTES,
    NO_SLOT,
    SENT_FORM,
    TIMED_ACT_STEP_BYTES,
    is_act_step,
    slot_number,
    split_act,
    split_timed_act,
)
from pilliond.core import rejections
from pilliond.core.action_steps import ExplicitActionStep
from pilliond.core.episodes import EpisodeGroup
from pilliond.core.row_leases import (
    end_lease,
    find_unloaded,
    give_back_leases,
    lease_anew,
    take_leases,
    version_of_rows,
)
from pilliond.core.served_policy import ServedPolicy
from pilliond.core.session import Session
from pilliond.ipc import metrics_page as page_cells
from pilliond.ipc.metrics_page import MetricsPage
from pilliond.limits import HEARTBEAT_MS, NEVER_NS, SENT_AGE_NS_MAX, SILENT_MS_MAX
from pilliond.transport.interface import Incoming, Peer, Reply
from pilliond.transport.slots import Slot
from pilliond.versions.loaded_version import Version
from pilliond.versions.mixed_version import MixedVersion

_NANOSECONDS_PER_MS: Final = 1_000_000
_BYTES_PER_MB: Final = 1_000_000
_NO_TENSORS: Final = 2
_ONE_TENSOR: Final = 3

_opening_decoder = msgspec.msgpack.Decoder(Message)


class Sessions:
    """Every session of one serving process. `epoch` numbers the start of that process.

    The first of `policies` is the default: a hello that names no policy gets it.
    """

    def __init__(
        self,
        epoch: int,
        policies: Sequence[ServedPolicy],
        sessions_max: int,
        page: MetricsPage,
        server_name: str = "pilliond",
    ) -> None:
        self.epoch = epoch
        self.policies = {policy.name: policy for policy in policies}
        self.draining = False
        self._default = policies[0]
        self._sessions_max = sessions_max
        self._page = page
        self._groups: dict[int, EpisodeGroup] = {}
        self._steps: dict[bytes, EpisodeGroup] = {}
        """By the first bytes of an act's head: the episode group that acted with them last."""
        self._server_name = server_name
        self._sessions: dict[int, Session] = {}
        self._hellos: dict[tuple[Peer, int], Session] = {}
        self._ended: list[EpisodeGroup] = []
        """Groups that have ended and whose last act may still wait."""
        self._episode_ids = count(1)
        self._session_numbers = count(1)

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def episodes_live(self) -> int:
        """Episode groups that have begun and not ended."""
        return len(self._groups)

    def groups_of(self, session: Session) -> list[EpisodeGroup]:
        """The episode groups of a session."""
        return [self._groups[number] for number in session.groups]

    def opened(self) -> list[Session]:
        """Every session, oldest first."""
        return list(self._sessions.values())

    # Receiving

    def receive(self, message: Incoming, now_ns: int, replies: list[Reply]) -> EpisodeGroup | None:
        """Takes `message` (peer, head, tensors), which was read at `now_ns`. Appends replies that are due to `replies`.

        Returns the episode group whose act was just admitted, or None.
        """
        peer, head = message[0], message[1]
        if isinstance(head, RemoteProtocolError):
            self._refuse(peer, Message(0, 0, 0), head, replies)
            return None
        if len(head) == ACT_STEP_BYTES:
            key, sequence, middle, slot, generation = split_act(head)
            group = self._steps.get(key)
            if (
                group is not None
                and middle == group.head_middle
                and self._admit_repeated(group, message, sequence, slot, generation)
            ):
                group.received_ns = group.session.last_heard_ns = now_ns
                if group.budget_ns:
                    group.deadline_ns = self._budget_began_ns(0, now_ns) + group.budget_ns
                return group
        elif len(head) == TIMED_ACT_STEP_BYTES:
            group = self._receive_timed(message, head, now_ns)
            if group is not None:
                return group
        head = bytes(head)
        try:
            decoded = decode(head)
        except RemoteProtocolError as error:
            self._refuse(peer, _opening_of(head), error, replies)
            return None
        try:
            if type(decoded) is Act:
                group = self._act(peer, decoded, message, now_ns, replies)
                if group is not None and is_act_step(head):
                    self._remember(group, head)
                return group
            self._control(peer, decoded, message, now_ns, replies)
        except RemoteProtocolError as error:
            self._refuse(peer, decoded, error, replies, is_act=type(decoded) is Act)
        return None

    def _refuse(
        self, peer: Peer, opening: Message, error: RemoteProtocolError, replies: list[Reply], is_act: bool = False
    ) -> None:
        if is_act:
            session = self._sessions.get(opening.session)
            self._page.refused_act(error.code, None if session is None else session.policy.number)
        else:
            self._page.refusal(error.code)
        reply = Error(
            opening.session, opening.epoch, opening.sequence, error.code, error.message, error.expected, error.actual
        )
        replies.append([peer, encode(reply)])

    def _session(self, peer: Peer, message: Message, now_ns: int) -> Session:
        """The session that a message names; raises `RemoteProtocolError`."""
        if self.draining:
            raise rejections.draining()
        session = self._sessions.get(message.session)
        if message.epoch != self.epoch:
            raise rejections.epoch_stale(self.epoch, message.epoch)
        if session is None:
            raise rejections.session_unknown()
        if session.peer != peer:
            self._move(session, peer)
        session.last_heard_ns = now_ns
        return session

    def _move(self, session: Session, peer: Peer) -> None:
        """Continues a session at another peer. Slots belong to the connection that they were granted to, so they end."""
        session.peer = peer
        for group in self.groups_of(session):
            self._revoke_slots(group)

    # Acts

    def _receive_timed(self, message: Incoming, head: Frame, now_ns: int) -> EpisodeGroup | None:
        """Admits a timed act that differs from an earlier one of its group only in its numbers; else returns None."""
        key, sequence, middle, slot, generation, form, sent_ns = split_timed_act(head)
        group = self._steps.get(key)
        if (
            group is None
            or middle != group.head_middle
            or form != SENT_FORM
            or sent_ns > UNSIGNED_MAX
            or not self._admit_repeated(group, message, sequence, slot, generation)
        ):
            return None
        group.received_ns = group.session.last_heard_ns = now_ns
        if group.budget_ns:
            group.deadline_ns = self._budget_began_ns(sent_ns, now_ns) + group.budget_ns
        return group

    def _budget_began_ns(self, sent_ns: int, now_ns: int) -> int:
        """From when the budget of an act counts: from when it was sent, if that is known, else from when it was read.

        A time in the future, or too long ago, is not of this host's clock.
        """
        if sent_ns and 0 <= now_ns - sent_ns <= SENT_AGE_NS_MAX:
            self._page.cells[page_cells.BUDGETS_SENT] += 1
            return sent_ns
        self._page.cells[page_cells.BUDGETS_READ] += 1
        return now_ns

    def _admit_repeated(
        self, group: EpisodeGroup, message: Incoming, sequence: int, slot_form: int, generation: int
    ) -> bool:
        """Admits an act that differs from an earlier one of its group only in its numbers and its rows.

        Returns False if anything else is unusual; `_act` then checks everything.
        """
        session = group.session
        share = session.share
        if (
            sequence <= group.last_sequence
            or group.waiting
            or session.peer != message[0]
            or share.rows_waiting + group.rows > share.queue_rows_max
            or self.draining
        ):
            return False
        if slot_form != NO_SLOT:
            number = slot_number(slot_form)
            slot = group.slots.slot(number) if group.slots is not None and len(message) == _NO_TENSORS else None
            if slot is None or not generation or slot.generation() != generation:
                return False
            group.tensors = slot.observations
            group.slot = slot
            group.slot_number = number
            group.generation = generation
            self._page.cells[page_cells.SLOT_ACTS] += 1
        elif len(message) == _ONE_TENSOR and len(message[2]) == group.frame_bytes and group.fits_packet:
            group.tensors = message[2:]
        else:
            return False
        group.waiting = True
        group.sequence = sequence
        return True

    def _remember(self, group: EpisodeGroup, head: bytes) -> None:
        """Notes how the head of this group's next act looks if it repeats this one."""
        session = group.session
        key, _, group.head_middle, _, _ = split_act(head[:ACT_STEP_BYTES])
        if session.step_key != key:
            # Timed acts and others of a session have different keys.
            self._steps.pop(session.step_key, None)
            session.step_key = key
        self._steps[key] = group

    def _act(self, peer: Peer, act: Act, message: Incoming, now_ns: int, replies: list[Reply]) -> EpisodeGroup | None:
        group = self._group(peer, act, now_ns)
        policy = group.session.policy
        if act.sequence <= group.last_sequence:
            self._resend(group, act, replies)
            return None
        if group.waiting and act.sequence <= group.sequence:
            if act.sequence < group.sequence:
                raise rejections.sequence_stale(group.sequence, act.sequence)
            return None
        slot = _slot_of(group, act) if act.slot else None
        tensors = message[2:] if slot is None else [*slot.observations, *message[2:]]
        self._check_act(group, act, tensors)
        if group.version.gone and (gone := find_unloaded(group, act.episode_start)) is not None:
            raise rejections.version_gone(gone)
        if act.episode_start and group.session.is_evaluation:
            # Raises if its hold has ended. Nothing has changed yet, so the act can be refused as a whole.
            policy.router.lease(group.session, 0)
        share = policy.share
        if group.queue is None and share.rows_waiting + group.rows > share.queue_rows_max:
            raise rejections.queue_full(share.queue_rows_max, share.rows_waiting + group.rows)
        if group.waiting:
            self.answer_error(group, rejections.superseded(act.sequence), replies)
        if act.episode_start:
            group.mark_starts(act.episode_start, act.seeds)
            self._lease_anew(group)
        group.waiting = True
        group.sequence = act.sequence
        group.tensors = tensors
        group.slot = slot
        group.slot_number = act.slot
        group.generation = act.generation
        if slot is not None:
            self._page.cells[page_cells.SLOT_ACTS] += 1
        group.received_ns = now_ns
        group.budget_ns = act.budget_us * 1_000
        group.deadline_ns = NEVER_NS
        if act.budget_us:
            group.deadline_ns = self._budget_began_ns(act.sent_ns, now_ns) + group.budget_ns
        group.deterministic = act.deterministic
        # The short path keeps an act's budget and whether it samples. Both have just changed, so it must not run.
        group.head_middle = b""
        return group

    def _group(self, peer: Peer, act: Act, now_ns: int) -> EpisodeGroup:
        """The episode group of an act. If nothing is unusual, one lookup finds it."""
        group = self._groups.get(act.episode)
        if group is not None and act.epoch == self.epoch and not self.draining:
            session = group.session
            if session.id == act.session and session.peer == peer:
                session.last_heard_ns = now_ns
                return group
        return self._group_of(self._session(peer, act, now_ns), act.episode)

    def _group_of(self, session: Session, number: int) -> EpisodeGroup:
        """The episode group of a session with this number; raises `RemoteProtocolError` (`episode_unknown`)."""
        if number not in session.groups:
            raise rejections.episode_unknown(number)
        return self._groups[number]

    def _resend(self, group: EpisodeGroup, act: Act, replies: list[Reply]) -> None:
        """Answers a repeated act with the same reply; an older act is stale."""
        if act.sequence < group.last_sequence or group.last_reply is None:
            raise rejections.sequence_stale(group.last_sequence, act.sequence)
        self._page.cells[page_cells.RESENDS] += 1
        group.last_reply[0] = group.session.peer
        replies.append(group.last_reply)

    def _check_act(self, group: EpisodeGroup, act: Act, tensors: Sequence[Frame]) -> None:
        rows = group.rows
        version = group.version
        if act.rows != rows:
            raise rejections.wrong_number_of_rows(rows, act.rows)
        if list(map(len, tensors)) != group.frames_bytes:
            raise rejections.shape_mismatch(group, tensors)
        if not act.slot and not group.fits_packet:
            raise rejections.outputs_too_large(version, rows)
        if not act.deterministic and not version.samplable:
            raise rejections.not_samplable()
        if act.episode_start or act.seeds:
            rejections.check_starts(act, rows)

    def answer_error(self, group: EpisodeGroup, error: RemoteProtocolError, replies: list[Reply]) -> None:
        """Answers the waiting act of `group` with an error. The error is not kept: the same act may be sent again."""
        group.settle()
        self._page.outcome(error.code, group.version.metrics_index)
        session = group.session
        reply = Error(session.id, self.epoch, group.sequence, error.code, error.message, error.expected, error.actual)
        replies.append([session.peer, encode(reply)])

    # Everything else

    def _control(self, peer: Peer, message: Message, frames: Incoming, now_ns: int, replies: list[Reply]) -> None:
        if len(frames) > _NO_TENSORS:
            raise RemoteProtocolError(
                ErrorCode.SHAPE_MISMATCH, "only an act carries tensor frames", "0", f"{len(frames) - _NO_TENSORS}"
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
                    "a client does not send this message",
                    "hello, begin, act, end, ping, pong or goodbye",
                    type(message).__name__.lower(),
                )

    def _hello(self, peer: Peer, hello: Hello, now_ns: int, replies: list[Reply]) -> None:
        if hello.protocol_version != PROTOCOL_VERSION:
            raise RemoteProtocolError(
                ErrorCode.UNSUPPORTED_PROTOCOL,
                "this daemon uses another protocol version",
                f"{PROTOCOL_VERSION}",
                f"{hello.protocol_version}",
            )
        session = self._hellos.get((peer, hello.sequence))
        if session is None:
            session = self._open(peer, hello, now_ns)
        replies.append([peer, session.control_reply])

    def _open(self, peer: Peer, hello: Hello, now_ns: int) -> Session:
        if self.draining:
            raise rejections.draining()
        if len(self._sessions) >= self._sessions_max:
            raise rejections.too_many_sessions(self._sessions_max)
        policy = self.policies.get(hello.policy) if hello.policy else self._default
        if policy is None:
            raise rejections.policy_not_found(self.policies, hello)
        version = policy.router.route(hello)
        if hello.fallback is Fallback.SAFE and version.safe_outputs is None:
            raise rejections.no_safe_action()
        number = next(self._session_numbers)
        is_evaluation = version is not policy.router.stable
        session = Session(secrets.randbits(62) + 1, number, peer, hello, policy, version, is_evaluation, now_ns)
        if not isinstance(peer, bytes):
            peer.expect(version.observation_bytes)
        self._sessions[session.id] = session
        policy.sessions_live += 1
        self._hellos[session.hello_key] = session
        self._page.cells[page_cells.SESSIONS_OPENED] += 1
        session.control_reply = encode(self._welcome(session, hello.sequence))
        return session

    def _welcome(self, session: Session, sequence: int) -> Welcome:
        version = session.version
        return Welcome(
            session=session.id,
            epoch=self.epoch,
            sequence=sequence,
            protocol_version=PROTOCOL_VERSION,
            server_name=self._server_name,
            policy=version.identity.policy,
            version=version.identity.version,
            digest=version.digest,
            spec=version.spec_bytes,
            spec_hash=version.spec_hash,
            limits=session.policy.limits.for_wire(),
            heartbeat_ms=HEARTBEAT_MS,
            silent_ms_max=SILENT_MS_MAX,
            certificate=version.certificate.batch if version.certificate is not None else "",
        )

    def _numbered(self, peer: Peer, message: Begin | End | Goodbye, now_ns: int, replies: list[Reply]) -> None:
        """Does a request that changes the session once, and gives a repetition of it the same reply."""
        session = self._session(peer, message, now_ns)
        if message.sequence < max(1, session.control_sequence):
            raise rejections.sequence_stale(session.control_sequence, message.sequence)
        if message.sequence > session.control_sequence:
            session.control_region = None
            session.control_reply = encode(self._change(session, message))
            self._forget_hello(session)
            session.control_sequence = message.sequence
            session.control_request = message
        elif message != session.control_request:
            raise rejections.sequence_stale(session.control_sequence, message.sequence)
        replies.append([peer, session.control_reply])
        if session.control_region is not None and session.control_region.slots:
            replies[-1].append(session.control_region)

    def _change(self, session: Session, message: Begin | End | Goodbye) -> Message:
        if isinstance(message, Begin):
            return self._begin(session, message)
        if isinstance(message, End):
            group = self._group_of(session, message.episode)
            self._forget(group)
            return Ended(session.id, self.epoch, message.sequence, group.id, group.acts)
        self.close(session)
        return Goodbye(session.id, self.epoch, message.sequence, "bye")

    def _begin(self, session: Session, begin: Begin) -> Begun:
        policy = session.policy
        limits = policy.limits
        if not 1 <= len(begin.seeds) <= limits.rows_max:
            raise rejections.wrong_number_of_seeds(limits.rows_max, len(begin.seeds))
        if len(session.groups) >= limits.episodes_max:
            raise rejections.too_many_groups(limits.episodes_max)
        leased = [policy.router.lease(session, seed) for seed in begin.seeds]
        version = version_of_rows(leased)
        _check_state_bytes(policy, version.state_row_bytes * len(begin.seeds))
        group = EpisodeGroup(next(self._episode_ids), session, self.epoch, version, begin.seeds)
        if isinstance(version, MixedVersion):
            group.row_versions = leased
            group.step = ExplicitActionStep(group, self.epoch, version.named, version.row_leases, None)
        take_leases(group)
        policy.state_bytes += group.state_bytes
        group.last_sequence = begin.sequence
        self._limit_or_grant(session, group, begin)
        session.groups.add(group.id)
        self._groups[group.id] = group
        policy.episodes_live += 1
        policy.share.lock_step_live += session.lock_step
        slots = len(group.slots.slots) if group.slots else 0
        leases, row_leases = ([version.lease], [])
        if isinstance(version, MixedVersion):
            leases, row_leases = version.named, version.row_leases
        return Begun(session.id, self.epoch, begin.sequence, group.id, leases, row_leases, slots)

    def _limit_or_grant(self, session: Session, group: EpisodeGroup, begin: Begin) -> None:
        """On the lane a packet bounds what outputs can travel inline; a client that can use slots gets some."""
        if isinstance(session.peer, bytes):
            return
        group.fits_packet = sum(group.version.output_bytes) * group.rows <= session.peer.tensor_bytes_max
        if begin.slots:
            session.control_region = group.slots = session.policy.slots.grant(group.version, group.rows)
            self._note_slot_bytes()

    def _note_slot_bytes(self) -> None:
        granted = sum(policy.slots.bytes_granted for policy in self.policies.values())
        self._page.cells[page_cells.SLOT_BYTES] = granted

    # Leases

    def _lease_anew(self, group: EpisodeGroup) -> None:
        """Rows that start new episodes lease what their session would get now."""
        policy = group.session.policy
        if not policy.router.is_settled(group.version):
            state_bytes = group.state_bytes
            lease_anew(group, partial(policy.router.lease, group.session), self.epoch)
            # A group of mixed versions may take the sum past its bound for a while: no act is refused for that.
            policy.state_bytes += group.state_bytes - state_bytes

    def end_leases(self, version: Version) -> int:
        """Ends the leases of a version, except those of groups with an act that waits or runs; returns how many ended."""
        left = version.without_engine()
        ended = 0
        for group in self._groups.values():
            state_bytes = group.state_bytes
            if group.queue is None and group.running is None and end_lease(group, version, left):
                ended += 1
                group.session.policy.state_bytes -= state_bytes - group.state_bytes
        return ended

    # Leaving

    def _forget_hello(self, session: Session) -> None:
        if self._hellos.get(session.hello_key) is session:
            del self._hellos[session.hello_key]

    def _forget(self, group: EpisodeGroup) -> None:
        group.session.groups.remove(group.id)
        group.session.acts_ended += group.acts
        del self._groups[group.id]
        group.head_middle = b""
        give_back_leases(group)
        self._revoke_slots(group)
        policy = group.session.policy
        policy.episodes_live -= 1
        policy.state_bytes -= group.state_bytes
        if group.states:
            self._ended.append(group)
            self._drop_states()
        policy.share.lock_step_live -= group.session.lock_step
        policy.share.forget_answered(group)
        # An act that still waits is in the scheduler: it runs, and is answered.

    def _drop_states(self) -> None:
        """Drops the recurrent states of ended groups. An act of such a group may still wait: it runs with the state that it has."""
        for group in self._ended:
            if not group.waiting:
                group.drop_states()
        self._ended = [group for group in self._ended if group.waiting]

    def _revoke_slots(self, group: EpisodeGroup) -> None:
        if group.slots is not None:
            group.session.policy.slots.release(group.slots, group.version, group.rows)
            group.slots = None
            self._note_slot_bytes()

    def close(self, session: Session) -> None:
        """Ends a session, its episodes and its leases."""
        for group in self.groups_of(session):
            self._forget(group)
        if self._sessions.pop(session.id, None) is not None:
            session.policy.sessions_live -= 1
        self._steps.pop(session.step_key, None)
        self._forget_hello(session)

    def drop_peer(self, peer: Peer) -> int:
        """Ends every session last heard at `peer`, which is gone or does not read; returns how many ended."""
        dropped = [session for session in self._sessions.values() if session.peer == peer]
        for session in dropped:
            self.close(session)
        self._page.cells[page_cells.SESSIONS_DROPPED] += len(dropped)
        return len(dropped)

    def sweep(self, now_ns: int, replies: list[Reply]) -> None:
        """Pings silent sessions, and ends those that were silent for too long. Call it about every heartbeat."""
        self._drop_states()
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
        """Ends every session with a goodbye. Acts that still wait for an engine are refused first: each gets its reply."""
        for group in [group for group in self._groups.values() if group.waiting]:
            self.answer_error(group, rejections.draining(), replies)
        for session in list(self._sessions.values()):
            replies.append([session.peer, encode(Goodbye(session.id, self.epoch, 0, reason))])
            self.close(session)


def _check_state_bytes(policy: ServedPolicy, state_bytes: int) -> None:
    if policy.state_bytes + state_bytes > policy.limits.states_mb_max * _BYTES_PER_MB:
        raise rejections.no_state_memory(policy.limits.states_mb_max, state_bytes)


def _opening_of(head: bytes) -> Message:
    """The session, epoch and sequence of a head that cannot be decoded, so that the reply reaches the right request."""
    try:
        return _opening_decoder.decode(head[1:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Message(0, 0, 0)


def _slot_of(group: EpisodeGroup, act: Act) -> Slot:
    """The slot that an act names, in the generation that it names; raises `RemoteProtocolError`."""
    slot = group.slots.slot(act.slot) if group.slots is not None else None
    if slot is None:
        raise rejections.slot_unknown(group, act)
    generation = slot.generation()
    if generation != act.generation or not generation:
        raise rejections.slot_stale(generation, act.generation)
    return slot
