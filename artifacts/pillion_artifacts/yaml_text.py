"""Reads YAML from untrusted files: plain values only, bounded nesting, errors of one line."""

from __future__ import annotations

import codecs
import contextlib
from typing import Any

import yaml

from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.limits import YAML_DEPTH_MAX


def read_yaml(text: bytes, what: str) -> Any:
    """Reads the value in `text`. Errors start with `what`.

    Raises `InvalidArtifactError` for anything that is not YAML, for a repeated key, for values nested too deep, and for
    aliases, since a few lines of them can expand without end.
    """
    try:
        _check_events(text)
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - it derives from the safe loader
    except yaml.YAMLError as error:
        raise InvalidArtifactError(f"{what}: not YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:
        # an impossible date, or a number with too many digits
        raise InvalidArtifactError(f"{what}: not a value: {error}") from None
    except InvalidArtifactError as error:
        raise InvalidArtifactError(f"{what}: {error}") from None


class _UniqueKeyLoader(yaml.CSafeLoader):
    """A safe loader that rejects a repeated key; the library would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise InvalidArtifactError(f"line {node.start_mark.line + 1}: key {key!r} is given twice")
        return super().construct_mapping(node, deep=deep)


def _check_events(text: bytes) -> None:
    try:
        _check_shape(text)
    except yaml.MarkedYAMLError as error:
        # The library reads ahead, and some of its versions have a nesting limit of their own. The text before the error
        # may already be nested too deep, and that is the better message. The cut text is never valid YAML itself.
        if error.problem_mark is not None:
            with contextlib.suppress(yaml.YAMLError):
                _check_shape(_decoded(text)[: error.problem_mark.index])
        raise


def _check_shape(text: str | bytes) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        is_alias = isinstance(event, yaml.AliasEvent)
        if is_alias or depth > YAML_DEPTH_MAX:
            line = event.start_mark.line + 1 if event.start_mark else 0
            expected = "values, got an alias" if is_alias else f"values nested at most {YAML_DEPTH_MAX} deep, got more"
            raise InvalidArtifactError(f"line {line}: expected {expected}")


def _decoded(text: bytes) -> str:
    """The text as characters, because the library's marks count characters."""
    is_utf16 = text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return text.decode("utf-16" if is_utf16 else "utf-8", errors="replace")
