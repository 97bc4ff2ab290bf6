"""Zips of every Stable-Baselines3 family become policies that act as `predict` does."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from pillion_artifacts import InvalidSourceError, parse_card
from pillion_artifacts.card.golden_pairs import decode_golden
from pillion_artifacts.publishing.common.draft import Details
from pillion_artifacts.publishing.common.folder import write_folder
from pillion_artifacts.publishing.sb3.networks import ACTIVATIONS
from pillion_artifacts.publishing.sb3.source import import_sb3
from tests.artifacts.support.policy_sources import (
    ROWS,
    Room,
    act,
    by_name,
    draw,
    publish_sb3,
    real_policies,
    session,
    shake,
)

VECTOR = spaces.Box(-2.0, 2.0, (5,), np.float32)
WIDE = spaces.Box(-np.inf, np.inf, (2, 3), np.float64)
IMAGE = spaces.Box(0, 255, (2, 36, 36), np.uint8)
MIXED = spaces.Dict(
    {
        "vector": VECTOR,
        "camera": IMAGE,
        "gear": spaces.Discrete(4),
        "switches": spaces.MultiBinary(3),
        "dials": spaces.MultiDiscrete([2, 5]),
        "seen": spaces.Box(0, 1, (2,), np.bool_),
    }
)
FOUR = spaces.Discrete(4)
DRIVE = spaces.Box(np.array([-2.0, 0.0, -1.0], np.float32), np.array([3.0, 1.0, 1.0], np.float32))
SMALL: dict[str, Any] = {"buffer_size": 10}
STEPS: dict[str, Any] = {"n_steps": 8, "batch_size": 8}
SDE: dict[str, Any] = {"use_sde": True}

MODELS: dict[str, Callable[[], BaseAlgorithm]] = {
    "PPO": lambda: PPO("MlpPolicy", Room(VECTOR, FOUR), **STEPS),
    "PPO, several choices": lambda: PPO("MlpPolicy", Room(VECTOR, spaces.MultiDiscrete([3, 2, 4])), **STEPS),
    "PPO, switches": lambda: PPO("MlpPolicy", Room(VECTOR, spaces.MultiBinary(4)), **STEPS),
    "PPO, continuous": lambda: PPO("MlpPolicy", Room(WIDE, DRIVE), **STEPS),
    "PPO, a table of actions": lambda: PPO("MlpPolicy", Room(VECTOR, spaces.Box(-1, 1, (2, 2))), **STEPS),
    "PPO, own layers": lambda: PPO(
        "MlpPolicy",
        Room(VECTOR, FOUR),
        **STEPS,
        policy_kwargs={"net_arch": {"pi": [16, 8, 4], "vf": [32]}, "activation_fn": nn.ELU},
    ),
    "PPO, a dictionary whose names are not sorted": lambda: PPO(
        "MultiInputPolicy", Room(spaces.Dict([("zeta", VECTOR), ("alpha", WIDE)]), DRIVE), **STEPS
    ),
    "PPO, no layers": lambda: PPO("MlpPolicy", Room(VECTOR, DRIVE), **STEPS, policy_kwargs={"net_arch": []}),
    "PPO, gSDE": lambda: PPO("MlpPolicy", Room(VECTOR, DRIVE), **STEPS, **SDE),
    "PPO, gSDE, squashed": lambda: PPO(
        "MlpPolicy",
        Room(VECTOR, DRIVE),
        **STEPS,
        policy_kwargs={"squash_output": True, "use_expln": True, "full_std": False},
        **SDE,
    ),
    "PPO, image": lambda: PPO("CnnPolicy", Room(IMAGE, DRIVE), **STEPS),
    "PPO, image, two extractors": lambda: PPO(
        "CnnPolicy",
        Room(IMAGE, FOUR),
        **STEPS,
        policy_kwargs={"share_features_extractor": False, "features_extractor_kwargs": {"features_dim": 32}},
    ),
    "PPO, dictionary": lambda: PPO("MultiInputPolicy", Room(MIXED, DRIVE), **STEPS),
    "PPO, counted": lambda: PPO("MlpPolicy", Room(spaces.Discrete(7), FOUR), **STEPS),
    "A2C": lambda: A2C("MlpPolicy", Room(WIDE, DRIVE)),
    "TRPO": lambda: TRPO("MlpPolicy", Room(VECTOR, FOUR), **STEPS),
    "DQN": lambda: DQN("MlpPolicy", Room(VECTOR, FOUR), **SMALL),
    "DQN, image": lambda: DQN("CnnPolicy", Room(IMAGE, FOUR), **SMALL),
    "DQN, dictionary": lambda: DQN("MultiInputPolicy", Room(MIXED, FOUR), **SMALL),
    "QR-DQN": lambda: QRDQN("MlpPolicy", Room(VECTOR, FOUR), policy_kwargs={"n_quantiles": 11}, **SMALL),
    "QR-DQN, image": lambda: QRDQN("CnnPolicy", Room(IMAGE, FOUR), **SMALL),
    "SAC": lambda: SAC("MlpPolicy", Room(WIDE, DRIVE), policy_kwargs={"net_arch": [32, 32]}, **SMALL),
    "SAC, gSDE": lambda: SAC("MlpPolicy", Room(VECTOR, DRIVE), policy_kwargs={"net_arch": [16]}, **SDE, **SMALL),
    "SAC, gSDE, unbound": lambda: SAC(
        "MlpPolicy", Room(VECTOR, DRIVE), policy_kwargs={"clip_mean": 0.0}, **SDE, **SMALL
    ),
    "SAC, image": lambda: SAC("CnnPolicy", Room(IMAGE, DRIVE), **SMALL),
    "SAC, dictionary": lambda: SAC("MultiInputPolicy", Room(MIXED, DRIVE), **SMALL),
    "TD3": lambda: TD3("MlpPolicy", Room(VECTOR, DRIVE), **SMALL),
    "DDPG": lambda: DDPG("MlpPolicy", Room(VECTOR, DRIVE), **SMALL),
    "TQC": lambda: TQC("MlpPolicy", Room(WIDE, DRIVE), **SMALL),
    "TQC, dictionary": lambda: TQC("MultiInputPolicy", Room(MIXED, DRIVE), **SMALL),
    "ARS": lambda: ARS("MlpPolicy", Room(VECTOR, DRIVE)),
    "ARS, choice": lambda: ARS("MlpPolicy", Room(VECTOR, FOUR)),
    "ARS, linear": lambda: ARS("LinearPolicy", Room(VECTOR, DRIVE)),
}
REAL: dict[str, tuple[type[BaseAlgorithm], str, list[str]]] = {
    "ppo-LunarLander-v2": (PPO, "LunarLander-v3", ["clip_range"]),
    "dqn-CartPole-v1": (DQN, "CartPole-v1", ["exploration_schedule"]),
    "a2c-Pendulum-v1": (A2C, "Pendulum-v1", []),
    "sac-HalfCheetah-v3": (SAC, "HalfCheetah-v5", []),
}


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(1)


@pytest.mark.parametrize("kind", MODELS)
def test_a_policy_of_every_family_acts_as_predict_does(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]()
    shake(model)
    report = publish_sb3(model, tmp_path)
    observation = draw(model.observation_space)
    expected, _ = model.predict(observation, deterministic=True)
    result = act(report.folder, by_name(observation))
    assert len(np.unique(expected, axis=0)) > 1, "a policy that always does the same shows nothing"
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    assert report.rows >= ROWS


@pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # Box2D's, which as an error is a segfault
@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")  # what old pickles name
@pytest.mark.filterwarnings("ignore:You are probably loading a DQN model:UserWarning")
@pytest.mark.parametrize("name", REAL)
def test_a_real_policy_acts_as_predict_does_in_its_environment(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves a log where it is
    algorithm, environment, schedules = REAL[name]
    folder = real_policies() / "sb3"
    statistics = folder / f"{name}.vecnormalize.pkl"
    draft = import_sb3(
        (folder / f"{name}.zip").read_bytes(),
        name,
        Details(name=name.lower(), version="1.0.0"),
        statistics.read_bytes() if statistics.exists() else None,
    )
    published = session(write_folder(tmp_path, draft).folder)
    vector = DummyVecEnv([lambda: gymnasium.make(environment)])
    # what it was saved with is of an older gym, which is not here
    replaced = {"observation_space": vector.observation_space, "action_space": vector.action_space}
    model: Any = algorithm.load(
        folder / f"{name}.zip",
        custom_objects={
            **replaced,
            "learning_rate": 0.0,
            "lr_schedule": constant,
            **dict.fromkeys(schedules, constant),
        },
        device="cpu",
    )
    normalised = VecNormalize.load(str(statistics), vector) if statistics.exists() else None
    vector.seed(5)
    observation: Any = vector.reset()
    disagreed = 0
    for _ in range(400):
        seen = normalised.normalize_obs(observation) if normalised is not None else observation
        expected, _ = model.predict(seen, deterministic=True)
        (result,) = published.run(["action"], {"observation": observation})
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
        else:
            disagreed += int((result != expected).sum())
        observation, *_ = vector.step(expected)
    vector.close()
    # rounding may choose between two equally good actions, which is rare
    assert disagreed <= 2


def constant(_: float) -> float:
    """A schedule; old ones are pickled code of an older Python."""
    return 0.1


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "Identity"])
def test_each_activation_is_that_of_torch(name: str, tmp_path: Path) -> None:
    kwargs = {"net_arch": [8, 8], "activation_fn": getattr(nn, name)}
    model = PPO("MlpPolicy", Room(VECTOR, DRIVE), **STEPS, policy_kwargs=kwargs)
    shake(model)
    observation = 3 * draw(VECTOR)
    expected, _ = model.predict(observation, deterministic=True)
    result = act(publish_sb3(model, tmp_path).folder, by_name(observation))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_a_recurrent_policy_carries_its_state_as_predict_does(tmp_path: Path) -> None:
    model = RecurrentPPO(
        "MultiInputLstmPolicy",
        Room(spaces.Dict({"a": VECTOR, "b": WIDE}), DRIVE),
        **STEPS,
        policy_kwargs={"n_lstm_layers": 2, "lstm_hidden_size": 12, "lstm_kwargs": {"bias": False}},
    )
    shake(model)
    report = publish_sb3(model, tmp_path)
    card = report.card
    assert [(part.name, part.output, part.shape) for part in card.state] == [
        ("lstm_hidden", "lstm_hidden_next", [2, 12]),
        ("lstm_cell", "lstm_cell_next", [2, 12]),
    ]
    published = session(report.folder)
    names = ["action", *(part.output for part in card.state)]
    state = {part.name: np.zeros((3, *part.shape), np.float32) for part in card.state}
    theirs: Any = None
    for step in range(10):
        observation = draw(model.observation_space, 3, seed=step)
        expected, theirs = model.predict(observation, theirs, np.full(3, step == 0), deterministic=True)
        action, *after = published.run(names, {**observation, **state})
        np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-4)
        state = {part.name: array for part, array in zip(card.state, after, strict=True)}
    np.testing.assert_allclose(state["lstm_cell"].swapaxes(0, 1), theirs[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("observation", [WIDE, spaces.Dict({"near": VECTOR, "far": WIDE})], ids=["box", "dict"])
def test_the_statistics_of_vec_normalize_become_part_of_the_graph(
    observation: spaces.Space[Any], tmp_path: Path
) -> None:
    is_dict = isinstance(observation, spaces.Dict)
    keys = ["far"] if is_dict else None
    vector = VecNormalize(DummyVecEnv([lambda: Room(observation, DRIVE)]), clip_obs=1.5, norm_obs_keys=keys)
    model = A2C("MultiInputPolicy" if is_dict else "MlpPolicy", vector)
    model.learn(50)
    shake(model)
    vector.save(str(tmp_path / "statistics.pkl"))
    report = publish_sb3(model, tmp_path, (tmp_path / "statistics.pkl").read_bytes())
    observed = draw(observation)
    normalised: Any = vector.normalize_obs(observed)
    expected, _ = model.predict(normalised, deterministic=True)
    raw, _ = model.predict(observed, deterministic=True)
    assert np.abs(expected - raw).max() > 0.1
    np.testing.assert_allclose(act(report.folder, by_name(observed)), expected, rtol=1e-5, atol=1e-5)
    (step,) = report.card.preprocessing
    assert (step.step, step.observation) == ("normalise", "far" if is_dict else "observation")
    assert step.digest == report.card.lineage.normaliser != ""


def test_statistics_that_normalise_nothing_change_nothing(tmp_path: Path) -> None:
    vector = VecNormalize(DummyVecEnv([lambda: Room(VECTOR, FOUR)]), norm_obs=False)
    model = A2C("MlpPolicy", vector)
    vector.save(str(tmp_path / "statistics.pkl"))
    report = publish_sb3(model, tmp_path, (tmp_path / "statistics.pkl").read_bytes())
    assert report.card.preprocessing == []


def test_the_card_has_the_fields_of_the_zip(tmp_path: Path) -> None:
    model = PPO("MultiInputPolicy", Room(MIXED, DRIVE), **STEPS, seed=5)
    shake(model)
    report = publish_sb3(model, tmp_path)
    card = parse_card((Path(report.folder) / "model_card.yaml").read_bytes())
    assert card == report.card
    tensors = {tensor.name: tensor for tensor in card.observation}
    assert {name: (t.space, t.dtype, t.shape) for name, t in tensors.items()} == {
        "vector": ("Box", "float32", [5]),
        "camera": ("Box", "uint8", [2, 36, 36]),
        "gear": ("Discrete", "int64", []),
        "switches": ("MultiBinary", "int8", [3]),
        "dials": ("MultiDiscrete", "int64", [2]),
        "seen": ("Box", "bool", [2]),
    }
    assert tensors["dials"].high == [1.0, 4.0]
    assert (card.action().low, card.action().high) == ([-2.0, 0.0, -1.0], [3.0, 1.0, 1.0])
    assert card.distribution.kind == "diagonal_gaussian"
    assert (card.lineage.algorithm, card.lineage.seed) == ("PPO", 5)
    steps = {(step.step, step.observation) for step in card.preprocessing}
    assert steps == {("scale", "camera"), ("one_hot", "gear"), ("one_hot", "dials")}


def test_the_parameters_of_a_distribution_are_those_of_the_source(tmp_path: Path) -> None:
    model = SAC("MlpPolicy", Room(VECTOR, DRIVE), policy_kwargs={"net_arch": [8]}, **SMALL)
    shake(model)
    report = publish_sb3(model, tmp_path)
    observation = draw(VECTOR)
    with torch.no_grad():
        mean, log_std, _ = model.actor.get_action_dist_params(torch.from_numpy(observation))
    result = session(report.folder).run(["mean", "log_std"], {"observation": observation})
    np.testing.assert_allclose(result[0], mean.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result[1], log_std.numpy(), rtol=1e-4, atol=1e-5)
    assert report.card.distribution.kind == "squashed_gaussian"


def test_golden_pairs_are_the_results_of_predict(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", Room(VECTOR, DRIVE), **STEPS)
    shake(model)
    golden = decode_golden((Path(publish_sb3(model, tmp_path).folder) / "golden.safetensors").read_bytes())
    assert golden.rows == 64
    expected, _ = model.predict(golden.inputs["observation"], deterministic=True)
    np.testing.assert_allclose(golden.outputs["action"], expected, rtol=1e-6, atol=1e-6)


class Own(BaseFeaturesExtractor):
    """A custom features extractor."""

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        super().__init__(observation_space, 5)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return observations * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: PPO("MlpPolicy", Room(VECTOR, FOUR), **STEPS, policy_kwargs={"features_extractor_class": Own}),
            r"features_extractor_class: expected one of Stable-Baselines3's own, got .*Own",
        ),
        (
            lambda: PPO("MlpPolicy", Room(VECTOR, FOUR), **STEPS, policy_kwargs={"activation_fn": nn.PReLU}),
            r"activation_fn: expected one of .*, got torch\.nn\.modules\.activation\.PReLU",
        ),
        (
            lambda: MaskablePPO("MlpPolicy", Room(VECTOR, FOUR), **STEPS),
            "policy_class: expected one of PPO, A2C, TRPO, DQN, .* got sb3_contrib.common.maskable",
        ),
        (lambda: CrossQ("MlpPolicy", Room(VECTOR, DRIVE), **SMALL), "policy_class: .* got sb3_contrib.crossq"),
    ],
)
def test_an_unsupported_policy_is_refused_by_name(
    make: Callable[[], BaseAlgorithm], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidSourceError, match=message):
        publish_sb3(make(), tmp_path)


def _rewritten(data: bytes, name: str, content: bytes | None, *, compressed: bool = False) -> bytes:
    """The zip with one member changed or removed."""
    made = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w", method) as new:
        for member in old.namelist():
            if member != name:
                new.writestr(member, old.read(member))
        if content is not None:
            new.writestr(name, content)
    return made.getvalue()


def _saved(model: BaseAlgorithm) -> bytes:
    file = io.BytesIO()
    model.save(file)
    return file.getvalue()


@pytest.fixture(scope="module")
def zip_bytes() -> bytes:
    return _saved(PPO("MlpPolicy", Room(VECTOR, FOUR), **STEPS))


def _refusal(data: bytes) -> str:
    with pytest.raises(InvalidSourceError) as caught:
        import_sb3(data, "source.zip", Details(name="made-here", version="1.0.0"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_incomplete_zip_is_refused(zip_bytes: bytes) -> None:
    assert "not a zip" in _refusal(zip_bytes[:1000])
    assert "expected one member 'policy.pth', got 0" in _refusal(_rewritten(zip_bytes, "policy.pth", None))
    assert "data: " in _refusal(_rewritten(zip_bytes, "data", b"{"))
    assert "torch cannot read it as weights" in _refusal(_rewritten(zip_bytes, "policy.pth", b"no tensors"))


def test_layers_that_actor_and_critic_shared_before_1_8_are_those_of_the_actor(tmp_path: Path) -> None:
    kwargs = {"net_arch": {"pi": [9, 7], "vf": [5]}}
    model = PPO("MlpPolicy", Room(VECTOR, DRIVE), **STEPS, policy_kwargs=kwargs)
    shake(model)
    saved = _saved(model)
    with zipfile.ZipFile(io.BytesIO(saved)) as archive:
        weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    old_names = {"policy_net.0.": "shared_net.0.", "policy_net.2.": "policy_net.0."}
    renamed = {}
    for name, tensor in weights.items():
        new = next((new for new in old_names if new in name), None)
        renamed[name if new is None else name.replace(new, old_names[new])] = tensor
    file = io.BytesIO()
    torch.save(renamed, file)
    old = _rewritten(saved, "policy.pth", file.getvalue())
    write_folder(tmp_path, import_sb3(old, "old.zip", Details(name="made-here", version="1.0.0")))
    observation = draw(VECTOR)
    expected, _ = model.predict(observation, deterministic=True)
    np.testing.assert_allclose(act(tmp_path, by_name(observation)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["policy_class", "observation_space", "policy_kwargs"])
def test_a_zip_without_the_fields_of_its_policy_is_refused(name: str, zip_bytes: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(zip_bytes)) as archive:
        fields = json.loads(archive.read("data"))
    del fields[name]
    data = _rewritten(zip_bytes, "data", json.dumps(fields).encode())
    assert f"data: expected {name}, which the library saves, got none" in _refusal(data)


def test_weights_that_do_not_fit_are_refused(zip_bytes: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(zip_bytes)) as archive:
        weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)

    def changed(**more: torch.Tensor | None) -> bytes:
        file = io.BytesIO()
        torch.save({k: v for k, v in {**weights, **more}.items() if v is not None}, file)
        return _rewritten(zip_bytes, "policy.pth", file.getvalue())

    assert "there is no 'action_net.weight'" in _refusal(changed(**{"action_net.weight": None}))
    assert "PPO, A2C, TRPO policy has no 'action_net.extra'" in _refusal(
        changed(**{"action_net.extra": torch.zeros(3)})
    )
    assert "action_net.bias: expected float32, got torch.int64" in _refusal(
        changed(**{"action_net.bias": torch.zeros(4, dtype=torch.int64)})
    )

    assert "its parts do not make a PPO" in _refusal(changed(**{"action_net.weight": torch.zeros(4, 63)}))
    assert "does not fit its class" in _refusal(changed(**{"action_net.bias": torch.zeros(1)}))


def test_options_that_the_library_refuses_are_one_line(zip_bytes: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(zip_bytes)) as archive:
        fields = json.loads(archive.read("data"))
    data = _rewritten(zip_bytes, "data", json.dumps({**fields, "policy_kwargs": {"clip_mean": {}}}).encode())
    assert "Stable-Baselines3 cannot make it" in _refusal(data)


def test_a_bomb_is_refused_before_it_is_unpacked(zip_bytes: bytes) -> None:
    bomb = _rewritten(zip_bytes, "data", b"0" * (65 << 20), compressed=True)
    assert len(bomb) < 1 << 20
    assert "data: expected at most" in _refusal(bomb)
    with zipfile.ZipFile(io.BytesIO(zip_bytes)) as archive:
        weights = _rewritten(archive.read("policy.pth"), "none", None, compressed=True)
    assert "not compressed" in _refusal(_rewritten(zip_bytes, "policy.pth", weights))
