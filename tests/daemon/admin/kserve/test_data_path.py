"""What `/v2` holds in the serving process, and when it releases it: a real daemon, a fake clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilliond.admin.kserve.connection import Target
from pilliond.admin.kserve.data_path import Call, DataPath
from pilliond.admin.kserve.errors import KServeError
from pilliond.limits import (
    KSERVE_IDLE_GROUP_S,
    KSERVE_IDLE_GROUPS_MAX,
    KSERVE_REQUESTS_MAX,
    KSERVE_SEQUENCE_IDLE_S,
    KSERVE_SEQUENCES_MAX,
    ServingLimits,
)
from tests.conftest import StartDaemon
from tests.daemon.support.policies.recurrent import publish_summing
from tests.harness import Daemon, until


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class Side:
    """A data path with a fake clock and target."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.clock = Clock()
        self.target: Target | None = Target(daemon.address, "", 1, bytes(32))
        self.path = DataPath(self._target, self.clock)

    def _target(self) -> Target:
        if self.target is None:
            raise KServeError(HTTPStatus.SERVICE_UNAVAILABLE, "not ready")
        return self.target

    async def run(self, rows: int = 1, **fields: Any) -> float:
        ran = await self.path.run(Call({"observation": np.ones((rows, 1), np.float32)}, [7] * rows, **fields))
        assert len(ran.row_digests) == rows
        return float(ran.outputs["action"][0, 0])

    async def holds(self, *, sessions: int, episodes: int) -> None:
        """Waits until the serving process holds that many sessions and groups for it."""

        def seen() -> bool:
            health = self.daemon.health()
            return (health["sessions"], health["episodes"]) == (sessions, episodes)

        await until(seen)


@pytest.fixture(scope="module")
def summing(module_daemon: StartDaemon, tmp_path_factory: pytest.TempPathFactory, short_path: Path) -> Daemon:
    store = tmp_path_factory.mktemp("kserve") / "store"
    publish_summing(store, "1.0.0", 0.0)
    return module_daemon(policy="summing", store=store, listen=[f"lane://{short_path}/kserve-client.sock"])


@pytest.fixture
async def side(summing: Daemon) -> AsyncIterator[Side]:
    side = Side(summing)
    yield side
    await side.path.close()
    await side.holds(sessions=0, episodes=0)


async def test_no_session_is_open_before_the_first_request_or_after_close(side: Side) -> None:
    await side.holds(sessions=0, episodes=0)
    assert await side.run() == 1.0
    await side.holds(sessions=1, episodes=1)


async def test_an_episode_group_is_reused_for_as_many_rows_and_begins_anew_each_time(side: Side) -> None:
    assert [await side.run(rows) for rows in (1, 2, 1, 2, 1)] == [1.0] * 5
    await side.holds(sessions=1, episodes=2)


async def test_idle_episode_groups_end_after_a_while(side: Side) -> None:
    await side.run(1)
    side.clock.now_s += KSERVE_IDLE_GROUP_S / 2
    await side.run(2)
    side.clock.now_s += KSERVE_IDLE_GROUP_S / 2
    await side.path.tend(side.clock())
    await side.holds(sessions=1, episodes=1)
    side.clock.now_s += KSERVE_IDLE_GROUP_S
    await side.path.tend(side.clock())
    await side.holds(sessions=0, episodes=0)
    assert await side.run() == 1.0


async def test_idle_episode_groups_of_many_sizes_stay_bounded(side: Side) -> None:
    for rows in range(1, KSERVE_IDLE_GROUPS_MAX + 5):
        await side.run(rows)
    await side.holds(sessions=1, episodes=KSERVE_IDLE_GROUPS_MAX)
    assert await asyncio.gather(*(side.run(1) for _ in range(KSERVE_REQUESTS_MAX))) == [1.0] * KSERVE_REQUESTS_MAX
    assert await side.run(99) == 1.0
    await side.holds(sessions=1, episodes=KSERVE_IDLE_GROUPS_MAX)


def test_the_groups_of_requests_and_of_sequences_each_fit_into_a_session() -> None:
    assert ServingLimits().episodes_max >= KSERVE_REQUESTS_MAX + KSERVE_IDLE_GROUPS_MAX
    assert ServingLimits().episodes_max >= KSERVE_REQUESTS_MAX + KSERVE_SEQUENCES_MAX


async def test_a_refused_request_puts_its_group_back(side: Side) -> None:
    bad = Call({"observation": np.full((1, 1), np.nan, np.float32)}, [7])
    for _ in range(3):
        with pytest.raises(KServeError, match="non_finite") as refused:
            await side.path.run(bad)
        assert refused.value.status == HTTPStatus.BAD_REQUEST
    assert await side.run() == 1.0
    await side.holds(sessions=1, episodes=1)


