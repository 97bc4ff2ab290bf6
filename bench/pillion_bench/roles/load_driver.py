"""The role that makes the load: each session sends its next act as soon as the last one is answered. Hot path."""

from __future__ import annotations

import gc
import time
from array import array
from typing import Final

import msgspec

import pillion
from pillion.conversation import Frames
from pillion.tensors import Observation
from pillion_bench.errors import BadOptionError, BenchError
from pillion_bench.process.worker import Pipe
from pillion_bench.recordings.observations import Observations, real_observations
from pillion_bench.roles.virtual_users import Rider, SessionSwarm, refuse
from pillion_protocol import Action, Message, Spec, encode_spec

_ACTS_MAX: Final = 64
"""Different acts that are made beforehand and sent in turn."""

_ACTS_BYTES_MAX: Final = 64 * 1024 * 1024
"""What they may take in memory; of large ones there are fewer."""


class LoadPlan(msgspec.Struct, frozen=True):
    """What one process drives; `seed` is that of its first row."""

    address: str
    policy: str
    version_range: str
    sessions: int
    rows: int
    connections: int
    seed: int


class LoadOrder(msgspec.Struct, frozen=True):
    """When to begin and to stop, on CLOCK_MONOTONIC: what is answered between the two counts."""

    count_from_ns: int
    count_until_ns: int


class LoadOpened(msgspec.Struct, frozen=True):
    """What the sessions found."""

    policy: str
    version: str
    digest: str
    spec: bytes
    observations: str


class LoadResult(msgspec.Struct, frozen=True):
    """An int64 for each act answered in time: round trip and engine, in ns; and the acts that were refused."""

    latency_ns: bytes
    engine_ns: bytes
    errors: int


class Tally:
    """What came of the acts; those answered outside the counted time are left out."""

    def __init__(self, order: LoadOrder) -> None:
        self.from_ns = order.count_from_ns
        self.until_ns = order.count_until_ns
        self.latency_ns = array("q")
        self.engine_ns = array("q")
        self.errors = 0

    def add(self, sent_ns: int, now_ns: int, engine_ns: int) -> None:
        """Counts an act answered at `now_ns`."""
        if self.from_ns <= now_ns < self.until_ns:
            self.latency_ns.append(now_ns - sent_ns)
            self.engine_ns.append(engine_ns)

    def refused(self, now_ns: int) -> None:
        """Counts an act that was answered with an error."""
        if self.from_ns <= now_ns < self.until_ns:
            self.errors += 1

    def result(self) -> LoadResult:
        return LoadResult(self.latency_ns.tobytes(), self.engine_ns.tobytes(), self.errors)


def run(pipe: Pipe) -> None:
    """Opens the sessions, says so, and drives them when told."""
    plan = pipe.hear(LoadPlan)
    if plan is None:
        raise BenchError("the bench went before it said what to do")
    if plan.sessions == 1 and plan.connections == 1:
        _run_client(plan, pipe)
    else:
        _run_swarm(plan, pipe)


def _run_client(plan: LoadPlan, pipe: Pipe) -> None:
    """One session: the blocking client, as a simulator uses it."""
    address, policy, version = plan.address, plan.policy, plan.version_range
    with pillion.connect(address, policy=policy, version=version, client_name="pillion-bench") as session:
        _check_rows(plan.rows, session.limits.rows_max)
        observations = real_observations(session.policy, session.spec)
        pipe.tell(
            LoadOpened(session.policy, session.version, session.digest, encode_spec(session.spec), observations.source)
        )
        order = pipe.hear(LoadOrder)
        if order is not None:
            pipe.tell(drive_client(session, plan, observations, order))


