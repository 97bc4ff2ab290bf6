"""The commands and the examples of the daemon's pages work as they are printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import pillion
from pilliond.settings.schema import Settings, load_settings
from tests.conftest import StartDaemon
from tests.daemon.support.tokens import make_token
from tests.docs.pages import OPERATING, REFERENCE, blocks, commands
from tests.harness import START_S_MAX, Daemon

ROOT = Path(__file__).parents[3]


@contextmanager
def typed(command: str, runtime: Path) -> Iterator[dict[str, Any]]:
    """Runs a `pilliond` command of a document, with `runtime` as the user's runtime folder; yields its `ready` record."""
    words = shlex.split(command)
    words[0] = words[0].replace(".venv/bin", str(Path(sys.executable).parent))
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "PILLION_ADMIN__LISTEN": "unix://,http://127.0.0.1:0"}
    with subprocess.Popen(
        [*words, "--log-format", "json"], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            assert line.startswith("{"), line
            yield json.loads(line)
        finally:
            process.terminate()
        assert process.wait(START_S_MAX) == 0


def act_everywhere(ready: dict[str, Any]) -> None:
    """Acts once at each address of a daemon's `ready` record."""
    for address in ready["listen"]:
        with pillion.connect(address) as session, session.begin(seed=1) as episode:
            assert episode.act(np.zeros(8, np.float32)).shape == ()


def test_the_example_settings_name_every_setting_at_its_default() -> None:
    file = ROOT / "conf" / "pillion.toml"
    assert load_settings(file, {}, {}) == Settings()
    assert tomllib.loads(file.read_text()) == msgspec.to_builtins(Settings())


def asked(command: str, ready: dict[str, Any]) -> dict[str, Any]:
    """Runs a `curl` command of a document, at the admin port of the daemon that printed `ready`; returns its JSON."""
    words = shlex.split(command.replace("http://127.0.0.1:9475", ready["admin"][-1]))
    result = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_the_commands_of_the_operating_page_start_a_daemon_on_every_carrier_and_ask_for_its_health(
    short_path: Path,
) -> None:
    start, ask, *_ = commands(OPERATING)
    folder = short_path / "operating-page"
    for printed, ours in (
        ("/tmp/pillion/", f"{folder}/"),
        ("tcp://127.0.0.1:5755", "tcp://127.0.0.1:0"),
    ):
        assert printed in start
        start = start.replace(printed, ours)
    with typed(start, short_path) as ready:
        assert [address.partition(":")[0] for address in ready["listen"]] == ["lane", "ipc", "tcp"]
        act_everywhere(ready)
        assert asked(ask, ready)["phase"] == "ready"


def test_the_commands_of_the_daemons_page_start_one_and_ask_for_its_health(short_path: Path) -> None:
    start, ask = commands(ROOT / "daemon" / "README.md")
    with typed(start, short_path / "daemon-page") as ready:
        assert asked(ask, ready)["phase"] == "ready"


def test_the_command_of_the_settings_page_serves_the_lane_and_zeromq_at_the_default_addresses(
    short_path: Path,
) -> None:
    (start,) = commands(ROOT / "conf" / "README.md")
    runtime = short_path / "settings-page"
    with typed(start, runtime) as ready:
        assert ready["listen"] == [f"lane://{runtime}/pillion/lane.sock", f"ipc://{runtime}/pillion/zmq.sock"]
        act_everywhere(ready)


def test_the_examples_of_the_kserve_section_are_answered(
    daemon: Daemon, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    look, ask = [command for command in commands(REFERENCE) if "/v2/" in command]

    def answered(command: str) -> dict[str, Any]:
        command = command.replace("http://127.0.0.1:9475", daemon.tcp_admin)
        command = command.replace("$XDG_RUNTIME_DIR/pillion/admin.sock", daemon.admin.removeprefix("unix://"))
        result = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=START_S_MAX, check=True)
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    assert answered(look)["inputs"] == [{"name": "observation", "datatype": "FP32", "shape": [-1, 8]}]
    assert answered(ask)["outputs"][0]["shape"] == [1]
    (code,) = blocks(REFERENCE, "python")
    (tmp_path / "operate-token").write_text(make_token(tmp_path / "tokens", "triton", "operate"))
    guarded = start_daemon(settings={"admin__tokens_file": tmp_path / "tokens"})
    code = code.replace("127.0.0.1:9475", guarded.tcp_admin.removeprefix("http://"))
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=2 * START_S_MAX, check=False, cwd=tmp_path
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"\[[0-3] [0-3]\] 1\.0\.0\n", result.stdout)
