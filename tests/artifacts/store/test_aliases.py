"""Aliases move by compare-and-swap, and the audit log has every move."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pillion_artifacts import PolicyNotFoundError, Store
from pillion_artifacts.errors import AliasMovedError, InvalidNameError
from pillion_artifacts.maintenance.inspection import inspect_store
from pillion_artifacts.store.aliases import move_alias, remove_alias, roll_back_alias
from tests.artifacts.support.stores import POLICY, example_card, example_model
from tests.harness import publish


@pytest.fixture
def store(tmp_path: Path) -> Store:
    for version in ("1.0.0", "1.1.0", "2.0.0", "3.0.0-rc.1"):
        publish(tmp_path / "store", POLICY, version, example_model(), example_card(version))
    return Store(tmp_path / "store")


def test_an_alias_names_the_version_that_it_points_at(store: Store) -> None:
    move_alias(store, POLICY, "stable", "1.x", expected="")
    assert store.load(f"{POLICY}@stable").version == "1.1.0"
    move_alias(store, POLICY, "candidate", "3.0.0-rc.1", expected="")
    move_alias(store, POLICY, "stable", "candidate", expected="1.1.0")
    assert store.load(f"{POLICY}@stable").version == "3.0.0-rc.1"
    assert store.load(POLICY).version == "2.0.0"


def test_the_audit_log_has_author_time_reason_and_previous_version(store: Store) -> None:
    move_alias(store, POLICY, "stable", "1.0.0", expected="", by="ann", reason="first")
    move_alias(store, POLICY, "stable", "1.1.0", expected="1.0.0", by="ben", reason="faster")
    moves = [record for record in store.history(POLICY) if record.alias == "stable"]
    assert [(move.by, move.reason, move.was, move.version) for move in moves] == [
        ("ann", "first", "", "1.0.0"),
        ("ben", "faster", "1.0.0", "1.1.0"),
    ]
    assert moves[0].at <= moves[1].at
    (alias,) = store.aliases(POLICY)
    assert (alias.moved_by, alias.moved_at, alias.was_version) == ("ben", moves[1].at, "1.0.0")


def test_a_move_with_a_wrong_expectation_is_refused(store: Store) -> None:
    move_alias(store, POLICY, "stable", "1.0.0", expected="")
    before = store.history()
    for expected in ("", "1.1.0"):
        with pytest.raises(
            AliasMovedError, match=r"lunar-lander@stable: expected it to point at .*, it points at 1\.0\.0"
        ):
            move_alias(store, POLICY, "stable", "2.0.0", expected=expected)
    with pytest.raises(AliasMovedError, match="it points at nothing"):
        move_alias(store, POLICY, "other", "2.0.0", expected="1.0.0")
    assert store.resolve(f"{POLICY}@stable").version == "1.0.0"
    assert store.history() == before


def test_of_many_concurrent_moves_one_succeeds(store: Store) -> None:
    move_alias(store, POLICY, "stable", "1.0.0", expected="")
    moved: list[str] = []
    errors: list[str] = []
    start = threading.Barrier(6)

    def move(version: str) -> None:
        start.wait()
        try:
            moved.append(move_alias(store, POLICY, "stable", version, expected="1.0.0").version)
        except AliasMovedError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=move, args=(version,)) for version in ("1.1.0", "2.0.0") * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(moved), len(errors)) == (1, 5)
    assert store.resolve(f"{POLICY}@stable").version == moved[0]
    assert inspect_store(store) == []


def test_each_rollback_undoes_one_move(store: Store) -> None:
    for before, version in (("", "1.0.0"), ("1.0.0", "1.1.0"), ("1.1.0", "2.0.0")):
        move_alias(store, POLICY, "stable", version, expected=before)
    assert roll_back_alias(store, POLICY, "stable", by="ann", reason="it fell").version == "1.1.0"
    assert store.history()[-1].action == "rollback"
    assert roll_back_alias(store, POLICY, "stable").version == "1.0.0"
    with pytest.raises(PolicyNotFoundError, match="the audit log has no previous version"):
        roll_back_alias(store, POLICY, "stable")
    move_alias(store, POLICY, "stable", "2.0.0", expected="1.0.0")
    assert roll_back_alias(store, POLICY, "stable").version == "1.0.0"


def test_a_removed_alias_is_gone_and_can_be_made_again(store: Store) -> None:
    move_alias(store, POLICY, "stable", "1.0.0", expected="")
    with pytest.raises(AliasMovedError):
        remove_alias(store, POLICY, "stable", expected="2.0.0")
    remove_alias(store, POLICY, "stable", expected="1.0.0", by="ann")
    with pytest.raises(PolicyNotFoundError, match="has no alias 'stable', it has none"):
        store.resolve(f"{POLICY}@stable")
    assert store.history()[-1].action == "unalias"
    move_alias(store, POLICY, "stable", "2.0.0", expected="")
    assert inspect_store(store) == []


@pytest.mark.parametrize("alias", ["", "x", "X", "v1", "1", "1.2.x", "../x", "a b", "stable ", "-a", "a" * 129])
def test_text_that_could_be_a_version_is_no_alias(store: Store, alias: str) -> None:
    with pytest.raises(InvalidNameError, match="expected the name of an alias"):
        move_alias(store, POLICY, alias, "1.0.0", expected="")


def test_an_alias_of_a_missing_version_is_refused(store: Store) -> None:
    for target in ("9.0.0", "other"):
        with pytest.raises(PolicyNotFoundError):
            move_alias(store, POLICY, "stable", target, expected="")
    with pytest.raises(PolicyNotFoundError):
        move_alias(store, "nothing", "stable", "1.0.0", expected="")


def test_an_alias_or_a_digest_is_resolved_without_the_index(store: Store) -> None:
    digest = move_alias(store, POLICY, "stable", "1.0.0", expected="").digest
    os.truncate(store.root / "index.json", 0)
    assert store.resolve(f"{POLICY}@stable").digest == digest
    assert store.load(f"{POLICY}@stable").version == "1.0.0"
    assert store.load(f"{POLICY}@{digest}").version == "1.0.0"
