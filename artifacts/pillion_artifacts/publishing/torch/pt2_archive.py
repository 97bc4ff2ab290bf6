"""Disarms a file of `torch.export`: checks everything that torch would unpickle, evaluate or look up by name.

A new archive is made of the checked parts, so that torch reads these bytes and no others.
"""

from __future__ import annotations

import io
import re
import zipfile
from typing import Any, Final

import msgspec
import torch

from pillion_artifacts.errors import InvalidSourceError
from pillion_artifacts.publishing.common.files import Archive

_MODEL: Final = "models/model.json"
_WEIGHTS: Final = "data/weights/"
_CONSTANTS: Final = "data/constants/"
_SAMPLE: Final = "data/sample_inputs/model.pt"
_CONFIGS: Final = (f"{_WEIGHTS}model_weights_config.json", f"{_CONSTANTS}model_constants_config.json")
_PLAIN: Final = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")

_TARGET: Final = re.compile(
    r"torch\.ops\.(aten|prims)\.\w+\.\w+|torch\.ops\.higher_order\.(cond|while_loop)|torch\.sym_\w+|_operator\.\w+|math\.\w+"
)
_FORBIDDEN_OPERATORS: Final = {"save", "from_file", "load"}
"""Operators that read or write files."""

_WORD: Final = re.compile(r"[A-Za-z_]\w*")
_EXPRESSION: Final = re.compile(r"[\w\s+\-*/%(),<>=&|~]*")
_SYMBOL: Final = re.compile(r"Symbol\('(s|u|zuf|zf)\d+'(, [a-z]+=(True|False))*\)")
_ALONE: Final = re.compile(r"(s|u|zuf|zf)\d+")
_FUNCTIONS: Final = {
    *("Integer", "Rational", "Float", "Add", "Mul", "Pow"),
    *("Max", "Min", "FloorDiv", "CleanDiv", "CeilDiv", "Mod", "PythonMod", "ModularIndexing", "IntTrueDiv", "Abs"),
    *("Eq", "Ne", "Ge", "Gt", "Le", "Lt", "And", "Or", "Not", "True", "False", "oo", "int_oo"),
}
_STRING_ARGUMENT: Final = re.compile(r"[a-z_]{0,24}")
_TREES: Final = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}


def disarm(data: bytes, what: str) -> bytes:
    """Returns the same program in a new archive, without anything that could run. Raises `InvalidSourceError`."""
    archive = Archive(data, what)
    root = archive.names[0].partition("/")[0] if archive.names else ""
    members = {name.removeprefix(f"{root}/"): name for name in archive.names}
    if _MODEL not in members or len(members) != len(archive.names):
        raise InvalidSourceError(f"{what}: expected a file of torch.export with one model, got other members")
    parts = {name: archive.read(members[name]) for name in members}
    for name in parts:
        _check_name(name, what)
    parts[_MODEL] = _disarm_model(parts[_MODEL], what)
    for name in _CONFIGS:
        _check_config(parts.get(name, b"{}"), f"{what}: {name}")
    _check_sample(parts.get(_SAMPLE, b""), what)
    return _pack(root, parts)


def _check_name(name: str, what: str) -> None:
    known = name in (*_PLAIN, _MODEL, _SAMPLE, *_CONFIGS)
    tensor = re.fullmatch(rf"({_WEIGHTS}weight|{_CONSTANTS}tensor)_\d+", name)
    if not known and not tensor:
        raise InvalidSourceError(f"{what}: {name!r} is not part of a program that can be read without running anything")


def _check_config(data: bytes, what: str) -> None:
    try:
        entries = msgspec.json.decode(data, type=dict[str, Any]).get("config", {})
        unsafe = [name for name, entry in entries.items() if entry["use_pickle"] is not False]
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError) as error:
        raise InvalidSourceError(f"{what}: {error!r}") from None
    if unsafe:
        raise InvalidSourceError(f"{what}: {unsafe[0]!r} is a pickle")


def _check_sample(data: bytes, what: str) -> None:
    """Raises `InvalidSourceError` unless torch can read the sample inputs as weights: otherwise it would unpickle them."""
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - torch raises many types for a file that it cannot read
        raise InvalidSourceError(f"{what}: its sample inputs are not plain tensors") from None


def _disarm_model(data: bytes, what: str) -> bytes:
    try:
        program = msgspec.json.decode(data)
    except msgspec.MsgspecError as error:
        raise InvalidSourceError(f"{what}: {_MODEL}: {error}") from None
    _disarm(program, what)
    return msgspec.json.encode(program)


def _disarm(value: Any, what: str) -> None:
    """Checks all strings that torch would evaluate or look up, and removes guards, which it would run, and traces."""
    if isinstance(value, list):
        for item in value:
            _disarm(item, what)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key == "metadata":
            value[key] = {}
        elif key == "guards_code":
            value[key] = []
        elif isinstance(item, str):
            _check_text(key, item, what)
        else:
            _disarm(item, what)


def _check_text(key: str, text: str, what: str) -> None:
    if key == "target" and not (_TARGET.fullmatch(text) and not _FORBIDDEN_OPERATORS & set(text.split("."))):
        raise InvalidSourceError(f"{what}: operator {text!r} is not one of torch's own that only compute")
    if key == "expr_str" and not _is_expression(text):
        raise InvalidSourceError(f"{what}: {text!r} is not a size")
    if key == "as_string" and not _STRING_ARGUMENT.fullmatch(text):
        raise InvalidSourceError(f"{what}: {text!r} as an argument of an operator")
    if key in ("in_spec", "out_spec") and text:
        _check_tree(text, what)


def _is_expression(text: str) -> bool:
    """Whether `text` has only sizes and arithmetic. sympy evaluates it as Python."""
    text = _SYMBOL.sub("s0", text)
    words = _WORD.findall(text)
    return bool(_EXPRESSION.fullmatch(text)) and all(word in _FUNCTIONS or _ALONE.fullmatch(word) for word in words)


def _check_tree(text: str, what: str) -> None:
    """Raises `InvalidSourceError` for an argument type that torch would import."""
    try:
        found = _types(msgspec.json.decode(text))
    except msgspec.MsgspecError as error:
        raise InvalidSourceError(f"{what}: arguments: {error}") from None
    if found - _TREES:
        raise InvalidSourceError(f"{what}: arguments of type {min(map(str, found - _TREES))}")


def _types(value: Any) -> set[Any]:
    if isinstance(value, list):
        return set().union(*map(_types, value))
    if isinstance(value, dict):
        own = {str(value["type"]) if value["type"] is not None else None} if "type" in value else set()
        return own.union(*map(_types, value.values()))
    return set()


def _pack(root: str, parts: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(f"{root}/{name}", content)
    return made.getvalue()
