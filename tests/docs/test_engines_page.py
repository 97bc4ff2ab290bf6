"""What `docs/engines.md` shows works as it is printed: packages, cards, settings and commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

import pillion
from pillion.cli import run
from pilliond.settings.schema import load_settings
from tests.docs.pages import ENGINES, blocks, commands, section
from tests.harness import COMMAND_S_MAX, Daemon, publish, running
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
DRIVE_CHUNKS, TORCH_POLICY, DRIVE_TORCH, SAVE_PROGRAM, NUMPY_POLICY, DRIVE_PYTHON, JAX_POLICY = blocks(
    ENGINES, "python"
)
DEVICES, PROJECT, SETTINGS, JAX_PROJECT = blocks(ENGINES, "toml")
CHUNK_CARD, CARD, JAX_ENGINE = blocks(ENGINES, "yaml")
(
    PUBLISH_FOLDER, SERVE_TORCH, PUBLISH_PROGRAM, MAKE_ENVIRONMENT, INSTALL, PUBLISH_PYTHON, SERVE_PYTHON, STATUS,
    INSTALL_JAX, PUBLISH_JAX,
) = commands(ENGINES)  # fmt: skip
WITHOUT_NETWORK = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "false"}
"""pip takes what the environment has already, and looks nowhere else."""


def test_the_devices_of_the_page_are_settings(tmp_path: Path) -> None:
    file = tmp_path / "pillion.toml"
    file.write_text(DEVICES)
    assert load_settings(file, {}, {}).engine.devices == ["cuda:0", "cuda:1"]


def type_it(command: str, folder: Path) -> None:
    """Runs a command of the page, with `folder` as the working directory; fails where it does."""
    program, *arguments = shlex.split(command)
    words = [program.replace(".venv/bin", str(Path(sys.executable).parent)) if program.startswith(".") else program]
    if program == "python3":
        words = [sys.executable]
    if program.endswith("/pip") and not (folder / program).exists():
        # An environment without pip is made sooner.
        words = [sys.executable, "-m", "pip", "--python", program.removesuffix("pip") + "python"]
    words += arguments
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
def serving(command: str, folder: Path, runtime: Path, **settings: str) -> Iterator[Daemon]:
    """Runs a `pilliond` command of the page, with `folder` as the working directory and this runtime folder.

    Meanwhile it is the daemon that the page's clients and commands find without an address.
    """
    program, *arguments = shlex.split(command)
    assert program == ".venv/bin/pilliond"
    runtime.mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        with running(arguments, folder / "stderr", {"PILLION_ADMIN__LISTEN": "unix://", **settings}) as daemon:
            yield daemon


def run_block(block: str, **names: Any) -> dict[str, Any]:
    """Runs a Python block of the page after others that made these names; returns all names then."""
    names["__name__"] = "page"
    exec(compile(block, str(ENGINES), "exec", dont_inherit=True), names)
    return names


def answers_as_it_should(
    daemon: Daemon, weights: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]], version: str
) -> None:
    """Fails unless clients get the actions that the weights stand for, alone and in one batch, from that version."""
    rows = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    expected = mlp_actions(weights, rows)
    with pillion.connect(daemon.address) as session:
        assert session.version == version
        with session.begin(seed=1) as episode:
            for row, action in zip(rows, expected, strict=True):
                np.testing.assert_allclose(episode.act(row), action, rtol=1e-4, atol=1e-5)
        with session.begin_many(5) as group:
            np.testing.assert_allclose(group.act(rows), expected, rtol=1e-4, atol=1e-5)


class Robot:
    """The `camera` and the `robot` of the page: what it sees at each look, and how it was moved."""

    def __init__(self) -> None:
        self.looks = 0
        self.moves: list[np.ndarray[Any, Any]] = []

    def read(self) -> np.ndarray[Any, Any]:
        self.looks += 1
        return np.full((3, 64, 64), self.looks, np.uint8)

    def move(self, action: np.ndarray[Any, Any]) -> None:
        self.moves.append(action)


def chunk_model() -> bytes:
    """Returns a model for the page's card of chunks: what step n adds, and the sums of the prompt and of the image."""
    steps = np.arange(16 * 7, dtype=np.float32).reshape(1, 16, 7)
    axes = {"letters": [1], "pixels": [1, 2, 3], "time": [1, 2]}
    constants = [numpy_helper.from_array(np.array(each, np.int64), name) for name, each in axes.items()]
    nodes = [
        helper.make_node("Cast", ["prompt"], ["text"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["text", "letters"], ["read"], keepdims=0),
        helper.make_node("Cast", ["camera"], ["image"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["image", "pixels"], ["seen"], keepdims=0),
        helper.make_node("Add", ["read", "seen"], ["known"]),
        helper.make_node("Unsqueeze", ["known", "time"], ["aim"]),
        helper.make_node("Add", ["aim", "steps"], ["action"]),
    ]
    inputs = [
        helper.make_tensor_value_info("camera", TensorProto.UINT8, ["rows", 3, 64, 64]),
        helper.make_tensor_value_info("prompt", TensorProto.UINT8, ["rows", 256]),
    ]
    outputs = [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["rows", 16, 7])]
    constants.append(numpy_helper.from_array(steps, "steps"))
    graph = helper.make_graph(nodes, "cups", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def test_the_client_of_the_page_sends_a_prompt_and_steps_through_chunks(tmp_path: Path, short_path: Path) -> None:
    head = "schema: 3\nname: cups\nversion: 1.0.0\ndescription: Picks up cups.\nlicence: Apache-2.0\n"
    publish(tmp_path / "store", "cups", "1.0.0", chunk_model(), head + CHUNK_CARD)
    robot = Robot()
    serve = ".venv/bin/pilliond --store store --policy cups"
    with serving(serve, tmp_path, short_path / "chunk-page", PILLION_LIMITS__ROWS_MAX="4"):
        assert run_block(DRIVE_CHUNKS, camera=robot, robot=robot)["chunk"].shape == (16, 7)
    prompt = sum(b"pick up the cup")
    expected = [look * 3 * 64 * 64 + prompt + np.arange(7) + 7 * step for look in (1, 2) for step in range(8)]
    assert np.array(robot.moves).tolist() == np.array(expected, np.float32).tolist()


def test_the_torch_program_of_the_page_is_served(
    tmp_path: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_block(SAVE_PROGRAM, **run_block(TORCH_POLICY))
    type_it(PUBLISH_FOLDER, tmp_path)
    # In this process, which has imported torch already.
    assert run(shlex.split(PUBLISH_PROGRAM)[1:]) == 0
    rows = np.random.default_rng(1).integers(0, 256, (3, 4, 84, 84), np.uint8)
    torch = names["torch"]
    with torch.inference_mode():
        expected = names["policy"](torch.from_numpy(rows)).numpy()
        dark = names["policy"](torch.zeros(1, 4, 84, 84, dtype=torch.uint8)).numpy()[0]
    with serving(SERVE_TORCH, tmp_path, short_path / "torch-page") as daemon:
        np.testing.assert_allclose(run_block(DRIVE_TORCH)["action"], dark, rtol=1e-4, atol=1e-5)
        with pillion.connect(daemon.address) as session, session.begin_many(3) as group:
            assert session.version == "1.1.0"
            np.testing.assert_allclose(group.act(rows), expected, rtol=1e-4, atol=1e-5)
            alone = session.begin(seed=1).act(rows[1])
            np.testing.assert_allclose(alone, expected[1], rtol=1e-4, atol=1e-5)


def test_the_package_of_the_page_is_the_one_that_the_tests_use() -> None:
    # Which have another factory below it.
    assert (FOLDER / MODULE / f"{MODULE}.py").read_text().startswith(NUMPY_POLICY)
    assert (FOLDER / MODULE / "pyproject.toml").read_text() == PROJECT


def test_the_commands_of_the_page_serve_a_python_policy_from_its_own_environment(
    tmp_path: Path, short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = mlp_weights()
    robot = tmp_path / "robot"
    (robot / "policy").mkdir(parents=True)
    (robot / "policy" / f"{MODULE}.py").write_text(NUMPY_POLICY)
    (robot / "policy" / "pyproject.toml").write_text(PROJECT)
    (robot / "model_card.yaml").write_text(CARD)
    (robot / "pillion.toml").write_text(SETTINGS.replace("/opt/robot/", f"{robot}/"))
    save_file(weights, robot / "weights.safetensors")

    type_it(MAKE_ENVIRONMENT, tmp_path)
    add_packages_of(sys.executable, robot / ".venv")
    type_it(INSTALL, tmp_path)
    assert (site_of(robot / ".venv") / f"{MODULE}.py").exists()
    type_it(PUBLISH_PYTHON, tmp_path)
    with serving(SERVE_PYTHON, tmp_path, short_path / "python-page") as daemon:
        answers_as_it_should(daemon, weights, "1.0.0")
        (policy,) = daemon.wait_for_event("ready")["policies"]
        assert policy["device"] in ("cpu", "auto")
        still = mlp_actions(weights, np.zeros((1, 8), np.float32))[0]
        np.testing.assert_allclose(run_block(DRIVE_PYTHON)["action"], still, rtol=1e-4, atol=1e-5)
        capsys.readouterr()
        assert run(shlex.split(STATUS)[1:]) == 0
        (version,) = json.loads(capsys.readouterr().out)["resident"]
        assert version["certificate"]["difference"] >= 0


def test_the_jax_policy_of_the_page_is_served(tmp_path: Path, short_path: Path) -> None:
    weights = mlp_weights(seed=2)
    robot = tmp_path / "robot"
    (robot / "jax").mkdir(parents=True)
    (robot / "jax" / "reach_jax.py").write_text(JAX_POLICY)
    (robot / "jax" / "pyproject.toml").write_text(JAX_PROJECT)
    card = CARD.replace("version: 1.0.0", "version: 1.1.0").partition("engine:\n")[0] + JAX_ENGINE
    (robot / "jax_card.yaml").write_text(card)
    (allowed,) = re.findall("`(code = .*?)`", section(ENGINES, "A JAX policy"))
    settings = SETTINGS.replace(f'code = ["{EXAMPLE}"]', allowed)
    (robot / "pillion.toml").write_text(settings.replace("/opt/robot/", f"{robot}/"))
    save_file(weights, robot / "weights.safetensors")

    make_environment(robot / ".venv", base=foreign_python())
    backend = (
        site_of(robot / ".venv") / "zz_backend.pth"
    )  # behind what the environment has, so that numpy stays its own
    backend.write_text(f"{sysconfig.get_path('purelib')}\n")
    type_it(INSTALL_JAX, tmp_path)
    backend.unlink()
    type_it(PUBLISH_JAX, tmp_path)
    few = {"PILLION_ENGINE__DEVICE": "cpu", "PILLION_LIMITS__ROWS_MAX": "8"}
    with serving(SERVE_PYTHON, tmp_path, short_path / "jax-page", **few) as daemon:
        answers_as_it_should(daemon, weights, "1.1.0")
