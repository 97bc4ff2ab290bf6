"""Checks of what a card says about its engine."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Final

from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.limits import (
    ENGINE_ARGUMENT_CHARACTERS_MAX,
    ENGINE_ARGUMENTS_BYTES_MAX,
    ENGINE_ARGUMENTS_MAX,
)

if TYPE_CHECKING:
    from pillion_artifacts.card.model_card import EngineCard

_DOTTED: Final = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
_ENTRY_POINT: Final = re.compile(rf"{_DOTTED}:{_DOTTED}", re.ASCII)
_DISTRIBUTION: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_VERSION: Final = r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?"
_CLAUSE: Final = re.compile(rf"(~=|<=|>=|<|>)\s*{_VERSION}|(==|!=)\s*(\d+(\.\d+)*\.\*|{_VERSION})", re.ASCII)
_IDENTIFIER: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_INTEGER_BITS: Final = 63


def check_engine(engine: EngineCard) -> None:
    """Raises `InvalidArtifactError` if the fields of a card's engine are wrong, or are not those of its kind."""
    if engine.kind != "python":
        for field in ("entry_point", "distribution", "requires", "arguments"):
            if getattr(engine, field):
                raise _wrong(field, f"none for the engine {engine.kind}", getattr(engine, field))
        return
    _check_field("entry_point", engine.entry_point, _ENTRY_POINT, "MODULE:FACTORY of the installed package")
    _check_field("distribution", engine.distribution, _DISTRIBUTION, "the name of the installed package")
    _check_requires(engine.requires)
    _check_arguments(engine.arguments)


def _check_field(field: str, value: str, pattern: re.Pattern[str], expected: str) -> None:
    if len(value) > ENGINE_ARGUMENT_CHARACTERS_MAX or not pattern.fullmatch(value):
        raise _wrong(field, expected, value)


def _check_requires(requires: str) -> None:
    if len(requires) > ENGINE_ARGUMENT_CHARACTERS_MAX:
        raise _wrong("requires", f"at most {ENGINE_ARGUMENT_CHARACTERS_MAX} characters", requires)
    for clause in requires.split(",") if requires.strip() else []:
        if not _CLAUSE.fullmatch(clause.strip()):
            raise _wrong("requires", "versions as PEP 440 writes them, such as '>=1.2,<2'", clause)


def _check_arguments(arguments: dict[str, str | int | float | bool]) -> None:
    if len(arguments) > ENGINE_ARGUMENTS_MAX:
        raise _wrong("arguments", f"at most {ENGINE_ARGUMENTS_MAX}", len(arguments))
    for name, value in arguments.items():
        if len(name) > ENGINE_ARGUMENT_CHARACTERS_MAX or not _IDENTIFIER.fullmatch(name):
            raise _wrong("arguments", "names of Python arguments", name)
        if isinstance(value, str) and len(value) > ENGINE_ARGUMENT_CHARACTERS_MAX:
            raise _wrong(f"arguments.{name}", f"at most {ENGINE_ARGUMENT_CHARACTERS_MAX} characters", value)
        if isinstance(value, int) and abs(value) >> _INTEGER_BITS:
            raise _wrong(f"arguments.{name}", f"an integer of {_INTEGER_BITS + 1} bits", value)
        if isinstance(value, float) and not math.isfinite(value):
            raise _wrong(f"arguments.{name}", "a finite number", value)
    size = len(json.dumps(arguments))
    if size > ENGINE_ARGUMENTS_BYTES_MAX:
        raise _wrong("arguments", f"at most {ENGINE_ARGUMENTS_BYTES_MAX} bytes of JSON", size)


def _wrong(field: str, expected: str, actual: object) -> InvalidArtifactError:
    shown = repr(actual)
    return InvalidArtifactError(
        f"model card: engine.{field}: expected {expected}, got {shown if len(shown) <= 100 else f'{shown[:100]}…'}"
    )
