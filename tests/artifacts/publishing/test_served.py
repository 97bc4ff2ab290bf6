"""A published policy is served as its source acts: a real daemon, the real client, the source's own predict."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from gymnasium import spaces
from onnx import TensorProto, helper
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO, SAC

import pillion
from pillion_artifacts import Store
from pillion_artifacts.card.golden_pairs import Golden, decode_golden, encode_golden
from pillion_artifacts.publishing.common.draft import Details
from pillion_artifacts.publishing.common.folder import write_folder
from pillion_artifacts.publishing.onnx.onnx_source import import_onnx
from pillion_artifacts.publishing.sb3.source import import_sb3
from tests.artifacts.publishing.test_onnx import WEIGHT, model_of
from tests.artifacts.publishing.test_sb3 import DRIVE, FOUR, IMAGE, MIXED, SMALL, STEPS, VECTOR
from tests.artifacts.support.policy_sources import Room, draw, publish_sb3, real_policies, session, shake
from tests.conftest import StartDaemon
from tests.harness import START_S_MAX, Daemon

REAL = ["ppo-LunarLander-v2", "dqn-CartPole-v1", "a2c-Pendulum-v1", "sac-HalfCheetah-v3"]


def stored(root: Path, folder: str | Path, name: str = "made-here") -> Path:
    """A store with the folder as a version."""
    Store(root).publish(name, "1.0.0", Path(folder), created_by="a test")
    return root


def served(start_daemon: StartDaemon, root: Path, observation: Any, name: str = "made-here") -> Any:
    """The deterministic actions of a daemon for rows of observations."""
    daemon = start_daemon(policy=name, store=root)
    rows = len(next(iter(observation.values())) if isinstance(observation, dict) else observation)
    with pillion.connect(daemon.address) as connection:
        group = connection.begin_many(rows)
        return group.act(observation, deterministic=True)


@pytest.mark.parametrize("name", REAL)
def test_a_real_policy_is_served_as_its_golden_source_acted(
    name: str, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    folder = real_policies() / "sb3"
    statistics = folder / f"{name}.vecnormalize.pkl"
    draft = import_sb3(
        (folder / f"{name}.zip").read_bytes(),
        name,
        Details(name="made-here", version="1.0.0"),
        statistics.read_bytes() if statistics.exists() else None,
    )
    write_folder(tmp_path / "folder", draft)
    golden = decode_golden((tmp_path / "folder" / "golden.safetensors").read_bytes())
    result = served(start_daemon, stored(tmp_path / "store", tmp_path / "folder"), golden.inputs["observation"])
    np.testing.assert_allclose(result, golden.outputs["action"], rtol=1e-4, atol=1e-4)


def test_a_real_policy_that_samples_its_actions_agrees_with_a_shadow_of_the_same_source(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    source = (real_policies() / "sb3" / "sac-HalfCheetah-v3.zip").read_bytes()
    for version in ("1.0.0", "1.1.0"):
        draft = import_sb3(source, "sac-HalfCheetah-v3", Details(name="made-here", version=version))
        write_folder(tmp_path / version, draft)
        Store(tmp_path / "store").publish("made-here", version, tmp_path / version, created_by="a test")
    golden = decode_golden((tmp_path / "1.0.0" / "golden.safetensors").read_bytes())
    observations = golden.inputs["observation"][:20]
    daemon = start_daemon(policy="made-here@1.0.0", store=tmp_path / "store")
    body = {"arms": [], "shadow": {"version": "1.1.0"}, "reason": "to compare"}
    done = daemon.operation(daemon.ask("PUT", "/v1/policies/made-here/route", body))
    assert (done["outcome"], done["error"]) == ("done", "")
    with pillion.connect(daemon.address) as connection, connection.begin_many(20, seeds=range(20)) as group:
        first = group.act(observations, deterministic=False).copy()
        assert not np.array_equal(first, group.act(observations, deterministic=False))
    report = wait_for_rows(daemon, 40)
    assert (report["agreement"], report["outputs"][0]["distance_max"]) == (1.0, 0.0)


def wait_for_rows(daemon: Daemon, rows: int) -> dict[str, Any]:
    """The report of the shadow, once it has compared `rows` rows."""
    deadline_s = time.monotonic() + START_S_MAX
    while (report := daemon.ask("GET", "/v1/policies/made-here/shadow")[1])["rows"] < rows:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return report


def test_a_robot_policy_of_a_fixed_batch_is_served_in_groups(start_daemon: StartDaemon, tmp_path: Path) -> None:
    file = real_policies() / "onnx" / "go1-joystick.onnx"
    write_folder(tmp_path / "folder", import_onnx(file, Details(name="made-here", version="1.0.0")))
    observation = np.random.default_rng(4).standard_normal((20, 48)).astype(np.float32)
    result = served(start_daemon, stored(tmp_path / "store", tmp_path / "folder"), observation)
    expected = session(tmp_path / "folder").run(["action"], {"obs": observation})[0]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int64", "bool"])
def test_observations_of_every_dtype_are_served(dtype: str, start_daemon: StartDaemon, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["observation"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "weight"], ["action"]),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    file = tmp_path / "source.onnx"
    onnx.save(model_of(nodes, {"action": (TensorProto.FLOAT, ["rows", 4])}, dtype=kind), file)
    write_folder(tmp_path / "folder", import_onnx(file, Details(name="made-here", version="1.0.0")))
    observation = np.random.default_rng(4).integers(0, 2, (7, 6)).astype(dtype)
    result = served(start_daemon, stored(tmp_path / "store", tmp_path / "folder"), observation)
    np.testing.assert_allclose(result, observation.astype(np.float32) @ WEIGHT, rtol=1e-5, atol=1e-6)


def test_a_dictionary_of_observations_is_served_as_predict_acts(start_daemon: StartDaemon, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = PPO("MultiInputPolicy", Room(MIXED, DRIVE), **STEPS)
    shake(model)
    report = publish_sb3(model, tmp_path)
    observation = draw(MIXED, 40)
    expected, _ = model.predict(observation, deterministic=True)
    result = served(start_daemon, stored(tmp_path / "store", report.folder), observation)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_a_squashed_gaussian_is_sampled_within_its_bounds_around_its_mean(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = SAC("MlpPolicy", Room(VECTOR, DRIVE), policy_kwargs={"net_arch": [8]}, **SMALL)
    shake(model)
    daemon = start_daemon(policy="made-here", store=stored(tmp_path / "store", publish_sb3(model, tmp_path).folder))
    rows = 200
    observation = np.repeat(draw(VECTOR, 1), rows, axis=0)
    with torch.no_grad():
        mean, log_std, _ = model.actor.get_action_dist_params(torch.from_numpy(observation))
    with pillion.connect(daemon.address) as connection:
        drawn: Any = connection.begin_many(rows).act(observation, deterministic=False)
    assert (drawn >= DRIVE.low).all()
    assert (drawn <= DRIVE.high).all()
    squashed = 2 * (drawn - DRIVE.low) / (DRIVE.high - DRIVE.low) - 1
    normal = np.arctanh(np.clip(squashed.astype(np.float64), -1 + 1e-7, 1 - 1e-7))
    score = (normal - mean.numpy()) / np.exp(log_std.numpy())
    # five standard errors of a mean and of a deviation
    np.testing.assert_allclose(score.mean(axis=0), 0, atol=5 / np.sqrt(rows))
    np.testing.assert_allclose(score.std(axis=0), 1, atol=5 / np.sqrt(2 * rows))


def _pilliond(root: Path) -> subprocess.CompletedProcess[str]:
    """A daemon that is expected to end by itself."""
    command = [sys.executable, "-m", "pilliond", "--store", str(root), "--policy", "made-here", "--admin", ""]
    listen = f"ipc://{root}/zmq.sock"
    return subprocess.run(
        [*command, "--listen", listen], capture_output=True, text=True, timeout=2 * START_S_MAX, check=False
    )


def _lander(folder: Path) -> Path:
    torch.manual_seed(1)
    model = PPO("MlpPolicy", Room(VECTOR, FOUR), **STEPS)
    shake(model)
    return Path(publish_sb3(model, folder).folder)


def _with_golden(folder: Path, golden: Golden) -> Path:
    (folder / "golden.safetensors").write_bytes(encode_golden(golden))
    return folder


def test_a_model_that_does_not_act_as_its_source_did_is_not_served(short_path: Path, tmp_path: Path) -> None:
    folder = _lander(tmp_path)
    golden = decode_golden((folder / "golden.safetensors").read_bytes())
    logits = golden.outputs["logits"].copy()
    logits[7, 2] += 0.5
    other = msgspec.structs.replace(golden, outputs={**golden.outputs, "logits": logits})
    result = _pilliond(stored(short_path / "other", _with_golden(folder, other)))
    assert result.returncode == 65
    assert "made-here@1.0.0: output 'logits', row 7, element 2: expected" in result.stderr
    assert "which differs by 0.5, at most" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"observation": np.zeros((3, 6), np.float32)},
            "input 'observation': expected rows of float32 [5], got float32",
        ),
        ({"other": np.zeros((3, 5), np.float32)}, "input 'observation': expected rows of float32 [5], got none"),
    ],
)
def test_golden_pairs_of_another_policy_are_refused(
    inputs: dict[str, Any], message: str, short_path: Path, tmp_path: Path
) -> None:
    golden = Golden(inputs, {"action": np.zeros(3, np.int64)})
    root = short_path / f"pairs-{next(iter(inputs))}"
    result = _pilliond(stored(root, _with_golden(_lander(tmp_path), golden)))
    assert result.returncode == 65
    assert message in result.stderr


def test_a_policy_without_golden_pairs_is_served(start_daemon: StartDaemon, tmp_path: Path) -> None:
    folder = _lander(tmp_path)
    (folder / "golden.safetensors").unlink()
    assert len(served(start_daemon, stored(tmp_path / "store", folder), draw(VECTOR, 3))) == 3


@pytest.mark.parametrize(
    ("kind", "space"),
    [("MlpLstmPolicy", VECTOR), ("MultiInputLstmPolicy", spaces.Dict({"vector": VECTOR, "camera": IMAGE}))],
    ids=["vector", "dictionary"],
)
def test_a_recurrent_policy_is_served_as_predict_acts(
    kind: str, space: spaces.Space[Any], start_daemon: StartDaemon, short_path: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    kwargs = {"lstm_hidden_size": 12, "n_lstm_layers": 2}
    model = RecurrentPPO(kind, Room(space, DRIVE), policy_kwargs=kwargs, **STEPS)
    shake(model)
    root = stored(tmp_path / "store", publish_sb3(model, tmp_path).folder)
    # over the lane, pictures lie in slots, and the engine reads them there
    daemon = start_daemon(policy="made-here", store=root, listen=[f"lane://{short_path}/{kind}.sock"])
    rows = 8
    generator = np.random.default_rng(3)
    state: Any = None
    with pillion.connect(daemon.address) as connection:
        group = connection.begin_many(rows)
        for step in range(12):
            # some episodes end where others go on
            starts = generator.random(rows) < 0.2
            observation = draw(space, rows, seed=step)
            expected, state = model.predict(observation, state, starts | (step == 0), deterministic=True)
            result = group.act(observation, deterministic=True, episode_start=starts)
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
        assert group.last.observation_in_slot == isinstance(space, spaces.Dict)


def test_a_recurrent_policy_with_another_state_than_its_source_is_not_served(short_path: Path, tmp_path: Path) -> None:
    model = RecurrentPPO("MlpLstmPolicy", Room(VECTOR, DRIVE), policy_kwargs={"lstm_hidden_size": 4}, **STEPS)
    folder = Path(publish_sb3(model, tmp_path).folder)
    golden = decode_golden((folder / "golden.safetensors").read_bytes())
    cell = golden.outputs["lstm_cell_next"].copy()
    cell[3, 0, 2] += 0.5
    other = msgspec.structs.replace(golden, outputs={**golden.outputs, "lstm_cell_next": cell})
    result = _pilliond(stored(short_path / "carries", _with_golden(folder, other)))
    assert result.returncode == 65
    assert "made-here@1.0.0: output 'lstm_cell_next', row 3, element 2: expected" in result.stderr
