"""The tap: copies the rows that the live version answered into the shadow's ring, where there is room. Hot path.

A batch is copied when its replies are sent, so that nobody's answer is later for it, and never waits: one that finds no room is
counted. To copy a batch of one row costs some 2 µs, and what its bytes cost to copy.
"""

from __future__ import annotations

from typing import Final

from pilliond.core.episodes import EpisodeGroup
from pilliond.ipc import shadow_page as cell
from pilliond.ipc.shadow_page import ACT_HEAD, ALIGNMENT, ANSWERED, BATCH_HEAD, DRAWN, ROW_BYTES, ShadowPage
from pilliond.transport.slots import Slot
from pilliond.versions.loaded_version import Version
from pilliond.versions.mixed_version import MixedVersion

_BATCH_BYTES: Final = BATCH_HEAD.size
_ACT_BYTES: Final = ACT_HEAD.size
_pack_batch: Final = BATCH_HEAD.pack
_pack_act: Final = ACT_HEAD.pack
_END: Final = bytes(ALIGNMENT)
_FEW_BYTES: Final = 4_096
"""Up to here they are joined first: one copy more, and one write instead of many."""
_ALL_BYTES: Final = b"\1" * 4_096
"""More rows than an act may have."""


class ShadowTap:
    """Writes into the ring of the page behind `descriptor`, which it maps. `epoch` is that of the serving process."""

    def __init__(self, descriptor: int, live: Version, epoch: int) -> None:
        self.live = live
        self._page = ShadowPage(descriptor)
        self._cells = self._page.cells
        self._ring = self._page.ring
        self._epoch = epoch
        self._written = self._cells[cell.WRITTEN]
        self._read = self._cells[cell.READ]
        """As it was when there seemed to be no room: the other side writes the cell, so to look at it is slow."""
        self._owed: tuple[Version, list[EpisodeGroup]] | None = None
        self._row_bytes = ROW_BYTES + sum(live.observation_bytes) + sum(live.output_bytes)

    def close(self) -> None:
        """Gives the mapping back."""
        self._page.close()

    def take(self, version: Version, groups: list[EpisodeGroup], slot: Slot | None) -> None:
        """Takes a batch that was run, whose replies are made; `slot`: where its rows came from.

        To be copied it waits for `pay`, before the next one is run; but what lies in a client's memory is copied now.
        """
        if slot is not None and slot.run is not None:
            self._copy(version, groups, slot)
        else:
            self._owed = version, groups

    def pay(self) -> None:
        """Copies the batch that was taken last, if it was not copied yet."""
        if self._owed is not None:
            version, groups = self._owed
            self._owed = None
            self._copy(version, groups, None)

    def _copy(self, version: Version, groups: list[EpisodeGroup], slot: Slot | None) -> None:
        """Copies a batch, if the live version ran rows of it. `slot`: where the engine read them; None: its own buffers."""
        if version is not self.live and not _has_part(version, self.live):
            return
        rows = 0
        for group in groups:
            rows += group.rows
        size = _BATCH_BYTES + _ACT_BYTES * len(groups) + self._row_bytes * rows
        size += -size % ALIGNMENT
        at = self._room_for(size)
        if at < 0:
            self._cells[cell.NO_ROOM_ROWS] += rows
            return
        view = version.batch_views.get((0, rows)) or version.batch_views.make(0, rows)
        inputs = view.inputs if slot is None else slot.observations
        parts = [*self._about(version, groups, rows, size), *inputs, *view.outputs]
        if size <= _FEW_BYTES:
            self._ring[at : at + size] = b"".join(parts).ljust(size)
        else:
            self._write(at, parts)
        if slot is not None and slot.generation() != groups[0].generation:
            # Its client wrote into it meanwhile: these are not the rows that were answered.
            return
        self._written += size
        self._cells[cell.WRITTEN] = self._written

    def _room_for(self, size: int) -> int:
        """Where so many bytes may be written; -1 where there is no room."""
        ring_bytes = self._page.ring_bytes
        at = self._written % ring_bytes
        left = ring_bytes - at
        needed = size if size <= left else left + size
        if needed > ring_bytes - (self._written - self._read):
            self._read = self._cells[cell.READ]
            if needed > ring_bytes - (self._written - self._read):
                return -1
        if size <= left:
            return at
        self._ring[at : at + ALIGNMENT] = _END
        self._written += left
        self._cells[cell.WRITTEN] = self._written
        return 0

    def _write(self, at: int, parts: list[bytes | memoryview]) -> None:
        ring = self._ring
        for part in parts:
            end = at + len(part)
            ring[at:end] = part
            at = end

    def _about(self, version: Version, groups: list[EpisodeGroup], rows: int, size: int) -> list[bytes | memoryview]:
        """What is to be known of a batch beside its tensors."""
        parts: list[bytes | memoryview] = [_pack_batch(size, self._epoch, rows, len(groups))]
        for group in groups:
            # An act that was answered with an error did not count.
            is_answered = group.last_sequence == group.sequence
            marks = (ANSWERED if is_answered else 0) | (0 if group.deterministic else DRAWN)
            parts.append(_pack_act(group.id, group.acts - is_answered, group.rows, marks))
        parts += [group.seeds.tobytes() for group in groups]
        parts += [group.started_at.tobytes() for group in groups]
        parts.append(_ALL_BYTES[:rows] if version is self.live else _leased(version, self.live))
        return parts


def _has_part(version: Version, live: Version) -> bool:
    return isinstance(version, MixedVersion) and any(part.version is live for part in version.parts)


def _leased(version: Version, live: Version) -> bytes:
    """1 for each row that leases `live`."""
    assert isinstance(version, MixedVersion)
    return bytes(version.parts[part].version is live for part in version.row_leases)
