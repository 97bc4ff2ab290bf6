"""The worker pool with real worker processes, and a test in place of the serving process."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import structlog

from pillion_artifacts import Store
from pillion_artifacts.verify.trust_policy import TrustPolicy
from pilliond.errors import SwitchError
from pilliond.ipc.control_channel import ControlMessage, GiveUp, NeedWorker, WorkerReady, WorkerStarted
from pilliond.ipc.loss_cause import LossCause
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.linux.spawner import Spawner
from pilliond.rollout.restore import admitted
from pilliond.settings.schema import EngineSettings
from pilliond.supervision.worker_pool import WorkerPool, resident_bytes_of
from pilliond.supervision.worker_status import worker_status
from tests.daemon.support.policies.shadow import publish_times
from tests.harness import until

SETTINGS = EngineSettings(worker_memory_mb_max=256)
MB = 1_000_000


class OtherSide:
    """What a serving process would be told. It keeps the channels open, so that the workers go on."""

    def __init__(self) -> None:
        self.told: list[ControlMessage] = []
        self._kept: list[int] = []

    def tell(self, message: ControlMessage, descriptors: Sequence[int]) -> None:
        self.told.append(message)
        self._kept += [os.dup(descriptor) for descriptor in descriptors]

    def close(self) -> None:
        for descriptor in self._kept:
            os.close(descriptor)


@pytest.fixture
def side() -> Iterator[OtherSide]:
    side = OtherSide()
    yield side
    side.close()


@pytest.fixture
def version(tmp_path: Path) -> Iterator[SealedVersion]:
    publish_times(tmp_path / "store", "scaling", "1.0.0", 2.0)
    version = admitted(Store(tmp_path / "store"), "scaling@1.0.0", TrustPolicy())
    yield version
    version.close()


MakePool = Callable[[Callable[[int], int]], WorkerPool]


@pytest.fixture
def make_pool(side: OtherSide) -> Iterator[MakePool]:
    """Makes a pool that reads the resident memory of a process in this way."""
    spawner = Spawner()
    spawner.start()
    pools: list[WorkerPool] = []

    def make(resident_bytes: Callable[[int], int]) -> WorkerPool:
        pools.append(WorkerPool(spawner, side.tell, structlog.get_logger(), resident_bytes))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()
    spawner.close()


def test_the_resident_memory_of_a_process_is_read_and_none_is_left_of_an_ended_one() -> None:
    assert resident_bytes_of(os.getpid()) > 10 * MB
    ended = os.spawnl(os.P_NOWAIT, sys.executable, sys.executable, "-c", "pass")
    os.waitpid(ended, 0)
    assert resident_bytes_of(ended) == 0


def test_a_worker_with_too_much_resident_memory_is_killed_and_replaced(
    make_pool: MakePool, side: OtherSide, version: SealedVersion
) -> None:
    used = [256 * MB]
    pool = make_pool(lambda pid: used[0])

    async def scenario() -> None:
        pool.need(NeedWorker(version.key), version, SETTINGS)
        pool.loaded(version.key)
        pool.check_memory()
        info = pool.find(version.key)
        assert info is not None
        assert info.process is not None
        assert info.process.poll() is None
        used[0] += MB
        pool.check_memory()
        assert info.process.wait(30) == -9
        # What a serving process sees is that its worker ended.
        pool.need(NeedWorker(version.key, "its worker ended", batches=1), version, SETTINGS)
        assert (info.state, info.pid) == ("lost", None)
        why = "it had 257 MB of resident memory, engine.worker_memory_mb_max is 256"
        assert (info.reason, pool.losses) == (why, {("scaling", LossCause.MEMORY): 1})
        used[0] = 0
        await until(lambda: info.state == "loading")
        pool.check_memory()
        pool.ready(WorkerReady(version.key, {}))
        assert (info.state, info.restarts, info.process.poll()) == ("ready", 1, None)
        # The next loss is not for its memory any more.
        pool.need(NeedWorker(version.key, "its worker ended", batches=1), version, SETTINGS)
        assert info.reason == "its worker ended"

    asyncio.run(scenario())
    assert [type(message) for message in side.told] == [WorkerStarted, WorkerStarted]


def test_a_version_that_is_out_is_tried_again_and_the_caller_is_told_how_it_went(
    make_pool: MakePool, side: OtherSide, version: SealedVersion
) -> None:
    pool = make_pool(resident_bytes_of)
    refused = NeedWorker(version.key, "it has no such engine", cause=LossCause.REFUSED)

    async def scenario() -> None:
        await pool.retry(version.key)
        assert side.told == []
        pool.need(NeedWorker(version.key), version, SETTINGS)
        pool.need(refused, version, SETTINGS)
        assert pool.why_out(version.key) == "it has no such engine"
        assert side.told[-1] == GiveUp(version.key, "it has no such engine")
        failing = asyncio.create_task(pool.retry(version.key))
        await asyncio.sleep(0)
        assert pool.why_out(version.key) == ""
        pool.need(refused, version, SETTINGS)
        with pytest.raises(SwitchError, match="it is out again: it has no such engine"):
            await failing
        good = asyncio.create_task(pool.retry(version.key))
        await asyncio.sleep(0)
        pool.ready(WorkerReady(version.key, {}))
        await good
        assert pool.why_out(version.key) == ""

    asyncio.run(scenario())


def test_what_a_worker_says_of_itself_is_shown_only_as_short_text(make_pool: MakePool, version: SealedVersion) -> None:
    pool = make_pool(resident_bytes_of)
    assert worker_status(version, pool) is None
    version.engine = {"python": "3" * 1_000, "memory": ["locked"], "network": None, "depth": "many"}

    async def scenario() -> None:
        pool.need(NeedWorker(version.key), version, SETTINGS)
        status = worker_status(version, pool)
        assert status is not None
        assert (status.state, status.python, status.memory) == ("loading", "3" * 100, "")
        assert (status.network, status.privileges, status.depth) == ("", "", 0)

    asyncio.run(scenario())
