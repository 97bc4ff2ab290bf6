"""The model card: what a policy takes, gives and was measured to do, as a typed structure.

Written by people as `model_card.yaml`. A key that is not named here is an error with its path.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import msgspec
import semver
import yaml

from pillion_artifacts.errors import InvalidArtifactError
from pillion_protocol.specs import DType, Space, Spec, TensorSpec


class TensorCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One observation or output; the fields mean what `pillion_protocol.specs.TensorSpec` says of them."""

    name: str
    dtype: DType
    shape: list[Annotated[int, msgspec.Meta(ge=1)]] = []
    space: Space = "Box"
    low: list[float] = []
    high: list[float] = []
    finite: bool = True


class Distribution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an action is drawn, and which outputs of the graph hold the parameters.

    `deterministic`: the graph's `action` is all there is. `categorical`: `logits` names a graph output of
    shape [rows, n]; the graph's own `action` is its argmax. `diagonal_gaussian`: the graph's `action` is
    the mean and `log_std` names a graph output of the action's shape (natural logarithm).
    """

    kind: Literal["deterministic", "categorical", "diagonal_gaussian"] = "deterministic"
    logits: str = ""
    log_std: str = ""


class Tolerance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """By how much an output may differ from a recorded one: |a - b| <= absolute + relative * |b|."""

    absolute: float = 1e-5
    relative: float = 1e-5


class Wrapper(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A wrapper of `gymnasium.wrappers`, by name, with its keyword arguments."""

    name: str
    kwargs: dict[str, Any] = {}


class Environment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to make the environment that the policy was trained for; wrappers are applied in order.

    `module` is a package whose import registers the environment, where Gymnasium alone does not know it.
    """

    id: str
    module: str = ""
    kwargs: dict[str, Any] = {}
    wrappers: list[Wrapper] = []


class Metric(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A measured figure with the number of episodes it rests on."""

    value: float
    standard_deviation: float
    episodes: Annotated[int, msgspec.Meta(ge=1)]
    first_seed: int = 0
    deterministic: bool = True


class Lineage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights came from."""

    script: str = ""
    algorithm: str = ""
    timesteps: int = 0
    seed: int = 0
    parent: str = ""
    tool_versions: dict[str, str] = {}


class ModelCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A policy version in the words of those who made it."""

    schema: Literal[1]
    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=128)]
    version: str
    description: str
    licence: str
    observation: Annotated[list[TensorCard], msgspec.Meta(min_length=1)]
    outputs: Annotated[list[TensorCard], msgspec.Meta(min_length=1)]
    distribution: Distribution = Distribution()
    safe_action: list[float] | None = None
    """What a session that asks for it gets when its budget is spent: the action's elements in C order."""
    tolerance: Tolerance = Tolerance()
    environment: Environment | None = None
    metrics: dict[str, Metric] = {}
    lineage: Lineage = Lineage()

    def spec(self) -> Spec:
        """The observation and output spec that a session of this policy agrees upon."""
        return Spec(
            observation=[TensorSpec(*msgspec.structs.astuple(card)) for card in self.observation],
            outputs=[TensorSpec(*msgspec.structs.astuple(card)) for card in self.outputs],
        )


class _UniqueKeyLoader(yaml.CSafeLoader):
    """A safe loader for which a key given twice is an error, not the last one's silent victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise InvalidArtifactError(f"model card: line {node.start_mark.line + 1}: key {key!r} is given twice")
        return super().construct_mapping(node, deep=deep)


def parse_card(text: bytes) -> ModelCard:
    """The card that YAML `text` holds; raises `InvalidArtifactError` with the path of what is wrong."""
    try:
        fields = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - it derives from the safe loader
        card = msgspec.convert(fields, ModelCard)
    except yaml.YAMLError as error:
        raise InvalidArtifactError(f"model card: not YAML: {error}") from None
    except msgspec.ValidationError as error:
        raise InvalidArtifactError(f"model card: {error}") from None
    if not semver.Version.is_valid(card.version):
        raise InvalidArtifactError(f"model card: version: expected MAJOR.MINOR.PATCH, came {card.version!r}")
    _check_tensors(card)
    _check_action(card)
    return card


def _check_tensors(card: ModelCard) -> None:
    """Raises `InvalidArtifactError` for a name given twice, or bounds that are neither none, nor one, nor one each."""
    for field, tensors in (("observation", card.observation), ("outputs", card.outputs)):
        names = [tensor.name for tensor in tensors]
        if len(set(names)) != len(names):
            raise InvalidArtifactError(f"model card: {field}: expected names that differ, came {', '.join(names)}")
        for tensor in tensors:
            elements = math.prod(tensor.shape)
            for bound, values in (("low", tensor.low), ("high", tensor.high)):
                if len(values) not in (0, 1, elements):
                    raise InvalidArtifactError(
                        f"model card: {field}.{tensor.name}.{bound}: expected 0, 1 or {elements} numbers, "
                        f"came {len(values)}"
                    )


def _check_action(card: ModelCard) -> None:
    """Raises `InvalidArtifactError` where the distribution or the safe action is not one of this action."""
    action = next((tensor for tensor in card.outputs if tensor.name == "action"), None)
    if action is None:
        raise InvalidArtifactError("model card: outputs: expected one called 'action', came none")
    distribution = card.distribution
    fitting = {"deterministic": action.space, "categorical": "Discrete", "diagonal_gaussian": "Box"}
    if action.space != fitting[distribution.kind]:
        raise InvalidArtifactError(
            f"model card: distribution.kind: {distribution.kind} draws {fitting[distribution.kind]} actions, "
            f"the action is {action.space}"
        )
    if action.space == "Discrete" and action.shape:
        raise InvalidArtifactError(f"model card: outputs.action.shape: a Discrete action has none, came {action.shape}")
    parameter = {"categorical": "logits", "diagonal_gaussian": "log_std"}.get(distribution.kind)
    if parameter and not getattr(distribution, parameter):
        raise InvalidArtifactError(f"model card: distribution.{parameter}: expected the name of a graph output")
    if card.safe_action is not None and len(card.safe_action) != math.prod(action.shape):
        raise InvalidArtifactError(
            f"model card: safe_action: expected {math.prod(action.shape)} numbers, came {len(card.safe_action)}"
        )
