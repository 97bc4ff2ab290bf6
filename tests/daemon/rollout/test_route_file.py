"""Routes survive a restart of the serving process or of the daemon, also during a switch."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pillion
from pillion_artifacts import Store
from pillion_artifacts.maintenance.garbage_collection import collect
from pillion_artifacts.store.aliases import move_alias, remove_alias
from pillion_artifacts.store.routes import Route, RouteArm, find_route, keep_route, read_routes
from pillion_bench.variants import POLICY, publish_variant
from tests.conftest import StartDaemon
from tests.daemon.rollout.test_releases import OBSERVATION, PATH, STEP, switch, wait_until
from tests.harness import SMALL_BATCHES, USER, Daemon, blob_of

SEEDS = range(64)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Versions 1.0.0, 1.1.0 and 1.2.0; `stable` is the first."""
    for number in range(3):
        publish_variant(tmp_path / "store", f"1.{number}.0", number * STEP)
    store = Store(tmp_path / "store")
    move_alias(store, POLICY, "stable", "1.0.0", expected="", by="a test")
    return store


def put_arms(daemon: Daemon, **shares: float) -> dict[str, Any]:
    """Sets the arms by version and share: `v1_1_0=0.25`."""
    arms = [
        {"name": "canary" if number == 0 else "b", "version": name[1:].replace("_", "."), "share": share}
        for number, (name, share) in enumerate(shares.items())
    ]
    return daemon.operation(daemon.ask("PUT", f"{PATH}/route", {"arms": arms, "by": "ann", "reason": "a try"}))


def arm_statuses(daemon: Daemon) -> list[tuple[str, str, float]]:
    return [(arm["name"], arm["version"], arm["share"]) for arm in daemon.ask("GET", PATH)[1]["route"]]


def leased(daemon: Daemon) -> list[int]:
    """Returns, for each of `SEEDS`, the minor number of the version that answers its episode; the answer shows it."""
    with pillion.connect(daemon.address) as session:
        group = session.begin_many(len(SEEDS), seeds=SEEDS)
        group.act(np.stack([OBSERVATION] * len(SEEDS)))
        values = group.last.outputs["value"]
    return [round(float(value - values.min()) / STEP) for value in values]


def served(daemon: Daemon) -> str:
    """The stable version."""
    with pillion.connect(daemon.address) as session:
        return session.version


def test_a_canary_is_there_again_when_the_serving_process_was_killed_with_the_same_seeds(
    store: Store, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=SMALL_BATCHES)
    assert put_arms(daemon, v1_1_0=0.25, v1_2_0=0.25)["outcome"] == "done"
    arms, before = arm_statuses(daemon), leased(daemon)
    assert {0, 1, 2} == set(before)
    daemon.kill_serving()
    kill_as_it_starts(daemon)
    daemon.wait_ready(2)
    assert (arm_statuses(daemon), leased(daemon)) == (arms, before)
    # After failed starts, perhaps because of an arm, it starts with the stable version alone.
    daemon.kill_serving()
    for _ in range(2):
        kill_as_it_starts(daemon)
    daemon.wait_ready(3)
    assert (arm_statuses(daemon), served(daemon)) == ([], "1.0.0")
    assert set(daemon.wait_for_event("versions_left_out")["policies"]) == {f"{POLICY}@1.1.0", f"{POLICY}@1.2.0"}


def starting_pid(daemon: Daemon) -> int | None:
    """Returns the serving process while it starts."""
    reply = daemon.health()
    return reply["serving"]["pid"] if reply["phase"] in ("starting", "warming") else None


def kill_as_it_starts(daemon: Daemon) -> None:
    """Kills the next serving process before it is ready."""
    while not (pid := starting_pid(daemon)):
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    # Waits until it has ended: the next call must kill another one.
    while daemon.health()["serving"]["pid"] == pid:
        time.sleep(0.002)


def test_a_canary_is_there_again_when_the_daemon_was_killed_with_the_same_seeds(
    store: Store, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=SMALL_BATCHES)
    put_arms(daemon, v1_1_0=0.25)
    arms, before = arm_statuses(daemon), leased(daemon)
    daemon.kill()
    again = start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=SMALL_BATCHES)
    assert (arm_statuses(again), leased(again)) == (arms, before)
    put_arms(again)
    again.kill()
    assert arm_statuses(start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=SMALL_BATCHES)) == []


