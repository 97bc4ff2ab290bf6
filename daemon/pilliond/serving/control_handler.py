"""Does what the control process asks: load, switch, route, hold, warm up, list sessions, shadow, unload, drain."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import ClassVar, cast

from pilliond.core.served_policy import ServedPolicy, Tap
from pilliond.core.session_list import list_sessions
from pilliond.core.sessions import Sessions
from pilliond.engine.interface import Engine, EngineError
from pilliond.ipc import control_channel as channel
from pilliond.ipc import metrics_page
from pilliond.ipc.control_channel import (
    Drain,
    EndShadow,
    GiveUp,
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
    Switch,
    Switched,
    Unload,
    Unloaded,
    Warm,
    Warmed,
    WorkerStarted,
)
from pilliond.ipc.metrics_page import MetricsPage
from pilliond.serving.shadow_tap import ShadowTap, ShadowTaps
from pilliond.serving.worker_version import WorkerVersion
from pilliond.serving.workers import Workers
from pilliond.transport.interface import MessagePoller
from pilliond.versions.loaded_version import Version
from pilliond.versions.loader import Built, VersionLoader
from pilliond.versions.warmer import Warmer


class ControlHandler:
    """A source of the serving loop: handles control messages and reports the results. Owns the version loaders.

    A message changes only what new episodes lease; live episodes go on unchanged. `on_end` gets the reason to stop.
    """

    bursts: ClassVar[bool] = False

    def __init__(
        self,
        end: socket.socket,
        epoch: int,
        poller: MessagePoller,
        sessions: Sessions,
        page: MetricsPage,
        on_end: Callable[[str], None],
        set_tap: Callable[[Tap | None], None],
        workers: Workers,
        exercise: Callable[[Version, Engine, int], bool],
    ) -> None:
        self._end = end
        self._policies = sessions.policies
        self._sessions = sessions
        self._page = page
        self._on_end = on_end
        self._epoch = epoch
        self._set_tap = set_tap
        self._workers = workers
        workers.on_loaded = self._take_worker
        self._reports: deque[Report] = deque()
        self._warmer = Warmer(time.monotonic_ns, exercise)
        self._loaders = {
            name: VersionLoader(poller, policy.limits, policy.engine, self._take)
            for name, policy in self._policies.items()
        }

    def receive(self) -> None:
        message, descriptors = channel.receive_control_message(self._end)
        match message:
            case Load():
                self._load(message, descriptors)
            case WorkerStarted():
                self._workers.started(message, descriptors)
            case GiveUp():
                self._workers.give_up(message)
            case Switch() | Route() | Hold():
                self._change_route(message)
            case Warm():
                self._warm(message)
            case ListSessions():
                listed, is_last = list_sessions(self._sessions, message.after, time.monotonic_ns())
                self.send(SessionList(message.after, listed, is_last))
            case Shadow():
                self._shadow(message, descriptors)
            case EndShadow():
                self._end_tap(self._policies[message.policy])
            case Unload():
                self._unload(message)
            case Drain():
                self._on_end(message.reason)
            case _:
                self._on_end("the control process is gone")

    def _change_route(self, message: Switch | Route | Hold) -> None:
        match message:
            case Switch():
                self._switch(message)
            case Route():
                self._route(message)
            case Hold():
                self._hold(message)

    def sweep(self) -> None:
        """Unloads versions that are no longer needed, and sends the reports that are due. Call it on every tick."""
        for policy in self._policies.values():
            for digest, leases in policy.residency.sweep(time.monotonic_ns()):
                self._workers.close_version(digest)
                self._reports.append(Unloaded(digest, leases))
        self._workers.judge()
        self._warm_next()
        self._send_reports()
        cells = self._page.cells
        cells[metrics_page.VERSIONS] = sum(len(policy.residency) for policy in self._policies.values())
        for policy in self._policies.values():
            of_policy = metrics_page.POLICY_CELLS[policy.number]
            cells[of_policy.sessions] = policy.sessions_live
            cells[of_policy.episodes] = policy.episodes_live
            for version in policy.residency.versions():
                cells[metrics_page.VERSION_CELLS[version.metrics_index].episodes] = version.leases
                self._page.set_service_times(version.metrics_index, version.engine.service.by_bucket())

    def close(self) -> None:
        """Ends the loads that run, and the taps of the shadows."""
        for loader in self._loaders.values():
            loader.close()
        self._workers.close()
        for policy in self._policies.values():
            self._end_tap(policy)

    def _find(self, digest: bytes) -> tuple[ServedPolicy, Version] | None:
        """Returns a loaded version and its policy; None if no policy has it loaded. A digest is that of one policy only."""
        for policy in self._policies.values():
            version = policy.residency.find(digest)
            if version is not None:
                return policy, version
        return None

    def _load(self, message: Load, descriptors: list[int]) -> None:
        if not descriptors:
            self.send(LoadFailed(message.version.digest, "the serving process has no descriptor left for its memory"))
            return
        (descriptor,) = descriptors
        policy = self._policies[message.version.policy]
        loader = self._loaders[policy.name]
        if loader.is_busy or self._find(message.version.digest) is not None:
            os.close(descriptor)
            self.send(LoadFailed(message.version.digest, "a version is being loaded, or this one is loaded already"))
            return
        placement = message.version.placement
        if message.version.engine.kind != "onnx" or (placement is not None and placement.where == "worker"):
            model_bytes = os.fstat(descriptor).st_size
            os.close(descriptor)
            try:
                self._workers.load(message.version, model_bytes, policy.limits, policy.engine)
            except EngineError as error:
                self.send(LoadFailed(message.version.digest, str(error)))
            return
        try:
            loader.start(message.version, descriptor)
        except OSError as error:
            os.close(descriptor)
            self.send(
                LoadFailed(message.version.digest, f"the serving process cannot begin to load it: {error.strerror}")
            )

    def _take(self, built: Built) -> None:
        if built.version is None:
            self.send(LoadFailed(built.request.digest, built.error))
            return
        self._policies[built.request.policy].residency.add(built.version)
        engine = built.version.engine.describe()
        self.send(Loaded(built.request.digest, engine, built.load_ns, built.stall_ns))

    def _take_worker(self, worker: WorkerVersion, reason: str) -> None:
        if worker.version is None:
            self.send(LoadFailed(worker.request.digest, reason))
            return
        self._policies[worker.request.policy].residency.add(worker.version)
        load_ns = time.monotonic_ns() - worker.began_ns
        # The loop never waited for this load.
        self.send(Loaded(worker.request.digest, worker.engine.describe(), load_ns, 0))

    def _switch(self, message: Switch) -> None:
        found = self._find(message.digest)
        if found is None:
            self.send(LoadFailed(message.digest, "it is no longer loaded"))
            return
        policy, version = found
        at_ns = time.monotonic_ns()
        was = policy.residency.switch(version, at_ns)
        self.send(Switched(version.digest, was.digest, at_ns))

    def _route(self, message: Route) -> None:
        stable = self._find(message.digest)
        if stable is None:
            self.send(LoadFailed(message.digest, "it is no longer loaded"))
            return
        residency = stable[0].residency
        found = [(residency.find(arm.digest), arm.share) for arm in message.arms]
        arms = [(version, share) for version, share in found if version is not None]
        if len(arms) < len(message.arms):
            self.send(LoadFailed(message.digest, "a version of the route is no longer loaded"))
            return
        residency.set_arms(arms, time.monotonic_ns())
        self.send(Routed(message.digest, message.arms))

    def _hold(self, message: Hold) -> None:
        residency = self._policies[message.policy].residency
        found = [residency.find(digest) for digest in message.digests]
        held = [version for version in found if version is not None]
        if len(held) < len(message.digests):
            self.send(Held(message.policy, [], "a version to hold is no longer loaded"))
            return
        residency.hold(held, time.monotonic_ns())
        self.send(Held(message.policy, message.digests))

    def _warm(self, message: Warm) -> None:
        found = self._find(message.digest)
        if found is None:
            self.send(LoadFailed(message.digest, "it is no longer loaded"))
            return
        self._warmer.start(found[1])

    def _warm_next(self) -> None:
        """Runs the next bucket, if a warm-up is running."""
        version = self._warmer.version
        if version is None:
            return
        found = self._find(version.digest)
        if found is None or found[1] is not version:
            self._warmer.stop()
            self._reports.append(LoadFailed(version.digest, "it was unloaded meanwhile"))
            return
        try:
            is_done = self._warmer.run()
        except EngineError as error:
            self._warmer.stop()
            self._reports.append(LoadFailed(version.digest, str(error)))
            return
        if is_done:
            self._reports.append(Warmed(version.digest, self._warmer.buckets, self._warmer.longest_ns))

    def _shadow(self, message: Shadow, descriptors: list[int]) -> None:
        found = self._find(message.digest)
        try:
            if found is None or not descriptors:
                missing = "the version that it would be compared with" if found is None else "a descriptor for its page"
                self.send(Shadowed(message.digest, f"the serving process does not have {missing}"))
                return
            policy, live = found
            self._end_tap(policy)
            policy.tap = ShadowTap(descriptors[0], live, self._epoch)
        except OSError as error:
            self.send(Shadowed(message.digest, f"the serving process cannot map the shadow's page: {error.strerror}"))
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._connect_taps()
        self.send(Shadowed(message.digest))

    def _end_tap(self, policy: ServedPolicy) -> None:
        tap, policy.tap = policy.tap, None
        if tap is not None:
            self._connect_taps()
            tap.close()

    def _connect_taps(self) -> None:
        """Makes the loop copy its batches to the taps that there are: to the only one directly."""
        taps = [policy.tap for policy in self._policies.values() if policy.tap is not None]
        # The loop asks for no more of a tap than what both of these have.
        self._set_tap(cast(ShadowTap, ShadowTaps(taps)) if len(taps) > 1 else taps[0] if taps else None)

    def _unload(self, message: Unload) -> None:
        found = self._find(message.digest)
        if found is None:
            # The control process does not wait for its worker any more.
            self._workers.abandon(message.digest)
            return
        policy, version = found
        policy.residency.forget(version)

    def send(self, report: Report) -> None:
        """Sends a report, now or on the next tick."""
        self._reports.append(report)
        self._send_reports()

    def _send_reports(self) -> None:
        try:
            while self._reports:
                channel.send(self._end, self._reports[0])
                self._reports.popleft()
        except BlockingIOError:
            # The control process reads too slowly: the next tick tries again.
            return
