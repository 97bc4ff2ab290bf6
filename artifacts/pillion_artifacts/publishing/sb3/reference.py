"""Runs Stable-Baselines3 itself as the source: its policy class with the weights of the zip, and its `predict`.

The class comes from a list and its arguments are made here, so nothing of the zip's pickles runs.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pillion_artifacts.card.golden_pairs import Arrays
from pillion_artifacts.card.model_card import ACTION
from pillion_artifacts.errors import InvalidSourceError, first_line
from pillion_artifacts.publishing.common.inert_pickle import InertObject
from pillion_artifacts.publishing.common.source_policy import SourceRun, margin_of
from pillion_artifacts.publishing.sb3.archive import Sb3Archive, Weights
from pillion_artifacts.publishing.sb3.networks import layer_numbers
from pillion_artifacts.publishing.sb3.policies import LOG_STD, LOGITS, MEAN, VALUES, Sb3Graph, family_of
from pillion_artifacts.publishing.sb3.vec_normalize import Normaliser

_PLAIN_OPTIONS: Final = ("use_expln", "full_std", "squash_output", "clip_mean", "normalize_images", "with_bias")
_EXTRACTOR_MODULE: Final = "stable_baselines3.common.torch_layers"


class Sb3Reference:
    """A policy of Stable-Baselines3 or sb3-contrib. Raises `InvalidSourceError` if the weights do not fit its class."""

    def __init__(self, archive: Sb3Archive, graph: Sb3Graph, normaliser: Normaliser | None) -> None:
        self._archive = archive
        self._graph = graph
        self._normaliser = normaliser
        self._policy = _make_policy(archive)
        self._values: torch.Tensor | None = None
        value_network = _find(self._policy, ("q_net", "quantile_net", "action_net"))
        if value_network is not None:
            value_network.register_forward_hook(self._remember)

    def run(self, inputs: Arrays) -> SourceRun:
        observation = {card.name: inputs[card.name] for card in self._graph.observation}
        if self._normaliser is not None:
            observation = self._normaliser.apply(observation)
        arguments: Any = observation if self._archive.is_dict else next(iter(observation.values()))
        states = tuple(inputs[state.name].swapaxes(0, 1) for state in self._graph.state)
        try:
            action, after = self._policy.predict(arguments, states or None, deterministic=True)
        except Exception as error:  # noqa: BLE001 - the library does not document what it raises
            raise InvalidSourceError(f"Stable-Baselines3 cannot run it: {first_line(error)}") from None
        outputs = {ACTION: action.astype(self._graph.action.dtype), **self._parameters()}
        for card, state in zip(self._graph.state, after or (), strict=False):
            outputs[card.output] = np.ascontiguousarray(state.swapaxes(0, 1))
        return SourceRun(outputs, self._margin())

    def _remember(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        # quantiles are [rows, quantiles, actions]
        self._values = output.detach().mean(dim=1) if output.ndim == 3 else output.detach()

    def _parameters(self) -> Arrays:
        """The values of the graph's other outputs."""
        outputs: Arrays = {}
        shape = (-1, *self._graph.action.shape)
        for name in self._graph.further:
            if name in (LOGITS, VALUES):
                outputs[name] = self._action_values()
            elif name in (MEAN, LOG_STD):
                normal = getattr(self._policy, "actor", self._policy).action_dist.distribution
                tensor = normal.mean if name == MEAN else normal.stddev.log()
                outputs[name] = tensor.detach().numpy().reshape(shape)
        return outputs

    def _action_values(self) -> NDArray[Any]:
        assert self._values is not None
        return self._values.numpy()

    def _margin(self) -> NDArray[np.float64] | None:
        space = self._archive.action
        match space.kind:
            case "Discrete":
                return margin_of(self._action_values())
            case "MultiDiscrete":
                groups = np.split(self._action_values(), np.cumsum(space.choices)[:-1], axis=1)
                return np.asarray(np.min([margin_of(group) for group in groups], axis=0), np.float64)
            case "MultiBinary":
                return np.asarray(np.abs(self._action_values()).min(axis=1), np.float64)
        return None


