"""The serving process: one loop that owns every data socket, every session and the inline engine.

Started by the control process as `python -m pilliond.serving DESCRIPTOR`, the serving end of the channel. No HTTP,
no files, no log handlers, no other Python threads; it dies with its parent.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, ClassVar, Final

import numpy as np

from pilliond import channel, metrics_page
from pilliond.channel import Assignment, Drain, Event, Failed, Ready
from pilliond.engine import EngineError
from pilliond.errors import BadPolicyError, DaemonError
from pilliond.lane_transport import LaneTransport
from pilliond.listen import carrier_of
from pilliond.metrics_page import MetricsPage, Phase
from pilliond.onnx_engine import OnnxEngine
from pilliond.parity import check_parity
from pilliond.poller import Poller
from pilliond.routing import Router
from pilliond.scheduler import Scheduler
from pilliond.serving_loop import ServingLoop
from pilliond.sessions import Sessions
from pilliond.settings import ServingSettings, cpu_numbers
from pilliond.transport import Transport
from pilliond.versions import Identity, Version
from pilliond.zmq_transport import ZmqTransport

_PR_SET_PDEATHSIG: Final = 1


class Orders:
    """The channel from the control process, as a source of the loop; `on_end` is told why to end."""

    bursts: ClassVar[bool] = False

    def __init__(self, end: socket.socket, on_end: Callable[[str], None]) -> None:
        self._end = end
        self._on_end = on_end

    def receive(self) -> None:
        order = channel.receive_order(self._end)
        if not isinstance(order, Assignment):
            self._on_end(order.reason if isinstance(order, Drain) else "the control process is gone")


def serve(end: socket.socket, assignment: Assignment) -> None:
    """Starts, warms up, says READY, runs until told to drain, drains, stops."""
    pin(assignment.serving)
    page = MetricsPage(assignment.page_descriptor)
    page.cells[metrics_page.PHASE] = Phase.WARMING
    version = load_version(assignment)
    poller = Poller()
    carriers: dict[str, Transport] = {
        "lane": LaneTransport(version.observation_bytes, poller, page, assignment.group),
        "zmq": ZmqTransport(poller),
    }
    try:
        listen = [carriers[carrier_of(address)].bind(address) for address in assignment.listen]
        settle(assignment.serving)
        loop = make_loop(end, assignment, page, version, poller, list(carriers.values()))
        poller.add(end.fileno(), Orders(end, loop.stop))
        page.cells[metrics_page.READY_AT_NS] = time.monotonic_ns()
        page.cells[metrics_page.PHASE] = Phase.READY
        channel.send(end, Ready(listen, version.engine.describe(), describe_process()))
        reason = loop.run()
        page.cells[metrics_page.PHASE] = Phase.DRAINING
        loop.drain(reason)
    finally:
        for transport in carriers.values():
            transport.close()
        poller.close()
    page.cells[metrics_page.PHASE] = Phase.STOPPED


def load_version(assignment: Assignment) -> Version:
    """Builds the engine from the verified bytes, warms it and runs the golden pairs; raises `BadPolicyError`."""
    distribution, limits = assignment.distribution, assignment.limits
    model = read_descriptor(assignment.model_descriptor)
    try:
        engine = OnnxEngine(
            model,
            assignment.spec,
            distribution.parameters(),
            limits.rows_max,
            assignment.threads,
            assignment.states,
        )
        engine.warm_up()
        if assignment.golden_descriptor >= 0:
            golden = read_descriptor(assignment.golden_descriptor)
            check_parity(engine, assignment.spec, assignment.states, golden, assignment.tolerance, limits.rows_max)
        identity = Identity(assignment.policy, assignment.version, assignment.digest)
        return Version(identity, assignment.spec, distribution, engine, assignment.safe_action)
    except EngineError as error:
        raise BadPolicyError(f"{assignment.policy}@{assignment.version}: {error}") from None


def read_descriptor(descriptor: int) -> bytes:
    """All bytes of a sealed memfd, which stays open."""
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()


def make_loop(
    end: socket.socket,
    assignment: Assignment,
    page: MetricsPage,
    version: Version,
    poller: Poller,
    transports: list[Transport],
) -> ServingLoop:
    """Puts the parts together."""
    limits = assignment.limits
    scheduler = Scheduler(limits.rows_max, limits.batch_wait_us_max * 1_000)
    sessions = Sessions(assignment.epoch, Router(version), limits, page, scheduler)

    def report(name: str, fields: dict[str, Any]) -> None:
        try:
            channel.send(end, Event(name, fields))
        except BlockingIOError:
            # Nobody reads: a log line is worth less than a step. The metrics page has counted it.
            return

    end.setblocking(False)
    busy_poll_us = assignment.serving.busy_poll_us
    return ServingLoop(
        poller, transports, sessions, scheduler, page, time.monotonic_ns, report, busy_poll_us=busy_poll_us
    )


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
        "switch_interval_us": round(sys.getswitchinterval() * 1e6),
        "gc_frozen_objects": gc.get_freeze_count(),
    }


def take_all_descriptors() -> None:
    """Raises the number of descriptors to what the kernel allows: a connection of the lane takes one, its slots two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def die_with_parent() -> None:
    """Asks the kernel to end this process when its parent ends, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Runs one assignment; gives the exit code."""
    die_with_parent()
    take_all_descriptors()
    # The control process decides when to stop: a signal to the whole group must not cut a drain short.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = socket.socket(fileno=int(sys.argv[1]))
    assignment = channel.receive_order(end)
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
