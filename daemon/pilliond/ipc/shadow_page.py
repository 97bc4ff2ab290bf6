"""The shadow's page: the memory that the serving, the shadow and the control process share. Counters, then a ring of rows.

The serving process writes batches into the ring and the cells up to `READ`; the shadow process writes the cells from there on. One
writer for each cell, no lock; the control process only reads. What is between `READ` and `WRITTEN` waits in the ring.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from typing import Final

from pilliond.ipc.metrics_page import LATENCY_BUCKETS_NS

HEADER_BYTES: Final = 4_096

WRITTEN: Final = 0
"""Bytes that were ever written into the ring. Moved when a batch is whole."""
NO_ROOM_ROWS: Final = 1
"""Rows that were not copied: the ring had no room for them."""

READ: Final = 16
"""Bytes that were ever read from it."""
LOOKED_AT_NS: Final = 17
"""When the shadow process last looked, on CLOCK_MONOTONIC."""
ROWS: Final = 18
"""Rows that were compared."""
AGREED_ROWS: Final = 19
MID_EPISODE_ROWS: Final = 20
"""Rows of a recurrent shadow that were not compared: it has not seen their episode from its begin."""
FAILED_ROWS: Final = 21
"""Rows that its engine failed to run."""
NON_FINITE_ROWS: Final = 22
"""Compared rows in which the shadow gave a NaN or an infinity, and the live version did not."""
BATCHES: Final = 23
CPU_NS: Final = 24
"""Processor time of all its runs."""

INFERENCE: Final = 32
"""A cell for each of `LATENCY_BUCKETS_NS`, one for what is above, one for the sum."""
INFERENCE_SUM_NS: Final = INFERENCE + len(LATENCY_BUCKETS_NS) + 1

DISTANCE_BUCKETS: Final = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
"""Upper edges, inclusive, of the distance between two actions; the first is for those that are the same."""
DISTANCE: Final = 64
"""A cell for each of them, and one for what is above: a NaN too."""
DISTANCE_SUM: Final = DISTANCE + len(DISTANCE_BUCKETS) + 1
"""A double: that of all finite distances."""

OUTPUTS: Final = 128
"""Three cells for each output, in the order of the spec: rows that agreed, the sum and the greatest of the distances (doubles)."""
OUTPUTS_MAX: Final = 64

BATCH_HEAD: Final = struct.Struct("<QQII")
"""Bytes of the whole batch in the ring (0: the next one begins at its start), epoch, rows, acts."""
ACT_HEAD: Final = struct.Struct("<QQII")
"""Handle, acts of it that were run before, rows, `ANSWERED` and `DRAWN`. One for each act; then for each row its seed, the acts of
its handle before its episode began (both uint64), and 1 where it leases the live version, else 0; then observations and
outputs, each of all rows."""
ROW_BYTES: Final = 8 + 8 + 1
ANSWERED: Final = 1
"""Its outputs were sent."""
DRAWN: Final = 2
"""Its actions were drawn."""

ALIGNMENT: Final = 8
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

assert INFERENCE_SUM_NS < DISTANCE
assert DISTANCE_SUM < OUTPUTS
assert (OUTPUTS + 3 * OUTPUTS_MAX) * 8 <= HEADER_BYTES


def make_shadow_page(ring_bytes: int) -> int:
    """The sealed descriptor of a new page with a ring of that size, all zero; the caller owns it. Raises `OSError`."""
    assert ring_bytes % ALIGNMENT == 0
    descriptor = os.memfd_create("pillion-shadow", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, HEADER_BYTES + ring_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class ShadowPage:
    """A view of the page. Owns its mapping, not the descriptor. `numbers` are the cells as doubles."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, 0)
        whole = memoryview(self._map)
        self.cells = whole[:HEADER_BYTES].cast("Q")
        self.numbers = whole[:HEADER_BYTES].cast("d")
        self.ring = whole[HEADER_BYTES:]
        self.ring_bytes = len(self.ring)

    def counts(self) -> ShadowCounts:
        """All cells as they are now."""
        return ShadowCounts(bytes(self.cells))

    def close(self) -> None:
        """Gives the mapping back; nobody may hold a view of it any more."""
        self.cells.release()
        self.numbers.release()
        self.ring.release()
        self._map.close()


class ShadowCounts:
    """The cells of one moment."""

    def __init__(self, data: bytes) -> None:
        self.cells = memoryview(data).cast("Q")
        self.numbers = memoryview(data).cast("d")

    @property
    def waiting_bytes(self) -> int:
        """What waits in the ring."""
        return max(0, self.cells[WRITTEN] - self.cells[READ])

    def skipped_rows(self) -> dict[str, int]:
        """Rows that were not compared, by why."""
        cells = self.cells
        return {
            "no_room": cells[NO_ROOM_ROWS],
            "mid_episode": cells[MID_EPISODE_ROWS],
            "failed": cells[FAILED_ROWS],
        }
