"""The serving process runs out of descriptors: clients are served as before, and new ones get a typed error."""

from __future__ import annotations

import os
import resource
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import pillion
from tests.conftest import StartDaemon
from tests.daemon.support.policies.recurrent import publish_summing
from tests.daemon.support.policies.wide import WIDTH, publish_wide
from tests.daemon.support.process_resources import cpu_s
from tests.daemon.support.raw_lane import RawLane
from tests.harness import STORE, WAIT_S_MAX, Daemon, running

OBSERVATION = np.ones(WIDTH, np.float32)
INLINE = {"engine__placement": "inline"}
"""On a slow machine `auto` would place a version in a worker, which needs descriptors of its own."""


@pytest.fixture
def daemon(start_daemon: StartDaemon, tmp_path: Path, short_path: Path) -> Daemon:
    """A daemon on the lane whose observations travel in slots."""
    publish_wide(tmp_path / "store")
    listen = [f"lane://{short_path}/full.lane"]
    return start_daemon(policy="wide", store=tmp_path / "store", listen=listen, settings=INLINE)


def leave_descriptors(daemon: Daemon, number: int) -> None:
    """Limits the serving process to `number` more descriptors."""
    pid = daemon.serving_pid
    taken = max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + 1
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (taken + number, hard))


def test_without_descriptors_a_new_client_is_refused_and_the_old_one_goes_on(daemon: Daemon) -> None:
    with pillion.connect(daemon.address) as session, session.begin() as episode:
        episode.act(OBSERVATION)
        leave_descriptors(daemon, 10)
        with ExitStack() as stack:
            for _ in range(50):
                stack.enter_context(RawLane(daemon.address))
            for _ in range(5):
                with pytest.raises(pillion.RefusedError, match="no descriptor left") as refused:
                    pillion.connect(daemon.address, timeout_s=WAIT_S_MAX)
                assert refused.value.code == "overloaded"
            np.testing.assert_array_equal(episode.act(OBSERVATION), 2 * OBSERVATION)
            assert daemon.metric("pillion_refusals_total", outcome="overloaded") >= 45
            assert not is_busy(daemon)
        with pillion.connect(daemon.address, timeout_s=WAIT_S_MAX) as another:
            np.testing.assert_array_equal(another.begin().act(OBSERVATION), 2 * OBSERVATION)
    assert daemon.health()["serving"]["starts"] == 1


def is_busy(daemon: Daemon) -> bool:
    """Whether an idle serving process uses much of a core, as when epoll reports a listener again and again."""
    before_s = cpu_s(daemon.serving_pid)
    time.sleep(0.5)
    return cpu_s(daemon.serving_pid) - before_s > 0.125


def test_without_descriptors_for_slots_observations_travel_inline(daemon: Daemon) -> None:
    with pillion.connect(daemon.address) as session:
        leave_descriptors(daemon, 1)
        with session.begin() as episode:
            np.testing.assert_array_equal(episode.act(OBSERVATION), 2 * OBSERVATION)
            assert not episode.last.observation_in_slot


@pytest.mark.parametrize(
    ("left", "error"),
    [
        (0, "the serving process has no descriptor left for its memory"),
        (1, "the serving process cannot begin to load it: Too many open files"),
    ],
)
def test_without_descriptors_a_version_is_not_loaded_and_the_live_one_goes_on(
    left: int, error: str, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    publish_summing(tmp_path / "store", "1.0.0", 0.0)
    publish_summing(tmp_path / "store", "1.1.0", 100.0)
    daemon = start_daemon(policy="summing@1.0.0", store=tmp_path / "store", settings=INLINE)
    with pillion.connect(daemon.address) as session, session.begin() as episode:
        episode.act(np.ones(1, np.float32))
        leave_descriptors(daemon, left)
        done = daemon.operation(daemon.ask("POST", "/v1/policies/summing/stage", {"version": "1.1.0"}))
        assert (done["outcome"], done["error"]) == ("failed", error)
        assert episode.act(np.ones(1, np.float32)).tolist() == [2.0]
    assert daemon.health()["serving"]["starts"] == 1


def test_the_serving_process_raises_its_descriptor_limit_to_the_maximum(short_path: Path) -> None:
    arguments = ["--store", str(STORE), "--policy", "lunar-lander", "--admin", "http://127.0.0.1:0"]
    listen = ["--listen", f"lane://{short_path}/few.lane"]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Other tests may have left many open in this process.
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(used + 256, hard), hard))
    try:
        with running([*arguments, *listen], short_path / "few.log") as daemon:
            assert resource.prlimit(daemon.serving_pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
