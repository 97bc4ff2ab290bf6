"""Several policies in one daemon: real daemons, stores, clients and commands. What happens to one, no other notices."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import pillion
from pillion_artifacts import Store
from pillion_artifacts.store.daemon_locks import locked_digests
from pillion_protocol import Act, Action, Begin, Begun, Hello, encode
from pilliond.limits import POLICIES_MAX
from tests.conftest import StartDaemon
from tests.daemon.processes.test_processes import check_metrics
from tests.daemon.support.policies.shadow import publish_times, times
from tests.daemon.support.process_resources import children_running
from tests.daemon.support.raw_lane import RawLane
from tests.docs.pages import OPERATING, blocks
from tests.harness import SMALL_BATCHES, START_S_MAX, Daemon, blob_of

LEFT, RIGHT, THIRD = "left-arm", "right-arm", "third-arm"
WIDTHS = {LEFT: 2, RIGHT: 3, THIRD: 7}
FACTORS = {LEFT: 2.5, RIGHT: -0.3, THIRD: 11.0}
"""Of version 1.0.0. Version 1.n.0 multiplies by n more."""


def path_of(policy: str) -> str:
    return f"/v1/policies/{policy}"


def observation_of(policy: str, number: int = 0) -> np.ndarray[Any, Any]:
    return np.arange(1, WIDTHS[policy] + 1, dtype=np.float32) / 7 + np.float32(number)


def expected(policy: str, number: int = 0, minor: int = 0) -> list[float]:
    """What version 1.`minor`.0 answers to `observation_of`."""
    return times(observation_of(policy, number), FACTORS[policy] + minor)


def action_of(session: pillion.Session, policy: str, seed: int = 1) -> list[float]:
    with session.begin(seed=seed) as episode:
        action: list[float] = episode.act(observation_of(policy)).tolist()
        return action


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + START_S_MAX
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def state_of(daemon: Daemon, policy: str) -> dict[str, Any]:
    status, state, headers = daemon.ask("GET", path_of(policy))
    assert status == 200, state
    return {**state, "tag": headers["ETag"]}


def done(daemon: Daemon, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    operation = daemon.operation(daemon.ask(method, path, body))
    assert operation["outcome"] == "done", operation
    return operation


def switch(daemon: Daemon, policy: str, version: str) -> dict[str, Any]:
    return done(daemon, "POST", f"{path_of(policy)}/switch", {"version": version})


def hold(daemon: Daemon, policy: str, version: str, name: str) -> None:
    status, answer, _ = daemon.ask(
        "POST", f"{path_of(policy)}/holds", {"name": name, "version": version, "ttl_s": 3_600}
    )
    assert status == 201, answer
    wait_until(lambda: bool(daemon.ask("GET", f"{path_of(policy)}/holds")[1]["holds"][0]["is_held"]))


def shadow(daemon: Daemon, policy: str, version: str) -> None:
    route = state_of(daemon, policy)["route"]
    done(daemon, "PUT", f"{path_of(policy)}/route", {"arms": route, "shadow": {"version": version}})


def shadow_rows(daemon: Daemon, policy: str) -> int:
    return int(daemon.ask("GET", f"{path_of(policy)}/shadow")[1]["rows"])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three policies with different observations, each in versions 1.0.0 to 1.2.0."""
    for policy, width in WIDTHS.items():
        for minor in range(3):
            publish_times(tmp_path / "store", policy, f"1.{minor}.0", FACTORS[policy] + minor, width)
    return tmp_path / "store"


@pytest.fixture
def start(store: Path, start_daemon: StartDaemon, short_path: Path, tmp_path: Path) -> Callable[..., Daemon]:
    """Starts a daemon with these policies, LEFT and RIGHT by default, on both carriers."""

    def start(*policies: str) -> Daemon:
        first, *others = policies or (f"{LEFT}@1.0.0", f"{RIGHT}@1.0.0")
        flags = [word for policy in others for word in ("--policy", policy)]
        folder = short_path / tmp_path.name
        listen = [f"lane://{folder}/lane.sock", f"ipc://{folder}/zmq.sock"]
        return start_daemon(*flags, policy=first, store=store, listen=listen, settings=SMALL_BATCHES)

    return start


# The data path


