"""A store that is marked read-only, as the policies that ship are, serves like any other and stays as it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import pillion
from pillion_artifacts import Store
from pillion_artifacts.errors import StoreError
from pillion_artifacts.store.aliases import move_alias, remove_alias
from pillion_artifacts.store.transaction import read_only_mark
from pillion_bench.variants import POLICY, publish_variant
from tests.bench.conftest import run_pillion
from tests.conftest import StartDaemon
from tests.daemon.rollout.test_releases import OBSERVATION, PATH, STEP, switch
from tests.harness import STORE, Daemon, copy_examples, traces

REASON = "the store is marked read-only: copy the folder to change the copy"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Versions 1.0.0 and 1.1.0, marked read-only."""
    for number in range(2):
        publish_variant(tmp_path / "store", f"1.{number}.0", number * STEP)
    shutil.rmtree(tmp_path / "store" / "staging")
    (tmp_path / "store" / "lock").unlink(missing_ok=True)
    read_only_mark(tmp_path / "store").touch()
    return Store(tmp_path / "store")


def served(daemon: Daemon) -> str:
    """Returns the version that answers a new episode."""
    with pillion.connect(daemon.address) as session, session.begin(seed=1) as episode:
        episode.act(OBSERVATION)
        return session.version


def verb(daemon: Daemon, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Returns the ended operation of a verb."""
    return daemon.operation(daemon.ask(method, f"{PATH}/{path}", {**body, "by": "ann", "reason": "a try"}))


def test_the_store_that_ships_is_marked() -> None:
    assert read_only_mark(STORE).is_file()


def test_a_daemon_and_its_verbs_leave_the_store_as_it_is(store: Store, start_daemon: StartDaemon) -> None:
    before = traces(store.root)
    daemon = start_daemon(policy=f"{POLICY}@1.0.0", store=store.root)
    assert served(daemon) == "1.0.0"
    assert verb(daemon, "POST", "stage", {"version": "1.1.0"})["outcome"] == "done"
    arms = [{"name": "canary", "version": "1.1.0", "share": 0.5}]
    assert verb(daemon, "PUT", "route", {"arms": arms})["outcome"] == "done"
    assert verb(daemon, "PUT", "route", {"arms": []})["outcome"] == "done"
    assert switch(daemon, "1.1.0")["outcome"] == "done"
    assert served(daemon) == "1.1.0"
    assert verb(daemon, "POST", "rollback", {})["outcome"] == "done"
    assert served(daemon) == "1.0.0"
    assert {event["error"] for event in daemon.events("route_not_kept")} == {f"{POLICY}: route: {REASON}"}
    assert daemon.events("audit_failed")
    assert daemon.stop() == 0
    assert traces(store.root) == before


def test_a_hold_that_could_not_be_kept_is_refused(store: Store, start_daemon: StartDaemon) -> None:
    before = traces(store.root)
    daemon = start_daemon(policy=f"{POLICY}@1.0.0", store=store.root)
    body = {"name": "campaign", "version": "1.1.0", "ttl_s": 60}
    status, reply, _ = daemon.ask("POST", f"{PATH}/holds", body)
    assert (status, reply["type"].rpartition(":")[2]) == (503, "store"), reply
    assert REASON in reply["detail"]
    assert traces(store.root) == before


def test_commands_read_the_policies_that_ship_and_leave_nothing_there(tmp_path: Path) -> None:
    copy = tmp_path / "examples"
    shutil.copytree(STORE, copy)
    read_only_mark(copy).touch()
    before = traces(copy)
    for words in (
        ["list"],
        ["show", POLICY],
        ["history"],
        ["verify", "--all"],
        ["export", str(tmp_path / "x.tar"), POLICY],
    ):
        result = run_pillion("artifact", *words, "--store", str(copy))
        assert (result.returncode, result.stderr) == (0, ""), words
    for words in (
        ["alias", f"{POLICY}@stable", "1.0.0"], ["pin", POLICY], ["gc"], ["fsck", "--repair"],
        ["import", str(tmp_path / "x.tar")],
    ):  # fmt: skip
        result = run_pillion("artifact", *words, "--store", str(copy))
        assert result.returncode == os.EX_NOPERM, words
        assert result.stderr.endswith(f"{REASON}\n")
        assert result.stderr.count("\n") == 1
    assert traces(copy) == before


def test_a_copy_is_not_marked_and_can_be_changed(tmp_path: Path) -> None:
    store = copy_examples(tmp_path / "store")
    move_alias(store, POLICY, "stable", "1.0.0", expected="")
    read_only_mark(store.root).touch()
    with pytest.raises(StoreError, match=REASON):
        remove_alias(store, POLICY, "stable", expected="1.0.0")
    assert store.resolve(f"{POLICY}@stable").version == "1.0.0"
