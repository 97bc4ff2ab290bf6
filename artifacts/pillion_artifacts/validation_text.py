"""What msgspec says of a wrong value, with the values that it leaves out: which ones would be right."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from msgspec.inspect import DictType, LiteralType, Metadata, StructType, Type, UnionType, type_info

_WRONG_VALUE: Final = re.compile(r"Invalid enum value (?P<value>.*?)(?: - at `\$(?P<path>.*)`)?", re.DOTALL)
_STEP: Final = re.compile(r"\.(\w+)|\[[^]]*\]")


def text_of(error: msgspec.ValidationError, root: type) -> str:
    """Returns the text of an error of `msgspec.convert(…, root)`, its path last.

    An enum error becomes "expected a, b or c, got 'd'". Others, and those whose place is not found, stay as they are.
    """
    text = str(error)
    match = _WRONG_VALUE.fullmatch(text)
    allowed = _allowed(type_info(root), match["path"] or "") if match else []
    if match is None or not allowed:
        return text
    where = f" - at `${match['path']}`" if match["path"] else ""
    return f"expected one of {', '.join(map(str, allowed))}, got {match['value']}{where}"


def _allowed(info: Type, path: str) -> list[Any]:
    """The values of the literal at the end of a path; empty if there is none."""
    places = [info]
    for step in _STEP.finditer(path):
        places = [inner for place in places for inner in _inner(_plain(place), step[1])]
    return sorted(value for place in places for each in _alternatives(_plain(place)) for value in _values(each))


def _plain(info: Type) -> Type:
    return _plain(info.type) if isinstance(info, Metadata) else info


def _alternatives(info: Type) -> list[Type]:
    return [_plain(each) for each in info.types] if isinstance(info, UnionType) else [info]


def _values(info: Type) -> tuple[Any, ...]:
    return tuple(info.values) if isinstance(info, LiteralType) else ()


def _inner(info: Type, field: str | None) -> list[Type]:
    """The types of a field, or of the items if there is no field."""
    found: list[Type] = []
    for each in _alternatives(info):
        if field is not None and isinstance(each, StructType):
            found += [known.type for known in each.fields if known.encode_name == field]
        elif field is None:
            item = each.value_type if isinstance(each, DictType) else getattr(each, "item_type", None)
            found += [item] if item is not None else []
    return found