def test_behaviours_run_at_once_from_one_process_and_each_answers_bit_for_bit(start: Callable[..., Daemon]) -> None:
    daemon = start(*WIDTHS)
    policies = list(WIDTHS)

    async def drive(address: str, policy: str) -> None:
        async with pillion.aio.connect(address, policy=policy) as session:
            assert (session.policy, session.version) == (policy, "1.2.0")
            async with await session.begin(seed=1) as one, await session.begin_many(3, [1, 2, 3]) as many:
                for number in range(100):
                    action = await one.act(observation_of(policy, number))
                    assert action.tolist() == expected(policy, number, minor=2)
                    rows = await many.act(np.stack([observation_of(policy, number + row) for row in range(3)]))
                    assert rows.tolist() == [expected(policy, number + row, minor=2) for row in range(3)]

    async def drive_all() -> None:
        await asyncio.gather(*(drive(address, policy) for address in daemon.addresses for policy in policies))

    asyncio.run(drive_all())
    for policy in policies:
        assert daemon.metric("pillion_requests_total", policy=policy, outcome="ok") == 2 * 2 * 100
        assert daemon.metric("pillion_queue_wait_seconds_count", policy=policy) == 2 * 2 * 100


def test_a_hello_selects_its_policy_an_empty_name_the_first_and_an_unknown_one_is_refused(
    start: Callable[..., Daemon],
) -> None:
    daemon = start()
    for address in daemon.addresses:
        with pillion.connect(address) as default, pillion.connect(address, policy=RIGHT) as right:
            assert (default.policy, right.policy) == (LEFT, RIGHT)
            assert action_of(default, LEFT) == expected(LEFT)
            assert action_of(right, RIGHT) == expected(RIGHT)
        with pytest.raises(pillion.RefusedError) as refused, pillion.connect(address, policy=THIRD):
            pass
        assert (refused.value.code, refused.value.actual) == ("policy_not_found", THIRD)
        assert refused.value.expected == f"{LEFT} or {RIGHT}"


def test_the_example_of_the_operating_page_drives_two_behaviours_at_once(
    start_daemon: StartDaemon, short_path: Path
) -> None:
    (example,) = [block for block in blocks(OPERATING, "python") if "highway-fast" in block]
    runtime_folder = short_path / "operating-two"
    listen = [f"lane://{runtime_folder}/pillion/lane.sock"]
    daemon = start_daemon("--policy", "highway-fast", policy="lunar-lander", listen=listen)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime_folder)}
    command = [sys.executable, "-c", example]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=START_S_MAX, check=False, env=environment)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.fullmatch(r"\d \d\n", ran.stdout)
    for policy in ("lunar-lander", "highway-fast"):
        assert daemon.metric("pillion_requests_total", policy=policy, outcome="ok") == 1


def test_two_policies_can_be_used_over_one_connection(start: Callable[..., Daemon]) -> None:
    daemon = start()
    with RawLane(daemon.address) as lane:
        sessions = [
            lane.ask(encode(Hello(0, 0, number, policy=policy))) for number, policy in enumerate((LEFT, RIGHT), 1)
        ]
        groups = [lane.ask(encode(Begin(each.session, each.epoch, 5, [1]))) for each in sessions]
        for policy, group in zip((LEFT, RIGHT), groups, strict=True):
            assert isinstance(group, Begun)
            head = encode(Act(group.session, group.epoch, 6, group.episode, 1, deterministic=True))
            lane.send(head, observation_of(policy).tobytes())
            answer, tensors = lane.receive(4 * WIDTHS[policy])
            assert isinstance(answer, Action)
            assert np.frombuffer(tensors[0], np.float32).tolist() == expected(policy)


