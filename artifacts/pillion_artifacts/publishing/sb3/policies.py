"""Stable-Baselines3's policies as graphs: from the contents of a zip to a model and its card.

Each family names the weights of the actor, and adds the nodes from features to action. The graph includes the steps of
`predict` around the network: it unscales or clips actions in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np
import onnx
from onnx.shape_inference import InferenceError

from pillion_artifacts.card.model_card import ACTION, Distribution, Preprocessing, StateCard, TensorCard
from pillion_artifacts.errors import InvalidSourceError, first_line
from pillion_artifacts.publishing.common.inert_pickle import InertObject
from pillion_artifacts.publishing.onnx.graph import GraphBuilder
from pillion_artifacts.publishing.sb3.archive import Sb3Archive
from pillion_artifacts.publishing.sb3.networks import (
    ACTIVATIONS,
    linear,
    lstm,
    mlp,
    nature_cnn,
    preprocess,
)
from pillion_artifacts.publishing.sb3.vec_normalize import Normaliser

LOGITS: Final = "logits"
MEAN: Final = "mean"
LOG_STD: Final = "log_std"
VALUES: Final = "action_values"

_SDE_EPSILON: Final = 1e-6
_SAC_LOG_STD: Final = (-20.0, 2.0)
_CLIP_MEAN: Final = 2.0
_STATES: Final = (("lstm_hidden", "lstm_hidden_next"), ("lstm_cell", "lstm_cell_next"))

_EXTRACTORS: Final = {
    f"stable_baselines3.common.torch_layers.{name}" for name in ("FlattenExtractor", "NatureCNN", "CombinedExtractor")
}


class Family(msgspec.Struct, frozen=True):
    """Policies with the same structure."""

    algorithms: str
    """Their names, for messages."""
    classes: tuple[str, ...]
    """The policy classes of the module."""
    prefixes: tuple[str, ...]
    """Prefixes of the actor's weights. The others belong to critics and target networks."""
    features: str
    """The prefix of the features extractor's weights."""
    activation: str
    """The default activation, a class of `torch.nn`."""
    head: Callable[[Parts], None]
    """Adds the nodes from features to outputs."""


class Sb3Graph(msgspec.Struct, frozen=True):
    """A policy as a graph, and the parts of its card."""

    model: onnx.ModelProto
    observation: list[TensorCard]
    action: TensorCard
    distribution: Distribution
    state: list[StateCard]
    preprocessing: list[Preprocessing]
    further: list[str]
    """Graph outputs other than the action and the next states."""


class Parts:
    """A policy under construction: the graph, the contents of the zip, and the outputs so far."""

    def __init__(self, archive: Sb3Archive, family: Family) -> None:
        self.graph = GraphBuilder()
        self.archive = archive
        self.family = family
        self.weights = archive.weights
        self.activation = _activation_name(archive, family)
        self.features = ""
        self.action = archive.action.card(ACTION)
        self.distribution = Distribution()
        self.states: list[StateCard] = []
        self.further: list[str] = []

    @property
    def uses_sde(self) -> bool:
        """Whether the noise depends on the state (gSDE)."""
        return bool(self.archive.data.get("use_sde") or self.archive.option("use_sde", False))

    def add_output(self, name: str, value: str, shape: list[int]) -> None:
        """Adds the float32 output `name`."""
        self.graph.output(name, value, "float32", shape)
        self.further.append(name)

    def add_action(self, value: str) -> None:
        """Makes `value` the action. It has the action's dtype and shape."""
        self.graph.output(ACTION, value, self.action.dtype, list(self.action.shape))

    def shaped(self, value: str) -> str:
        """Reshapes [rows, n] to [rows, *shape of the action]."""
        shape = list(self.action.shape)
        return value if len(shape) == 1 else self.graph.reshape(value, shape)


def build_graph(archive: Sb3Archive, normaliser: Normaliser | None) -> Sb3Graph:
    """Builds the graph of the policy in a zip. Raises `InvalidSourceError`."""
    family = family_of(archive)
    try:
        return _build(archive, family, normaliser)
    except (IndexError, TypeError, ValueError, onnx.checker.ValidationError, InferenceError) as error:
        # options of a wrong type, or weights whose shapes do not match
        raise InvalidSourceError(f"its parts do not make a {family.algorithms} policy: {first_line(error)}") from None


