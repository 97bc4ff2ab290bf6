"""An engine on several devices: a worker on each, and a batch runs in the one that will finish it first. Hot path."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, Final

from pilliond.engine.batch_memory import Array, BatchMemory
from pilliond.engine.interface import Engine, Replica
from pilliond.engine.service_time import ServiceTimes
from pilliond.engine.worker import WorkerEngine
from pilliond.limits import REPLICA_SLOWER_NS_MAX, SLOWER_FACTOR_MAX

_FORGET_SHIFT: Final = 3
"""A mean moves by an eighth of the way to each run: it follows a device within a few, and one odd run does not turn it."""


class ReplicaPace:
    """How long a run of each bucket takes on one replica, in ns: means that forget. Pure.

    `times` are those that its worker measured before it was ready.
    """

    __slots__ = ("_buckets", "_means")

    def __init__(self, times: ServiceTimes) -> None:
        self._buckets = times.buckets
        # What was learned halves the p50.
        self._means = [2 * fast_ns for _, fast_ns, _ in times.by_bucket()]

    def expected_ns(self, rows: int) -> int:
        """The time that a run of so many rows will take."""
        return self._means[bisect_left(self._buckets, rows)]

    def observe(self, rows: int, duration_ns: int) -> None:
        """Notes a run of `rows` rows."""
        index = bisect_left(self._buckets, rows)
        mean_ns = self._means[index]
        bounded_ns = min(duration_ns, SLOWER_FACTOR_MAX * mean_ns + REPLICA_SLOWER_NS_MAX)
        self._means[index] += (bounded_ns - mean_ns) >> _FORGET_SHIFT


class _Replica:
    """A worker's engine, how quick it is, and what runs in it."""

    __slots__ = ("engine", "pace", "rows")

    def __init__(self, engine: WorkerEngine) -> None:
        self.engine = engine
        self.pace = ReplicaPace(engine.service)
        self.rows: dict[int, int] = {}
        """By the id of a memory that is in use, the rows that run in it."""

    def finishes_ns(self, rows: int, now_ns: int) -> int:
        """How long it takes until it would be done with so many rows more."""
        expected_ns = self.pace.expected_ns
        return self.engine.left_ns(now_ns, expected_ns) + expected_ns(rows)


class ReplicaEngine:
    """The engines of one version on several devices, as one. Owns none of them: whoever made them closes them.

    `choose` takes the replica that will finish the batch first: what it has in flight, and then the batch, at its own pace,
    which it learns from every run. It is ready while any of them is. The owner of the engines calls `became_ready` and `ran`.
    """

    is_inline = False
    parts: tuple[Engine, ...] = ()
    state_rows = None
    state_row_bytes = 0

    def __init__(self, engines: Sequence[WorkerEngine], clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._engines = tuple(engines)
        self.replicas: Sequence[Replica] = self._engines
        self.strict_rows = engines[0].strict_rows
        self.service = ServiceTimes([])
        """Those of all replicas: *fast* of the quickest one, *slow* of the slowest."""
        self._clock = clock
        self._replicas = [_Replica(engine) for engine in engines]

    # What it is

    @property
    def kind(self) -> str:
        """As the first one says."""
        return self._engines[0].kind

    @property
    def is_ready(self) -> bool:
        """Whether any of them is ready."""
        return any(engine.is_ready for engine in self._engines)

    @property
    def memories(self) -> list[BatchMemory]:
        """Those of all, of the first replica first."""
        return [memory for engine in self._engines for memory in engine.memories]

    @property
    def free(self) -> list[BatchMemory]:
        """Those of all that no batch uses now."""
        return [memory for engine in self._engines for memory in engine.free]

    @property
    def inputs(self) -> list[Array]:
        """Those of the first replica that is ready, as are `outputs`, `states` and `runs`."""
        return self._first.inputs

    @property
    def outputs(self) -> dict[str, Array]:
        """As `inputs`."""
        return self._first.outputs

    @property
    def states(self) -> list[tuple[Array, Array]]:
        """As `inputs`: empty, see `Workers`."""
        return self._first.states

    @property
    def runs(self) -> list[Callable[[], None]]:
        """As `inputs`."""
        return self._first.runs

    @property
    def _first(self) -> WorkerEngine:
        return next((engine for engine in self._engines if engine.is_ready), self._engines[0])

    def describe(self) -> dict[str, Any]:
        """Returns the description of the first that is ready, with all devices and fallbacks; each is under `replicas`."""
        each = [engine.describe() for engine in self._engines]
        joined = {name: _joined(each, name, mark) for name, mark in (("device", ", "), ("fallback", "; "))}
        return {**self._first.describe(), **joined, "replicas": each}

    # Batches

    def choose(self, rows: int) -> BatchMemory:
        """As `Engine.choose`: a memory of the replica that will finish first; of equals, the first."""
        now_ns = self._clock()
        free = [replica for replica in self._replicas if replica.engine.free]
        chosen = free[0] if len(free) == 1 else min(free, key=lambda replica: replica.finishes_ns(rows, now_ns))
        return chosen.engine.free[-1]

    def submit(self, memory: BatchMemory, rows: int) -> None:
        """As `Engine.submit`."""
        replica: _Replica = memory.replica
        replica.rows[id(memory)] = rows
        replica.engine.submit(memory, rows)

    def collect(self, memory: BatchMemory) -> None:
        """As `Engine.collect`: the results are in `memory` already."""

    def release(self, memory: BatchMemory) -> None:
        """As `Engine.release`."""
        replica: _Replica = memory.replica
        replica.rows.pop(id(memory), None)
        replica.engine.release(memory)

    # What its owner calls

    def became_ready(self, engine: WorkerEngine) -> None:
        """Takes a worker that has become ready: its memories, and the times that it measured."""
        replica = self._replicas[self._engines.index(engine)]
        replica.pace = ReplicaPace(engine.service)
        replica.rows.clear()
        for memory in engine.memories:
            memory.replica = replica
        if self.service.buckets != engine.service.buckets:
            self.service = ServiceTimes(engine.service.buckets)
        is_known = self.service.is_known
        for rows, fast_ns, slow_ns in engine.service.by_bucket():
            least_ns = min(fast_ns, self.service.fast_ns(rows)) if is_known else fast_ns
            self.service.seed(rows, least_ns, max(slow_ns, self.service.slow_ns(rows)))

    def ran(self, memory: BatchMemory, duration_ns: int) -> None:
        """Notes how long a run that was submitted took in its worker."""
        replica: _Replica = memory.replica
        rows = replica.rows[id(memory)]
        replica.pace.observe(rows, duration_ns)
        replica.engine.service.observe(rows, duration_ns)


def _joined(described: list[dict[str, Any]], name: str, mark: str) -> str:
    """What all say under a name, each text once."""
    return mark.join(dict.fromkeys(str(each[name]) for each in described if each.get(name)))
