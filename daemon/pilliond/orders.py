"""The orders of the control process, as a source of the serving loop: load, switch, unload, drain."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from pilliond import channel, metrics_page
from pilliond.channel import (
    Assignment,
    Drain,
    Load,
    Loaded,
    LoadFailed,
    Report,
    Route,
    Routed,
    Switch,
    Switched,
    Unload,
    Unloaded,
)
from pilliond.metrics_page import MetricsPage
from pilliond.poller import Poller
from pilliond.residence import Residence
from pilliond.version_loader import Built, VersionLoader


class Orders:
    """Does what the control process says, and reports what came of it; `on_end` is told why to end. Owns the loader.

    An order changes what new episodes lease, and nothing else: whoever acts goes on as before.
    """

    bursts: ClassVar[bool] = False

    def __init__(
        self,
        end: socket.socket,
        assignment: Assignment,
        poller: Poller,
        residence: Residence,
        page: MetricsPage,
        on_end: Callable[[str], None],
    ) -> None:
        self._end = end
        self._residence = residence
        self._page = page
        self._on_end = on_end
        self._unsaid: deque[Report] = deque()
        self._loader = VersionLoader(poller, assignment.limits, assignment.engine, self._take)

    def receive(self) -> None:
        order, descriptors = channel.receive_order(self._end)
        match order:
            case Load() if descriptors:
                self._load(order, descriptors[0])
            case Load():
                self._say(LoadFailed(order.version.digest, "the serving process has no descriptor left for its memory"))
            case Switch():
                self._switch(order)
            case Route():
                self._route(order)
            case Unload():
                self._unload(order)
            case Drain():
                self._on_end(order.reason)
            case _:
                self._on_end("the control process is gone")

    def sweep(self) -> None:
        """Lets go the versions that need not stay, and says what could not be said. To be called every tick."""
        for digest, leases in self._residence.sweep(time.monotonic_ns()):
            self._unsaid.append(Unloaded(digest, leases))
        self._say_rest()
        self._page.cells[metrics_page.VERSIONS] = len(self._residence)
        for version in self._residence.versions():
            self._page.cells[metrics_page.PLACES[version.place].episodes] = version.leases

    def close(self) -> None:
        """Ends a load that is under way."""
        self._loader.close()

    def _load(self, order: Load, descriptor: int) -> None:
        if self._loader.is_busy or self._residence.find(order.version.digest) is not None:
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
        self._residence.add(built.version)
        engine = built.version.engine.describe()
        self._say(Loaded(built.order.digest, engine, built.load_ns, built.stall_ns))

    def _switch(self, order: Switch) -> None:
        version = self._residence.find(order.digest)
        if version is None:
            self._say(LoadFailed(order.digest, "it is not loaded any more"))
            return
        at_ns = time.monotonic_ns()
        was = self._residence.switch(version, at_ns)
        self._say(Switched(version.digest, was.digest, at_ns))

    def _route(self, order: Route) -> None:
        found = [(self._residence.find(arm.digest), arm.share) for arm in order.arms]
        arms = [(version, share) for version, share in found if version is not None]
        if len(arms) < len(order.arms):
            self._say(LoadFailed(order.digest, "a version of the route is not loaded any more"))
            return
        self._residence.set_arms(arms, time.monotonic_ns())
        self._say(Routed(order.digest, order.arms))

    def _unload(self, order: Unload) -> None:
        version = self._residence.find(order.digest)
        if version is not None:
            self._residence.forget(version)

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