def _build(archive: Sb3Archive, family: Family, normaliser: Normaliser | None) -> Sb3Graph:
    parts = Parts(archive, family)
    parts.features, steps = _features(parts, normaliser)
    family.head(parts)
    left = archive.weights.left(tuple(prefix for prefix in family.prefixes if not prefix.startswith("features")))
    if left:
        raise InvalidSourceError(f"policy.pth: a {family.algorithms} policy has no {left[0]!r}")
    return Sb3Graph(
        model=parts.graph.build(),
        observation=[space.card(name) for name, space in archive.observation.items()],
        action=parts.action,
        distribution=parts.distribution,
        state=parts.states,
        preprocessing=steps,
        further=parts.further,
    )


def family_of(archive: Sb3Archive) -> Family:
    """The family of the policy's class. Raises `InvalidSourceError`."""
    module, _, name = archive.policy_class.rpartition(".")
    if module not in FAMILIES or name not in FAMILIES[module].classes:
        raise InvalidSourceError(
            f"policy_class: expected one of {', '.join(family.algorithms for family in FAMILIES.values())}, "
            f"got {archive.policy_class}"
        )
    return FAMILIES[module]


def features_prefix(archive: Sb3Archive, family: Family) -> str:
    """The prefix of the actor's features extractor, without the last dot."""
    own = "pi_features_extractor"
    return own if archive.weights.names(f"{own}.") else family.features


def _activation_name(archive: Sb3Archive, family: Family) -> str:
    given = archive.policy_kwargs.get("activation_fn")
    name = given.name if isinstance(given, InertObject) else f"torch.nn.{family.activation}"
    short = str(name).rpartition(".")[2]
    if not str(name).startswith("torch.nn.") or short not in ACTIVATIONS:
        raise InvalidSourceError(f"policy_kwargs: activation_fn: expected one of {', '.join(ACTIVATIONS)}, got {name}")
    return short


def _features(parts: Parts, normaliser: Normaliser | None) -> tuple[str, list[Preprocessing]]:
    """Adds all observations as one row of features. Returns it and the preprocessing steps."""
    archive = parts.archive
    _check_extractor(archive)
    prefix = features_prefix(archive, parts.family)
    scales = bool(archive.option("normalize_images", True))
    values: list[str] = []
    steps: list[Preprocessing] = []
    for name, space in archive.observation.items():
        value, taken = preprocess(parts.graph, name, space, normaliser, scales_images=scales)
        own = f"{prefix}.extractors.{name}" if archive.is_dict else prefix
        values.append(_extract(parts, value, own))
        steps += taken
    joined = values[0] if len(values) == 1 else parts.graph.node("Concat", *values, axis=1)
    return joined, steps


def _check_extractor(archive: Sb3Archive) -> None:
    given = archive.policy_kwargs.get("features_extractor_class")
    if given is not None and (not isinstance(given, InertObject) or given.name not in _EXTRACTORS):
        raise InvalidSourceError(
            f"policy_kwargs: features_extractor_class: expected one of Stable-Baselines3's own, got {given!r}; "
            "publish its network with pillion_artifacts.export"
        )


def _extract(parts: Parts, value: str, prefix: str) -> str:
    if f"{prefix}.cnn.0.weight" in parts.weights:
        return nature_cnn(parts.graph, value, parts.weights, prefix)
    return parts.graph.node("Flatten", value, axis=1)


def _actor_critic(parts: Parts) -> None:
    """Adds the head of PPO, A2C and TRPO."""
    _actor_critic_head(parts, parts.features)


def _recurrent(parts: Parts) -> None:
    """Adds the LSTM and the head of RecurrentPPO."""
    width = parts.weights.take("lstm_actor.weight_hh_l0").shape[1]
    layers = len([name for name in parts.weights.names("lstm_actor.") if "weight_hh_l" in name])
    states = [parts.graph.input(name, "float32", [layers, width]) for name, _ in _STATES]
    value, after = lstm(parts.graph, parts.features, parts.weights, "lstm_actor", states)
    _actor_critic_head(parts, value)
    for (name, output), state in zip(_STATES, after, strict=True):
        parts.graph.output(output, state, "float32", [layers, width])
        parts.states.append(StateCard(name, output, "float32", [layers, width]))


def _actor_critic_head(parts: Parts, value: str) -> None:
    graph, space = parts.graph, parts.archive.action
    if parts.weights.names("sde_features_extractor."):
        raise InvalidSourceError("policy.pth: sde_features_extractor was removed from Stable-Baselines3 before 1.8")
    latent = mlp(graph, value, parts.weights, "mlp_extractor.policy_net", parts.activation, ends_activated=True)
    head = linear(graph, latent, parts.weights, "action_net")
    match space.kind:
        case "Discrete":
            _add_choice(parts, head, LOGITS)
            parts.distribution = Distribution("categorical", logits=LOGITS)
        case "MultiDiscrete":
            parts.add_action(_each_choice(parts, head))
        case "MultiBinary":
            rounded = graph.node("Round", graph.node("Sigmoid", head))
            parts.add_action(parts.shaped(graph.cast(rounded, parts.action.dtype)))
        case _:
            _add_gaussian(parts, head, latent)


