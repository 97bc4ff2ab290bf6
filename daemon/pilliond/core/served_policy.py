"""A served policy: what belongs to one policy in the serving process, and to no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from pilliond.core.result_cache import ResultCache
from pilliond.core.routing import Router
from pilliond.core.scheduler import PolicyShare
from pilliond.ipc.metrics_page import policy_number
from pilliond.limits import PolicyLimits
from pilliond.settings.schema import EngineSettings
from pilliond.transport.slots import SlotGrants

if TYPE_CHECKING:
    from pilliond.core.episodes import EpisodeGroup
    from pilliond.core.residency import Residency
    from pilliond.engine.batch_memory import BatchMemory
    from pilliond.versions.loaded_version import Version


class Tap(Protocol):
    """Copies answered batches for a shadow."""

    def take(self, version: Version, memory: BatchMemory, groups: list[EpisodeGroup]) -> None:
        """Takes a batch that ran and whose replies are filled."""

    def pay(self) -> None:
        """Copies the last batch taken, if it is not copied yet."""

    def close(self) -> None:
        """Releases what it holds."""


_BYTES_PER_MB: Final = 1_000_000


class ServedPolicy:
    """One policy with its route, limits and counts. Plain data; `Sessions` and `Residency` decide. Hot path.

    Each session belongs to one (`Session.policy`), from its hello to its end.
    """

    __slots__ = (
        "cache",
        "engine",
        "episodes_live",
        "limits",
        "name",
        "number",
        "residency",
        "router",
        "sessions_live",
        "share",
        "slots",
        "state_bytes",
        "tap",
    )

    residency: Residency
    """Set once the sessions are there, which it reads."""

    def __init__(self, router: Router, limits: PolicyLimits, engine: EngineSettings) -> None:
        stable = router.stable
        self.name = stable.identity.policy
        self.number = policy_number(stable.metrics_index)
        """Its place in the settings, which is that of its cells in the metrics page."""
        self.router = router
        self.limits = limits
        self.engine = engine
        self.share = PolicyShare(limits.rows_max, limits.batch_wait_us_max * 1_000, limits.queue_rows_max)
        self.slots = SlotGrants(limits.slots_mb_max * _BYTES_PER_MB)
        self.cache = ResultCache(engine.cache_rows_max, engine.cache_mb * _BYTES_PER_MB) if engine.cache_mb else None
        """The answers that its versions gave, if its settings ask for a result cache."""
        self.tap: Tap | None = None
        """Copies its answered batches, while it has a shadow."""
        self.sessions_live = 0
        self.episodes_live = 0
        self.state_bytes = 0
        """Recurrent state of its episode groups."""

    @property
    def metrics_index(self) -> int:
        """The metrics index of its stable version."""
        return self.router.stable.metrics_index