def test_two_threads_drive_two_policies_at_once(start: Callable[..., Daemon]) -> None:
    daemon = start()
    answers: dict[str, list[list[float]]] = {LEFT: [], RIGHT: []}

    def drive(policy: str) -> None:
        with pillion.connect(daemon.address, policy=policy) as session, session.begin(seed=1) as episode:
            answers[policy] += [episode.act(observation_of(policy, number)).tolist() for number in range(200)]

    threads = [threading.Thread(target=drive, args=[policy]) for policy in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(START_S_MAX)
    for policy, given in answers.items():
        assert given == [expected(policy, number) for number in range(200)]


def test_each_policy_has_the_limits_and_engine_of_its_entry(
    store: Path, start_daemon: StartDaemon, tmp_path: Path, short_path: Path
) -> None:
    file = tmp_path / "pillion.toml"
    file.write_text(
        f'[limits]\nrows_max = 16\n[[policies]]\npolicy = "{LEFT}"\n[[policies]]\npolicy = "{RIGHT}"\n'
        "[policies.limits]\nrows_max = 2\nqueue_rows_max = 4\nepisodes_max = 1\n[policies.engine]\nstrict = true\n"
    )
    listen = [f"lane://{short_path}/limits-lane.sock"]
    daemon = start_daemon("--config", str(file), policy="", store=store, listen=listen)
    with pillion.connect(daemon.address) as left, pillion.connect(daemon.address, policy=RIGHT) as right:
        with left.begin_many(16, range(16)) as group:
            assert group.rows == 16
        with pytest.raises(pillion.RefusedError) as refused:
            right.begin_many(3, range(3))
        assert refused.value.expected == "1 to 2, one for each row"
        with right.begin(seed=1), pytest.raises(pillion.RefusedError, match="too many episode groups"):
            right.begin(seed=2)
    engines = {each["policy"]: each["engine"] for each in daemon.health()["policies"]}
    assert [engines[policy]["strict"] for policy in (LEFT, RIGHT)] == [False, True]
    assert (max(engines[LEFT]["buckets"]), daemon.health()["engine"]) == (16, engines[LEFT])


def test_as_many_policies_as_there_may_be_start_with_specs_larger_than_a_packet_between_processes(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    names = [f"policy-{number}" for number in range(POLICIES_MAX)]
    for number, name in enumerate(names):
        publish_times(tmp_path / "store", name, "1.0.0", float(number), width=1_000, has_bounds=True)
    flags = [word for name in names[1:] for word in ("--policy", name)]
    settings = {"limits__rows_max": 1, "limits__queue_rows_max": 1, "limits__policies_mb_max": 100_000}
    daemon = start_daemon(*flags, policy=names[0], store=tmp_path / "store", settings=settings)
    observation = np.arange(1_000, dtype=np.float32)
    for number, name in enumerate(names):
        with pillion.connect(daemon.address, policy=name) as session, session.begin(seed=1) as episode:
            assert episode.act(observation).tolist() == times(observation, number)
    assert {each["sessions"] for each in daemon.health()["policies"]} <= {0, 1}
    assert daemon.metric("pillion_requests_total", outcome="ok") == POLICIES_MAX


def test_a_worker_of_one_policy_that_is_killed_loses_no_act_of_another(
    store: Path, start_daemon: StartDaemon, tmp_path: Path, short_path: Path
) -> None:
    file = tmp_path / "pillion.toml"
    file.write_text(
        f'[[policies]]\npolicy = "{LEFT}@1.0.0"\n[policies.engine]\nplacement = "inline"\n'
        f'[[policies]]\npolicy = "{RIGHT}@1.0.0"\n[policies.engine]\nplacement = "worker"\n'
    )
    listen = [f"lane://{short_path}/worker-lane.sock"]
    daemon = start_daemon("--config", str(file), policy="", store=store, listen=listen)

    def workers() -> list[psutil.Process]:
        return children_running(daemon.pid, "pillion_worker")

    (worker,) = workers()
    with (
        pillion.connect(daemon.address) as left,
        pillion.connect(daemon.address, policy=RIGHT) as right,
        left.begin(seed=1) as inline,
        right.begin(seed=1) as outside,
    ):
        assert outside.act(observation_of(RIGHT)).tolist() == expected(RIGHT)
        worker.kill()
        for number in range(200):
            assert inline.act(observation_of(LEFT, number)).tolist() == expected(LEFT, number)
        wait_until(lambda: bool([each for each in workers() if each.pid != worker.pid]))
        assert outside.act(observation_of(RIGHT, 1)).tolist() == expected(RIGHT, 1)
    assert daemon.metric("pillion_serving_starts_total") == 1


# Versions


def test_a_switch_and_a_rollback_change_one_policy_and_nothing_of_the_other(start: Callable[..., Daemon]) -> None:
    daemon = start()
    with pillion.connect(daemon.address) as left, pillion.connect(daemon.addresses[1], policy=RIGHT) as right:
        before = state_of(daemon, RIGHT)
        assert action_of(left, LEFT) == expected(LEFT)
        with right.begin(seed=1) as episode:
            episode.act(observation_of(RIGHT))
            switch(daemon, LEFT, "1.1.0")
            assert action_of(left, LEFT) == expected(LEFT, minor=1)
            assert episode.act(observation_of(RIGHT)).tolist() == expected(RIGHT)
            assert action_of(right, RIGHT) == expected(RIGHT)
            done(daemon, "POST", f"{path_of(LEFT)}/rollback", {"reason": "a test"})
            assert action_of(left, LEFT) == expected(LEFT)
            assert action_of(right, RIGHT) == expected(RIGHT)
        after = state_of(daemon, RIGHT)
        for key in ("stable", "previous", "resident", "route", "shadow", "operation", "tag"):
            if key != "resident":
                assert after[key] == before[key], key
        assert [each["version"] for each in after["resident"]] == ["1.0.0"]
        assert daemon.ask("POST", f"{path_of(RIGHT)}/rollback", {})[0] == 409
    assert daemon.metric("pillion_switches_total", policy=LEFT, outcome="done") == 2
    assert daemon.metric("pillion_switches_total", policy=RIGHT) == 0


def test_operations_of_two_policies_run_at_once_and_have_numbers_of_their_own(start: Callable[..., Daemon]) -> None:
    daemon = start()
    begun = [
        daemon.ask("POST", f"{path_of(policy)}/switch", {"version": "1.1.0", "reason": policy})
        for policy in (LEFT, RIGHT)
    ]
    assert [status for status, _, _ in begun] == [202, 202]
    ended = [daemon.operation(each) for each in begun]
    assert [(each["number"], each["policy"], each["outcome"]) for each in ended] == [
        (1, LEFT, "done"),
        (2, RIGHT, "done"),
    ]
    for policy in (LEFT, RIGHT):
        with pillion.connect(daemon.address, policy=policy) as session:
            assert action_of(session, policy) == expected(policy, minor=1)


def test_an_automatic_rollback_takes_back_the_version_of_its_policy_only(
    start: Callable[..., Daemon], store: Path
) -> None:
    publish_times(store, LEFT, "1.3.0", 1e30, WIDTHS[LEFT])
    daemon = start()
    with pillion.connect(daemon.address) as left, pillion.connect(daemon.address, policy=RIGHT) as right:
        switch(daemon, RIGHT, "1.1.0")
        switch(daemon, LEFT, "1.3.0")
        with left.begin(seed=1) as episode:
            assert np.isinf(episode.act(observation_of(LEFT) * np.float32(1e10))).all()
        taken = daemon.wait_for_event("auto_rollback")
        assert (taken["policy"], taken["fault"]) == (f"{LEFT}@1.3.0", "non_finite")
        wait_until(lambda: bool(state_of(daemon, LEFT)["stable"] == "1.0.0"))
        assert action_of(left, LEFT) == expected(LEFT)
        assert action_of(right, RIGHT) == expected(RIGHT, minor=1)
    assert state_of(daemon, RIGHT)["stable"] == "1.1.0"
    assert daemon.metric("pillion_auto_rollbacks_total", policy=LEFT, reason="non_finite") == 1
    assert daemon.metric("pillion_auto_rollbacks_total", policy=RIGHT) == 0


def test_a_canary_splits_the_episodes_of_its_policy_only(start: Callable[..., Daemon]) -> None:
    daemon = start()
    arms = [{"name": "canary", "version": "1.1.0", "share": 0.5}]
    done(daemon, "PUT", f"{path_of(RIGHT)}/route", {"arms": arms})
    with pillion.connect(daemon.address) as left, pillion.connect(daemon.address, policy=RIGHT) as right:
        seen = [action_of(right, RIGHT, seed) for seed in range(40)]
        assert {tuple(action) for action in seen} == {tuple(expected(RIGHT, minor=minor)) for minor in range(2)}
        assert all(action_of(left, LEFT, seed) == expected(LEFT) for seed in range(40))
        with right.begin_many(8, range(8)) as group:
            group.act(np.stack([observation_of(RIGHT)] * 8))
    # The group's rows were run by two versions of its policy.
    assert daemon.metric("pillion_request_duration_seconds_count", policy=RIGHT, version="mixed") == 1
    assert daemon.metric("pillion_request_duration_seconds_count", policy=LEFT, version="mixed") == 0
    assert daemon.metric("pillion_request_duration_seconds_count", policy=LEFT, version="1.0.0") == 40


def test_two_shadows_run_at_once_and_one_ends_without_the_other(start: Callable[..., Daemon]) -> None:
    daemon = start()
    for policy in (LEFT, RIGHT):
        shadow(daemon, policy, "1.1.0")
    with pillion.connect(daemon.address) as left, pillion.connect(daemon.address, policy=RIGHT) as right:
        for _ in range(20):
            assert action_of(left, LEFT) == expected(LEFT)
            assert action_of(right, RIGHT) == expected(RIGHT)
        for policy in (LEFT, RIGHT):
            wait_until(lambda: shadow_rows(daemon, policy) == 20)  # noqa: B023  # ended before the next policy
        done(daemon, "PUT", f"{path_of(LEFT)}/route", {"arms": [], "shadow": None})
        for _ in range(5):
            action_of(left, LEFT)
            action_of(right, RIGHT)
        wait_until(lambda: shadow_rows(daemon, RIGHT) == 25)
    assert shadow_rows(daemon, LEFT) == 20
    assert [state_of(daemon, policy)["shadow"] is None for policy in (LEFT, RIGHT)] == [True, False]
    assert daemon.metric("pillion_shadow_rows_total", policy=RIGHT, version="1.1.0") == 25
    check_metrics(daemon)


def test_a_hold_keeps_a_version_of_one_policy_and_another_policy_holds_its_own(start: Callable[..., Daemon]) -> None:
    daemon = start()
    hold(daemon, LEFT, "1.2.0", "campaign")
    hold(daemon, RIGHT, "1.1.0", "campaign")
    with (
        pillion.connect(daemon.address, policy=LEFT, version="==1.2.0") as left,
        pillion.connect(daemon.address, policy=RIGHT, version="==1.1.0") as right,
    ):
        assert action_of(left, LEFT) == expected(LEFT, minor=2)
        assert action_of(right, RIGHT) == expected(RIGHT, minor=1)
        assert daemon.ask("DELETE", f"{path_of(LEFT)}/holds/campaign", {})[0] == 200
        assert action_of(right, RIGHT) == expected(RIGHT, minor=1)
    assert daemon.metric("pillion_held_versions", policy=LEFT) == 0
    assert daemon.metric("pillion_held_versions", policy=RIGHT) == 1


def test_a_restart_of_the_serving_process_brings_back_everything_of_every_policy(
    start: Callable[..., Daemon], store: Path
) -> None:
    daemon = start(LEFT, RIGHT, THIRD)
    for policy in (LEFT, RIGHT, THIRD):
        switch(daemon, policy, "1.0.0")
    switch(daemon, RIGHT, "1.1.0")
    arms = [{"name": "canary", "version": "1.2.0", "share": 0.5}]
    done(daemon, "PUT", f"{path_of(LEFT)}/route", {"arms": arms})
    hold(daemon, RIGHT, "1.2.0", "campaign")
    shadow(daemon, THIRD, "1.1.0")

    def check(running: Daemon) -> None:
        address = running.address
        with pillion.connect(address) as left, pillion.connect(address, policy=RIGHT) as right:
            seen = {tuple(action_of(left, LEFT, seed)) for seed in range(40)}
            assert seen == {tuple(expected(LEFT, minor=minor)) for minor in (0, 2)}
            assert action_of(right, RIGHT) == expected(RIGHT, minor=1)
        with pillion.connect(address, policy=RIGHT, version="==1.2.0") as held:
            assert action_of(held, RIGHT) == expected(RIGHT, minor=2)

    def check_shadow() -> None:
        with pillion.connect(daemon.address, policy=THIRD) as third:
            rows = shadow_rows(daemon, THIRD)
            assert action_of(third, THIRD) == expected(THIRD)
            wait_until(lambda: shadow_rows(daemon, THIRD) == rows + 1)

    check(daemon)
    check_shadow()
    daemon.kill_serving()
    daemon.wait_ready(2)
    check(daemon)
    check_shadow()
    names = [each["policy"] for each in daemon.wait_for_event("ready", 2)["policies"]]
    assert names == [f"{LEFT}@1.0.0", f"{RIGHT}@1.1.0", f"{THIRD}@1.0.0"]
    daemon.kill()
    again = start(LEFT, RIGHT, THIRD)
    check(again)
    assert locked_digests(store) >= {
        Store(store).resolve(f"{policy}@{version}").digest
        for policy, version in ((LEFT, "1.0.0"), (LEFT, "1.2.0"), (RIGHT, "1.1.0"), (RIGHT, "1.2.0"), (THIRD, "1.0.0"))
    }


# The admin port and the commands


def test_the_admin_port_lists_and_finds_every_policy(start: Callable[..., Daemon]) -> None:
    daemon = start()
    states = daemon.ask("GET", "/v1/policies")[1]["policies"]
    assert [state["policy"] for state in states] == [LEFT, RIGHT]
    status, problem, _ = daemon.ask("GET", path_of(THIRD))
    assert (status, problem["detail"]) == (404, f"expected {LEFT} or {RIGHT}, got {THIRD}")
    health, info = daemon.health(), daemon.ask("GET", "/info")[1]
    assert [each["policy"] for each in health["policies"]] == [LEFT, RIGHT]
    assert (health["policy"], health["digest"]) == (LEFT, states[0]["digest"])
    assert [each["observation"][0]["shape"] for each in info["policies"]] == [[2], [3]]
    assert (info["policy"], info["observation"]) == (LEFT, info["policies"][0]["observation"])
    with pillion.connect(daemon.address) as left, pillion.connect(daemon.address, policy=RIGHT) as right:
        action_of(left, LEFT)
        with right.begin(seed=1):
            sessions = daemon.ask("GET", "/v1/sessions")[1]["sessions"]
            assert [(each["policy"], each["groups"]) for each in sessions] == [(LEFT, 0), (RIGHT, 1)]
            assert daemon.metric("pillion_sessions", policy=LEFT) == 1
            assert daemon.metric("pillion_episodes", policy=LEFT) == 0
            assert daemon.metric("pillion_episodes", policy=RIGHT) == 1
            assert daemon.metric("pillion_version_leases", policy=RIGHT, version="1.0.0") == 1
            assert [each["sessions"] for each in daemon.ask("GET", "/v1/policies")[1]["policies"]] == [1, 1]
    check_metrics(daemon)


def test_the_audit_log_is_that_of_all_served_policies_or_of_one(start: Callable[..., Daemon]) -> None:
    daemon = start()
    for policy in (LEFT, RIGHT):
        switch(daemon, policy, "1.1.0")

    def switched(query: str = "") -> list[str]:
        page = daemon.ask("GET", f"/v1/audit{query}")[1]
        assert page["faults"] == []
        assert all(record["policy"] != THIRD for record in page["records"])
        return [record["policy"] for record in page["records"] if record["action"] == "switch"]

    assert switched() == [RIGHT, LEFT]
    assert switched("?limit=1") == [RIGHT]
    assert switched(f"?policy={LEFT}") == [LEFT]
    assert daemon.ask("GET", f"/v1/audit?policy={THIRD}")[0] == 404
    daemon.ask("POST", "/v1/drain", {"reason": "the end"})
    daemon.process.wait(START_S_MAX)


def test_kserve_serves_every_policy_as_a_model(start: Callable[..., Daemon]) -> None:
    daemon = start()
    index: Any = daemon.ask("POST", "/v2/repository/index", {})[1]
    assert [(each["name"], each["version"]) for each in index] == [(LEFT, "1.0.0"), (RIGHT, "1.0.0")]
    for policy in (LEFT, RIGHT):
        width = WIDTHS[policy]
        assert daemon.ask("GET", f"/v2/models/{policy}")[1]["inputs"][0]["shape"] == [-1, width]
        data = observation_of(policy).tolist()
        inputs = [{"name": "observation", "datatype": "FP32", "shape": [1, width], "data": data}]
        for sequence in ({}, {"sequence_id": 7, "sequence_start": True}, {"sequence_id": 7, "sequence_end": True}):
            body = {"inputs": inputs, "parameters": sequence}
            status, answer, _ = daemon.ask("POST", f"/v2/models/{policy}/infer", body)
            assert status == 200, answer
            (action,) = [output for output in answer["outputs"] if output["name"] == "action"]
            assert np.array(action["data"], np.float32).tolist() == expected(policy)
            assert answer["model_name"] == policy
    status, error, _ = daemon.ask("GET", f"/v2/models/{THIRD}")
    assert (status, error["error"]) == (404, f"model '{THIRD}': expected {LEFT} or {RIGHT}")

    def counts() -> dict[str, int]:
        listed = daemon.ask("GET", "/v2/models/stats")[1]["model_stats"]
        return {each["name"]: each["inference_count"] for each in listed}

    wait_until(lambda: counts() == {LEFT: 3, RIGHT: 3})


def run_command(daemon: Daemon, *words: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "pillion", *words, "--admin", daemon.admin]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=START_S_MAX, check=False)
    return ran.returncode, ran.stdout, ran.stderr


def test_commands_take_the_policy_and_list_the_served_ones_if_it_is_missing(start: Callable[..., Daemon]) -> None:
    daemon = start()
    code, out, _ = run_command(daemon, "status")
    assert code == 0
    assert out.index(f"{LEFT}: ready") < out.index(f"{RIGHT}: ready")
    states = json.loads(run_command(daemon, "status", "--json")[1])
    assert [state["policy"] for state in states["policies"]] == [LEFT, RIGHT]
    assert json.loads(run_command(daemon, "status", RIGHT, "--json")[1])["policy"] == RIGHT
    assert run_command(daemon, "switch", RIGHT, "1.1.0", "--reason", "a test", "--wait")[0] == 0
    hold(daemon, RIGHT, "1.2.0", "campaign")
    missing = f"expected the name of a policy: this daemon serves {LEFT}, {RIGHT}"
    for words in (["versions"], ["rollback", "--reason", "a test"], ["shadow"], ["holds"]):
        code, out, error = run_command(daemon, *words)
        assert (code, out) == (os.EX_USAGE, ""), words
        assert missing in error
    assert "1.2.0" in run_command(daemon, "versions", RIGHT)[1]
    assert "campaign" in run_command(daemon, "holds", "--policy", RIGHT)[1]
    assert "campaign" not in run_command(daemon, "holds", "--policy", LEFT)[1]
    assert run_command(daemon, "rollback", RIGHT, "--reason", "a test", "--wait")[0] == 0
    assert state_of(daemon, RIGHT)["stable"] == "1.0.0"
    records = json.loads(run_command(daemon, "audit", "--policy", LEFT, "--json")[1])["records"]
    assert {record["policy"] for record in records} == {LEFT}
    with pillion.connect(daemon.address, policy=RIGHT):
        assert RIGHT in run_command(daemon, "sessions")[1]


# A start that fails


def refused_start(store: Path, tmp_path: Path, *words: str, settings: str = "") -> tuple[int, str]:
    """Starts a daemon that cannot start; returns its exit code and what it wrote to standard error."""
    file = tmp_path / "pillion.toml"
    file.write_text(settings)
    addresses = ["--listen", f"ipc://{tmp_path}/z.sock", "--admin", ""]
    command = [sys.executable, "-m", "pilliond", "--config", str(file), "--store", str(store), *addresses, *words]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=START_S_MAX, check=False)
    return ran.returncode, ran.stderr


