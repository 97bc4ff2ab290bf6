"""A version is published once, completely or not at all, and only from checked files."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pillion_artifacts import ArtifactError, InvalidArtifactError, Store
from pillion_artifacts.errors import InvalidNameError, StoreError, VersionExistsError
from pillion_artifacts.maintenance.inspection import inspect_store
from pillion_artifacts.oci.layouts import FolderFiles, LayoutSource
from pillion_artifacts.remotes.transfer import import_versions
from tests.artifacts.support.stores import POLICY, example_card, example_folder, example_model, foreign_layout
from tests.harness import START_S_MAX, publish

Spoil = Callable[[onnx.ModelProto], None]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return example_folder(tmp_path / "folder")


def test_a_version_is_published_with_all_its_files(store: Store, folder: Path) -> None:
    (folder / "golden.safetensors").write_bytes(b"golden")
    (folder / "tuned.json").write_bytes(b"{}")
    (folder / "preprocessor.onnx").write_bytes(example_model())
    published = store.publish(POLICY, "1.0.0", folder, created_by="ann", reason="first")
    artifact = store.load(POLICY)
    assert artifact.digest == published.digest
    assert artifact.model == example_model()
    assert artifact.files == {
        "golden.safetensors": b"golden", "tuned.json": b"{}", "preprocessor.onnx": example_model()
    }  # fmt: skip
    (record,) = store.history()
    assert (record.action, record.version, record.by, record.reason) == ("publish", "1.0.0", "ann", "first")
    assert inspect_store(store) == []


def test_an_existing_version_is_not_published_again(store: Store, folder: Path) -> None:
    digest = store.publish(POLICY, "1.0.0", folder).digest
    with pytest.raises(VersionExistsError, match=r"lunar-lander@v1\.0\.0 is published already, .*; the same content"):
        store.publish(POLICY, "1.0.0", folder)
    (folder / "tuned.json").write_bytes(b"{}")
    with pytest.raises(VersionExistsError, match=r"lunar-lander@v1\.0\.0 is published already, .*; this is sha256:"):
        store.publish(POLICY, "1.0.0", folder)
    assert store.load(POLICY).digest == digest
    assert len(store.history()) == 1


def test_of_two_concurrent_publications_of_a_version_one_succeeds(store: Store, tmp_path: Path) -> None:
    outcomes: list[str] = []
    start = threading.Barrier(2)

    def publish_one(number: int) -> None:
        folder = example_folder(tmp_path / f"{number}")
        (folder / "tuned.json").write_text(str(number))
        start.wait()
        try:
            outcomes.append(store.publish(POLICY, "1.0.0", folder).digest)
        except VersionExistsError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=publish_one, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (won,) = [outcome for outcome in outcomes if outcome.startswith("sha256:")]
    (lost,) = [outcome for outcome in outcomes if not outcome.startswith("sha256:")]
    assert lost.startswith(f"lunar-lander@v1.0.0 is published already, as {won}; this is sha256:")
    assert store.load(POLICY).digest == won
    assert inspect_store(store) == []


@pytest.mark.parametrize(
    "version", ["1", "1.2", "1.2.3.4", "01.2.3", "1.2.3-", "1.2.3+build", "v", "", "latest", "1.2.3-a_b", "vv1.2.3"]
)
def test_a_version_that_is_not_strict_semver_is_refused(store: Store, folder: Path, version: str) -> None:
    with pytest.raises(InvalidNameError, match="expected"):
        store.publish(POLICY, version, folder)


@pytest.mark.parametrize("policy", ["", "../x", "Lander", "lander--x", "-x", "x" * 129, "a/b", "lander\n"])
def test_an_invalid_policy_name_is_refused(store: Store, folder: Path, policy: str) -> None:
    with pytest.raises(InvalidNameError, match="expected the name of a policy"):
        store.publish(policy, "1.0.0", folder)


def test_the_folder_of_another_version_or_policy_is_refused(store: Store, folder: Path) -> None:
    with pytest.raises(InvalidArtifactError, match=r"lunar-lander@v1\.0\.1: the card belongs to lunar-lander@1\.0\.0"):
        store.publish(POLICY, "1.0.1", folder)
    with pytest.raises(InvalidArtifactError, match=r"other@v1\.0\.0: the card belongs to lunar-lander@1\.0\.0"):
        store.publish("other", "1.0.0", folder)


def test_unknown_files_are_refused(store: Store, folder: Path) -> None:
    (folder / "policy.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(InvalidArtifactError, match=r"lunar-lander@v1\.0\.0: expected one of .*, got 'policy\.pkl'"):
        store.publish(POLICY, "1.0.0", folder)


@pytest.mark.parametrize("name", ["model.onnx", "model_card.yaml"])
def test_a_missing_or_irregular_file_is_named(store: Store, folder: Path, tmp_path: Path, name: str) -> None:
    path = folder / name
    shutil.move(path, tmp_path / "elsewhere")
    missing = r"expected one of model\.onnx, .*, got none" if name == "model.onnx" else f"{name}: No such file"
    with pytest.raises(InvalidArtifactError, match=rf"lunar-lander@v1\.0\.0: {missing}"):
        store.publish(POLICY, "1.0.0", folder)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        InvalidArtifactError, match=rf"lunar-lander@v1\.0\.0: {name}: expected a file, got a symbolic link"
    ):
        store.publish(POLICY, "1.0.0", folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InvalidArtifactError, match=rf"lunar-lander@v1\.0\.0: {name}: expected a file, got something"):
        store.publish(POLICY, "1.0.0", folder)
    path.unlink()
    if os.geteuid() == 0:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
        with pytest.raises(InvalidArtifactError, match="expected a file, got something else"):
            store.publish(POLICY, "1.0.0", folder)


def test_a_sparse_model_of_10_gb_is_refused_before_it_is_read(store: Store, folder: Path) -> None:
    with (folder / "model.onnx").open("wb") as file:
        file.truncate(10_000_000_000)
    with pytest.raises(InvalidArtifactError, match=r"model\.onnx: expected at most 2147483647 bytes, got 10000000000"):
        store.publish(POLICY, "1.0.0", folder)


# Files that should reach no loader


def pickled() -> bytes:
    return pickle.dumps({"weights": [1.0]})


def zipped(tmp_path: Path) -> bytes:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("data.pkl", pickled())
    return (tmp_path / "x.zip").read_bytes()


def weights_elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")


def weights_elsewhere_in_a_branch(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(1, np.float32), "hidden")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    constant = helper.make_node("Constant", [], ["x"], value=tensor)
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])])
    model.graph.node.append(helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch))


def operator_of_nobody(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Detonate", ["observation"], ["bang"], domain="com.example"))
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def no_graph(model: onnx.ModelProto) -> None:
    model.ClearField("graph")


def spoilt(spoil: Spoil) -> bytes:
    model = onnx.load_from_string(example_model())
    spoil(model)
    data: bytes = model.SerializeToString()
    return data


BAD_MODELS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "a pickle": (lambda _: pickled(), "expected an ONNX file, got a pickle"),
    "a zip": (zipped, "expected an ONNX file, got a zip file"),
    "nothing": (lambda _: b"", "not an ONNX file: it has no graph"),
    "text": (lambda _: b"certainly not ONNX", "not an ONNX file"),
    "half a model": (lambda _: example_model()[:10_000], "not an ONNX file: .* reaches beyond the end"),
    "no graph": (lambda _: spoilt(no_graph), "not an ONNX file: it has no graph"),
    "weights elsewhere": (
        lambda _: spoilt(weights_elsewhere),
        r"expected every weight in the file itself, got '.*' in '\.\./\.\./\.\./etc/passwd'",
    ),
    "weights elsewhere in a branch": (
        lambda _: spoilt(weights_elsewhere_in_a_branch),
        "expected every weight in the file itself, got 'hidden' in '/etc/passwd'",
    ),
    "an operator of an unknown domain": (
        lambda _: spoilt(operator_of_nobody),
        "expected operators that ONNX defines, got 'Detonate' of 'com.example'",
    ),
}


@pytest.mark.parametrize("which", BAD_MODELS)
def test_a_model_that_no_loader_should_see_is_refused_here_and_in_an_import(
    store: Store, folder: Path, tmp_path: Path, which: str
) -> None:
    make, message = BAD_MODELS[which]
    model = make(tmp_path)
    (folder / "model.onnx").write_bytes(model)
    expected = rf"lunar-lander@v1\.0\.0: model\.onnx: {message}"
    with pytest.raises(InvalidArtifactError, match=expected):
        store.publish(POLICY, "1.0.0", folder)
    with pytest.raises(InvalidArtifactError, match=expected):
        import_files(store, tmp_path, {"model.onnx": model, "model_card.yaml": example_card().encode()})
    (folder / "preprocessor.onnx").write_bytes(model)
    (folder / "model.onnx").write_bytes(example_model())
    with pytest.raises(InvalidArtifactError, match=rf"lunar-lander@v1\.0\.0: preprocessor\.onnx: {message}"):
        store.publish(POLICY, "1.0.0", folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [("shape: [8]", "shape: [9]"), ("low: [-2.5, ", "low: [-2.5, -2.5, "), ("high: [2.5, ", "high: [2.5, 2.5, ")],
            r"model\.onnx: input 'observation': the card says a row is \[9\], the graph \[8\]",
        ),
        (
            [("shape: [8]", "shape: [2, 4]")],
            r"model\.onnx: input 'observation': the card says a row is \[2, 4\], the graph \[8\]",
        ),
        ([("dtype: float32", "dtype: float64")], "the card says float64, the graph float32"),
        ([("dtype: int64", "dtype: int32")], "output 'action': the card says int32, the graph int64"),
        (
            [("- name: observation", "- name: camera")],
            "the card has input 'camera', the graph has observation",
        ),
        ([("name: lunar-lander", "name: other")], "the card belongs to other@1.0.0"),
        ([("version: 1.0.0", "version: 1.0.1")], "the card belongs to lunar-lander@1.0.1"),
        ([("schema: 1", "schema: [")], "model card: "),
    ],
)  # fmt: skip
def test_a_card_that_contradicts_the_model_is_refused_here_and_in_an_import(
    store: Store, folder: Path, tmp_path: Path, changes: list[tuple[str, str]], message: str
) -> None:
    card = example_card()
    for change in changes:
        assert change[0] in card
        card = card.replace(*change, 1)
    (folder / "model_card.yaml").write_text(card)
    with pytest.raises(InvalidArtifactError, match=rf"^lunar-lander@v1\.0\.0: .*{message}"):
        store.publish(POLICY, "1.0.0", folder)
    with pytest.raises(InvalidArtifactError, match=rf"^lunar-lander@v1\.0\.0: .*{message}"):
        import_files(store, tmp_path, {"model.onnx": example_model(), "model_card.yaml": card.encode()})


def test_a_refused_publication_leaves_nothing_behind(store: Store, folder: Path, tmp_path: Path) -> None:
    store.publish(POLICY, "1.0.0", folder)
    (folder / "model.onnx").write_bytes(pickled())
    with pytest.raises(ArtifactError):
        store.publish("other", "1.0.0", folder)
    with pytest.raises(ArtifactError):
        import_files(store, tmp_path, {"model.onnx": pickled(), "model_card.yaml": example_card("2.0.0").encode()})
    assert inspect_store(store) == []
    assert list((store.root / "staging").iterdir()) == []


def import_files(store: Store, tmp_path: Path, files: dict[str, bytes]) -> None:
    layout = foreign_layout(tmp_path / f"layout-{len(list(tmp_path.iterdir()))}", files)
    import_versions(store, LayoutSource(FolderFiles(layout)), [], where="a foreign layout")


# File systems that refuse


def run_pillion(*words: str, before: str, after: str = "true") -> subprocess.CompletedProcess[str]:
    """Runs the command line in a mount namespace of its own, between two shell commands."""
    script = f'set -e; {before}; set +e; "$@"; code=$?; {after}; exit $code'
    line = ["unshare", "-rm", "sh", "-c", script, "sh", sys.executable, "-m", "pillion", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=START_S_MAX)


@pytest.fixture
def mounts() -> None:
    """Skips if this process may not mount anything, not even in its own namespace."""
    result = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True)
    if result.returncode != 0:
        pytest.skip(f"unshare(1) and mount(8) do not give this user a mount of its own: {result.stderr.strip()}")


def test_a_full_disk_is_one_line_and_leaves_the_store_as_it_was(
    mounts: None, store: Store, folder: Path, tmp_path: Path
) -> None:
    store.publish(POLICY, "1.0.0", folder)
    big = example_folder(tmp_path / "big", "1.1.0")
    (big / "golden.safetensors").write_bytes(os.urandom(2_000_000))
    (tmp_path / "small").mkdir()
    there = tmp_path / "small"
    result = run_pillion(
        "artifact", "publish", str(big), "lunar-lander@v1.1.0", "--store", str(there / "store"),
        before=f"mount -t tmpfs -o size=1m none {there}; cp -r {store.root} {there}/store",
        after=f"ls {there}/store/staging > {tmp_path}/left; cp {there}/store/index.json {tmp_path}/index",
    )  # fmt: skip
    assert result.returncode == os.EX_IOERR, result
    assert result.stderr == "pillion: lunar-lander@v1.1.0: No space left on device\n"
    assert (tmp_path / "left").read_text() == ""
    assert (tmp_path / "index").read_bytes() == (store.root / "index.json").read_bytes()


def test_a_store_without_write_access_can_be_read_and_a_change_is_one_line(
    mounts: None, store: Store, folder: Path
) -> None:
    store.publish(POLICY, "1.0.0", folder)
    read_only = f"mount --bind {store.root} {store.root}; mount -o remount,ro,bind {store.root}"
    result = run_pillion(
        "artifact", "publish", str(folder), f"{POLICY}@v1.0.0", "--store", str(store.root), before=read_only
    )
    assert result.returncode == os.EX_NOPERM
    assert result.stderr == f"pillion: {POLICY}@v1.0.0: Read-only file system\n"
    for command in (["list"], ["verify", "--all"], ["show", POLICY], ["history"]):
        result = run_pillion("artifact", *command, "--store", str(store.root), before=read_only)
        assert (result.returncode, result.stderr) == (0, "")
        assert POLICY in result.stdout


def test_a_change_of_another_users_store_is_one_line(store: Store, folder: Path) -> None:
    store.publish(POLICY, "1.0.0", folder)
    with nobody(store.root):
        with pytest.raises(StoreError, match=r"lunar-lander@v1\.1\.0: Permission denied") as refused:
            store.publish(POLICY, "1.1.0", folder)
        assert refused.value.exit_code == os.EX_NOPERM
        assert store.load(POLICY).version == "1.0.0"


class nobody:  # noqa: N801 - used as a statement
    """Runs the block as another user if this process is root, and otherwise without write access."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> None:
        for folder in [self._root, *(each for each in self._root.rglob("*") if each.is_dir())]:
            folder.chmod(0o555)
        for parent in self._root.parents:
            found = parent.stat()
            if found.st_uid == os.geteuid() and not found.st_mode & 0o005:
                parent.chmod(0o755)
        if os.geteuid() == 0:
            os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        if os.getuid() == 0:
            os.seteuid(0)
        for folder in [self._root, *(each for each in self._root.rglob("*") if each.is_dir())]:
            folder.chmod(0o755)


def test_a_mistyped_path_does_not_become_a_store(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(StoreError, match=r"expected a store or an empty folder, got one with 'model\.onnx'"):
        publish(folder, POLICY, "1.0.0", example_model(), example_card())
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model_card.yaml"]
