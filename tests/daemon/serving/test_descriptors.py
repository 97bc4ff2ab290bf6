"""Where the serving process has no descriptor left, who is there goes on, and who comes is told so."""

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
from tests.daemon.core.test_states_of_versions import publish_summing
from tests.daemon.support.raw_lane import RawLane
from tests.daemon.support.wide_policies import WIDTH, publish_wide
from tests.harness import STORE, WAIT_S_MAX, Daemon, running

OBSERVATION = np.ones(WIDTH, np.float32)


@pytest.fixture
def daemon(start_daemon: StartDaemon, tmp_path: Path, short_path: Path) -> Daemon:
    """Serves observations that travel in slots, over the lane."""
    publish_wide(tmp_path / "store")
    return start_daemon(policy="wide", store=tmp_path / "store", listen=[f"lane://{short_path}/full.lane"])


def leave(daemon: Daemon, number: int) -> None:
    """Leaves the serving process so many descriptors."""
    pid = daemon.serving_pid
    taken = max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + 1
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (taken + number, hard))


def test_without_descriptors_a_new_client_is_refused_at_once_and_the_old_one_goes_on(daemon: Daemon) -> None:
    with pillion.connect(daemon.address) as session, session.begin() as episode:
        episode.act(OBSERVATION)
        leave(daemon, 10)
        with ExitStack() as stack:
            for _ in range(50):
                stack.enter_context(RawLane(daemon.address))
            for _ in range(5):
                with pytest.raises(pillion.RefusedError, match="no descriptor left") as refused:
                    pillion.connect(daemon.address, timeout_s=WAIT_S_MAX)
                assert refused.value.code == "overloaded"
            np.testing.assert_array_equal(episode.act(OBSERVATION), 2 * OBSERVATION)
            assert daemon.metric("pillion_refusals_total", outcome="overloaded") >= 45
            assert not is_running_hot(daemon)
        with pillion.connect(daemon.address, timeout_s=WAIT_S_MAX) as another:
            np.testing.assert_array_equal(another.begin().act(OBSERVATION), 2 * OBSERVATION)
    assert daemon.health()["serving"]["starts"] == 1


def is_running_hot(daemon: Daemon) -> bool:
    """Whether the serving process uses most of a core for nothing: a listener that is told of without end."""
    stat = Path(f"/proc/{daemon.serving_pid}/stat")

    def ticks() -> int:
        fields = stat.read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(0.5)
    return ticks() - before > os.sysconf("SC_CLK_TCK") / 8


def test_without_descriptors_for_slots_observations_travel_inline(daemon: Daemon) -> None:
    with pillion.connect(daemon.address) as session:
        leave(daemon, 1)
        with session.begin() as episode:
            np.testing.assert_array_equal(episode.act(OBSERVATION), 2 * OBSERVATION)
            assert not episode.last.observation_in_slot


@pytest.mark.parametrize(
    ("left", "why"),
    [
        (0, "the serving process has no descriptor left for its memory"),
        (1, "the serving process cannot begin to load it: Too many open files"),
    ],
)
def test_without_descriptors_a_version_is_not_loaded_and_the_one_that_serves_goes_on(
    left: int, why: str, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    publish_summing(tmp_path / "store", "1.0.0", 0.0)
    publish_summing(tmp_path / "store", "1.1.0", 100.0)
    daemon = start_daemon(policy="summing@1.0.0", store=tmp_path / "store")
    with pillion.connect(daemon.address) as session, session.begin() as episode:
        episode.act(np.ones(1, np.float32))
        leave(daemon, left)
        done = daemon.operation(daemon.ask("POST", "/v1/policies/summing/stage", {"version": "1.1.0"}))
        assert (done["outcome"], done["error"]) == ("failed", why)
        assert episode.act(np.ones(1, np.float32)).tolist() == [2.0]
    assert daemon.health()["serving"]["starts"] == 1


def test_the_serving_process_takes_all_descriptors_that_it_may_have(short_path: Path) -> None:
    arguments = ["--store", str(STORE), "--policy", "lunar-lander", "--admin", "http://127.0.0.1:0"]
    listen = ["--listen", f"lane://{short_path}/few.lane"]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        with running([*arguments, *listen], short_path / "few.log") as daemon:
            assert resource.prlimit(daemon.serving_pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
