"""What travels: every message of the wire, one Struct each.

A message is a head and then raw tensor frames. The head is one type byte and a msgpack array whose
elements are the fields below, in this order. Fields are only ever appended, always with a default, so
that an older peer ignores what it does not know and a newer one fills in what it was not sent.

Every message opens with the same three fields: `session` (0 before the welcome), `epoch` (which start of
the serving process the session belongs to) and `sequence` (the number of the request, repeated in its
reply; 0 in what the daemon says unasked).
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, Final

import msgspec

PROTOCOL_VERSION: Final = 1
"""The version of this wire. A hello that asks for another gets `unsupported_protocol`."""

Unsigned = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
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
    """Why a request got no action. On the wire a string: a client meets codes newer than itself."""

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


class BatchClose(IntEnum):
    """Why the batch that held a row was closed when it was."""

    ENGINE_FREE = 1
    FULL = 2
    ALL_SUBMITTED = 3
    WAIT_ELAPSED = 4
    DRAIN = 5


class Fallback(StrEnum):
    """What a session gets for an act whose budget was spent before it could be run."""

    ERROR = "error"
    """The error `deadline_exceeded`."""
    LAST = "last"
    """The outputs of the last act of the handle; the error, where there is none yet."""
    ZEROS = "zeros"
    SAFE = "safe"
    """The safe action of the policy's model card, in every row; zeros in the other outputs."""


class Message(msgspec.Struct, array_like=True, frozen=True, kw_only=False):
    """What every message opens with."""

    session: Unsigned
    epoch: Unsigned
    sequence: Unsigned


class Hello(Message, frozen=True):
    """Asks for a session. `session` and `epoch` are 0, `sequence` any number unlike the peer's other hellos.

    `policy` empty takes the daemon's default; `version_range` empty takes any release (else comparators
    joined by commas, `>=1.2,<2`); `spec_hash` empty takes any spec, else it must equal the welcome's.
    A `lock_step` session submits one act for each of its episodes and waits for the answers.
    """

    protocol_version: Unsigned = PROTOCOL_VERSION
    client_name: Name = ""
    policy: Name = ""
    version_range: Name = ""
    spec_hash: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    lock_step: bool = True
    fallback: Fallback = Fallback.ERROR


class Limits(msgspec.Struct, array_like=True, frozen=True):
    """What this daemon takes from one session; beyond it a typed error comes back."""

    rows_max: Unsigned
    """Rows in one act, and in one begin."""
    episodes_max: Unsigned
    """Handles (begins not yet ended) of one session."""
    head_bytes_max: Unsigned
    """Bytes in a head."""


class Welcome(Message, frozen=True):
    """The session, and what it is going to talk to.

    `spec` holds the msgpack bytes of a `pillion_protocol.specs.Spec`; `spec_hash` is their SHA-256.
    A session silent for longer than `heartbeat_ms` is sent a ping; one silent for `silent_ms_max` is ended.
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
    """How much the other observations of a batch change an answer: `exact` (nothing), `within 1e-6`, `worse`; "" is unknown."""


class Begin(Message, frozen=True):
    """Begins `len(seeds)` episodes under one handle, a row each. `slots`: the client can use slots (on the lane)."""

    seeds: list[Unsigned]
    slots: bool = False


class Lease(msgspec.Struct, array_like=True, frozen=True):
    """The version that answers an episode from its begin to its end."""

    version: Name
    digest: Digest


class Begun(Message, frozen=True):
    """The handle, and the leases of its rows.

    `row_leases` gives each row's index into `leases`; empty means that every row holds `leases[0]`. `slots` is how
    many slots the shared memory has that comes with this message (`pillion_protocol.slots`); 0: none comes.
    """

    episode: Unsigned
    leases: list[Lease]
    row_leases: list[Unsigned] = []
    slots: Unsigned = 0


class Act(Message, frozen=True):
    """Observations for every row of a handle; a tensor frame for each observation of the spec follows.

    `budget_us` is how long the caller still waits (0: no limit), counted from the moment the daemon reads
    the message. `episode_start` is empty, or one byte a row where any but 0 begins a new episode in that row; then
    `seeds` is empty (the daemon derives them) or holds a seed for each row that starts. Where the observations lie in a
    slot of the handle, `slot` is its number from 1 on, `generation` what its header says, and no tensor frame follows.
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


class Action(Message, frozen=True):
    """The answer to an act; a tensor frame for each output of the spec follows.

    `received_ns` is the daemon's CLOCK_MONOTONIC when it had read the act. The next three are offsets
    from it in ns: queued (admitted to the scheduler), dispatched (the batch went to the engine), ran (the
    engine was done). `fallback` names what stands in for an action that could not be run in time (a
    `Fallback`; then `batch_rows` and `batch_close` are 0); empty: the policy computed it. Where the outputs lie in
    the slot of the act, `slot` and `generation` repeat the act's, and no tensor frame follows. Where the rows of the handle
    hold different versions, `leases` names those that ran and `row_leases` gives each row's index into it; `digest` is that
    of the first row then. `row_leases` empty: `digest` ran every row; `leases` names it where it is new to the handle.
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


class End(Message, frozen=True):
    """Ends every episode of a handle and gives its leases back."""

    episode: Unsigned


class Ended(Message, frozen=True):
    """The handle is gone; `acts` were run under it."""

    episode: Unsigned
    acts: Unsigned


class Ping(Message, frozen=True):
    """Either side asks whether the other is there. Answered by a pong with the same three fields."""


class Pong(Message, frozen=True):
    """The answer to a ping."""


class Error(Message, frozen=True):
    """A request that got no action. `expected` and `actual` are for a person to read."""

    code: str
    message: str
    expected: str = ""
    actual: str = ""


class Goodbye(Message, frozen=True):
    """Ends the session. From a client it is answered by a goodbye; from the daemon it is the last word."""

    reason: str = ""