def test_two_policies_of_one_name_are_one_clear_line(store: Path, tmp_path: Path) -> None:
    code, error = refused_start(store, tmp_path, "--policy", LEFT, "--policy", RIGHT, "--policy", f"{LEFT}@1.1.0")
    assert code == os.EX_CONFIG
    line = f"pilliond: policies[2].policy: expected each policy once, got {LEFT} here and in policies[0]\n"
    assert error == line


def test_a_policy_that_the_store_does_not_have_is_one_clear_line(store: Path, tmp_path: Path) -> None:
    code, error = refused_start(store, tmp_path, "--policy", LEFT, "--policy", "nobody")
    assert code == os.EX_DATAERR
    assert error.count("\n") == 1
    assert "nobody" in error


def test_limits_whose_sum_is_too_large_are_one_clear_line(store: Path, tmp_path: Path) -> None:
    settings = "[limits]\npolicies_mb_max = 6000\n"
    code, error = refused_start(store, tmp_path, "--policy", LEFT, "--policy", RIGHT, settings=settings)
    assert code == os.EX_CONFIG
    assert error == (
        "pilliond: limits.policies_mb_max: expected at least 6210, which the policies may take by their limits "
        f"({LEFT} 3105, {RIGHT} 3105), got 6000\n"
    )


def test_one_policy_that_does_not_run_ends_the_start_and_is_named(store: Path, tmp_path: Path) -> None:
    blob = blob_of(store, f"{RIGHT}@1.2.0", "model.onnx")
    blob.chmod(0o644)
    blob.write_bytes(b"no model")
    code, error = refused_start(store, tmp_path, "--policy", LEFT, "--policy", RIGHT)
    assert code == os.EX_DATAERR
    assert RIGHT in error
    assert not locked_digests(store)
