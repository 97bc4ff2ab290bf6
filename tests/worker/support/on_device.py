"""A worker that says it is on a device, and what the device took for each batch: `PYTHON on_device.py FD PARENT_PID DEVICE`.

It speaks the channel itself and computes with the real engine, on the CPU. `times_of` are the times that it writes for a
batch; it writes them on the device `cpu`, too, where nobody must read them.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

from pillion_protocol.action_steps import DeviceTimes
from pillion_worker.arena import (
    COMPLETED,
    COMPUTE_NS,
    COPY_IN_NS,
    COPY_OUT_NS,
    FINISHED_NS,
    MEMORY,
    OK,
    OUTCOME,
    ROWS,
    STARTED_NS,
    Arena,
    ArenaLayout,
    block_of,
)
from pillion_worker.buckets import service_buckets
from pillion_worker.channel import receive_packet, send_packet
from pillion_worker.doorbell import ring_loop, wait_for_rings
from pillion_worker.engines.interface import load_engine
from pillion_worker.runs.state_table import StateTable
from pillion_worker.sandbox import die_with_parent
from pillion_worker.tensors import LoadRequest
from pillion_worker.worker import measure

REMEMBERED = 50
"""Batches until the same times return: an act whose times were those of the batch before would be noticed."""


def times_of(number: int) -> DeviceTimes:
    """Returns the times of the batch with this number. Their sum is below what any run takes."""
    step = number % REMEMBERED
    return DeviceTimes(100 + step, 200 + step, 300 + step)


def make_interpreter(folder: Path) -> Path:
    """Writes a program for `engine.python` whose workers are these, on the device that the file `device` beside it names.

    Its check for workers is that of the real interpreter.
    """
    (folder / "device").write_text("cuda:0")
    program = folder / "python"
    program.write_text(
        "#!/bin/sh\n"
        f'[ "$2" = --check ] && exec "{sys.executable}" "$@"\n'
        f'exec "{sys.executable}" "{__file__}" "$2" "$3" "$(cat "{folder}/device")"\n'
    )
    program.chmod(0o755)
    return program


def work(channel: socket.socket, device: str) -> None:
    """Serves one version until the serving process is gone."""
    packet, descriptors = receive_packet(channel, "load", 1) or ({}, [])
    request = LoadRequest.from_packet(packet)
    with open(descriptors[0], "rb") as model:
        model.seek(0)
        engine = load_engine(model.read(), request)
    outputs = [tensor._asdict() for tensor in engine.outputs]
    description = {**engine.describe(), "device": device}
    send_packet(channel, {"type": "loaded", "outputs": outputs, "description": description})
    _, (memory, submit, complete, *states) = receive_packet(channel, "arena", 4 if request.states else 3) or ({}, [])
    layout = ArenaLayout(request.observation, engine.outputs, request.states, request.room, request.depth)
    arena = Arena(memory, layout)
    runs = [engine.bind(each) for each in arena.memories]
    for descriptor in states:
        table = StateTable(descriptor, request.states)
        runs = [table.carry(each, memory) for each, memory in zip(runs, arena.memories, strict=True)]
    buckets = service_buckets(request.rows_max, request.strict_rows)
    service_ns = [measure(runs[0][min(rows, request.rows_max)]) for rows in buckets]
    send_packet(channel, {"type": "ready", "memory": "pageable", "buckets": buckets, "service_ns": service_ns})
    cells = arena.cells
    number = 0
    while rings := wait_for_rings(submit):
        for _ in range(rings):
            number += 1
            block = block_of((number - 1) % request.depth)
            cells[block + STARTED_NS] = time.monotonic_ns()
            runs[cells[block + MEMORY]][cells[block + ROWS]]()
            cells[block + FINISHED_NS] = time.monotonic_ns()
            cells[block + COPY_IN_NS], cells[block + COMPUTE_NS], cells[block + COPY_OUT_NS] = times_of(number)
            cells[block + OUTCOME] = OK
            cells[COMPLETED] = number
            ring_loop(complete)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with socket.socket(fileno=int(sys.argv[1])) as end:
        work(end, sys.argv[3])
