"""`engine.python`: workers of real daemons in other interpreters, and interpreters that are missing, wrong or break later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pillion
from tests.conftest import StartDaemon
from tests.daemon.support.policies.other_engines import OBSERVATIONS, perceptron_actions, publish_perceptron
from tests.daemon.support.policies.shadow import publish_times, times
from tests.daemon.support.started import refused_start
from tests.harness import WAIT_S_MAX, Daemon, wait_until
from tests.worker.support.installed import EXAMPLE, make_environment
from tests.worker.support.pythons import FOREIGN, foreign_python, python_of

PATH = "/v1/policies/perceptron"
ALLOWED = {"trust__code": EXAMPLE, "limits__rows_max": "16"}
SCALED = np.array([0.5, -1.5], np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1.0.0 and 1.1.0 of `perceptron`, with weights of seed 0 and 1, and `scaling`, an ONNX graph that doubles."""
    root = tmp_path_factory.mktemp("interpreters") / "store"
    for seed in range(2):
        publish_perceptron(root, f"1.{seed}.0", seed)
    publish_times(root, "scaling", "1.0.0", 2.0)
    return root


def answers_as(daemon: Daemon, seed: int) -> bool:
    """Whether `perceptron` answers with weights of that seed."""
    with (
        pillion.connect(daemon.address, policy="perceptron") as session,
        session.begin_many(len(OBSERVATIONS)) as group,
    ):
        return bool(np.allclose(group.act(OBSERVATIONS), perceptron_actions(seed), atol=1e-5))


def scales(daemon: Daemon) -> bool:
    """Whether `scaling` answers."""
    with pillion.connect(daemon.address, policy="scaling") as session, session.begin(seed=1) as episode:
        return bool(episode.act(SCALED).tolist() == times(SCALED, 2))


def worker_of(daemon: Daemon) -> dict[str, Any]:
    """The worker of the first version of `perceptron`, in `/health`."""
    (policy,) = [each for each in daemon.health()["policies"] if each["policy"] == "perceptron"]
    return dict(policy["versions"][0]["worker"])


@pytest.mark.parametrize("version", ["", "3.9", "3.12", "3.13"])
def test_a_python_policy_runs_in_another_interpreter(
    store: Path, tmp_path: Path, start_daemon: StartDaemon, version: str
) -> None:
    """Without a version it is that of `make foreign`, whose numpy is of another major version."""
    base = python_of(version, "numpy") if version else foreign_python()
    python = make_environment(tmp_path / "environment", EXAMPLE, base=base)
    daemon = start_daemon(policy="perceptron@1.0.0", store=store, settings={**ALLOWED, "engine__python": python})
    assert answers_as(daemon, 0)
    staged = daemon.operation(daemon.ask("POST", f"{PATH}/switch", {"version": "1.1.0"}))
    assert staged["outcome"] == "done", staged
    assert answers_as(daemon, 1)
    worker = worker_of(daemon)
    assert worker["python"].startswith(version or f"{sys.version_info[0]}.{sys.version_info[1]}.")
    mapped = Path(f"/proc/{worker['pid']}/maps").read_text()
    own_numpy = str(Path(np.__file__).parent)
    assert "/numpy/" in mapped
    assert own_numpy not in mapped
    if not version:
        assert f"{FOREIGN.parents[1]}/" in mapped


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with nothing in it."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=WAIT_S_MAX)
    return str(folder / "bin" / "python")


def test_a_start_with_an_interpreter_that_runs_no_worker_is_refused_in_one_line(store: Path, bare: str) -> None:
    for python, why in (
        ("/nowhere/python", "cannot start /nowhere/python: No such file or directory"),
        ("/usr", "expected an interpreter, such as /usr/bin/python, got the folder /usr"),
        ("/bin/true", "expected Python 3.9 or later, got /bin/true, which ended with 0: it said nothing"),
        (bare, f"{bare}: it is Python {sys.version.split()[0]}, and a worker does not start there: "),
    ):
        code, line = refused_start(store, "perceptron@1.0.0", {**ALLOWED, "engine__python": python})
        assert (code, line.startswith(f"pilliond: engine.python: {why}")) == (os.EX_CONFIG, True), line


def test_an_onnx_graph_in_an_interpreter_without_onnx_runtime_is_refused(store: Path) -> None:
    python = foreign_python()
    settings = {"engine__python": python, "engine__placement": "worker"}
    missing = f"its engine needs the package 'onnxruntime', which {python} does not have"
    line = f"pilliond: scaling@1.0.0: {missing}: {python} -m pip install onnxruntime"
    assert refused_start(store, "scaling@1.0.0", settings) == (os.EX_DATAERR, line)


@pytest.fixture
def replaceable(tmp_path: Path) -> Path:
    """An interpreter with the package of `perceptron`, that a test may replace."""
    python = make_environment(tmp_path / "environment", EXAMPLE)
    return Path(python)


def replace(python: Path, program: str) -> None:
    """Puts another program where the interpreter is."""
    python.unlink()
    python.symlink_to(program)


def test_an_interpreter_that_breaks_later_refuses_the_next_version_and_then_its_own_alone(
    store: Path, replaceable: Path, start_daemon: StartDaemon
) -> None:
    settings = {**ALLOWED, "engine__python": str(replaceable), "auto_rollback__engine_out": "false"}
    daemon = start_daemon("--policy", "scaling@1.0.0", policy="perceptron@1.0.0", store=store, settings=settings)
    assert answers_as(daemon, 0)
    assert scales(daemon)

    for program, why in (
        (
            "/bin/true",
            f"engine.python: expected Python 3.9 or later, got {replaceable}, which ended with 0: it said nothing",
        ),
        ("/nowhere/python", f"engine.python: cannot start {replaceable}: No such file or directory"),
    ):
        replace(replaceable, program)
        operation = daemon.operation(daemon.ask("POST", f"{PATH}/stage", {"version": "1.1.0"}))
        assert (operation["outcome"], operation["error"]) == ("failed", why)
        # The worker that runs needs its interpreter no more.
        assert answers_as(daemon, 0)
        assert scales(daemon)

    os.kill(worker_of(daemon)["pid"], signal.SIGKILL)
    wait_until(lambda: worker_of(daemon)["state"] == "out")
    why = f"cannot start a worker: engine.python is {replaceable}: No such file or directory"
    assert worker_of(daemon)["reason"] == why
    (out,) = daemon.events("version_out")
    assert out["reason"] == why
    with pytest.raises(pillion.EngineOutError):
        answers_as(daemon, 0)
    assert scales(daemon)

    # Staging it tries it again.
    replace(replaceable, sys.executable)
    assert daemon.operation(daemon.ask("POST", f"{PATH}/stage", {"version": "1.0.0"}))["outcome"] == "done"
    assert answers_as(daemon, 0)
