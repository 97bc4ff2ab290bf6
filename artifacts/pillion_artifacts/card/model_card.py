"""The model card: what a policy takes, gives and was measured to do, as a typed structure.

Written as `model_card.yaml`, by people or by an importer. A key that is not named here is an error with its path.
Cards of older schemas are read as they are and become cards of this one in memory; their bytes, and so their
digests, stay what they were.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal

import msgspec
import semver

from pillion_artifacts.card import schema_1 as card_schema_1
from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.yaml_text import read_yaml
from pillion_protocol.specs import DType, Space, Spec, TensorSpec

SCHEMA: Final = 2
"""The schema that is written."""

ACTION: Final = "action"
"""The output that every policy has."""

Dimension = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Digest = Annotated[str, msgspec.Meta(pattern=r"^(sha256:[0-9a-f]{64})?$")]


class TensorCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One observation or output; the fields mean what `pillion_protocol.specs.TensorSpec` says of them."""

    name: str
    dtype: DType
    shape: list[Dimension] = []
    space: Space = "Box"
    low: list[float] = []
    high: list[float] = []
    finite: bool = True


class StateCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor that a recurrent policy carries from step to step; an episode begins with zeros.

    `name` is the graph's input, `output` the graph's output that is the next step's input.
    """

    name: str
    output: str
    dtype: DType
    shape: list[Dimension]


class Distribution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an action is drawn, and which outputs of the graph hold the parameters.

    `deterministic`: the graph's `action` is all there is. `categorical`: `logits` names a graph output of
    shape [rows, n]; the graph's own `action` is its argmax. `diagonal_gaussian`: `mean` and `log_std` name graph
    outputs of the action's shape (natural logarithm); without `mean` the graph's `action` is the mean.
    `squashed_gaussian`: the same before a hyperbolic tangent, which is then stretched from [-1, 1] to the action's
    `low` and `high`.
    """

    kind: Literal["deterministic", "categorical", "diagonal_gaussian", "squashed_gaussian"] = "deterministic"
    logits: str = ""
    log_std: str = ""
    mean: str = ""

    def parameters(self) -> list[str]:
        """The graph outputs that drawing reads beside the action."""
        return [name for name in (self.logits, self.mean, self.log_std) if name]


