"""Versions that no worker can run: clear states, typed errors, and everything else goes on."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import pillion
from pillion.errors import EngineOutError, RefusedError
from pillion_artifacts import Store
from tests.conftest import StartDaemon
from tests.daemon.support.policies.hostile import Poison, publish_harmless, publish_hostile, row
from tests.daemon.support.policies.wide import WIDTH, publish_wide
from tests.daemon.support.worker_faults import OK, BackgroundActor, worker_pids
from tests.harness import Daemon, wait_until

OBSERVATION = np.linspace(-1, 1, WIDTH, dtype=np.float32)
MB = 1_000_000
HEADROOMS_MB = (5, 15)
"""An arena for 256 rows of 64 KB each takes 17 MB."""


def test_a_version_whose_worker_dies_of_every_batch_is_out_and_the_others_go_on(
    tmp_path: Path, short_path: Path, start_daemon: StartDaemon
) -> None:
    publish_hostile(tmp_path / "store")
    publish_hostile(tmp_path / "store", "1.1.0")
    publish_harmless(tmp_path / "store")
    daemon = start_daemon(
        "--policy",
        "harmless",
        policy="hostile@1.0.0",
        store=tmp_path / "store",
        listen=[f"lane://{short_path}/out.sock"],
    )
    with (
        pillion.connect(daemon.address, policy="hostile") as session,
        BackgroundActor(daemon.address, "harmless") as beside,
    ):
        old = session.begin(seed=1)
        status = daemon.operation(daemon.ask("POST", "/v1/policies/hostile/switch", {"version": "1.1.0"}))
        assert status["outcome"] == "done", status
        new = session.begin(seed=1)
        codes: list[Any] = []
        while "engine_out" not in codes:
            assert len(codes) < 10
            with pytest.raises(RefusedError) as refused:
                new.act(row(1, Poison.CRASH))
            codes.append(refused.value.code)
        assert codes[:-1] == ["internal"] * 5
        for _ in range(3):
            with pytest.raises(EngineOutError):
                new.act(row(2))
        assert old.act(row(3)) == 3
        beside.wait_for(1)
        assert set(beside.stop()) == {OK}
    (out,) = daemon.events("version_out")
    assert (out["version"], out["reason"]) == ("hostile@1.1.0", "its worker was killed by SIGFPE")
    assert len(worker_pids(daemon)) == 1


def limit_memory(daemon: Daemon, headroom_mb: int | None) -> None:
    """Limits the address space of the serving process to what it has plus `headroom_mb`; None removes the limit."""
    process = psutil.Process(daemon.serving_pid)
    bytes_max = resource.RLIM_INFINITY if headroom_mb is None else process.memory_info().vms + headroom_mb * MB
    resource.prlimit(process.pid, resource.RLIMIT_AS, (bytes_max, resource.RLIM_INFINITY))


def test_a_version_without_memory_for_its_arena_is_refused_and_the_live_one_goes_on(
    tmp_path: Path, short_path: Path, start_daemon: StartDaemon
) -> None:
    for version in ("1.0.0", "1.1.0"):
        publish_wide(tmp_path / "store", version)
    daemon = start_daemon(
        policy="wide@1.0.0",
        store=tmp_path / "store",
        listen=[f"lane://{short_path}/arena.sock"],
        settings={"engine__placement": "worker"},
    )
    pid, workers = daemon.serving_pid, worker_pids(daemon)

    def stage() -> dict[str, Any]:
        return daemon.operation(daemon.ask("POST", "/v1/policies/wide/stage", {"version": "1.1.0"}))

    with pillion.connect(daemon.address) as session, session.begin() as episode:
        for headroom_mb in HEADROOMS_MB:
            limit_memory(daemon, headroom_mb)
            status = stage()
            assert status["outcome"] == "failed", headroom_mb
            assert status["error"].startswith("no memory is left for its batches ("), status["error"]
            np.testing.assert_array_equal(episode.act(OBSERVATION), 2 * OBSERVATION)
            wait_until(lambda: worker_pids(daemon) == workers)
        assert [version["version"] for version in daemon.ask("GET", "/v1/policies/wide")[1]["resident"]] == ["1.0.0"]
        limit_memory(daemon, None)
        assert stage()["outcome"] == "done"
        np.testing.assert_array_equal(episode.act(OBSERVATION), 2 * OBSERVATION)
    assert daemon.serving_pid == pid
    assert Store(tmp_path / "store").resolve("wide@1.1.0")


def test_a_version_too_large_for_a_worker_is_refused_with_one_line(
    tmp_path: Path, short_path: Path, start_daemon: StartDaemon
) -> None:
    """Its rows alone take more than a worker's address space."""
    publish_wide(tmp_path / "store", "1.0.0")
    listen = [f"lane://{short_path}/large.sock"]
    settings = {"engine__placement": "worker", "engine__worker_memory_mb_max": 256, "limits__rows_max": 4_096}
    settings["limits__queue_rows_max"] = 4_096
    with pytest.raises(AssertionError, match=r"ended with 65: pilliond: wide@1\.0\.0: .*memory.*\n$"):
        start_daemon(policy="wide", store=tmp_path / "store", listen=listen, settings=settings)
