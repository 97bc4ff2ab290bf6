"""The closed loop that drives every compared system alike: a process with one row for each client. Hot path.

Run as `python driver.py MODULE`, where MODULE is one of the `client_*` beside this file, in the environment that has
the module's packages. So this file needs only numpy, msgspec and the standard library. It exchanges the packets of
`pillion_bench.process.worker` with the bench: a length of eight bytes, a status byte, then msgpack.

It imports the client once and then forks: 64 clients start fast that way, and each connects by itself.
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
_EXIT_S_MAX: Final = 2.0
_LENGTH: Final = struct.Struct("<QB")
_SUCCESS: Final = 1
_FAILURE: Final = 0
_PR_SET_PDEATHSIG: Final = 1


class Plan(msgspec.Struct, frozen=True):
    """The server's address, the number of clients, the observations that they send, and the expected actions."""

    address: str
    clients: int
    observation_dtype: str
    observation_shape: list[int]
    """[observations, …]"""
    observations: bytes
    action_dtype: str
    action_shape: list[int]
    """The shape of one action."""
    actions: bytes
    """The expected action for each observation."""
    absolute: float
    relative: float
    """The tolerance of a floating-point action: |actual - expected| <= absolute + relative * |expected|."""
    attempt_s_max: float
    """How long a client tries to get its first answer: a server may listen before its model is loaded."""
    busy_poll_us: int = 0
    seed: int = 7

    def observation_arrays(self) -> list[Array]:
        """Returns the observations, without a row axis."""
        return list(np.frombuffer(self.observations, self.observation_dtype).reshape(self.observation_shape))

    def action_arrays(self) -> list[Array]:
        """Returns the expected actions, without a row axis."""
        shape = (self.observation_shape[0], *self.action_shape)
        return list(np.frombuffer(self.actions, self.action_dtype).reshape(shape))


class DriveRequest(msgspec.Struct, frozen=True):
    """Act from now on, and count the acts answered between the two times (CLOCK_MONOTONIC)."""

    count_from_ns: int
    count_until_ns: int


class Result(msgspec.Struct, frozen=True):
    """Two int64 for each act that counts, in ns: round trip and engine. And the number of wrong answers."""

    latency_ns: bytes
    engine_ns: bytes
    mismatches: int


class Report(msgspec.Struct, frozen=True):
    """A message of a client: it is ready, or it has a result, or it failed."""

    result: Result = Result(b"", b"", 0)
    error: str = ""


class ClientError(Exception):
    """A client failed. The message is its own."""


class Client(Protocol):
    """A blocking client, as a simulator uses it. Its constructor takes the plan and connects to the server."""

    def act(self, observation: Array) -> tuple[Array, int]:
        """Returns the action for one observation, both without a row axis, and the engine's time in ns."""
        ...

    def close(self) -> None:
        """Disconnects from the server."""
        ...


class ExpectedActions:
    """The expected action for each observation, and the comparison with an answer."""

    def __init__(self, plan: Plan) -> None:
        self._actions = plan.action_arrays()
        self._bytes = [action.tobytes() for action in self._actions]
        self._absolute = plan.absolute
        self._relative = plan.relative

    def matches(self, index: int, action: Array) -> bool:
        """Returns whether `action` is the expected one: equal in every bit, or a float within the tolerance."""
        if action.tobytes() == self._bytes[index]:
            return True
        expected = self._actions[index]
        if expected.dtype.kind != "f" or action.shape != expected.shape or action.dtype != expected.dtype:
            return False
        return np.allclose(action, expected, rtol=self._relative, atol=self._absolute, equal_nan=True)


def drive(client: Client, observations: list[Array], expected: ExpectedActions, request: DriveRequest) -> Result:
    """Sends one act after the other until the time is up. Checks every answer, outside of the timed part."""
    made = len(observations)
    latency, engine = array("q"), array("q")
    act = client.act
    matches = expected.matches
    clock = time.monotonic_ns
    from_ns, until_ns = request.count_from_ns, request.count_until_ns
    mismatches = 0
    number = 0
    while (sent_ns := clock()) < until_ns:
        action, engine_ns = act(observations[number])
        now_ns = clock()
        if from_ns <= now_ns < until_ns:
            latency.append(now_ns - sent_ns)
            engine.append(engine_ns)
        if not matches(number, action):
            mismatches += 1
        number = (number + 1) % made
    return Result(latency.tobytes(), engine.tobytes(), mismatches)


