"""The replayer: runs a version on the batches of the live one, and compares its answers with those that were sent."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pilliond.engine.interface import Array, EngineError
from pilliond.engine.sampling import mix
from pilliond.ipc import shadow_page as cell
from pilliond.ipc.metrics_page import LATENCY_BUCKETS_NS
from pilliond.ipc.shadow_channel import ShadowRequest
from pilliond.ipc.shadow_page import ShadowPage
from pilliond.limits import SHADOW_LOOK_S_MAX
from pilliond.shadow.comparison import Comparison
from pilliond.shadow.ring import SeenBatch, ShadowRing
from pilliond.shadow.states import ShadowStates
from pilliond.traffic_split import salt_of
from pilliond.versions.loaded_version import Version

LOOK_S: Final = 0.002
"""First sleep when no batch waits. Each further one is twice as long, up to `SHADOW_LOOK_S_MAX`."""

_BYTES_PER_MB: Final = 1_000_000
_EDGES_NS: Final = np.array(LATENCY_BUCKETS_NS)
_UNIT: Final = 2.0**-53


class Replayer:
    """Runs the batches in the ring of `page` and counts its findings there. It polls the ring, so that the writer need not wake it.

    Where the version runs in a worker, `worker_clock` counts the CPU time of that, in ns, and `check_memory` raises
    `EngineError` if it takes too much memory.
    """

    def __init__(
        self,
        request: ShadowRequest,
        version: Version,
        page: ShadowPage,
        worker_clock: Callable[[], int] = lambda: 0,
        check_memory: Callable[[], None] = lambda: None,
    ) -> None:
        self._version = version
        self._worker_clock = worker_clock
        self._check_memory = check_memory
        self._page = page
        self._ring = ShadowRing(page, version.spec)
        self._comparison = Comparison(version.spec, request.live_tolerance, request.distance_max, page)
        self._states = ShadowStates(version, request.states_mb_max * _BYTES_PER_MB) if version.states else None
        self._share = request.share
        self._salt = np.uint64(salt_of(f"{request.version.policy} shadow"))

    def run(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Polls the ring for ever; raises `RingError`, and `EngineError` if its worker is lost."""
        look_s = LOOK_S
        while True:
            if self.look():
                look_s = LOOK_S
                self._check_memory()
            else:
                look_s = min(2 * look_s, SHADOW_LOOK_S_MAX)
            sleep(look_s)

    def look(self) -> int:
        """Runs the batches that wait; returns how many."""
        count = 0
        self._page.cells[cell.LOOKED_AT_NS] = time.monotonic_ns()
        while (batch := self._ring.next()) is not None:
            self._try(batch)
            del batch
            self._ring.release()
            self._page.cells[cell.LOOKED_AT_NS] = time.monotonic_ns()
            count += 1
        return count

    def _try(self, batch: SeenBatch) -> None:
        wanted = self._wanted(batch)
        runnable = wanted
        states: list[Array] = []
        if self._states is not None:
            runnable, states = self._states.put(batch, wanted)
            self._page.cells[cell.MID_EPISODE_ROWS] += int((wanted & ~runnable).sum())
        rows = int(runnable.sum())
        if not rows:
            return
        try:
            self._run(batch, runnable, states, rows)
        except EngineError:
            self._page.cells[cell.FAILED_ROWS] += rows
            if self._states is not None:
                self._states.lose(batch)
            if not self._version.engine.is_ready:
                raise
            return
        outputs = self._version.engine.outputs
        actual = [outputs[tensor.name][:rows] for tensor in self._version.spec.outputs]
        self._comparison.add([sent[runnable] for sent in batch.outputs], actual)
        if self._states is not None:
            self._states.take(batch, runnable, [after[:rows] for _, after in self._version.engine.states])

    def _wanted(self, batch: SeenBatch) -> NDArray[np.bool_]:
        """Returns the rows that the live version answered in episodes of the share. Their seeds decide, the same way each time."""
        answered = np.repeat([act.is_answered for act in batch.acts], [act.rows for act in batch.acts])
        wanted: NDArray[np.bool_] = batch.is_live & answered
        if self._share < 1.0:
            units = (mix(mix(batch.seeds) ^ self._salt) >> np.uint64(11)).astype(np.float64) * _UNIT
            wanted &= units < self._share
        return wanted

    def _run(self, batch: SeenBatch, runnable: NDArray[np.bool_], states: list[Array], rows: int) -> None:
        """Runs these rows, in the order of the live batch. Raises `EngineError`."""
        version = self._version
        for buffer, observation in zip(version.engine.inputs, batch.observations, strict=True):
            buffer[:rows] = observation[runnable]
        for (before, _), state in zip(version.engine.states, states, strict=True):
            before[:rows] = state[runnable]
        began_ns, began_cpu_ns = time.monotonic_ns(), self._cpu_ns()
        version.engine.runs[rows]()
        drawn = np.repeat([act.is_drawn for act in batch.acts], [act.rows for act in batch.acts])[runnable]
        if drawn.any():
            chosen = np.flatnonzero(drawn)
            version.resample(
                version.engine.memories[0], chosen, batch.seeds[runnable][chosen], batch.steps[runnable][chosen]
            )
        self._observe(time.monotonic_ns() - began_ns, self._cpu_ns() - began_cpu_ns)

    def _cpu_ns(self) -> int:
        return time.process_time_ns() + self._worker_clock()

    def _observe(self, wall_ns: int, cpu_ns: int) -> None:
        cells = self._page.cells
        cells[cell.BATCHES] += 1
        cells[cell.CPU_NS] += cpu_ns
        cells[cell.INFERENCE + int(np.searchsorted(_EDGES_NS, wall_ns))] += 1
        cells[cell.INFERENCE_SUM_NS] += wall_ns
