"""The stager: starts a staging process for a version, follows it, and pauses it or gives up where the live version suffers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

import msgspec

from pillion_artifacts import Resolved
from pillion_artifacts.store.daemon_locks import DaemonLock
from pilliond.errors import SwitchError
from pilliond.ipc import staging_channel
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.ipc.staging_channel import Staged, StageFailed, StageRequest, StageStep
from pilliond.linux.sandbox import CHILD_ENVIRONMENT
from pilliond.rollout.live_window import LiveWindow, Reading
from pilliond.rollout.staging_guard import Pace, StagingGuard
from pilliond.settings.schema import Settings

PAUSED: Final = "paused"
"""The step of a staging whose process is stopped for the sake of the live version."""

_FIRST_STEP: Final = "starting"
_LOOK_S: Final = 0.1


class Stager:
    """Stages one version at a time. Owns the staging process while there is one."""

    def __init__(self, settings: Settings, window: LiveWindow) -> None:
        self.swap_impact: float | None = None
        """p99 of the live version while the last version was staged over that before; None of too few acts."""
        self.pauses = 0
        self.paused_s = 0.0
        """How often and how long a staging was paused, of all together."""
        self._settings = settings
        self._window = window
        self._process: subprocess.Popen[bytes] | None = None
        self._why_given_up = ""
        self._step = ""
        self._is_paused = False

    async def stage(
        self, resolved: Resolved, lock: DaemonLock | None, live_metrics_index: int, on_step: Callable[[str], None]
    ) -> SealedVersion:
        """The sealed version, which takes `lock` over; raises `SwitchError` with the reason.

        `live_metrics_index` is that of the version that serves meanwhile.
        """
        self._why_given_up = ""
        self._is_paused = False
        self._say(_FIRST_STEP, on_step)
        before = self._window.recent()
        began = self._window.now(live_metrics_index)
        end = self._start(resolved)
        guard = StagingGuard(self._settings.staging, before, began, time.monotonic())
        watch = asyncio.create_task(self._watch(live_metrics_index, guard, on_step))
        try:
            return await self._follow(end, resolved, lock, on_step)
        finally:
            watch.cancel()
            end.close()
            await self._reap()
            during = self._window.now(live_metrics_index).since(began)
            self.swap_impact = _ratio(during, before[0]) if before else None

    def give_up(self, why: str) -> None:
        """Ends the staging that is under way; `stage` raises `why`."""
        if self._process is not None and not self._why_given_up:
            self._why_given_up = why
            self._process.kill()

    def _start(self, resolved: Resolved) -> socket.socket:
        end, staging_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        end.setblocking(False)
        with staging_end:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pilliond.staging", str(staging_end.fileno())],
                pass_fds=[staging_end.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **CHILD_ENVIRONMENT},
            )
        staging_channel.send(end, self._order(resolved))
        return end

    def _order(self, resolved: Resolved) -> StageRequest:
        settings = self._settings
        return StageRequest(
            store=settings.store.path,
            policy=resolved.policy,
            version=resolved.version,
            digest=resolved.digest,
            trust=settings.trust,
            rows_max=settings.limits.rows_max,
            engine=settings.engine,
            memory_mb_max=settings.staging.memory_mb_max,
            certificate=settings.staging.certificate,
        )

    async def _follow(
        self, end: socket.socket, resolved: Resolved, lock: DaemonLock | None, on_step: Callable[[str], None]
    ) -> SealedVersion:
        while True:
            try:
                report, descriptors = await staging_channel.receive_report(end)
            except msgspec.MsgspecError as error:
                raise SwitchError(f"the staging process sent what cannot be read: {error}") from None
            match report:
                case StageStep():
                    self._say(report.name, on_step)
                case Staged():
                    # A model, then perhaps golden pairs.
                    model, golden = [*descriptors, -1][:2]
                    return SealedVersion(
                        resolved.policy, resolved.version, resolved.digest, report.card, model, golden, lock,
                        report.signed_by, report.certificate,
                    )  # fmt: skip
                case StageFailed():
                    raise SwitchError(report.message)
                case None:
                    raise SwitchError(self._why_given_up or await self._why_it_ended())

    async def _why_it_ended(self) -> str:
        assert self._process is not None
        code = await asyncio.to_thread(self._process.wait)
        memory_mb = self._settings.staging.memory_mb_max
        return f"the staging process ended with {code}; it may need more than staging.memory_mb_max ({memory_mb} MB)"

    async def _watch(self, metrics_index: int, guard: StagingGuard, on_step: Callable[[str], None]) -> None:
        """Stops the staging process and lets it go on as the guard says, and tells `on_step`."""
        process = self._process
        assert process is not None
        while True:
            await asyncio.sleep(_LOOK_S)
            was_s, pauses = guard.paused_s, guard.pauses
            pace = guard.look(self._window.now(metrics_index), time.monotonic())
            self.paused_s += guard.paused_s - was_s
            self.pauses += guard.pauses - pauses
            if pace is Pace.GIVE_UP:
                self.give_up(guard.why)
            elif self._is_paused is not (pace is Pace.PAUSE):
                self._is_paused = not self._is_paused
                process.send_signal(signal.SIGSTOP if self._is_paused else signal.SIGCONT)
                self._say(self._step, on_step)

    def _say(self, step: str, on_step: Callable[[str], None]) -> None:
        """Tells the step, unless it waits for the end of a pause."""
        self._step = step
        on_step(PAUSED if self._is_paused else step)

    async def _reap(self) -> None:
        assert self._process is not None
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        self._process = None


def _ratio(during: Reading, before: Reading) -> float | None:
    now_ns, then_ns = during.p99_ns(), before.p99_ns()
    return None if now_ns is None or then_ns is None else now_ns / then_ns
