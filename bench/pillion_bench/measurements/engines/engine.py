"""`pillion bench engine`: what an engine in a worker costs one act, and on demand everything else about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from pillion_bench.host import describe_host
from pillion_bench.measurements.engines.cached import KINDS as CACHE_KINDS
from pillion_bench.measurements.engines.cached import measure_cached
from pillion_bench.measurements.engines.crossing import kinds_of, measure_crossing
from pillion_bench.measurements.engines.footprint import MEMORY_KINDS, START_KINDS, measure_memory, measure_start
from pillion_bench.measurements.engines.image_rows import KINDS as IMAGE_KINDS
from pillion_bench.measurements.engines.image_rows import measure_image_rows
from pillion_bench.measurements.engines.interpreter import KINDS as INTERPRETER_KINDS
from pillion_bench.measurements.engines.interpreter import measure_interpreter
from pillion_bench.measurements.engines.neighbour import measure_neighbour
from pillion_bench.measurements.engines.series import SEGMENTS_OF_KIND
from pillion_bench.measurements.engines.slot_copies import SIZES, measure_slot_copies
from pillion_bench.measurements.engines.subjects import ONNX, Subject, subject_of
from pillion_bench.measurements.engines.worker_kill import measure_kills
from pillion_bench.measurements.rounds import SEGMENTS
from pillion_bench.process.placement import Placement

ROWS, BESIDE, KILL, SLOTS, CACHE = "rows", "beside", "kill", "slots", "cache"
INTERPRETER, START, MEMORY = "interpreter", "start", "memory"
_OF_ONNX: Final = (ROWS, BESIDE, KILL, SLOTS, CACHE, INTERPRETER, START)
_OF_OTHERS: Final = (ROWS, INTERPRETER, START, MEMORY)


def parts_of(engine: str) -> tuple[str, ...]:
    """Returns what can be measured of an engine beside the first table, in this order."""
    return _OF_ONNX if engine == ONNX else _OF_OTHERS


class EngineOptions(msgspec.Struct, frozen=True):
    """How long and how often each segment is measured, and what else is."""

    seconds: float = 1.0
    rounds: int = 3
    spin_us: int = 200
    """How long the spinning worker and its serving process poll before they sleep."""
    run_ms: float = 15.0
    """The run of the busy policy."""
    also: tuple[str, ...] = ()
    """Of `parts_of(engine)`."""
    engine: str = ONNX
    python: str = ""
    """The other interpreter; empty: one is made."""
    model_mb: float = 300.0
    """The large model."""

    @property
    def segments(self) -> int:
        """The number of segments of all parts."""
        of_part = {
            ROWS: SEGMENTS_OF_KIND * len(IMAGE_KINDS) * self.rounds,
            BESIDE: SEGMENTS * self.rounds,
            KILL: self.rounds,
            SLOTS: len(SIZES) * self.rounds + 1,
            CACHE: SEGMENTS_OF_KIND * len(CACHE_KINDS) * self.rounds,
            INTERPRETER: SEGMENTS_OF_KIND * len(INTERPRETER_KINDS) * self.rounds,
            START: len(START_KINDS) * self.rounds,
            MEMORY: SEGMENTS_OF_KIND * len(MEMORY_KINDS),
        }
        return SEGMENTS_OF_KIND * len(kinds_of(self.engine)) * self.rounds + sum(of_part[part] for part in self.also)


def measure_engine(placement: Placement, options: EngineOptions, advance: Callable[[str], None]) -> dict[str, Any]:
    """Measures the first table and the parts that were asked for; returns the report of `pillion bench engine`."""
    with subject_of(options.engine) as subject:
        parts = _measure(subject, placement, options, advance)
    return {
        "report": "pillion.engine",
        **parts,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "spin_us": options.spin_us,
        "pin": placement.with_worker(),
        "host": describe_host(),
    }


def _measure(
    subject: Subject, placement: Placement, options: EngineOptions, advance: Callable[[str], None]
) -> dict[str, Any]:
    seconds, rounds = options.seconds, options.rounds
    measure: dict[str, Callable[[], dict[str, Any]]] = {
        ROWS: lambda: measure_image_rows(subject, placement, seconds, rounds, advance),
        BESIDE: lambda: measure_neighbour(placement, seconds, rounds, options.run_ms, advance),
        KILL: lambda: measure_kills(placement, rounds, seconds, advance),
        SLOTS: lambda: measure_slot_copies(placement, seconds, rounds, advance),
        CACHE: lambda: measure_cached(placement, seconds, rounds, advance),
        INTERPRETER: lambda: measure_interpreter(subject, placement, seconds, rounds, options.python, advance),
        START: lambda: measure_start(options.engine, placement, rounds, options.model_mb, advance),
        MEMORY: lambda: measure_memory(subject, placement, seconds, advance),
    }
    return {
        **measure_crossing(subject, placement, seconds, rounds, options.spin_us, advance),
        **{part: measure[part]() for part in parts_of(options.engine) if part in options.also},
    }
