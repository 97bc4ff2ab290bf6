"""The stager: starts a staging process for a version, follows it, and pauses or ends it if the live version suffers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Final

import msgspec

from pillion_artifacts import Resolved, Store
from pillion_artifacts.errors import StoreError
from pillion_artifacts.store.daemon_locks import DaemonLock
from pilliond.errors import DescriptorsError, SwitchError
from pilliond.ipc import staging_channel
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.ipc.staging_channel import Staged, StageFailed, StageRequest, StageStep
from pilliond.linux.sandbox import CHILD_ENVIRONMENT
from pilliond.rollout.live_window import LiveWindow, Reading
from pilliond.rollout.operation import Operation, Step
from pilliond.rollout.staging_guard import Pace, StagingGuard
from pilliond.settings.schema import Settings

_LOOK_S: Final = 0.1


class Stager:
    """Stages one version at a time. Owns the staging process while there is one."""

    def __init__(self, settings: Settings, store: Store, window: LiveWindow) -> None:
        self.swap_impact: float | None = None
        """p99 of the live version while the last version was staged over that before; None for too few acts."""
        self.pauses = 0
        self.paused_s = 0.0
        """How often and for how long stagings were paused, in all."""
        self._settings = settings
        self._store = store
        self._window = window
        self._process: subprocess.Popen[bytes] | None = None
        self._step = Step.STARTING
        """What the staging process does, or did before it was paused."""

    async def lock(self, target: Resolved) -> DaemonLock | None:
        """Returns a lock on a stored version, which keeps `gc` from it; None if the store cannot be written to."""
        try:
            return (await asyncio.to_thread(self._store.lock_version, f"{target.policy}@{target.digest}"))[1]
        except StoreError:
            return None

    async def stage(self, operation: Operation, target: Resolved, live_metrics_index: int) -> SealedVersion:
        """Returns the sealed version; raises `SwitchError` with the reason. Notes on `operation` how it went.

        `live_metrics_index` is that of the version that serves meanwhile.
        """
        lock = await self.lock(target)
        try:
            return await self._stage(operation, target, lock, live_metrics_index)
        except BaseException:
            if lock is not None:
                lock.close()
            raise

    async def _stage(
        self, operation: Operation, target: Resolved, lock: DaemonLock | None, live_metrics_index: int
    ) -> SealedVersion:
        self._step = Step.STARTING
        operation.advance(self._step)
        before = self._window.recent()
        began = self._window.now(live_metrics_index)
        end = self._start(target)
        guard = StagingGuard(self._settings.staging, before, began, time.monotonic())
        watch = asyncio.create_task(self._watch(operation, live_metrics_index, guard))
        try:
            version = await self._follow(operation, end, target, lock, guard)
        finally:
            watch.cancel()
            end.close()
            await self._reap()
            operation.paused_s += guard.paused_s
            during = self._window.now(live_metrics_index).since(began)
            self.swap_impact = _ratio(during, before[0]) if before else None
        operation.swap_impact = self.swap_impact
        return version

    def _start(self, target: Resolved) -> socket.socket:
        end, staging_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        end.setblocking(False)
        with staging_end:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pilliond.staging", str(staging_end.fileno()), str(os.getpid())],
                pass_fds=[staging_end.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **CHILD_ENVIRONMENT},
                # A pause is for the worker in which it tries a version, too.
                process_group=0,
            )
        staging_channel.send(end, self._request(target))
        return end

    def _request(self, target: Resolved) -> StageRequest:
        settings = self._settings
        return StageRequest(
            store=settings.store.path,
            policy=target.policy,
            version=target.version,
            digest=target.digest,
            trust=settings.trust,
            rows_max=settings.limits.rows_max,
            engine=settings.engine,
            memory_mb_max=settings.staging.memory_mb_max,
            certificate=settings.staging.certificate,
        )

    async def _follow(
        self, operation: Operation, end: socket.socket, target: Resolved, lock: DaemonLock | None, guard: StagingGuard
    ) -> SealedVersion:
        while True:
            try:
                report, descriptors = await staging_channel.receive_report(end)
            except msgspec.MsgspecError as error:
                raise SwitchError(f"the staging process sent an unreadable report: {error}") from None
            except DescriptorsError as error:
                raise SwitchError(str(error)) from None
            match report:
                case StageStep():
                    self._step = Step(report.name)
                    if operation.step is not Step.PAUSED:
                        operation.advance(self._step)
                case Staged():
                    # A model, then perhaps golden pairs.
                    model, golden = [*descriptors, -1][:2]
                    operation.placement, operation.placement_reason = report.placement.where, report.placement.reason
                    operation.service_us = report.service_us
                    version = SealedVersion(
                        target.policy, target.version, target.digest, report.card, model, golden, lock,
                        report.signed_by, report.certificate, report.unbounded, report.placement,
                    )  # fmt: skip
                    version.service_us = report.service_us
                    version.fallback = report.fallback
                    version.device_memory_mb = report.device_memory_mb
                    return version
                case StageFailed():
                    raise SwitchError(report.message)
                case None:
                    raise SwitchError(guard.why if guard.pace is Pace.GIVE_UP else await self._why_it_ended())

    async def _why_it_ended(self) -> str:
        assert self._process is not None
        code = await asyncio.to_thread(self._process.wait)
        memory_mb = self._settings.staging.memory_mb_max
        return f"the staging process ended with {code}; it may need more than staging.memory_mb_max ({memory_mb} MB)"

    async def _watch(self, operation: Operation, metrics_index: int, guard: StagingGuard) -> None:
        """Stops, continues or kills the staging process, as the guard decides."""
        while True:
            await asyncio.sleep(_LOOK_S)
            before_s, pauses = guard.paused_s, guard.pauses
            pace = guard.look(self._window.now(metrics_index), time.monotonic())
            self.paused_s += guard.paused_s - before_s
            self.pauses += guard.pauses - pauses
            if pace is Pace.GIVE_UP:
                self._signal(signal.SIGKILL)
                return
            if pace is Pace.PAUSE and operation.step is not Step.PAUSED:
                self._signal(signal.SIGSTOP)
                operation.advance(Step.PAUSED)
            elif pace is Pace.GO and operation.step is Step.PAUSED:
                self._signal(signal.SIGCONT)
                operation.advance(self._step)

    def _signal(self, number: signal.Signals) -> None:
        """Sends a signal to the staging process and to what it has started."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def _reap(self) -> None:
        assert self._process is not None
        self._signal(signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)
        self._process = None


def _ratio(during: Reading, before: Reading) -> float | None:
    now_ns, then_ns = during.p99_ns(), before.p99_ns()
    return None if now_ns is None or then_ns is None else now_ns / then_ns
