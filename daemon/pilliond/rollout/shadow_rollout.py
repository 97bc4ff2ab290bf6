"""Shadows: begins, watches and ends a version that runs on a copy of the live rows and answers no client. One at most."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType
from structlog.typing import FilteringBoundLogger

from pillion_artifacts import Resolved
from pillion_protocol import encode_spec
from pilliond.errors import SwitchError
from pilliond.ipc import shadow_page as cell
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.rollout.operation import Operation, Step
from pilliond.rollout.route_keeper import RouteKeeper
from pilliond.rollout.shadow_process import ShadowProcess
from pilliond.rollout.stager import Stager
from pilliond.settings.schema import Settings
from pilliond.shadow.report import (
    ShadowReport,
    ShadowState,
    agreement_means,
    compared_outputs,
    distance_buckets,
    inference_of,
)
from pilliond.supervision.policy_channel import PolicyChannel
from pilliond.supervision.version_table import key_of

_LOOK_S: Final = 0.1
_DAEMON: Final = "pilliond"

Stage = Callable[[Operation, Resolved], Awaitable[SealedVersion]]
"""Stages a version for an operation; raises `SwitchError`."""

ShadowTarget = tuple[Resolved, float] | None
"""The version that is to shadow, and its share of the live version's episodes; None: no version is to."""


class ShadowRun(msgspec.Struct):
    """One run of a shadow: its version, who asked for it and why, and how it ended."""

    process: ShadowProcess
    live: SealedVersion
    by: str
    reason: str
    began_at: str
    began_ns: int
    policy: str
    version: str
    digest: str
    live_version: str
    ended_at: str = ""
    end_reason: str = ""


