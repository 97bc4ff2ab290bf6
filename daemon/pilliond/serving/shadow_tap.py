"""The tap: copies the batches that the live version answered into the shadow's ring. Hot path.

A batch is copied after its replies are sent, so it delays no answer. The tap never waits: a batch that finds no room is
counted and dropped. Copying a batch of one row costs about 2 µs plus the copy of its bytes.
"""

from __future__ import annotations

from typing import Final

from pilliond.core.episodes import EpisodeGroup
from pilliond.core.served_policy import Tap
from pilliond.engine.batch_memory import BatchMemory
from pilliond.ipc import shadow_page as cell
from pilliond.ipc.shadow_page import ACT_HEAD, ALIGNMENT, ANSWERED, BATCH_HEAD, DRAWN, ROW_BYTES, ShadowPage
from pilliond.versions.loaded_version import Version
from pilliond.versions.mixed_version import MixedVersion

_BATCH_BYTES: Final = BATCH_HEAD.size
_ACT_BYTES: Final = ACT_HEAD.size
_pack_batch: Final = BATCH_HEAD.pack
_pack_act: Final = ACT_HEAD.pack
_END: Final = bytes(ALIGNMENT)
_FEW_BYTES: Final = 4_096
"""Up to this size the parts are joined first: one more copy, but one write instead of many."""
_ALL_BYTES: Final = b"\1" * 4_096
"""More bytes than an act has rows."""


class ShadowTap:
    """Maps the page behind `descriptor` and writes into its ring. `epoch` is that of the serving process."""

    def __init__(self, descriptor: int, live: Version, epoch: int) -> None:
        self.live = live
        self._page = ShadowPage(descriptor)
        self._cells = self._page.cells
        self._ring = self._page.ring
        self._epoch = epoch
        self._written = self._cells[cell.WRITTEN]
        self._read = self._cells[cell.READ]
        """The read position when the ring last looked full. The shadow writes that cell, so reading it is slow."""
        self._owed: tuple[Version, BatchMemory, list[EpisodeGroup]] | None = None
        self._row_bytes = ROW_BYTES + sum(live.observation_bytes) + sum(live.output_bytes)

    def close(self) -> None:
        """Unmaps the page."""
        self._page.close()

    def take(self, version: Version, memory: BatchMemory, groups: list[EpisodeGroup]) -> None:
        """Takes a batch that ran and whose replies are filled. It is copied in `pay`, before its memory is used again.

        Acts that were replaced while they ran leave gaps between the others; such a batch is counted and not copied.
        """
        last = groups[-1]
        rows = sum(group.rows for group in groups)
        if last.batch_view.first + last.rows != rows:
            self._cells[cell.NO_ROOM_ROWS] += rows
            return
        self._owed = version, memory, groups

    def pay(self) -> None:
        """Copies the last batch taken, if it is not copied yet."""
        if self._owed is not None:
            owed = self._owed
            self._owed = None
            self._copy(*owed)

    def _copy(self, version: Version, memory: BatchMemory, groups: list[EpisodeGroup]) -> None:
        """Copies a batch if the live version ran rows of it."""
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
        view = memory.views.get((0, rows)) or memory.views.make(0, rows)
        parts = [*self._description(version, groups, rows, size), *view.inputs, *view.outputs]
        if size <= _FEW_BYTES:
            self._ring[at : at + size] = b"".join(parts).ljust(size)
        else:
            self._write(at, parts)
        self._written += size
        self._cells[cell.WRITTEN] = self._written

    def _room_for(self, size: int) -> int:
        """Returns the offset for `size` bytes; -1 if there is no room."""
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

    def _description(
        self, version: Version, groups: list[EpisodeGroup], rows: int, size: int
    ) -> list[bytes | memoryview]:
        """The description of a batch that goes before its tensors."""
        parts: list[bytes | memoryview] = [_pack_batch(size, self._epoch, rows, len(groups))]
        for group in groups:
            # An act that was answered with an error does not advance the count.
            is_answered = group.last_sequence == group.sequence
            marks = (ANSWERED if is_answered else 0) | (0 if group.deterministic else DRAWN)
            parts.append(_pack_act(group.id, group.acts - is_answered, group.rows, marks))
        parts += [group.seeds.tobytes() for group in groups]
        parts += [group.started_at.tobytes() for group in groups]
        parts.append(_ALL_BYTES[:rows] if version is self.live else _leased(version, self.live))
        return parts


class ShadowTaps:
    """The taps of several policies, as one: each batch goes to the tap of its policy."""

    def __init__(self, taps: list[Tap]) -> None:
        self._taps = taps

    def take(self, version: Version, memory: BatchMemory, groups: list[EpisodeGroup]) -> None:
        """As `ShadowTap.take`."""
        tap = groups[0].session.policy.tap
        if tap is not None:
            tap.take(version, memory, groups)

    def pay(self) -> None:
        """As `ShadowTap.pay`."""
        for tap in self._taps:
            tap.pay()

    def close(self) -> None:
        """As `ShadowTap.close`."""
        for tap in self._taps:
            tap.close()


def _has_part(version: Version, live: Version) -> bool:
    return isinstance(version, MixedVersion) and any(part.version is live for part in version.parts)


def _leased(version: Version, live: Version) -> bytes:
    """1 for each row that leases `live`."""
    assert isinstance(version, MixedVersion)
    return bytes(version.parts[part].version is live for part in version.row_leases)
