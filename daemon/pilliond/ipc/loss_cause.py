"""The causes for which a worker is lost: a bounded set, for metrics. The reason in words goes with it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

WORKER_ENDED: Final = "its worker ended"
"""The reason where only the end of its channel is seen. The owner of the process adds how it ended: `with_exit_status`."""


class LossCause(StrEnum):
    """Why a worker does not serve any more."""

    ENDED = "ended"
    """It ended: it crashed, or somebody killed it."""
    HUNG = "hung"
    """It made no progress."""
    ROGUE = "rogue"
    """It did what no worker does."""
    REFUSED = "refused"
    """The model itself was refused: another worker would refuse it too."""
    SHORTAGE = "shortage"
    """The daemon had no memory or no descriptors to start it, to connect it or to run its batches. That may pass."""
    MEMORY = "memory"
    """It was killed because it had more resident memory than `engine.worker_memory_mb_max`."""
