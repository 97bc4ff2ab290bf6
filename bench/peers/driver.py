"""The closed loop that drives every contestant alike: a process for each client, one row each. Hot path.

Run as `python driver.py MODULE`, where MODULE is one of the `client_*` beside this file, in the environment that has
what the module needs; hence numpy, msgspec and the standard library alone. It speaks with the bench in the packets of
`pillion_bench.worker`: eight bytes of length, one byte that says whether it worked, then msgpack.

It imports the client once and forks the clients: each connects by itself, and a start of 64 takes a moment.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import multiprocessing
import os
import signal
import struct
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Any, Final, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
T = TypeVar("T")

_ATTEMPT_PAUSE_S: Final = 0.05
_LEAVE_S_MAX: Final = 2.0
_LENGTH: Final = struct.Struct("<QB")
_WORKED: Final = 1
_FAILED: Final = 0
_PR_SET_PDEATHSIG: Final = 1


class Plan(msgspec.Struct, frozen=True):
    """What the bench says: where, how many clients, what they send in turn, and what must come."""

    address: str
    clients: int
    observation_dtype: str
    observation_shape: list[int]
    """Of all observations together: the first axis counts them."""
    observations: bytes
    action_dtype: str
    action_shape: list[int]
    """Of one action."""
    actions: bytes
    """The right one for each observation."""
    absolute: float
    relative: float
    """By how much a floating-point action may differ: |a - b| <= absolute + relative * |b|."""
    attempt_s_max: float
    """How long a client tries to get its first answer: a server may listen before its model is loaded."""
    busy_poll_us: int = 0
    seed: int = 7

    def observation_arrays(self) -> list[Array]:
        """The observations, without a row axis."""
        return list(np.frombuffer(self.observations, self.observation_dtype).reshape(self.observation_shape))

    def action_arrays(self) -> list[Array]:
        """The right actions, without a row axis."""
        shape = (self.observation_shape[0], *self.action_shape)
        return list(np.frombuffer(self.actions, self.action_dtype).reshape(shape))


class Order(msgspec.Struct, frozen=True):
    """When to begin and to stop, on CLOCK_MONOTONIC: what is answered between the two counts."""

    count_from_ns: int
    count_until_ns: int


class Result(msgspec.Struct, frozen=True):
    """An int64 for each act that counted: round trip and engine, in ns; and how many answers were wrong."""

    latency_ns: bytes
    engine_ns: bytes
    mismatches: int


class Report(msgspec.Struct, frozen=True):
    """What a client says: that it is ready, what it counted, or what went wrong."""

    result: Result = Result(b"", b"", 0)
    error: str = ""


class ClientError(Exception):
    """A client failed; the message is its own."""


class Client(Protocol):
    """A blocking client, as a simulator uses it: made from the plan, it is connected to one server."""

    def act(self, observation: Array) -> tuple[Array, int]:
        """The action for one observation, both without a row axis; and the nanoseconds that the engine ran."""
        ...

    def close(self) -> None:
        """Leaves the server."""
        ...


class Answers:
    """The right action for each observation, and whether another is it."""

    def __init__(self, plan: Plan) -> None:
        self._right = plan.action_arrays()
        self._bytes = [action.tobytes() for action in self._right]
        self._absolute = plan.absolute
        self._relative = plan.relative

    def is_right(self, index: int, action: Array) -> bool:
        """Whether `action` answers that observation: bit by bit, or within the tolerance of floating-point ones."""
        if action.tobytes() == self._bytes[index]:
            return True
        right = self._right[index]
        if right.dtype.kind != "f" or action.shape != right.shape or action.dtype != right.dtype:
            return False
        return np.allclose(action, right, rtol=self._relative, atol=self._absolute, equal_nan=True)


def drive(client: Client, observations: list[Array], answers: Answers, order: Order) -> Result:
    """One act after the other until the time is up. Every answer is looked at, outside of what is timed."""
    made = len(observations)
    latency, engine = array("q"), array("q")
    act = client.act
    is_right = answers.is_right
    clock = time.monotonic_ns
    from_ns, until_ns = order.count_from_ns, order.count_until_ns
    mismatches = 0
    number = 0
    while (sent_ns := clock()) < until_ns:
        action, engine_ns = act(observations[number])
        now_ns = clock()
        if from_ns <= now_ns < until_ns:
            latency.append(now_ns - sent_ns)
            engine.append(engine_ns)
        if not is_right(number, action):
            mismatches += 1
        number = (number + 1) % made
    return Result(latency.tobytes(), engine.tobytes(), mismatches)


def run_client(name: str, plan: Plan, pipe: Connection) -> None:
    """The life of one client: connects, says so, drives when told, leaves. What goes wrong is told as well."""
    # A driver that is killed takes its clients along.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        client = first_answer(name, plan)
        observations, answers = plan.observation_arrays(), Answers(plan)
        # Before it says that it is ready: of many clients on one CPU this takes longer than a warm-up.
        gc.collect()
        gc.disable()
        _say(pipe, Report())
        order = msgspec.msgpack.decode(pipe.recv_bytes(), type=Order)
        result = drive(client, observations, answers, order)
        client.close()
    except Exception as error:  # noqa: BLE001  # whatever a peer's library raises ends the measurement with its words
        _say(pipe, Report(error=f"{type(error).__name__}: {error}"))
    else:
        _say(pipe, Report(result))


def first_answer(name: str, plan: Plan) -> Client:
    """A client that was answered once; tries again while the server refuses, up to `attempt_s_max`."""
    module = importlib.import_module(name)
    give_up_s = time.monotonic() + plan.attempt_s_max
    while True:
        try:
            client: Client = module.Client(plan)
            client.act(plan.observation_arrays()[0])
        except OSError:
            if time.monotonic() > give_up_s:
                raise
            time.sleep(_ATTEMPT_PAUSE_S)
        else:
            return client


@contextmanager
def forked(name: str, plan: Plan) -> Iterator[list[Connection]]:
    """A pipe to each of the clients; they end with the block."""
    context = multiprocessing.get_context("fork")
    # What is there already is shared with the clients, and none of their collections looks at it.
    gc.freeze()
    pipes: list[Connection] = []
    processes: list[ForkProcess] = []
    try:
        for index in range(plan.clients):
            ours, theirs = context.Pipe()
            own = msgspec.structs.replace(plan, seed=plan.seed + index)
            process = context.Process(target=run_client, args=(name, own, theirs), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        yield pipes
        for process in processes:
            process.join(_LEAVE_S_MAX)
    finally:
        for process in processes:
            process.kill()


def run(name: str) -> None:
    """Forks the clients, says when all are ready, and gives what all of them counted together."""
    importlib.import_module(name)
    plan = hear(Plan)
    if plan is None:
        return
    with forked(name, plan) as pipes:
        for pipe in pipes:
            _ask(pipe)
        tell("ready")
        order = hear(Order)
        if order is None:
            return
        for pipe in pipes:
            pipe.send_bytes(msgspec.msgpack.encode(order))
        results = [_ask(pipe) for pipe in pipes]
    tell(
        Result(
            b"".join(result.latency_ns for result in results),
            b"".join(result.engine_ns for result in results),
            sum(result.mismatches for result in results),
        )
    )


def _say(pipe: Connection, report: Report) -> None:
    pipe.send_bytes(msgspec.msgpack.encode(report))


def _ask(pipe: Connection) -> Result:
    """What a client reports; raises `ClientError` where it failed or ended."""
    try:
        report = msgspec.msgpack.decode(pipe.recv_bytes(), type=Report)
    except EOFError:
        raise ClientError("a client ended before its work did") from None
    if report.error:
        raise ClientError(report.error)
    return report.result


def hear(kind: type[T]) -> T | None:
    """The next message of the bench; None where it has gone."""
    header = _read(_LENGTH.size)
    return msgspec.msgpack.decode(_read(_LENGTH.unpack(header)[0]), type=kind) if header else None


def tell(message: Any, status: int = _WORKED) -> None:
    """Sends a message to the bench."""
    body = msgspec.msgpack.encode(message)
    data = memoryview(_LENGTH.pack(len(body), status) + body)
    while data:
        data = data[os.write(_OUTPUT, data) :]


def _read(count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = os.read(0, count - len(parts))
        if not part:
            return b""
        parts += part
    return bytes(parts)


_OUTPUT: Final = os.dup(1)

if __name__ == "__main__":
    # What a library prints must not get between the packets.
    os.dup2(2, 1)
    # The clients import `driver`: this module must not be there twice.
    sys.modules["driver"] = sys.modules["__main__"]
    try:
        run(sys.argv[1])
    except ClientError as error:
        tell((str(error), os.EX_UNAVAILABLE), _FAILED)
        sys.exit(os.EX_UNAVAILABLE)
