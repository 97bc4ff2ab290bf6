"""Killed with -9 at any system call, the store reads as before or as after, and the next command cleans up."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import filelock  # noqa: F401 - so that the act itself imports nothing: every call is a call on the store
import pytest

from pillion_artifacts import PolicyNotFoundError, Store
from pillion_artifacts.archive import ArchiveFiles, ArchiveTarget
from pillion_artifacts.collection import collect
from pillion_artifacts.inspection import inspect_store
from pillion_artifacts.layouts import LayoutSource
from pillion_artifacts.transfer import give, take
from pillion_artifacts.verification import Verifier, all_versions
from tests.artifacts.killing import TracingRefusedError, killed_at
from tests.artifacts.stores import POLICY, example_folder

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=100)

View = tuple[object, ...]
"""What readers can see of a store."""

Act = Callable[[Store, Path], None]


def view(store: Store) -> View:
    """Everything that a reader sees, read as a reader does; every version that is listed is read whole."""
    try:
        versions = [(str(each), each.digest) for each in all_versions(store)]
    except PolicyNotFoundError:
        return ("there is no store",)
    loaded = [store.load(f"{POLICY}@{digest}").version for _, digest in versions]
    aliases = [(alias.alias, alias.version, alias.digest) for alias in store.aliases()]
    history = [(record.action, record.version, record.alias, record.was) for record in store.history()]
    return versions, loaded, aliases, [pin.version for pin in store.pins()], history


def as_it_lies(store: Store, monkeypatch: pytest.MonkeyPatch) -> View:
    """What a reader sees who may not write, hence cannot complete what was decided: no file may be half changed."""
    with monkeypatch.context() as patch:
        patch.setattr("pillion_artifacts.store.settle_for_reading", lambda _root: None)
        return view(store)[:4]


def on_disk(root: Path) -> list[tuple[str, bytes]]:
    """Every file and folder with its content, but for the random names of what is staged."""
    random_name = re.compile(rb"tmp[a-z0-9_]{8}")
    found = []
    for path in root.rglob("*"):
        name = random_name.sub(b"", bytes(path.relative_to(root)))
        found.append((name.decode(), random_name.sub(b"", path.read_bytes()) if path.is_file() else b""))
    return sorted(found)


def publish_first(store: Store, folder: Path) -> None:
    store.publish(POLICY, "1.0.0", folder / "1.0.0", created_by="a test")


def publish_second(store: Store, folder: Path) -> None:
    store.publish(POLICY, "1.1.0", folder / "1.1.0", created_by="a test")


def move_alias(store: Store, _folder: Path) -> None:
    store.move_alias(POLICY, "stable", "1.1.0", expected="1.0.0", by="a test")


def take_archive(store: Store, folder: Path) -> None:
    with ArchiveFiles(folder / "policy.tar") as files:
        take(store, LayoutSource(files), [], where="policy.tar", by="a test")


def collect_all(store: Store, _folder: Path) -> None:
    collect(store, grace=timedelta(0), keep_newest=0, by="a test")


def nothing(_store: Store, _folder: Path) -> None:
    pass


def two_versions(store: Store, folder: Path) -> None:
    publish_first(store, folder)
    publish_second(store, folder)


def two_versions_and_an_alias(store: Store, folder: Path) -> None:
    two_versions(store, folder)
    store.move_alias(POLICY, "stable", "1.0.0", expected="", by="a test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a publishable folder for each version."""
    folder = tmp_path_factory.mktemp("folders")
    for version in ("1.0.0", "1.1.0"):
        example_folder(folder / version, version)
    origin = Store(folder / "origin")
    two_versions(origin, folder)
    with ArchiveTarget(folder / "policy.tar") as target:
        give(origin, target, [f"{POLICY}@1.0.0", f"{POLICY}@1.1.0"])
    return folder


@pytest.fixture
def one_core() -> Iterator[None]:
    """Tracer and traced on one core: each stop is then a switch, not a wake-up of another core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("prepare", "act", "calls_min"),
    [
        (nothing, publish_first, 100),
        (publish_first, publish_second, 100),
        (two_versions_and_an_alias, move_alias, 50),
        (two_versions_and_an_alias, collect_all, 50),
        (publish_first, take_archive, 100),
    ],
)
def test_a_kill_at_any_system_call_leaves_the_store_as_before_or_as_after(
    tmp_path: Path,
    folder: Path,
    one_core: None,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Act,
    act: Act,
    calls_min: int,
) -> None:
    before_root, after_root = tmp_path / "before", tmp_path / "after"
    prepare(Store(before_root, lambda: NOW), folder)
    if before_root.exists():
        shutil.copytree(before_root, after_root)
    act(Store(after_root, lambda: LATER), folder)
    before, after = view(Store(before_root)), view(Store(after_root))
    assert before != after
    came = set[bool]()
    lay: list[tuple[str, bytes]] | None = None
    for call in range(1, 10_000):
        root = tmp_path / f"{call}"
        if before_root.exists():
            shutil.copytree(before_root, root)
        store = Store(root, lambda: LATER)
        try:
            if not killed_at(call, lambda store=store: act(store, folder)):  # type: ignore[misc]
                break
        except TracingRefusedError as refused:
            pytest.skip(f"this machine does not let a process trace its children ({refused})")
        # most calls change nothing on the disk: what was seen of it after the last kill holds after this one too
        last_lay, lay = lay, on_disk(root)
        if lay == last_lay:
            shutil.rmtree(root, ignore_errors=True)
            continue
        lies = as_it_lies(store, monkeypatch)
        seen = view(store)
        assert lies in (before[:4], after[:4]), call
        assert seen in (before, after), call
        is_after = seen == after
        came.add(is_after)
        check_that_the_next_command_cleans_up(store, folder, act, is_after, after, call)
        shutil.rmtree(root)
    assert call > calls_min
    assert came == {False, True}


def check_that_the_next_command_cleans_up(
    store: Store, folder: Path, act: Act, is_after: bool, after: View, call: int
) -> None:
    if is_after:
        # any command that changes the store sweeps; this one changes nothing but that
        collect(store, grace=timedelta(days=1_000), keep_newest=9, by="a test")
    else:
        act(store, folder)
    assert view(store) == after, call
    assert inspect_store(store) == [], call
    verifier = Verifier(store)
    assert all(verifier.verify(version).intact for version in all_versions(store)), call
