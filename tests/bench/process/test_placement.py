"""Every figure names the CPUs of server and client, and they really ran there."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from pillion_bench.errors import PlacementError
from pillion_bench.process.daemon_process import DaemonProcess
from pillion_bench.process.placement import parse_placement, pinned
from tests.harness import STORE

TWO = frozenset({4, 6})
ANY_SPEED = {"PILLION_ENGINE__INLINE_US_MAX": "1000000"}


def test_two_cores_are_the_default_if_there_are_two() -> None:
    placement = parse_placement("", TWO)
    assert (placement.server, placement.client) == (frozenset({4}), frozenset({6}))
    assert str(placement) == "two-cores (server on cpu 4, client on cpu 6)"


def test_one_core_is_the_default_if_there_is_one() -> None:
    placement = parse_placement("", frozenset({3}))
    assert (placement.server, placement.client) == (frozenset({3}), frozenset({3}))


def test_cpus_can_be_named() -> None:
    placement = parse_placement("0-1:2,3", frozenset(range(4)))
    assert (placement.server, placement.client) == (frozenset({0, 1}), frozenset({2, 3}))


@pytest.mark.parametrize("text", ["sideways", "0", "0:", ":1", "a:b", "1-0:1", "0:1:2"])
def test_a_text_that_is_not_a_placement_is_refused(text: str) -> None:
    with pytest.raises(PlacementError, match="--pin"):
        parse_placement(text, frozenset({0, 1}))


def test_a_cpu_outside_the_allowed_ones_is_refused() -> None:
    with pytest.raises(PlacementError, match="may run on cpu 4,6"):
        parse_placement("4:5", TWO)


def test_two_cores_need_two() -> None:
    with pytest.raises(PlacementError, match="one cpu only"):
        parse_placement("two-cores", frozenset({0}))


def test_this_process_returns_to_its_own_cpus() -> None:
    before = os.sched_getaffinity(0)
    one = frozenset({min(before)})
    with pinned(one):
        assert os.sched_getaffinity(0) == one
    assert os.sched_getaffinity(0) == before


def test_every_thread_of_both_daemon_processes_runs_on_the_given_cpu() -> None:
    cpu = min(os.sched_getaffinity(0))
    # On a slow machine the policy would be placed in a worker, which is one process more.
    with DaemonProcess(STORE, "lunar-lander", frozenset({cpu}), settings=ANY_SPEED) as daemon:
        control = psutil.Process(daemon.pid)
        processes = [control, *control.children(recursive=True)]
        assert len(processes) == 2
        threads = [thread.id for process in processes for thread in process.threads()]
        assert len(threads) > 2
        assert {frozenset(os.sched_getaffinity(thread)) for thread in threads} == {frozenset({cpu})}


def test_a_daemon_of_the_bench_leaves_no_folder_and_no_process_behind() -> None:
    with DaemonProcess(STORE, "lunar-lander") as daemon:
        folder = Path(daemon.address.removeprefix("ipc://")).parent
        pids = [daemon.pid, *(child.pid for child in psutil.Process(daemon.pid).children())]
    assert not folder.exists()
    deadline_s = time.monotonic() + 5
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
