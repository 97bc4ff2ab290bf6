"""The root README: its example and its commands work as they are printed, and each promise has a test."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import COMMAND_S_MAX, START_S_MAX, Daemon

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SOCKET = "ipc:///tmp/pillion/zmq.sock"
ADMIN = "http://127.0.0.1:9475"


def blocks(language: str) -> list[str]:
    """Returns the code blocks of the README in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Returns every command line of the README, without its comment."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


def type_it(command: str, daemon: Daemon) -> subprocess.CompletedProcess[str]:
    """Runs a command of the README against the test's own daemon."""
    line = command.replace(SOCKET, daemon.address).replace(ADMIN, daemon.tcp_admin)
    words = shlex.split(line)
    words[0] = words[0].replace(".venv/bin", str(Path(sys.executable).parent))
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=COMMAND_S_MAX, check=False)


def test_the_ten_lines_run_as_they_stand(daemon: Daemon) -> None:
    (example,) = blocks("python")
    assert len(example.splitlines()) <= 10
    code = example.replace(SOCKET, daemon.address)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=2 * START_S_MAX, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("lunar-lander 1.")


def test_every_command_is_typed_by_a_test_or_by_ci() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    for command in commands():
        by_ci = command.startswith("make ") and f"\n{command}\n" in ci
        assert by_ci or command.startswith((".venv/bin/pilliond ", ".venv/bin/pillion ", "curl ")), command


def test_the_daemon_starts_as_the_readme_says(short_path: Path) -> None:
    (command,) = [command for command in commands() if command.startswith(".venv/bin/pilliond")]
    words = shlex.split(command.replace(SOCKET, f"ipc://{short_path}/readme.sock"))
    words[0] = words[0].replace(".venv/bin", str(Path(sys.executable).parent))
    with subprocess.Popen([*words, "--admin", ""], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert "ready" in process.stderr.readline()
        finally:
            process.terminate()
        assert process.wait(START_S_MAX) == 0


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith("curl ")])
def test_the_admin_port_answers_as_the_readme_asks(daemon: Daemon, command: str) -> None:
    result = type_it(command, daemon)
    assert result.returncode == 0
    assert "lunar-lander" in result.stdout


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith(".venv/bin/pillion ")])
def test_the_bench_runs_as_the_readme_says(daemon: Daemon, command: str) -> None:
    result = type_it(command, daemon)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["n"] > 0


def test_every_promise_has_a_test_that_exists() -> None:
    listed = re.search(r"^## Promises\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    assert listed
    promises = [
        " ".join(item.split()) for item in re.findall(r"^- (.*?)(?=^- |\Z)", listed[1], re.MULTILINE | re.DOTALL)
    ]
    assert len(promises) >= 8
    table = (ROOT / "tests" / "README.md").read_text()
    rows = dict(re.findall(r"^\| (.+?) \| (`.+?`) \|$", table, re.MULTILINE))
    assert list(rows) == promises
    for tests in rows.values():
        for name in re.findall(r"`([^`]+)`", tests):
            file, _, function = name.partition("::")
            functions = {node.name for node in ast.walk(ast.parse((ROOT / "tests" / file).read_text()))
                         if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}  # fmt: skip
            assert function in functions, name
