"""A daemon whose start fails, or that ends while its serving process does, leaves neither a process nor a socket file."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog

from pilliond import control
from pilliond.control import load_policy
from pilliond.ipc.control_channel import Ready
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.linux.spawner import Spawner
from pilliond.settings.schema import Settings, load_settings
from pilliond.supervision.serving_process import ServingProcess
from pilliond.supervision.supervisor import Supervisor
from tests.harness import STORE, until, wait_until


@pytest.fixture
def path(short_path: Path) -> Path:
    return short_path / "closed.sock"


@pytest.fixture
def supervisor(path: Path) -> Iterator[Supervisor]:
    """It has started a serving process. The test closes it."""
    flags = {"store": {"path": str(STORE), "policy": "lunar-lander"}, "data": {"listen": [f"lane://{path}"]}}
    settings = load_settings(None, {}, flags)
    spawner = Spawner()
    spawner.start()
    supervisor = Supervisor(settings, [load_policy(settings)[1]], spawner, structlog.get_logger())
    supervisor.start()
    yield supervisor
    spawner.close()


def is_all_released(supervisor: Supervisor, pid: int) -> bool:
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(supervisor._page_descriptor)
    return not psutil.pid_exists(pid)


def test_the_socket_of_a_serving_process_that_was_not_ready_yet_is_removed(supervisor: Supervisor, path: Path) -> None:
    """As where the admin port is taken, which is known only then."""
    pid = supervisor.serving_pid
    assert pid is not None
    wait_until(path.exists)
    supervisor.close()
    assert not path.exists()
    assert is_all_released(supervisor, pid)


def test_one_that_waits_for_the_end_of_its_serving_process_can_be_closed(supervisor: Supervisor, path: Path) -> None:
    pid = supervisor.serving_pid
    assert pid is not None

    def fail(_: Ready) -> None:
        # It does not see that its channel is closed, and does not end.
        os.kill(pid, signal.SIGSTOP)
        raise RuntimeError

    async def scenario() -> None:
        running = asyncio.create_task(supervisor.run(fail))
        await until(lambda: supervisor._end is None)
        running.cancel()
        await asyncio.wait([running])
        supervisor.close()

    asyncio.run(scenario())
    assert not path.exists()
    assert is_all_released(supervisor, pid)


def test_a_start_that_fails_before_there_is_a_supervisor_leaves_no_worker_and_no_version(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    flags = {
        "store": {"path": str(STORE), "policy": "lunar-lander"},
        "data": {"listen": [f"lane://{path}"]},
        "engine": {"placement": "worker"},
    }
    settings = load_settings(None, {}, flags)
    given: list[tuple[SealedVersion, int]] = []

    def fail(_: Settings, stables: list[SealedVersion], *others: Any) -> Supervisor:
        worker = others[-1]._started
        given.extend((stable, worker.process.pid) for stable in stables)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(control, "Supervisor", fail)
    spawner = Spawner()
    spawner.start()
    try:
        first = ServingProcess(spawner, may_run_inline=False)
        with pytest.raises(OSError, match="Too many open files"):
            asyncio.run(control.serve(settings, spawner, first))
        first.close()
    finally:
        spawner.close()
    ((stable, pid),) = given
    assert stable.descriptors() == []
    assert not psutil.pid_exists(pid)
