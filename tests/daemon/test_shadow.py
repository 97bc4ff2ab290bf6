"""A shadow: real daemons, real policies, real clients. What was sent is compared with what another version would have sent."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pillion
from pillion_artifacts import Store
from pillion_bench.recording import Recording
from tests.conftest import StartDaemon
from tests.daemon.shadow_policies import publish_copy, publish_scaling
from tests.daemon.test_states_of_versions import publish_summing
from tests.harness import ROOT, START_S_MAX, Daemon

LANDER = "lunar-lander"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + START_S_MAX
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def shadow(daemon: Daemon, policy: str, version: str | None, **fields: Any) -> dict[str, Any]:
    """Lets a version shadow, or none, beside the arms that are there; gives the operation, ended."""
    wish = None if version is None else {"version": version, "share": fields.pop("share", 1.0)}
    body = {"arms": daemon.ask("GET", f"/v1/policies/{policy}")[1]["route"], "shadow": wish, **fields}
    return daemon.operation(daemon.ask("PUT", f"/v1/policies/{policy}/route", body))


def report(daemon: Daemon, policy: str) -> dict[str, Any]:
    status, told, _ = daemon.ask("GET", f"/v1/policies/{policy}/shadow")
    assert status == 200, told
    return told


def settled(daemon: Daemon, policy: str, rows: int) -> dict[str, Any]:
    """The report, as soon as so many rows were compared or skipped."""

    def is_seen() -> bool:
        told = report(daemon, policy)
        return bool(told["rows"] + sum(told["skipped_rows"].values()) >= rows)

    wait_until(is_seen)
    return report(daemon, policy)


def episode_observations(policy: str, steps: int) -> np.ndarray[Any, Any]:
    """What a real environment gave, as it was recorded."""
    recording = Recording.load(ROOT / "bench" / "episodes" / policy / "seed-11.safetensors")
    return recording.observation["observation"][:steps]


def act_through(
    session: pillion.Session, observations: np.ndarray[Any, Any], seed: int, *, deterministic: bool = False
) -> list[Any]:
    with session.begin(seed=seed) as episode:
        return [episode.act(each, deterministic=deterministic).tolist() for each in observations]


@pytest.fixture
def landers(tmp_path: Path) -> Path:
    """A store with a real policy: twice the same, and one that prefers its first action more."""
    publish_copy(tmp_path / "store", LANDER, "1.0.0")
    publish_copy(tmp_path / "store", LANDER, "1.1.0")
    publish_copy(tmp_path / "store", LANDER, "2.0.0", biased=2.0)
    Store(tmp_path / "store").move_alias(LANDER, "stable", "1.0.0", expected="", by="a test")
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
            told = settled(daemon, LANDER, 180)
            assert (told["version"], told["live"], told["state"]) == (version, "1.0.0", "running")
            assert (told["rows"], sum(told["skipped_rows"].values())) == (180, 0)
            assert told["inference"]["batches"] == 180
            if agreement is None:
                assert 0.1 < told["agreement"] < 0.95
            else:
                assert told["agreement"] == agreement
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
        told = settled(daemon, "scaling", 20)
        assert (told["agreement"], told["outputs"][0]["distance_max"]) == (1.0, 0.0)
        assert told["distances"]["0"] == 20
        shadow(daemon, "scaling", "1.1.0", reason="another")
        act_through(session, observations, 5)
        told = settled(daemon, "scaling", 20)
    assert told["agreement_means"] == "their distance is at most 1"
    assert told["agreement"] == 0.5
    assert told["outputs"][0]["distance_max"] == pytest.approx(2.5)
    assert told["outputs"][0]["distance_mean"] == pytest.approx((2.5 + 0.25) / 2)
    assert (told["distances"]["0.1"], told["distances"]["0.3"], told["distances"]["+Inf"]) == (0, 10, 20)


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
            told = settled(daemon, policy, 16 + 24)
            assert (told["rows"], sum(told["skipped_rows"].values())) == (40, 0)
            assert (told["agreement"] == 1.0) == (version == "1.0.0")


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
        told = settled(daemon, "summing", 9)
        assert (told["rows"], told["skipped_rows"]["mid_episode"]) == (2, 7)
        assert told["outputs"][0]["distance_max"] == 200.0
        shadow(daemon, "summing", "1.0.0", reason="itself")
        for step in range(5):
            group.act(ones, episode_start=[step == 0, step in (0, 3), step == 1])
        told = settled(daemon, "summing", 15)
        assert (told["rows"], told["skipped_rows"]["mid_episode"]) == (14, 1)
        assert (told["agreement"], told["outputs"][0]["distance_max"]) == (1.0, 0.0)


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
            told = settled(daemon, LANDER, 60)
            wait_until(lambda: bool(report(daemon, LANDER)["inference"]["batches"] == 2))
            counts.append(report(daemon, LANDER)["rows"])
    assert told["share"] == 0.25
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
    told = settled(daemon, LANDER, answered)
    assert (told["rows"], told["agreement"]) == (answered, 1.0)
