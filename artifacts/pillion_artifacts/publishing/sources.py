"""Chooses the importer of a source. Importers are imported when needed, because only some of them need torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from pillion_artifacts.card.model_card import EngineCard, Environment, ModelCard, parse_card
from pillion_artifacts.errors import InvalidSourceError
from pillion_artifacts.formats.safetensors_file import is_safetensors
from pillion_artifacts.limits import CARD_BYTES_MAX, PICKLE_BYTES_MAX
from pillion_artifacts.publishing.common.files import PICKLE_MAGIC, ZIP_MAGIC, Archive, open_source, read_file
from pillion_artifacts.yaml_text import read_yaml

if TYPE_CHECKING:
    from pillion_artifacts.card.golden_pairs import Arrays
    from pillion_artifacts.publishing.common.draft import Details, Draft
    from pillion_artifacts.publishing.common.folder import PublishReport

ENGINES: Final = ("onnx", "torch")
"""What can be chosen to run a torch module or file."""

_HEAD_BYTES: Final = 16
_PREFIXES: Final = ("", "observation.", "input.")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to read a source, and the observations to compare it on."""

    card: Path | None = None
    """A model card, for a source that does not describe itself. Its name and version are replaced."""
    details: Path | None = None
    """YAML of `draft.Details` without name and version, for a source that describes itself."""
    statistics: Path | None = None
    """The pickle of a VecNormalize, for a Stable-Baselines3 zip."""
    preprocessor: Path | None = None
    """An ONNX graph in front of the policy."""
    action: str = ""
    """The name of the action's output, if no output is named `action`."""
    environment: str = ""
    """`ID` or `MODULE:ID` of a Gymnasium environment. It is played for real observations, and the card names it."""
    observations: Path | None = None
    """A safetensors file of real observations by name, such as a recording of `pillion bench record`."""
    description: str = ""
    licence: str = ""
    tolerance: float | None = None
    """Absolute and relative. None: that of the card, or `draft.TOLERANCE`."""
    allows_torchscript: bool = False
    """TorchScript is a program. Allow it only for files that you would run anyway."""
    engine: Literal["", "onnx", "torch"] = ""
    """What will run a torch file: `torch` as it is, `onnx` after a conversion. Empty: as the card says, else `onnx`."""
    allowed_code: list[str] = []
    """Packages (distributions) of which a Python policy may run here, for its golden pairs."""


def import_source(source: Path, folder: Path, name: str, version: str, options: Options) -> PublishReport:
    """Makes a folder from the file `source`, ready to be published as `name` and `version`.

    Raises `InvalidSourceError` if the source cannot be read safely, `InvalidArtifactError` for a wrong card, and
    `ParityError` if the model does not act as its source.
    """
    from pillion_artifacts.publishing.common.folder import write_folder

    details = _details(name, version, options)
    card = None if options.card is None else parse_card(read_file(options.card, CARD_BYTES_MAX))
    draft = _import(source, details, card, options)
    if options.preprocessor is not None:
        if draft.card.engine.kind != "onnx":
            raise InvalidSourceError(f"a preprocessor: expected the engine onnx, got {draft.card.engine.kind}")
        from pillion_artifacts.publishing.onnx.preprocessor import fuse_onnx

        draft = fuse_onnx(draft, options.preprocessor)
    if options.tolerance is not None:
        draft = _with_tolerance(draft, options.tolerance)
    real = None if options.observations is None else _read_observations(options.observations)
    return write_folder(folder, draft, real, plays=bool(options.environment))


