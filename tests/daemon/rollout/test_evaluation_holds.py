"""Evaluation holds: a version is held for a campaign, whatever is switched, collected or restarted. Real daemons and stores."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pillion
from pillion_artifacts import Store
from pillion_artifacts.maintenance.garbage_collection import collect
from pillion_artifacts.store.aliases import move_alias
from pillion_artifacts.store.evaluation_holds import end_hold
from pillion_bench.variants import POLICY, publish_variant
from tests.conftest import StartDaemon
from tests.daemon.rollout.test_releases import OBSERVATION, PATH, STEP, switch, value_of, wait_until
from tests.harness import SMALL_BATCHES, USER, Daemon, blob_of

HOLDS = f"{PATH}/holds"
STRICT = {**SMALL_BATCHES, "versions__old_max": 0, "versions__lease_s_max": 0.2}
"""With these settings an old version is unloaded at once."""


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
    """A daemon that serves what `stable` points at, and keeps no old version."""
    return start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=STRICT)


def hold(daemon: Daemon, version: str, name: str = "campaign-7", ttl_s: float = 3_600, **fields: str) -> dict[str, Any]:
    """Makes a hold, and waits until its version is held."""
    body = {"name": name, "version": version, "ttl_s": ttl_s, **fields}
    status, hold, _ = daemon.ask("POST", HOLDS, body)
    assert status == 201, hold
    done = daemon.operation(daemon.ask("GET", f"/v1/operations/{hold['operation']}"))
    assert (done["kind"], done["outcome"]) == ("hold", "done"), done
    return hold


def campaign(daemon: Daemon, steps: int = 8) -> list[bytes]:
    """Returns what a campaign on 1.0.0 gets: the bytes of drawn actions and values, for two seeds."""
    seen = []
    with pillion.connect(daemon.address, version="==1.0.0") as session:
        for seed in (3, 4):
            with session.begin(seed=seed) as episode:
                for step in range(steps):
                    action = episode.act(OBSERVATION * (step + 1), deterministic=False)
                    seen.append(action.tobytes() + episode.last.outputs["value"].tobytes())
                assert episode.last.version == "1.0.0"
    return seen


def test_a_campaign_goes_on_bit_for_bit_through_switches_a_collection_and_a_restart_of_the_daemon(
    store: Store, start_daemon: StartDaemon, followed: Daemon
) -> None:
    hold(followed, "1.0.0")
    first = campaign(followed)
    with pillion.connect(followed.address, version="==1.0.0") as session, session.begin(seed=9) as episode:
        value = value_of(episode)
        for version in ("1.1.0", "1.0.0", "1.1.0", "1.2.0"):
            done = switch(followed, version)
            assert done["outcome"] == "done", done
            assert (value_of(episode), session.begin().version) == (value, "1.0.0")
            assert campaign(followed) == first
    followed.kill()
    claims = {each.version: each.claim for each in collect(store, grace=timedelta(0), keep_newest=0).versions}
    assert claims["1.0.0"] == "evaluation"
    again = start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=STRICT)
    with pillion.connect(again.address) as session:
        assert session.version == "1.2.0"
    assert campaign(again) == first
    again.kill_serving()
    again.wait_ready(2)
    assert campaign(again) == first


def test_gc_leaves_a_held_version_alone_while_the_daemon_is_down(store: Store, followed: Daemon) -> None:
    hold(followed, "1.2.0")
    followed.kill()
    publish_variant(store.root, "1.3.0", 3 * STEP)
    claims = {each.version: each.claim for each in collect(store, grace=timedelta(0), keep_newest=0).versions}
    assert claims == {"1.0.0": "alias", "1.1.0": "", "1.2.0": "evaluation", "1.3.0": ""}


def test_only_a_session_that_asks_for_it_gets_a_held_version_and_a_switch_does_not_move_it(followed: Daemon) -> None:
    made = hold(followed, "1.1.0", by="ann", reason="the paper")
    assert (made["name"], made["version"], made["by"], made["reason"]) == (
        "campaign-7",
        "1.1.0",
        f"ann (user {USER})",
        "the paper",
    )
    with (
        pillion.connect(followed.address) as usual,
        pillion.connect(followed.address, version=">=1.1") as asking,
    ):
        assert (usual.begin().version, asking.begin().version) == ("1.0.0", "1.1.0")
        # Another version in its range.
        switch(followed, "1.2.0")
        assert (usual.begin().version, asking.begin().version) == ("1.2.0", "1.1.0")
        group = asking.begin_many(2)
        group.act(np.stack([OBSERVATION] * 2))
        group.act(np.stack([OBSERVATION] * 2), episode_start=[True, False])
        assert (group.last.version, len(set(group.last.row_digests))) == ("1.1.0", 1)
        with pytest.raises(pillion.RefusedError) as refused:
            pillion.connect(followed.address, version="==1.0.0")
    assert refused.value.code == "version_not_found"


def test_of_several_held_versions_the_newest_that_fits_answers(followed: Daemon) -> None:
    hold(followed, "1.1.0", "a")
    hold(followed, "1.2.0", "b")
    for wanted, expected in (("", "1.0.0"), (">=1.1", "1.2.0"), (">1.0,<1.2", "1.1.0")):
        with pillion.connect(followed.address, version=wanted) as session:
            assert session.begin().version == expected


def test_after_its_end_no_episode_of_the_campaign_begins_and_its_version_is_unloaded(
    followed: Daemon, store: Store
) -> None:
    hold(followed, "1.1.0")
    with pillion.connect(followed.address, version="==1.1.0") as session:
        episode = session.begin()
        value_of(episode)
        status, ended, _ = followed.ask("DELETE", f"{HOLDS}/campaign-7", {"by": "bob", "reason": "it is done"})
        assert (status, ended["is_held"]) == (200, False)
        with pytest.raises(pillion.RefusedError) as refused:
            session.begin()
        assert refused.value.code == "version_gone"
        followed.wait_for_event("version_unloaded")
        with pytest.raises(pillion.RefusedError) as refused:
            value_of(episode)
        assert refused.value.code == "version_gone"
    with pytest.raises(pillion.RefusedError) as refused:
        pillion.connect(followed.address, version="==1.1.0")
    assert refused.value.code == "version_not_found"
    assert followed.ask("GET", HOLDS)[1]["holds"] == []
    last = store.history(POLICY)[-1]
    assert (last.action, last.version, last.by, last.reason) == (
        "end-hold",
        "1.1.0",
        f"bob (user {USER})",
        "campaign-7: it is done",
    )


def test_after_its_end_an_episode_goes_on_as_on_any_old_version_and_a_row_does_not_begin_anew(
    store: Store, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=SMALL_BATCHES)
    hold(daemon, "1.1.0")
    with pillion.connect(daemon.address, version="==1.1.0") as session:
        group = session.begin_many(2)
        observations = np.stack([OBSERVATION] * 2)
        group.act(observations)
        before = group.last.outputs["value"].tolist()
        daemon.ask("DELETE", f"{HOLDS}/campaign-7")
        with pytest.raises(pillion.RefusedError) as refused:
            group.act(observations, episode_start=[True, False])
        assert refused.value.code == "version_gone"
        group.act(observations)
        assert (group.last.version, group.last.outputs["value"].tolist()) == ("1.1.0", before)


def test_a_hold_expires_and_lasts_longer_when_it_is_made_again(followed: Daemon, store: Store) -> None:
    first = hold(followed, "1.1.0", "short", ttl_s=600)
    again = hold(followed, "1.1.0", "short", ttl_s=1)
    assert again["id"] == first["id"]
    assert again["until"] < first["until"]
    wait_until(lambda: followed.ask("GET", HOLDS)[1]["holds"] == [])
    last = store.history(POLICY)[-1]
    assert (last.action, last.by, last.reason) == ("end-hold", "pilliond", "short: its time is over")
    followed.wait_for_event("version_unloaded")


def test_a_hold_that_another_process_ended_in_the_store_holds_nothing(followed: Daemon, store: Store) -> None:
    hold(followed, "1.1.0", "a")
    hold(followed, "1.2.0", "b")
    end_hold(store, POLICY, "a", by="another daemon")
    assert followed.wait_for_event("version_unloaded")["version"] == f"{POLICY}@1.1.0"
    (left,) = followed.ask("GET", HOLDS)[1]["holds"]
    assert (left["name"], left["is_held"]) == ("b", True)


def test_a_version_that_cannot_be_loaded_is_not_held(followed: Daemon, store: Store) -> None:
    blob = blob_of(store.root, f"{POLICY}@1.1.0", "model.onnx")
    blob.chmod(0o644)
    blob.write_bytes(b"")
    _, hold, _ = followed.ask("POST", HOLDS, {"name": "campaign-7", "version": "1.1.0", "ttl_s": 60})
    assert not hold["is_held"]
    failed = followed.operation(followed.ask("GET", f"/v1/operations/{hold['operation']}"))
    assert failed["outcome"] == "failed"
    assert "model.onnx" in failed["error"]
    assert followed.ask("GET", HOLDS)[1]["holds"] == []
    assert store.evaluation_holds(POLICY) == []
    assert store.history(POLICY)[-1].action == "end-hold"


def test_a_hold_that_is_cancelled_during_staging_is_not_made(followed: Daemon, store: Store) -> None:
    followed.ask("POST", HOLDS, {"name": "campaign-7", "version": "1.1.0", "ttl_s": 60})
    assert followed.ask("DELETE", f"{PATH}/stage")[0] == 200
    wait_until(lambda: store.evaluation_holds(POLICY) == [])
    assert followed.ask("GET", HOLDS)[1]["holds"] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("POST", HOLDS, {"name": "held", "version": "1.1.0", "ttl_s": 60}, 409, "hold-exists"),
        ("POST", HOLDS, {"name": "a", "version": "9.9.9", "ttl_s": 60}, 404, "version-not-found"),
        ("POST", HOLDS, {"name": "a", "version": "1.1.0"}, 400, "malformed"),
        ("POST", HOLDS, {"name": "a", "version": "1.1.0", "ttl_s": 0}, 400, "malformed"),
        ("POST", HOLDS, {"name": "a", "version": "1.1.0", "ttl_s": 1e9}, 400, "malformed"),
        ("POST", HOLDS, {"name": "a/b", "version": "1.1.0", "ttl_s": 60}, 400, "malformed"),
        ("DELETE", f"{HOLDS}/nobody", {}, 404, "hold-not-found"),
        ("GET", "/v1/policies/mars-lander/holds", None, 404, "policy-not-found"),
        ("POST", f"{PATH}/warmup", {"version": "1.1.0"}, 409, "cannot-switch"),
        ("POST", f"{PATH}/warmup", {"version": "9.9.9"}, 404, "version-not-found"),
        ("GET", "/v1/sessions?limit=0", None, 400, "malformed"),
        ("GET", "/v1/sessions?after=x", None, 400, "malformed"),
        ("GET", "/v1/audit?limit=1001", None, 400, "malformed"),
        ("GET", "/v1/audit?before=-1", None, 400, "malformed"),
    ],
)
def test_what_cannot_be_done_is_a_problem_and_changes_nothing(
    holding: Daemon, method: str, path: str, body: Any, status: int, kind: str
) -> None:
    before = holding.ask("GET", PATH)
    result, reply, _ = holding.ask(method, path, body)
    assert (result, reply["type"]) == (status, f"urn:pillion:{kind}")
    assert holding.ask("GET", PATH)[2]["ETag"] == before[2]["ETag"]
    assert [hold["name"] for hold in holding.ask("GET", HOLDS)[1]["holds"]] == ["held"]


def test_metrics_say_how_many_versions_are_held(holding: Daemon) -> None:
    assert holding.metric("pillion_held_versions") == 1


@pytest.fixture(scope="module")
def holding(module_daemon: StartDaemon, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """A daemon with a hold on the version that it serves, which no test changes."""
    root = tmp_path_factory.mktemp("store")
    publish_variant(root, "1.0.0", 0.0)
    publish_variant(root, "1.1.0", STEP)
    daemon = module_daemon(policy=f"{POLICY}@1.0.0", store=root, settings=SMALL_BATCHES)
    hold(daemon, "1.0.0", "held")
    return daemon


def test_the_second_of_two_operators_learns_that_the_first_changed_something(followed: Daemon) -> None:
    headers = {"If-Match": followed.ask("GET", PATH)[2]["ETag"]}
    body = {"name": "campaign-7", "version": "1.0.0", "ttl_s": 60}
    assert followed.ask("POST", HOLDS, body, headers)[0] == 201
    status, reply, _ = followed.ask("DELETE", f"{HOLDS}/campaign-7", {}, headers)
    assert (status, reply["type"]) == (412, "urn:pillion:changed-meanwhile")


def test_a_hold_with_a_version_in_staging_survives_a_restart_of_the_daemon(
    store: Store, start_daemon: StartDaemon, followed: Daemon
) -> None:
    followed.ask("POST", HOLDS, {"name": "campaign-7", "version": "1.1.0", "ttl_s": 600})
    assert followed.stop() == 0
    again = start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=SMALL_BATCHES)
    (hold,) = again.ask("GET", HOLDS)[1]["holds"]
    assert (hold["name"], hold["is_held"]) == ("campaign-7", True)
    with pillion.connect(again.address, version="==1.1.0") as session:
        assert session.begin().version == "1.1.0"
