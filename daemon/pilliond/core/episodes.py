"""Episodes: what the daemon remembers between two acts of one handle. Hot path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from pillion_protocol.lane import Frame
from pillion_protocol.steps import ActionStep
from pilliond.engine.batch_buffers import BatchView
from pilliond.engine.sampling import next_seeds
from pilliond.limits import NEVER_NS

if TYPE_CHECKING:
    from pilliond.core.action_steps import ExplicitActionStep
    from pilliond.core.session import Session
    from pilliond.transport.interface import Reply
    from pilliond.transport.slots import Slot, SlotRegion
    from pilliond.versions.loaded_version import Version

_NOWHERE: Final = BatchView(0, [], [])


class EpisodeGroup:
    """One handle: a fixed number of rows, an episode in each, and at most one act that waits.

    Rule: an act is *waiting* from its admission until it is answered; while it waits, a newer one takes
    its batch_view and the older is answered `superseded`. Start marks of an act that was never run are kept for
    the next, so that none is lost.
    """

    __slots__ = (
        "acts",
        "batch_view",
        "budget_ns",
        "deadline_ns",
        "deterministic",
        "fits_packet",
        "frame_bytes",
        "frames_bytes",
        "generation",
        "head_middle",
        "id",
        "is_queued",
        "last_outputs",
        "last_reply",
        "last_sequence",
        "queued_ns",
        "received_ns",
        "row_versions",
        "rows",
        "seeds",
        "sequence",
        "session",
        "slot",
        "slot_number",
        "slots",
        "started_at",
        "starting",
        "state_owners",
        "states",
        "step",
        "tensors",
        "version",
        "waiting",
    )

    def __init__(self, group_id: int, session: Session, epoch: int, version: Version, seeds: Sequence[int]) -> None:
        self.id = group_id
        self.session = session
        self.version = version
        self.row_versions: list[Version] = []
        """The version of each row, where they differ; see `row_leases`."""
        self.rows = len(seeds)
        self.seeds: NDArray[np.uint64] = np.array(seeds, dtype=np.uint64)
        self.acts = 0
        self.started_at: NDArray[np.uint64] = np.zeros(self.rows, dtype=np.uint64)
        self.starting: dict[int, int | None] = {}
        self.states = version.first_states(self.rows)
        """What the policy carries from the last act that was run to the next: an array for each, shape [rows, …]."""
        self.state_owners = version.state_owners
        """The version that each of them belongs to; of its array only the rows that lease it count."""
        self.waiting = False
        self.is_queued = False
        """Whether the scheduler holds it; the scheduler's own."""
        self.sequence = 0
        self.tensors: Sequence[Frame] = ()
        self.frames_bytes = [size * self.rows for size in version.observation_bytes]
        self.frame_bytes = self.frames_bytes[0] if len(self.frames_bytes) == 1 else -1
        """The bytes of the only frame; -1 where there are several."""
        self.head_middle = b""
        """What the head of the next act has between its numbers, if it is like the one before."""
        self.budget_ns = 0
        self.slots: SlotRegion | None = None
        self.fits_packet = True
        """Whether its outputs can travel without a slot."""
        self.batch_view: BatchView = _NOWHERE
        """Where the rows of the act that runs lie in the batch."""
        self.slot: Slot | None = None
        """Where the observations of the act that waits lie, if it came by a slot."""
        self.slot_number = 0
        self.generation = 0
        self.received_ns = 0
        self.queued_ns = 0
        self.deadline_ns = NEVER_NS
        self.deterministic = True
        self.last_sequence = 0
        self.last_reply: Reply | None = None
        self.last_outputs: Sequence[Frame] = ()
        self.step: ActionStep | ExplicitActionStep = ActionStep(
            session.id, epoch, group_id, self.rows, version.digest, [size * self.rows for size in version.output_bytes]
        )

    def keep(self) -> None:
        """Copies the observations of the act that waits, so that it can wait while others are received."""
        if self.slot is None:
            tensors = self.tensors
            self.tensors = [bytes(tensors[0])] if len(tensors) == 1 else list(map(bytes, tensors))

    def settle(self) -> None:
        """Notes that the act that waits is answered, with an error: it may be sent again."""
        self.waiting = False
        self.tensors = ()
        self.slot = None

    def answered(self, reply: Reply, outputs: Sequence[Frame]) -> None:
        """Notes that the act that waits is answered; the reply is kept, for the case that it is asked for again."""
        self.waiting = False
        self.tensors = ()
        self.slot = None
        self.last_sequence = self.sequence
        self.last_reply = reply
        self.last_outputs = outputs

    def mark_starts(self, mask: bytes, seeds: Sequence[int]) -> None:
        """Notes which rows begin a new episode with the act that waits, and with which seeds."""
        started = [row for row, flag in enumerate(mask) if flag]
        for index, row in enumerate(started):
            self.starting[row] = seeds[index] if seeds else self.starting.get(row)

    def seed_of_start(self, row: int) -> int:
        """The seed that `apply_starts` will give to a row that starts."""
        seed = self.starting[row]
        if seed is not None:
            return seed
        present = self.seeds[row : row + 1]
        return int((next_seeds(present) if self.acts != int(self.started_at[row]) else present)[0])

    def apply_starts(self) -> None:
        """Begins the noted episodes. A row that has not acted since its last start keeps its episode."""
        for row, seed in self.starting.items():
            if seed is not None:
                self.seeds[row] = seed
            elif self.acts != int(self.started_at[row]):
                self.seeds[row] = next_seeds(self.seeds[row : row + 1])[0]
            self.started_at[row] = self.acts
        self.starting.clear()

    def put_states(self) -> None:
        """Writes what it carries into its rows of the engine's buffers; zeros where an episode begins."""
        begin = self.batch_view.first
        for row in self.starting:
            for kept in self.states:
                kept[row] = 0
        for kept, (before, _) in zip(self.states, self.version.states, strict=True):
            before[begin : begin + self.rows] = kept

    def take_states(self) -> None:
        """Keeps what its act made of them: it was run, and is answered with what came of it."""
        begin = self.batch_view.first
        for kept, (_, after) in zip(self.states, self.version.states, strict=True):
            kept[:] = after[begin : begin + self.rows]

    @property
    def state_bytes(self) -> int:
        """What its states take."""
        return sum(kept.nbytes for kept in self.states)

    def forget_states(self, version: Version) -> None:
        """Gives up what rows carried from acts of `version`."""
        owned = list(zip(self.states, self.state_owners, strict=True))
        self.states = [kept for kept, owner in owned if owner is not version]
        self.state_owners = [owner for _, owner in owned if owner is not version]

    def steps(self) -> NDArray[np.uint64]:
        """For each row, how many acts of its episode were run before the one that waits."""
        return np.uint64(self.acts) - self.started_at
