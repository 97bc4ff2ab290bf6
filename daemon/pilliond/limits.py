"""Every bound of the daemon, in one place.

Memory at these limits, one policy of 28 KB rows (a stack of four 84×84 frames):
  batch buffer       rows_max × row        256 × 28 KB =   7 MB
  waiting rows       queue_rows_max × row  1024 × 28 KB = 29 MB
  sessions           sessions_max × ~2 KB  4096 × 2 KB =   8 MB
  last replies       one per handle, the size of its outputs
  states             states_mb_max, all handles of a recurrent policy together; once for each version where rows of a handle differ
  slots              slots_mb_max, all handles together; a page of it is memory only once it was written to
  KServe requests    KSERVE_REQUESTS_MAX × KSERVE_BODY_BYTES_MAX, in the control process   32 × 16 MB = 512 MB
  shadow             shadow.ring_mb, shared by three processes, while there is one; its process: staging.memory_mb_max at most
  old versions       old_mb_max; while one is loaded, the new version and the old ones at once
"""

from __future__ import annotations

from typing import Final

import msgspec

from pillion_protocol import HEAD_BYTES_MAX, Limits

NEVER_NS: Final = 2**63 - 1
"""A moment that never comes: the deadline of an act without a budget."""

HEARTBEAT_MS: Final = 5_000
"""A session silent for this long is sent a ping, which is how a peer that left is noticed."""

SILENT_MS_MAX: Final = 600_000
"""A session silent for this long is ended, though its peer may live: its leases must not be held for ever."""

SERVING_SLICE_US: Final = 100
"""How long a turn of the serving process is on a CPU that it shares, the shortest that the kernel gives. Whoever has longer
ones is interrupted when a message comes."""

CONTROL_NICENESS: Final = 10
"""How much nicer the control process is than the serving process: a tenth of its share where both want a CPU."""

TICK_MS: Final = 100
"""How often the serving loop looks at its own lag."""

TENSOR_FRAMES_MAX: Final = 64
"""Tensor frames kept of one message; more are read and thrown away, so that the refusal can be sent."""

MESSAGE_BYTES_HARD_MAX: Final = 64 * 1024 * 1024
"""A frame beyond this is not even read: libzmq closes the connection. Below it a typed error comes back."""

SEND_QUEUE_MESSAGES_MAX: Final = 1_000
"""Replies owed to a peer that does not read. Beyond it that peer's sessions are dropped."""

RECEIVE_QUEUE_MESSAGES_MAX: Final = 1_000
"""Messages of one peer read ahead; beyond it libzmq stops reading from that peer alone."""

ROUNDS_PER_BATCH_MAX: Final = 64
"""Looks for more messages before what has come is run, though more would fit into the batch."""

MESSAGES_PER_LOOK_MAX: Final = 16
"""Messages that are taken of a peer at once where no other has any; else one of each."""

START_S_MAX: Final = 60.0
"""From the start of the serving process to its READY; slower is a failed start."""

DRAIN_S_MAX: Final = 10.0
"""From SIGTERM to the end of the serving process; then it is killed."""

LANE_BACKLOG_MAX: Final = 1_024
"""Connections of the lane that wait to be let in."""

LANE_SEND_BUFFER_BYTES: Final = 212_992
"""Answers owed to a peer of the lane that does not read, as the kernel counts them; beyond it the peer is dropped."""

LOAD_S_MAX: Final = 60.0
"""From the order to load a version to its being warm in the serving process."""

SHADOW_START_S_MAX: Final = 300.0
"""From the start of a shadow process to its version's being warm: it works at the lowest priority."""

LOAD_MARGIN_BYTES: Final = 96 * 1024 * 1024
"""Address space that must be free beside a version's own before it is loaded: a thread's stack and its heap. The C library
ends the process where a thread finds no memory for its own data."""

LOAD_COPIES: Final = 3
"""How often a model's bytes are there while it is loaded: as they came, as they are read, as they are laid out to be run."""

ARMS_MAX: Final = 3
"""Versions that share in the new episodes beside the stable one."""

SESSIONS_PER_PIECE_MAX: Final = 16
"""Sessions that the serving process tells of at once; the loop waits meanwhile."""

EPISODE_GROUPS_PER_PIECE_MAX: Final = 128
"""Handles that it looks at for that."""

EVALUATION_S_MAX: Final = 90 * 86_400
"""How long an evaluation lease may last; it can be renewed."""

OLD_VERSIONS_MAX: Final = 8
"""Versions that may stay loaded beside the current one; each has cells of its own in the metrics page."""

LINGER_MS: Final = 1_000
"""How long the last replies and goodbyes may take to leave."""

RESTART_DELAY_S_MAX: Final = 5.0
"""The longest pause before a serving process that died is started again."""

RESTARTS_WITH_ALL_MAX: Final = 2
"""Starts in a row that never came to READY before the next one is with the stable version alone."""

RESTARTS_WITHOUT_READY_MAX: Final = 5
"""Starts in a row that never came to READY before the daemon gives up."""

KSERVE_REQUESTS_MAX: Final = 32
"""Inference requests of the admin port at once; one more gets 503. Each may hold a body, and a handle."""

KSERVE_BODY_BYTES_MAX: Final = 16 * 1024 * 1024
"""An inference request, inflated. A policy with small observations takes less: what `rows_max` rows can need."""

