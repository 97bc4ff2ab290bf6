"""Writes cards as YAML, migrates old cards, and makes the JSON Schema of a card."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Final

import msgspec
import yaml

from pillion_artifacts.card.model_card import SCHEMA, ModelCard, parse_card
from pillion_artifacts.json_schema import canonical

SCHEMA_NAME: Final = "model_card.schema.json"
"""The packaged JSON Schema, for editors."""

_LINE_CHARACTERS: Final = 110


def dump_card(card: ModelCard) -> bytes:
    """Writes a card as YAML of the current schema, without its empty fields. `parse_card` reads the same card back."""
    card = msgspec.structs.replace(card, schema=SCHEMA)
    text = yaml.dump(
        _fields(card),
        Dumper=_Dumper,
        sort_keys=False,
        width=_LINE_CHARACTERS,
        allow_unicode=True,
    ).encode()
    assert parse_card(text) == card
    return text


def migrate_card(text: bytes) -> bytes:
    """Writes a card of any schema as YAML of the current schema. Raises `InvalidArtifactError`."""
    return dump_card(parse_card(text))


def card_schema() -> bytes:
    """Makes the JSON Schema of a card from its types."""
    schema = canonical(msgspec.json.schema(ModelCard))
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Pillion model card"}
    return msgspec.json.format(msgspec.json.encode({**head, **schema}), indent=2) + b"\n"


def shipped_card_schema() -> bytes:
    """Reads the packaged JSON Schema, which must equal `card_schema()`."""
    return files("pillion_artifacts").joinpath(SCHEMA_NAME).read_bytes()


def _fields(value: Any) -> Any:
    """The card as plain values, without empty optional fields."""
    if isinstance(value, msgspec.Struct):
        named = ((field, getattr(value, field.name)) for field in msgspec.structs.fields(value))
        return {
            field.encode_name: _fields(item)
            for field, item in named
            if field.required or not _is_empty(item, field.default)
        }
    if isinstance(value, list):
        return [_fields(item) for item in value]
    if isinstance(value, dict):
        return {key: _fields(item) for key, item in value.items()}
    return value


def _is_empty(item: Any, default: Any) -> bool:
    return item in ("", [], {}, None) or (item == 0 and default == 0 and not isinstance(item, bool))


class _Dumper(yaml.SafeDumper):
    """Writes a list of numbers on one line."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        scalars = all(isinstance(item, int | float | str) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=scalars or flow_style)
