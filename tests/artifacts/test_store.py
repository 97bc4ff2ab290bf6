"""The store gives what was published, or says what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pillion_artifacts import (
    DigestMismatchError,
    InvalidArtifactError,
    PolicyNotFoundError,
    Store,
    VersionRange,
    parse_card,
    seal,
)

EXAMPLES = Path(__file__).parents[2] / "artifacts" / "examples"
POLICIES = sorted(entry.name for entry in EXAMPLES.iterdir() if entry.is_dir())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    shutil.copytree(EXAMPLES, tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_that_ships_is_intact_and_was_measured(policy: str) -> None:
    artifact = Store(EXAMPLES).load(policy)
    assert artifact.policy == policy
    assert artifact.card.metrics["mean_return"].episodes >= 20
    assert artifact.card.lineage.timesteps > 0
    assert (EXAMPLES.parents[1] / artifact.card.lineage.script).is_file()


@pytest.mark.parametrize("name", ["model.onnx", "model_card.yaml"])
@pytest.mark.parametrize("position", [0, 0.5, 1])
def test_a_flipped_bit_anywhere_is_found(store: Store, name: str, position: float) -> None:
    file = store.root / "lunar-lander" / "1.0.0" / name
    data = bytearray(file.read_bytes())
    data[min(len(data) - 1, int(position * len(data)))] ^= 1
    file.write_bytes(data)
    with pytest.raises(DigestMismatchError, match=f"lunar-lander@1.0.0: {name} is not what was published"):
        store.load("lunar-lander")


def test_a_truncated_or_missing_file_is_found(store: Store) -> None:
    file = store.root / "lunar-lander" / "1.0.0" / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DigestMismatchError):
        store.load("lunar-lander")
    file.unlink()
    with pytest.raises(InvalidArtifactError, match="No such file"):
        store.load("lunar-lander")


def test_a_manifest_that_reaches_outside_its_folder_is_refused(store: Store) -> None:
    folder = store.root / "lunar-lander" / "1.0.0"
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"model.onnx"', '"../../../secret"'))
    with pytest.raises(InvalidArtifactError, match="plain file name"):
        store.load("lunar-lander")
    manifest.write_text(manifest.read_text().replace('"../../../secret"', '"link.onnx"'))
    (folder / "link.onnx").symlink_to("/etc/hostname")
    with pytest.raises(InvalidArtifactError, match=r"link\.onnx"):
        store.load("lunar-lander")


def test_an_artifact_under_another_name_is_refused(store: Store) -> None:
    shutil.copytree(store.root / "lunar-lander", store.root / "other")
    with pytest.raises(InvalidArtifactError, match="the manifest is that of lunar-lander@1"):
        store.load("other")


@pytest.mark.parametrize("reference", ["nothing-here", "lunar-lander@9", "lunar-lander@>=1.0,<1.0", "../store", ""])
def test_a_policy_that_is_not_there_is_named(store: Store, reference: str) -> None:
    with pytest.raises(PolicyNotFoundError):
        store.load(reference)


def test_the_newest_version_that_fits_is_taken(store: Store) -> None:
    for version in ("1.2.0", "1.10.0", "2.0.0-rc.1"):
        _publish_copy(store, version)
    assert store.load("lunar-lander").version == "1.10.0"
    assert store.load("lunar-lander@>=1.0,<1.10").version == "1.2.0"
    assert store.load("lunar-lander@v1.2.0").version == "1.2.0"
    assert store.load("lunar-lander@>=2.0.0-rc.0").version == "2.0.0-rc.1"


def test_sealing_the_same_files_gives_the_same_digest(store: Store) -> None:
    folder = store.root / "lunar-lander" / "1.0.0"
    before = (folder / "manifest.json").read_bytes()
    assert seal(folder) == store.load("lunar-lander").digest
    assert (folder / "manifest.json").read_bytes() == before


def _publish_copy(store: Store, version: str) -> None:
    folder = store.root / "lunar-lander" / version
    shutil.copytree(store.root / "lunar-lander" / "1.0.0", folder)
    card = folder / "model_card.yaml"
    card.write_text(card.read_text().replace("version: 1.0.0", f"version: {version}"))
    seal(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("licence:", "license:"), r"unknown field `license`|missing required field `licence`"),
        (("dtype: float32", "dtype: float99"), r"Invalid enum value 'float99' - at `\$\.observation\[0\]\.dtype`"),
        (("version: 1.0.0", "version: one"), "expected MAJOR.MINOR.PATCH, came 'one'"),
        (("version: 1.0.0", "version: 1.0.0\nversion: 1.0.0"), "key 'version' is given twice"),
        (("schema: 1", "schema: 2"), r"Invalid enum value 2 - at `\$\.schema`"),
        (("name: lunar-lander", "name: ../etc"), "Expected `str` matching regex"),
        (("schema: 1", "schema: [1"), "not YAML"),
        (
            ("kind: categorical", "kind: diagonal_gaussian"),
            "diagonal_gaussian draws Box actions, the action is Discrete",
        ),
        (("logits: logits", "logits: ''"), r"distribution\.logits: expected the name"),
        (("dtype: int64", "dtype: int64\n  shape: [1]"), "a Discrete action has none"),
        (("name: action", "name: acceleration"), "expected one called 'action', came none"),
        (("schema: 1", "schema: 1\nsafe_action: [1, 2]"), "safe_action: expected 1 numbers, came 2"),
        (("shape: [8]", "shape: [9]"), r"observation\.observation\.low: expected 0, 1 or 9 numbers, came 8"),
    ],
)
def test_a_card_with_a_mistake_names_its_path(change: tuple[str, str], message: str) -> None:
    text = (EXAMPLES / "lunar-lander" / "1.0.0" / "model_card.yaml").read_text()
    assert change[0] in text
    with pytest.raises(InvalidArtifactError, match=message):
        parse_card(text.replace(*change, 1).encode())


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("", ["1.0.0", "0.0.1"], ["1.0.0-rc.1"]),
        (">=1.2,<2", ["1.2.0", "1.99.0"], ["1.1.9", "2.0.0", "1.3.0-rc.1"]),
        ("1.2.3", ["1.2.3"], ["1.2.4"]),
        ("v1.2.3", ["1.2.3"], ["1.2.4"]),
        ("!=1.2.3", ["1.2.4"], ["1.2.3"]),
        (">=1.0.0-rc.1", ["1.0.0-rc.2", "1.0.0"], ["1.0.0-beta"]),
        ("<=1.2.3+a-b", ["1.2.3"], ["1.2.3-rc.1"]),
    ],
)
def test_a_range_holds_the_versions_that_it_says(text: str, inside: list[str], outside: list[str]) -> None:
    wanted = VersionRange(text)
    assert [version for version in inside + outside if version in wanted] == inside


@pytest.mark.parametrize("text", [">=", "one", "1.2.3.4", "^1.2", ">=1,,<2"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a version range"):
        VersionRange(text)
