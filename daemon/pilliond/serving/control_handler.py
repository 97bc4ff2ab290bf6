"""The control_handler of the control process, as a source of the serving loop: load, switch, hold, warm, tell of sessions, unload, drain."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from pilliond.core.residency import Residency
from pilliond.core.session_list import list_sessions
from pilliond.core.sessions import Sessions
from pilliond.engine.interface import EngineError
from pilliond.ipc import control_channel as channel
from pilliond.ipc import metrics_page
from pilliond.ipc.control_channel import (
    Drain,
    EndShadow,
    Held,
    Hold,
    ListSessions,
    Load,
    Loaded,
    LoadFailed,
    Report,
    Route,
    Routed,
    SessionList,
    Shadow,
    Shadowed,
    StartupConfig,
    Switch,
    Switched,
    Unload,
    Unloaded,
    Warm,
    Warmed,
)
from pilliond.ipc.metrics_page import MetricsPage
from pilliond.linux.epoll import Poller
from pilliond.serving.shadow_tap import ShadowTap
from pilliond.versions.loader import Built, VersionLoader
from pilliond.versions.warmer import Warmer


class ControlHandler:
    """Does what the control process says, and reports what came of it; `on_end` is told why to end. Owns the loader.

    An order changes what new episodes lease, and nothing else: whoever acts goes on as before.
    """

    bursts: ClassVar[bool] = False

    def __init__(
        self,
        end: socket.socket,
        config: StartupConfig,
        poller: Poller,
        residency: Residency,
        sessions: Sessions,
        page: MetricsPage,
        on_end: Callable[[str], None],
        set_tap: Callable[[ShadowTap | None], None],
    ) -> None:
        self._end = end
        self._residency = residency
        self._sessions = sessions
        self._page = page
        self._on_end = on_end
        self._epoch = config.epoch
        self._set_tap = set_tap
        self._tap: ShadowTap | None = None
        self._unsaid: deque[Report] = deque()
        self._warmer = Warmer(time.monotonic_ns)
        self._loader = VersionLoader(poller, config.limits, config.engine, self._take)

    def receive(self) -> None:
        order, descriptors = channel.receive_control_message(self._end)
        match order:
            case Load() if descriptors:
                self._load(order, descriptors[0])
            case Load():
                self._say(LoadFailed(order.version.digest, "the serving process has no descriptor left for its memory"))
            case Switch():
                self._switch(order)
            case Route():
                self._route(order)
            case Hold():
                self._hold(order)
            case Warm():
                self._warm(order)
            case ListSessions():
                told, is_last = list_sessions(self._sessions, order.after, time.monotonic_ns())
                self._say(SessionList(order.after, told, is_last))
            case Shadow():
                self._shadow(order, descriptors)
            case EndShadow():
                self._end_tap()
            case Unload():
                self._unload(order)
            case Drain():
                self._on_end(order.reason)
            case _:
                self._on_end("the control process is gone")

    def sweep(self) -> None:
        """Lets go the versions that need not stay, and says what could not be said. To be called every tick."""
        for digest, leases in self._residency.sweep(time.monotonic_ns()):
            self._unsaid.append(Unloaded(digest, leases))
        self._warm_on()
        self._say_rest()
        self._page.cells[metrics_page.VERSIONS] = len(self._residency)
        for version in self._residency.versions():
            self._page.cells[metrics_page.VERSION_CELLS[version.metrics_index].episodes] = version.leases

    def close(self) -> None:
        """Ends a load that is under way, and a shadow's tap."""
        self._loader.close()
        self._end_tap()

    def _load(self, order: Load, descriptor: int) -> None:
        if self._loader.is_busy or self._residency.find(order.version.digest) is not None:
            os.close(descriptor)
            self._say(LoadFailed(order.version.digest, "a version is being loaded, or this one is loaded already"))
            return
        try:
            self._loader.start(order.version, descriptor)
        except OSError as error:
            os.close(descriptor)
            self._say(
                LoadFailed(order.version.digest, f"the serving process cannot begin to load it: {error.strerror}")
            )

    def _take(self, built: Built) -> None:
        if built.version is None:
            self._say(LoadFailed(built.order.digest, built.error))
            return
        self._residency.add(built.version)
        engine = built.version.engine.describe()
        self._say(Loaded(built.order.digest, engine, built.load_ns, built.stall_ns))

    def _switch(self, order: Switch) -> None:
        version = self._residency.find(order.digest)
        if version is None:
            self._say(LoadFailed(order.digest, "it is not loaded any more"))
            return
        at_ns = time.monotonic_ns()
        was = self._residency.switch(version, at_ns)
        self._say(Switched(version.digest, was.digest, at_ns))

    def _route(self, order: Route) -> None:
        found = [(self._residency.find(arm.digest), arm.share) for arm in order.arms]
        arms = [(version, share) for version, share in found if version is not None]
        if len(arms) < len(order.arms):
            self._say(LoadFailed(order.digest, "a version of the route is not loaded any more"))
            return
        self._residency.set_arms(arms, time.monotonic_ns())
        self._say(Routed(order.digest, order.arms))

    def _hold(self, order: Hold) -> None:
        found = [self._residency.find(digest) for digest in order.digests]
        held = [version for version in found if version is not None]
        if len(held) < len(order.digests):
            self._say(Held([], "a version that is to be held is not loaded any more"))
            return
        self._residency.hold(held, time.monotonic_ns())
        self._say(Held(order.digests))

    def _warm(self, order: Warm) -> None:
        version = self._residency.find(order.digest)
        if version is None:
            self._say(LoadFailed(order.digest, "it is not loaded any more"))
            return
        self._warmer.start(version)

    def _warm_on(self) -> None:
        """Runs the next bucket, where there is one."""
        version = self._warmer.version
        if version is None:
            return
        if self._residency.find(version.digest) is not version:
            self._warmer.stop()
            self._unsaid.append(LoadFailed(version.digest, "it was unloaded meanwhile"))
            return
        try:
            is_done = self._warmer.run()
        except EngineError as error:
            self._warmer.stop()
            self._unsaid.append(LoadFailed(version.digest, str(error)))
            return
        if is_done:
            self._unsaid.append(Warmed(version.digest, self._warmer.buckets, self._warmer.longest_ns))

    def _shadow(self, order: Shadow, descriptors: list[int]) -> None:
        live = self._residency.find(order.digest)
        self._end_tap()
        try:
            if live is None or not descriptors:
                missing = "the version that it would be compared with" if live is None else "a descriptor for its page"
                self._say(Shadowed(f"the serving process does not have {missing}"))
                return
            self._tap = ShadowTap(descriptors[0], live, self._epoch)
        except OSError as error:
            self._say(Shadowed(f"the serving process cannot map the shadow's page: {error.strerror}"))
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._set_tap(self._tap)
        self._say(Shadowed())

    def _end_tap(self) -> None:
        if self._tap is not None:
            self._set_tap(None)
            self._tap.close()
            self._tap = None

    def _unload(self, order: Unload) -> None:
        version = self._residency.find(order.digest)
        if version is not None:
            self._residency.forget(version)

    def _say(self, report: Report) -> None:
        self._unsaid.append(report)
        self._say_rest()

    def _say_rest(self) -> None:
        try:
            while self._unsaid:
                channel.send(self._end, self._unsaid[0])
                self._unsaid.popleft()
        except BlockingIOError:
            # The control process is behind with its reading: the next tick says it.
            return
