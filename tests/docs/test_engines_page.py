"""What `docs/engines.md` shows works as it is printed: packages, cards, settings and commands."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import pillion
from pillion_artifacts import Store
from pilliond.settings.schema import load_settings
from tests.docs.pages import ENGINES, blocks, commands
from tests.harness import COMMAND_S_MAX, Daemon, running
from tests.worker.support.installed import (
    EXAMPLE,
    FOLDER,
    add_packages_of,
    make_environment,
    mlp_actions,
    mlp_weights,
    site_of,
)
from tests.worker.support.pythons import foreign_python

MODULE = EXAMPLE.replace("-", "_")
TORCH_POLICY, NUMPY_POLICY, JAX_POLICY = blocks(ENGINES, "python")
DEVICES, PROJECT, SETTINGS = blocks(ENGINES, "toml")
(CARD,) = blocks(ENGINES, "yaml")
WITHOUT_NETWORK = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "false"}
"""pip takes what the environment has already, and looks nowhere else."""


def test_the_devices_of_the_page_are_settings(tmp_path: Path) -> None:
    file = tmp_path / "pillion.toml"
    file.write_text(DEVICES)
    assert load_settings(file, {}, {}).engine.devices == ["cuda:0", "cuda:1"]


def type_it(command: str, folder: Path) -> None:
    """Runs a command of the page, with `folder` as the working directory; fails where it does."""
    words = shlex.split(command)
    if words[0] == "python3":
        words[0] = sys.executable
    words[0] = words[0].replace(".venv/bin", str(Path(sys.executable).parent)) if words[0].startswith(".") else words[0]
    result = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, **WITHOUT_NETWORK},
        capture_output=True,
        text=True,
        timeout=COMMAND_S_MAX,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@contextmanager
def serving(command: str, folder: Path, runtime: Path) -> Iterator[Daemon]:
    """Runs a `pilliond` command of the page, with `folder` as the working directory and this runtime folder."""
    program, *arguments = shlex.split(command)
    assert program == ".venv/bin/pilliond"
    runtime.mkdir(mode=0o700)
    environment = {"XDG_RUNTIME_DIR": str(runtime), "PILLION_ADMIN__LISTEN": "unix://"}
    with running(arguments, folder / "stderr", environment) as daemon:
        yield daemon


def answers_as_it_should(daemon: Daemon, weights: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> None:
    """Fails unless clients get the actions that the weights stand for, alone and in one batch."""
    rows = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    expected = mlp_actions(weights, rows)
    with pillion.connect(daemon.address) as session:
        assert str(session.version).startswith("1.0.0")
        with session.begin(seed=1) as episode:
            for row, action in zip(rows, expected, strict=True):
                np.testing.assert_allclose(episode.act(row), action, rtol=1e-4, atol=1e-5)
        with session.begin_many(5) as group:
            np.testing.assert_allclose(group.act(rows), expected, rtol=1e-4, atol=1e-5)


def test_the_torch_program_of_the_page_is_served(
    tmp_path: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(TORCH_POLICY, str(ENGINES), "exec", dont_inherit=True), names)
    publish, serve = commands(ENGINES)[:2]
    type_it(publish, tmp_path)
    rows = np.random.default_rng(1).integers(0, 256, (3, 4, 84, 84), np.uint8)
    torch = names["torch"]
    with torch.inference_mode():
        expected = names["policy"](torch.from_numpy(rows)).numpy()
    with (
        serving(serve, tmp_path, short_path / "torch-page") as daemon,
        pillion.connect(daemon.address) as session,
        session.begin_many(3) as group,
    ):
        np.testing.assert_allclose(group.act(rows), expected, rtol=1e-4, atol=1e-5)
        assert session.begin(seed=1).act(rows[1]).tolist() == pytest.approx(expected[1].tolist(), rel=1e-4, abs=1e-5)


def test_the_package_of_the_page_is_the_one_that_the_tests_use() -> None:
    # Which have another factory below it.
    assert (FOLDER / MODULE / f"{MODULE}.py").read_text().startswith(NUMPY_POLICY)
    assert (FOLDER / MODULE / "pyproject.toml").read_text() == PROJECT


def test_the_commands_of_the_page_serve_a_python_policy_from_its_own_environment(
    tmp_path: Path, short_path: Path
) -> None:
    weights = mlp_weights()
    robot = tmp_path / "robot"
    (robot / "policy").mkdir(parents=True)
    (robot / "policy" / f"{MODULE}.py").write_text(NUMPY_POLICY)
    (robot / "policy" / "pyproject.toml").write_text(PROJECT)
    (robot / "model_card.yaml").write_text(CARD)
    (robot / "pillion.toml").write_text(SETTINGS.replace("/opt/robot/", f"{robot}/"))
    save_file(weights, robot / "weights.safetensors")

    make, fetch, publish, serve = commands(ENGINES)[2:]
    type_it(make, tmp_path)
    add_packages_of(sys.executable, robot / ".venv")
    type_it(fetch, tmp_path)
    assert (site_of(robot / ".venv") / f"{MODULE}.py").exists()
    type_it(publish, tmp_path)
    with serving(serve, tmp_path, short_path / "python-page") as daemon:
        answers_as_it_should(daemon, weights)
        (policy,) = daemon.wait_for_event("ready")["policies"]
        assert policy["device"] in ("cpu", "auto")


def test_the_jax_policy_of_the_page_is_served(tmp_path: Path, short_path: Path) -> None:
    weights = mlp_weights(seed=2)
    environment = tmp_path / "environment"
    python = make_environment(environment, EXAMPLE, base=foreign_python())
    (site_of(environment) / f"{MODULE}.py").write_text(JAX_POLICY)
    (tmp_path / "model_card.yaml").write_text(CARD.replace(":mlp", ":make").replace("{activation: tanh}", "{}"))
    save_file(weights, tmp_path / "model.safetensors")
    store = Store(tmp_path / "store")
    store.publish("reach", "1.0.0", _only(tmp_path, "model_card.yaml", "model.safetensors"), created_by="a test")
    settings = {
        "PILLION_ENGINE__PYTHON": python,
        "PILLION_ENGINE__DEVICE": "cpu",
        "PILLION_LIMITS__ROWS_MAX": "8",
        "PILLION_ADMIN__LISTEN": f"unix://{short_path}/jax-admin.sock",
    }
    config = tmp_path / "pillion.toml"
    config.write_text(f'[trust]\ncode = ["{EXAMPLE}"]\n')
    arguments = ["--config", str(config), "--store", str(tmp_path / "store"), "--policy", "reach"]
    arguments += ["--listen", f"ipc://{short_path}/jax.sock"]
    with running(arguments, tmp_path / "stderr", settings) as daemon:
        answers_as_it_should(daemon, weights)


def _only(folder: Path, *names: str) -> Path:
    """A folder with these files of another one alone."""
    target = folder / "version"
    target.mkdir()
    for name in names:
        (folder / name).rename(target / name)
    return target
