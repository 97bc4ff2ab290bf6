"""The control channel shared by several policies: their requests wait for each other, and each gets its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from pillion_artifacts import Store
from pillion_artifacts.verify.trust_policy import TrustPolicy
from pilliond.control import load_policies
from pilliond.errors import NotReadyError, SwitchError
from pilliond.ipc import control_channel as channel
from pilliond.ipc import metrics_page
from pilliond.ipc.control_channel import (
    Held,
    Hold,
    Load,
    Loaded,
    NeedWorker,
    Routed,
    Switch,
    Switched,
    Unload,
    Unloaded,
    WorkerReady,
)
from pilliond.ipc.metrics_page import VERSION_CELLS, Phase
from pilliond.limits import VERSION_CELLS_PER_POLICY
from pilliond.linux.spawner import Spawner
from pilliond.rollout.restore import admitted
from pilliond.settings.schema import EngineSettings, load_settings
from pilliond.supervision.supervisor import Supervisor
from tests.daemon.support.policies.shadow import publish_times

NAMES = ["left", "right"]


class OtherSide:
    """A supervisor of two policies, and the end of its channel that a serving process would have."""

    def __init__(self, store: Path) -> None:
        for name in NAMES:
            publish_times(store, name, "1.0.0", 2.0)
        flags = {"store": {"path": str(store)}, "policies": [{"policy": name} for name in NAMES]}
        settings = load_settings(None, {}, flags)
        stables = [stable for _, stable in load_policies(settings)]
        self.supervisor = Supervisor(settings, stables, Spawner(), structlog.get_logger())
        self.left, self.right = self.supervisor.policies.values()
        self.supervisor._end, self.end = channel.make_channel()
        self.end.setblocking(False)
        self.supervisor.page.cells[metrics_page.PHASE] = Phase.READY

    def asked(self) -> list[object]:
        """Returns the control messages that have arrived."""
        messages: list[object] = []
        while True:
            try:
                messages.append(channel.receive_control_message(self.end)[0])
            except BlockingIOError:
                return messages

    def close(self) -> None:
        self.end.close()
        self.supervisor._end.close()
        self.supervisor.close()


@pytest.fixture
def side(tmp_path: Path) -> Iterator[OtherSide]:
    side = OtherSide(tmp_path / "store")
    yield side
    side.close()


def test_requests_of_two_policies_for_one_kind_of_report_wait_for_each_other(side: OtherSide) -> None:
    async def scenario() -> None:
        left, right = side.left.stable, side.right.stable
        first = asyncio.create_task(side.left.switch(left))
        second = asyncio.create_task(side.right.switch(right))
        await asyncio.sleep(0.01)
        assert side.asked() == [Switch(left.key)]
        side.supervisor._answer(Switched(left.key, left.key, 1))
        assert (await first).at_ns == 1
        await asyncio.sleep(0.01)
        assert side.asked() == [Switch(right.key)]
        side.supervisor._answer(Switched(right.key, right.key, 2))
        assert (await second).at_ns == 2

    asyncio.run(scenario())


def test_a_request_of_another_kind_does_not_wait_and_a_failure_is_that_of_its_own_policy(side: OtherSide) -> None:
    async def scenario() -> None:
        left = side.left.stable
        switching = asyncio.create_task(side.left.switch(left))
        holding = asyncio.create_task(side.right.hold(set()))
        await asyncio.sleep(0.01)
        assert side.asked() == [Switch(left.key), Hold("right", [])]
        side.supervisor._fail(left.key, SwitchError("it is no longer loaded"))
        with pytest.raises(SwitchError, match="no longer loaded"):
            await switching
        assert not holding.done()
        side.supervisor._note_held(Held("right", []))
        await holding

    asyncio.run(scenario())


def test_a_request_that_waited_for_its_turn_fails_if_the_serving_process_has_ended_meanwhile(side: OtherSide) -> None:
    async def scenario() -> None:
        asking = [asyncio.create_task(policy.switch(policy.stable)) for policy in (side.left, side.right)]
        await asyncio.sleep(0.01)
        side.supervisor.page.cells[metrics_page.PHASE] = Phase.FAILED
        side.supervisor._fail(None, SwitchError("the serving process ended meanwhile"))
        first, second = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(first, SwitchError)
        assert isinstance(second, NotReadyError)
        assert len(side.asked()) == 1

    asyncio.run(scenario())


def test_each_policy_has_its_settings_and_no_two_share_a_metrics_index(side: OtherSide) -> None:
    assert [policy.settings.store.policy for policy in side.supervisor.policies.values()] == NAMES
    assert [policy.stable.metrics_index for policy in side.supervisor.policies.values()] == [
        1,
        VERSION_CELLS_PER_POLICY + 1,
    ]
    assert {policy.version_table.mixed_index for policy in side.supervisor.policies.values()} == {
        0,
        VERSION_CELLS_PER_POLICY,
    }
    assert side.right.version_table.free_metrics_index() == VERSION_CELLS_PER_POLICY + 2
    assert len(VERSION_CELLS) > side.right.stable.metrics_index
    assert side.supervisor.default is side.left


def test_an_abandoned_load_is_unloaded_and_late_reports_about_it_are_dropped(
    tmp_path: Path, side: OtherSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_times(tmp_path / "store", "left", "2.0.0", 3.0)
    version = admitted(Store(tmp_path / "store"), "left@2.0.0", TrustPolicy())
    monkeypatch.setattr(EngineSettings, "load_s_max", 0.01)

    async def scenario() -> None:
        with pytest.raises(SwitchError, match="did not answer within"):
            await side.left.load(version)
        asked = side.asked()
        assert [type(message) for message in asked] == [Load, Unload]
        assert asked[-1] == Unload(version.key)
        supervisor = side.supervisor
        for report in (NeedWorker(version.key), WorkerReady(version.key, {}), Loaded(version.key, {}, 1, 1)):
            supervisor._note_worker(report)
            # A load inside the serving process ends only now.
            assert side.asked() == [Unload(version.key)]
        assert supervisor.workers.find(version.key) is None
        supervisor._note_route(Routed(version.key, []))
        supervisor._note_unloaded(Unloaded(version.key, 0))
        assert side.asked() == []

    asyncio.run(scenario())
    version.close()


def test_a_load_that_is_refused_is_not_unloaded(tmp_path: Path, side: OtherSide) -> None:
    publish_times(tmp_path / "store", "left", "2.0.0", 3.0)
    version = admitted(Store(tmp_path / "store"), "left@2.0.0", TrustPolicy())

    async def scenario() -> None:
        loading = asyncio.create_task(side.left.load(version))
        await asyncio.sleep(0.01)
        side.supervisor._fail(version.key, SwitchError("this one is loaded already"))
        with pytest.raises(SwitchError, match="loaded already"):
            await loading
        assert [type(message) for message in side.asked()] == [Load]

    asyncio.run(scenario())
    version.close()


def test_a_version_that_begins_to_fall_back_or_does_so_for_another_reason_is_logged_once_each(side: OtherSide) -> None:
    stable = side.left.stable

    def is_ready(device: str, **fallback: str) -> None:
        side.supervisor._note_worker(WorkerReady(stable.key, {"device": device, **fallback}))

    with structlog.testing.capture_logs() as log:
        is_ready("cuda:0")
        for reason in ("none is there", "none is there", "it is full"):
            is_ready("cpu", fallback=reason)
        is_ready("cuda:0")
        is_ready("cpu", fallback="it is full")
    fallen = [record for record in log if record["event"] == "falls_back"]
    assert [record["fallback"] for record in fallen] == ["none is there", "it is full", "it is full"]
    assert {(each["log_level"], each["version"], each["device"]) for each in fallen} == {
        ("warning", "left@1.0.0", "cpu")
    }
