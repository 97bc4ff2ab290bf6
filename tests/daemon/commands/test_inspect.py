"""Sessions, the audit log, warm-ups and holds: the admin port and the commands, against real daemons."""

from __future__ import annotations

import os
import re
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import pillion
from pillion_artifacts import Store
from pillion_artifacts.store.aliases import move_alias
from pillion_bench.variants import POLICY, publish_variant
from tests.conftest import StartDaemon
from tests.daemon.commands.test_versions import json_of, pillion_command
from tests.harness import USER, Daemon

PATH = f"/v1/policies/{POLICY}"
OBSERVATION = np.linspace(-1, 1, 25, dtype=np.float32).reshape(5, 5)


def _publish(root: Path) -> Store:
    """Versions 1.0.0 and 1.1.0; `stable` is the first."""
    for number in range(2):
        publish_variant(root, f"1.{number}.0", number * 100.0)
    store = Store(root)
    move_alias(store, POLICY, "stable", "1.0.0", expected="", by="a test", reason="the first")
    return store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store for one test."""
    return _publish(tmp_path / "store")


def _serving(store: Store, start: StartDaemon, short_path: Path) -> Daemon:
    """Serves `stable` on both carriers."""
    listen = [f"lane://{short_path / f'looks-{os.urandom(4).hex()}.sock'}", f"ipc://{short_path}/{os.urandom(4).hex()}"]
    return start(policy=f"{POLICY}@stable", store=store.root, listen=listen)


@pytest.fixture
def daemon(store: Store, start_daemon: StartDaemon, short_path: Path) -> Daemon:
    """A daemon for one test."""
    return _serving(store, start_daemon, short_path)


@pytest.fixture(scope="module")
def session_daemon(tmp_path_factory: pytest.TempPathFactory, module_daemon: StartDaemon, short_path: Path) -> Daemon:
    """A daemon of which tests see their own sessions, and nothing else."""
    return _serving(_publish(tmp_path_factory.mktemp("sessions") / "store"), module_daemon, short_path)


# Sessions


def test_every_session_is_listed_with_its_groups_rows_and_acts(session_daemon: Daemon) -> None:
    lane, zmq = session_daemon.addresses
    with (
        pillion.connect(lane, lock_step=True) as first,
        pillion.connect(zmq, fallback="zeros", lock_step=False) as second,
        first.begin_many(3) as group,
    ):
        for _ in range(4):
            group.act(np.stack([OBSERVATION] * 3))
        with second.begin() as ended:
            ended.act(OBSERVATION)
        reply = json_of(session_daemon, "sessions")
        mine, other = reply["sessions"]
        assert reply["next"] is None
        assert (mine["carrier"], mine["version"], mine["lock_step"], mine["fallback"]) == (
            "lane",
            "1.0.0",
            True,
            "error",
        )
        assert (mine["groups"], mine["rows"], mine["acts"]) == (1, 3, 4)
        assert (other["carrier"], other["lock_step"], other["fallback"]) == ("zmq", False, "zeros")
        assert (other["groups"], other["rows"], other["acts"]) == (0, 0, 1)
        assert mine["id"] < other["id"]
        assert all(session["idle_s"] >= 0 and not session["is_evaluation"] for session in reply["sessions"])
        table = pillion_command(session_daemon, "sessions").stdout
        assert re.search(rf"^\d+ +lane +{POLICY} +1\.0\.0 +1 +3 +4 +yes +error", table, re.MULTILINE)
    assert json_of(session_daemon, "sessions")["sessions"] == []


def test_the_list_of_sessions_never_shows_the_session_number_of_the_wire(session_daemon: Daemon) -> None:
    with pillion.connect(session_daemon.address) as session:
        secret = session._conversation.session
        assert secret > 1_000_000
        assert str(secret) not in session_daemon.get("/v1/sessions")[1]


def test_many_sessions_are_listed_page_by_page_and_none_is_left_out(session_daemon: Daemon) -> None:
    with ExitStack() as stack:
        sessions = [stack.enter_context(pillion.connect(session_daemon.address)) for _ in range(300)]
        sessions[7].begin()
        whole = session_daemon.ask("GET", "/v1/sessions?limit=1000")[1]
        assert (len(whole["sessions"]), whole["next"]) == (300, None)
        paged, after = [], 0
        while after is not None:
            page = session_daemon.ask("GET", f"/v1/sessions?limit=70&after={after}")[1]
            assert len(page["sessions"]) <= 70
            paged += page["sessions"]
            after = page["next"]
        numbers = [session["id"] for session in paged]
        assert numbers == sorted(set(numbers)) == [session["id"] for session in whole["sessions"]]
        assert [session["groups"] for session in paged].count(1) == 1
        result = pillion_command(session_daemon, "sessions", "--limit", "20")
        assert result.stdout.splitlines()[-1] == f"there are more: --after {numbers[19]}"


# Audit


def test_the_audit_log_is_listed_newest_first_and_page_by_page(daemon: Daemon, store: Store) -> None:
    daemon.operation(daemon.ask("POST", f"{PATH}/switch", {"version": "1.1.0", "by": "ann", "reason": "better"}))
    written = store.history(POLICY)
    reply = daemon.ask("GET", "/v1/audit")[1]
    assert (reply["faults"], reply["next"]) == ([], None)
    assert [record["sequence"] for record in reply["records"]] == [record.sequence for record in reversed(written)]
    newest = reply["records"][0]
    assert (newest["action"], newest["by"], newest["reason"]) == ("alias", f"ann (user {USER})", "better")
    first = daemon.ask("GET", "/v1/audit?limit=2")[1]
    rest = daemon.ask("GET", f"/v1/audit?limit=1000&before={first['next']}")[1]
    assert first["records"] + rest["records"] == reply["records"]
    result = pillion_command(daemon, "audit", "--limit", "1")
    assert re.search(rf"^{newest['sequence']} .* ann \(user {USER}\) +alias +.*better$", result.stdout, re.MULTILINE)
    assert result.stdout.splitlines()[-1] == f"there are more: --before {newest['sequence']}"


def test_a_tampered_log_is_reported(daemon: Daemon, store: Store) -> None:
    path = store.root / "audit.jsonl"
    path.write_text(path.read_text().replace('"reason":"the first"', '"reason":"the last!"'))
    assert "was changed after it was written" in json_of(daemon, "audit")["faults"][0]
    lines = pillion_command(daemon, "audit").stdout.splitlines()
    assert lines[-1].startswith("the log is not intact: ")


# Warming up


def test_a_warmup_runs_every_bucket_of_a_loaded_version_while_others_act(daemon: Daemon) -> None:
    with pillion.connect(daemon.address) as session, session.begin(seed=1) as episode:
        before = [episode.act(OBSERVATION).tobytes() for _ in range(3)]
        rows = daemon.metric("pillion_inferences_total")
        begun = daemon.ask("POST", f"{PATH}/warmup", {"by": "ann", "reason": "before the show"})
        assert begun[0] == 202
        during = [episode.act(OBSERVATION).tobytes() for _ in range(3)]
        done = daemon.operation(begun)
        assert (done["kind"], done["version"], done["outcome"], done["by"]) == (
            "warmup",
            "1.0.0",
            "done",
            f"ann (user {USER})",
        )
        assert done["stall_us"] > 0
        # Ten ticks, a bucket each: 1 to 256, and nobody's acts are counted.
        assert done["took_s"] > 0.5
        assert during == before
        assert daemon.metric("pillion_inferences_total") == rows + 3
    daemon.operation(daemon.ask("POST", f"{PATH}/stage", {"version": "1.1.0"}))
    warmed = json_of(daemon, "warmup", POLICY, "1.1.0", "--wait")
    assert (warmed["version"], warmed["outcome"]) == ("1.1.0", "done")


# Leases


def test_a_warmup_of_a_version_in_a_worker_runs_every_bucket_and_ends(store: Store, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(policy=POLICY, store=store.root, settings={"engine__placement": "worker"})
    with pillion.connect(daemon.address) as session, session.begin(seed=1) as episode:
        before = episode.act(OBSERVATION).tobytes()
        done = daemon.operation(daemon.ask("POST", f"{PATH}/warmup", {}))
        assert (done["kind"], done["outcome"], done["error"]) == ("warmup", "done", "")
        assert episode.act(OBSERVATION).tobytes() == before


def test_an_operator_adds_lists_and_ends_a_hold(daemon: Daemon) -> None:
    words = [
        "holds",
        "add",
        POLICY,
        "1.1.0",
        "--name",
        "campaign-7",
        "--for",
        "24h",
        "--reason",
        "the paper",
        "--wait",
    ]
    hold = json_of(daemon, *words)
    assert (hold["name"], hold["version"], hold["is_held"], hold["reason"]) == (
        "campaign-7",
        "1.1.0",
        True,
        "the paper",
    )
    until_s = time.mktime(time.strptime(hold["until"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    assert abs(until_s - time.time() - 86_400) < 600
    assert [each["name"] for each in json_of(daemon, "holds")["holds"]] == ["campaign-7"]
    table = pillion_command(daemon, "holds").stdout
    assert re.search(r"^campaign-7 +1\.1\.0 +20\S+Z +yes +\S+ +the paper", table, re.MULTILINE)
    assert re.search(r"^1\.1\.0 +evaluation", pillion_command(daemon, "status").stdout, re.MULTILINE)
    result = pillion_command(daemon, "holds", "end", POLICY, "campaign-7", "--reason", "done")
    assert re.fullmatch(rf"hold campaign-7: {POLICY}@1\.1\.0 until 20\S+Z, not held\n", result.stdout)
    assert json_of(daemon, "holds")["holds"] == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["holds", "add", POLICY, "1.1.0", "--name", "a", "--for", "a while", "--reason", "x"],
            "such as 90m, 24h or 7d",
        ),
        (["holds", "add", POLICY, "1.1.0", "--name", "a", "--for", "1h"], "--reason"),
        (["holds", "end", POLICY, "nobody", "--reason", "x"], "there is no evaluation hold 'nobody'"),
        (["warmup", "mars-lander"], f"expected {POLICY}, got mars-lander"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(highway_daemon: Daemon, words: list[str], text: str) -> None:
    result = pillion_command(highway_daemon, *words)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (os.EX_USAGE, "", 1)
    assert text in result.stderr
