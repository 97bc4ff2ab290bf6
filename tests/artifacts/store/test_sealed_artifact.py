"""A loader gets the hashed bytes in sealed memory, and sealing needs little other memory."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from pillion_artifacts import DigestMismatchError, InvalidArtifactError, Store
from pillion_artifacts.store.sealed_artifact import seal_artifact
from tests.artifacts.support.stores import POLICY, example_card, example_folder, flip, foreign_layout
from tests.harness import STORE, blob_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    folder = example_folder(tmp_path / "folder")
    (folder / "tuned.json").write_text("{}")
    store.publish(POLICY, "1.0.0", folder)
    return store


def open_memory() -> list[str]:
    """The memfds of this process with a file of an artifact."""
    links = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry.path)]
    return [link for link in links if "pillion-artifact" in link]


def test_sealed_bytes_are_the_published_ones_and_cannot_be_changed(store: Store) -> None:
    before = open_memory()
    artifact = store.load(POLICY)
    with seal_artifact(store, store.resolve(POLICY)) as sealed:
        assert (sealed.policy, sealed.version, sealed.digest) == (POLICY, "1.0.0", artifact.digest)
        assert sealed.card == artifact.card
        assert set(sealed.files) == {"model.onnx", "tuned.json"}
        assert sealed.golden == -1
        assert os.pread(sealed.model, 1 << 30, 0) == artifact.model
        for change in (
            lambda: os.pwrite(sealed.model, b"x", 0),
            lambda: os.ftruncate(sealed.model, 1),
            lambda: os.ftruncate(sealed.model, 1 << 30),
        ):
            with pytest.raises(PermissionError):
                change()
    assert open_memory() == before


@pytest.mark.parametrize("title", ["model.onnx", "model_card.yaml", "tuned.json"])
def test_a_flipped_bit_of_any_file_is_refused_and_leaves_no_memory_behind(title: str, store: Store) -> None:
    before = open_memory()
    flip(blob_of(store.root, POLICY, title), 0.5)
    with pytest.raises(DigestMismatchError, match=rf"lunar-lander@v?1\.0\.0: {title} is not what was published"):
        seal_artifact(store, store.resolve(POLICY))
    assert open_memory() == before


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (pickle.dumps({}), "model.onnx: expected an ONNX file, got a pickle"),
        (blob_of(STORE, "highway-fast", "model.onnx").read_bytes(), "the card says a row is"),
    ],
)
def test_unchecked_files_are_checked_when_they_are_sealed(model: bytes, message: str, tmp_path: Path) -> None:
    before = open_memory()
    root = foreign_layout(tmp_path / "store", {"model.onnx": model, "model_card.yaml": example_card().encode()})
    digest = json.loads((root / "index.json").read_bytes())["manifests"][0]["digest"]
    store = Store(root)
    with pytest.raises(InvalidArtifactError, match=message):
        seal_artifact(store, store.resolve(f"{POLICY}@{digest}"))
    assert open_memory() == before


def test_sealing_a_large_version_takes_the_memory_of_a_chunk(tmp_path: Path) -> None:
    folder = example_folder(tmp_path / "folder")
    with (folder / "golden.safetensors").open("wb") as file:
        for _ in range(200):
            file.write(os.urandom(1_000_000))
    Store(tmp_path / "store").publish(POLICY, "1.0.0", folder)
    script = (
        "import os, resource, sys\n"
        "from pathlib import Path\n"
        "from pillion_artifacts import Store\n"
        "from pillion_artifacts.store.sealed_artifact import seal_artifact\n"
        "store = Store(Path(sys.argv[1]))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "sealed = seal_artifact(store, store.resolve('lunar-lander'))\n"
        "print(os.fstat(sealed.golden).st_size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    line = [sys.executable, "-c", script, str(tmp_path / "store")]
    size, grown_kb = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    assert int(size) == 200_000_000
    assert int(grown_kb) < 64_000
