"""The warmer: runs every bucket of a version once, on the ticks of the serving loop."""

from __future__ import annotations

from collections.abc import Callable

from pilliond.engine.interface import InlineEngine
from pilliond.versions.loaded_version import Version


class Warmer:
    """Warms one version at a time; the largest bucket first, so that the small ones are what is left in the caches.

    A run reads and writes the engine's own buffers, which nobody uses between two batches.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self.version: Version | None = None
        """What is being warmed."""
        self.buckets = 0
        self.longest_ns = 0
        self._clock = clock
        self._left: list[Callable[[], None]] = []

    def start(self, version: Version) -> None:
        """Begins, and gives up what was under way."""
        self.version = version
        self._left = distinct_runs(version.engine)
        self.buckets = len(self._left)
        self.longest_ns = 0

    def run(self) -> bool:
        """Runs the next bucket; tells whether it was the last. Raises `EngineError`."""
        began_ns = self._clock()
        self._left.pop()()
        self.longest_ns = max(self.longest_ns, self._clock() - began_ns)
        if not self._left:
            self.version = None
        return not self._left

    def stop(self) -> None:
        """Gives up what is under way."""
        self.version = None
        self._left = []


def distinct_runs(engine: InlineEngine) -> list[Callable[[], None]]:
    """What runs the engine on each of its buckets, the smallest first: several numbers of rows share one."""
    runs = engine.runs[1:]
    return [run for index, run in enumerate(runs) if index == 0 or run is not runs[index - 1]]
