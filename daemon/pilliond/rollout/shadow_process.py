"""The shadow process, seen from the control process: starts it, waits for it, reads its counts and ends it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from typing import Final

import msgspec

from pillion_artifacts.card.model_card import Tolerance
from pilliond.errors import SwitchError
from pilliond.ipc import shadow_channel
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.ipc.shadow_channel import ShadowFailed, ShadowReady, ShadowRequest
from pilliond.ipc.shadow_page import ShadowCounts, ShadowPage, make_shadow_page
from pilliond.limits import SHADOW_START_S_MAX
from pilliond.linux.process_group import kill_group
from pilliond.linux.sandbox import CHILD_ENVIRONMENT
from pilliond.settings.schema import Settings

_BYTES_PER_MB: Final = 1_000_000
_PAGE: Final = 4_096


class ShadowProcess:
    """Owns the process, the sealed version that it runs, and the page that it shares."""

    def __init__(self, settings: Settings, version: SealedVersion, share: float) -> None:
        self.version = version
        self.share = share
        self.page_descriptor = -1
        self._settings = settings
        self._page: ShadowPage | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._end: socket.socket | None = None
        self._last: ShadowCounts | None = None

    @property
    def pid(self) -> int | None:
        """Its process id, until `close`."""
        return None if self._process is None else self._process.pid

    @property
    def counts(self) -> ShadowCounts:
        """What it has counted so far; after `close`, what it had counted by then."""
        if self._page is not None:
            return self._page.counts()
        assert self._last is not None
        return self._last

    async def start(self, live_tolerance: Tolerance) -> None:
        """Starts it and waits until its version is warm; raises `SwitchError` with the reason. The caller calls `close` in any case."""
        try:
            self._spawn(self._request(live_tolerance))
        except OSError as error:
            raise SwitchError(f"cannot start a shadow: {error.strerror}") from None
        most_s = SHADOW_START_S_MAX + self._settings.engine.start_s_max
        try:
            why = await asyncio.wait_for(self.ended(), most_s)
        except TimeoutError:
            why = f"it was not ready within {most_s:g} s"
        if why:
            raise SwitchError(f"shadow {self.version.version}: {why}")

    async def ended(self) -> str:
        """Waits for its next report: returns why it ended, or an empty text if it is ready."""
        assert self._end is not None
        assert self._process is not None
        try:
            report = await shadow_channel.receive_report(self._end)
        except msgspec.MsgspecError as error:
            return f"the shadow process sent an unreadable report: {error}"
        match report:
            case ShadowReady():
                return ""
            case ShadowFailed():
                return report.message
        return f"the shadow process ended with {await asyncio.to_thread(self._process.wait)}"

    async def close(self) -> None:
        """Kills it and releases everything; harmless to repeat."""
        if self._process is not None:
            kill_group(self._process)
            await asyncio.to_thread(self._process.wait)
            self._process = None
        if self._end is not None:
            self._end.close()
            self._end = None
        if self._page is not None:
            self._last = self._page.counts()
            self._page.close()
            self._page = None
        if self.page_descriptor >= 0:
            os.close(self.page_descriptor)
            self.page_descriptor = -1
        self.version.close()

    def _spawn(self, request: ShadowRequest) -> None:
        ring_bytes = self._settings.shadow.ring_mb * _BYTES_PER_MB // _PAGE * _PAGE
        self.page_descriptor = make_shadow_page(ring_bytes)
        self._page = ShadowPage(self.page_descriptor)
        self._end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._end.setblocking(False)
        with child_end:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pilliond.shadow", str(child_end.fileno()), str(os.getpid())],
                pass_fds=[child_end.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **CHILD_ENVIRONMENT},
                # It ends with the worker in which it runs a version, and with what that has started.
                process_group=0,
            )
        shadow_channel.send_request(self._end, request, self.version.model_descriptor, self.page_descriptor)

    def _request(self, live_tolerance: Tolerance) -> ShadowRequest:
        settings = self._settings
        return ShadowRequest(
            version=self.version.request(),
            live_tolerance=live_tolerance,
            share=self.share,
            distance_max=settings.shadow.distance_max,
            rows_max=settings.limits.rows_max,
            engine=settings.engine,
            memory_mb_max=settings.staging.memory_mb_max,
            states_mb_max=settings.shadow.states_mb_max,
            code=settings.trust.code,
        )
