"""The messages of the protocol, one Struct each.

A message is a head, then raw tensor frames. The head is one type byte and a msgpack array with the fields below, in this
order. New fields are only appended, always with a default. So an older peer ignores fields that it does not know, and a
newer one fills in those that it did not get.

Every message begins with the same three fields: `session` (0 before the welcome), `epoch` (which start of the serving
process the session belongs to) and `sequence` (the number of the request, repeated in its reply; 0 in a message that the
daemon sends on its own).
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, Final

import msgspec

from pillion_protocol.limits import UNSIGNED_MAX

PROTOCOL_VERSION: Final = 1
"""The version of the protocol. A hello that asks for another gets `unsupported_protocol`."""

Unsigned = Annotated[int, msgspec.Meta(ge=0, le=UNSIGNED_MAX)]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Name = Annotated[str, msgspec.Meta(max_length=256)]


class MessageType(IntEnum):
    """The first byte of a head."""

    HELLO = 1
    WELCOME = 2
    BEGIN = 3
    BEGUN = 4
    ACT = 5
    ACTION = 6
    END = 7
    ENDED = 8
    PING = 9
    PONG = 10
    ERROR = 11
    GOODBYE = 12


class ErrorCode(StrEnum):
    """Why a request failed. On the wire it is a string, because a client may get codes that are newer than itself."""

    MALFORMED = "malformed"
    UNKNOWN_MESSAGE = "unknown_message"
    UNSUPPORTED_PROTOCOL = "unsupported_protocol"
    TOO_LARGE = "too_large"
    POLICY_NOT_FOUND = "policy_not_found"
    VERSION_NOT_FOUND = "version_not_found"
    SPEC_MISMATCH = "spec_mismatch"
    SESSION_UNKNOWN = "session_unknown"
    EPOCH_STALE = "epoch_stale"
    EPISODE_UNKNOWN = "episode_unknown"
    SEQUENCE_STALE = "sequence_stale"
    ROWS_MISMATCH = "rows_mismatch"
    SHAPE_MISMATCH = "shape_mismatch"
    NON_FINITE = "non_finite"
    OUT_OF_BOUNDS = "out_of_bounds"
    NOT_SAMPLABLE = "not_samplable"
    NO_SAFE_ACTION = "no_safe_action"
    SLOT_UNKNOWN = "slot_unknown"
    SLOT_STALE = "slot_stale"
    NOT_ALLOWED = "not_allowed"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    SUPERSEDED = "superseded"
    VERSION_GONE = "version_gone"
    OVERLOADED = "overloaded"
    DRAINING = "draining"
    INTERNAL = "internal"
    ENGINE_RESTARTING = "engine_restarting"
    """The process that runs this version was lost and is being started again. Send the act again."""
    ENGINE_OUT = "engine_out"
    """The engine of this version failed again and again, and runs no more."""
    BAD_TEXT = "bad_text"
    STATE_LOST = "state_lost"
    """The recurrent state of a row was lost with the process that held it. Begin the row's episode anew."""


class BatchClose(IntEnum):
    """Why the daemon closed a batch and ran it; or why it needed none."""

    ENGINE_FREE = 1
    FULL = 2
    ALL_SUBMITTED = 3
    WAIT_ELAPSED = 4
    DRAIN = 5
    CACHED = 6
    """No batch ran: the version had answered an act with the same observations before."""


class Fallback(StrEnum):
    """What a session gets for an act whose budget ran out before it could run."""

    ERROR = "error"
    """The error `deadline_exceeded`."""
    LAST = "last"
    """The outputs of the episode group's last action; the error if there is none yet."""
    ZEROS = "zeros"
    """Zero bytes in every output."""
    SAFE = "safe"
    """The safe action of the policy's model card in every row, zeros in the other outputs."""


class Message(msgspec.Struct, array_like=True, frozen=True, kw_only=False):
    """The three fields at the beginning of every message."""

    session: Unsigned
    epoch: Unsigned
    sequence: Unsigned


class Hello(Message, frozen=True):
    """Asks for a session. `session` and `epoch` are 0; `sequence` differs from that of the peer's other hellos.

    An empty `policy` takes the daemon's policy. An empty `version_range` takes any release; otherwise it is comparators
    joined by commas, such as `>=1.2,<2`. An empty `spec_hash` takes any spec; otherwise it must equal the welcome's.
    A `lock_step` session has at most one act in flight for each episode group and waits for its answer.
    """

    protocol_version: Unsigned = PROTOCOL_VERSION
    client_name: Name = ""
    policy: Name = ""
    version_range: Name = ""
    spec_hash: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    lock_step: bool = True
    fallback: Fallback = Fallback.ERROR


class Limits(msgspec.Struct, array_like=True, frozen=True):
    """What the daemon accepts from one session. A request beyond it gets a typed error."""

    rows_max: Unsigned
    """Rows in one act and in one begin."""
    episodes_max: Unsigned
    """Episode groups of one session: begins that have not ended yet."""
    head_bytes_max: Unsigned
    """Bytes in a head."""