class Bound(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """By how much one output may differ: |a - b| <= absolute + relative * |b|."""

    absolute: NotNegative = 1e-5
    relative: NotNegative = 1e-5


class Tolerance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """By how much an output may differ from a recorded one: |a - b| <= absolute + relative * |b|.

    `outputs` holds the bounds of outputs that have their own, by name. Integers must be equal.
    """

    absolute: NotNegative = 1e-5
    relative: NotNegative = 1e-5
    outputs: dict[str, Bound] = {}

    def of(self, output: str) -> Bound:
        """The bound of an output."""
        return self.outputs.get(output, Bound(self.absolute, self.relative))


class FrameStack(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The newest `frames` frames of one observation, oldest first, along `axis` of its row.

    The client stacks them; `padding` says what stands for frames before the first of an episode.
    """

    observation: str
    frames: Annotated[int, msgspec.Meta(ge=2)]
    axis: Annotated[int, msgspec.Meta(ge=0)] = 0
    padding: Literal["first", "zeros"] = "first"


class Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A step that the graph itself takes before the network, in their order: a client sends what it observed.

    `observation` is its name, empty for all of them. `digest` is that of the file the step was made from.
    """

    step: Literal["scale", "one_hot", "normalise", "pipeline"]
    observation: str = ""
    detail: str = ""
    digest: Digest = ""


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
    """Where the weights came from. `source` is what was published, `normaliser` the observations' statistics."""

    script: str = ""
    algorithm: str = ""
    timesteps: int = 0
    seed: int = 0
    parent: str = ""
    run: str = ""
    code_commit: str = ""
    source: Digest = ""
    data_set: Digest = ""
    normaliser: Digest = ""
    tool_versions: dict[str, str] = {}


class Contributor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody, or a policy or data set, that this version owes something to; weights are relative to each other."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    role: str = ""
    weight: NotNegative = 1.0


class ModelCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A policy version in the words of those who made it."""

    schema: Literal[2]
    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=128)]
    version: str
    description: str
    licence: str
    observation: Annotated[list[TensorCard], msgspec.Meta(min_length=1)]
    outputs: Annotated[list[TensorCard], msgspec.Meta(min_length=1)]
    distribution: Distribution = Distribution()
    state: list[StateCard] = []
    frame_stack: list[FrameStack] = []
    preprocessing: list[Preprocessing] = []
    safe_action: list[float] | None = None
    """What a session that asks for it gets when its budget is spent: the action's elements in C order."""
    tolerance: Tolerance = Tolerance()
    environment: Environment | None = None
    metrics: dict[str, Metric] = {}
    lineage: Lineage = Lineage()
    contributors: list[Contributor] = []

    def spec(self) -> Spec:
        """The observation and output spec that a session of this policy agrees upon."""
        return Spec(
            observation=[TensorSpec(*msgspec.structs.astuple(card)) for card in self.observation],
            outputs=[TensorSpec(*msgspec.structs.astuple(card)) for card in self.outputs],
        )

    def action(self) -> TensorCard:
        """The output called `action`."""
        return next(tensor for tensor in self.outputs if tensor.name == ACTION)


def parse_card(text: bytes) -> ModelCard:
    """The card that YAML `text` holds, of any schema; raises `InvalidArtifactError` with the path of what is wrong."""
    try:
        card = _convert(read_yaml(text, "model card"))
    except msgspec.ValidationError as error:
        raise InvalidArtifactError(f"model card: {error}") from None
    check_card(card)
    return card


def check_card(card: ModelCard) -> None:
    """Raises `InvalidArtifactError` where the parts of a card contradict each other."""
    if not semver.Version.is_valid(card.version):
        raise InvalidArtifactError(f"model card: version: expected MAJOR.MINOR.PATCH, got {card.version!r}")
    _check_tensors(card)
    _check_action(card)
    _check_state(card)
    _check_references(card)


def schema_of(text: bytes) -> int | None:
    """The schema number that a card names, None where it names none; raises `InvalidArtifactError`."""
    fields = read_yaml(text, "model card")
    schema = fields.get("schema") if isinstance(fields, dict) else None
    return schema if isinstance(schema, int) else None


def _convert(fields: Any) -> ModelCard:
    """Raises `msgspec.ValidationError` or `InvalidArtifactError`."""
    if not isinstance(fields, dict):
        return msgspec.convert(fields, ModelCard)
    match fields.get("schema"):
        case 1:
            return msgspec.convert(card_schema_1.upgrade(msgspec.convert(fields, card_schema_1.ModelCard)), ModelCard)
        case 2 | None:
            return msgspec.convert(fields, ModelCard)
        case other:
            raise InvalidArtifactError(f"model card: schema: expected 1 or {SCHEMA}, got {other!r}")


def _check_tensors(card: ModelCard) -> None:
    """Raises `InvalidArtifactError` for a name given twice, or bounds that are neither none, nor one, nor one each."""
    for field, tensors in (("observation", card.observation), ("outputs", card.outputs)):
        names = [tensor.name for tensor in tensors]
        if len(set(names)) != len(names):
            raise InvalidArtifactError(f"model card: {field}: expected names that differ, got {', '.join(names)}")
        for tensor in tensors:
            elements = math.prod(tensor.shape)
            for bound, values in (("low", tensor.low), ("high", tensor.high)):
                if len(values) not in (0, 1, elements):
                    raise InvalidArtifactError(
                        f"model card: {field}.{tensor.name}.{bound}: expected 0, 1 or {elements} numbers, "
                        f"got {len(values)}"
                    )


def _check_action(card: ModelCard) -> None:
    """Raises `InvalidArtifactError` where the distribution or the safe action is not one of this action."""
    action = next((tensor for tensor in card.outputs if tensor.name == ACTION), None)
    if action is None:
        raise InvalidArtifactError("model card: outputs: expected one called 'action', got none")
    distribution = card.distribution
    fitting = {"deterministic": action.space, "categorical": "Discrete"}.get(distribution.kind, "Box")
    if action.space != fitting:
        raise InvalidArtifactError(
            f"model card: distribution.kind: {distribution.kind} draws {fitting} actions, the action is {action.space}"
        )
    if action.space == "Discrete" and action.shape:
        raise InvalidArtifactError(f"model card: outputs.action.shape: a Discrete action has none, got {action.shape}")
    _check_parameters(distribution, action)
    if card.safe_action is not None and len(card.safe_action) != math.prod(action.shape):
        raise InvalidArtifactError(
            f"model card: safe_action: expected {math.prod(action.shape)} numbers, got {len(card.safe_action)}"
        )


def _check_parameters(distribution: Distribution, action: TensorCard) -> None:
    """Raises `InvalidArtifactError` where the distribution lacks what it is drawn from."""
    needed = {"categorical": ["logits"], "diagonal_gaussian": ["log_std"], "squashed_gaussian": ["mean", "log_std"]}
    for parameter in needed.get(distribution.kind, []):
        if not getattr(distribution, parameter):
            raise InvalidArtifactError(f"model card: distribution.{parameter}: expected the name of a graph output")
    if distribution.kind == "squashed_gaussian" and not (action.low and action.high):
        raise InvalidArtifactError(
            "model card: outputs.action: a squashed_gaussian is stretched to low and high, expected both"
        )


def _check_state(card: ModelCard) -> None:
    """Raises `InvalidArtifactError` where a state tensor has the name of another input or output."""
    inputs = [tensor.name for tensor in card.observation] + [state.name for state in card.state]
    outputs = [tensor.name for tensor in card.outputs] + [state.output for state in card.state]
    for field, names in (("name", inputs), ("output", outputs)):
        if len(set(names)) != len(names):
            raise InvalidArtifactError(f"model card: state.{field}: expected names that differ, got {', '.join(names)}")


def _check_references(card: ModelCard) -> None:
    """Raises `InvalidArtifactError` where a frame stack or a preprocessing step names no observation."""
    shapes = {tensor.name: tensor.shape for tensor in card.observation}
    for step in card.preprocessing:
        if step.observation and step.observation not in shapes:
            raise InvalidArtifactError(f"model card: preprocessing: there is no observation {step.observation!r}")
    for stack in card.frame_stack:
        shape = shapes.get(stack.observation)
        if shape is None:
            raise InvalidArtifactError(f"model card: frame_stack: there is no observation {stack.observation!r}")
        if stack.axis >= len(shape) or shape[stack.axis] % stack.frames:
            raise InvalidArtifactError(
                f"model card: frame_stack.{stack.observation}: axis {stack.axis} of {shape} is not {stack.frames} frames"
            )
