"""The serving process runs out of memory while it loads a version inline: the load fails, and clients are served as before."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import pillion
from pillion_artifacts import Store
from pillion_artifacts.store.daemon_locks import locked_digests
from tests.conftest import StartDaemon
from tests.daemon.support.policies.wide import WIDTH, publish_wide
from tests.harness import Daemon

PATH = "/v1/policies/wide"
OBSERVATION = np.linspace(-1, 1, WIDTH, dtype=np.float32)
MB = 1_000_000
HEADROOMS_MB = (0, 20, 100)
"""Less than a thread needs, more than that, and more than a thread's heap needs. A version of 17 MB fits into none."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    for version in ("1.0.0", "1.1.0"):
        publish_wide(tmp_path / "store", version)
    return Store(tmp_path / "store")


def limit_memory(daemon: Daemon, headroom_mb: int | None) -> None:
    """Limits the address space of the serving process to what it has plus `headroom_mb`; None removes the limit."""
    process = psutil.Process(daemon.serving_pid)
    bytes_max = resource.RLIM_INFINITY if headroom_mb is None else process.memory_info().vms + headroom_mb * MB
    resource.prlimit(process.pid, resource.RLIMIT_AS, (bytes_max, resource.RLIM_INFINITY))


def stage(daemon: Daemon) -> dict[str, Any]:
    """Stages 1.1.0 and returns the finished operation."""
    return daemon.operation(daemon.ask("POST", f"{PATH}/stage", {"version": "1.1.0"}))


def test_staging_fails_without_memory_for_the_version_and_the_live_one_goes_on(
    store: Store, start_daemon: StartDaemon, short_path: Path
) -> None:
    listen = [f"lane://{short_path}/memory.sock"]
    settings = {"engine__placement": "inline"}
    daemon = start_daemon(policy="wide@1.0.0", store=store.root, listen=listen, settings=settings)
    pid = daemon.serving_pid
    with pillion.connect(daemon.address) as session, session.begin() as episode:
        for headroom_mb in HEADROOMS_MB:
            limit_memory(daemon, headroom_mb)
            status = stage(daemon)
            assert status["outcome"] == "failed", headroom_mb
            assert status["error"] == "the serving process cannot begin to load it: Cannot allocate memory"
            np.testing.assert_array_equal(episode.act(OBSERVATION), 2 * OBSERVATION)
        assert daemon.serving_pid == pid
        assert [version["version"] for version in daemon.ask("GET", PATH)[1]["resident"]] == ["1.0.0"]
        assert locked_digests(store.root) == {store.resolve("wide@1.0.0").digest}
        limit_memory(daemon, None)
        assert stage(daemon)["outcome"] == "done"
        np.testing.assert_array_equal(episode.act(OBSERVATION), 2 * OBSERVATION)
