"""The warmer: runs every bucket of a version once, one per tick of the serving loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pilliond.engine.interface import Engine
from pilliond.versions.loaded_version import Version


class Warmer:
    """Warms up one version at a time, the largest bucket first, so that the small ones stay in the caches.

    A run uses the engine's own memory, which is free between two batches. An engine outside the loop is given each bucket
    with `exercise(version, engine, rows)`, which returns False while it is busy; of several replicas, each is.
    """

    def __init__(self, clock: Callable[[], int], exercise: Callable[[Version, Engine, int], bool]) -> None:
        self.version: Version | None = None
        """The version that is being warmed up."""
        self.buckets = 0
        self.longest_ns = 0
        self._clock = clock
        self._exercise = exercise
        self._left: list[Callable[[], bool | None]] = []

    def start(self, version: Version) -> None:
        """Starts a warm-up; ends a running one."""
        self.version = version
        if version.engine.is_inline:
            self._left = [*distinct_runs(version.engine)]
        else:
            engines = version.engine.replicas or (version.engine,)
            buckets = version.engine.service.buckets
            self._left = [partial(self._exercise, version, engine, rows) for engine in engines for rows in buckets]
        self.buckets = len(self._left)
        self.longest_ns = 0

    def run(self) -> bool:
        """Runs the next bucket, unless its engine is busy; returns whether it was the last. Raises `EngineError`."""
        began_ns = self._clock()
        if self._left[-1]() is not False:
            self._left.pop()
        self.longest_ns = max(self.longest_ns, self._clock() - began_ns)
        if not self._left:
            self.version = None
        return not self._left

    def stop(self) -> None:
        """Ends a running warm-up."""
        self.version = None
        self._left = []


def distinct_runs(engine: Engine) -> list[Callable[[], None]]:
    """One run per bucket, the smallest first: several row counts share a bucket."""
    runs = engine.runs[1:]
    return [run for index, run in enumerate(runs) if index == 0 or run is not runs[index - 1]]