class Shadows:
    """Owns the shadow that runs, and the task that watches it.

    Rule: a shadow ends when an operator ends it, another version becomes stable, its process ends or is silent for too long, or
    the daemon ends. It continues when the serving process restarts. It never begins again by itself.
    """

    def __init__(
        self,
        settings: Settings,
        channel: PolicyChannel,
        stager: Stager,
        keeper: RouteKeeper,
        log: FilteringBoundLogger,
        on_end: Callable[[], None],
    ) -> None:
        self.current: ShadowRun | None = None
        self._ended: ShadowRun | None = None
        self._bounds = settings.shadow
        self._settings = settings
        self._channel = channel
        self._stager = stager
        self._keeper = keeper
        self._log = log
        self._on_end = on_end
        self._watcher: asyncio.Task[None] | None = None
        channel.on_serving = self._serve_again

    # Reading

    @property
    def last(self) -> ShadowRun | None:
        """The shadow that runs, else the one that ran last."""
        return self.current or self._ended

    def report(self) -> ShadowReport | None:
        """Returns the report on `last`; None if there was no shadow yet."""
        shadow = self.last
        if shadow is None:
            return None
        counts = shadow.process.counts
        spec = shadow.process.version.card.spec()
        rows, agreed = counts.cells[cell.ROWS], counts.cells[cell.AGREED_ROWS]
        buckets, _ = distance_buckets(counts)
        return ShadowReport(
            policy=shadow.policy,
            version=shadow.version,
            digest=shadow.digest,
            live=shadow.live_version,
            share=shadow.process.share,
            state=self.state(shadow),
            by=shadow.by,
            reason=shadow.reason,
            began_at=shadow.began_at,
            ended_at=shadow.ended_at,
            end_reason=shadow.end_reason,
            rows=rows,
            agreed_rows=agreed,
            agreement=agreed / rows if rows else None,
            agreement_means=agreement_means(spec, self._bounds.distance_max),
            non_finite_rows=counts.cells[cell.NON_FINITE_ROWS],
            skipped_rows=counts.skipped_rows(),
            waiting_bytes=counts.waiting_bytes if shadow is self.current else 0,
            outputs=compared_outputs(counts, spec),
            distances={edge: int(count) for edge, count in buckets} if buckets[-1][1] else {},
            inference=inference_of(counts),
        )

    def state(self, shadow: ShadowRun) -> ShadowState:
        """Returns whether a shadow runs, is silent, or has ended."""
        if shadow is not self.current:
            return ShadowState.ENDED
        is_silent = self._silent_s(shadow) > self._bounds.silent_s_max / 2
        return ShadowState.SILENT if is_silent else ShadowState.RUNNING

    # Changing

    async def prepare(
        self, operation: Operation, wanted: ShadowTarget | UnsetType, stage: Stage
    ) -> ShadowProcess | None:
        """Returns a process that is ready to shadow the stable version; raises `SwitchError`.

        None if no version is to shadow, if the request does not say, or if that shadow runs already. A version that is
        not loaded is staged first. The caller owns the process.
        """
        if wanted is UNSET or wanted is None:
            return None
        target, share = wanted
        current = self.current
        if current is not None and (current.digest, current.process.share) == (target.digest, share):
            return None
        loaded = self._channel.version_table.find(key_of(target.digest))
        if loaded is None:
            version = await stage(operation, target)
        else:
            version = loaded.copy(await self._stager.lock(target))
        operation.advance(Step.STARTING_SHADOW)
        return await self._start(version, share)

    async def _start(self, version: SealedVersion, share: float) -> ShadowProcess:
        """Takes over `version`."""
        process = ShadowProcess(self._settings, version, share)
        try:
            live = self._channel.stable
            check_comparable(version, live)
            await process.start(live.card.tolerance)
        except BaseException:
            await process.close()
            raise
        return process

    async def begin(self, process: ShadowProcess, by: str, reason: str) -> None:
        """Feeds it the rows of the stable version, instead of the shadow before. Takes over `process`; raises `SwitchError`."""
        await self.end(f"{process.version.version} replaces it", by)
        live, version = self._channel.stable, process.version
        shadow = ShadowRun(
            process, live, by, reason, _now(), time.monotonic_ns(), version.policy, version.version, version.digest,
            live.version,
        )  # fmt: skip
        try:
            await self._channel.shadow(process.page_descriptor)
        except BaseException:
            await process.close()
            raise
        self.current = shadow
        self._watcher = asyncio.create_task(self._watch(shadow))
        self._log.info("shadow_begun", **_for_log(shadow), share=process.share, by=by, reason=reason)
        summary = f"begun at share {process.share:g}: {reason}".rstrip(": ")
        await self._keeper.note("shadow", _resolved(shadow), live.version, by, summary)

    async def end(self, why: str, by: str = _DAEMON) -> None:
        """Ends the shadow that runs, if there is one."""
        shadow = self.current
        if shadow is None:
            return
        self.current = None
        self._ended = shadow
        shadow.end_reason = why
        shadow.ended_at = _now()
        watcher, self._watcher = self._watcher, None
        if watcher is not None and watcher is not asyncio.current_task():
            watcher.cancel()
            await asyncio.wait([watcher])
        self._channel.end_shadow()
        await shadow.process.close()
        self._on_end()
        rows = shadow.process.counts.cells[cell.ROWS]
        log = self._log.warning if by == _DAEMON else self._log.info
        log("shadow_ended", **_for_log(shadow), by=by, reason=why, rows=rows)
        await self._keeper.note("shadow", _resolved(shadow), shadow.live_version, by, f"ended after {rows} rows: {why}")

    async def close(self, why: str) -> None:
        """Ends the shadow that runs. Its report stays."""
        await self.end(why)
        if self._ended is not None:
            await self._ended.process.close()

    # Watching

    async def _watch(self, shadow: ShadowRun) -> None:
        """Ends the shadow when its process ends or hangs, or another version becomes stable."""
        gone = asyncio.create_task(shadow.process.ended())
        try:
            while not gone.done():
                await asyncio.wait([gone], timeout=_LOOK_S)
                if self._channel.stable is not shadow.live:
                    await self.end(f"{self._channel.stable.version} is stable now")
                    return
                if self._silent_s(shadow) > self._bounds.silent_s_max:
                    await self.end(f"it was silent for more than {self._bounds.silent_s_max:g} s")
                    return
            await self.end(gone.result())
        finally:
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gone

    def _silent_s(self, shadow: ShadowRun) -> float:
        looked_ns = shadow.process.counts.cells[cell.LOOKED_AT_NS]
        return (time.monotonic_ns() - max(looked_ns, shadow.began_ns)) / 1e9

    def _serve_again(self) -> None:
        """Makes a new serving process continue the ring where the old one stopped."""
        if self.current is None:
            return
        try:
            self._channel.send_shadow(self.current.process.page_descriptor)
        except OSError as error:
            # It has ended already: the next serving process is asked again.
            self._log.error("shadow_gets_nothing", error=error.strerror)


def check_comparable(version: SealedVersion, live: SealedVersion) -> None:
    """Raises `SwitchError` if a version's answers cannot be compared with those of the live one."""
    spec, live_spec = version.card.spec(), live.card.spec()
    if encode_spec(spec) != encode_spec(live_spec):
        what = "observations" if spec.observation != live_spec.observation else "outputs"
        raise SwitchError(
            f"shadow {version.version}: expected the spec of {live.version}, to compare the two; its {what} differ"
        )
    if live.card.distribution.kind != "deterministic" and version.card.distribution.kind == "deterministic":
        raise SwitchError(f"shadow {version.version}: expected a version that can draw actions, as {live.version} does")


def _resolved(shadow: ShadowRun) -> Resolved:
    return Resolved(shadow.policy, shadow.version, shadow.digest)


def _for_log(shadow: ShadowRun) -> dict[str, str]:
    return {"policy": f"{shadow.policy}@{shadow.version}", "live": shadow.live_version}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
