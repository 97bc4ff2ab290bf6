"""The model card: a policy's inputs, outputs and measured results, as a typed structure.

People or importers write it as `model_card.yaml`. An unknown key is an error with its path. Cards of older schemas are
converted in memory; their bytes, and so their digests, stay the same.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal

import msgspec
import semver

from pillion_artifacts.card import schema_1 as card_schema_1
from pillion_artifacts.card.engine_checks import check_engine
from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.validation_text import text_of
from pillion_artifacts.yaml_text import read_yaml
from pillion_protocol.specs import TEXT, DType, Space, Spec, TensorSpec

SCHEMA: Final = 3
"""The schema of new cards."""

ACTION: Final = "action"
"""The output that every policy has."""

Dimension = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Digest = Annotated[str, msgspec.Meta(pattern=r"^(sha256:[0-9a-f]{64})?$")]


class TensorCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One observation or output. The fields are those of `pillion_protocol.specs.TensorSpec`.

    An observation of text has the space `Text`, the dtype uint8 and the shape [bytes]: the room of its UTF-8. `low` is empty
    or the least number of bytes, `high` is empty.
    """

    name: str
    dtype: DType
    shape: list[Dimension] = []
    space: Space = "Box"
    low: list[float] = []
    high: list[float] = []
    finite: bool = True

    @property
    def text_bytes_min(self) -> int:
        """The least number of bytes of an observation of text."""
        return int(self.low[0]) if self.low else 0


class StateCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One state tensor of a recurrent policy; an episode begins with zeros.

    `name` is the graph's input. `output` is the graph's output that becomes the input of the next step.
    """

    name: str
    output: str
    dtype: DType
    shape: list[Dimension]


class Distribution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to sample an action, and which graph outputs have the parameters.

    `deterministic`: the graph's `action` is the action. `categorical`: `logits` names a graph output of
    shape [rows, n]; the graph's own `action` is its argmax. `diagonal_gaussian`: `mean` and `log_std` name graph
    outputs of the action's shape (natural logarithm); without `mean` the graph's `action` is the mean.
    `squashed_gaussian`: the same, then a hyperbolic tangent, scaled from [-1, 1] to the action's `low` and `high`.
    """

    kind: Literal["deterministic", "categorical", "diagonal_gaussian", "squashed_gaussian"] = "deterministic"
    logits: str = ""
    log_std: str = ""
    mean: str = ""

    def parameters(self) -> list[str]:
        """The graph outputs that sampling needs in addition to the action."""
        return [name for name in (self.logits, self.mean, self.log_std) if name]


