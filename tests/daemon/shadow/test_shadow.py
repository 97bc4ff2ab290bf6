"""A shadow: real daemons, policies and clients. Sent answers are compared with those of another version."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import pillion
from pillion_artifacts import Store
from pillion_artifacts.store.aliases import move_alias
from pillion_bench.recordings.recording import Recording
from tests.conftest import StartDaemon
from tests.daemon.processes.test_processes import check_metrics
from tests.daemon.support.policies.recurrent import publish_summing
from tests.daemon.support.policies.shadow import publish_copy, publish_scaling
from tests.daemon.support.process_resources import children_running
from tests.harness import ROOT, START_S_MAX, USER, Daemon

LANDER = "lunar-lander"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + START_S_MAX
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def shadow(daemon: Daemon, policy: str, version: str | None, **fields: Any) -> dict[str, Any]:
    """Makes a version shadow, or none, and leaves the arms; returns the ended operation."""
    wish = None if version is None else {"version": version, "share": fields.pop("share", 1.0)}
    body = {"arms": daemon.ask("GET", f"/v1/policies/{policy}")[1]["route"], "shadow": wish, **fields}
    return daemon.operation(daemon.ask("PUT", f"/v1/policies/{policy}/route", body))


def report(daemon: Daemon, policy: str) -> dict[str, Any]:
    status, reply, _ = daemon.ask("GET", f"/v1/policies/{policy}/shadow")
    assert status == 200, reply
    return reply


def settled(daemon: Daemon, policy: str, rows: int) -> dict[str, Any]:
    """Returns the report as soon as so many rows were compared or skipped."""

    def is_seen() -> bool:
        reply = report(daemon, policy)
        return bool(reply["rows"] + sum(reply["skipped_rows"].values()) >= rows)

    wait_until(is_seen)
    return report(daemon, policy)


def episode_observations(policy: str, steps: int) -> np.ndarray[Any, Any]:
    """Returns recorded observations of a real environment."""
    recording = Recording.load(ROOT / "bench" / "episodes" / policy / "seed-11.safetensors")
    return recording.observation["observation"][:steps]


def act_through(
    session: pillion.Session, observations: np.ndarray[Any, Any], seed: int, *, deterministic: bool = False
) -> list[Any]:
    with session.begin(seed=seed) as episode:
        return [episode.act(each, deterministic=deterministic).tolist() for each in observations]


@pytest.fixture
def landers(tmp_path: Path) -> Path:
    """A store with a real policy twice, and a third version that prefers its first action more."""
    publish_copy(tmp_path / "store", LANDER, "1.0.0")
    publish_copy(tmp_path / "store", LANDER, "1.1.0")
    publish_copy(tmp_path / "store", LANDER, "2.0.0", biased=2.0)
    move_alias(Store(tmp_path / "store"), LANDER, "stable", "1.0.0", expected="", by="a test")
    return tmp_path / "store"


def test_the_same_weights_agree_in_every_row_drawn_or_not_and_others_measurably_do_not(
    landers: Path, start_daemon: StartDaemon
) -> None:
    observations = episode_observations(LANDER, 60)
    daemon = start_daemon(policy=f"{LANDER}@stable", store=landers)
    with pillion.connect(daemon.address) as session:
        alone = [act_through(session, observations, seed, deterministic=seed > 2) for seed in (1, 2, 3)]
        for version, agreement in (("1.0.0", 1.0), ("1.1.0", 1.0), ("2.0.0", None)):
            done = shadow(daemon, LANDER, version, reason="to compare", by="ann")
            assert (done["outcome"], done["error"]) == ("done", "")
            shadowed = [act_through(session, observations, seed, deterministic=seed > 2) for seed in (1, 2, 3)]
            assert shadowed == alone
            reply = settled(daemon, LANDER, 180)
            assert (reply["version"], reply["live"], reply["state"]) == (version, "1.0.0", "running")
            assert (reply["rows"], sum(reply["skipped_rows"].values())) == (180, 0)
            assert reply["inference"]["batches"] == 180
            if agreement is None:
                assert 0.1 < reply["agreement"] < 0.95
            else:
                assert reply["agreement"] == agreement
    assert daemon.ask("GET", f"/v1/policies/{LANDER}")[1]["shadow"]["version"] == "2.0.0"
    assert daemon.metric("pillion_shadow_rows_total", version="2.0.0") == 180
    assert 18 < daemon.metric("pillion_shadow_agreed_rows_total", version="2.0.0") < 171


def test_continuous_actions_have_a_distance_drawn_with_the_seed_and_step_of_what_was_sent(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    publish_scaling(tmp_path / "store", "1.0.0", 1.0)
    publish_scaling(tmp_path / "store", "1.1.0", 1.5)
    daemon = start_daemon(policy="scaling@1.0.0", store=tmp_path / "store", settings={"shadow__distance_max": 1.0})
    observations = np.repeat(np.array([[3.0, 4.0], [0.3, 0.4]], np.float32), 10, axis=0)
    with pillion.connect(daemon.address) as session:
        shadow(daemon, "scaling", "1.0.0", reason="itself")
        act_through(session, observations, 5)
        reply = settled(daemon, "scaling", 20)
        assert (reply["agreement"], reply["outputs"][0]["distance_max"]) == (1.0, 0.0)
        assert reply["distances"]["0"] == 20
        shadow(daemon, "scaling", "1.1.0", reason="another")
        act_through(session, observations, 5)
        reply = settled(daemon, "scaling", 20)
    assert reply["agreement_means"] == "their distance is at most 1"
    assert reply["agreement"] == 0.5
    assert reply["outputs"][0]["distance_max"] == pytest.approx(2.5)
    assert reply["outputs"][0]["distance_mean"] == pytest.approx((2.5 + 0.25) / 2)
    assert (reply["distances"]["0.1"], reply["distances"]["0.3"], reply["distances"]["+Inf"]) == (0, 10, 20)


def test_a_group_of_rows_and_an_image_in_a_slot_are_compared_row_by_row(
    tmp_path: Path, start_daemon: StartDaemon, short_path: Path
) -> None:
    policy = "cart-pole-pixels"
    publish_copy(tmp_path / "store", policy, "1.0.0")
    publish_copy(tmp_path / "store", policy, "2.0.0", biased=3.0)
    frames = episode_observations(policy, 16)
    daemon = start_daemon(policy=f"{policy}@1.0.0", store=tmp_path / "store", listen=[f"lane://{short_path}/pix.sock"])
    with pillion.connect(daemon.address) as session:
        for version in ("1.0.0", "2.0.0"):
            shadow(daemon, policy, version, reason="pixels")
            act_through(session, frames, 1, deterministic=True)
            group = session.begin_many(3)
            for step in range(8):
                group.act(frames[step : step + 3], deterministic=True)
                assert group.last.observation_in_slot
            reply = settled(daemon, policy, 16 + 24)
            assert (reply["rows"], sum(reply["skipped_rows"].values())) == (40, 0)
            assert (reply["agreement"] == 1.0) == (version == "1.0.0")


def test_a_recurrent_shadow_carries_its_own_state_from_the_begin_of_each_episode(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    publish_summing(tmp_path / "store", "1.0.0", 0.0)
    publish_summing(tmp_path / "store", "1.1.0", 100.0)
    daemon = start_daemon(policy="summing@1.0.0", store=tmp_path / "store")
    ones = np.ones((3, 1), np.float32)
    with pillion.connect(daemon.address) as session:
        group = session.begin_many(3)
        group.act(ones)
        shadow(daemon, "summing", "1.1.0", reason="a sum")
        group.act(ones)
        group.act(ones, episode_start=[False, True, False])
        group.act(ones)
        reply = settled(daemon, "summing", 9)
        assert (reply["rows"], reply["skipped_rows"]["mid_episode"]) == (2, 7)
        assert reply["outputs"][0]["distance_max"] == 200.0
        shadow(daemon, "summing", "1.0.0", reason="itself")
        for step in range(5):
            group.act(ones, episode_start=[step == 0, step in (0, 3), step == 1])
        reply = settled(daemon, "summing", 15)
        assert (reply["rows"], reply["skipped_rows"]["mid_episode"]) == (14, 1)
        assert (reply["agreement"], reply["outputs"][0]["distance_max"]) == (1.0, 0.0)


async def test_batches_of_many_clients_are_run_as_they_were_and_agree_bit_for_bit(
    landers: Path, start_daemon: StartDaemon
) -> None:
    settings = {"limits__batch_wait_us_max": 20_000, "shadow__distance_max": 0.0}
    daemon = start_daemon(policy=f"{LANDER}@stable", store=landers, settings=settings)
    observations = episode_observations(LANDER, 30)

    async def client(seed: int) -> None:
        async with pillion.aio.connect(daemon.address) as session:
            episode = await session.begin(seed=seed)
            for each in np.roll(observations, seed, axis=0):
                await episode.act(each, deterministic=seed % 2 == 0)

    shadow(daemon, LANDER, "1.1.0", reason="the same")
    await asyncio.gather(*(client(seed) for seed in range(8)))
    reply = settled(daemon, LANDER, 240)
    assert (reply["rows"], reply["agreed_rows"]) == (240, 240)
    assert reply["inference"]["batches"] < 240


def test_a_share_shadows_the_same_episodes_each_time(landers: Path, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(policy=f"{LANDER}@stable", store=landers)
    observations = np.repeat(episode_observations(LANDER, 1), 200, axis=0)
    counts = []
    with pillion.connect(daemon.address) as session:
        group = session.begin_many(200, seeds=range(200))
        for version in ("1.1.0", "2.0.0"):
            shadow(daemon, LANDER, version, share=0.25, reason="a quarter")
            for _ in range(2):
                group.act(observations)
            reply = settled(daemon, LANDER, 60)
            wait_until(lambda: bool(report(daemon, LANDER)["inference"]["batches"] == 2))
            counts.append(report(daemon, LANDER)["rows"])
    assert reply["share"] == 0.25
    assert counts[0] == counts[1]
    assert 60 <= counts[0] <= 140


def test_rows_of_another_arm_are_not_compared(landers: Path, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(policy=f"{LANDER}@stable", store=landers)
    path = f"/v1/policies/{LANDER}"
    arms = [{"name": "canary", "version": "2.0.0", "share": 0.5}]
    body = {"arms": arms, "shadow": {"version": "1.1.0"}, "reason": "both"}
    assert daemon.operation(daemon.ask("PUT", f"{path}/route", body))["outcome"] == "done"
    assert daemon.ask("GET", path)[1]["route"] == arms
    with pillion.connect(daemon.address) as session:
        group = session.begin_many(100, seeds=range(100))
        group.act(np.repeat(episode_observations(LANDER, 1), 100, axis=0), deterministic=True)
        stable = session.digest
        answered = sum(digest == stable for digest in group.last.row_digests)
    assert 30 < answered < 70
    reply = settled(daemon, LANDER, answered)
    assert (reply["rows"], reply["agreement"]) == (answered, 1.0)


def test_promtool_accepts_its_metrics(landers: Path, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(policy=f"{LANDER}@stable", store=landers)
    shadow(daemon, LANDER, "2.0.0", reason="to compare")
    with pillion.connect(daemon.address) as session:
        act_through(session, episode_observations(LANDER, 20), 1)
    settled(daemon, LANDER, 20)
    assert daemon.metric("pillion_shadow_inference_duration_seconds_count", policy=LANDER, version="2.0.0") == 20
    assert daemon.metric("pillion_shadow_running", version="2.0.0") == 1
    shadow(daemon, LANDER, None, reason="seen enough")
    assert daemon.metric("pillion_shadow_rows_total", version="2.0.0") == 20
    assert daemon.metric("pillion_shadow_running", version="2.0.0") == 0
    check_metrics(daemon)


# What ends it


def shadow_process(daemon: Daemon) -> psutil.Process:
    return psutil.Process(daemon.health()["shadow"]["pid"])


def pages_of(pid: int) -> int:
    """Returns the descriptors and mappings of shadow pages in a process."""
    found = Path(f"/proc/{pid}/maps").read_text().count("pillion-shadow")
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        # A connection may be closed meanwhile.
        with suppress(FileNotFoundError):
            found += "pillion-shadow" in str(entry.readlink())
    return found


def audited(root: Path) -> list[tuple[str, str, str]]:
    """Returns the audit records about shadows: version, `by` and reason."""
    records = [each for each in Store(root).history(LANDER) if each.action == "shadow"]
    return [(f"{each.version} beside {each.was}", each.by, each.reason) for each in records]


def ended(daemon: Daemon, policy: str) -> dict[str, Any]:
    """Returns the report as soon as the shadow has ended."""
    wait_until(lambda: bool(report(daemon, policy)["state"] == "ended"))
    return report(daemon, policy)


@pytest.fixture
def shadowed(landers: Path, start_daemon: StartDaemon) -> Daemon:
    """Serves 1.0.0, which 2.0.0 shadows."""
    daemon = start_daemon(policy=f"{LANDER}@stable", store=landers)
    assert shadow(daemon, LANDER, "2.0.0", reason="to compare", by="ann")["outcome"] == "done"
    return daemon


def test_a_shadow_is_confined_and_leaves_nothing_behind(shadowed: Daemon, landers: Path) -> None:
    child = shadow_process(shadowed)
    assert (child.nice(), os.sched_getscheduler(child.pid)) == (19, os.SCHED_IDLE)
    assert child.rlimit(psutil.RLIMIT_AS)[0] == 8_192_000_000
    assert all(pages_of(pid) for pid in (shadowed.pid, shadowed.serving_pid, child.pid))
    assert shadow(shadowed, LANDER, None, reason="seen enough", by="bob")["outcome"] == "done"
    assert not child.is_running()
    wait_until(lambda: pages_of(shadowed.pid) + pages_of(shadowed.serving_pid) == 0)
    reply = report(shadowed, LANDER)
    assert (reply["state"], reply["end_reason"], reply["by"], reply["reason"]) == (
        "ended",
        "seen enough",
        f"ann (user {USER})",
        "to compare",
    )
    assert audited(landers) == [
        ("2.0.0 beside 1.0.0", f"ann (user {USER})", "begun at share 1: to compare"),
        ("2.0.0 beside 1.0.0", f"bob (user {USER})", "ended after 0 rows: seen enough"),
    ]
    assert shadowed.ask("GET", f"/v1/policies/{LANDER}")[1]["shadow"] is None


def test_killed_with_9_it_ends_and_the_live_path_notices_nothing(shadowed: Daemon, landers: Path) -> None:
    observations = episode_observations(LANDER, 20)
    with pillion.connect(shadowed.address) as session:
        before = act_through(session, observations, 1)
        shadow_process(shadowed).kill()
        assert act_through(session, observations, 1) == before
        assert ended(shadowed, LANDER)["end_reason"] == "the shadow process ended with -9"
        assert act_through(session, observations, 1) == before
    assert shadowed.health()["phase"] == "ready"
    assert shadowed.health()["shadow"]["end_reason"] == "the shadow process ended with -9"
    assert shadowed.wait_for_event("shadow_ended")["reason"] == "the shadow process ended with -9"
    wait_until(lambda: audited(landers)[-1][1] == "pilliond")
    assert audited(landers)[-1][2].endswith(" rows: the shadow process ended with -9")
    assert shadow(shadowed, LANDER, "1.1.0", reason="once more")["outcome"] == "done"


def test_one_that_hangs_is_silent_and_then_ended(landers: Path, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(policy=f"{LANDER}@stable", store=landers, settings={"shadow__silent_s_max": 4.0})
    shadow(daemon, LANDER, "1.0.0", reason="itself")
    with pillion.connect(daemon.address) as session:
        os.kill(shadow_process(daemon).pid, signal.SIGSTOP)
        act_through(session, episode_observations(LANDER, 20), 1)
        wait_until(lambda: bool(daemon.health()["shadow"]["state"] == "silent"))
        reply = ended(daemon, LANDER)
    assert reply["end_reason"] == "it was silent for more than 4 s"
    wait_until(lambda: pages_of(daemon.pid) + pages_of(daemon.serving_pid) == 0)


def test_a_switch_ends_it(shadowed: Daemon) -> None:
    child = shadow_process(shadowed)
    body = {"version": "2.0.0", "reason": "it flies better", "by": "ann"}
    assert shadowed.operation(shadowed.ask("POST", f"/v1/policies/{LANDER}/switch", body))["outcome"] == "done"
    reply = report(shadowed, LANDER)
    assert (reply["state"], reply["end_reason"]) == ("ended", "2.0.0 is stable now")
    assert not child.is_running()
    with pillion.connect(shadowed.address) as session:
        act_through(session, episode_observations(LANDER, 5), 1)
    assert report(shadowed, LANDER)["rows"] == 0


def test_it_goes_on_where_the_serving_process_is_started_again(shadowed: Daemon) -> None:
    observations = episode_observations(LANDER, 20)
    with pillion.connect(shadowed.address) as session:
        act_through(session, observations, 1)
    settled(shadowed, LANDER, 20)
    shadowed.kill_serving()
    shadowed.wait_ready(2)
    with pillion.connect(shadowed.address) as session:
        act_through(session, observations, 1)
    reply = settled(shadowed, LANDER, 40)
    assert (reply["rows"], reply["state"]) == (40, "running")


def test_a_drain_ends_it_and_so_does_the_death_of_the_daemon(
    shadowed: Daemon, landers: Path, start_daemon: StartDaemon
) -> None:
    child = shadow_process(shadowed)
    assert shadowed.ask("POST", "/v1/drain", {"reason": "a new kernel"})[0] == 202
    assert shadowed.process.wait(START_S_MAX) == 0
    assert not child.is_running()
    assert audited(landers)[-1][1:] == ("pilliond", "ended after 0 rows: the daemon ends")
    again = start_daemon(policy=f"{LANDER}@stable", store=landers)
    shadow(again, LANDER, "1.1.0", reason="once more")
    child = shadow_process(again)
    again.kill()
    wait_until(lambda: not child.is_running())


def test_a_nan_of_the_shadow_is_counted_and_hurts_nobody(tmp_path: Path, start_daemon: StartDaemon) -> None:
    publish_scaling(tmp_path / "store", "1.0.0", 1.0, draws=False)
    publish_scaling(tmp_path / "store", "1.1.0", 2e37, draws=False)
    daemon = start_daemon(policy="scaling@1.0.0", store=tmp_path / "store")
    observations = np.array([[20.0, 0.0], [0.0, 0.0], [30.0, 30.0]], np.float32)
    with pillion.connect(daemon.address) as session:
        assert shadow(daemon, "scaling", "1.1.0", reason="too much")["error"] == ""
        assert act_through(session, observations, 1, deterministic=True) == observations.tolist()
        reply = settled(daemon, "scaling", 3)
    assert (reply["rows"], reply["non_finite_rows"], reply["agreed_rows"], reply["state"]) == (3, 2, 1, "running")
    assert (reply["distances"]["100"], reply["distances"]["+Inf"]) == (1, 3)
    assert reply["outputs"][0]["distance_max"] is None


def test_rows_that_find_no_room_are_counted_and_a_recurrent_shadow_waits_for_the_next_episode(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    publish_summing(tmp_path / "store", "1.0.0", 0.0)
    daemon = start_daemon(policy="summing@1.0.0", store=tmp_path / "store", settings={"shadow__ring_mb": 1})
    ones = np.ones((256, 1), np.float32)
    with pillion.connect(daemon.address) as session:
        group = session.begin_many(256)
        shadow(daemon, "summing", "1.0.0", reason="itself")
        group.act(ones, episode_start=[True] * 256)
        settled(daemon, "summing", 256)
        os.kill(shadow_process(daemon).pid, signal.SIGSTOP)
        for step in range(300):
            assert group.act(ones)[0, 0] == step + 2
        reply = report(daemon, "summing")
        assert reply["skipped_rows"]["no_room"] >= 256
        assert 900_000 < reply["waiting_bytes"] <= 1_000_000
        os.kill(shadow_process(daemon).pid, signal.SIGCONT)
        settled(daemon, "summing", 301 * 256)
        group.act(ones)
        assert settled(daemon, "summing", 302 * 256)["skipped_rows"]["mid_episode"] == 256
        group.act(ones, episode_start=[True] * 256)
        group.act(ones)
        reply = settled(daemon, "summing", 304 * 256)
    assert (reply["agreement"], reply["outputs"][0]["distance_max"]) == (1.0, 0.0)
    assert reply["rows"] + reply["skipped_rows"]["no_room"] + 256 == 304 * 256


# What is refused


def test_one_that_does_not_fit_or_is_cancelled_never_begins(landers: Path, start_daemon: StartDaemon) -> None:
    policy = f"{LANDER}@stable"
    small = start_daemon(policy=policy, store=landers, settings={"staging__memory_mb_max": 120})
    failed = shadow(small, LANDER, "1.0.0", reason="itself")
    assert failed["outcome"] == "failed"
    assert "staging.memory_mb_max" in failed["error"]
    daemon = start_daemon(policy=policy, store=landers)
    body = {"arms": [], "shadow": {"version": "1.0.0"}, "reason": "itself"}
    answer = daemon.ask("PUT", f"/v1/policies/{LANDER}/route", body)
    wait_until(lambda: len(shadows_of(daemon)) == 1)
    assert daemon.ask("DELETE", f"/v1/policies/{LANDER}/stage", {"reason": "not now"})[0] == 200
    assert daemon.operation(answer)["outcome"] == "cancelled"
    wait_until(lambda: not shadows_of(daemon) and not pages_of(daemon.pid))
    assert daemon.ask("GET", f"/v1/policies/{LANDER}/shadow")[0] == 404


def shadows_of(daemon: Daemon) -> list[psutil.Process]:
    return children_running(daemon.pid, "pilliond.shadow")


def test_a_version_that_cannot_be_compared_is_refused_and_what_shadows_goes_on(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    publish_scaling(tmp_path / "store", "1.0.0", 1.0)
    publish_scaling(tmp_path / "store", "1.1.0", 2.0)
    publish_scaling(tmp_path / "store", "1.2.0", 1.0, width=3)
    publish_scaling(tmp_path / "store", "1.3.0", 1.0, draws=False)
    daemon = start_daemon(policy="scaling@1.0.0", store=tmp_path / "store")
    shadow(daemon, "scaling", "1.1.0", reason="first")
    child = shadow_process(daemon)
    for version, why in (
        ("1.2.0", "shadow 1.2.0: expected the spec of 1.0.0, to compare the two; its observations differ"),
        ("1.3.0", "shadow 1.3.0: expected a version that can draw actions, as 1.0.0 does"),
    ):
        failed = shadow(daemon, "scaling", version, reason="no")
        assert (failed["outcome"], failed["error"]) == ("failed", why)
    assert daemon.ask("GET", "/v1/policies/scaling")[1]["shadow"]["version"] == "1.1.0"
    assert child.is_running()
    roles = {
        each["version"]: each["role"] for each in daemon.ask("GET", "/v1/policies/scaling/versions")[1]["versions"]
    }
    assert (roles["1.0.0"], roles["1.1.0"]) == ("stable", "shadow")


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"arms": [], "shadow": {"version": "9.9.9"}}, 404, "version-not-found"),
        ({"arms": [], "shadow": {"version": "1.0.0", "share": 0}}, 400, "malformed"),
        ({"arms": [], "shadow": {"share": 0.5}}, 400, "malformed"),
        ({"arms": [], "shadow": "1.0.0"}, 400, "malformed"),
    ],
)
def test_what_is_no_shadow_is_a_problem_and_changes_nothing(
    daemon: Daemon, body: dict[str, Any], status: int, kind: str
) -> None:
    result, reply, _ = daemon.ask("PUT", f"/v1/policies/{LANDER}/route", body)
    assert (result, reply["type"]) == (status, f"urn:pillion:{kind}")
    result, reply, _ = daemon.ask("GET", f"/v1/policies/{LANDER}/shadow")
    assert (result, reply["type"]) == (404, "urn:pillion:shadow-not-found")