def _add_choice(parts: Parts, values: str, name: str) -> None:
    """Makes the index of the greatest value the action."""
    parts.add_action(parts.graph.node("ArgMax", values, axis=1, keepdims=0))
    parts.add_output(name, values, [parts.archive.action.choices[0]])


def _each_choice(parts: Parts, logits: str) -> str:
    """The index of the greatest logit of each element."""
    graph, sizes = parts.graph, parts.archive.action.choices
    groups = graph.nodes("Split", logits, graph.int64(sizes), outputs=len(sizes), axis=1)
    best = [graph.node("ArgMax", group, axis=1, keepdims=1) for group in groups]
    return parts.shaped(best[0] if len(best) == 1 else graph.node("Concat", *best, axis=1))


def _add_gaussian(parts: Parts, mean: str, latent: str) -> None:
    """Adds the Box actions of A2C, PPO and TRPO: clipped, or squashed if gSDE does so."""
    graph, shape = parts.graph, list(parts.action.shape)
    log_std = parts.weights.take("log_std")
    if parts.uses_sde:
        deviation = _sde_log_std(parts, latent, log_std)
    else:
        deviation = graph.node("Expand", graph.float32(log_std), graph.node("Shape", mean))
    if parts.archive.option("squash_output", False):
        _add_squashed(parts, mean, deviation)
        return
    parts.add_action(_clipped(parts, mean))
    parts.add_output(MEAN, parts.shaped(mean), shape)
    parts.add_output(LOG_STD, parts.shaped(deviation), shape)
    parts.distribution = Distribution("diagonal_gaussian", mean=MEAN, log_std=LOG_STD)


def _sde_log_std(parts: Parts, latent: str, log_std: np.ndarray[Any, np.dtype[np.float32]]) -> str:
    """The log deviation in this state of gSDE's noise, which is drawn for the weights of the last layer."""
    graph = parts.graph
    deviation = np.exp(log_std)
    if parts.archive.option("use_expln", False):
        above = np.log1p(np.maximum(log_std, 0) + np.float32(_SDE_EPSILON)) + 1
        deviation = np.where(log_std <= 0, deviation, above)
    columns = int(np.prod(parts.action.shape))
    squared = np.broadcast_to(deviation**2, (log_std.shape[0], columns))
    variance = graph.node("MatMul", graph.node("Mul", latent, latent), graph.float32(squared))
    return graph.node(
        "Mul", graph.node("Log", graph.node("Add", variance, graph.float32(_SDE_EPSILON))), graph.float32(0.5)
    )


def _clipped(parts: Parts, value: str) -> str:
    """Clips to the bounds of the space, as `predict` does, also to infinite ones."""
    graph, space = parts.graph, parts.archive.action
    low = graph.node("Max", parts.shaped(value), graph.float32(space.low))
    return graph.cast(graph.node("Min", low, graph.float32(space.high)), parts.action.dtype)


def _unscaled(parts: Parts, value: str) -> str:
    """Scales from [-1, 1] to the bounds of the space, as `unscale_action` does."""
    graph, space = parts.graph, parts.archive.action
    if not (parts.action.low and parts.action.high):
        raise InvalidSourceError("action_space: a squashed action needs finite bounds")
    half = graph.node("Mul", graph.float32(0.5), graph.node("Add", parts.shaped(value), graph.float32(1.0)))
    wide = graph.node("Mul", half, graph.float32(space.high - space.low))
    return graph.cast(graph.node("Add", graph.float32(space.low), wide), parts.action.dtype)


def _add_squashed(parts: Parts, mean: str, log_std: str) -> None:
    shape = list(parts.action.shape)
    parts.add_action(_unscaled(parts, parts.graph.node("Tanh", mean)))
    parts.add_output(MEAN, parts.shaped(mean), shape)
    parts.add_output(LOG_STD, parts.shaped(log_std), shape)
    parts.distribution = Distribution("squashed_gaussian", mean=MEAN, log_std=LOG_STD)


