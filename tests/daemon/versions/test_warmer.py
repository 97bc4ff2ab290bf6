"""The warmer gives every bucket to an engine outside the loop, and to each of its replicas."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pilliond.engine.service_time import ServiceTimes
from pilliond.versions.warmer import Warmer


def stand_in(*replicas: object) -> Any:
    engine = SimpleNamespace(is_inline=False, replicas=replicas, service=ServiceTimes([1, 2]))
    return SimpleNamespace(engine=engine)


def warm(version: Any, *, busy_first: bool = False) -> list[tuple[object, int]]:
    """Warms a version up; returns what ran, in order."""
    ran: list[tuple[object, int]] = []
    answers = [False] if busy_first else []

    def exercise(of: object, engine: object, rows: int) -> bool:
        assert of is version
        if answers:
            return answers.pop()
        ran.append((engine, rows))
        return True

    warmer = Warmer(lambda: 0, exercise)
    warmer.start(version)
    while not warmer.run():
        pass
    assert warmer.buckets == len(ran)
    return ran


def test_each_replica_runs_each_bucket_the_largest_first() -> None:
    assert warm(stand_in("first", "second")) == [("second", 2), ("second", 1), ("first", 2), ("first", 1)]


def test_an_engine_that_is_busy_runs_the_bucket_later() -> None:
    version = stand_in()
    assert warm(version, busy_first=True) == [(version.engine, 2), (version.engine, 1)]
