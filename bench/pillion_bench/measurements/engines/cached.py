"""What an act costs that the result cache answers, beside the same act at the inline engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from pillion_bench.measurements.engines.daemons import INLINE, engine_daemon, load_results
from pillion_bench.measurements.engines.policies import POLICY, store_with_looping
from pillion_bench.measurements.engines.series import Series, order
from pillion_bench.percentiles import Nanoseconds, nanoseconds, percentiles_us
from pillion_bench.process.placement import Placement

RUN_MS: Final = 0.2

CACHED: Final = "cached"
KINDS: Final = (INLINE, CACHED)

_CACHE_ROWS: Final = 1_024
"""More than the driver prepares: it sends them one after the other, and then again, so all are found once it is warm."""


def measure_cached(placement: Placement, seconds: float, rounds: int, advance: Callable[[str], None]) -> dict[str, Any]:
    """Returns the round trips of one client of a policy of `RUN_MS`, inline and from the result cache, and their ratio."""
    series = {kind: Series() for kind in KINDS}
    engine_ns: dict[str, list[Nanoseconds]] = {kind: [] for kind in KINDS}
    with (
        store_with_looping(RUN_MS, placement.server) as store,
        engine_daemon(store, POLICY, INLINE, placement) as inline,
        engine_daemon(store, POLICY, INLINE, placement, cache_rows=_CACHE_ROWS) as cached,
    ):
        daemons = {INLINE: inline, CACHED: cached}
        for kind in order(KINDS, rounds):
            advance(f"a policy of {RUN_MS:g} ms, {kind}")
            (result,) = load_results(daemons[kind], POLICY, placement.server, seconds)
            series[kind].segments_ns.append(nanoseconds(result.latency_ns))
            engine_ns[kind].append(nanoseconds(result.engine_ns))
    figures = {kind: each.figures() for kind, each in series.items()}
    rounds_us = zip(*(series[kind].p50s_us_of_rounds() for kind in (CACHED, INLINE)), strict=True)
    return {
        "policy": POLICY,
        "run_ms": RUN_MS,
        "n": sum(each["n"] for each in figures.values()),
        **{f"{kind}_us": each for kind, each in figures.items()},
        "engine_us": percentiles_us(np.concatenate(engine_ns[INLINE])),
        "hits": int((np.concatenate(engine_ns[CACHED]) == 0).sum()),
        "cached_over_inline": round(figures[CACHED]["p50"] / figures[INLINE]["p50"], 3),
        "cached_over_inline_of_rounds": [round(cached_us / inline_us, 3) for cached_us, inline_us in rounds_us],
        "noise": {kind: each.noise() for kind, each in series.items()},
    }
