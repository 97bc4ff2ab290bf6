"""A worker that is broken or hostile: it speaks the protocol up to one point, then does what its last argument says."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from pillion_worker.arena import (
    COMPLETED,
    COMPUTE_NS,
    COPY_IN_NS,
    COPY_OUT_NS,
    FAILED,
    FAILURE_BYTES,
    FINISHED_NS,
    NUMBER,
    OK,
    OUTCOME,
    STARTED_NS,
    Arena,
    ArenaLayout,
    block_of,
)
from pillion_worker.channel import receive_packet, send_packet
from pillion_worker.doorbell import wait_for_rings
from pillion_worker.limits import DESCRIPTION_BYTES_MAX, DESCRIPTION_KEYS_MAX, FAILURE_BYTES_MAX, PACKET_BYTES_MAX
from pillion_worker.tensors import LoadRequest
from pilliond.limits import ENGINE_DEVICES_MAX

MOST = 2**64 - 1
BLOCK = block_of(0)
CELLS = {
    "started": STARTED_NS,
    "finished": FINISHED_NS,
    "length": FAILURE_BYTES,
    "copy_in": COPY_IN_NS,
    "compute": COMPUTE_NS,
    "copy_out": COPY_OUT_NS,
}

_DEVICE_MEMORY = {"device": "cuda:0", "used_bytes": 1, "free_bytes": 1, "total_bytes": 1}


class Rogue:
    """What a mode may use."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        packet, _ = receive_packet(channel, "load", 1) or ({}, [])
        self.request = LoadRequest.from_packet(packet)

    def say_loaded(self, **changes: Any) -> None:
        """Says that it loaded, with these fields changed."""
        outputs = [tensor._asdict() for tensor in self.request.outputs]
        send_packet(self.channel, {"type": "loaded", "outputs": outputs, "description": {}, **changes})

    def map(self) -> None:
        """Gets the arena."""
        _, descriptors = receive_packet(self.channel, "arena", 4 if self.request.states else 3) or ({}, [])
        request = self.request
        layout = ArenaLayout(request.observation, request.outputs, request.states, request.room, request.depth)
        self.arena = Arena(descriptors[0], layout)
        self.cells = self.arena.cells
        self.memory = descriptors[0]
        self.submit, self.complete = descriptors[1], descriptors[2]

    def say_ready(self, **changes: Any) -> None:
        """Says that it is ready, with these fields changed."""
        fields = {"memory": "locked", "buckets": [self.request.rows_max], "service_ns": [[1, 1]]}
        send_packet(self.channel, {"type": "ready", **fields, **changes})

    def get_ready(self, **description: str) -> None:
        """Does what any worker does."""
        self.say_loaded(description=description)
        self.map()
        self.say_ready()

    def wait(self) -> None:
        """Waits for a batch."""
        wait_for_rings(self.submit)

    def answer(self, *, completed: int = 1, number: int = 1, outcome: int = OK, rings: int = 1, **cells: int) -> None:
        """Answers the first batch."""
        for name, value in cells.items():
            self.cells[BLOCK + CELLS[name]] = value
        self.cells[BLOCK + NUMBER] = number
        self.cells[BLOCK + OUTCOME] = outcome
        self.cells[COMPLETED] = completed
        if rings:
            os.write(self.complete, rings.to_bytes(8, sys.byteorder))


def _with_arena(act: Callable[[Rogue], None]) -> Callable[[Rogue], None]:
    def run(rogue: Rogue) -> None:
        rogue.say_loaded()
        rogue.map()
        act(rogue)

    return run


def _when_ready(act: Callable[[Rogue], None]) -> Callable[[Rogue], None]:
    def run(rogue: Rogue) -> None:
        rogue.get_ready()
        act(rogue)

    return run


def _with_batch(**answer: int) -> Callable[[Rogue], None]:
    def run(rogue: Rogue) -> None:
        rogue.get_ready()
        rogue.wait()
        rogue.answer(**answer)

    return run