def test_what_was_made_stable_stays_so_where_the_settings_say_no_version(
    store: Store, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(policy=POLICY, store=store.root, settings=SMALL_BATCHES)
    assert served(daemon) == "1.2.0"
    switch(daemon, "1.1.0", reason="it flies better", by="ann")
    last = store.history(POLICY)[-1]
    assert (last.action, last.version, last.by, last.reason) == (
        "switch",
        "1.1.0",
        f"ann (user {USER})",
        "it flies better",
    )
    daemon.kill()
    publish_variant(store.root, "1.3.0", 3 * STEP)
    again = start_daemon(policy=POLICY, store=store.root, settings=SMALL_BATCHES)
    assert served(again) == "1.1.0"
    for version in ("1.2.0", "1.1.0"):
        back = again.operation(again.ask("POST", f"{PATH}/rollback", {"reason": "it does not", "by": "bob"}))
        assert (back["outcome"], back["version"]) == ("done", version)
    again.kill()
    third = start_daemon(policy=POLICY, store=store.root, settings=SMALL_BATCHES)
    assert served(third) == "1.1.0"
    # The version to roll back to is stored, too.
    back = third.operation(third.ask("POST", f"{PATH}/rollback", {}))
    assert (back["outcome"], back["version"]) == ("done", "1.2.0")


@pytest.mark.parametrize(("asked", "expected"), [("1.0.0", "1.0.0"), ("1.x", "1.1.0")])
def test_the_settings_are_obeyed_where_they_say_which_version(
    store: Store, start_daemon: StartDaemon, asked: str, expected: str
) -> None:
    daemon = start_daemon(policy=f"{POLICY}@{asked}", store=store.root, settings=SMALL_BATCHES)
    switch(daemon, "1.1.0")
    assert served(daemon) == "1.1.0"
    daemon.kill()
    assert served(start_daemon(policy=f"{POLICY}@{asked}", store=store.root, settings=SMALL_BATCHES)) == expected


def test_daemons_that_serve_different_references_have_different_routes(store: Store, start_daemon: StartDaemon) -> None:
    one = start_daemon(policy=f"{POLICY}@1.0.0", store=store.root, settings=SMALL_BATCHES)
    put_arms(one, v1_1_0=0.5)
    assert arm_statuses(start_daemon(policy=f"{POLICY}@1.2.0", store=store.root, settings=SMALL_BATCHES)) == []
    assert arm_statuses(start_daemon(policy=f"{POLICY}@1.0.0", store=store.root, settings=SMALL_BATCHES)) == [
        ("canary", "1.1.0", 0.5)
    ]


def test_a_switch_to_an_arms_version_ends_that_arm_for_good(store: Store, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=SMALL_BATCHES)
    put_arms(daemon, v1_1_0=0.25, v1_2_0=0.25)
    switch(daemon, "1.1.0")
    switch(daemon, "1.0.0")
    daemon.kill()
    # While no daemon runs, too.
    move_alias(store, POLICY, "stable", "1.2.0", expected="1.0.0")
    again = start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=SMALL_BATCHES)
    assert (served(again), arm_statuses(again)) == ("1.2.0", [])
    switch(again, "1.0.0")
    route = find_route(store.root, POLICY, "stable")
    assert route is not None
    assert route.arms == []


def test_an_arm_that_cannot_be_loaded_any_more_does_not_keep_the_daemon_from_serving(
    store: Store, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=SMALL_BATCHES)
    put_arms(daemon, v1_1_0=0.25, v1_2_0=0.25)
    daemon.kill()
    blob = blob_of(store.root, f"{POLICY}@1.1.0", "model.onnx")
    blob.chmod(0o644)
    blob.write_bytes(b"")
    again = start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=SMALL_BATCHES)
    assert (served(again), arm_statuses(again)) == ("1.0.0", [("b", "1.2.0", 0.25)])
    assert "model.onnx" in again.wait_for_event("version_not_resumed")["error"]


def test_gc_leaves_what_a_route_names_while_no_daemon_runs(store: Store, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(policy=POLICY, store=store.root, settings=SMALL_BATCHES)
    switch(daemon, "1.1.0")
    put_arms(daemon, v1_0_0=0.25)
    daemon.kill()
    remove_alias(store, POLICY, "stable", expected="1.0.0")
    publish_variant(store.root, "1.3.0", 3 * STEP)
    claims = {each.version: each.claim for each in collect(store, grace=timedelta(0), keep_newest=0).versions}
    assert claims == {"1.0.0": "route", "1.1.0": "route", "1.2.0": "route", "1.3.0": ""}
    again = start_daemon(policy=POLICY, store=store.root, settings=SMALL_BATCHES)
    assert (set(leased(again)), arm_statuses(again)) == ({0, 1}, [("canary", "1.0.0", 0.25)])


def stopped_in_a_switch(daemon: Daemon, store: Store) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Begins a switch to 1.1.0 that gets as far as the message to the serving process, which is stopped."""
    daemon.operation(daemon.ask("POST", f"{PATH}/stage", {"version": "1.1.0"}))
    os.kill(daemon.serving_pid, signal.SIGSTOP)
    answer = daemon.ask("POST", f"{PATH}/switch", {"version": "1.1.0"})
    wait_until(lambda: store.resolve(f"{POLICY}@stable").version == "1.1.0")
    return answer


def test_a_daemon_that_is_killed_between_the_alias_and_the_switch_serves_what_the_alias_says(
    store: Store, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=SMALL_BATCHES)
    stopped_in_a_switch(daemon, store)
    daemon.kill()
    assert served(start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=SMALL_BATCHES)) == "1.1.0"


def test_a_serving_process_that_is_killed_before_it_switches_leaves_the_route_as_it_was(
    store: Store, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=SMALL_BATCHES)
    answer = stopped_in_a_switch(daemon, store)
    daemon.kill_serving()
    failed = daemon.operation(answer)
    assert failed["outcome"] == "failed"
    # The control process may notice the death before or after it sends the message.
    assert failed["error"] in ("the serving process ended meanwhile", "the serving process is failed, not ready")
    daemon.wait_ready(2)
    assert store.resolve(f"{POLICY}@stable").version == served(daemon) == "1.0.0"
    last = store.history(POLICY)[-1]
    assert (last.version, last.by, last.reason) == ("1.0.0", "pilliond", "the switch failed")


def test_the_store_keeps_one_route_for_each_thing_that_is_asked_for(tmp_path: Path) -> None:
    publish_variant(tmp_path, "1.0.0", 0.0)
    store = Store(tmp_path)
    digest = store.resolve(POLICY).digest
    for number in range(70):
        keep_route(store, "switch", Route(POLICY, f"1.{number}", "1.0.0", digest))
    arm = RouteArm("canary", "1.0.0", digest, 0.5)
    keep_route(store, "route", Route(POLICY, "1.69", "1.0.0", digest, [arm]))
    assert len(read_routes(tmp_path, POLICY)) == 64
    assert find_route(tmp_path, POLICY, "1.0") is None
    found = find_route(tmp_path, POLICY, "1.69")
    assert found is not None
    assert found.arms == [arm]
