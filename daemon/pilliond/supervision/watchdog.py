"""The watchdog: kills a serving process that hangs, and tells systemd how the daemon is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from structlog.typing import FilteringBoundLogger

from pilliond.limits import LIVE_AGE_MS_MAX, LOOK_MS
from pilliond.linux.process_activity import activity_of
from pilliond.linux.service_manager import ServiceManager
from pilliond.supervision.progress_watch import ProgressWatch
from pilliond.supervision.serving_state import ServingState
from pilliond.supervision.supervisor import Supervisor

_NS_PER_MS: Final = 1_000_000
_NS_PER_S: Final = 1e9


class Watchdog:
    """Looks at the serving process every `LOOK_MS`. Owns nothing.

    systemd's watchdog gets its signs of life from here: so they prove that the loop of the control process runs. There are
    none while the serving process is stalled.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        hang_s_max: float,
        service_manager: ServiceManager,
        log: FilteringBoundLogger,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.stalls = 0
        """How often the serving process was late, in stretches."""
        self.kills = 0
        """How often it was killed because it hung."""
        self._supervisor = supervisor
        self._service_manager = service_manager
        self._log = log
        self._clock = clock
        self._watch = ProgressWatch(hang_s_max)
        self._late_since_ns: int | None = None
        self._looked_ns = clock()

    @property
    def silent_ms(self) -> int:
        """How long ago it looked last."""
        return (self._clock() - self._looked_ns) // _NS_PER_MS

    @property
    def is_live(self) -> bool:
        """Whether the loop of the control process runs."""
        return self.silent_ms <= LIVE_AGE_MS_MAX

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_MS / 1_000)

    def look(self) -> None:
        """Looks once."""
        self._looked_ns = now_ns = self._clock()
        supervisor = self._supervisor
        state = supervisor.state
        if state is ServingState.UNRESPONSIVE:
            self._look_at_late(now_ns)
        else:
            self._forget(now_ns, state)
        self._service_manager.status(supervisor.describe())
        if not self._watch.is_stalled:
            self._service_manager.ping(now_ns)

    def _look_at_late(self, now_ns: int) -> None:
        supervisor, watch = self._supervisor, self._watch
        pid, ticked_ns = supervisor.serving_pid, supervisor.ticked_ns
        assert pid is not None
        activity = activity_of(pid)
        if self._late_since_ns is None:
            self._late_since_ns = ticked_ns
            self.stalls += 1
            silent_s = (now_ns - ticked_ns) / _NS_PER_S
            self._log.warning("serving_unresponsive", silent_s=round(silent_s, 1), state=activity.state.name.lower())
        watch.look(now_ns, ticked_ns, activity)
        if watch.is_hung:
            self.kills += 1
            silent_s = (now_ns - ticked_ns) / _NS_PER_S
            supervisor.kill(f"it made no progress for {silent_s:.1f} s ({activity.state.name.lower()})")
            watch.clear()

    def _forget(self, now_ns: int, state: ServingState) -> None:
        if self._late_since_ns is not None and state is ServingState.SERVING:
            self._log.info("serving_responsive", silent_s=round((now_ns - self._late_since_ns) / _NS_PER_S, 1))
        self._late_since_ns = None
        self._watch.clear()
