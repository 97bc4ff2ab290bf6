"""The store returns the published bytes, or an error that names the fault."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from pillion_artifacts import (
    DigestMismatchError,
    InvalidArtifactError,
    PolicyNotFoundError,
    Store,
    VersionRange,
    parse_card,
)
from pillion_artifacts.oci.manifest import decode_index, decode_manifest, digest_of, encode_json
from tests.artifacts.support.stores import example_card, example_folder, example_model, flip
from tests.harness import ROOT, STORE, blob_of, copy_examples, publish


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return copy_examples(tmp_path / "store")


@pytest.mark.parametrize("policy", Store(STORE).policies())
def test_every_policy_that_ships_is_intact_and_was_measured(policy: str) -> None:
    artifact = Store(STORE).load(policy)
    assert artifact.policy == policy
    assert artifact.card.metrics["mean_return"].episodes >= 20
    assert artifact.card.lineage.timesteps > 0
    assert (ROOT / artifact.card.lineage.script).is_file()


@pytest.mark.parametrize("name", ["model.onnx", "model_card.yaml"])
@pytest.mark.parametrize("position", [0, 0.5, 1])
def test_a_flipped_bit_anywhere_is_found(store: Store, name: str, position: float) -> None:
    flip(blob_of(store.root, "lunar-lander", name), position)
    with pytest.raises(DigestMismatchError, match=f"lunar-lander@v1.0.0: {name} is not what was published"):
        store.load("lunar-lander")


@pytest.mark.parametrize("position", [0, 0.5, 1])
def test_a_flipped_bit_in_a_manifest_is_found(store: Store, position: float) -> None:
    flip(manifest_of(store), position)
    with pytest.raises(DigestMismatchError, match=r"lunar-lander@v1\.0\.0: manifest is not what was published"):
        store.load("lunar-lander")


def test_a_truncated_or_missing_file_is_found(store: Store) -> None:
    file = blob_of(store.root, "lunar-lander", "model.onnx")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DigestMismatchError, match="expected 21123 bytes, got 21122"):
        store.load("lunar-lander")
    file.unlink()
    with pytest.raises(InvalidArtifactError, match=r"lunar-lander@v1\.0\.0: model\.onnx: No such file"):
        store.load("lunar-lander")


def test_exchanged_files_are_found(store: Store) -> None:
    model, card = (blob_of(store.root, "lunar-lander", name) for name in ("model.onnx", "model_card.yaml"))
    both = model.read_bytes(), card.read_bytes()
    model.write_bytes(both[1])
    card.write_bytes(both[0])
    with pytest.raises(DigestMismatchError, match=r"lunar-lander@v1\.0\.0: model\.onnx is not what was published"):
        store.load("lunar-lander")


def test_a_manifest_with_exchanged_layers_is_refused(store: Store) -> None:
    manifest = manifest_of(store)
    text = manifest.read_text()
    for swapped in (
        text.replace('"model.onnx"', '"-"')
        .replace('"model_card.yaml"', '"model.onnx"')
        .replace('"-"', '"model_card.yaml"'),
        text.replace('"model_card.yaml"', '"model.onnx"'),
        text.replace('"model.onnx"', '"../../../secret"'),
        text.replace('"model.onnx"', '"/etc/passwd"'),
    ):
        digest = forge(store, swapped.encode())
        with pytest.raises(InvalidArtifactError, match=r"lunar-lander@v1\.0\.0: manifest: expected one"):
            store.load("lunar-lander")
        assert store.resolve("lunar-lander").digest == digest


def test_a_forged_manifest_does_not_match_a_digest_reference(store: Store) -> None:
    pinned = f"lunar-lander@{store.resolve('lunar-lander').digest}"
    manifest_of(store).write_bytes(manifest_of(store).read_bytes().replace(b"model.onnx", b"model.0nnx"))
    with pytest.raises(DigestMismatchError, match="manifest is not what was published"):
        store.load(pinned)


def test_a_manifest_of_another_policy_is_refused(store: Store) -> None:
    forge(store, manifest_of(store, "highway-fast").read_bytes())
    with pytest.raises(
        InvalidArtifactError, match=r"lunar-lander@v1\.0\.0: the manifest belongs to highway-fast@v1\.0\.0"
    ):
        store.load("lunar-lander")
    digest = store.resolve("highway-fast").digest
    with pytest.raises(InvalidArtifactError, match="the manifest belongs to highway-fast"):
        store.load(f"lunar-lander@{digest}")


def test_a_link_a_folder_or_a_pipe_in_place_of_a_blob_is_refused(store: Store, tmp_path: Path) -> None:
    model = blob_of(store.root, "lunar-lander", "model.onnx")
    shutil.move(model, tmp_path / "elsewhere")
    model.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidArtifactError, match=r"model\.onnx: expected a file, got a symbolic link"):
        store.load("lunar-lander")
    model.unlink()
    model.mkdir()
    with pytest.raises(InvalidArtifactError, match=r"model\.onnx: expected a file, got something else"):
        store.load("lunar-lander")
    model.rmdir()
    os.mkfifo(model)
    with pytest.raises(InvalidArtifactError, match=r"model\.onnx: expected a file, got something else"):
        store.load("lunar-lander")


@pytest.mark.parametrize(
    "reference",
    [
        "nothing-here", "lunar-lander@9", "lunar-lander@>=1.0,<1.0", "../store", "", "lunar-lander@stable",
        f"lunar-lander@sha256:{'0' * 64}", "lunar-lander@../stable", "lunar-lander@sha256:12",
    ],
)  # fmt: skip
def test_a_missing_policy_is_named(store: Store, reference: str) -> None:
    with pytest.raises(PolicyNotFoundError):
        store.load(reference)


def test_a_range_means_its_newest_version(store: Store) -> None:
    for version in ("1.2.0", "1.10.0", "2.0.0-rc.1"):
        publish(store.root, "lunar-lander", version, example_model(), example_card(version))
    assert store.load("lunar-lander").version == "1.10.0"
    assert store.load("lunar-lander@>=1.0,<1.10").version == "1.2.0"
    assert store.load("lunar-lander@v1.2.0").version == "1.2.0"
    assert store.load("lunar-lander@1.2.x").version == "1.2.0"
    assert store.load("lunar-lander@>=2.0.0-rc.0").version == "2.0.0-rc.1"
    assert store.versions("lunar-lander") == ["1.0.0", "1.2.0", "1.10.0", "2.0.0-rc.1"]


def test_the_same_files_give_the_same_digest(store: Store, tmp_path: Path) -> None:
    again = Store(tmp_path / "again").publish("lunar-lander", "1.0.0", example_folder(tmp_path / "folder"))
    assert again.digest == store.load("lunar-lander").digest
    assert (tmp_path / "again" / "index.json").read_bytes() != (store.root / "index.json").read_bytes()


def test_the_store_is_an_oci_image_layout(store: Store) -> None:
    assert msgspec.json.decode((store.root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = decode_index((store.root / "index.json").read_bytes())
    for entry in index.manifests:
        data = (store.root / "blobs" / "sha256" / entry.digest.removeprefix("sha256:")).read_bytes()
        assert len(data) == entry.size
        manifest = decode_manifest(data)
        assert entry.annotations["org.opencontainers.image.ref.name"] == f"{manifest.policy}_v{manifest.version}"
        for descriptor in [manifest.config, *manifest.layers]:
            assert (store.root / "blobs" / "sha256" / descriptor.digest.removeprefix("sha256:")).is_file()


def test_an_invalid_index_is_one_line(store: Store) -> None:
    (store.root / "index.json").write_text("[]")
    with pytest.raises(InvalidArtifactError, match=r"store: index\.json: "):
        store.load("lunar-lander")
    (store.root / "index.json").write_text('{"x":' + "[" * 100_000)
    with pytest.raises(InvalidArtifactError, match=r"store: index\.json: "):
        store.load("lunar-lander")


def test_a_manifest_that_is_nested_too_deep_is_refused(store: Store) -> None:
    digest = forge(store, b'{"x":' + b"[" * 100_000)
    with pytest.raises(InvalidArtifactError, match=r"lunar-lander@.*: manifest: "):
        store.load(f"lunar-lander@{digest}")


def manifest_of(store: Store, policy: str = "lunar-lander") -> Path:
    return store.root / "blobs" / "sha256" / store.resolve(policy).digest.removeprefix("sha256:")


def forge(store: Store, manifest: bytes) -> str:
    """Makes that manifest lunar-lander@v1.0.0 in the index, and returns its digest."""
    digest = digest_of(manifest)
    (store.root / "blobs" / "sha256" / digest.removeprefix("sha256:")).write_bytes(manifest)
    index = store.index()
    forged = [
        msgspec.structs.replace(entry, digest=digest, size=len(manifest)) if entry.title == "lunar-lander" else entry
        for entry in index.manifests
    ]
    (store.root / "index.json").write_bytes(encode_json(index.replaced(forged)))
    return digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("licence:", "license:"), r"`license`|`licence`"),
        (("dtype: float32", "dtype: float99"), r"'float99'.*\$\.observation\[0\]\.dtype"),
        (("version: 1.0.0", "version: one"), "expected MAJOR.MINOR.PATCH, got 'one'"),
        (("version: 1.0.0", "version: 1.0.0\nversion: 1.0.0"), "key 'version' is given twice"),
        (("schema: 1", "schema: 4"), "schema: expected 1 to 3, got 4"),
        (("name: lunar-lander", "name: ../etc"), r"model card: .*\$\.name"),
        (("schema: 1", "schema: [1"), "not YAML"),
        (
            ("kind: categorical", "kind: diagonal_gaussian"),
            "diagonal_gaussian samples Box actions, the action is Discrete",
        ),
        (("logits: logits", "logits: ''"), r"distribution\.logits: expected the name"),
        (("dtype: int64", "dtype: int64\n  shape: [1]"), "a Discrete action has none"),
        (("name: action", "name: acceleration"), "expected one named 'action', got none"),
        (("schema: 1", "schema: 1\nsafe_action: [1, 2]"), "safe_action: expected 1 numbers, got 2"),
        (("shape: [8]", "shape: [9]"), r"observation\.observation\.low: expected 0, 1 or 9 numbers, got 8"),
    ],
)
def test_an_error_in_a_stored_card_has_its_path(change: tuple[str, str], message: str) -> None:
    text = blob_of(STORE, "lunar-lander", "model_card.yaml").read_text()
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
        (">=1.2.0-rc.1,<2", ["1.2.0-rc.2", "1.9.0"], ["1.3.0-rc.1", "2.0.0-rc.1", "2.0.0"]),
        ("1.2.x", ["1.2.0", "1.2.99"], ["1.1.9", "1.3.0", "1.2.5-rc.1"]),
        ("1.x", ["1.0.0", "1.99.0"], ["0.9.0", "2.0.0"]),
        ("v1.2.*", ["1.2.7"], ["1.3.0"]),
        ("x", ["0.0.1", "7.0.0"], ["7.0.1-rc.1"]),
        ("1.x,!=1.4.0", ["1.3.0"], ["1.4.0"]),
        ("<=1.2.3+a-b", ["1.2.3"], ["1.2.3-rc.1"]),
    ],
)
def test_a_range_contains_its_versions(text: str, inside: list[str], outside: list[str]) -> None:
    wanted = VersionRange(text)
    assert [version for version in inside + outside if version in wanted] == inside


@pytest.mark.parametrize("text", [">=", "one", "1.2.3.4", "^1.2", ">=1,,<2", "1.x.x", "x.1", ">=1.x"])
def test_an_invalid_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a version range"):
        VersionRange(text)
