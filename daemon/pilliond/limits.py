"""Every bound of the daemon, in one place.

Memory at these limits, one policy of 28 KB rows (a stack of four 84×84 frames):
  batch buffer       rows_max × row        256 × 28 KB =   7 MB
  waiting rows       queue_rows_max × row  1024 × 28 KB = 29 MB
  sessions           sessions_max × ~2 KB  4096 × 2 KB =   8 MB
  last replies       one per handle, the size of its outputs
  states             states_mb_max, all handles of a recurrent policy together; once for each version where rows of a handle differ
  slots              slots_mb_max, all handles together; a page of it is memory only once it was written to
  old versions       old_mb_max; while one is loaded, the new version and the old ones at once
"""

from __future__ import annotations

from typing import Final

import msgspec

from pillion_protocol import HEAD_BYTES_MAX, Limits

HEARTBEAT_MS: Final = 5_000
"""A session silent for this long is sent a ping, which is how a peer that left is noticed."""

SILENT_MS_MAX: Final = 600_000
"""A session silent for this long is ended, though its peer may live: its leases must not be held for ever."""

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

LOAD_MARGIN_BYTES: Final = 96 * 1024 * 1024
"""Address space that must be free beside a version's own before it is loaded: a thread's stack and its heap. The C library
ends the process where a thread finds no memory for its own data."""

LOAD_COPIES: Final = 3
"""How often a model's bytes are there while it is loaded: as they came, as they are read, as they are laid out to be run."""

ARMS_MAX: Final = 3
"""Versions that share in the new episodes beside the stable one."""

OLD_VERSIONS_MAX: Final = 8
"""Versions that may stay loaded beside the current one; each has cells of its own in the metrics page."""

LINGER_MS: Final = 1_000
"""How long the last replies and goodbyes may take to leave."""

RESTART_DELAY_S_MAX: Final = 5.0
"""The longest pause before a serving process that died is started again."""

RESTARTS_WITHOUT_READY_MAX: Final = 5
"""Starts in a row that never came to READY before the daemon gives up."""


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
            raise ValueError(f"rows_max: expected 1 to 4096, came {self.rows_max}")
        if self.queue_rows_max < self.rows_max:
            raise ValueError(
                f"queue_rows_max: expected at least rows_max ({self.rows_max}), came {self.queue_rows_max}"
            )
        if self.sessions_max < 1 or self.episodes_max < 1:
            raise ValueError("sessions_max and episodes_max: expected at least 1")
        if self.states_mb_max < 0:
            raise ValueError(f"states_mb_max: expected 0 or more, came {self.states_mb_max}")
        if self.slots_mb_max < 0:
            raise ValueError(f"slots_mb_max: expected 0 or more, came {self.slots_mb_max}")
        if not 0 <= self.batch_wait_us_max <= 1_000_000:
            raise ValueError(f"batch_wait_us_max: expected 0 to 1000000, came {self.batch_wait_us_max}")

    def for_wire(self) -> Limits:
        """The part of them that a session is told."""
        return Limits(rows_max=self.rows_max, episodes_max=self.episodes_max, head_bytes_max=HEAD_BYTES_MAX)


assert HEARTBEAT_MS * 2 < SILENT_MS_MAX
assert TICK_MS < HEARTBEAT_MS
