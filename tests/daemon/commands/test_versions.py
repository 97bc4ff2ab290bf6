"""The operator's commands against real daemons: text, JSON and exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pillion
from pillion_artifacts import Store
from pillion_artifacts.store.aliases import move_alias
from pillion_bench.variants import POLICY, publish_variant
from tests.conftest import StartDaemon
from tests.docs.pages import OPERATING
from tests.harness import START_S_MAX, Daemon
from tests.terminal import on_a_terminal


def pillion_command(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with the admin port of `daemon`."""
    command = [sys.executable, "-m", "pillion", *words, "--admin", daemon.admin]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_S_MAX, check=False)


def json_of(daemon: Daemon, *words: str) -> dict[str, Any]:
    """The JSON that a command prints."""
    result = pillion_command(daemon, *words, "--json")
    assert (result.returncode, result.stderr) == (0, ""), result
    reply: dict[str, Any] = json.loads(result.stdout)
    return reply


def _serving(root: Path, start: StartDaemon) -> Daemon:
    """Serves `stable`, which is the first of two versions."""
    for number in range(2):
        publish_variant(root, f"1.{number}.0", number * 100.0)
    move_alias(Store(root), POLICY, "stable", "1.0.0", expected="")
    return start(policy=f"{POLICY}@stable", store=root, settings={"limits__rows_max": 64})


@pytest.fixture
def daemon(tmp_path: Path, start_daemon: StartDaemon) -> Daemon:
    """A daemon for one test."""
    return _serving(tmp_path / "store", start_daemon)


@pytest.fixture(scope="module")
def unchanged_daemon(tmp_path_factory: pytest.TempPathFactory, module_daemon: StartDaemon) -> Daemon:
    """A daemon that is asked only for what cannot be done."""
    return _serving(tmp_path_factory.mktemp("unchanged") / "store", module_daemon)


def test_an_operator_switches_inspects_and_rolls_back(daemon: Daemon, tmp_path: Path) -> None:
    switched = json_of(daemon, "switch", POLICY, "1.1.0", "--reason", "it flies better", "--wait")
    assert (switched["outcome"], switched["reason"]) == ("done", "it flies better")
    status = json_of(daemon, "status")
    assert (status["stable"], status["previous"], status["follows"]) == ("1.1.0", "1.0.0", "stable")
    roles = {entry["version"]: entry["role"] for entry in json_of(daemon, "versions")["versions"]}
    assert roles == {"1.0.0": "previous", "1.1.0": "stable"}
    rolled = json_of(daemon, "rollback", "--reason", "it does not", "--wait")
    assert (rolled["version"], rolled["was"]) == ("1.0.0", "1.1.0")
    reasons = [record.reason for record in Store(tmp_path / "store").history(POLICY)[-2:]]
    assert reasons == ["it flies better", "it does not"]


def test_with_wait_a_terminal_shows_the_current_step(daemon: Daemon) -> None:
    words = ["stage", POLICY, "1.1.0", "--reason", "for tonight", "--wait", "--admin", daemon.admin]
    out, shown = on_a_terminal([sys.executable, "-m", "pillion", *words])
    assert re.fullmatch(rf"stage \d+: {POLICY}@1\.1\.0 done\n", out)
    assert re.search(rf"{POLICY}@1\.1\.0: (starting|verifying|loading|certifying)", shown)


def test_a_canary_and_a_shadow_each_change_their_own_part_of_the_route(daemon: Daemon, tmp_path: Path) -> None:
    publish_variant(tmp_path / "store", "1.2.0", 200.0)
    arms = [{"name": "bold", "version": "1.1.0", "share": 0.2}]
    path = f"/v1/policies/{POLICY}/route"
    daemon.operation(daemon.ask("PUT", path, {"arms": arms, "reason": "an experiment"}))

    def now() -> tuple[list[str], str | None]:
        reply = json_of(daemon, "status")
        return [arm["name"] for arm in reply["route"]], reply["shadow"] and reply["shadow"]["version"]

    json_of(daemon, "shadow", POLICY, "1.1.0", "--share", "0.5", "--reason", "to compare", "--wait")
    assert now() == (["bold"], "1.1.0")
    json_of(daemon, "canary", POLICY, "1.2.0", "--share", "0.1", "--reason", "a try", "--wait")
    assert now() == (["canary", "bold"], "1.1.0")
    json_of(daemon, "shadow", POLICY, "--off", "--reason", "seen enough", "--wait")
    assert now() == (["canary", "bold"], None)
    json_of(daemon, "canary", POLICY, "--share", "0", "--reason", "tried", "--wait")
    assert now() == (["bold"], None)


