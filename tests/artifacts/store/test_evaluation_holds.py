"""Evaluation holds and routes in the store: they protect versions from `gc`, are audited, and are repaired."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pillion_artifacts import Store
from pillion_artifacts.cli.verification_report import repair_and_report
from pillion_artifacts.errors import HoldExistsError, InvalidArtifactError, PolicyNotFoundError
from pillion_artifacts.maintenance.garbage_collection import collect
from pillion_artifacts.maintenance.inspection import inspect_store
from pillion_artifacts.store.evaluation_holds import end_hold, hold_version
from pillion_artifacts.store.routes import Route, RouteArm, keep_route
from tests.artifacts.support.stores import POLICY, example_card, example_model, flip
from tests.harness import publish

START = datetime(2030, 1, 1, tzinfo=UTC)


class Wound:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Wound:
    return Wound()


@pytest.fixture
def store(tmp_path: Path, clock: Wound) -> Store:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        publish(tmp_path / "store", POLICY, version, example_model(), example_card(version))
    return Store(tmp_path / "store", clock)


def hold(store: Store, version: str, name: str, hours: float = 1.0) -> None:
    until = store.now() + timedelta(hours=hours)
    hold_version(store, store.resolve(f"{POLICY}@{version}"), name, until, by="ann", reason="the paper")


def claims(store: Store) -> dict[str, str]:
    return {
        each.version: each.claim for each in collect(store, grace=timedelta(0), keep_newest=0, dry_run=True).versions
    }


def test_gc_keeps_a_held_version(store: Store, clock: Wound) -> None:
    hold(store, "1.0.0", "campaign-7")
    hold(store, "1.1.0", "campaign-8")
    assert claims(store) == {"1.0.0": "evaluation", "1.1.0": "evaluation", "1.2.0": ""}
    end_hold(store, POLICY, "campaign-8", by="bob", reason="done")
    assert claims(store)["1.1.0"] == ""
    clock.now += timedelta(hours=1)
    assert claims(store)["1.0.0"] == ""
    assert store.evaluation_holds(POLICY) == []


def test_the_audit_log_has_author_and_reason_of_holds(store: Store) -> None:
    hold(store, "1.0.0", "campaign-7")
    end_hold(store, POLICY, "campaign-7", by="bob", reason="done")
    records = [(record.action, record.version, record.by, record.reason) for record in store.history(POLICY)[-2:]]
    assert records == [
        ("hold", "1.0.0", "ann", "campaign-7: the paper"),
        ("end-hold", "1.0.0", "bob", "campaign-7: done"),
    ]
    assert inspect_store(store) == []


def test_a_hold_is_extended_for_the_same_version_and_refused_for_another(store: Store) -> None:
    hold(store, "1.0.0", "campaign-7")
    (first,) = store.evaluation_holds(POLICY)
    hold(store, "1.0.0", "campaign-7", hours=2)
    (again,) = store.evaluation_holds(POLICY)
    assert (again.id, again.until - first.until) == (first.id, timedelta(hours=1))
    with pytest.raises(HoldExistsError, match=r"holds 1\.0\.0: end it first"):
        hold(store, "1.1.0", "campaign-7")
    end_hold(store, POLICY, "campaign-7")
    hold(store, "1.0.0", "campaign-7")
    assert store.evaluation_holds(POLICY)[0].id != first.id
    with pytest.raises(PolicyNotFoundError, match="no evaluation hold 'campaign-9'"):
        end_hold(store, POLICY, "campaign-9")


def test_holds_are_bounded_in_number_and_expired_ones_do_not_count(store: Store, clock: Wound) -> None:
    for number in range(8):
        hold(store, "1.0.0", f"campaign-{number}", hours=number + 1)
    with pytest.raises(HoldExistsError, match="at most 8 holds"):
        hold(store, "1.0.0", "campaign-8")
    clock.now += timedelta(hours=1)
    hold(store, "1.0.0", "campaign-8")
    assert [hold.name for hold in store.evaluation_holds(POLICY)][-1] == "campaign-8"


@pytest.mark.parametrize("name", ["evaluations.json", f"routes/{POLICY}.json"])
@pytest.mark.parametrize("damage", ["flipped", "removed"])
def test_a_damaged_file_is_found_blocks_gc_and_is_removed_by_a_repair(store: Store, name: str, damage: str) -> None:
    hold(store, "1.0.0", "campaign-7")
    digest = store.resolve(f"{POLICY}@1.1.0").digest
    keep_route(store, "route", Route(POLICY, "stable", "1.1.0", digest, [RouteArm("canary", "1.1.0", digest, 0.5)]))
    assert inspect_store(store) == []
    path = store.root / name
    if damage == "removed":
        path.unlink()
    else:
        # the bracket that it begins with
        flip(path, 0.0)
        with pytest.raises(InvalidArtifactError, match=name):
            claims(store)
    assert [fault.kind for fault in inspect_store(store)] == ["route" if "route" in name else "evaluations"]
    report = repair_and_report(store, False, "ann", "")
    assert (report.intact, report.repairs) == (True, [f"removed {name}, which differed from the last change"])
    assert not path.exists()
