"""A worker that a test plays: it writes into the arena and rings as a real one does, when the test says so."""

from __future__ import annotations

from collections.abc import Callable

from pillion_worker.arena import COMPLETED, FINISHED_NS, OK, OUTCOME, STARTED_NS, ArenaLayout
from pillion_worker.buckets import buckets_for
from pillion_worker.doorbell import ring_loop
from pillion_worker.tensors import Tensor
from pilliond.engine.worker import WorkerEngine, WorkerState
from pilliond.engine.worker_messages import Ready
from pilliond.limits import NEVER_NS
from tests.daemon.support.fakes import Clock
from tests.worker.support.policies import looking_up

ROWS_MAX = 8


def make_ready(engine: WorkerEngine, run_ns: Callable[[int], int] = lambda rows: 1_000) -> None:
    """Brings an engine without a worker to READY, as one that takes `run_ns(n)` for a run of n rows."""
    engine._drop_memory()
    engine.state = WorkerState.LOADING
    request = engine._request
    outputs = [*request.outputs, *(Tensor(name, "float32", []) for name in request.parameters)]
    engine._map(ArenaLayout(request.observation, outputs, request.states, request.room, request.depth))
    buckets = buckets_for(request.rows_max)
    times = [run_ns(rows) for rows in buckets]
    engine._on_ready(Ready("pageable", buckets, [(taken, taken) for taken in times]))


def complete_oldest(engine: WorkerEngine, run_ns: int) -> None:
    """Completes the oldest batch in flight, now, as a run that took `run_ns` if it can have."""
    batch, cells = engine.in_flight[0], engine._cells
    now_ns = engine._clock()
    cells[batch.block + STARTED_NS], cells[batch.block + FINISHED_NS] = now_ns - run_ns, now_ns
    cells[batch.block + OUTCOME] = OK
    cells[COMPLETED] = batch.number
    assert engine._own is not None
    ring_loop(engine._own.complete)
    engine.receive()


class SimulatedWorker:
    """A worker in the test's own process, which takes `fixed_ns` for a run and `row_ns` for each of its rows."""

    def __init__(self, clock: Clock, fixed_ns: int, row_ns: int = 0, depth: int = 1) -> None:
        policy = looking_up()
        self.clock = clock
        self.fixed_ns, self.row_ns = fixed_ns, row_ns
        self.runs: list[int] = []
        """The rows of each run."""
        self.engine = WorkerEngine(policy.spec, policy.parameters, ROWS_MAX, clock=clock, depth=depth)

    def become_ready(self) -> None:
        """As a worker that has loaded, and measured itself."""
        make_ready(self.engine, self.run_ns)

    def run_ns(self, rows: int) -> int:
        return self.fixed_ns + self.row_ns * rows

    @property
    def due_ns(self) -> int:
        """When it is done with its oldest batch."""
        engine = self.engine
        return engine.owes_since_ns + self.run_ns(engine.in_flight[0].rows) if engine.in_flight else NEVER_NS

    def complete(self) -> None:
        """Completes its oldest batch, now."""
        rows = self.engine.in_flight[0].rows
        self.runs.append(rows)
        complete_oldest(self.engine, self.run_ns(rows))
