"""Cards: all fields are read, unknown ones refused, and migration keeps every field."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from pillion_artifacts import InvalidArtifactError, ModelCard, Store, parse_card
from pillion_artifacts.card.model_card import Bound, StateCard, schema_of
from pillion_artifacts.card.yaml_card import card_schema, dump_card, migrate_card, shipped_card_schema
from pillion_artifacts.json_schema import canonical
from tests.harness import STORE as EXAMPLES
from tests.harness import blob_of

CARDS = Path(__file__).parent / "cards"

FULL = """
schema: 2
name: walker
version: 2.0.0
description: Walks.
licence: MIT
observation:
- {name: joints, dtype: float32, shape: [4]}
- {name: frames, dtype: uint8, shape: [6, 2, 2], low: [0], high: [255]}
outputs:
- {name: action, dtype: float32, shape: [2], low: [-1], high: [1]}
distribution: {kind: squashed_gaussian, mean: mean, log_std: log_std}
state:
- {name: hidden, output: hidden_next, dtype: float32, shape: [1, 8]}
frame_stack:
- {observation: frames, frames: 3, axis: 0, padding: zeros}
preprocessing:
- {step: normalise, observation: joints, detail: clipped to 10}
- {step: scale, observation: frames}
tolerance: {absolute: 1.0e-4, outputs: {action: {absolute: 1.0e-6}}}
lineage: {run: runs/7, code_commit: abc, source: 'sha256:SIXTYFOUR'}
contributors:
- {name: A Lab, role: demonstrations, weight: 0.25}
- {name: B Lab, weight: 0.75}
""".replace("SIXTYFOUR", "0" * 64)


def test_every_field_of_a_card_is_read_and_written_back() -> None:
    card = parse_card(FULL.encode())
    assert card.state == [StateCard("hidden", "hidden_next", "float32", [1, 8])]
    assert card.distribution.parameters() == ["mean", "log_std"]
    assert card.tolerance.of("action") == Bound(1e-6, 1e-5)
    assert card.tolerance.of("mean") == Bound(1e-4, 1e-5)
    assert sum(contributor.weight for contributor in card.contributors) == 1.0
    assert parse_card(dump_card(card)) == card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("axis: 0", "axle: 0"), r"`axle`.*\$\.frame_stack\[0\]"),
        (("role: dem", "roll: dem"), r"`roll`.*\$\.contributors\[0\]"),
        (("weight: 0.75", "weight: -1"), r"\$\.contributors\[1\]\.weight"),
        (("sha256:0", "md5:0"), r"\$\.lineage\.source"),
        (("output: hidden_next", "output: action"), r"state\.output: expected names that differ"),
        (("name: hidden", "name: joints"), r"state\.name: expected names that differ"),
        (("frames: 3", "frames: 4"), r"axis 0 of \[6, 2, 2\] is not 4 frames"),
        (("axis: 0", "axis: 3"), "axis 3 of"),
        (("{observation: frames, frames", "{observation: film, frames"), "frame_stack: there is no observation 'film'"),
        (("scale, observation: frames", "scale, observation: film"), "preprocessing: there is no observation 'film'"),
        (("mean: mean, ", ""), r"distribution\.mean: expected the name"),
        (("shape: [2], low: [-1], high: [1]", "shape: [2]"), "scaled to low and high"),
        (("absolute: 1.0e-6", "absolute: -1"), r"\$\.tolerance\.outputs\[\.\.\.\]\.absolute"),
        (("schema: 2", "schema: 4"), "schema: expected 1 to 3, got 4"),
        (("schema: 2\n", ""), "`schema`"),
        (("schema: 2", "schema: 1"), r"'squashed_gaussian'.*\$\.distribution\.kind"),
    ],
)
def test_an_error_in_a_card_has_its_path(change: tuple[str, str], message: str) -> None:
    assert change[0] in FULL
    with pytest.raises(InvalidArtifactError, match=message):
        parse_card(FULL.replace(*change, 1).encode())


@pytest.mark.parametrize("text", ["", "[1]", "just words", "{1: 2}", "schema: [1"])
def test_other_yaml_than_a_card_is_refused(text: str) -> None:
    with pytest.raises(InvalidArtifactError, match="model card: "):
        parse_card(text.encode())


def test_migrating_a_stored_card_of_schema_1_keeps_its_fields() -> None:
    old = (CARDS / "schema-1.yaml").read_bytes()
    new = migrate_card(old)
    assert (schema_of(old), schema_of(new)) == (1, 3)
    assert parse_card(new) == parse_card(old)
    was, became = yaml.safe_load(old), yaml.safe_load(new)
    for key in was.keys() - {"schema", "observation", "outputs"}:
        assert became[key] == was[key], key
    assert migrate_card(new) == new


@pytest.mark.parametrize("policy", Store(EXAMPLES).policies())
def test_the_cards_that_ship_are_of_schema_1_and_load_as_they_are(policy: str) -> None:
    text = blob_of(EXAMPLES, policy, "model_card.yaml").read_bytes()
    assert schema_of(text) == 1
    assert Store(EXAMPLES).load(policy).card == parse_card(migrate_card(text))


def test_a_card_of_schema_1_cannot_use_later_fields() -> None:
    old = (CARDS / "schema-1.yaml").read_text()
    with pytest.raises(InvalidArtifactError, match="`contributors`"):
        parse_card((old + "contributors: []\n").encode())


def test_the_json_schema_that_ships_is_made_from_the_types() -> None:
    assert shipped_card_schema() == card_schema()


def test_the_json_schema_has_every_field() -> None:
    properties = msgspec.json.decode(card_schema())["$defs"]["ModelCard"]["properties"]
    assert list(properties) == [field.name for field in msgspec.structs.fields(ModelCard)]


def test_a_schema_does_not_depend_on_the_indentation_of_docstrings() -> None:
    indented = {"description": "One line.\n\n    Another line.\n    The last one.\n    "}
    plain = {"description": "One line.\n\nAnother line.\nThe last one."}
    schema = {"$defs": {"Layer": {**indented, "properties": {"description": {"type": "string", **indented}}}}}
    assert canonical(schema) == {
        "$defs": {"Layer": {**plain, "properties": {"description": {"type": "string", **plain}}}}
    }
    assert canonical(canonical(schema)) == canonical(schema)


def test_a_schema_does_not_depend_on_the_order_of_alternatives() -> None:
    alternatives: list[dict[str, Any]] = [{"type": "null"}, {"$ref": "#/$defs/Layer"}, {"type": "array", "items": {}}]
    schemas = [{"properties": {"anyOf": {"anyOf": list(order)}}} for order in permutations(alternatives)]
    assert all(canonical(schema) == canonical(schemas[0]) for schema in schemas)
    assert canonical(schemas[0])["properties"]["anyOf"]["anyOf"][-1] == {"type": "null"}
