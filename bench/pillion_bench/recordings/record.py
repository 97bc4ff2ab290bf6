"""Plays a Gymnasium environment through a daemon with deterministic actions, and records every step."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

import pillion
from pillion_artifacts import Artifact, Store
from pillion_artifacts.card.environments import make_environment
from pillion_artifacts.card.model_card import Environment, Tolerance
from pillion_bench.errors import BadOptionError, PlayError
from pillion_bench.recordings.recording import Array, Recording
from pillion_protocol import LocalProtocolError, TensorSpec
from pillion_protocol.texts import encode_text

if TYPE_CHECKING:
    import gymnasium

_TOOLS: Final = ("pillion", "numpy", "gymnasium")


class RecordOptions(msgspec.Struct, frozen=True):
    """Which episodes are recorded, and how long they are."""

    episodes: int = 1
    seed: int = 0
    """The seed of the first episode; each later one adds 1."""
    steps_max: int = 0
    """An episode is cut after this many steps; 0: the environment ends it."""


class RecordingBuilder:
    """Collects the steps of a recording."""

    def __init__(self) -> None:
        self.observation: dict[str, list[Array]] = {}
        self.action: dict[str, list[Array]] = {}
        self.reward: list[float] = []
        self.terminated: list[bool] = []
        self.truncated: list[bool] = []
        self.episode_start: list[bool] = []
        self.at_ns: list[int] = []
        self.seed: list[int] = []

    def add_act(self, at_ns: int, observation: Mapping[str, Array], outputs: Mapping[str, Array], starts: bool) -> None:
        """Adds an act that was sent at `at_ns`, and its answer. `starts`: it is the first of an episode."""
        for collected, arrays in ((self.observation, observation), (self.action, outputs)):
            for name, array in arrays.items():
                collected.setdefault(name, []).append(array)
        self.at_ns.append(at_ns)
        self.episode_start.append(starts)

    def add_result(self, reward: float, terminated: bool, truncated: bool) -> None:
        """Adds what the environment returned for that act."""
        self.reward.append(reward)
        self.terminated.append(terminated)
        self.truncated.append(truncated)

    def recording(self, session: pillion.Session, environment: Environment, tolerance: Tolerance) -> Recording:
        """Returns the recording of all steps."""
        return Recording(
            policy=session.policy,
            version=session.version,
            digest=session.digest,
            environment=environment,
            tolerance=tolerance,
            tools=tool_versions(environment),
            observation={name: np.stack(arrays) for name, arrays in self.observation.items()},
            action={name: np.stack(arrays) for name, arrays in self.action.items()},
            reward=np.array(self.reward, np.float64),
            terminated=np.array(self.terminated, bool),
            truncated=np.array(self.truncated, bool),
            episode_start=np.array(self.episode_start, bool),
            step_time_ns=np.array(self.at_ns, np.int64) - self.at_ns[0],
            seed=np.array(self.seed, np.int64),
        )


def find_policy(store: Path, environment_id: str) -> str:
    """Returns the policy of the store that was trained for an environment; raises `BadOptionError` unless there is one."""
    loader = Store(store)
    fitting = [policy for policy in loader.policies() if plays(loader.load(policy), environment_id)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise BadOptionError(f"several policies play {environment_id}: {', '.join(fitting)}; choose one with --policy")
    raise BadOptionError(
        f"no policy of the store plays {environment_id}; choose one of {', '.join(loader.policies())} with --policy"
    )


def plays(artifact: Artifact, environment_id: str) -> bool:
    """Returns whether the card of an artifact names that environment."""
    environment = artifact.card.environment
    return environment is not None and environment.id == environment_id.rpartition(":")[2]


def environment_for(artifact: Artifact | None, environment_id: str) -> Environment:
    """Returns the card's environment, with its arguments and wrappers, if the card names that id; else the bare one.

    `environment_id` may be `module:Id`, as for `gymnasium.make`.
    """
    if artifact is not None and plays(artifact, environment_id):
        assert artifact.card.environment is not None
        return artifact.card.environment
    module, _, name = environment_id.rpartition(":")
    return Environment(name, module)


def record(
    session: pillion.Session,
    environment: Environment,
    tolerance: Tolerance,
    options: RecordOptions,
    progress: Callable[[int, int], None],
) -> Recording:
    """Plays the episodes and calls `progress` with the episode's number and its steps so far. Raises `PlayError`."""
    builder = RecordingBuilder()
    env = _make(environment)
    try:
        for number in range(options.episodes):
            seed = options.seed + number
            builder.seed.append(seed)
            _play(env, session, seed, options.steps_max, builder, partial(progress, number))
    finally:
        env.close()
    return builder.recording(session, environment, tolerance)


