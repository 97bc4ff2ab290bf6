"""A batch that runs on an engine outside the loop: what must be known when it is done, or when its worker is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pillion_protocol.action_steps import NO_DEVICE_TIMES, DeviceTimes
from pilliond.core.episodes import EpisodeGroup
from pilliond.engine.batch_memory import BatchMemory

if TYPE_CHECKING:
    from pillion_protocol import BatchClose
    from pilliond.versions.loaded_version import Version


class Running:
    """A batch in flight. `memory` holds its rows; the groups may have newer acts by the time it is done."""

    __slots__ = (
        "close",
        "device_times",
        "dispatched_ns",
        "groups",
        "is_counted",
        "lost",
        "memory",
        "message",
        "rows",
        "runs_left",
        "sequences",
        "version",
    )

    def __init__(
        self,
        version: Version,
        memory: BatchMemory,
        groups: list[EpisodeGroup],
        rows: int,
        close: BatchClose,
        dispatched_ns: int,
    ) -> None:
        self.version = version
        self.memory = memory
        self.groups = groups
        self.sequences = [group.sequence for group in groups]
        self.rows = rows
        self.close = close
        self.dispatched_ns = dispatched_ns
        self.runs_left = 1
        """Engines that have not answered yet: several for a mixed version."""
        self.message = ""
        """Why a run failed, if one did."""
        self.is_counted = False
        """Whether the scheduler knows that it runs."""
        self.lost = False
        """Whether a worker ended before it answered."""
        self.device_times = NO_DEVICE_TIMES
        """How long a device took for it. If the engines of a mixed version took different ones: of the one that took longest."""

    def took_device(self, times: DeviceTimes) -> None:
        """Notes how long the device of one of its engines took."""
        if sum(times) > sum(self.device_times):
            self.device_times = times

    def take_awaited(self) -> list[EpisodeGroup]:
        """Ends the run for its groups; returns those whose act still waits for it.

        Not those whose act was replaced, even if it was sent again since: that one waits, or runs in another memory.
        """
        awaited = []
        for group, sequence in zip(self.groups, self.sequences, strict=True):
            if group.running is self:
                group.running = None
                if group.waiting and group.queue is None and group.sequence == sequence:
                    awaited.append(group)
        return awaited