def test_the_report_of_a_shadow_is_a_table_or_json(daemon: Daemon) -> None:
    begun = pillion_command(daemon, "shadow", POLICY, "1.1.0", "--reason", "to compare", "--wait")
    assert (begun.returncode, begun.stderr) == (0, ""), begun
    with pillion.connect(daemon.address) as session, session.begin(seed=1) as episode:
        for _ in range(10):
            episode.act(np.zeros((5, 5), np.float32), deterministic=True)
    deadline_s = time.monotonic() + START_S_MAX
    while json_of(daemon, "shadow", POLICY)["rows"] < 10:
        assert time.monotonic() < deadline_s
    text = pillion_command(daemon, "shadow", POLICY).stdout
    assert text.startswith(f"{POLICY}@1.1.0 beside 1.0.0, share 1, running\n10 rows compared; not compared: none;")
    assert "the actions agree in 100.00 % of them (they are equal)" in text
    assert re.search(r"^action +10 +– +– *$", text, re.MULTILINE)
    assert re.search(r"^value +0 +100 +100 *$", text, re.MULTILINE)
    assert "10 runs: p50" in text
    assert "\nshadow: 1.1.0 beside 1.0.0, share 1, running\n" in pillion_command(daemon, "status").stdout


def test_tables_show_the_same_as_the_json(daemon: Daemon) -> None:
    with pillion.connect(daemon.address) as session, session.begin():
        result = pillion_command(daemon, "stage", POLICY, "1.1.0", "--wait")
        assert result.stdout == f"stage 1: {POLICY}@1.1.0 done\n"
        text = pillion_command(daemon, "status").stdout
    assert text.startswith(f"{POLICY}: ready, 1 sessions, follows stable\n")
    assert re.search(r"^1\.0\.0 +stable +\d +(inline|worker) +exact +nobody", text, re.MULTILINE)
    assert re.search(r"^1\.1\.0 +resident +0 +(inline|worker) +exact", text, re.MULTILINE)
    assert re.search(
        r"^1\.1\.0 runs (inline on cpu: it is bounded|in a worker on cpu: \d+ rows take)", text, re.MULTILINE
    )
    assert re.search(
        r"^1\.1\.0 +resident +(inline|worker) +[0-9a-f]{12}", pillion_command(daemon, "versions").stdout, re.MULTILINE
    )


@pytest.mark.parametrize(
    ("words", "exit_code", "text"),
    [
        (["switch", POLICY, "9.0.0", "--reason", "x"], os.EX_USAGE, "has no version that fits"),
        (["switch", "mars-lander", "1.0.0", "--reason", "x"], os.EX_USAGE, f"expected {POLICY}, got mars-lander"),
        (["switch", POLICY, "1.1.0"], os.EX_USAGE, "--reason"),
        (["shadow", POLICY, "1.1.0"], os.EX_USAGE, "--reason"),
        (["shadow", POLICY, "1.1.0", "--off", "--reason", "x"], os.EX_USAGE, "expected VERSION or --off"),
        (["shadow", POLICY], os.EX_USAGE, "there has been no shadow"),
        (["rollback", "--reason", "x"], os.EX_UNAVAILABLE, "no version was served before 1.0.0"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(
    unchanged_daemon: Daemon, words: list[str], exit_code: int, text: str
) -> None:
    result = pillion_command(unchanged_daemon, *words)
    assert (result.returncode, result.stdout) == (exit_code, "")
    assert text in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_drain_with_wait_returns_when_the_daemon_is_gone(daemon: Daemon) -> None:
    assert json_of(daemon, "drain", "--reason", "a new kernel", "--wait") == {"phase": "draining", "gone": True}
    assert daemon.process.wait(START_S_MAX) == 0
    result = pillion_command(daemon, "status")
    assert (result.returncode, result.stdout) == (os.EX_UNAVAILABLE, "")
    assert "is pilliond running?" in result.stderr


def test_every_operators_command_of_the_page_runs(daemon: Daemon) -> None:
    text = OPERATING.read_text()
    lines = [
        line
        for line in re.findall(r"^\.venv/bin/pillion (.*)$", text, re.MULTILINE)
        if not line.startswith(("artifact", "token"))
    ]
    assert len(lines) >= 6
    for line in sorted(lines, key=lambda line: line.startswith("drain")):
        result = pillion_command(daemon, *shlex.split(line.split("  #")[0]))
        assert (result.returncode, result.stderr) == (0, ""), line
