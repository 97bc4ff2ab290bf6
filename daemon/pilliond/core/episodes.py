"""Episode groups: what the daemon remembers between two acts of one group. Hot path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from pillion_protocol.action_steps import ActionStep
from pillion_protocol.lane import Frame
from pilliond.engine.batch_memory import BatchMemory, BatchView
from pilliond.engine.sampling import next_seeds
from pilliond.limits import NEVER_NS

if TYPE_CHECKING:
    from pilliond.core.action_steps import ExplicitActionStep
    from pilliond.core.running import Running
    from pilliond.core.scheduler import EngineQueue
    from pilliond.core.session import Session
    from pilliond.transport.interface import Reply
    from pilliond.transport.slots import Slot, SlotRegion
    from pilliond.versions.loaded_version import Version

_NOWHERE: Final = BatchView(0, [], [])


class EpisodeGroup:
    """What one begin makes: a fixed number of rows, an episode in each, and at most one waiting act.

    Rule: an act is *waiting* from its admission until it is answered. A newer act replaces a waiting one, which is
    answered `superseded`, even if it runs already: what that run returns is dropped, and its state is not kept. Start
    marks of an act that was not answered are kept for the next act, so that none is lost.
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
        "last_outputs",
        "last_reply",
        "last_sequence",
        "lost_sequence",
        "queue",
        "queued_ns",
        "received_ns",
        "row_versions",
        "rows",
        "running",
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
        """The version of each row, if they differ; see `row_leases`."""
        self.rows = len(seeds)
        self.seeds: NDArray[np.uint64] = np.array(seeds, dtype=np.uint64)
        self.acts = 0
        self.started_at: NDArray[np.uint64] = np.zeros(self.rows, dtype=np.uint64)
        self.starting: dict[int, int | None] = {}
        self.states = version.first_states(self.rows)
        """The recurrent state after the last act that ran, or numbers of state rows: see `Version.first_states`."""
        self.state_owners = version.state_owners
        """The version that owns each state array; only the rows that lease that version count in it."""
        self.waiting = False
        self.queue: EngineQueue | None = None
        """The scheduler's queue that its act waits in. Only the scheduler writes it."""
        self.running: Running | None = None
        """The batch outside the loop that its act runs in, also after a newer act has replaced that one."""
        self.sequence = 0
        self.tensors: Sequence[Frame] = ()
        self.frames_bytes = [size * self.rows for size in version.observation_bytes]
        self.frame_bytes = self.frames_bytes[0] if len(self.frames_bytes) == 1 else -1
        """The bytes of the only tensor frame; -1 if there are several frames."""
        self.head_middle = b""
        """The bytes between the numbers of the last act's head. The next act repeats them if it is of the same kind."""
        self.budget_ns = 0
        self.slots: SlotRegion | None = None
        self.fits_packet = True
        """Whether its outputs fit into a packet, without a slot."""
        self.batch_view: BatchView = _NOWHERE
        """The rows of the running act in the batch buffers."""
        self.slot: Slot | None = None
        """The slot that holds the observations of the waiting act, if they are in one."""
        self.slot_number = 0
        self.generation = 0
        self.received_ns = 0
        self.queued_ns = 0
        self.deadline_ns = NEVER_NS
        self.deterministic = True
        self.last_sequence = 0
        self.lost_sequence = 0
        """The act that ran in a worker which ended meanwhile: it may be the reason. 0: none."""
        self.last_reply: Reply | None = None
        self.last_outputs: Sequence[Frame] = ()
        self.step: ActionStep | ExplicitActionStep = ActionStep(
            session.id, epoch, group_id, self.rows, version.digest, [size * self.rows for size in version.output_bytes]
        )

    def keep(self) -> None:
        """Copies the observations of the waiting act: the next `receive` overwrites the buffer, and it may run twice."""
        if self.slot is None:
            tensors = self.tensors
            self.tensors = [bytes(tensors[0])] if len(tensors) == 1 else list(map(bytes, tensors))

    def settle(self) -> None:
        """Notes that the waiting act was answered with an error: it may be sent again."""
        self.waiting = False
        self.tensors = ()
        self.slot = None

    def answered(self, reply: Reply, outputs: Sequence[Frame]) -> None:
        """Notes that the waiting act was answered, and keeps the reply for a repetition of the act."""
        self.waiting = False
        self.tensors = ()
        self.slot = None
        self.last_sequence = self.sequence
        self.last_reply = reply
        self.last_outputs = outputs

    def mark_starts(self, mask: bytes, seeds: Sequence[int]) -> None:
        """Notes which rows begin a new episode with the waiting act, and with which seeds."""
        started = [row for row, flag in enumerate(mask) if flag]
        for index, row in enumerate(started):
            self.starting[row] = seeds[index] if seeds else self.starting.get(row)

    def seed_of_start(self, row: int) -> int:
        """The seed that `apply_starts` will give to a starting row."""
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

    def put_states(self, memory: BatchMemory) -> None:
        """Writes its recurrent state into its rows of a batch; zeros where an episode begins."""
        begin = self.batch_view.first
        for row in self.starting:
            for kept, owner in zip(self.states, self.state_owners, strict=True):
                owner.drop_states(kept[row : row + 1])
        for kept, (before, _) in zip(self.states, memory.states, strict=True):
            before[begin : begin + self.rows] = kept

    def take_states(self, memory: BatchMemory) -> None:
        """Keeps the recurrent state that its act produced in its rows of a batch."""
        begin = self.batch_view.first
        end = begin + self.rows
        for kept, owner, (_, after) in zip(self.states, self.state_owners, memory.states, strict=True):
            owner.keep_states(kept, after[begin:end])

    def rows_without_state(self) -> list[int]:
        """The rows whose recurrent state was lost, and that do not begin with the waiting act."""
        lost = np.zeros(self.rows, bool)
        for kept, owner in zip(self.states, self.state_owners, strict=True):
            lost |= owner.are_lost(kept)
        return [row for row in np.flatnonzero(lost).tolist() if row not in self.starting]

    def drop_states(self) -> None:
        """Lets go of its recurrent state: it has ended, and no act of it waits."""
        for kept, owner in zip(self.states, self.state_owners, strict=True):
            owner.drop_states(kept)

    @property
    def state_bytes(self) -> int:
        """The memory that its recurrent state takes."""
        return self.rows * sum(owner.state_row_bytes for owner in set(self.state_owners))

    def forget_states(self, version: Version) -> None:
        """Drops the state that rows carried from acts of `version`."""
        owned = list(zip(self.states, self.state_owners, strict=True))
        self.states = [kept for kept, owner in owned if owner is not version]
        self.state_owners = [owner for _, owner in owned if owner is not version]

    def steps(self) -> NDArray[np.uint64]:
        """For each row, how many acts of its episode ran before the waiting one."""
        return np.uint64(self.acts) - self.started_at
