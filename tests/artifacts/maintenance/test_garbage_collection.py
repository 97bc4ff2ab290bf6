"""Garbage collection removes exactly what has no claim."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pillion_artifacts import InvalidArtifactError, PolicyNotFoundError, Store
from pillion_artifacts.errors import VersionExistsError
from pillion_artifacts.maintenance.garbage_collection import Collection, collect
from pillion_artifacts.maintenance.inspection import inspect_store
from pillion_artifacts.store.aliases import move_alias, roll_back_alias
from pillion_artifacts.store.daemon_locks import locked_digests
from pillion_artifacts.store.pins import pin_version, unpin_version
from pillion_artifacts.verify.keys import generate_keys, open_signer
from pillion_artifacts.verify.signing import sign
from pillion_artifacts.verify.verification import Verifier, all_versions
from tests.artifacts.support.stores import POLICY, example_card, example_folder, example_model, flip

DAY = timedelta(days=1)
NOW = datetime(2026, 6, 1, tzinfo=UTC)
VERSIONS = ["1.0.0", "1.1.0", "1.2.0", "2.0.0-rc.1", "2.0.0"]


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Store:
    """Five versions, published one day apart. The clock is one day after the last."""
    store = Store(tmp_path / "store", clock)
    for version in VERSIONS:
        store.publish(POLICY, version, example_folder(tmp_path / version, version))
        clock.now += DAY
    return store


def collect_all(store: Store, grace: timedelta = timedelta(0), keep_newest: int = 0) -> Collection:
    return collect(store, grace=grace, keep_newest=keep_newest, by="a test")


def claims(found: Collection) -> dict[str, str]:
    return {version.version: version.claim for version in found.versions}


def test_a_version_without_a_claim_is_removed_with_its_blobs(store: Store) -> None:
    move_alias(store, POLICY, "stable", "2.0.0", expected="")
    found = collect_all(store)
    assert [version.version for version in found.taken] == ["1.0.0", "1.1.0", "1.2.0", "2.0.0-rc.1"]
    assert store.versions(POLICY) == ["2.0.0"]
    # the model is that of all of them: of four versions a manifest and a card go
    assert found.blobs == 8
    assert inspect_store(store) == []
    assert Verifier(store).verify(store.resolve(POLICY)).intact
    assert [record.version for record in store.history() if record.action == "collect"] == [
        "1.0.0", "1.1.0", "1.2.0", "2.0.0-rc.1"
    ]  # fmt: skip


def test_aliased_pinned_locked_young_and_newest_versions_stay(store: Store) -> None:
    move_alias(store, POLICY, "stable", "1.0.0", expected="")
    pin_version(store, f"{POLICY}@1.1.0", by="ann", reason="the paper")
    _, lock = store.lock_version(f"{POLICY}@1.2.0")
    with lock:
        found = collect_all(store, grace=timedelta(days=1, hours=1), keep_newest=0)
    assert claims(found) == {
        "1.0.0": "alias", "1.1.0": "pin", "1.2.0": "daemon", "2.0.0-rc.1": "", "2.0.0": "young"
    }  # fmt: skip
    assert claims(collect_all(store, keep_newest=1)) == {
        "1.0.0": "alias", "1.1.0": "pin", "1.2.0": "", "2.0.0": "newest"
    }  # fmt: skip
    unpin_version(store, f"{POLICY}@1.1.0")
    assert claims(collect_all(store)) == {"1.0.0": "alias", "1.1.0": "", "2.0.0": ""}


def test_the_version_that_a_rollback_would_return_to_stays(store: Store) -> None:
    move_alias(store, POLICY, "stable", "1.0.0", expected="")
    move_alias(store, POLICY, "stable", "2.0.0", expected="1.0.0")
    assert claims(collect_all(store))["1.0.0"] == "before an alias"
    assert roll_back_alias(store, POLICY, "stable").version == "1.0.0"


def test_the_lock_of_a_killed_process_does_not_count(store: Store) -> None:
    script = (
        "import sys, time; from pathlib import Path; from pillion_artifacts import Store\n"
        "held = Store(Path(sys.argv[1])).lock_version(sys.argv[2]); print('held', flush=True); time.sleep(100)\n"
    )
    line = [sys.executable, "-c", script, str(store.root), f"{POLICY}@1.0.0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert claims(collect_all(store))["1.0.0"] == "daemon"
        process.kill()
    assert locked_digests(store.root) == set()
    assert [fault.kind for fault in inspect_store(store)] == ["leftover"]
    assert claims(collect_all(store)) == {"1.0.0": ""}
    assert inspect_store(store) == []


def test_a_dry_run_lists_garbage_and_removes_nothing(store: Store) -> None:
    before = sorted(path.name for path in store.root.rglob("*"))
    found = collect(store, grace=timedelta(0), keep_newest=0, dry_run=True)
    assert len(found.taken) == 5
    assert found.freed_bytes > 20_000
    assert sorted(path.name for path in store.root.rglob("*")) == before


def test_signatures_are_removed_with_their_version(store: Store, tmp_path: Path) -> None:
    generate_keys(tmp_path / "ann")
    sign(store, f"{POLICY}@1.0.0", open_signer(str(tmp_path / "ann"), None))
    collect_all(store)
    assert store.index().manifests == []
    assert list((store.root / "blobs" / "sha256").iterdir()) == []


def test_a_version_number_is_never_reused_for_other_content(store: Store, tmp_path: Path) -> None:
    digest = store.resolve(f"{POLICY}@1.0.0").digest
    collect_all(store)
    with pytest.raises(PolicyNotFoundError):
        store.load(f"{POLICY}@1.0.0")
    other = example_folder(tmp_path / "other")
    (other / "tuned.json").write_text("{}")
    with pytest.raises(VersionExistsError, match=rf"lunar-lander@v1\.0\.0 was published before, as {digest}"):
        store.publish(POLICY, "1.0.0", other)
    assert store.publish(POLICY, "1.0.0", tmp_path / "1.0.0").digest == digest


def test_nothing_is_collected_while_a_manifest_is_damaged(store: Store) -> None:
    digest = store.resolve(f"{POLICY}@1.0.0").digest.removeprefix("sha256:")
    flip(store.root / "blobs" / "sha256" / digest, 0.5)
    pin_version(store, f"{POLICY}@1.0.0")
    with pytest.raises(InvalidArtifactError, match="nothing is collected while a manifest is damaged"):
        collect_all(store)
    assert len(all_versions(store)) == 5


def test_a_version_of_unknown_age_counts_as_young(store: Store) -> None:
    index = store.root / "index.json"
    index.write_text(index.read_text().replace("image.created", "image.kreated"))
    assert set(claims(collect_all(store, grace=DAY)).values()) == {"young"}


def test_a_version_published_during_a_collection_is_complete_or_absent(store: Store, tmp_path: Path) -> None:
    folder = example_folder(tmp_path / "3.0.0", "3.0.0")
    assert (folder / "model.onnx").read_bytes() == example_model()
    assert (folder / "model_card.yaml").read_text() == example_card("3.0.0")
    collect_all(store)
    store.publish(POLICY, "3.0.0", folder)
    assert Verifier(store).verify(store.resolve(POLICY)).intact
