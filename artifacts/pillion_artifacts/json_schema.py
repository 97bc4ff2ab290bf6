"""JSON Schemas from types, with the same text for every version of msgspec and Python."""

from __future__ import annotations

import inspect
import json
from typing import Any


def canonical(schema: Any) -> Any:
    """The same schema with plain descriptions, and with the alternatives of each `anyOf` sorted, null last.

    A description is a docstring. Older versions of msgspec, and Python before 3.13, keep the indentation of its lines.
    Versions of msgspec also differ in the order of alternatives, which means nothing.
    """
    if isinstance(schema, dict):
        return {name: _canonical(name, value) for name, value in schema.items()}
    if isinstance(schema, list):
        return [canonical(item) for item in schema]
    return schema


def _canonical(name: str, value: Any) -> Any:
    # a property may be called "description" or "anyOf": its value is then a schema
    if name == "description" and isinstance(value, str):
        return inspect.cleandoc(value)
    if name == "anyOf" and isinstance(value, list):
        return sorted(canonical(value), key=lambda each: (each == {"type": "null"}, json.dumps(each, sort_keys=True)))
    return canonical(value)
