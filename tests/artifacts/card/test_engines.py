"""What a card says about its engine and its chunks of actions, and which model belongs to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from pillion_artifacts import InvalidArtifactError, ModelCard, Store, parse_card
from pillion_artifacts.card.content_checks import check_card as check_published_card
from pillion_artifacts.card.model_card import EngineCard
from pillion_artifacts.card.yaml_card import dump_card, migrate_card
from pillion_artifacts.cli.diff import compare
from pillion_artifacts.oci.layouts import FolderFiles, LayoutSource
from pillion_artifacts.remotes.transfer import import_versions
from pillion_artifacts.verify.verification import Verifier, all_versions
from tests.artifacts.support.stores import example_folder, example_model, foreign_layout

CARD = """
schema: 3
name: grasp
version: 1.0.0
description: Grasps.
licence: MIT
observation: [{name: joints, dtype: float32, shape: [4]}]
outputs: [{name: action, dtype: float32, shape: [8, 2]}]
engine: {kind: python, entry_point: 'lab.policies:make', distribution: lab-policies, requires: '>=1.2,<2', arguments: {layers: 2, name: big, dropout: 0.5, warm: true}}
action_horizon: 8
"""


def card(*changes: tuple[str, str]) -> ModelCard:
    text = CARD
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return parse_card(text.encode())


def test_engine_and_chunk_are_read_and_written_back() -> None:
    read = card()
    arguments: dict[str, str | int | float | bool] = {"layers": 2, "name": "big", "dropout": 0.5, "warm": True}
    assert read.engine == EngineCard("python", "lab.policies:make", "lab-policies", ">=1.2,<2", arguments)
    assert read.action_horizon == 8
    assert parse_card(dump_card(read)) == read


@pytest.mark.parametrize(
    "requires", ["", "==1.2", "==1.*", "~=1.4.2", ">= 1.0 , != 1.5.*, <2.0rc1", ">1.0.post2", "!=2.0.dev3", "<=3"]
)
def test_every_usual_specifier_is_accepted(requires: str) -> None:
    assert card((">=1.2,<2", requires)).engine.requires == requires


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("lab.policies:make", "lab.policies"), r"entry_point: expected MODULE:FACTORY .*, got 'lab\.policies'"),
        (("lab.policies:make", "lab policies:make"), "entry_point: expected MODULE:FACTORY"),
        (("lab.policies:make", "lab:os.system()"), "entry_point: expected MODULE:FACTORY"),
        (("distribution: lab-policies, ", ""), "distribution: expected the name of the installed package, got ''"),
        (("distribution: lab-policies", "distribution: ../lab"), "distribution: expected the name of the installed"),
        ((">=1.2,<2", "1.2"), "requires: expected versions as PEP 440 writes them, .*, got '1.2'"),
        ((">=1.2,<2", ">=1.*"), "requires: expected versions"),
        ((">=1.2,<2", ">=1,"), "requires: expected versions"),
        (("layers: 2", "'lay ers': 2"), "arguments: expected names of Python arguments, got 'lay ers'"),
        (("layers: 2", "layers: [2]"), r"\$\.engine\.arguments"),
        (("layers: 2", "layers: .inf"), "layers: expected a finite number"),
        (("layers: 2", "layers: 36893488147419103232"), r"engine\.arguments"),
        (("name: big", f"name: {'x' * 5000}"), "name: expected at most 4096 characters"),
        (("layers: 2", ", ".join(f"a{number}: 1" for number in range(70))), "arguments: expected at most 64"),
        (
            ("layers: 2", ", ".join(f"a{number}: {'é' * 4000}" for number in range(3))),
            r"arguments: expected at most 65536 bytes of JSON, got 7\d{4}",
        ),
        (("kind: python", "kind: torch"), "entry_point: expected none for the engine torch"),
        (("kind: python", "kind: jax"), r"'jax'.*\$\.engine\.kind"),
        (
            ("action_horizon: 8", "action_horizon: 7"),
            r"action_horizon: expected an action of shape \[7, …\], got \[8, 2\]",
        ),
        (("shape: [8, 2]", "shape: []"), r"action_horizon: expected an action of shape \[8, …\], got \[\]"),
        (("action_horizon: 8", "action_horizon: -1"), r"\$\.action_horizon"),
        (
            ("dtype: float32, shape: [8, 2]}", "dtype: int64, space: Discrete}"),
            "action_horizon: expected a chunk of actions, but a Discrete action is one",
        ),
        (("action_horizon: 8", "action_horizon: 8\nsafe_action: [0, 0]"), "safe_action: expected 16 numbers, got 2"),
        (("schema: 3", "schema: 2"), "engine: a card of schema 2 has none; expected schema 3"),
    ],
)
def test_an_engine_or_chunk_that_contradicts_itself_is_refused(change: tuple[str, str], message: str) -> None:
    with pytest.raises(InvalidArtifactError, match=message):
        card(change)


def test_a_card_of_schema_2_cannot_have_chunks() -> None:
    engine = CARD[CARD.index("engine:") : CARD.index("action_horizon")]
    with pytest.raises(InvalidArtifactError, match="action_horizon: a card of schema 2 has none"):
        card((engine, ""), ("schema: 3", "schema: 2"))


def test_a_safe_action_covers_the_whole_chunk() -> None:
    safe = list(range(16))
    assert card(("action_horizon: 8", f"action_horizon: 8\nsafe_action: {safe}")).safe_action == safe


def test_migrating_a_card_of_schema_2_names_its_engine() -> None:
    engine = CARD[CARD.index("engine:") : CARD.index("action_horizon")]
    old = CARD.replace(engine, "").replace("action_horizon: 8\n", "").replace("schema: 3", "schema: 2").encode()
    new = migrate_card(old)
    assert b"schema: 3" in new
    assert b"kind: onnx" in new
    assert parse_card(new) == parse_card(old)
    assert migrate_card(new) == new


# The model file of the engine


def weights() -> bytes:
    return save({"layer": np.zeros((2, 2), np.float32)})


def python_folder(folder: Path, version: str = "1.0.0", **changes: Any) -> Path:
    folder.mkdir()
    text = CARD.replace("version: 1.0.0", f"version: {version}")
    for old, new in changes.values():
        text = text.replace(old, new)
    (folder / "model_card.yaml").write_text(text)
    (folder / "model.safetensors").write_bytes(weights())
    return folder


def test_a_version_of_weights_is_published_read_sealed_and_verified(tmp_path: Path) -> None:
    from pillion_artifacts.store.sealed_artifact import seal_artifact

    store = Store(tmp_path / "store")
    published = store.publish("grasp", "1.0.0", python_folder(tmp_path / "folder"))
    artifact = store.load("grasp")
    assert (artifact.model, artifact.files) == (weights(), {})
    with seal_artifact(store, published) as sealed:
        assert Path(f"/proc/self/fd/{sealed.model}").read_bytes() == weights()
    verifier = Verifier(store)
    assert [verifier.verify(each).faults for each in all_versions(store)] == [[]]


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.torchscript"])
def test_another_model_than_the_one_of_the_engine_is_refused(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / "store")
    folder = python_folder(tmp_path / "folder")
    (folder / name).write_bytes(example_model())
    both = sorted([name, "model.safetensors"])
    with pytest.raises(InvalidArtifactError, match=rf"expected one of .*, got {', '.join(both)}$"):
        store.publish("grasp", "1.0.0", folder)
    (folder / "model.safetensors").unlink()
    expected = rf"grasp@v1\.0\.0: expected model\.safetensors, since the card's engine is python, got {name}"
    with pytest.raises(InvalidArtifactError, match=expected):
        store.publish("grasp", "1.0.0", folder)
    card = {"model_card.yaml": CARD.encode()}
    for number, (files, message) in enumerate(
        [({name: example_model()}, expected), ({}, r"grasp@v1\.0\.0: manifest: expected one of .*, got none")]
    ):
        layout = foreign_layout(tmp_path / f"layout-{number}", {**files, **card}, policy="grasp")
        with pytest.raises(InvalidArtifactError, match=message):
            import_versions(store, LayoutSource(FolderFiles(layout)), [], where="a foreign layout")


def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    folder = python_folder(tmp_path / "folder")
    (folder / "model.safetensors").write_bytes(weights() + b"x")
    with pytest.raises(InvalidArtifactError, match=r"grasp@v1\.0\.0: model\.safetensors: expected 16 bytes"):
        Store(tmp_path / "store").publish("grasp", "1.0.0", folder)


def test_a_version_shows_its_engine_and_chunk_and_a_comparison_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pillion_artifacts.cli.listing import describe_version, print_description

    store = Store(tmp_path / "store")
    store.publish("grasp", "1.0.0", python_folder(tmp_path / "one"))
    shorter = {"horizon": ("action_horizon: 8", "action_horizon: 4"), "shape": ("[8, 2]", "[4, 2]")}
    store.publish("grasp", "1.1.0", python_folder(tmp_path / "two", "1.1.0", **shorter, requires=("<2", "<3")))
    print_description(describe_version(store, "grasp@1.0.0"))
    out = capsys.readouterr().out
    assert "engine      python: lab.policies:make of lab-policies >=1.2,<2\n" in out
    assert "action      a chunk of 8 actions, float32 [8, 2]\n" in out
    found = {each.path: (each.before, each.after) for each in compare(store, "grasp@1.0.0", "grasp@1.1.0").differences}
    assert found["action_horizon"] == (8, 4)
    assert found["engine.requires"] == (">=1.2,<2", ">=1.2,<3")


def test_the_card_of_an_onnx_policy_says_so(tmp_path: Path) -> None:
    folder = example_folder(tmp_path / "folder")
    text = (folder / "model_card.yaml").read_bytes()
    assert check_published_card(text, "lunar-lander", "1.0.0").engine == EngineCard("onnx")