def export(
    module: Any,
    example: Any,
    card: ModelCard,
    folder: str | os.PathLike[str] = "",
    *,
    preprocessor: Any = None,
    observations: Arrays | None = None,
    engine: Literal["", "onnx", "torch"] = "",
) -> PublishReport:
    """Makes a folder from a torch module, ready to be published. `folder` defaults to `NAME-VERSION`.

    `example` is one observation tensor or array, rows first, or a tuple or dictionary of them. The module takes the
    card's observations and then its states, by position. It returns the card's outputs, then the next states, then the
    distribution's parameters that are not already outputs. `preprocessor` is a fitted scikit-learn pipeline that makes
    the module's only observation; the card then describes the input of the *pipeline*, and gets a preprocessing step.
    `observations` are real observations by name to compare on; without them they are drawn. `engine` is what will run the
    module: `onnx` after a conversion, or `torch` as torch.export reads it; without it, the one that the card names.

    Raises `InvalidSourceError` if the module or the pipeline cannot be exported, `InvalidArtifactError` for a wrong
    card, and `ParityError` if the graph's outputs differ from the module's.
    """
    from pillion_artifacts.publishing.common.folder import write_folder

    chosen = engine or card.engine.kind
    if chosen not in ENGINES:
        raise InvalidSourceError(f"engine: expected one of {', '.join(ENGINES)} for a torch module, got {chosen!r}")
    if chosen == "torch":
        draft = _as_it_is(module, example, card, preprocessor)
    else:
        card = msgspec.structs.replace(card, engine=EngineCard())
        draft = _converted(module, example, card, preprocessor)
    return write_folder(Path(folder or f"{card.name}-{card.version}"), draft, observations)


def _as_it_is(module: Any, example: Any, card: ModelCard, preprocessor: Any) -> Draft:
    from pillion_artifacts.publishing.torch.program_source import program_of_module

    if preprocessor is not None:
        raise InvalidSourceError("a preprocessor: expected the engine onnx, got torch")
    return program_of_module(module, example, card)


def _converted(module: Any, example: Any, card: ModelCard, preprocessor: Any) -> Draft:
    from pillion_artifacts.publishing.torch.torch_source import draft_of_module

    if preprocessor is None:
        return draft_of_module(module, example, card)
    return _preprocessed(module, example, card, preprocessor)


def _preprocessed(module: Any, example: Any, card: ModelCard, pipeline: Any) -> Draft:
    """A draft of pipeline and module. The example has the module's input shape; the card has the pipeline's."""
    from pillion_artifacts.card.model_card import TensorCard
    from pillion_artifacts.publishing.onnx.preprocessor import fuse_pipeline
    from pillion_artifacts.publishing.torch.torch_source import draft_of_module

    if len(card.observation) != 1:
        raise InvalidSourceError(f"a preprocessor makes one observation, the card has {len(card.observation)}")
    outer = card.observation[0]
    inner = TensorCard(outer.name, "float32", list(example.shape[1:]))
    draft = draft_of_module(module, example, msgspec.structs.replace(card, observation=[inner]))
    return fuse_pipeline(draft, pipeline, outer)


def _import(source: Path, details: Details, card: ModelCard | None, options: Options) -> Draft:
    kind = _kind(source)
    if kind == "safetensors":
        return _import_weights(source, details, card, options)
    if options.engine and card is not None and card.engine.kind == "python":
        raise InvalidSourceError(
            f"{source.name}: the card's engine is python, --engine is {options.engine}: expected a card for that engine"
        )
    engine = options.engine or ("onnx" if card is None else card.engine.kind)
    if engine == "torch" and kind not in ("torch.export", "TorchScript"):
        raise InvalidSourceError(f"{source.name}: the engine torch: expected a file of torch.export, got {kind}")
    if engine not in ENGINES and (engine, kind) != ("torchscript", "TorchScript"):
        raise InvalidSourceError(f"{source.name}: got {kind}, but the card's engine is {engine}")
    if engine == "onnx" and card is not None:
        card = msgspec.structs.replace(card, engine=EngineCard())
    match kind:
        case "sb3":
            return _import_sb3(source, details, card, options)
        case "torch.export" if engine == "torch":
            from pillion_artifacts.publishing.torch.program_source import import_program

            return import_program(source, details, card)
        case "torch.export":
            from pillion_artifacts.publishing.torch.torch_source import import_exported

            return import_exported(source, details, card, options.action)
        case "TorchScript":
            return _import_torchscript(source, details, card, options, as_it_is=engine != "onnx")
    from pillion_artifacts.publishing.onnx.onnx_source import import_onnx

    return import_onnx(source, details, card, options.action)


