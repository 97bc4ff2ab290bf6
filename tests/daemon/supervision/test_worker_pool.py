"""The worker pool with real worker processes, and a test in place of the serving process."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import structlog

from pillion_artifacts import Store
from pillion_artifacts.verify.trust_policy import TrustPolicy
from pilliond.errors import SwitchError
from pilliond.ipc.control_channel import ControlMessage, GiveUp, NeedWorker, WorkerReady, WorkerStarted
from pilliond.ipc.loss_cause import WORKER_ENDED, LossCause
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.limits import WORKER_LOSSES_MAX
from pilliond.linux.spawner import Spawner
from pilliond.rollout.restore import admitted
from pilliond.settings.schema import EngineSettings
from pilliond.supervision import worker_pool as worker_pool_module
from pilliond.supervision.worker_pool import WorkerInfo, WorkerPool, resident_bytes_of
from pilliond.supervision.worker_start import StartedWorker
from pilliond.supervision.worker_status import replica_statuses, worker_status
from tests.daemon.support.policies.shadow import publish_times
from tests.daemon.support.process_resources import descriptors_left
from tests.harness import WAIT_S_MAX, until

SETTINGS = EngineSettings(worker_memory_mb_max=256)
MB = 1_000_000


class OtherSide:
    """What a serving process would be told. It keeps the channels open, so that the workers go on."""

    def __init__(self) -> None:
        self.told: list[ControlMessage] = []
        self.errors: list[OSError] = []
        """What the next sends raise instead."""
        self._kept: list[int] = []

    def tell(self, message: ControlMessage, descriptors: Sequence[int]) -> None:
        if self.errors:
            raise self.errors.pop(0)
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
        pool.wait_ended()
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
        pool.need(NeedWorker(version.key, WORKER_ENDED, batches=1), version, SETTINGS)
        assert (info.state, info.pid) == ("lost", None)
        why = "it had 257 MB of resident memory, engine.worker_memory_mb_max is 256"
        assert (info.reason, pool.losses) == (why, {("scaling", LossCause.MEMORY): 1})
        used[0] = 0
        await until(lambda: info.state == "loading")
        pool.check_memory()
        pool.ready(WorkerReady(version.key, {}))
        assert (info.state, info.restarts, info.process.poll()) == ("ready", 1, None)
        # The next loss is not for its memory any more.
        pool.need(NeedWorker(version.key, "a test says so", batches=1), version, SETTINGS)
        assert info.reason == "a test says so"

    asyncio.run(scenario())
    assert [type(message) for message in side.told] == [WorkerStarted, WorkerStarted]


def test_a_worker_that_is_gone_is_named_with_the_signal_that_killed_it_in_the_log_and_to_the_serving_process(
    make_pool: MakePool, side: OtherSide, version: SealedVersion
) -> None:
    pool = make_pool(resident_bytes_of)
    why = "its worker was killed by SIGSEGV"

    async def scenario() -> None:
        pool.need(NeedWorker(version.key), version, SETTINGS)
        info = pool.find(version.key)
        assert info is not None
        for losses in range(WORKER_LOSSES_MAX):
            await until(lambda: info.state == "loading")
            assert info.pid is not None
            os.kill(info.pid, signal.SIGSEGV)
            pool.need(NeedWorker(version.key, WORKER_ENDED), version, SETTINGS)
            assert (info.losses.losses, info.reason) == (losses + 1, why)
        assert side.told[-1] == GiveUp(version.key, why)

    with structlog.testing.capture_logs() as log:
        asyncio.run(scenario())
    events = [*["worker_lost"] * (WORKER_LOSSES_MAX - 1), "version_out"]
    assert [(record["event"], record["reason"]) for record in log] == [(event, why) for event in events]


def test_a_worker_that_is_lost_for_another_reason_is_not_named_with_the_signal_of_the_pool(
    make_pool: MakePool, version: SealedVersion
) -> None:
    pool = make_pool(resident_bytes_of)

    async def scenario() -> None:
        pool.need(NeedWorker(version.key), version, SETTINGS)
        info = pool.find(version.key)
        assert info is not None
        pool.need(NeedWorker(version.key, "it made no progress", cause=LossCause.HUNG), version, SETTINGS)
        assert info.reason == "it made no progress"
        # Its channel is closed, it goes on, and it is killed here: that is not how it ended.
        await until(lambda: info.state == "loading")
        pool.need(NeedWorker(version.key, WORKER_ENDED), version, SETTINGS)
        assert info.reason == WORKER_ENDED

    asyncio.run(scenario())


def test_a_worker_that_was_started_ahead_is_the_one_that_the_serving_process_asks_for(
    make_pool: MakePool, side: OtherSide, version: SealedVersion
) -> None:
    pool = make_pool(lambda pid: 0)

    async def scenario() -> None:
        pool.start_first(version, SETTINGS)
        info = pool.find(version.key)
        assert info is not None
        ahead = info.pid
        pool.need(NeedWorker(version.key), version, SETTINGS)
        assert (info.pid, info.state, side.told) == (ahead, "loading", [WorkerStarted(version.key)])
        # Once it was asked for, it is a worker as any other.
        pool.need(NeedWorker(version.key), version, SETTINGS)
        assert info.pid != ahead

    asyncio.run(scenario())


def test_a_process_that_was_started_before_its_version_was_there_becomes_the_first_worker_alone(
    make_pool: MakePool, side: OtherSide, version: SealedVersion
) -> None:
    pool = make_pool(lambda pid: 0)
    spawner = Spawner()
    spawner.start()
    started = StartedWorker(spawner, SETTINGS)

    async def scenario() -> None:
        pool.start_first(version, SETTINGS, started)
        info = pool.find(version.key)
        assert info is not None
        assert (info.pid, side.told) == (started.process.pid, [WorkerStarted(version.key)])
        pool.need(NeedWorker(version.key), version, SETTINGS)
        assert info.pid == started.process.pid
        pool.need(NeedWorker(version.key, "a test says so"), version, SETTINGS)
        await until(lambda: info.state == "loading")
        assert info.pid not in (None, started.process.pid)

    asyncio.run(scenario())
    assert started.process.wait(WAIT_S_MAX) == -9
    spawner.close()


def test_a_worker_that_was_started_ahead_and_is_lost_is_replaced(
    make_pool: MakePool, side: OtherSide, version: SealedVersion
) -> None:
    pool = make_pool(lambda pid: 0)

    async def scenario() -> None:
        pool.start_first(version, SETTINGS)
        pool.need(NeedWorker(version.key, "a test says so"), version, SETTINGS)
        info = pool.find(version.key)
        assert info is not None
        assert (info.state, info.reason) == ("lost", "a test says so")
        await until(lambda: info.state == "loading")

    asyncio.run(scenario())
    assert side.told == [WorkerStarted(version.key)] * 2


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


def children() -> list[int]:
    """The processes that this one has started and not reaped."""
    tasks = Path("/proc/self/task").iterdir()
    return sorted(int(pid) for task in tasks for pid in (task / "children").read_text().split())


@pytest.mark.parametrize("count", [0, 2])
def test_a_worker_that_finds_no_descriptor_is_started_after_a_pause(
    make_pool: MakePool, side: OtherSide, version: SealedVersion, count: int
) -> None:
    pool = make_pool(resident_bytes_of)

    async def scenario() -> None:
        with descriptors_left(count):
            pool.need(NeedWorker(version.key), version, SETTINGS)
        info = pool.find(version.key)
        assert info is not None
        assert (info.state, info.pid, side.told) == ("lost", None, [])
        assert info.reason == "cannot start a worker: Too many open files"
        assert pool.losses == {(version.policy, LossCause.SHORTAGE): 1}
        await until(lambda: info.state == "loading")
        assert [type(message) for message in side.told] == [WorkerStarted]

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ETOOMANYREFS])
def test_a_worker_that_the_serving_process_was_not_told_of_is_replaced(
    make_pool: MakePool, side: OtherSide, version: SealedVersion, number: int
) -> None:
    pool = make_pool(resident_bytes_of)
    before = children()

    async def scenario() -> None:
        side.errors = [OSError(number, os.strerror(number))]
        pool.need(NeedWorker(version.key), version, SETTINGS)
        info = pool.find(version.key)
        assert info is not None
        assert (info.state, info.pid, side.told) == ("lost", None, [])
        await until(lambda: info.state == "loading")
        assert [type(message) for message in side.told] == [WorkerStarted]
        pool.wait_ended()
        assert info.pid is not None
        assert set(children()) - set(before) == {info.pid}

    asyncio.run(scenario())


def test_a_serving_process_that_does_not_read_is_told_later_that_a_version_is_out(
    make_pool: MakePool, side: OtherSide, version: SealedVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool_module, "WORKER_LOOK_S", 0.01)
    pool = make_pool(resident_bytes_of)

    async def scenario() -> None:
        pool.need(NeedWorker(version.key), version, SETTINGS)
        side.errors = [BlockingIOError(errno.EAGAIN, "full"), BlockingIOError(errno.EAGAIN, "full")]
        pool.need(NeedWorker(version.key, "no such engine", cause=LossCause.REFUSED), version, SETTINGS)
        assert pool.why_out(version.key) == "no such engine"
        await until(lambda: len(side.told) > 1)
        assert side.told[1:] == [GiveUp(version.key, "no such engine")]

    asyncio.run(scenario())


def test_the_loop_does_not_wait_for_a_killed_worker(
    make_pool: MakePool, version: SealedVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(resident_bytes_of)

    async def scenario() -> None:
        pool.need(NeedWorker(version.key), version, SETTINGS)
        info = pool.find(version.key)
        assert info is not None
        process = info.process
        assert process is not None
        with monkeypatch.context() as patched:
            # A process that the kernel does not let end.
            patched.setattr(worker_pool_module, "kill_group", lambda _: None)
            pool.end(version.key)
        assert process.poll() is None
        pool._reap()
        assert pool._ending == [process]
        process.send_signal(signal.SIGKILL)
        pool.wait_ended()
        assert process.returncode == -signal.SIGKILL
        pool._reap()
        assert pool._ending == []

    asyncio.run(scenario())


def start_in_group_of(worker: WorkerInfo) -> subprocess.Popen[bytes]:
    """Starts a program as a policy might."""
    return subprocess.Popen(["sleep", "3600"], process_group=worker.pid)


def test_a_worker_is_killed_with_its_group(make_pool: MakePool, version: SealedVersion) -> None:
    pool = make_pool(resident_bytes_of)

    async def scenario() -> None:
        pool.need(NeedWorker(version.key), version, SETTINGS)
        info = pool.find(version.key)
        assert info is not None
        program = start_in_group_of(info)
        pool.end(version.key)
        assert program.wait(WAIT_S_MAX) == -signal.SIGKILL

    asyncio.run(scenario())


def test_a_worker_that_cannot_be_pinned_does_not_stay(
    make_pool: MakePool, side: OtherSide, version: SealedVersion
) -> None:
    pool = make_pool(resident_bytes_of)
    before = children()
    settings = EngineSettings(worker_cpus=str(min(os.sched_getaffinity(0))))
    # A CPU that was there when the daemon started, and is no longer.
    msgspec.structs.force_setattr(settings, "worker_cpus", "1023")

    async def scenario() -> None:
        pool.need(NeedWorker(version.key), version, settings)
        assert pool.why_out(version.key) == "cannot start a worker: engine.worker_cpus is 1023: Invalid argument"
        assert [type(message) for message in side.told] == [GiveUp]
        pool.wait_ended()
        assert children() == before

    asyncio.run(scenario())


# Several workers for one version

TWO = EngineSettings(worker_memory_mb_max=256, device=["cpu", "cpu"])


def test_each_replica_of_a_version_has_its_process_its_cpus_and_its_bound_on_memory(
    make_pool: MakePool, side: OtherSide, version: SealedVersion
) -> None:
    large: list[int | None] = []
    pool = make_pool(lambda pid: 257 * MB if pid in large else MB)
    cpus = [str(cpu) for cpu in sorted(os.sched_getaffinity(0))]
    settings = EngineSettings(
        worker_memory_mb_max=256, device=["cpu", "cpu"], worker_cpus=[cpus[0], f"{cpus[0]},{cpus[-1]}"]
    )

    async def scenario() -> None:
        for replica in (0, 1):
            pool.need(NeedWorker(version.key, replica=replica), version, settings)
        first, second = pool.workers_of(version.key)
        assert side.told == [WorkerStarted(version.key, 0), WorkerStarted(version.key, 1)]
        assert first.pid is not None
        assert second.pid is not None
        assert os.sched_getaffinity(first.pid) == {int(cpus[0])}
        assert os.sched_getaffinity(second.pid) == {int(cpus[0]), int(cpus[-1])}
        pool.loaded(version.key)
        large.append(second.pid)
        pool.check_memory()
        assert (first.too_large, bool(second.too_large)) == ("", True)
        pool.need(NeedWorker(version.key, "a test says so", replica=1, batches=1), version, settings)
        assert (first.state, second.state) == ("ready", "lost")
        status = worker_status(version, pool)
        assert status is not None
        assert (status.replica, status.state) == (0, "ready")
        await until(lambda: second.state == "loading")
        pool.ready(WorkerReady(version.key, {}, 1))
        assert (first.restarts, second.restarts, second.state) == (0, 1, "ready")
        pool.end(version.key)
        assert pool.workers_of(version.key) == []
        assert [info.process for info in (first, second)] == [None, None]

    asyncio.run(scenario())


def test_the_log_names_the_replica_whose_worker_was_started_ahead_as_it_names_the_others(
    make_pool: MakePool, version: SealedVersion
) -> None:
    pool = make_pool(resident_bytes_of)

    async def scenario() -> None:
        pool.start_first(version, TWO)
        for replica in (0, 1):
            pool.need(NeedWorker(version.key, replica=replica), version, TWO)
        pool.loaded(version.key)
        for replica in (0, 1):
            pool.need(NeedWorker(version.key, "a test says so", replica=replica, batches=1), version, TWO)
        for replica in (0, 1):
            refused = NeedWorker(version.key, "no device", cause=LossCause.REFUSED, replica=replica)
            pool.need(refused, version, TWO)

    with structlog.testing.capture_logs() as log:
        asyncio.run(scenario())
    named = [(record["event"], record["version"], record.get("replica")) for record in log]
    # A version is not out with its first replica.
    events = ["worker_ready", "worker_lost", "replica_out"]
    each = [(event, "scaling@1.0.0", replica) for event in events for replica in (0, 1)]
    assert named == [*each, ("version_out", "scaling@1.0.0", None)]


def test_a_version_is_out_once_all_its_replicas_are_and_serves_as_soon_as_one_does(
    make_pool: MakePool, side: OtherSide, version: SealedVersion
) -> None:
    pool = make_pool(resident_bytes_of)
    refusals = [NeedWorker(version.key, f"no device {n}", cause=LossCause.REFUSED, replica=n) for n in (0, 1)]

    async def scenario() -> None:
        for replica in (0, 1):
            pool.need(NeedWorker(version.key, replica=replica), version, TWO)
        pool.need(refusals[1], version, TWO)
        assert side.told[-1] == GiveUp(version.key, "no device 1", 1)
        pool.loaded(version.key)
        assert pool.why_out(version.key) == ""
        assert [each.state for each in replica_statuses(version, pool)] == ["ready", "out"]
        # Nobody waits for it while the other one serves.
        await pool.retry(version.key)
        assert [each.state for each in replica_statuses(version, pool)] == ["ready", "loading"]
        for refusal in reversed(refusals):
            pool.need(refusal, version, TWO)
        assert pool.why_out(version.key) == "no device 0"
        trying = asyncio.create_task(pool.retry(version.key))
        await asyncio.sleep(0)
        pool.need(refusals[0], version, TWO)
        await asyncio.sleep(0)
        assert not trying.done()
        pool.ready(WorkerReady(version.key, {}, 1))
        await trying
        assert pool.why_out(version.key) == ""
        pool.need(refusals[1], version, TWO)
        failing = asyncio.create_task(pool.retry(version.key))
        await asyncio.sleep(0)
        for refusal in refusals:
            pool.need(refusal, version, TWO)
        with pytest.raises(SwitchError, match="it is out again: no device"):
            await failing

    asyncio.run(scenario())
