"""`pillion bench engine`: what an engine in a worker costs one act, and on demand everything else about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from pillion_bench.host import describe_host
from pillion_bench.measurements.engines.cached import KINDS as CACHE_KINDS
from pillion_bench.measurements.engines.cached import measure_cached
from pillion_bench.measurements.engines.crossing import KINDS, measure_crossing
from pillion_bench.measurements.engines.image_rows import KINDS as IMAGE_KINDS
from pillion_bench.measurements.engines.image_rows import measure_image_rows
from pillion_bench.measurements.engines.neighbour import measure_neighbour
from pillion_bench.measurements.engines.series import SEGMENTS_OF_KIND
from pillion_bench.measurements.engines.slot_copies import SIZES, measure_slot_copies
from pillion_bench.measurements.engines.worker_kill import measure_kills
from pillion_bench.measurements.rounds import SEGMENTS
from pillion_bench.process.placement import Placement

ROWS, BESIDE, KILL, SLOTS, CACHE = "rows", "beside", "kill", "slots", "cache"
PARTS: Final = (ROWS, BESIDE, KILL, SLOTS, CACHE)
"""What can be measured beside the first table, in this order."""


class EngineOptions(msgspec.Struct, frozen=True):
    """How long and how often each segment is measured, and what else is."""

    seconds: float = 1.0
    rounds: int = 3
    spin_us: int = 200
    """How long the spinning worker and its serving process poll before they sleep."""
    run_ms: float = 15.0
    """The run of the busy policy."""
    also: tuple[str, ...] = ()
    """Of `PARTS`."""

    @property
    def segments(self) -> int:
        """The number of segments of all parts."""
        of_part = {
            ROWS: SEGMENTS_OF_KIND * len(IMAGE_KINDS) * self.rounds,
            BESIDE: SEGMENTS * self.rounds,
            KILL: self.rounds,
            SLOTS: len(SIZES) * self.rounds + 1,
            CACHE: SEGMENTS_OF_KIND * len(CACHE_KINDS) * self.rounds,
        }
        return SEGMENTS_OF_KIND * len(KINDS) * self.rounds + sum(of_part[part] for part in self.also)


def measure_engine(placement: Placement, options: EngineOptions, advance: Callable[[str], None]) -> dict[str, Any]:
    """Measures the first table and the parts that were asked for; returns the report of `pillion bench engine`."""
    seconds, rounds = options.seconds, options.rounds
    measure: dict[str, Callable[[], dict[str, Any]]] = {
        ROWS: lambda: measure_image_rows(placement, seconds, rounds, advance),
        BESIDE: lambda: measure_neighbour(placement, seconds, rounds, options.run_ms, advance),
        KILL: lambda: measure_kills(placement, rounds, seconds, advance),
        SLOTS: lambda: measure_slot_copies(placement, seconds, rounds, advance),
        CACHE: lambda: measure_cached(placement, seconds, rounds, advance),
    }
    return {
        "report": "pillion.engine",
        **measure_crossing(placement, seconds, rounds, options.spin_us, advance),
        **{part: measure[part]() for part in PARTS if part in options.also},
        "seconds": seconds,
        "rounds": rounds,
        "spin_us": options.spin_us,
        "pin": placement.with_worker(),
        "host": describe_host(),
    }