async def test_a_policy_without_a_distribution_cannot_sample(side: Side) -> None:
    with pytest.raises(KServeError, match="not_samplable") as refused:
        await side.run(deterministic=False)
    assert refused.value.status == HTTPStatus.BAD_REQUEST


async def test_a_request_that_is_cancelled_leaves_the_next_one_its_own_answer(side: Side) -> None:
    await side.run()
    for _ in range(5):
        task = asyncio.create_task(side.run())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await side.run() == 1.0
    await side.path.tend(side.clock())


async def test_a_sequence_that_is_unused_too_long_is_ended_and_one_that_is_used_stays(side: Side) -> None:
    for name in ("one", "two"):
        await side.run(sequence=name, starts=True)
    side.clock.now_s += KSERVE_SEQUENCE_IDLE_S / 2
    assert await side.run(sequence="two") == 2.0
    side.clock.now_s += KSERVE_SEQUENCE_IDLE_S / 2
    await side.path.tend(side.clock())
    assert side.path.sequences == ["two"]
    await side.holds(sessions=1, episodes=1)
    with pytest.raises(KServeError, match="sequence 'one' is not open"):
        await side.run(sequence="one")
    assert await side.run(sequence="two", ends=True) == 3.0
    await side.holds(sessions=1, episodes=0)


async def test_one_sequence_too_many_ends_the_one_unused_for_longest(side: Side) -> None:
    names = [f"s{number}" for number in range(KSERVE_SEQUENCES_MAX)]
    for name in names:
        await side.run(sequence=name, starts=True)
    await side.run(sequence=names[0])
    await side.run(sequence="one more", starts=True)
    assert side.path.sequences == [*names[2:], names[0], "one more"]
    await side.holds(sessions=1, episodes=KSERVE_SEQUENCES_MAX)
    assert await side.run(sequence=names[0]) == 3.0


async def test_requests_of_one_sequence_run_one_at_a_time_in_order(side: Side) -> None:
    await side.run(sequence=5, starts=True)
    assert await asyncio.gather(*(side.run(sequence=5) for _ in range(20))) == [float(2 + n) for n in range(20)]


async def test_a_sequence_that_is_begun_anew_ends_the_one_before(side: Side) -> None:
    began = await asyncio.gather(*(side.run(sequence=5, starts=True) for _ in range(4)))
    assert began == [1.0] * 4
    assert side.path.sequences == [5]
    await side.holds(sessions=1, episodes=1)
    assert await side.run(sequence=5) == 2.0


async def test_another_version_gets_its_own_session_and_the_old_one_ends_when_unused(side: Side) -> None:
    await side.run()
    await side.run(sequence=5, starts=True)
    assert side.target is not None
    side.target = side.target._replace(digest=bytes([1] * 32))
    assert await side.run() == 1.0
    await side.holds(sessions=3, episodes=3)
    await side.path.tend(side.clock())
    await side.holds(sessions=2, episodes=2)
    assert await side.run(sequence=5, ends=True) == 2.0
    await side.path.tend(side.clock())
    await side.holds(sessions=1, episodes=1)


async def test_while_not_ready_a_request_is_refused_and_its_sessions_end(side: Side) -> None:
    await side.run()
    side.target = None
    with pytest.raises(KServeError, match="not ready"):
        await side.run()
    await side.path.tend(side.clock())
    await side.holds(sessions=0, episodes=0)


async def test_a_named_version_that_did_not_run_is_an_error(side: Side) -> None:
    with pytest.raises(KServeError, match="another version answers this seed") as other:
        await side.run(digest="sha256:" + "0" * 64)
    assert other.value.status == HTTPStatus.NOT_FOUND
    with pytest.raises(KServeError, match="another version answers this seed"):
        await side.run(digest="sha256:" + "0" * 64, sequence=5, starts=True)
    assert side.path.sequences == []
    await side.holds(sessions=2, episodes=1)


@pytest.fixture
def own(start_daemon: StartDaemon, tmp_path: Path, short_path: Path) -> Callable[[], Side]:
    publish_summing(tmp_path / "store", "1.0.0", 0.0)
    address = f"lane://{short_path}/kserve-own.sock"
    daemon = start_daemon(policy="summing", store=tmp_path / "store", listen=[address])
    return lambda: Side(daemon)


async def test_many_requests_survive_a_crash_of_the_serving_process(
    own: Callable[[], Side],
) -> None:
    side = own()
    await asyncio.gather(*(side.run(1 + number % 3) for number in range(12)))
    await side.run(sequence=5, starts=True)
    side.daemon.kill_serving()
    # Its own client waits for the next process, finds that its session is unknown there, and opens another.
    assert await asyncio.gather(*(side.run(1 + number % 3) for number in range(12))) == [1.0] * 12
    with pytest.raises(KServeError) as lost:
        await side.run(sequence=5)
    assert lost.value.status == HTTPStatus.GONE
    assert side.path.sequences == []
    await side.path.close()
    await side.holds(sessions=0, episodes=0)
