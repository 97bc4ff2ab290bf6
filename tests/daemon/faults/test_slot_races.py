"""A client writes to its slot while its act runs: the engine works on a copy, so nothing but a written value counts."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pillion_protocol import Action, Error
from tests.conftest import StartDaemon
from tests.daemon.support.policies.graphs import ENTRIES, WIDE, publish_wide_table
from tests.daemon.support.raw_lane import RawEpisodeGroup, RawLane
from tests.daemon.support.worker_faults import worker_pids
from tests.harness import WAIT_S_MAX, Daemon

ACTS = 300
"""Acts of each trial. Many of them see the slot change."""
ROWS = 8
GENERATION = 1
SANE = 3
OTHER = 5
BAD = (2**40, -(2**40), ENTRIES)
"""Out of the table: a read there would end the process, or return what is in its memory."""
EVERY = 64
"""One number in so many changes: one cache line of eight."""


@pytest.fixture(scope="module", params=["inline", "worker", "cached"])
def table_daemon(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    short_path: Path,
    module_daemon: StartDaemon,
) -> Daemon:
    """A daemon whose policy looks integers up, in either place; or inline, with a result cache."""
    store = tmp_path_factory.mktemp("table") / "store"
    publish_wide_table(store)
    placement = "worker" if request.param == "worker" else "inline"
    settings = {"engine__placement": placement, "limits__batch_wait_us_max": 100_000, "limits__rows_max": 2 * ROWS}
    if request.param == "cached":
        settings["engine__cache_rows_max"] = 10_000
    listen = [f"lane://{short_path}/races-{request.param}.sock"]
    daemon = module_daemon(policy="wide-table", store=store, listen=listen, settings=settings)
    assert len(worker_pids(daemon)) == (request.param == "worker")
    return daemon


def begun(lane: RawLane, value: int) -> RawEpisodeGroup:
    """Opens a session and begins a group whose first slot holds this value."""
    group = lane.hello().begin(rows=ROWS)
    write(group, value)
    return group


def write(group: RawEpisodeGroup, value: int) -> None:
    observation = np.full((ROWS, WIDE), value, np.int64)
    group.write(1, GENERATION, observation.view(np.float32))


@contextmanager
def flipping(group: RawEpisodeGroup, to: int, sane: int = SANE) -> Iterator[None]:
    """Changes numbers in the group's slot without a pause, between `sane` and `to`."""
    view = group.layout.slots(memoryview(group.map()))[0]
    numbers = np.frombuffer(group.layout.observations(view)[0], np.int64)[::EVERY]
    is_stopping = threading.Event()

    def flip() -> None:
        while not is_stopping.is_set():
            numbers[:] = to
            numbers[:] = sane

    thread = threading.Thread(target=flip, name="flipper")
    thread.start()
    try:
        yield
    finally:
        is_stopping.set()
        thread.join(WAIT_S_MAX)


def act(group: RawEpisodeGroup) -> str:
    """Acts from the slot, and returns how that ended: the error's code, or the entries that the answer holds."""
    group.lane.send(group.act_head(slot=1, generation=GENERATION))
    return outcome(group)


def outcome(group: RawEpisodeGroup) -> str:
    reply, _ = group.lane.receive()
    if isinstance(reply, Error):
        return reply.code
    assert isinstance(reply, Action), reply
    return " and ".join(f"{entry:g}" for entry in np.unique(group.outputs(1)))


@pytest.mark.parametrize("bad", BAD)
def test_an_index_that_leaves_its_bounds_while_the_act_runs_is_refused_or_never_seen(
    table_daemon: Daemon, bad: int
) -> None:
    before = table_daemon.serving_pid, worker_pids(table_daemon)
    with RawLane(table_daemon.address) as lane:
        group = begun(lane, SANE)
        with flipping(group, bad):
            outcomes = Counter(act(group) for _ in range(ACTS))
        write(group, SANE)
        assert act(group) == "1.5"
    assert set(outcomes) <= {"out_of_bounds", "1.5"}, outcomes
    assert outcomes["out_of_bounds"]
    assert (table_daemon.serving_pid, worker_pids(table_daemon)) == before


def test_an_answer_holds_only_values_that_were_written(table_daemon: Daemon) -> None:
    with RawLane(table_daemon.address) as lane:
        group = begun(lane, SANE)
        with flipping(group, OTHER):
            outcomes = Counter(act(group) for _ in range(ACTS))
    assert set(outcomes) <= {"1.5", "1.5 and 2.5"}, outcomes
    assert len(outcomes) == 2, outcomes


def test_what_was_answered_while_the_slot_changed_is_no_answer_to_anything_else(table_daemon: Daemon) -> None:
    """A cache that looked up one reading of the slot and ran another would remember the wrong one."""
    with RawLane(table_daemon.address) as lane:
        group = begun(lane, 0)
        for value in range(ENTRIES - 1):
            write(group, value)
            with flipping(group, ENTRIES - 1, sane=value):
                for _ in range(ACTS // 4):
                    act(group)
            write(group, value)
            assert [act(group) for _ in range(3)] == [f"{value / 2:g}"] * 3


def test_what_is_gathered_again_after_a_refusal_in_the_batch_is_checked_again(table_daemon: Daemon) -> None:
    with RawLane(table_daemon.address) as bad_lane, RawLane(table_daemon.address) as flipping_lane:
        always_bad, flipped = begun(bad_lane, BAD[0]), begun(flipping_lane, SANE)
        outcomes: Counter[str] = Counter()
        with flipping(flipped, BAD[0]):
            for _ in range(ACTS):
                for group in (always_bad, flipped):
                    group.lane.send(group.act_head(slot=1, generation=GENERATION))
                assert outcome(always_bad) == "out_of_bounds"
                outcomes[outcome(flipped)] += 1
    assert set(outcomes) <= {"out_of_bounds", "1.5"}, outcomes
