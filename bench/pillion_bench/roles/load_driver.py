"""The role that makes the load: each session sends its next act as soon as the last is answered. Hot path."""

from __future__ import annotations

import gc
import time
from array import array

import msgspec

import pillion
from pillion.conversation import Frames
from pillion.tensors import Observation
from pillion_bench.errors import BadOptionError
from pillion_bench.limits import PREPARED_ACTS_BYTES_MAX, PREPARED_ACTS_MAX
from pillion_bench.process.worker import Pipe
from pillion_bench.recordings.observations import Observations, real_observations
from pillion_bench.roles.virtual_users import VirtualUser, VirtualUserPool, refuse
from pillion_protocol import Action, Message, Spec, encode_spec


class LoadPlan(msgspec.Struct, frozen=True):
    """The sessions that one process drives. `seed` is the seed of its first row."""

    address: str
    policy: str
    version_range: str
    sessions: int
    rows: int
    connections: int
    seed: int


class LoadRequest(msgspec.Struct, frozen=True):
    """Act from now on, and count the acts answered between the two times (CLOCK_MONOTONIC)."""

    count_from_ns: int
    count_until_ns: int

    @classmethod
    def after(cls, delay_s: float, seconds: float) -> LoadRequest:
        """Returns a request that counts for `seconds`, beginning `delay_s` from now."""
        from_ns = time.monotonic_ns() + int(delay_s * 1e9)
        return cls(from_ns, from_ns + int(seconds * 1e9))


class LoadOpened(msgspec.Struct, frozen=True):
    """What the daemon serves, and the source of the observations."""

    policy: str
    version: str
    digest: str
    spec: bytes
    observations: str


class LoadResult(msgspec.Struct, frozen=True):
    """Two int64 for each act that counts, in ns: round trip and engine. And the number of refused acts."""

    latency_ns: bytes
    engine_ns: bytes
    errors: int


class Tally:
    """Counts acts and their times. An act that is answered outside the counted time is left out."""

    def __init__(self, request: LoadRequest) -> None:
        self.from_ns = request.count_from_ns
        self.until_ns = request.count_until_ns
        self.latency_ns = array("q")
        self.engine_ns = array("q")
        self.errors = 0

    def add(self, sent_ns: int, now_ns: int, engine_ns: int) -> None:
        """Counts an act that was answered at `now_ns`."""
        if self.from_ns <= now_ns < self.until_ns:
            self.latency_ns.append(now_ns - sent_ns)
            self.engine_ns.append(engine_ns)

    def refused(self, now_ns: int) -> None:
        """Counts an act that was answered with an error."""
        if self.from_ns <= now_ns < self.until_ns:
            self.errors += 1

    def result(self) -> LoadResult:
        """Returns what was counted."""
        return LoadResult(self.latency_ns.tobytes(), self.engine_ns.tobytes(), self.errors)


def run(pipe: Pipe) -> None:
    """Opens the sessions, reports them, and drives them on request."""
    plan = pipe.receive_plan(LoadPlan)
    if plan.sessions == 1 and plan.connections == 1:
        _run_client(plan, pipe)
    else:
        _run_pool(plan, pipe)


def _run_client(plan: LoadPlan, pipe: Pipe) -> None:
    # A single session uses the blocking client, as a simulator does.
    address, policy, version = plan.address, plan.policy, plan.version_range
    with pillion.connect(address, policy=policy, version=version, client_name="pillion-bench") as session:
        _check_rows(plan.rows, session.limits.rows_max)
        observations = real_observations(session.policy, session.spec)
        pipe.send(
            LoadOpened(session.policy, session.version, session.digest, encode_spec(session.spec), observations.source)
        )
        request = pipe.receive(LoadRequest)
        if request is not None:
            pipe.send(drive_client(session, plan, observations, request))


def _run_pool(plan: LoadPlan, pipe: Pipe) -> None:
    with VirtualUserPool(plan.address, plan.sessions, plan.connections, plan.policy, plan.version_range) as pool:
        pool.open()
        first = pool.users[0].conversation
        welcome = first.welcome
        _check_rows(plan.rows, welcome.limits.rows_max)
        observations = real_observations(welcome.policy, first.spec)
        acts = [
            observations.frames(number * plan.rows, plan.rows) for number in range(acts_made(first.spec, plan.rows))
        ]
        pool.begin([_seeds(plan, index) for index in range(plan.sessions)])
        digest = f"sha256:{welcome.digest.hex()}"
        pipe.send(LoadOpened(welcome.policy, welcome.version, digest, welcome.spec, observations.source))
        request = pipe.receive(LoadRequest)
        if request is not None:
            pipe.send(drive_pool(pool, acts, request))


def drive_client(
    session: pillion.Session, plan: LoadPlan, observations: Observations, request: LoadRequest
) -> LoadResult:
    """Sends one act after the other until the time is up. A latency is all of `act`, from arrays to arrays."""
    tally = Tally(request)
    inputs = _inputs(session.spec, observations, plan.rows)
    made = len(inputs)
    group = session.begin(plan.seed) if plan.rows == 1 else session.begin_many(plan.rows, _seeds(plan, 0))
    act = group.act
    clock = time.monotonic_ns
    number = 0
    gc.collect()
    gc.disable()
    while (sent_ns := clock()) < request.count_until_ns:
        try:
            act(inputs[number % made])
        except pillion.RefusedError:
            tally.refused(clock())
        else:
            now_ns = clock()
            tally.add(sent_ns, now_ns, group.last.timings.engine_ns)
        number += 1
    gc.enable()
    group.end()
    return tally.result()


def drive_pool(pool: VirtualUserPool, acts: list[Frames], request: LoadRequest) -> LoadResult:
    """Keeps one act in flight for every session until the time is up, then waits for the answers still due."""
    tally = Tally(request)
    receive = pool.receive
    clock = time.monotonic_ns
    number = 0
    owed = 0
    made = len(acts)
    gc.collect()
    gc.disable()
    for user in pool.users:
        user.act(acts[number % made])
        number += 1
        owed += 1
    while owed:
        user, message, _ = receive()
        now_ns = clock()
        if type(message) is Action:
            tally.add(user.sent_ns, now_ns, message.ran_ns - message.dispatched_ns)
        else:
            _count_refusal(tally, user, message, now_ns)
        if now_ns < request.count_until_ns:
            user.act(acts[number % made])
            number += 1
        else:
            owed -= 1
    gc.enable()
    return tally.result()


def _count_refusal(tally: Tally, user: VirtualUser, message: Message, now_ns: int) -> None:
    try:
        refuse(user, message)
    except pillion.RefusedError:
        tally.refused(now_ns)


def acts_made(spec: Spec, rows: int) -> int:
    """Returns how many different acts of `rows` rows are prepared."""
    act_bytes = rows * sum(tensor.row_bytes for tensor in spec.observation)
    return max(1, min(PREPARED_ACTS_MAX, PREPARED_ACTS_BYTES_MAX // act_bytes))


def _inputs(spec: Spec, observations: Observations, rows: int) -> list[Observation]:
    """Prepares the arguments of `act`."""
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