def _play(
    env: gymnasium.Env[Any, Any],
    session: pillion.Session,
    seed: int,
    steps_max: int,
    builder: RecordingBuilder,
    progress: Callable[[int], None],
) -> None:
    seen, _ = env.reset(seed=seed)
    steps = 0
    is_over = False
    with session.begin(seed) as episode:
        while not is_over:
            observation = named_observation(session, seen)
            at_ns = time.monotonic_ns()
            action = episode.act(observation)
            last = episode.last
            if last.digest != session.digest:
                raise PlayError("the daemon switched to another version during the recording; record again")
            builder.add_act(at_ns, observation, last.outputs, steps == 0)
            seen, reward, terminated, truncated, _ = env.step(environment_action(env, action))
            builder.add_result(float(reward), bool(terminated), bool(truncated))
            steps += 1
            is_over = bool(terminated or truncated) or steps == steps_max
            progress(steps)


def named_observation(session: pillion.Session, observation: Any) -> dict[str, Array]:
    """Returns the observation under the spec's names and in its dtypes; raises `PlayError` if it does not fit.

    A text becomes the bytes of its row, as it travels.
    """
    tensors = session.spec.observation
    named = observation if isinstance(observation, Mapping) else {tensors[0].name: observation}
    if named.keys() != {tensor.name for tensor in tensors}:
        expected = ", ".join(tensor.name for tensor in tensors)
        raise PlayError(f"the environment's observations: expected {expected}, got {', '.join(named)}")
    sent = {tensor.name: _sent(tensor, named[tensor.name]) for tensor in tensors}
    for tensor in tensors:
        if list(sent[tensor.name].shape) != list(tensor.shape):
            raise PlayError(
                f"the environment's observation {tensor.name!r}: expected shape {list(tensor.shape)}, "
                f"got {list(sent[tensor.name].shape)}"
            )
    return sent


def _sent(tensor: TensorSpec, value: Any) -> Array:
    if not (tensor.is_text and isinstance(value, str)):
        return np.array(value, dtype=tensor.dtype)
    try:
        return np.frombuffer(encode_text(value, tensor.text_bytes_min, tensor.shape[0]), np.uint8)
    except LocalProtocolError as error:
        raise PlayError(f"the environment's observation {tensor.name!r}: {error}") from None


def environment_action(env: gymnasium.Env[Any, Any], action: Array) -> Any:
    """Returns the action for `step`: an int for Discrete; for Box clipped to its bounds, as Stable-Baselines3 does."""
    from gymnasium import spaces

    match env.action_space:
        case spaces.Discrete():
            return int(action)
        case spaces.Box() as box:
            return np.clip(action, box.low, box.high).astype(box.dtype)
        case _:
            return action


def tool_versions(environment: Environment) -> dict[str, str]:
    """Returns the versions of Python, of our packages and of the environment's: they can explain a different replay."""
    names = [*_TOOLS, *([environment.module.partition(".")[0].replace("_", "-")] if environment.module else [])]
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _make(environment: Environment) -> gymnasium.Env[Any, Any]:
    # Environments that draw with pygame need a screen, and a server has none.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    import gymnasium

    try:
        return make_environment(environment)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise PlayError(f"cannot make {environment.id}: {error}") from None
