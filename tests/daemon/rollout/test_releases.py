"""Stage, switch, roll back, follow an alias, drain: real daemons, real stores, real clients, the admin port."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import pillion
from pillion_artifacts import Store
from pillion_artifacts.store.aliases import move_alias
from pillion_artifacts.store.daemon_locks import locked_digests
from pillion_bench.variants import POLICY, publish_variant
from tests.conftest import StartDaemon
from tests.daemon.support.policies.graphs import publish_table, repeated_model
from tests.daemon.support.process_resources import children_running
from tests.harness import INLINE, SMALL_BATCHES, START_S_MAX, USER, Daemon, blob_of

PATH = f"/v1/policies/{POLICY}"
OBSERVATION = np.linspace(-1, 1, 25, dtype=np.float32).reshape(5, 5)
STEP = 100.0


def value_of(episode: pillion.Episode) -> float:
    """Returns the `value` output of an act; version 1.n.0 returns n × STEP more than 1.0.0."""
    episode.act(OBSERVATION)
    return float(episode.last.outputs["value"])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + START_S_MAX
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Versions 1.0.0, 1.1.0 and 1.2.0; `stable` is the first."""
    for number in range(3):
        publish_variant(tmp_path / "store", f"1.{number}.0", number * STEP)
    store = Store(tmp_path / "store")
    move_alias(store, POLICY, "stable", "1.0.0", expected="", by="a test")
    return store


@pytest.fixture
def followed(store: Store, start_daemon: StartDaemon) -> Daemon:
    """A daemon that serves what `stable` points at."""
    return start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=INLINE)


def switch(daemon: Daemon, version: str, **fields: Any) -> dict[str, Any]:
    return daemon.operation(daemon.ask("POST", f"{PATH}/switch", {"version": version, **fields}))


def test_an_episode_is_answered_by_one_version_from_begin_to_end_and_the_next_one_by_the_new(
    followed: Daemon, store: Store
) -> None:
    with pillion.connect(followed.address) as session:
        old = session.begin(seed=1)
        base = value_of(old)
        done = switch(followed, "1.1.0", reason="it flies better", by="ann")
        assert (done["outcome"], done["error"], done["was"]) == ("done", "", "1.0.0")
        assert done["certificate"]["batch"] in ("exact", "within 1e-6")
        new = session.begin(seed=1)
        assert (old.version, new.version) == ("1.0.0", "1.1.0")
        for _ in range(3):
            assert value_of(old) == base
            assert value_of(new) == pytest.approx(base + STEP, abs=1e-3)
        assert old.last.digest == store.resolve(f"{POLICY}@1.0.0").digest
        assert new.last.digest == store.resolve(f"{POLICY}@1.1.0").digest


def test_staging_says_where_a_version_runs_and_why(store: Store, start_daemon: StartDaemon) -> None:
    settings = {"engine__inline_us_max": 1e6}
    daemon = start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=settings)
    staged = daemon.operation(daemon.ask("POST", f"{PATH}/stage", {"version": "1.1.0"}))
    assert [each["rows"] for each in staged["service_us"]] == staged["certificate"]["buckets"]
    assert all(0 < each["p50_us"] <= each["p99_us"] for each in staged["service_us"])
    assert staged["placement"] == "inline"
    assert staged["placement_reason"].startswith("it is bounded, and ")
    resident = {each["version"]: each for each in daemon.ask("GET", PATH)[1]["resident"]}
    assert (resident["1.1.0"]["placement"], resident["1.0.0"]["placement"]) == ("inline", "inline")
    assert resident["1.1.0"]["placement_reason"] == staged["placement_reason"]
    stored = {each["version"]: each["placement"] for each in daemon.ask("GET", f"{PATH}/versions")[1]["versions"]}
    assert stored == {"1.0.0": "inline", "1.1.0": "inline", "1.2.0": ""}


