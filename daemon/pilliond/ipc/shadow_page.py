"""The shadow page: memory shared by the serving, the shadow and the control process. Counters, then a ring of batches.

The serving process writes batches into the ring, and the cells before `READ`. The shadow process writes the cells from
`READ` on. The control process only reads. Each cell has one writer, so no lock is needed. The bytes between `READ` and
`WRITTEN` wait in the ring.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from typing import Final

from pilliond.ipc.metrics_page import LATENCY_BUCKETS_NS
from pilliond.limits import SHADOW_OUTPUTS_MAX

HEADER_BYTES: Final = 4_096

WRITTEN: Final = 0
"""Bytes ever written into the ring. Advanced when a batch is complete."""
NO_ROOM_ROWS: Final = 1
"""Rows that were not copied because the ring had no room."""

READ: Final = 16
"""Bytes ever read from the ring."""
LOOKED_AT_NS: Final = 17
"""When the shadow process last read, on CLOCK_MONOTONIC."""
ROWS: Final = 18
"""Compared rows."""
AGREED_ROWS: Final = 19
MID_EPISODE_ROWS: Final = 20
"""Rows of a recurrent shadow that were not compared because it did not see their episode from its begin."""
FAILED_ROWS: Final = 21
"""Rows that the shadow's engine failed to run."""
NON_FINITE_ROWS: Final = 22
"""Compared rows in which the shadow returned a NaN or an infinity and the live version did not."""
BATCHES: Final = 23
CPU_NS: Final = 24
"""Processor time of all runs of the shadow."""

INFERENCE: Final = 32
"""A cell per bucket of `LATENCY_BUCKETS_NS`, one for larger values, one for the sum."""
INFERENCE_SUM_NS: Final = INFERENCE + len(LATENCY_BUCKETS_NS) + 1

DISTANCE_BUCKETS: Final = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
"""Upper bucket edges, inclusive, of the distance between two actions. The first counts equal actions."""
DISTANCE: Final = 64
"""A cell per bucket, and one for larger distances and NaN."""
DISTANCE_SUM: Final = DISTANCE + len(DISTANCE_BUCKETS) + 1
"""The sum of all finite distances, a double."""

OUTPUTS: Final = 128
"""Three cells per output, in the order of the spec: rows that agreed, then the sum and maximum of distances (doubles)."""
BATCH_HEAD: Final = struct.Struct("<QQII")
"""Bytes of the batch in the ring (0: the next batch is at the ring's start), epoch, rows, acts."""
ACT_HEAD: Final = struct.Struct("<QQII")
"""Episode group, its earlier acts, rows, and the marks `ANSWERED` and `DRAWN`. One per act. Then per row: its seed, the
acts of its group before its episode began (both uint64), and 1 if it leases the live version, else 0. Then observations
and outputs, each for all rows."""
ROW_BYTES: Final = 8 + 8 + 1
ANSWERED: Final = 1
"""The outputs of the act were sent."""
DRAWN: Final = 2
"""The actions of the act were sampled."""

ALIGNMENT: Final = 8
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

assert INFERENCE_SUM_NS < DISTANCE
assert DISTANCE_SUM < OUTPUTS
assert (OUTPUTS + 3 * SHADOW_OUTPUTS_MAX) * 8 <= HEADER_BYTES


def make_shadow_page(ring_bytes: int) -> int:
    """Returns the sealed descriptor of a new page with a ring of that size, all zero; the caller owns it. Raises `OSError`."""
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
    """A mapping of the page, which it owns; the descriptor is the caller's. `numbers` are the cells as doubles."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, 0)
        whole = memoryview(self._map)
        self.cells = whole[:HEADER_BYTES].cast("Q")
        self.numbers = whole[:HEADER_BYTES].cast("d")
        self.ring = whole[HEADER_BYTES:]
        self.ring_bytes = len(self.ring)

    def counts(self) -> ShadowCounts:
        """Copies all cells."""
        return ShadowCounts(bytes(self.cells))

    def close(self) -> None:
        """Unmaps the page. No view of it may be left."""
        self.cells.release()
        self.numbers.release()
        self.ring.release()
        self._map.close()


class ShadowCounts:
    """A copy of the cells at one moment."""

    def __init__(self, data: bytes) -> None:
        self.cells = memoryview(data).cast("Q")
        self.numbers = memoryview(data).cast("d")

    @property
    def waiting_bytes(self) -> int:
        """The bytes that wait in the ring."""
        return max(0, self.cells[WRITTEN] - self.cells[READ])

    def skipped_rows(self) -> dict[str, int]:
        """Rows that were not compared, by reason."""
        cells = self.cells
        return {
            "no_room": cells[NO_ROOM_ROWS],
            "mid_episode": cells[MID_EPISODE_ROWS],
            "failed": cells[FAILED_ROWS],
        }