def _answer_twice(rogue: Rogue) -> None:
    rogue.wait()
    rogue.answer()
    rogue.answer()


def _answer_without_text(rogue: Rogue) -> None:
    rogue.wait()
    rogue.arena._texts[0][:] = b"\xff" * FAILURE_BYTES_MAX
    rogue.answer(outcome=FAILED, length=FAILURE_BYTES_MAX)


def _try_to_shrink(rogue: Rogue) -> None:
    rogue.wait()
    for size in (0, os.fstat(rogue.memory).st_size + 1):
        try:
            os.ftruncate(rogue.memory, size)
        except PermissionError:
            continue
        return
    rogue.answer()


def _fill_the_doorbell(rogue: Rogue) -> None:
    # An end that writes, which it was not given.
    end = os.open(f"/proc/self/fd/{rogue.submit}", os.O_WRONLY | os.O_NONBLOCK)
    while True:
        try:
            os.write(end, bytes(4_096))
        except BlockingIOError:
            break
    os.set_blocking(end, True)
    os.set_blocking(rogue.submit, True)
    rogue.say_ready()


def _send_a_descriptor(rogue: Rogue) -> None:
    socket.send_fds(rogue.channel, [b'{"type":"loaded","outputs":[],"description":{}}'], [0])


def _with_parameter(shape: list[int]) -> Callable[[Rogue], None]:
    def run(rogue: Rogue) -> None:
        outputs = [tensor._asdict() for tensor in rogue.request.outputs]
        parameters = [{"name": name, "dtype": "float64", "shape": shape} for name in rogue.request.parameters]
        rogue.say_loaded(outputs=outputs + parameters)

    return run


def _described(**description: Any) -> Callable[[Rogue], None]:
    return lambda rogue: rogue.say_loaded(description=description)


def _deep_description(rogue: Rogue) -> None:
    nested: Any = 1
    for _ in range(500):
        nested = [nested]
    rogue.say_loaded(description={"kind": nested})


def _claim_a_slow_device(rogue: Rogue) -> None:
    rogue.get_ready(device="cuda:0")
    rogue.wait()
    rogue.answer(started=0, finished=MOST, copy_in=7, compute=MOST, copy_out=MOST)


def _claim_to_be_slow(rogue: Rogue) -> None:
    rogue.say_ready(service_ns=[[1_000, 3_000]])


_Modes = dict[str, Callable[[Rogue], None]]