def test_staging_sends_a_version_with_a_loop_to_a_worker(tmp_path: Path, start_daemon: StartDaemon) -> None:
    publish_table(tmp_path / "tables")
    publish_table(tmp_path / "tables", "1.1.0", repeated_model())
    daemon = start_daemon(policy="table@1.0.0", store=tmp_path / "tables")
    path = "/v1/policies/table/stage"
    staged = daemon.operation(daemon.ask("POST", path, {"version": "1.1.0"}))
    assert (staged["placement"], staged["placement_reason"]) == ("worker", "it is not bounded: its graph has a Loop")


def test_a_switch_moves_the_alias_and_the_audit_log_says_who_and_why(followed: Daemon, store: Store) -> None:
    switch(followed, "1.1.0", reason="it flies better", by="ann")
    last = store.history(POLICY)[-1]
    assert (last.action, last.alias, last.version, last.was) == ("alias", "stable", "1.1.0", "1.0.0")
    assert (last.by, last.reason) == (f"ann (user {USER})", "it flies better")
    back = followed.operation(followed.ask("POST", f"{PATH}/rollback", {"reason": "it does not", "by": "bob"}))
    assert (back["outcome"], back["version"]) == ("done", "1.0.0")
    last = store.history(POLICY)[-1]
    assert (last.action, last.version, last.by, last.reason) == (
        "rollback",
        "1.0.0",
        f"bob (user {USER})",
        "it does not",
    )
    assert store.resolve(f"{POLICY}@stable").version == "1.0.0"
    with pillion.connect(followed.address) as session:
        assert session.begin().version == "1.0.0"


def test_moving_the_alias_switches_a_daemon_that_follows_it_without_a_restart(followed: Daemon, store: Store) -> None:
    pid = followed.serving_pid
    move_alias(store, POLICY, "stable", "1.2.0", expected="1.0.0", by="a registry", reason="promoted")
    wait_until(lambda: bool(followed.ask("GET", PATH)[1]["stable"] == "1.2.0"))
    reply = followed.ask("GET", PATH)[1]
    assert (reply["operation"]["by"], reply["operation"]["reason"]) == ("a registry", "promoted")
    assert followed.serving_pid == pid
    with pillion.connect(followed.address) as session:
        assert session.version == "1.2.0"


def test_after_a_restart_the_daemon_serves_what_the_route_says(
    followed: Daemon, store: Store, start_daemon: StartDaemon
) -> None:
    switch(followed, "1.1.0")
    followed.kill_serving()
    followed.wait_ready(2)
    with pillion.connect(followed.address) as session:
        assert session.version == "1.1.0"
    followed.kill()
    again = start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=INLINE)
    with pillion.connect(again.address) as session:
        assert session.version == "1.1.0"


def test_a_version_that_was_changed_on_the_disk_is_refused_and_the_live_one_untouched(
    followed: Daemon, store: Store
) -> None:
    blob = blob_of(store.root, f"{POLICY}@1.1.0", "model.onnx")
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    with pillion.connect(followed.address) as session:
        episode = session.begin()
        before = value_of(episode)
        failed = switch(followed, "1.1.0")
        assert failed["outcome"] == "failed"
        assert "model.onnx is not what was published" in failed["error"]
        assert (value_of(episode), session.begin().version) == (before, "1.0.0")
    assert store.resolve(f"{POLICY}@stable").version == "1.0.0"
    assert followed.metric("pillion_switches_total", outcome="failed") == 1
    assert list(locked_digests(store.root)) == [store.resolve(f"{POLICY}@1.0.0").digest]


