"""Reads YAML that a stranger may have written: plain values only, nested no deeper than people write, in errors of one line."""

from __future__ import annotations

import codecs
import contextlib
from typing import Any, Final

import yaml

from pillion_artifacts.errors import InvalidArtifactError

DEPTH_MAX: Final = 32
"""Lists and mappings inside each other. The library goes down by recursion in C: too deep a text would end the process."""


def read_yaml(text: bytes, what: str) -> Any:
    """The value that `text` holds; `what` it is about begins each error.

    Raises `InvalidArtifactError` for what is no YAML, for a key given twice, for what is nested too deep, and for aliases,
    which a few lines can make endless.
    """
    try:
        _check_events(text, what)
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - it derives from the safe loader
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise InvalidArtifactError(f"{what}: not YAML: {said}") from None
    except ValueError as error:
        # a date that is none, a number without end
        raise InvalidArtifactError(f"{what}: not a value: {error}") from None
    except _DuplicateKeyError as error:
        raise InvalidArtifactError(f"{what}: {error}") from None


class _DuplicateKeyError(Exception):
    """A key is given twice."""


class _UniqueKeyLoader(yaml.CSafeLoader):
    """A safe loader for which a key given twice is an error, not the last one's silent victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise _DuplicateKeyError(f"line {node.start_mark.line + 1}: key {key!r} is given twice")
        return super().construct_mapping(node, deep=deep)


def _check_events(text: bytes, what: str) -> None:
    try:
        _check_shape(text, what)
    except yaml.MarkedYAMLError as error:
        # The library reads ahead, and some versions have a bound of their own: what is before the place that stopped it
        # may be nested too deep already. That part has no end, hence it is no YAML either.
        if error.problem_mark is not None:
            with contextlib.suppress(yaml.YAMLError):
                _check_shape(_decoded(text)[: error.problem_mark.index], what)
        raise


def _check_shape(text: str | bytes, what: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        is_alias = isinstance(event, yaml.AliasEvent)
        if is_alias or depth > DEPTH_MAX:
            line = event.start_mark.line + 1 if event.start_mark else 0
            said = "values, got an alias" if is_alias else f"values nested at most {DEPTH_MAX} deep, got more"
            raise InvalidArtifactError(f"{what}: line {line}: expected {said}")


def _decoded(text: bytes) -> str:
    """The characters that the library counted."""
    is_utf16 = text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return text.decode("utf-16" if is_utf16 else "utf-8", errors="replace")