def _find(policy: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    return next((getattr(policy, name) for name in names if hasattr(policy, name)), None)


def _make_policy(archive: Sb3Archive) -> Any:
    from gymnasium import spaces

    module, _, name = archive.policy_class.rpartition(".")
    family = family_of(archive)
    try:
        policy_class = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise InvalidSourceError(f"{family.algorithms}: {error.name} is not installed") from None
    made = [(key, space.make()) for key, space in archive.observation.items()]
    # a list of pairs: Gymnasium would sort the keys of a dictionary, and their order is that of the features
    observation = spaces.Dict(made) if archive.is_dict else made[0][1]
    schedule = [] if module.startswith("sb3_contrib.ars") else [_no_schedule]
    try:
        policy = policy_class(observation, archive.action.make(), *schedule, **_arguments(archive))
    except Exception as error:  # noqa: BLE001 - as in `run`
        raise InvalidSourceError(f"Stable-Baselines3 cannot make it: {first_line(error)}") from None
    _load(policy, archive, family.prefixes)
    policy.set_training_mode(False)
    return policy


def _no_schedule(_: float) -> float:
    return 0.0


def _load(policy: nn.Module, archive: Sb3Archive, prefixes: tuple[str, ...]) -> None:
    """Loads the actor's weights. Raises `InvalidSourceError` if one is missing or does not fit."""
    state = archive.weights.of(prefixes)
    for name in [name for name in state if name.startswith("features_extractor.")]:
        # versions before 1.7 have one extractor for actor and critic; later ones have two names
        state.setdefault(f"pi_{name}", state[name])
    try:
        missing = policy.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InvalidSourceError(f"policy.pth does not fit its class {archive.policy_class}: {reason}") from None
    acting = [name for name in missing.missing_keys if name.startswith(prefixes)]
    if acting or missing.unexpected_keys:
        raise InvalidSourceError(
            f"policy.pth does not fit its class {archive.policy_class}: "
            f"missing {acting or 'none'}, too many {missing.unexpected_keys or 'none'}"
        )


def _arguments(archive: Sb3Archive) -> dict[str, Any]:
    """The arguments of the class: sizes from the weights, the rest from plain fields and lists of names."""
    given = archive.policy_kwargs
    arguments: dict[str, Any] = {name: given[name] for name in _PLAIN_OPTIONS if name in given}
    activation = given.get("activation_fn")
    if isinstance(activation, InertObject):
        arguments["activation_fn"] = getattr(nn, activation.name.rpartition(".")[2])
    module = archive.policy_class.rpartition(".")[0]
    is_linear = archive.policy_class.endswith("ARSLinearPolicy")
    if not is_linear:
        arguments["net_arch"] = _architecture(archive.weights, module)
    if module.startswith("sb3_contrib.ars"):
        return arguments
    if module.endswith((".common.policies", ".recurrent.policies", ".sac.policies", ".tqc.policies")):
        arguments["use_sde"] = bool(archive.data.get("use_sde") or archive.option("use_sde", False))
    if module.endswith(".recurrent.policies"):
        arguments |= _lstm_arguments(archive.weights)
    if module.endswith(".qrdqn.policies"):
        arguments["n_quantiles"] = _quantiles(archive)
    return arguments | _extractor_arguments(archive)


def _architecture(weights: Weights, module: str) -> Any:
    prefix, layers_after = {
        "stable_baselines3.dqn.policies": ("q_net.q_net", 1),
        "sb3_contrib.qrdqn.policies": ("quantile_net.quantile_net", 1),
        "sb3_contrib.ars.policies": ("action_net", 1),
        "stable_baselines3.td3.policies": ("actor.mu", 1),
        "stable_baselines3.sac.policies": ("actor.latent_pi", 0),
        "sb3_contrib.tqc.policies": ("actor.latent_pi", 0),
    }.get(module, ("mlp_extractor.policy_net", 0))
    widths = [len(weights.take(f"{prefix}.{number}.weight")) for number in layer_numbers(weights, prefix)]
    hidden = widths[: len(widths) - layers_after]
    if module.endswith(("dqn.policies", "ars.policies")):
        return hidden
    return {"pi": hidden, "vf": [], "qf": []}


def _lstm_arguments(weights: Weights) -> dict[str, Any]:
    layers = len([name for name in weights.names("lstm_actor.") if "weight_hh_l" in name])
    width = weights.take("lstm_actor.weight_hh_l0").shape[1]
    return {
        "lstm_hidden_size": width,
        "n_lstm_layers": layers,
        "enable_critic_lstm": False,
        "lstm_kwargs": {"bias": "lstm_actor.bias_hh_l0" in weights},
    }


def _quantiles(archive: Sb3Archive) -> int:
    last = layer_numbers(archive.weights, "quantile_net.quantile_net")[-1]
    rows = len(archive.weights.take(f"quantile_net.quantile_net.{last}.weight"))
    return int(rows // archive.action.choices[0])


def _extractor_arguments(archive: Sb3Archive) -> dict[str, Any]:
    """The extractor's class by name, and its widths from the weights."""
    given = archive.policy_kwargs.get("features_extractor_class")
    arguments: dict[str, Any] = {}
    if isinstance(given, InertObject):
        layers = importlib.import_module(_EXTRACTOR_MODULE)
        arguments["features_extractor_class"] = getattr(layers, given.name.rpartition(".")[2])
    widths = {
        len(archive.weights.take(name)) for name in archive.weights.names("") if name.endswith(".linear.0.weight")
    }
    if len(widths) == 1:
        key = "cnn_output_dim" if archive.is_dict else "features_dim"
        arguments["features_extractor_kwargs"] = {key: widths.pop()}
    own = archive.policy_kwargs.get("features_extractor_kwargs")
    if isinstance(own, dict) and "normalized_image" in own:
        arguments.setdefault("features_extractor_kwargs", {})["normalized_image"] = bool(own["normalized_image"])
    return arguments