class Welcome(Message, frozen=True):
    """The new session, and the policy that serves it.

    `spec` holds the msgpack bytes of a `pillion_protocol.specs.Spec`; `spec_hash` is their SHA-256. The daemon sends a
    ping to a session that is silent for `heartbeat_ms`, and ends one that is silent for `silent_ms_max`.
    """

    protocol_version: Unsigned
    server_name: Name
    policy: Name
    version: Name
    digest: Digest
    spec: bytes
    spec_hash: Digest
    limits: Limits
    heartbeat_ms: Unsigned
    silent_ms_max: Unsigned
    certificate: Name = ""
    """How much the other rows of a batch change an answer: `exact` (no bit), `within 1e-6` or `worse`; "" is unknown."""


class Begin(Message, frozen=True):
    """Begins an episode group with one row for each seed. `slots` is true if the client can use slots (on the lane)."""

    seeds: list[Unsigned]
    slots: bool = False


class Lease(msgspec.Struct, array_like=True, frozen=True):
    """The version that answers an episode from its begin to its end."""

    version: Name
    digest: Digest


class Begun(Message, frozen=True):
    """The new episode group, and the leases of its rows. `episode` is the number of the group.

    `row_leases` holds each row's index into `leases`; empty means that every row holds `leases[0]`. `slots` is the number
    of slots in the shared memory that is passed with this message (`pillion_protocol.slots`); 0 if none is.
    """

    episode: Unsigned
    leases: list[Lease]
    row_leases: list[Unsigned] = []
    slots: Unsigned = 0


class Act(Message, frozen=True):
    """Observations for every row of an episode group; a tensor frame for each observation of the spec follows.

    `budget_us` is how long the answer is useful, in µs; 0 is no limit. It counts from `sent_ns`: the CLOCK_MONOTONIC, in ns,
    of a sender on the daemon's host when it sent the act. If `sent_ns` is 0 (unknown), it counts from when the daemon reads
    the message.

    `episode_start` is empty, or has one byte for each row; any byte but 0 begins a new episode in that row. `seeds` is
    then empty (the daemon derives them), or has one seed for each row that begins. If the observations are in a slot,
    `slot` is its number from 1 on, `generation` is that in its header, and no tensor frame follows.
    """

    episode: Unsigned
    rows: Unsigned = 1
    budget_us: Unsigned = 0
    deterministic: bool = False
    episode_start: bytes = b""
    seeds: list[Unsigned] = []
    traceparent: Annotated[str, msgspec.Meta(max_length=64)] = ""
    slot: Unsigned = 0
    generation: Unsigned = 0
    sent_ns: Unsigned = 0


class Action(Message, frozen=True):
    """The answer to an act; a tensor frame for each output of the spec follows.

    `received_ns` is the daemon's CLOCK_MONOTONIC when it had read the act. The next three are offsets from it in ns:
    queued (admitted to the scheduler), dispatched (the batch went to the engine), ran (the engine finished).

    `fallback` is a `Fallback` if the act could not run in time, and `batch_rows` and `batch_close` are then 0. It is
    empty if the policy computed the action. If the outputs are in the slot of the act, `slot` and `generation` repeat the
    act's, and no tensor frame follows.

    If the rows hold different versions, `leases` lists those that ran, `row_leases` holds each row's index into it, and
    `digest` is that of the first row. If `row_leases` is empty, `digest` ran every row; `leases` then names its version in
    the first action after it changed, and is else empty.

    `late_us` is how long after the end of the act's budget the engine finished, in µs, rounded up; 0 is in time.

    `copy_in_ns`, `compute_ns` and `copy_out_ns` are how long a device took to copy the batch in, to compute it and to copy
    it out, in ns by its own clock; 0 if none took part, or if it does not say. Together they are at most `ran_ns` -
    `dispatched_ns`.
    """

    episode: Unsigned
    rows: Unsigned
    digest: Digest
    received_ns: Unsigned
    queued_ns: Unsigned
    dispatched_ns: Unsigned
    ran_ns: Unsigned
    batch_rows: Unsigned = 0
    batch_close: Unsigned = 0
    fallback: str = ""
    slot: Unsigned = 0
    generation: Unsigned = 0
    leases: list[Lease] = []
    row_leases: list[Unsigned] = []
    late_us: Unsigned = 0
    copy_in_ns: Unsigned = 0
    compute_ns: Unsigned = 0
    copy_out_ns: Unsigned = 0


class End(Message, frozen=True):
    """Ends every episode of a group and returns its leases."""

    episode: Unsigned


class Ended(Message, frozen=True):
    """The episode group has ended; the policy ran `acts` of its acts."""

    episode: Unsigned
    acts: Unsigned


class Ping(Message, frozen=True):
    """Asks whether the other side is there. It is answered by a pong with the same three fields."""


class Pong(Message, frozen=True):
    """The answer to a ping."""


class Error(Message, frozen=True):
    """A request failed. `expected` and `actual` are for a person to read."""

    code: str
    message: str
    expected: str = ""
    actual: str = ""


class Goodbye(Message, frozen=True):
    """Ends the session. A client's goodbye is answered by a goodbye; the daemon's is its last message."""

    reason: str = ""