def test_an_alias_that_points_at_a_version_that_failed_is_not_tried_again_by_itself(
    store: Store, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(
        policy=f"{POLICY}@stable", store=store.root, settings={**SMALL_BATCHES, "staging__memory_mb_max": 120}
    )
    move_alias(store, POLICY, "stable", "1.1.0", expected="1.0.0")
    failed = daemon.wait_for_event("switch_failed")
    assert "staging.memory_mb_max" in failed["error"]

    def is_left_alone() -> bool:
        # the daemon looks once a second, when it has the time: it sees one of these moves there and back
        move_alias(store, POLICY, "stable", "1.0.0", expected="1.1.0")
        time.sleep(1.2)
        move_alias(store, POLICY, "stable", "1.1.0", expected="1.0.0")
        time.sleep(1.2)
        return bool(daemon.events("alias_not_followed"))

    wait_until(is_left_alone)
    assert len(daemon.events("switch_begun")) == 1
    with pillion.connect(daemon.address) as session:
        assert session.version == "1.0.0"


def test_a_version_whose_certificate_is_not_good_enough_is_refused(store: Store, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(policy=POLICY + "@1.0.0", store=store.root)
    certificate = switch(daemon, "1.1.0")["certificate"]
    strict = start_daemon(policy=POLICY + "@1.0.0", store=store.root, settings={"staging__certificate": "exact"})
    done = switch(strict, "1.1.0")
    assert certificate["buckets"][-1] == 256
    assert (done["outcome"] == "done") == (certificate["batch"] == "exact")
    if certificate["batch"] != "exact":
        assert "batch certificate: expected exact, got" in done["error"]


def test_staging_is_confined_and_can_be_cancelled_one_at_a_time(followed: Daemon) -> None:
    status, *_ = followed.ask("POST", f"{PATH}/stage", {"version": "1.1.0"})
    assert status == 202
    child = _staging_process(followed)
    wait_until(lambda: child.nice() == max(10, psutil.Process(followed.pid).nice()))
    wait_until(lambda: child.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE)
    status, reply, _ = followed.ask("POST", f"{PATH}/stage", {"version": "1.2.0"})
    assert (status, reply["type"]) == (409, "urn:pillion:busy")
    status, reply, _ = followed.ask("DELETE", f"{PATH}/stage", {"by": "ann", "reason": "not now"})
    assert (status, reply["outcome"], reply["error"]) == (200, "cancelled", f"cancelled by ann (user {USER}): not now")
    wait_until(lambda: not child.is_running())
    assert followed.ask("DELETE", f"{PATH}/stage")[0] == 409
    assert followed.operation(followed.ask("POST", f"{PATH}/stage", {"version": "1.1.0"}))["outcome"] == "done"


def _staging_process(daemon: Daemon) -> psutil.Process:
    found: list[psutil.Process] = []

    def look() -> bool:
        found[:] = children_running(daemon.pid, "pilliond.staging")
        return bool(found)

    wait_until(look)
    return found[0]


def test_a_staging_process_that_is_killed_fails_alone(followed: Daemon) -> None:
    answer = followed.ask("POST", f"{PATH}/switch", {"version": "1.1.0"})
    _staging_process(followed).kill()
    failed = followed.operation(answer)
    assert failed["outcome"] == "failed"
    assert "the staging process ended with -9" in failed["error"]
    assert followed.ask("GET", PATH)[1]["stable"] == "1.0.0"


def test_a_staged_version_serves_nobody_until_it_is_switched_to(followed: Daemon, store: Store) -> None:
    followed.operation(followed.ask("POST", f"{PATH}/stage", {"version": "1.1.0", "reason": "soon"}))
    assert store.history(POLICY)[-1].action == "stage"
    with pillion.connect(followed.address) as session:
        assert session.begin().version == "1.0.0"
        pid = followed.serving_pid
        assert switch(followed, "1.1.0")["load_ms"] is None
        assert (session.begin().version, followed.serving_pid) == ("1.1.0", pid)


def test_versions_are_listed_with_what_they_are_to_the_daemon(followed: Daemon) -> None:
    switch(followed, "1.1.0")
    reply = followed.ask("GET", f"{PATH}/versions")[1]
    roles = {entry["version"]: (entry["role"], entry["aliases"]) for entry in reply["versions"]}
    assert roles == {"1.0.0": ("previous", []), "1.1.0": ("stable", ["stable"]), "1.2.0": ("stored", [])}
    (policy,) = followed.ask("GET", "/v1/policies")[1]["policies"]
    assert (policy["stable"], policy["previous"], policy["follows"]) == ("1.1.0", "1.0.0", "stable")


def test_old_versions_are_unloaded_and_their_daemon_locks_released(followed: Daemon, store: Store) -> None:
    switch(followed, "1.1.0")
    switch(followed, "1.2.0")
    unloaded = followed.wait_for_event("version_unloaded")
    assert (unloaded["version"], unloaded["leases"]) == (f"{POLICY}@1.0.0", 0)
    wait_until(lambda: len(locked_digests(store.root)) == 2)
    assert {entry["version"] for entry in followed.ask("GET", PATH)[1]["resident"]} == {"1.1.0", "1.2.0"}


def test_past_the_bound_the_client_gets_version_gone(store: Store, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(
        policy=f"{POLICY}@stable", store=store.root, settings={**SMALL_BATCHES, "versions__old_max": 0}
    )
    with pillion.connect(daemon.address) as session:
        episode = session.begin()
        value_of(episode)
        switch(daemon, "1.1.0")
        daemon.wait_for_event("version_unloaded")
        with pytest.raises(pillion.RefusedError) as refused:
            episode.act(OBSERVATION)
        assert refused.value.code == "version_gone"
        assert session.begin().version == "1.1.0"


def test_the_rows_of_a_vector_environment_go_over_one_by_one_over_the_lane(
    store: Store, start_daemon: StartDaemon, short_path: Path
) -> None:
    daemon = start_daemon(policy=f"{POLICY}@stable", store=store.root, listen=[f"lane://{short_path / 'rows.sock'}"])
    observations = np.stack([OBSERVATION] * 4)
    with pillion.connect(daemon.address) as session:
        group = session.begin_many(4)
        group.act(observations)
        base = group.last.outputs["value"][0]
        switch(daemon, "1.1.0")
        for started in range(4):
            group.act(observations, episode_start=[row == started for row in range(4)])
            gone_over = np.arange(4) <= started
            np.testing.assert_allclose(group.last.outputs["value"], base + STEP * gone_over, atol=1e-3)
            assert [digest == group.last.row_digests[0] for digest in group.last.row_digests] == gone_over.tolist()
        assert (group.last.version, len(set(group.last.row_digests))) == ("1.1.0", 1)


def test_a_canary_gets_its_share_of_the_episodes_of_a_group_and_can_be_made_the_stable_one(
    followed: Daemon, store: Store
) -> None:
    body = {"arms": [{"name": "canary", "version": "1.1.0", "share": 0.25}], "by": "ann", "reason": "a try"}
    assert followed.operation(followed.ask("PUT", f"{PATH}/route", body))["outcome"] == "done"
    last = store.history(POLICY)[-1]
    assert (last.action, last.by, last.reason) == ("route", f"ann (user {USER})", "a try (canary 1.1.0 0.25)")
    reply = followed.ask("GET", PATH)[1]
    assert reply["route"] == [{"name": "canary", "version": "1.1.0", "share": 0.25}]
    with pillion.connect(followed.address) as session:
        groups = [session.begin_many(200, seeds=range(200)) for _ in range(2)]
        drawn = []
        for group in groups:
            group.act(np.stack([OBSERVATION] * 200))
            drawn.append(group.last.outputs["value"] > STEP / 2)
            assert len(set(group.last.row_digests)) == 2
        assert drawn[0].tolist() == drawn[1].tolist()
        assert 30 <= drawn[0].sum() <= 70
        assert switch(followed, "1.1.0")["load_ms"] is None
        assert followed.ask("GET", PATH)[1]["route"] == []
        assert session.begin_many(200, seeds=range(200)).version == "1.1.0"


# What is refused


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("POST", f"{PATH}/switch", {"version": "9.9.9"}, 404, "version-not-found"),
        ("POST", f"{PATH}/switch", {"version": "no such thing"}, 404, "version-not-found"),
        ("POST", f"{PATH}/switch", {}, 400, "malformed"),
        ("POST", f"{PATH}/switch", {"version": 7}, 400, "malformed"),
        ("POST", f"{PATH}/switch", {"version": "1.1.0", "reasno": "a typing error"}, 400, "malformed"),
        ("POST", f"{PATH}/switch", {"version": "1.1.0", "reason": "x" * 1_001}, 400, "malformed"),
        ("POST", f"{PATH}/switch", b"\xff{", 400, "malformed"),
        ("POST", f"{PATH}/switch", b" " * 70_000, 413, "request-entity-too-large"),
        ("PUT", f"{PATH}/route", {"arms": [{"name": "a", "version": "1.1.0", "share": 0}]}, 400, "malformed"),
        ("PUT", f"{PATH}/route", {"arms": [{"name": "a", "version": "1.0.0", "share": 0.5}]}, 409, "cannot-switch"),
        (
            "PUT",
            f"{PATH}/route",
            {"arms": [{"name": name, "version": "1.1.0", "share": 0.6} for name in "ab"]},
            400,
            "malformed",
        ),
        ("POST", f"{PATH}/rollback", {}, 409, "cannot-switch"),
        ("GET", "/v1/policies/mars-lander", None, 404, "policy-not-found"),
        ("POST", "/v1/policies/mars-lander/switch", {"version": "1.0.0"}, 404, "policy-not-found"),
        ("GET", "/v1/operations/x", None, 404, "operation-not-found"),
        ("GET", "/v1/nothing", None, 404, "not-found"),
        ("GET", f"{PATH}/switch", None, 405, "method-not-allowed"),
    ],
)
def test_what_cannot_be_done_is_a_problem_and_changes_nothing(
    highway: Daemon, method: str, path: str, body: Any, status: int, kind: str
) -> None:
    before = highway.ask("GET", PATH)
    result, reply, headers = highway.ask(method, path, body)
    assert (result, reply["type"], reply["status"]) == (status, f"urn:pillion:{kind}", status)
    assert headers["Content-Type"].startswith("application/problem+json")
    assert reply["detail"]
    assert highway.ask("GET", PATH)[2]["ETag"] == before[2]["ETag"]


@pytest.fixture(scope="module")
def highway(module_daemon: StartDaemon, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """A daemon that no test changes."""
    root = tmp_path_factory.mktemp("store")
    publish_variant(root, "1.0.0", 0.0)
    publish_variant(root, "1.1.0", STEP)
    return module_daemon(policy=f"{POLICY}@1.0.0", store=root, settings=SMALL_BATCHES)


def test_the_second_of_two_operators_learns_that_the_first_changed_something(followed: Daemon) -> None:
    tag = followed.ask("GET", PATH)[2]["ETag"]
    headers = {"If-Match": tag}
    assert followed.ask("POST", f"{PATH}/switch", {"version": "1.1.0"}, headers)[0] == 202
    status, reply, _ = followed.ask("POST", f"{PATH}/switch", {"version": "1.2.0"}, headers)
    assert (status, reply["type"]) == (412, "urn:pillion:changed-meanwhile")


def test_drain_answers_what_was_admitted_says_goodbye_and_ends(store: Store, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=INLINE)
    with pillion.connect(daemon.address) as session:
        episode = session.begin()
        value_of(episode)
        assert daemon.ask("POST", "/v1/drain", {"by": "ann", "reason": "a new kernel"})[0] == 202
        assert daemon.process.wait(START_S_MAX) == 0
        with pytest.raises(pillion.EpisodeLostError, match="an operator drains it: a new kernel"):
            episode.act(OBSERVATION)
    last = store.history(POLICY)[-1]
    assert (last.action, last.by, last.reason) == ("drain", f"ann (user {USER})", "a new kernel")