def _run_swarm(plan: LoadPlan, pipe: Pipe) -> None:
    with SessionSwarm(plan.address, plan.sessions, plan.connections, plan.policy, plan.version_range) as swarm:
        swarm.open()
        first = swarm.riders[0].conversation
        welcome = first.welcome
        _check_rows(plan.rows, welcome.limits.rows_max)
        observations = real_observations(welcome.policy, first.spec)
        acts = [
            observations.frames(number * plan.rows, plan.rows) for number in range(acts_made(first.spec, plan.rows))
        ]
        swarm.begin([_seeds(plan, index) for index in range(plan.sessions)])
        digest = f"sha256:{welcome.digest.hex()}"
        pipe.tell(LoadOpened(welcome.policy, welcome.version, digest, welcome.spec, observations.source))
        order = pipe.hear(LoadOrder)
        if order is not None:
            pipe.tell(drive_swarm(swarm, acts, order))


def drive_client(session: pillion.Session, plan: LoadPlan, observations: Observations, order: LoadOrder) -> LoadResult:
    """One act after the other until the time is up; a latency is all of `act`, from arrays to arrays."""
    tally = Tally(order)
    inputs = _inputs(session.spec, observations, plan.rows)
    made = len(inputs)
    handle = session.begin(plan.seed) if plan.rows == 1 else session.begin_many(plan.rows, _seeds(plan, 0))
    act = handle.act
    clock = time.monotonic_ns
    number = 0
    gc.collect()
    gc.disable()
    while (sent_ns := clock()) < order.count_until_ns:
        try:
            act(inputs[number % made])
        except pillion.RefusedError:
            tally.refused(clock())
        else:
            now_ns = clock()
            tally.add(sent_ns, now_ns, handle.last.timings.engine_ns)
        number += 1
    gc.enable()
    handle.end()
    return tally.result()


def drive_swarm(swarm: SessionSwarm, acts: list[Frames], order: LoadOrder) -> LoadResult:
    """Every session has one act under way until the time is up; what is still owed then is waited for."""
    tally = Tally(order)
    receive = swarm.receive
    clock = time.monotonic_ns
    number = 0
    owed = 0
    made = len(acts)
    gc.collect()
    gc.disable()
    for rider in swarm.riders:
        rider.act(acts[number % made])
        number += 1
        owed += 1
    while owed:
        rider, message, _ = receive()
        now_ns = clock()
        if type(message) is Action:
            tally.add(rider.sent_ns, now_ns, message.ran_ns - message.dispatched_ns)
        else:
            _count_refusal(tally, rider, message, now_ns)
        if now_ns < order.count_until_ns:
            rider.act(acts[number % made])
            number += 1
        else:
            owed -= 1
    gc.enable()
    return tally.result()


def _count_refusal(tally: Tally, rider: Rider, message: Message, now_ns: int) -> None:
    try:
        refuse(rider, message)
    except pillion.RefusedError:
        tally.refused(now_ns)


def acts_made(spec: Spec, rows: int) -> int:
    """How many different acts of `rows` rows are made beforehand."""
    act_bytes = rows * sum(tensor.row_bytes for tensor in spec.observation)
    return max(1, min(_ACTS_MAX, _ACTS_BYTES_MAX // act_bytes))


def _inputs(spec: Spec, observations: Observations, rows: int) -> list[Observation]:
    """What `act` takes, some of it made beforehand."""
    made: list[Observation] = []
    for number in range(acts_made(spec, rows)):
        arrays = observations.arrays(number * rows, rows)
        if rows == 1:
            arrays = [array[0] for array in arrays]
        if len(arrays) == 1:
            made.append(arrays[0])
        else:
            made.append({tensor.name: array for tensor, array in zip(spec.observation, arrays, strict=True)})
    return made


def _seeds(plan: LoadPlan, index: int) -> list[int]:
    first = plan.seed + index * plan.rows
    return list(range(first, first + plan.rows))


def _check_rows(rows: int, rows_max: int) -> None:
    if rows > rows_max:
        raise BadOptionError(f"--rows: the daemon takes at most {rows_max}, got {rows}")
