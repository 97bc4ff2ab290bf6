"""Whether a version fits into the memory of its devices: within its budget, and beside the versions that are there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pilliond.engine.worker_messages import DeviceMemory

_BYTES_PER_MB: Final = 1_000_000


def why_no_room(memory: Iterable[DeviceMemory], budget_mb: int, workers: int = 1) -> str:
    """Returns why a version that was tried does not fit; empty if it does, or if nothing was measured.

    `memory` is what one worker of it took, `budget_mb` is `engine.device_memory_mb`, of each device (0: no bound), `workers` is
    how many it will have there. The trial is over when it serves, so that what was free before the trial is there again, and
    no more.
    """
    for each in memory:
        used_mb, free_mb = -(-each.used_bytes // _BYTES_PER_MB), each.free_bytes // _BYTES_PER_MB
        if budget_mb and used_mb > budget_mb:
            return f"engine.device_memory_mb: expected at most {budget_mb}, it took {used_mb} MB of {each.device}"
        if workers * used_mb > free_mb:
            needs = f"{workers} workers of {used_mb} MB each" if workers > 1 else f"{used_mb} MB"
            return f"it does not fit on {each.device} beside what is there: it needs {needs}, {free_mb} MB were free"
    return ""