class Bound(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tolerance of one output: |a - b| <= absolute + relative * |b|."""

    absolute: NotNegative = 1e-5
    relative: NotNegative = 1e-5


class Tolerance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tolerance between an output and a recorded one: |a - b| <= absolute + relative * |b|.

    `outputs` has exceptions by output name. Integers must be equal.
    """

    absolute: NotNegative = 1e-5
    relative: NotNegative = 1e-5
    outputs: dict[str, Bound] = {}

    def of(self, output: str) -> Bound:
        """The bound of an output."""
        return self.outputs.get(output, Bound(self.absolute, self.relative))


class FrameStack(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The newest `frames` frames of one observation, oldest first, along `axis` of its row.

    The client stacks them. `padding` fills the frames before the first one of an episode.
    """

    observation: str
    frames: Annotated[int, msgspec.Meta(ge=2)]
    axis: Annotated[int, msgspec.Meta(ge=0)] = 0
    padding: Literal["first", "zeros"] = "first"


class Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A step that the graph applies before the network, in this order. Clients send raw observations.

    `observation` is the name of the observation, empty for all of them. `digest` is that of the step's source file.
    """

    step: Literal["scale", "one_hot", "normalise", "pipeline"]
    observation: str = ""
    detail: str = ""
    digest: Digest = ""


class Wrapper(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A wrapper of `gymnasium.wrappers`, by name, with its keyword arguments."""

    name: str
    kwargs: dict[str, Any] = {}


class EngineCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What runs the model. Each kind has a model file of its own, see `layers`.

    `onnx`: ONNX Runtime. `torch`: torch runs a program of torch.export as it is. `torchscript`: torch runs a TorchScript
    program. `python`: `entry_point` (`MODULE:FACTORY`) of the installed package `distribution` makes the policy from the
    weights. `requires` says which versions of the package will do (PEP 440, such as `>=1.2,<2`; empty: any), and
    `arguments` are the factory's keyword arguments. No code is ever taken from the artifact.
    """

    kind: Literal["onnx", "torch", "torchscript", "python"] = "onnx"
    entry_point: str = ""
    distribution: str = ""
    requires: str = ""
    arguments: dict[str, str | int | float | bool] = {}


class Environment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to make the environment that the policy was trained for. Wrappers are applied in order.

    `module` is a package to import first, if Gymnasium alone does not register the environment.
    """

    id: str
    module: str = ""
    kwargs: dict[str, Any] = {}
    wrappers: list[Wrapper] = []


class Metric(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A measured figure and the number of its episodes."""

    value: float
    standard_deviation: float
    episodes: Annotated[int, msgspec.Meta(ge=1)]
    first_seed: int = 0
    deterministic: bool = True


class Lineage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The origin of the weights. `source` is the digest of the published file, `normaliser` that of the statistics."""

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
    """A person, policy or data set that contributed to this version. Weights are relative to each other."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    role: str = ""
    weight: NotNegative = 1.0


class ModelCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The description of a policy version."""

    schema: Literal[3]
    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=128)]
    version: str
    description: str
    licence: str
    observation: Annotated[list[TensorCard], msgspec.Meta(min_length=1)]
    outputs: Annotated[list[TensorCard], msgspec.Meta(min_length=1)]
    engine: EngineCard = EngineCard()
    action_horizon: Annotated[int, msgspec.Meta(ge=0)] = 0
    """The action is a chunk of that many actions: its first axis is time, oldest first. 0: it is one action."""
    distribution: Distribution = Distribution()
    state: list[StateCard] = []
    frame_stack: list[FrameStack] = []
    preprocessing: list[Preprocessing] = []
    safe_action: list[float] | None = None
    """The action's elements in C order, of a chunk those of all its actions; for sessions that request it as fallback."""
    tolerance: Tolerance = Tolerance()
    environment: Environment | None = None
    metrics: dict[str, Metric] = {}
    lineage: Lineage = Lineage()
    contributors: list[Contributor] = []

    def spec(self) -> Spec:
        """The observation and output spec of this policy's sessions."""
        return Spec(
            observation=[TensorSpec(*msgspec.structs.astuple(card)) for card in self.observation],
            outputs=[TensorSpec(*msgspec.structs.astuple(card)) for card in self.outputs],
        )

    def action(self) -> TensorCard:
        """The output named `action`."""
        return next(tensor for tensor in self.outputs if tensor.name == ACTION)


def parse_card(text: bytes) -> ModelCard:
    """Parses a YAML card of any schema. Raises `InvalidArtifactError` with the path of the wrong field."""
    try:
        card = _convert(read_yaml(text, "model card"))
    except msgspec.ValidationError as error:
        raise InvalidArtifactError(f"model card: {text_of(error, ModelCard)}") from None
    check_card(card)
    return card


def check_card(card: ModelCard) -> None:
    """Raises `InvalidArtifactError` if parts of a card contradict each other."""
    if not semver.Version.is_valid(card.version):
        raise InvalidArtifactError(f"model card: version: expected MAJOR.MINOR.PATCH, got {card.version!r}")
    check_engine(card.engine)
    _check_tensors(card)
    _check_texts(card)
    _check_action(card)
    _check_chunk(card)
    _check_state(card)
    _check_references(card)


def schema_of(text: bytes) -> int | None:
    """The schema number of a card, None if it has none. Raises `InvalidArtifactError`."""
    fields = read_yaml(text, "model card")
    schema = fields.get("schema") if isinstance(fields, dict) else None
    return schema if isinstance(schema, int) else None


def _convert(fields: Any) -> ModelCard:
    """Raises `msgspec.ValidationError` or `InvalidArtifactError`."""
    if fields is None:
        raise InvalidArtifactError("model card: expected its fields, got an empty file")
    if not isinstance(fields, dict):
        return msgspec.convert(fields, ModelCard)
    match fields.get("schema"):
        case 1:
            card = msgspec.convert(card_schema_1.upgrade(msgspec.convert(fields, card_schema_1.ModelCard)), ModelCard)
            return _without_texts(card, 1)
        case 2:
            # Schema 3 only adds optional fields; a card of schema 2 must not have them.
            for later in ("engine", "action_horizon"):
                if later in fields:
                    raise InvalidArtifactError(f"model card: {later}: a card of schema 2 has none; expected schema 3")
            return _without_texts(msgspec.convert({**fields, "schema": SCHEMA}, ModelCard), 2)
        case 3 | None:
            return msgspec.convert(fields, ModelCard)
        case other:
            raise InvalidArtifactError(f"model card: schema: expected 1 to {SCHEMA}, got {other!r}")


def _without_texts(card: ModelCard, schema: int) -> ModelCard:
    """Returns a card of an older schema. Raises `InvalidArtifactError` if it has a text: what reads that schema knows none."""
    for tensor in card.observation:
        if tensor.space == TEXT:
            raise InvalidArtifactError(
                f"model card: observation.{tensor.name}.space: a card of schema {schema} has no Text; expected schema 3"
            )
    return card


def _check_tensors(card: ModelCard) -> None:
    """Raises `InvalidArtifactError` for a repeated name, or for a number of bounds other than 0, 1 or one per element."""
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


def _check_texts(card: ModelCard) -> None:
    """Raises `InvalidArtifactError` for an output of text, or an observation of text of a wrong form."""
    for tensor in card.outputs:
        if tensor.space == TEXT:
            raise InvalidArtifactError(f"model card: outputs.{tensor.name}.space: only observations are Text")
    for tensor in card.observation:
        if tensor.space != TEXT:
            continue
        where = f"model card: observation.{tensor.name}"
        if tensor.dtype != "uint8":
            raise InvalidArtifactError(f"{where}.dtype: a Text has uint8, got {tensor.dtype}")
        if len(tensor.shape) != 1:
            raise InvalidArtifactError(f"{where}.shape: a Text has one number, its room in bytes, got {tensor.shape}")
        room = tensor.shape[0]
        if len(tensor.low) > 1 or not all(0 <= least <= room and int(least) == least for least in tensor.low):
            raise InvalidArtifactError(
                f"{where}.low: expected none or the least number of bytes, 0 to {room}, got {tensor.low}"
            )
        if tensor.high:
            raise InvalidArtifactError(f"{where}.high: a Text has none: its shape is the bound, got {tensor.high}")
        if any(stack.observation == tensor.name for stack in card.frame_stack):
            raise InvalidArtifactError(f"model card: frame_stack.{tensor.name}: a Text has no frames")


def _check_action(card: ModelCard) -> None:
    """Raises `InvalidArtifactError` if the distribution or the safe action does not fit the action."""
    action = next((tensor for tensor in card.outputs if tensor.name == ACTION), None)
    if action is None:
        raise InvalidArtifactError("model card: outputs: expected one named 'action', got none")
    distribution = card.distribution
    fitting = {"deterministic": action.space, "categorical": "Discrete"}.get(distribution.kind, "Box")
    if action.space != fitting:
        raise InvalidArtifactError(
            f"model card: distribution.kind: {distribution.kind} samples {fitting} actions, the action is {action.space}"
        )
    if action.space == "Discrete" and action.shape:
        raise InvalidArtifactError(f"model card: outputs.action.shape: a Discrete action has none, got {action.shape}")
    _check_parameters(distribution, action)
    if card.safe_action is not None and len(card.safe_action) != math.prod(action.shape):
        raise InvalidArtifactError(
            f"model card: safe_action: expected {math.prod(action.shape)} numbers, got {len(card.safe_action)}"
        )


def _check_chunk(card: ModelCard) -> None:
    """Raises `InvalidArtifactError` if the action is not the chunk that the card says it is."""
    horizon, action = card.action_horizon, card.action()
    if horizon < 0:
        raise InvalidArtifactError(f"model card: action_horizon: expected 0 or more, got {horizon}")
    if horizon and action.space == "Discrete":
        raise InvalidArtifactError(
            "model card: action_horizon: expected a chunk of actions, but a Discrete action is one"
        )
    if horizon and action.shape[:1] != [horizon]:
        raise InvalidArtifactError(
            f"model card: action_horizon: expected an action of shape [{horizon}, …], got {list(action.shape)}"
        )


def _check_parameters(distribution: Distribution, action: TensorCard) -> None:
    """Raises `InvalidArtifactError` if the distribution lacks a parameter."""
    needed = {"categorical": ["logits"], "diagonal_gaussian": ["log_std"], "squashed_gaussian": ["mean", "log_std"]}
    for parameter in needed.get(distribution.kind, []):
        if not getattr(distribution, parameter):
            raise InvalidArtifactError(f"model card: distribution.{parameter}: expected the name of a graph output")
    if distribution.kind == "squashed_gaussian" and not (action.low and action.high):
        raise InvalidArtifactError(
            "model card: outputs.action: a squashed_gaussian is scaled to low and high, expected both"
        )


def _check_state(card: ModelCard) -> None:
    """Raises `InvalidArtifactError` if a state tensor has the name of another input or output."""
    inputs = [tensor.name for tensor in card.observation] + [state.name for state in card.state]
    outputs = [tensor.name for tensor in card.outputs] + [state.output for state in card.state]
    for field, names in (("name", inputs), ("output", outputs)):
        if len(set(names)) != len(names):
            raise InvalidArtifactError(f"model card: state.{field}: expected names that differ, got {', '.join(names)}")


def _check_references(card: ModelCard) -> None:
    """Raises `InvalidArtifactError` if a frame stack or a preprocessing step names an unknown observation."""
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