BEFORE_BATCHES: _Modes = {
    # while it loads
    "garbage": lambda rogue: rogue.channel.sendall(b"\xff\x00{"),
    "not an object": lambda rogue: rogue.channel.sendall(b"[1, 2]"),
    "deep": lambda rogue: rogue.channel.sendall(b"[" * 100_000),
    "a long packet": lambda rogue: rogue.channel.sendall(b" " * (PACKET_BYTES_MAX + 1)),
    "a descriptor": _send_a_descriptor,
    "an unknown type": lambda rogue: send_packet(rogue.channel, {"type": "hello"}),
    "a long type": lambda rogue: send_packet(rogue.channel, {"type": "x" * 100_000}),
    "ready too early": lambda rogue: rogue.say_ready(),
    "no outputs": lambda rogue: rogue.say_loaded(outputs=[]),
    "another dtype": lambda rogue: rogue.say_loaded(
        outputs=[{**tensor._asdict(), "dtype": "complex128"} for tensor in rogue.request.outputs]
    ),
    "a negative shape": lambda rogue: rogue.say_loaded(
        outputs=[{**tensor._asdict(), "shape": [-1]} for tensor in rogue.request.outputs]
    ),
    "an impossible parameter": _with_parameter([2**31, 2**31]),
    "a parameter without elements": _with_parameter([0, *[2**31] * 8]),
    "a large parameter": _with_parameter([2**31]),
    "a parameter of many axes": _with_parameter([1] * 100),
    "a huge number in its description": _described(version=2**64),
    "a deep description": _deep_description,
    "a long description": _described(kind="x" * (DESCRIPTION_BYTES_MAX + 1)),
    "many entries in its description": _described(**{f"{number}": 1 for number in range(DESCRIPTION_KEYS_MAX + 1)}),
    "a description with a fraction": _described(version=0.5),
    # with the arena
    "loaded again": _with_arena(lambda rogue: rogue.say_loaded()),
    "no buckets": _with_arena(lambda rogue: rogue.say_ready(buckets=[], service_ns=[])),
    "descending buckets": _with_arena(lambda rogue: rogue.say_ready(buckets=[8, 4], service_ns=[[1, 1], [1, 1]])),
    "a huge bucket": _with_arena(lambda rogue: rogue.say_ready(buckets=[2**40])),
    "no service times": _with_arena(lambda rogue: rogue.say_ready(service_ns=[])),
    "service times of years": _with_arena(lambda rogue: rogue.say_ready(service_ns=[[1, 2**62]])),
    "a p50 above its p99": _with_arena(lambda rogue: rogue.say_ready(service_ns=[[2, 1]])),
    "less than no device memory": _with_arena(
        lambda rogue: rogue.say_ready(device_memory=[{**_DEVICE_MEMORY, "used_bytes": -1}])
    ),
    "memory of a long device": _with_arena(
        lambda rogue: rogue.say_ready(device_memory=[{**_DEVICE_MEMORY, "device": "cuda:" + "0" * 1_000}])
    ),
    "memory of a device and a line": _with_arena(
        lambda rogue: rogue.say_ready(device_memory=[{**_DEVICE_MEMORY, "device": "cuda:0\n"}])
    ),
    "memory of a device in other digits": _with_arena(
        lambda rogue: rogue.say_ready(device_memory=[{**_DEVICE_MEMORY, "device": "cuda:\N{ARABIC-INDIC DIGIT THREE}"}])
    ),
    "memory of many devices": _with_arena(
        lambda rogue: rogue.say_ready(device_memory=[_DEVICE_MEMORY] * (ENGINE_DEVICES_MAX + 1))
    ),
    "an unknown kind of memory": _with_arena(lambda rogue: rogue.say_ready(memory="x" * 100_000)),
    "a ring before it is ready": _with_arena(lambda rogue: rogue.answer()),
    # when it is ready
    "ready again": _when_ready(lambda rogue: rogue.say_ready()),
    "a ring without a batch": _when_ready(lambda rogue: rogue.answer(completed=0)),
    "a batch that nobody submitted": _when_ready(lambda rogue: rogue.answer()),
    "all rings": _when_ready(lambda rogue: rogue.answer(rings=2**64 - 2)),
}
WITH_A_BATCH: _Modes = {
    "a later batch": _with_batch(completed=7),
    "the largest number": _with_batch(completed=MOST),
    "an earlier batch": _with_batch(completed=0),
    "a block of another batch": _with_batch(number=2),
    "no outcome": _with_batch(outcome=0),
    "an unknown outcome": _with_batch(outcome=3),
    "a long message": _with_batch(outcome=FAILED, length=MOST),
    "a message that is a bit too long": _with_batch(outcome=FAILED, length=401),
    "two outcomes": _when_ready(_answer_twice),
    "a full doorbell": _with_arena(_fill_the_doorbell),
}
HARMLESS: _Modes = {
    "a message that is no text": _when_ready(_answer_without_text),
    "another size of the arena": _when_ready(_try_to_shrink),
    "times before the batch": _with_batch(started=0, finished=0),
    "times to come": _with_batch(started=MOST, finished=MOST),
    "a device that took for ever": _claim_a_slow_device,
}
MODES = {**BEFORE_BATCHES, **WITH_A_BATCH, **HARMLESS, "slow claims": _with_arena(_claim_to_be_slow)}


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        MODES[sys.argv[3]](Rogue(channel))
        signal.pause()