def run_client(name: str, plan: Plan, pipe: Connection, driver_pid: int) -> None:
    """Runs one client: connects, reports that it is ready, drives on request, and reports the result or an error."""
    # The kernel kills the client if the driver dies from now on.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver_pid:
        return
    try:
        client = connect(name, plan)
        observations, expected = plan.observation_arrays(), ExpectedActions(plan)
        # Before the report: with many clients on one CPU the collection takes longer than a warm-up.
        gc.collect()
        gc.disable()
        _report(pipe, Report())
        request = msgspec.msgpack.decode(pipe.recv_bytes(), type=DriveRequest)
        result = drive(client, observations, expected, request)
        client.close()
    except Exception as error:  # noqa: BLE001  # a peer's library may raise anything; the report has its message
        _report(pipe, Report(error=f"{type(error).__name__}: {error}"))
    else:
        _report(pipe, Report(result))


def connect(name: str, plan: Plan) -> Client:
    """Returns a client that got one answer. Retries while the server refuses connections, up to `attempt_s_max`."""
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
    """Forks the clients; yields a pipe to each. They exit with the block."""
    context = multiprocessing.get_context("fork")
    # Existing objects are shared with the clients: a collection that touched them would copy their memory.
    gc.freeze()
    pipes: list[Connection] = []
    processes: list[ForkProcess] = []
    try:
        for index in range(plan.clients):
            ours, theirs = context.Pipe()
            own = msgspec.structs.replace(plan, seed=plan.seed + index)
            process = context.Process(target=run_client, args=(name, own, theirs, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        yield pipes
        for process in processes:
            process.join(_EXIT_S_MAX)
    finally:
        for process in processes:
            process.kill()


def run(name: str) -> None:
    """Forks the clients, reports when all are ready, and sends the combined result of all."""
    importlib.import_module(name)
    plan = receive(Plan)
    if plan is None:
        return
    with forked(name, plan) as pipes:
        for pipe in pipes:
            _result_of(pipe)
        send("ready")
        request = receive(DriveRequest)
        if request is None:
            return
        for pipe in pipes:
            pipe.send_bytes(msgspec.msgpack.encode(request))
        results = [_result_of(pipe) for pipe in pipes]
    send(
        Result(
            b"".join(result.latency_ns for result in results),
            b"".join(result.engine_ns for result in results),
            sum(result.mismatches for result in results),
        )
    )


def _report(pipe: Connection, report: Report) -> None:
    pipe.send_bytes(msgspec.msgpack.encode(report))


def _result_of(pipe: Connection) -> Result:
    """Returns the result of a client's next report; raises `ClientError` if the client failed or exited."""
    try:
        report = msgspec.msgpack.decode(pipe.recv_bytes(), type=Report)
    except EOFError:
        raise ClientError("a client exited before it finished") from None
    if report.error:
        raise ClientError(report.error)
    return report.result


def receive(kind: type[T]) -> T | None:
    """Returns the next message of the bench; None if the bench has exited."""
    header = _read(_LENGTH.size)
    return msgspec.msgpack.decode(_read(_LENGTH.unpack(header)[0]), type=kind) if header else None


def send(message: Any, status: int = _SUCCESS) -> None:
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
    # From here on standard output is standard error: what a library prints must not get between the packets.
    os.dup2(2, 1)
    # The clients import `driver`, which must be this very module and not a second copy of it.
    sys.modules["driver"] = sys.modules["__main__"]
    try:
        run(sys.argv[1])
    except ClientError as error:
        send((str(error), os.EX_UNAVAILABLE), _FAILURE)
        sys.exit(os.EX_UNAVAILABLE)
