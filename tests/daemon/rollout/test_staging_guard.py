"""When staging pauses, continues and ends: the rule by itself, and a daemon with clients that miss deadlines."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import pillion
from pillion_artifacts import Store
from pillion_artifacts.store.daemon_locks import locked_digests
from pillion_bench.variants import POLICY, publish_variant
from pilliond.ipc.metrics_page import VERSION_CELLS, MetricsPage, make_page
from pilliond.rollout.live_window import LiveWindow, Reading
from pilliond.rollout.staging_guard import Pace, StagingGuard
from pilliond.settings.schema import StagingSettings
from tests.conftest import StartDaemon
from tests.daemon.support.process_resources import children_running
from tests.harness import START_S_MAX, Daemon

METRICS_INDEX = 2
PATH = f"/v1/policies/{POLICY}"
BOUNDS = StagingSettings(timeout_s=30, deadline_misses_max=20, p99_ratio_max=2.0, pause_s_max=5.0)
LOOK_S = 0.1


class Staging:
    """A guard, and a live version that the test controls, look by look."""

    def __init__(self, page: MetricsPage, bounds: StagingSettings = BOUNDS, *, usual_late: int = 0) -> None:
        self.page = page
        window = LiveWindow(page)
        window.look(METRICS_INDEX)
        self.acts(1_000, 40)
        page.cells[VERSION_CELLS[METRICS_INDEX].late] += usual_late
        window.look(METRICS_INDEX)
        self.now_s = 100.0
        self.guard = StagingGuard(bounds, window.recent(), Reading(page, METRICS_INDEX), self.now_s)

    def acts(self, count: int, run_us: int) -> None:
        for _ in range(count):
            self.page.acts += (0, run_us * 1_000)
            self.page.batches += (1, 1, 1_000, METRICS_INDEX, 1)
            if len(self.page.acts) >= 1_000:
                self.page.flush()
        self.page.flush()

    def looks(self, number: int, *, late: int = 0, acts: int = 0, run_us: int = 40) -> Pace:
        """Returns the pace after so many looks, each with so many acts and misses before it."""
        pace = Pace.GO
        for _ in range(number):
            self.page.cells[VERSION_CELLS[METRICS_INDEX].late] += late
            self.acts(acts, run_us)
            self.now_s += LOOK_S
            pace = self.guard.look(Reading(self.page, METRICS_INDEX), self.now_s)
        return pace


@pytest.fixture
def page() -> Iterator[MetricsPage]:
    page = MetricsPage(make_page())
    yield page
    page.close()


def test_it_pauses_at_the_first_miss_and_goes_on_after_a_second_without_one(page: MetricsPage) -> None:
    staging = Staging(page)
    assert staging.looks(20, acts=30) is Pace.GO
    assert staging.looks(1, late=1) is Pace.PAUSE
    assert staging.looks(9, acts=30) is Pace.PAUSE
    assert staging.looks(3, acts=30) is Pace.GO
    assert staging.guard.pauses == 1
    assert 1.0 <= staging.guard.paused_s <= 1.2


def test_it_stays_paused_while_deadlines_are_missed(page: MetricsPage) -> None:
    staging = Staging(page)
    staging.looks(1, late=1)
    for _ in range(3):
        assert staging.looks(7) is Pace.PAUSE
        assert staging.looks(1, late=1) is Pace.PAUSE
    assert staging.guard.pauses == 1


def test_misses_as_usual_are_no_reason_to_pause(page: MetricsPage) -> None:
    staging = Staging(page, usual_late=20)
    assert staging.looks(50, late=2) is Pace.GO
    assert staging.looks(5, late=9) is Pace.PAUSE


def test_too_many_misses_end_it_and_misses_as_usual_do_not_count(page: MetricsPage) -> None:
    assert Staging(page).looks(1, late=20) is Pace.PAUSE
    staging = Staging(page)
    assert staging.looks(1, late=21) is Pace.GIVE_UP
    assert staging.guard.why == "the live version missed 21 deadlines while this one was staged"
    assert Staging(page, StagingSettings(deadline_misses_max=0)).looks(1, late=1) is Pace.GIVE_UP


def test_a_p99_that_staging_makes_worse_is_a_reason_to_pause(page: MetricsPage) -> None:
    staging = Staging(page)
    assert staging.looks(10, acts=30, run_us=60) is Pace.GO
    assert staging.looks(3, acts=100, run_us=140) is Pace.PAUSE
    assert "times what it was" in staging.guard.why
    assert staging.looks(12, acts=30, run_us=40) is Pace.GO


def test_a_p99_that_stays_as_bad_in_the_pause_is_not_stagings_doing(page: MetricsPage) -> None:
    staging = Staging(page)
    assert staging.looks(3, acts=100, run_us=140) is Pace.PAUSE
    assert staging.looks(12, acts=100, run_us=140) is Pace.GO
    assert staging.looks(30, acts=100, run_us=140) is Pace.GO
    assert staging.guard.pauses == 1


def test_staging_ends_when_it_was_paused_for_too_long(page: MetricsPage) -> None:
    staging = Staging(page, StagingSettings(pause_s_max=5.0, deadline_misses_max=1_000))
    assert staging.looks(45, late=1) is Pace.PAUSE
    assert staging.looks(10, late=1) is Pace.GIVE_UP
    assert staging.guard.why.startswith(
        "it was paused for more than 5 s, the last time because the live version missed"
    )


def test_the_time_in_which_it_pauses_is_not_counted_as_taken(page: MetricsPage) -> None:
    staging = Staging(page, StagingSettings(timeout_s=4.0, deadline_misses_max=1_000))
    assert staging.looks(39) is Pace.GO
    assert staging.looks(20, late=1) is Pace.PAUSE
    assert staging.looks(12) is Pace.GIVE_UP
    assert staging.guard.why == "it was not staged within 4 s"


# A real daemon


@pytest.fixture
def store(tmp_path: Path) -> Store:
    for version in ("1.0.0", "1.1.0"):
        publish_variant(tmp_path / "store", version, 0.0)
    return Store(tmp_path / "store")


@contextmanager
def missing(daemon: Daemon) -> Iterator[threading.Event]:
    """Runs a client with budgets that cannot be met, until the event is set or the block ends."""
    stop = threading.Event()

    def act() -> None:
        with pillion.connect(daemon.address, fallback="zeros", timeout_s=START_S_MAX) as session:
            episode = session.begin()
            observation = np.zeros((5, 5), np.float32)
            while not stop.wait(0.02):
                episode.act(observation, budget_us=1)
                assert episode.last.fallback == "zeros"

    thread = threading.Thread(target=act, name="missing deadlines")
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(START_S_MAX)
        assert not thread.is_alive()


def staged(daemon: Daemon) -> tuple[int, dict[str, Any], dict[str, str]]:
    return daemon.ask("POST", f"{PATH}/stage", {"version": "1.1.0"})


def wait_for_step(daemon: Daemon, answer: tuple[int, dict[str, Any], dict[str, str]], step: str) -> None:
    def reply() -> dict[str, Any]:
        return daemon.ask("GET", f"/v1/operations/{answer[1]['number']}")[1]

    while (now := reply())["step"] != step:
        assert now["outcome"] == "running", now
        time.sleep(0.01)


def staging_processes(daemon: Daemon) -> list[psutil.Process]:
    return children_running(daemon.pid, "pilliond.staging")


def test_staging_stops_while_the_live_version_misses_deadlines_and_then_ends_well(
    store: Store, start_daemon: StartDaemon
) -> None:
    settings = {"staging__deadline_misses_max": 100_000}
    daemon = start_daemon(policy=f"{POLICY}@1.0.0", store=store.root, settings=settings)
    answer = staged(daemon)
    with missing(daemon) as stop:
        wait_for_step(daemon, answer, "paused")
        (process,) = staging_processes(daemon)
        # A process takes a signal only when it gets a CPU.
        deadline_s = time.monotonic() + START_S_MAX
        while process.status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        stop.set()
        done = daemon.operation(answer)
    assert (done["outcome"], done["paused_s"] >= 1.0) == ("done", True)
    assert daemon.metric("pillion_staging_pauses_total") == 1
    assert daemon.metric("pillion_staging_paused_seconds_total") == pytest.approx(done["paused_s"])
    assert daemon.ask("GET", PATH)[1]["stable"] == "1.0.0"


def test_staging_that_is_paused_can_be_cancelled(store: Store, start_daemon: StartDaemon) -> None:
    settings = {"staging__deadline_misses_max": 100_000}
    daemon = start_daemon(policy=f"{POLICY}@1.0.0", store=store.root, settings=settings)
    answer = staged(daemon)
    with missing(daemon):
        wait_for_step(daemon, answer, "paused")
        status, reply, _ = daemon.ask("DELETE", f"{PATH}/stage")
    assert (status, reply["outcome"]) == (200, "cancelled")
    assert staging_processes(daemon) == []


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"deadline_misses_max": 3}, "the live version missed "),
        (
            {"deadline_misses_max": 100_000, "pause_s_max": 0.3},
            "it was paused for more than 0.3 s, the last time because",
        ),
        ({"deadline_misses_max": 100_000, "timeout_s": 0.05}, "it was not staged within 0.05 s"),
    ],
)
def test_staging_ends_with_a_reason_and_the_live_version_goes_on(
    settings: dict[str, object], why: str, store: Store, start_daemon: StartDaemon
) -> None:
    named = {f"staging__{name}": value for name, value in settings.items()}
    daemon = start_daemon(policy=f"{POLICY}@1.0.0", store=store.root, settings=named)
    answer = staged(daemon)
    with missing(daemon):
        failed = daemon.operation(answer)
    assert failed["outcome"] == "failed"
    assert failed["error"].startswith(why)
    assert staging_processes(daemon) == []
    assert list(locked_digests(store.root)) == [store.resolve(f"{POLICY}@1.0.0").digest]
    with pillion.connect(daemon.address) as session:
        episode = session.begin()
        episode.act(np.zeros((5, 5), np.float32))
        assert episode.last.version == "1.0.0"