KSERVE_HEADER_BYTES_MAX: Final = 64 * 1024
"""What an inference request says beside its numbers."""

KSERVE_NUMBER_BYTES_MAX: Final = 32
"""A number in JSON, with its comma and the blanks around it: 17 digits, a sign, a point, an exponent."""

KSERVE_BODY_S_MAX: Final = 10.0
"""How long a body may take to arrive: until then it takes one of `KSERVE_REQUESTS_MAX`."""

KSERVE_ANSWER_S_MAX: Final = 10.0
"""How long an inference may take, from the data path's begin to its answer."""

KSERVE_IDLE_GROUPS_MAX: Final = 8
"""Handles kept for the next request of as many rows, which then costs one round trip less; each leases a version."""

KSERVE_IDLE_GROUP_S: Final = 2.0
"""How long they are kept: a version that is not current any more must not stay for their sake."""

KSERVE_SEQUENCES_MAX: Final = 32
"""Sequences at once; one more ends the one that was longest unused. With the requests that begin one they make 64 handles."""

KSERVE_SEQUENCE_IDLE_S: Final = 60.0
"""A sequence unused for this long is ended: nobody can tell that its client is gone."""

KSERVE_SEEDS_MAX: Final = 10_000
"""Seeds that are tried until those of a request fall to the version that it names: some 10 ms of the control process."""


ADMIN_CONNECTIONS_MAX: Final = 128
"""Connections at one address of the admin port; for another one, the oldest that is not being answered goes."""

ADMIN_HEAD_S_MAX: Final = 5.0
"""How long a connection of the admin port may take for a request's head, the first or the next; then it is closed."""

ADMIN_BODY_S_MAX: Final = 5.0
"""From a request's head to the end of its body."""

ADMIN_LINGER_S_MAX: Final = 1.0
"""How long what was not wanted of a body is still read, so that the answer gets to who is sending it."""

ADMIN_HANDSHAKE_S_MAX: Final = 5.0
"""From a connection to the end of its TLS handshake."""

REFUSALS_BURST_MAX: Final = 10
"""Requests of one peer that are refused with their reason; then, `REFUSALS_PER_S`. Beyond it they are told when to try again."""

REFUSALS_PER_S: Final = 1.0

REFUSED_PEERS_MAX: Final = 1_024
"""Peers that were refused and are remembered; beyond it the one whose last refusal is longest ago is forgotten."""

TOKENS_MAX: Final = 256
"""Tokens in the file: each is compared at each request."""


ADMIN_REQUEST_BYTES_MAX: Final = 64 * 1024
"""A request's body; larger ones get 413. Inference requests have a bound of their own."""

ADMIN_DETAIL_CHARACTERS_MAX: Final = 200
"""How much of a request's own text a problem or the log repeats."""

ADMIN_PAGE_MAX: Final = 1_000
"""Sessions, or records of the audit log, in one answer."""

OPERATION_DIGITS_MAX: Final = 18
"""Digits of an operation's number in a path: it fits into 64 bits."""

ADMIN_ANSWER_S_MAX: Final = 10.0
"""How long an operator's command waits for the admin port."""

KSERVE_TENSORS_MAX: Final = 64
"""Inputs, or requested outputs, of one inference request."""


class ServingLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The bounds that an operator may set."""

    rows_max: int = 256
    """Rows in one batch, hence in one act and in one begin."""
    queue_rows_max: int = 1_024
    """Rows that wait for the engine; beyond it an act gets `overloaded`."""
    sessions_max: int = 4_096
    """Sessions at once; beyond it a hello gets `overloaded`."""
    episodes_max: int = 64
    """Handles of one session at once; beyond it a begin gets `overloaded`."""
    batch_wait_us_max: int = 0
    """How long a batch may wait for the rest of the lock-step sessions. 0: it goes when the engine is free."""
    states_mb_max: int = 1_024
    """What a recurrent policy carries for all handles together; beyond it a begin gets `overloaded`."""
    slots_mb_max: int = 1_024
    """Shared memory for the slots of all handles of the lane; beyond it observations travel inline. 0: always inline."""

    def __post_init__(self) -> None:
        if not 1 <= self.rows_max <= 4_096:
            raise ValueError(f"rows_max: expected 1 to 4096, got {self.rows_max}")
        if self.queue_rows_max < self.rows_max:
            raise ValueError(f"queue_rows_max: expected at least rows_max ({self.rows_max}), got {self.queue_rows_max}")
        if self.sessions_max < 1 or self.episodes_max < 1:
            raise ValueError("sessions_max and episodes_max: expected at least 1")
        if self.states_mb_max < 0:
            raise ValueError(f"states_mb_max: expected 0 or more, got {self.states_mb_max}")
        if self.slots_mb_max < 0:
            raise ValueError(f"slots_mb_max: expected 0 or more, got {self.slots_mb_max}")
        if not 0 <= self.batch_wait_us_max <= 1_000_000:
            raise ValueError(f"batch_wait_us_max: expected 0 to 1000000, got {self.batch_wait_us_max}")

    def for_wire(self) -> Limits:
        """The part of them that a session is told."""
        return Limits(rows_max=self.rows_max, episodes_max=self.episodes_max, head_bytes_max=HEAD_BYTES_MAX)


assert HEARTBEAT_MS * 2 < SILENT_MS_MAX
assert TICK_MS < HEARTBEAT_MS
