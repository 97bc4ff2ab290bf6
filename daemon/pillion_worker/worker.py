"""The life of a worker: load, describe, map the arena, warm up, measure, then run batches until it is not needed."""

from __future__ import annotations

import gc
import os
import platform
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pillion_worker import channel as packets
from pillion_worker.arena import LAYOUT_VERSION, VERSION, Arena, ArenaLayout
from pillion_worker.buckets import WARM_UP_RUNS, service_buckets
from pillion_worker.channel import receive_packet, send_packet
from pillion_worker.device_memory.meter import DeviceMeter
from pillion_worker.doorbell import wait_for_rings
from pillion_worker.engines.interface import Engine, load_engine
from pillion_worker.errors import DriverError, EngineError, one_line
from pillion_worker.limits import MEASURED_NS_MAX, MEASURED_RUNS_MAX
from pillion_worker.memory import lock_pages
from pillion_worker.model_source import path_of
from pillion_worker.runs.batch_loop import BatchLoop, Runs
from pillion_worker.runs.interface import PipelinedRun
from pillion_worker.runs.keep_warm import KeepWarm
from pillion_worker.runs.pipelined_loop import PipelinedBatchLoop
from pillion_worker.runs.state_table import StateTable
from pillion_worker.sandbox import cut_off_forks, limit_memory
from pillion_worker.tensors import LoadRequest

if TYPE_CHECKING:
    from typing import TypeGuard


def work(channel: socket.socket, confinement: Mapping[str, str]) -> int:
    """Serves one version; returns the exit code. Owns nothing but what it maps; `channel` is its caller's.

    Raises `ChannelError` if the serving process does not keep to the protocol.
    """
    loading = receive_packet(channel, packets.LOAD, 1)
    if loading is None:
        return os.EX_OK
    protocol = loading[0].get("protocol")
    if protocol != packets.PROTOCOL:
        reason = f"the worker speaks protocol {packets.PROTOCOL}, the daemon {protocol}: it was updated, restart it"
        send_packet(channel, {"type": packets.FAILED, "message": reason})
        return os.EX_DATAERR
    request, model_descriptor = LoadRequest.from_packet(loading[0]), loading[1][0]
    limit_memory(request.memory_bytes_max)
    cut_off_forks([channel.fileno()])
    meter = DeviceMeter()
    try:
        engine = load_engine(path_of(model_descriptor), request, meter)
    except Exception as error:  # noqa: BLE001 - an engine's package may fail in its own ways, and the reason must arrive
        send_packet(channel, {"type": packets.FAILED, "message": _reason(error)})
        return os.EX_DATAERR
    os.close(model_descriptor)
    description = {**engine.describe(), "python": platform.python_version(), **confinement}
    outputs = [tensor._asdict() for tensor in engine.outputs]
    send_packet(channel, {"type": packets.LOADED, "outputs": outputs, "description": description})
    mapping = receive_packet(channel, packets.ARENA, 4 if request.states else 3)
    if mapping is None:
        return os.EX_OK
    return _serve(channel, request, engine, meter, *mapping[1])


def _serve(
    channel: socket.socket,
    request: LoadRequest,
    engine: Engine,
    meter: DeviceMeter,
    arena_descriptor: int,
    submit: int,
    complete: int,
    state_descriptor: int = -1,
) -> int:
    layout = ArenaLayout(request.observation, engine.outputs, request.states, request.room, request.depth)
    try:
        arena = Arena(arena_descriptor, layout)
        os.close(arena_descriptor)
        cut_off_forks([submit, complete, *([state_descriptor] if request.states else [])])
        if arena.cells[VERSION] != LAYOUT_VERSION:
            raise EngineError(f"this worker's arena is of another version than the daemon's: {LAYOUT_VERSION}")
        memory = _hold(engine, arena.bytes)
        runs: list[Runs] = [engine.bind(each) for each in arena.memories]
        if request.states and not engine.keeps_states:
            table = StateTable(state_descriptor, request.states)
            runs = [table.carry(each, memory) for each, memory in zip(runs, arena.memories)]
        buckets = service_buckets(request.rows_max, request.strict_rows)
        service_ns = [_warm_up(runs, min(rows, request.rows_max)) for rows in buckets]
        wait = waiting(engine, request.keep_warm_ms)
        device_memory = meter.read()
    except (EngineError, DriverError, MemoryError, OSError) as error:
        send_packet(channel, {"type": packets.FAILED, "message": _reason(error)})
        return os.EX_DATAERR
    gc.collect()
    gc.freeze()
    loop: BatchLoop
    if _are_pipelined(runs):
        loop = PipelinedBatchLoop(arena, submit, complete, runs, request.spin_us, wait=wait)
    else:
        loop = BatchLoop(arena, submit, complete, runs, request.spin_us, wait=wait)
    measured = {"buckets": buckets, "service_ns": service_ns, "device_memory": device_memory}
    send_packet(channel, {"type": packets.READY, "memory": memory, **measured})
    loop.run()
    return os.EX_OK


def _are_pipelined(runs: Sequence[Runs]) -> TypeGuard[Sequence[Sequence[PipelinedRun]]]:
    return all(isinstance(run, PipelinedRun) for each in runs for run in each)


def waiting(engine: Engine, keep_warm_ms: int) -> Callable[[int], int]:
    """How to wait for rings: with the device kept warm, if that was asked for and it needs it."""
    run = engine.idle_run() if keep_warm_ms else None
    return KeepWarm(run, keep_warm_ms).wait_for_rings if run else wait_for_rings


def _hold(engine: Engine, arena: memoryview) -> str:
    """Keeps the arena's pages in memory, and returns how: registered with a device, locked, or as any other page."""
    if engine.register(arena):
        return "pinned"
    return "locked" if lock_pages(arena) else "pageable"


def _warm_up(runs: Sequence[Runs], rows: int) -> list[int]:
    """Runs that many rows in every memory, and returns the p50 and the p99 of a run."""
    for each in runs:
        for _ in range(WARM_UP_RUNS):
            each[rows]()
    return measure(runs[0][rows])


def measure(run: Callable[[], None], clock: Callable[[], int] = time.monotonic_ns) -> list[int]:
    """Returns the p50 and the p99 of a run in nanoseconds, of at most `MEASURED_RUNS_MAX` runs."""
    taken: list[int] = []
    until_ns = clock() + MEASURED_NS_MAX
    while not taken or (len(taken) < MEASURED_RUNS_MAX and clock() < until_ns):
        began_ns = clock()
        run()
        taken.append(clock() - began_ns)
    taken.sort()
    return [taken[len(taken) // 2], taken[len(taken) * 99 // 100]]


def _reason(error: Exception) -> str:
    text = one_line(error)
    if isinstance(error, EngineError):
        return text
    if isinstance(error, (MemoryError, OSError)):
        return f"no memory is left for it: {text}"
    return f"{type(error).__name__}: {text}"
