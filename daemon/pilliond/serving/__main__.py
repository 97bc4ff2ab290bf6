"""The serving process: one loop that owns every data socket, every session and the inline engine.

Started by the control process as `python -m pilliond.serving.__main__ DESCRIPTOR`, the serving end of the channel. No HTTP,
no files, no log handlers, no other Python threads but one while a version is loaded beside those that serve; it dies with its parent.
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
from typing import Any

import numpy as np

from pillion_artifacts.card.golden_pairs import decode_golden
from pilliond.core.residency import Residence
from pilliond.core.routing import Router
from pilliond.core.scheduler import Scheduler
from pilliond.core.sessions import Sessions
from pilliond.engine.certifier import certify
from pilliond.engine.interface import EngineError
from pilliond.errors import BadPolicyError, DaemonError
from pilliond.ipc import control_channel as channel
from pilliond.ipc import metrics_page
from pilliond.ipc.control_channel import Assignment, Event, Failed, LoadFailed, Ready, VersionOrder
from pilliond.ipc.metrics_page import MetricsPage, Phase
from pilliond.linux.cpu_priority import slice_us, take_short_turns
from pilliond.linux.epoll import Poller
from pilliond.linux.sandbox import die_with_parent
from pilliond.serving.loop import ServingLoop
from pilliond.serving.order_handler import Orders
from pilliond.settings.addresses import carrier_of
from pilliond.settings.schema import ServingSettings, cpu_numbers
from pilliond.transport.interface import Transport
from pilliond.transport.lane import LaneTransport
from pilliond.transport.zmq import ZmqTransport
from pilliond.versions.loaded_version import Version
from pilliond.versions.loader import build_version, read_descriptor


def serve(end: socket.socket, assignment: Assignment) -> None:
    """Starts, warms up, says READY, runs until told to drain, drains, stops."""
    pin(assignment.serving)
    page = MetricsPage(assignment.page_descriptor)
    page.cells[metrics_page.PHASE] = Phase.WARMING
    version = load_version(assignment)
    beside, refused = load_beside(assignment)
    poller = Poller()
    carriers: dict[str, Transport] = {
        "lane": LaneTransport(version.observation_bytes, poller, page, assignment.group),
        "zmq": ZmqTransport(poller),
    }
    try:
        listen = [carriers[carrier_of(address)].bind(address) for address in assignment.listen]
        settle(assignment.serving)
        loop, orders = make_loop(end, assignment, page, [version, *beside], poller, list(carriers.values()))
        page.cells[metrics_page.READY_AT_NS] = time.monotonic_ns()
        page.cells[metrics_page.PHASE] = Phase.READY
        certificates = {each.digest: each.certificate for each in (version, *beside) if each.certificate is not None}
        channel.send(end, Ready(listen, version.engine.describe(), certificates, describe_process(), refused))
        reason = loop.run()
        page.cells[metrics_page.PHASE] = Phase.DRAINING
        loop.drain(reason)
        orders.close()
    finally:
        for transport in carriers.values():
            transport.close()
        poller.close()
    page.cells[metrics_page.PHASE] = Phase.STOPPED


def load_version(assignment: Assignment) -> Version:
    """The stable version, as `certified`; raises `BadPolicyError`."""
    order, golden_descriptor = assignment.version, assignment.golden_descriptor
    model = read_descriptor(assignment.model_descriptor)
    golden = read_descriptor(golden_descriptor) if golden_descriptor >= 0 else None
    try:
        return certified(order, model, golden, assignment)
    except EngineError as error:
        raise BadPolicyError(f"{order.policy}@{order.version}: {error}") from None


def load_beside(assignment: Assignment) -> tuple[list[Version], list[LoadFailed]]:
    """Builds the versions that are loaded beside it, and says which of them cannot be: then the others serve."""
    built, refused = [], []
    for beside in assignment.beside:
        descriptors = [each for each in (beside.model_descriptor, beside.golden_descriptor) if each >= 0]
        model, *golden = [read_descriptor(descriptor) for descriptor in descriptors]
        for descriptor in descriptors:
            os.close(descriptor)
        try:
            built.append(certified(beside.version, model, golden[0] if golden else None, assignment))
        except (EngineError, MemoryError) as error:
            refused.append(LoadFailed(beside.version.digest, str(error) or "no memory is left for it"))
    return built, refused


def certified(order: VersionOrder, model: bytes, golden: bytes | None, assignment: Assignment) -> Version:
    """A version from verified bytes: warm, true to its golden pairs, certified where it was not yet; raises `EngineError`."""
    rows_max = assignment.limits.rows_max
    version = build_version(order, model, golden, rows_max, assignment.engine)
    if version.certificate is None:
        inputs = None if golden is None else decode_golden(golden).inputs
        version.certificate = certify(version.engine, version.spec, order.states, inputs, rows_max)
    if shortfall := version.certificate.shortfall(assignment.certificate):
        raise EngineError(shortfall)
    return version


def make_loop(
    end: socket.socket,
    assignment: Assignment,
    page: MetricsPage,
    versions: list[Version],
    poller: Poller,
    transports: list[Transport],
) -> tuple[ServingLoop, Orders]:
    """Puts the parts together. The first of `versions` is the stable one."""
    limits = assignment.limits
    scheduler = Scheduler(limits.rows_max, limits.batch_wait_us_max * 1_000)
    router = Router(versions[0])
    sessions = Sessions(assignment.epoch, router, limits, page, scheduler)

    def report(name: str, fields: dict[str, Any]) -> None:
        try:
            channel.send(end, Event(name, fields))
        except BlockingIOError:
            # Nobody reads: a log line is worth less than a step. The metrics page has counted it.
            return

    end.setblocking(False)
    busy_poll_us = assignment.serving.busy_poll_us
    loop = ServingLoop(
        poller, transports, sessions, scheduler, page, time.monotonic_ns, report, busy_poll_us=busy_poll_us
    )
    residence = Residence(router, sessions, assignment.residence, assignment.watch_s)
    resume(residence, assignment, versions)
    orders = Orders(end, assignment, poller, residence, sessions, page, loop.stop, loop.set_tap)
    loop.on_tick = orders.sweep
    poller.add(end.fileno(), orders)
    return loop, orders


def resume(residence: Residence, assignment: Assignment, versions: list[Version]) -> None:
    """Shares out new episodes, and holds versions for evaluations, as it was before the process was started again."""
    now_ns = time.monotonic_ns()
    for version in versions[1:]:
        residence.add(version)
    arms = [(residence.find(arm.digest), arm.share) for arm in assignment.arms]
    held = [residence.find(digest) for digest in assignment.held]
    residence.set_arms([(version, share) for version, share in arms if version is not None], now_ns)
    residence.hold([version for version in held if version is not None], now_ns)


def pin(settings: ServingSettings) -> None:
    """Keeps the process on its CPUs; to be called before it has threads, which would stay where they are."""
    if settings.cpus:
        os.sched_setaffinity(0, cpu_numbers(settings.cpus))


def settle(settings: ServingSettings) -> None:
    """Makes the process ready to be quick: its interpreter, its garbage collector."""
    # The check for finite numbers lets a sum overflow, and looks closer then.
    np.seterr(over="ignore", invalid="ignore")
    sys.setswitchinterval(settings.switch_interval_us / 1e6)
    gc.collect()
    if settings.gc_freeze:
        # What start-up made goes out of the collector's sight: a full collection finds next to nothing.
        gc.freeze()


def describe_process() -> dict[str, Any]:
    """What `pin` and `settle` came to."""
    return {
        "cpus": sorted(os.sched_getaffinity(0)),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "slice_us": slice_us(),
        "switch_interval_us": round(sys.getswitchinterval() * 1e6),
        "gc_frozen_objects": gc.get_freeze_count(),
    }


def take_all_descriptors() -> None:
    """Raises the number of descriptors to what the kernel allows: a connection of the lane takes one, its slots two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    """Runs one assignment; gives the exit code."""
    die_with_parent()
    take_all_descriptors()
    # Before there are other threads, which take after this one.
    take_short_turns()
    # The control process decides when to stop: a signal to the whole group must not cut a drain short.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = socket.socket(fileno=int(sys.argv[1]))
    assignment, _ = channel.receive_order(end)
    if not isinstance(assignment, Assignment):
        return os.EX_SOFTWARE
    try:
        serve(end, assignment)
    except DaemonError as error:
        channel.send(end, Failed(str(error), error.exit_code))
        return error.exit_code
    except Exception:  # noqa: BLE001 - a bug: going on with half a step done could answer somebody wrongly, or nobody
        traceback.print_exc()
        return os.EX_SOFTWARE
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
