"""A Python policy that misbehaves while it is staged: it is refused in one line, and what serves notices nothing."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import pillion
from tests.conftest import StartDaemon
from tests.daemon.support.policies.other_engines import publish_hostile
from tests.harness import Daemon, wait_until
from tests.worker.support.installed import HOSTILE, make_environment

PATH = "/v1/policies/hostile"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "store"
    publish_hostile(root, "1.0.0")
    return root


@pytest.fixture(scope="module")
def daemon(root: Path, tmp_path_factory: pytest.TempPathFactory, module_daemon: StartDaemon) -> Daemon:
    """Serves version 1.0.0, which does as it should. A staging may take a few seconds."""
    python = make_environment(tmp_path_factory.mktemp("environment"), HOSTILE)
    settings = {
        "engine__python": python,
        "engine__worker_memory_mb_max": 1_000,
        "trust__code": HOSTILE,
        "limits__rows_max": "2",
        "staging__timeout_s": "12",
    }
    return module_daemon(policy="hostile@1.0.0", store=root, settings=settings)


def check_serves(daemon: Daemon) -> None:
    with pillion.connect(daemon.address) as session, session.begin(seed=1) as episode:
        assert episode.act(np.array([3.0], np.float32)).tolist() == [6.0]


def stage(daemon: Daemon, version: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    return daemon.ask("POST", f"{PATH}/stage", {"version": version})


@pytest.mark.parametrize(
    ("number", "arguments", "why"),
    [
        (1, {"at_load": "raise"}, "its factory raised ValueError: the policy is broken"),
        (2, {"at_load": "exit"}, "its factory raised SystemExit: 3"),
        (3, {"at_load": "crash"}, "its worker was killed by SIGSEGV"),
        (4, {"at_load": "end"}, "its worker ended with exit code 0"),
        (5, {"always": "wrong_name"}, "its policy returned no 'action', but actions"),
        (6, {"always": "few_rows"}, "output 'action': expected float32 [2, 1], got float32 [1, 1]"),
        (7, {"always": "nan"}, "output 'action': expected finite numbers, got a NaN or an infinity"),
    ],
)
def test_what_it_does_is_told_in_one_line(
    daemon: Daemon, root: Path, number: int, arguments: dict[str, str], why: str
) -> None:
    publish_hostile(root, f"1.{number}.0", **arguments)
    operation = daemon.operation(stage(daemon, f"1.{number}.0"))
    assert operation["outcome"] == "failed"
    assert operation["error"].startswith(why)
    assert "\n" not in operation["error"]
    check_serves(daemon)


def test_one_that_hangs_is_ended_with_its_worker(daemon: Daemon, root: Path) -> None:
    publish_hostile(root, "1.8.0", at_load="hold_the_gil")
    before = {child.pid for child in psutil.Process(daemon.pid).children(recursive=True)}
    answer = stage(daemon, "1.8.0")

    def started() -> list[psutil.Process]:
        children = psutil.Process(daemon.pid).children(recursive=True)
        return [child for child in children if child.pid not in before]

    def is_worker(child: psutil.Process) -> bool:
        # One that has just ended, such as the check of the interpreter, has no command any more.
        with contextlib.suppress(psutil.NoSuchProcess):
            command = child.cmdline()
            return any(word.endswith("bootstrap.py") for word in command) and "--check" not in command
        return False

    wait_until(lambda: any(map(is_worker, started())))
    staging = started()[0]
    # A pause, and the end, reach the worker as they reach the staging process.
    assert {os.getpgid(child.pid) for child in started()} == {staging.pid}
    assert {child.nice() for child in started()} == {staging.nice()}
    assert staging.nice() > 0
    operation = daemon.operation(answer)
    assert operation["outcome"] == "failed"
    assert "12" in operation["error"]
    wait_until(lambda: not started())
    check_serves(daemon)