def _squashed_actor(parts: Parts) -> None:
    """Adds the head of SAC and TQC."""
    graph = parts.graph
    latent = mlp(graph, parts.features, parts.weights, "actor.latent_pi", parts.activation, ends_activated=True)
    if not parts.uses_sde:
        mean = linear(graph, latent, parts.weights, "actor.mu")
        least, most = map(graph.float32, _SAC_LOG_STD)
        log_std = graph.node("Clip", linear(graph, latent, parts.weights, "actor.log_std"), least, most)
    else:
        bound = float(parts.archive.option("clip_mean", _CLIP_MEAN))
        mean = linear(graph, latent, parts.weights, "actor.mu.0" if bound > 0 else "actor.mu")
        if bound > 0:
            mean = graph.node("Clip", mean, graph.float32(-bound), graph.float32(bound))
        log_std = _sde_log_std(parts, latent, parts.weights.take("actor.log_std"))
    _add_squashed(parts, mean, log_std)


def _deterministic_actor(parts: Parts) -> None:
    """Adds the head of TD3 and DDPG."""
    value = mlp(parts.graph, parts.features, parts.weights, "actor.mu", parts.activation, ends_activated=False)
    parts.add_action(_unscaled(parts, parts.graph.node("Tanh", value)))


def _action_values(parts: Parts) -> None:
    """Adds the head of DQN."""
    values = mlp(parts.graph, parts.features, parts.weights, "q_net.q_net", parts.activation, ends_activated=False)
    _add_choice(parts, values, VALUES)


def _quantiles(parts: Parts) -> None:
    """Adds the head of QR-DQN: the mean of each action's quantiles."""
    graph, prefix = parts.graph, "quantile_net.quantile_net"
    flat = mlp(graph, parts.features, parts.weights, prefix, parts.activation, ends_activated=False)
    by_action = graph.node("Reshape", flat, graph.int64([0, -1, parts.archive.action.choices[0]]))
    _add_choice(parts, graph.node("ReduceMean", by_action, axes=[1], keepdims=0), VALUES)


def _random_search(parts: Parts) -> None:
    """Adds the head of ARS: one network, without a distribution."""
    graph, space = parts.graph, parts.archive.action
    is_linear = parts.archive.policy_class.endswith("LinearPolicy")
    value = mlp(graph, parts.features, parts.weights, "action_net", parts.activation, ends_activated=False)
    if space.kind == "Discrete":
        _add_choice(parts, value, VALUES)
    elif parts.archive.option("squash_output", not is_linear):
        parts.add_action(_unscaled(parts, graph.node("Tanh", value)))
    else:
        parts.add_action(_clipped(parts, value))


_ACTING: Final = ("mlp_extractor.policy_net.", "action_net.", "log_std", "lstm_actor.")
_PI_FEATURES: Final = ("features_extractor.", "pi_features_extractor.")

_NAMES: Final = ("CnnPolicy", "MultiInputPolicy")
_ON_POLICY_NAMES: Final = ("ActorCriticPolicy", "ActorCriticCnnPolicy", "MultiInputActorCriticPolicy")
_RECURRENT_NAMES: Final = (
    "RecurrentActorCriticPolicy",
    "RecurrentActorCriticCnnPolicy",
    "RecurrentMultiInputActorCriticPolicy",
)

FAMILIES: Final[dict[str, Family]] = {
    "stable_baselines3.common.policies": Family(
        "PPO, A2C, TRPO", _ON_POLICY_NAMES, _ACTING + _PI_FEATURES, "features_extractor", "Tanh", _actor_critic
    ),
    "stable_baselines3.dqn.policies": Family(
        "DQN", ("DQNPolicy", *_NAMES), ("q_net.",), "q_net.features_extractor", "ReLU", _action_values
    ),
    "stable_baselines3.sac.policies": Family(
        "SAC", ("SACPolicy", *_NAMES), ("actor.",), "actor.features_extractor", "ReLU", _squashed_actor
    ),
    "stable_baselines3.td3.policies": Family(
        "TD3, DDPG", ("TD3Policy", *_NAMES), ("actor.",), "actor.features_extractor", "ReLU", _deterministic_actor
    ),
    "sb3_contrib.tqc.policies": Family(
        "TQC", ("TQCPolicy", *_NAMES), ("actor.",), "actor.features_extractor", "ReLU", _squashed_actor
    ),
    "sb3_contrib.qrdqn.policies": Family(
        "QR-DQN", ("QRDQNPolicy", *_NAMES), ("quantile_net.",), "quantile_net.features_extractor", "ReLU", _quantiles
    ),
    "sb3_contrib.ars.policies": Family(
        "ARS", ("ARSPolicy", "ARSLinearPolicy"), ("action_net.",), "features_extractor", "ReLU", _random_search
    ),
    "sb3_contrib.common.recurrent.policies": Family(
        "RecurrentPPO", _RECURRENT_NAMES, _ACTING + _PI_FEATURES, "features_extractor", "Tanh", _recurrent
    ),
}
"""By the module of the policy's class."""
