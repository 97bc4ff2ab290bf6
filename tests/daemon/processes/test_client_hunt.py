"""Clients of the lane that are killed in any phase leave nothing behind; `make hunt` kills more of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import StartDaemon
from tests.daemon.support.client_lifecycle import PHASES, lifecycle
from tests.daemon.support.policies.wide import publish_wide
from tests.harness import COMMAND_S_MAX, ROOT

KILLS = 300


def test_killed_in_each_phase_and_at_any_moment_clients_leave_nothing_and_others_notice_nothing() -> None:
    command = [sys.executable, "-m", "tests.daemon.tools.client_hunt", "--kills", str(KILLS), "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    report = json.loads(result.stdout)
    assert report["kills"] == KILLS
    assert set(report["kills_in"]) == {*PHASES, "any moment"}
    assert all(acts > 1 for acts in report["background_acts"])
    assert report["before"]["slot_mappings"] == 1, "the background client on the lane has slots"


def test_a_life_has_every_phase_that_is_listed(start_daemon: StartDaemon, short_path: Path) -> None:
    publish_wide(short_path / "life-store")
    daemon = start_daemon(policy="wide", store=short_path / "life-store", listen=[f"lane://{short_path}/life.lane"])
    assert tuple(lifecycle(daemon.address)) == PHASES
