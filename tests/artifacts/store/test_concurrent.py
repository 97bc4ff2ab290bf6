"""Concurrent commands: whatever one does between two system calls of the other, both succeed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock  # noqa: F401 - so that the act itself imports nothing: every call is a call on the store
import pytest

from pillion_artifacts import PolicyNotFoundError, Store
from pillion_artifacts.errors import AliasMovedError, VersionExistsError
from pillion_artifacts.maintenance.inspection import inspect_store
from pillion_artifacts.store.aliases import move_alias, remove_alias
from pillion_artifacts.store.transaction import LOCK_NAME, locked, sweep
from tests.artifacts.support.killing import TracingRefusedError, stopped_at, stopped_at_each
from tests.artifacts.support.stores import POLICY, example_folder

Act = Callable[[Store], None]


def is_locked(root: Path) -> bool:
    """Whether another process holds the store's lock, so that a command would wait."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(root / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A publishable folder for each version, and a store with the first two."""
    folder = tmp_path_factory.mktemp("folders")
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        example_folder(folder / version, version)
    store = Store(folder / "store")
    for version in ("1.0.0", "1.1.0"):
        store.publish(POLICY, version, folder / version, created_by="a test")
    move_alias(store, POLICY, "stable", "1.0.0", expected="", by="a test")
    return folder


@pytest.fixture(autouse=True)
def _traceable() -> None:
    try:
        stopped_at(0, lambda: None, lambda: None)
    except TracingRefusedError as refused:
        pytest.skip(f"this machine does not let a process trace its children ({refused})")


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> Store:
    """A store for one test."""
    shutil.copytree(folder / "store", tmp_path / "store")
    return Store(tmp_path / "store")


def test_a_running_change_never_has_a_folder_that_another_would_sweep(store: Store, folder: Path) -> None:
    """If two processes remove the same folder, the slower one gets `No such file or directory`."""

    def move() -> None:
        move_alias(store, POLICY, "stable", "1.1.0", expected="1.0.0", by="a test")

    def move_too_late() -> None:
        with pytest.raises(AliasMovedError):
            move_alias(store, POLICY, "stable", "1.1.0", expected="1.0.0", by="a test")

    def publish_again() -> None:
        with pytest.raises(VersionExistsError):
            store.publish(POLICY, "1.0.0", folder / "1.0.0", created_by="a test")

    def publish_nothing() -> None:
        with pytest.raises(Exception, match="missing"):
            store.publish(POLICY, "1.0.0", folder / "missing", created_by="a test")

    looks = 0

    def nothing_to_sweep() -> None:
        nonlocal looks
        if not is_locked(store.root):
            with locked(store.root):
                assert sweep(store.root) == []
            looks += 1

    for act in (move, move_too_late, publish_again, publish_nothing):
        looks = 0
        stopped_at_each(act, nothing_to_sweep)
        assert looks > 10, act
        assert list((store.root / "staging").iterdir()) == []
    assert inspect_store(store) == []


def test_an_alias_removed_during_a_read_is_present_or_absent(store: Store) -> None:
    def look() -> None:
        with contextlib.suppress(PolicyNotFoundError):
            store.resolve(f"{POLICY}@stable")
        assert [alias.alias for alias in store.aliases()] in ([], ["stable"])

    def take_away() -> None:
        remove_alias(store, POLICY, "stable", expected="1.0.0", by="a test")

    calls = 0
    while stopped_at(calls, look, take_away):
        move_alias(store, POLICY, "stable", "1.0.0", expected="", by="a test")
        calls += 1
    assert calls > 10


def test_two_concurrent_first_publications_both_succeed(tmp_path: Path, folder: Path) -> None:
    root = tmp_path / "new"
    has_begun = False

    def publish() -> None:
        Store(root).publish(POLICY, "1.0.0", folder / "1.0.0", created_by="a test")

    def publish_too() -> None:
        nonlocal has_begun
        has_begun = is_locked(root)
        if not has_begun:
            Store(root).publish(POLICY, "1.2.0", folder / "1.2.0", created_by="a test")

    calls = 0
    # from the first lock on, each waits for the other
    while not has_begun:
        root.mkdir()
        assert stopped_at(calls, publish, publish_too)
        assert Store(root).versions(POLICY) == ["1.0.0"] + ["1.2.0"] * (not has_begun)
        assert inspect_store(Store(root)) == []
        shutil.rmtree(root)
        calls += 1
    assert calls > 10