def _import_weights(source: Path, details: Details, card: ModelCard | None, options: Options) -> Draft:
    from pillion_artifacts.publishing.common.python_policy import import_weights

    if card is not None and card.engine.kind == "python" and options.engine:
        raise InvalidSourceError(
            f"{source.name}: the card's engine is python, --engine is {options.engine}: leave --engine out"
        )
    if card is None or card.engine.kind != "python":
        raise InvalidSourceError(
            f"{source.name}: weights without a network: expected --card with a card whose engine is python"
        )
    return import_weights(source, details, card, options.allowed_code)


def _import_sb3(source: Path, details: Details, card: ModelCard | None, options: Options) -> Draft:
    from pillion_artifacts.publishing.sb3.source import import_sb3

    if card is not None:
        raise InvalidSourceError(f"{source.name}: it describes itself: expected details, got a whole card")
    statistics = None if options.statistics is None else read_file(options.statistics, PICKLE_BYTES_MAX)
    return import_sb3(read_file(source), source.name, details, statistics)


def _import_torchscript(
    source: Path, details: Details, card: ModelCard | None, options: Options, *, as_it_is: bool
) -> Draft:
    if not options.allows_torchscript:
        raise InvalidSourceError(
            f"{source.name}: TorchScript is a program that would be run: use --allow-torchscript if you trust it"
        )
    if card is None:
        raise InvalidSourceError(f"{source.name}: TorchScript does not describe its inputs: expected a card")
    if as_it_is:
        from pillion_artifacts.publishing.torch.program_source import import_script

        return import_script(source, details, card)
    from pillion_artifacts.publishing.torch.torch_source import import_torchscript

    return import_torchscript(source, details, card)


def _kind(source: Path) -> str:
    """The kind of a source, by its content. Raises `InvalidSourceError` for kinds that are never read."""
    with open_source(source) as file:
        head = file.read(_HEAD_BYTES)
        if head.startswith(PICKLE_MAGIC):
            raise InvalidSourceError(
                f"{source.name}: a pickle, which is never executed: publish the module itself with pillion_artifacts.export"
            )
        if is_safetensors(head, os.fstat(file.fileno()).st_size):
            return "safetensors"
        if not head.startswith(ZIP_MAGIC):
            return "ONNX"
        names = Archive(file, source.name).names
    inner = {name.partition("/")[2] for name in names}
    if {"data", "policy.pth"} <= set(names):
        return "sb3"
    if "models/model.json" in inner:
        return "torch.export"
    if "constants.pkl" in inner:
        return "TorchScript"
    if "data.pkl" in inner:
        raise InvalidSourceError(
            f"{source.name}: a file of torch.save, whose pickle is never executed: "
            "publish the module itself with pillion_artifacts.export"
        )
    raise InvalidSourceError(f"{source.name}: a zip that no importer can read: it has {', '.join(sorted(names)[:4])}")


def _details(name: str, version: str, options: Options) -> Details:
    from pillion_artifacts.publishing.common.draft import Details

    given: dict[str, Any] = {}
    if options.details is not None:
        given = read_yaml(read_file(options.details, CARD_BYTES_MAX), "details") or {}
    try:
        details = msgspec.convert({**given, "name": name, "version": version}, Details)
    except (msgspec.ValidationError, TypeError) as error:
        raise InvalidSourceError(f"details: {error}") from None
    overrides: dict[str, Any] = {"description": options.description, "licence": options.licence}
    if options.environment:
        module, _, identifier = options.environment.rpartition(":")
        overrides["environment"] = Environment(identifier, module)
    return msgspec.structs.replace(details, **{key: value for key, value in overrides.items() if value})


def _with_tolerance(draft: Draft, bound: float) -> Draft:
    tolerance = msgspec.structs.replace(draft.card.tolerance, absolute=bound, relative=bound)
    return msgspec.structs.replace(draft, card=msgspec.structs.replace(draft.card, tolerance=tolerance))


def _read_observations(file: Path) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(read_file(file))
    except (SafetensorError, ValueError, KeyError) as error:
        raise InvalidSourceError(f"{file.name}: not safetensors: {error}") from None
    return {
        name.removeprefix(prefix): tensor
        for prefix in _PREFIXES
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
