"""The serving process: one loop that owns every data socket, every session and the inline engines.

The control process starts it as `python -m pilliond.serving DESCRIPTOR PARENT [inline]`, with its end of the control channel.
It has no HTTP, no files and no log handlers. Its only threads are ZeroMQ's, plus one loader thread while a version loads. It
dies with its parent.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import uvloop

from pillion_artifacts.card.golden_pairs import decode_golden
from pillion_worker.model_source import path_of
from pilliond.core.residency import Residency
from pilliond.core.routing import Router
from pilliond.core.scheduler import Scheduler
from pilliond.core.served_policy import ServedPolicy, Tap
from pilliond.core.sessions import Sessions
from pilliond.engine.certifier import certify
from pilliond.engine.interface import EngineError
from pilliond.engine.stopwatch import clock_for, measure_until
from pilliond.errors import BadPolicyError, DaemonError, StartCancelledError
from pilliond.ipc import control_channel as channel
from pilliond.ipc import metrics_page
from pilliond.ipc.control_channel import (
    INLINE,
    Event,
    EventFields,
    Failed,
    LoadFailed,
    PolicyConfig,
    Ready,
    StartupConfig,
    VersionRequest,
)
from pilliond.ipc.metrics_page import MetricsPage, Phase
from pilliond.linux.allocator import return_freed_memory
from pilliond.linux.cpu_priority import request_short_slices, slice_us
from pilliond.linux.sandbox import die_with_parent
from pilliond.serving.control_handler import ControlHandler
from pilliond.serving.loop import ServingLoop
from pilliond.serving.result_caching import CacheFiller, CachingSessions
from pilliond.serving.workers import Workers
from pilliond.settings.addresses import carrier_of
from pilliond.settings.schema import ServingSettings, cpu_numbers
from pilliond.transport.interface import MessagePoller, Transport
from pilliond.transport.lane import LaneTransport
from pilliond.transport.zmq import ZmqTransport
from pilliond.versions.golden_start import start_checked
from pilliond.versions.loaded_version import Version
from pilliond.versions.loader import build_version, read_descriptor
from pilliond.versions.placement import decide, place_beforehand


async def serve(end: socket.socket, config: StartupConfig) -> None:
    """Starts, warms up, reports READY, runs until it has to drain, drains, stops."""
    pin(config.serving)
    page = MetricsPage(config.page_descriptor)
    page.cells[metrics_page.PHASE] = Phase.WARMING
    poller = MessagePoller()
    workers = Workers(end, poller, partial(channel.send, end), code=config.code)
    loaded = [load_policy(policy, workers) for policy in config.policies]
    carriers: dict[str, Transport] = {
        "lane": LaneTransport(loaded[0].stable.observation_bytes, poller, page, config.group),
        "zmq": ZmqTransport(poller),
    }
    try:
        listen = [carriers[carrier_of(address)].bind(address) for address in config.listen]
        settle(config.serving)
        loop, control_handler = make_loop(end, config, page, loaded, workers, poller, list(carriers.values()))
        page.cells[metrics_page.READY_AT_NS] = time.monotonic_ns()
        page.cells[metrics_page.PHASE] = Phase.READY
        channel.send(end, ready_report(listen, loaded))
        reason = await loop.run()
        page.cells[metrics_page.PHASE] = Phase.DRAINING
        loop.drain(reason)
        control_handler.close()
    finally:
        for transport in carriers.values():
            transport.close()
        poller.close()
    page.cells[metrics_page.PHASE] = Phase.STOPPED


class LoadedPolicy(NamedTuple):
    """The versions of a policy with which the serving process starts, and those that cannot be loaded."""

    versions: list[Version]
    refused: list[LoadFailed]

    @property
    def stable(self) -> Version:
        """The version that new episodes lease."""
        return self.versions[0]


def load_policy(config: PolicyConfig, workers: Workers) -> LoadedPolicy:
    """Builds the versions of a policy; raises `BadPolicyError` if the stable one cannot be built."""
    stable = load_version(config, workers)
    beside, refused = load_beside(config, workers)
    return LoadedPolicy([stable, *beside], refused)


def ready_report(listen: list[str], loaded: list[LoadedPolicy]) -> Ready:
    """Returns the report that this process serves."""
    versions = [version for policy in loaded for version in policy.versions]
    return Ready(
        listen,
        {version.digest: version.engine.describe() for version in versions},
        {version.digest: version.certificate for version in versions if version.certificate is not None},
        {version.digest: version.placement for version in versions if version.placement is not None},
        describe_process(),
        [failed for policy in loaded for failed in policy.refused],
    )


def load_version(config: PolicyConfig, workers: Workers) -> Version:
    """Builds the stable version, as `certified`; raises `BadPolicyError`."""
    request, golden_descriptor = config.version, config.golden_descriptor
    golden = read_descriptor(golden_descriptor) if golden_descriptor >= 0 else None
    try:
        return certified(request, config.model_descriptor, golden, config, workers)
    except EngineError as error:
        raise BadPolicyError(f"{request.policy}@{request.version}: {error}") from None


def load_beside(config: PolicyConfig, workers: Workers) -> tuple[list[Version], list[LoadFailed]]:
    """Builds the versions to load beside it; returns them, and those that cannot be loaded, without which it serves."""
    built, refused = [], []
    for beside in config.beside:
        golden: bytes | None = None
        if beside.golden_descriptor >= 0:
            golden = read_descriptor(beside.golden_descriptor)
            os.close(beside.golden_descriptor)
        try:
            built.append(certified(beside.version, beside.model_descriptor, golden, config, workers))
        except (EngineError, MemoryError) as error:
            workers.close_version(beside.version.digest)
            refused.append(LoadFailed(beside.version.digest, str(error) or "no memory is left for it"))
        finally:
            os.close(beside.model_descriptor)
    return built, refused


def certified(
    request: VersionRequest, model_descriptor: int, golden: bytes | None, config: PolicyConfig, workers: Workers
) -> Version:
    """Builds a version from verified bytes, which stay open, warms it up, checks its golden pairs and certifies it; raises `EngineError`."""
    rows_max = config.limits.rows_max
    version = placed(request, model_descriptor, golden, config, workers)
    if version.certificate is None:
        inputs = None if golden is None else decode_golden(golden).inputs
        version.certificate = certify(version.engine, version.spec, request.states, inputs, rows_max)
    if shortfall := version.certificate.shortfall(config.certificate):
        raise EngineError(shortfall)
    return version


def placed(
    request: VersionRequest, model_descriptor: int, golden: bytes | None, config: PolicyConfig, workers: Workers
) -> Version:
    """Builds a version where it is to run, inline or in a worker. A bounded graph is measured inline first, if need be."""
    settings, rows_max = config.engine, config.limits.rows_max
    placement = place_beforehand(
        settings.placement, request.engine.kind, settings.devices, request.unbounded, request.placement
    )
    if placement is None or placement.where == "inline":
        version = build_version(request, path_of(model_descriptor), golden, rows_max, settings)
        if placement is None:
            measured = measure_until(version.engine, clock_for(settings.threads), settings.inline_us_max * 1e3)
            p99_us = {rows: p99_ns / 1e3 for rows, (_, p99_ns) in measured.items()}
            placement = decide(settings.placement, request.unbounded, p99_us, settings.inline_us_max)
            for rows, (p50_ns, p99_ns) in measured.items():
                version.service.learn(rows, p50_ns, p99_ns)
    if placement.where == "worker":
        model_bytes = os.fstat(model_descriptor).st_size

        def start(request: VersionRequest) -> Version:
            workers.close_version(request.digest)
            return workers.start(request, model_bytes, config.limits, settings)

        version = start_checked(start, request, golden, rows_max, settings)
    version.placement = placement
    return version


def make_loop(
    end: socket.socket,
    config: StartupConfig,
    page: MetricsPage,
    loaded: list[LoadedPolicy],
    workers: Workers,
    poller: MessagePoller,
    transports: list[Transport],
) -> tuple[ServingLoop, ControlHandler]:
    """Puts the parts together. `loaded` holds what was loaded for each policy of `config`."""
    policies = [
        ServedPolicy(Router(its.stable), its_config.limits, its_config.engine)
        for its, its_config in zip(loaded, config.policies, strict=True)
    ]
    scheduler = Scheduler()
    sessions = make_sessions(config.epoch, policies, config.sessions_max, page, time.monotonic_ns)

    def log_event(name: str, fields: EventFields) -> None:
        try:
            channel.send(end, Event(name, fields))
        except BlockingIOError:
            # The control process reads too slowly. A log line is worth less than a step, and the metrics page counts it.
            return

    end.setblocking(False)
    busy_poll_us = config.serving.busy_poll_us
    loop = ServingLoop(
        poller, transports, sessions, scheduler, page, time.monotonic_ns, log_event, busy_poll_us=busy_poll_us
    )
    for policy, its_config, its in zip(policies, config.policies, loaded, strict=True):
        policy.residency = Residency(policy.router, sessions, scheduler, its_config.residency, its_config.watch_s)
        resume(policy.residency, its_config, its.versions)
    set_tap = connect_cache(loop, sessions) if isinstance(sessions, CachingSessions) else loop.set_tap
    control_handler = ControlHandler(
        end, config.epoch, poller, sessions, page, loop.stop, set_tap, workers, loop.exercise
    )
    workers.sink = loop
    workers.set_report(control_handler.send)
    loop.on_tick = control_handler.sweep
    if isinstance(sessions, CachingSessions):
        loop.on_tick = partial(sweep_with_cache, control_handler, sessions)
    poller.add(end.fileno(), control_handler)
    return loop, control_handler


def make_sessions(
    epoch: int, policies: list[ServedPolicy], sessions_max: int, page: MetricsPage, clock: Callable[[], int]
) -> Sessions:
    """Returns the sessions. Only if a policy has a result cache, they are those that ask it: each act pays for that."""
    if any(policy.cache is not None for policy in policies):
        return CachingSessions(epoch, policies, sessions_max, page, clock)
    return Sessions(epoch, policies, sessions_max, page)


def connect_cache(loop: ServingLoop, sessions: CachingSessions) -> Callable[[Tap | None], None]:
    """Lets the loop send what the caches answer, and fill them; returns the function that sets the tap of a shadow."""
    sessions.send_cached = loop.send_cached
    filler = CacheFiller(sessions)
    loop.set_tap(filler)
    return filler.set_shadow


def sweep_with_cache(control_handler: ControlHandler, sessions: CachingSessions) -> None:
    """Unloads versions that are no longer needed, and then frees what was cached of them."""
    control_handler.sweep()
    sessions.sweep_cache()


def resume(residency: Residency, config: PolicyConfig, versions: list[Version]) -> None:
    """Restores the traffic split and the evaluation holds from before a restart."""
    now_ns = time.monotonic_ns()
    for version in versions[1:]:
        residency.add(version)
    arms = [(residency.find(arm.digest), arm.share) for arm in config.arms]
    held = [residency.find(digest) for digest in config.held]
    residency.set_arms([(version, share) for version, share in arms if version is not None], now_ns)
    residency.hold([version for version in held if version is not None], now_ns)


def pin(settings: ServingSettings) -> None:
    """Pins the process to its CPUs. Call it before there are threads: those would keep their own affinity."""
    if settings.cpus:
        os.sched_setaffinity(0, cpu_numbers(settings.cpus))


def settle(settings: ServingSettings) -> None:
    """Prepares the interpreter and the garbage collector for low latency, and frees what only the start needed."""
    # The finite check lets a sum overflow, and then checks element by element.
    np.seterr(over="ignore", invalid="ignore")
    sys.setswitchinterval(settings.switch_interval_us / 1e6)
    gc.collect()
    # The observations that were drawn to certify a version can take tens of MB.
    return_freed_memory()
    if settings.gc_freeze:
        # Objects from start-up leave the collector's sight, so that a full collection finds next to nothing.
        gc.freeze()


def describe_process() -> dict[str, Any]:
    """The effect of `pin` and `settle`, as the kernel and the interpreter report it."""
    return {
        "cpus": sorted(os.sched_getaffinity(0)),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "slice_us": slice_us(),
        "switch_interval_us": round(sys.getswitchinterval() * 1e6),
        "gc_frozen_objects": gc.get_freeze_count(),
    }


def raise_descriptor_limit() -> None:
    """Raises the descriptor limit to the hard limit: a lane connection takes one, its slots two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    """Runs the serving process; returns the exit code."""
    die_with_parent(int(sys.argv[2]))
    raise_descriptor_limit()
    # Before there are other threads, which inherit the time slice.
    request_short_slices()
    # The control process decides when to stop: a signal to the whole group must not cut a drain short.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = socket.socket(fileno=int(sys.argv[1]))
    if INLINE in sys.argv[3:]:
        # Now, while the control process verifies the policies: not while this one serves, which would wait for it.
        import_module("pilliond.engine.onnx")
    try:
        config = channel.receive_startup(end)
        if config is None:
            return os.EX_SOFTWARE
        uvloop.run(serve(end, config))
    except StartCancelledError:
        return os.EX_OK
    except DaemonError as error:
        channel.send(end, Failed(str(error), error.exit_code))
        return error.exit_code
    except Exception:  # noqa: BLE001 - a bug: continuing with half a step done could give a wrong answer, or none
        traceback.print_exc()
        return os.EX_SOFTWARE
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
