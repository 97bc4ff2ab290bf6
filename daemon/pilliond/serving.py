"""The serving process: one uvloop loop that owns every data socket, every session and the inline engine.

Started by the control process as `python -m pilliond.serving DESCRIPTOR`, the serving end of the channel. No HTTP,
no files, no log handlers, no other Python threads; it dies with its parent.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys
import time
from typing import Any, Final

import uvloop

from pilliond import channel, metrics_page
from pilliond.channel import Assignment, Drain, Event, Failed, Ready
from pilliond.engine import EngineError
from pilliond.errors import BadPolicyError, DaemonError
from pilliond.lane_transport import LaneTransport
from pilliond.listen import carrier_of
from pilliond.metrics_page import MetricsPage, Phase
from pilliond.onnx_engine import OnnxEngine
from pilliond.parity import check_parity
from pilliond.routing import Router
from pilliond.scheduler import Scheduler
from pilliond.serving_loop import ServingLoop
from pilliond.sessions import Sessions
from pilliond.transport import Transport
from pilliond.versions import Identity, Version
from pilliond.zmq_transport import ZmqTransport

_PR_SET_PDEATHSIG: Final = 1
_SWITCH_INTERVAL_S: Final = 50e-6


async def serve(end: socket.socket, assignment: Assignment) -> None:
    """Starts, warms up, says READY, runs until told to drain, drains, stops."""
    asyncio.get_running_loop().set_exception_handler(crash)
    page = MetricsPage(assignment.page_descriptor)
    page.cells[metrics_page.PHASE] = Phase.WARMING
    version = load_version(assignment)
    carriers: dict[str, Transport] = {"lane": LaneTransport(version.observation_bytes), "zmq": ZmqTransport()}
    try:
        listen = [carriers[carrier_of(address)].bind(address) for address in assignment.listen]
        settle_memory()
        loop = make_loop(end, assignment, page, version, list(carriers.values()))
        loop.start()
        page.cells[metrics_page.READY_AT_NS] = time.monotonic_ns()
        page.cells[metrics_page.PHASE] = Phase.READY
        channel.send(end, Ready(listen, version.engine.describe()))
        reason = await drain_ordered(end)
        page.cells[metrics_page.PHASE] = Phase.DRAINING
        loop.drain(reason)
        loop.stop()
    finally:
        for transport in carriers.values():
            transport.close()
    page.cells[metrics_page.PHASE] = Phase.STOPPED


def load_version(assignment: Assignment) -> Version:
    """Builds the engine from the verified bytes, warms it and runs the golden pairs; raises `BadPolicyError`."""
    distribution, limits = assignment.distribution, assignment.limits
    model = read_descriptor(assignment.model_descriptor)
    try:
        engine = OnnxEngine(model, assignment.spec, distribution.parameters(), limits.rows_max, assignment.threads)
        engine.warm_up()
        if assignment.golden_descriptor >= 0:
            golden = read_descriptor(assignment.golden_descriptor)
            check_parity(engine, assignment.spec, golden, assignment.tolerance, limits.rows_max)
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
    end: socket.socket, assignment: Assignment, page: MetricsPage, version: Version, transports: list[Transport]
) -> ServingLoop:
    """Puts the parts together."""
    limits = assignment.limits
    scheduler = Scheduler(limits.rows_max, limits.batch_wait_us_max * 1_000)
    sessions = Sessions(assignment.epoch, Router(version), limits, page, lambda: scheduler.rows_waiting)

    def report(name: str, fields: dict[str, Any]) -> None:
        try:
            channel.send(end, Event(name, fields))
        except BlockingIOError:
            # Nobody reads: a log line is worth less than a step. The metrics page has counted it.
            return

    return ServingLoop(transports, sessions, scheduler, page, time.monotonic_ns, report)


def settle_memory() -> None:
    """Takes all that start-up made out of the garbage collector's sight: a full collection finds next to nothing."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()


async def drain_ordered(end: socket.socket) -> str:
    """Waits for the order to drain, or for the control process to be gone; gives the reason."""
    loop = asyncio.get_running_loop()
    ordered: asyncio.Future[str] = loop.create_future()

    def on_order() -> None:
        order = channel.receive_order(end)
        if not ordered.done() and not isinstance(order, Assignment):
            ordered.set_result(order.reason if isinstance(order, Drain) else "the control process is gone")

    end.setblocking(False)
    loop.add_reader(end.fileno(), on_order)
    try:
        return await ordered
    finally:
        loop.remove_reader(end.fileno())


def crash(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Ends the process at a bug: going on with half a step done could answer somebody wrongly, or nobody."""
    loop.default_exception_handler(context)
    sys.stderr.flush()
    os._exit(os.EX_SOFTWARE)


def die_with_parent() -> None:
    """Asks the kernel to end this process when its parent ends, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Runs one assignment; gives the exit code."""
    die_with_parent()
    # The control process decides when to stop: a signal to the whole group must not cut a drain short.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = socket.socket(fileno=int(sys.argv[1]))
    assignment = channel.receive_order(end)
    if not isinstance(assignment, Assignment):
        return os.EX_SOFTWARE
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(end, assignment))
    except DaemonError as error:
        channel.send(end, Failed(str(error), error.exit_code))
        return error.exit_code
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
