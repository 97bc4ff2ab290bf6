"""The documents of the daemon are true, and their commands work."""

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
from tests.harness import Daemon

ROOT = Path(__file__).parents[3]


def commands(document: Path) -> list[str]:
    """Every command line in the shell blocks of a document."""
    blocks = re.findall(r"^```sh\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip()]


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
        assert process.wait(30) == 0


def act_everywhere(ready: dict[str, Any]) -> None:
    """Runs one act at each address of a daemon's `ready` record."""
    for address in ready["listen"]:
        with pillion.connect(address) as session, session.begin(seed=1) as episode:
            assert episode.act(np.zeros(8, np.float32)).shape == ()


def test_the_example_settings_name_every_setting_at_its_default() -> None:
    file = ROOT / "conf" / "pillion.toml"
    assert load_settings(file, {}, {}) == Settings()
    assert tomllib.loads(file.read_text()) == msgspec.to_builtins(Settings())


def test_the_commands_of_the_daemons_page_start_it_on_every_carrier_and_show_its_health(short_path: Path) -> None:
    start, ask, *_ = commands(ROOT / "daemon" / "README.md")
    folder = short_path / "daemon-page"
    for printed, ours in (
        ("/tmp/pillion/", f"{folder}/"),
        ("tcp://127.0.0.1:5755", "tcp://127.0.0.1:0"),
    ):
        assert printed in start
        start = start.replace(printed, ours)
    with typed(start, short_path) as ready:
        assert [address.partition(":")[0] for address in ready["listen"]] == ["lane", "ipc", "tcp"]
        act_everywhere(ready)
        curl = shlex.split(ask.replace("http://127.0.0.1:9475", ready["admin"][-1]))
        result = subprocess.run(curl, capture_output=True, text=True, timeout=30, check=True)
        assert json.loads(result.stdout)["phase"] == "ready"


def test_the_command_of_the_settings_page_serves_the_lane_and_zeromq_where_the_users_clients_look(
    short_path: Path,
) -> None:
    (start,) = commands(ROOT / "conf" / "README.md")
    runtime = short_path / "settings-page"
    with typed(start, runtime) as ready:
        assert ready["listen"] == [f"lane://{runtime}/pillion/lane.sock", f"ipc://{runtime}/pillion/zmq.sock"]
        act_everywhere(ready)


def test_the_examples_of_the_kserve_section_work(daemon: Daemon, start_daemon: StartDaemon, tmp_path: Path) -> None:
    page = ROOT / "daemon" / "README.md"
    look, ask = [command for command in commands(page) if "/v2/" in command]

    def answered(command: str) -> dict[str, Any]:
        command = command.replace("http://127.0.0.1:9475", daemon.tcp_admin)
        command = command.replace("$XDG_RUNTIME_DIR/pillion/admin.sock", daemon.admin.removeprefix("unix://"))
        result = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=30, check=True)
        reply: dict[str, Any] = json.loads(result.stdout)
        return reply

    assert answered(look)["inputs"] == [{"name": "observation", "datatype": "FP32", "shape": [-1, 8]}]
    assert answered(ask)["outputs"][0]["shape"] == [1]
    (code,) = [
        block
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        if "tritonclient" in block
    ]
    (tmp_path / "operate-token").write_text(make_token(tmp_path / "tokens", "triton", "operate"))
    guarded = start_daemon(settings={"admin__tokens_file": tmp_path / "tokens"})
    code = code.replace("127.0.0.1:9475", guarded.tcp_admin.removeprefix("http://"))
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"\[[0-3] [0-3]\] 1\.0\.0\n", result.stdout)
