"""After SIGKILL at any system call, readers see the store as before or as after, and the next command cleans up."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import filelock  # noqa: F401 - so that the act itself imports nothing: every call is a call on the store
import pytest

from pillion_artifacts import PolicyNotFoundError, Store
from pillion_artifacts.maintenance.garbage_collection import collect
from pillion_artifacts.maintenance.inspection import inspect_store
from pillion_artifacts.maintenance.repair import Repair
from pillion_artifacts.oci.layouts import LayoutSource
from pillion_artifacts.oci.manifest import encode_json
from pillion_artifacts.remotes.archive import ArchiveFiles, ArchiveTarget
from pillion_artifacts.remotes.registry import Registry
from pillion_artifacts.remotes.transfer import export_versions, import_versions
from pillion_artifacts.store.aliases import move_alias, roll_back_alias
from pillion_artifacts.store.pins import pin_version, unpin_version
from pillion_artifacts.verify.keys import generate_keys, open_signer
from pillion_artifacts.verify.signing import sign
from pillion_artifacts.verify.verification import Verifier, all_versions
from tests.artifacts.support.killing import TracingRefusedError, killed_after
from tests.artifacts.support.servers import registry
from tests.artifacts.support.stores import POLICY, example_folder

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=100)

View = tuple[object, ...]
"""The state of a store as readers see it."""

Act = Callable[[Store, Path], None]


def view(store: Store) -> View:
    """Everything that a reader sees. Reads every listed version completely."""
    try:
        versions = [(str(each), each.digest) for each in all_versions(store)]
    except PolicyNotFoundError:
        return ("there is no store",)
    signatures = [len(store.index().about(digest)) for _, digest in versions]
    loaded = [store.load(f"{POLICY}@{digest}").version for _, digest in versions]
    aliases = [(alias.alias, alias.version, alias.digest) for alias in store.aliases()]
    history = [(record.action, record.version, record.alias, record.was) for record in store.history()]
    return versions, loaded, signatures, aliases, [pin.version for pin in store.pins()], history


def as_it_lies(store: Store, monkeypatch: pytest.MonkeyPatch) -> View:
    """What a reader without write access sees. It cannot complete a decided change, but no file may be half written."""
    with monkeypatch.context() as patch:
        patch.setattr("pillion_artifacts.store.store.settle_for_reading", lambda _root: None)
        return view(store)[:-1]


def stamps(root: Path) -> set[tuple[str, int, int, int]]:
    """The metadata that changes with each change of a file or folder."""
    found = set()
    for folder, _, names in os.walk(root):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            status = os.lstat(path)
            found.add((path, status.st_ctime_ns, status.st_size, status.st_mode))
    return found


def publish_first(store: Store, folder: Path) -> None:
    store.publish(POLICY, "1.0.0", folder / "1.0.0", created_by="a test")


def publish_second(store: Store, folder: Path) -> None:
    store.publish(POLICY, "1.1.0", folder / "1.1.0", created_by="a test")


def move_stable(store: Store, _folder: Path) -> None:
    move_alias(store, POLICY, "stable", "1.1.0", expected="1.0.0", by="a test")


def take_archive(store: Store, folder: Path) -> None:
    with ArchiveFiles(folder / "policy.tar") as files:
        import_versions(store, LayoutSource(files), [], where="policy.tar", by="a test")


def pull(store: Store, folder: Path) -> None:
    url = (folder / "url").read_text()
    with Registry(url, plain_http=True) as source:
        import_versions(store, source, [POLICY], where=url, by="a test")


def collect_all(store: Store, _folder: Path) -> None:
    collect(store, grace=timedelta(0), keep_newest=0, by="a test")


def sign_first(store: Store, folder: Path) -> None:
    sign(store, f"{POLICY}@1.0.0", open_signer(str(folder / "ann"), None), by="a test")


def pin_first(store: Store, _folder: Path) -> None:
    pin_version(store, f"{POLICY}@1.0.0", by="a test")


def unpin_first(store: Store, _folder: Path) -> None:
    unpin_version(store, f"{POLICY}@1.0.0", by="a test")


def roll_back(store: Store, _folder: Path) -> None:
    roll_back_alias(store, POLICY, "stable", by="a test")


def mend(store: Store, _folder: Path) -> None:
    Repair(store, by="a test").run([])


def nothing(_store: Store, _folder: Path) -> None:
    pass


def two_versions(store: Store, folder: Path) -> None:
    publish_first(store, folder)
    publish_second(store, folder)


def two_versions_and_an_alias(store: Store, folder: Path) -> None:
    two_versions(store, folder)
    move_alias(store, POLICY, "stable", "1.0.0", expected="", by="a test")


def a_pinned_version(store: Store, folder: Path) -> None:
    publish_first(store, folder)
    pin_first(store, folder)


def an_alias_that_moved(store: Store, folder: Path) -> None:
    two_versions_and_an_alias(store, folder)
    move_stable(store, folder)


def what_lost_its_aliases_and_pins_and_a_version(store: Store, folder: Path) -> None:
    two_versions_and_an_alias(store, folder)
    pin_first(store, folder)
    index = store.index()
    kept = [entry for entry in index.manifests if entry.version != "1.1.0"]
    (store.root / "index.json").write_bytes(encode_json(index.replaced(kept)))
    (store.root / "pins.json").unlink()
    (store.root / "aliases" / POLICY / "stable.json").unlink()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A publishable folder for each version."""
    folder = tmp_path_factory.mktemp("folders")
    for version in ("1.0.0", "1.1.0"):
        example_folder(folder / version, version)
    origin = Store(folder / "origin")
    two_versions(origin, folder)
    with ArchiveTarget(folder / "policy.tar") as target:
        export_versions(origin, target, [f"{POLICY}@1.0.0", f"{POLICY}@1.1.0"])
    generate_keys(folder / "ann")
    return folder


@pytest.fixture(scope="module")
def pushed(folder: Path) -> Iterator[None]:
    """A registry with both versions. Its address is in a file of the folder."""
    with registry(folder) as address:
        (folder / "url").write_text(f"oci://{address}")
        with Registry(f"oci://{address}", plain_http=True) as target:
            export_versions(Store(folder / "origin"), target, [f"{POLICY}@1.0.0", f"{POLICY}@1.1.0"])
        yield


@pytest.fixture
def one_core() -> Iterator[None]:
    """Tracer and traced on one core: each stop is then a switch, not a wake-up of another core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("prepare", "act", "changes_min"),
    [
        (nothing, publish_first, 10),
        (publish_first, publish_second, 10),
        (two_versions_and_an_alias, move_stable, 5),
        (two_versions_and_an_alias, collect_all, 5),
        (publish_first, take_archive, 10),
        (publish_first, pull, 10),
        (publish_first, sign_first, 10),
        (publish_first, pin_first, 5),
        (a_pinned_version, unpin_first, 5),
        (an_alias_that_moved, roll_back, 5),
        (what_lost_its_aliases_and_pins_and_a_version, mend, 5),
    ],
)
def test_a_kill_at_any_system_call_leaves_the_store_as_before_or_as_after(
    tmp_path: Path,
    folder: Path,
    one_core: None,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Act,
    act: Act,
    changes_min: int,
) -> None:
    if act is pull:
        request.getfixturevalue("pushed")
    before_root, after_root = tmp_path / "before", tmp_path / "after"
    prepare(Store(before_root, lambda: NOW), folder)
    if before_root.exists():
        shutil.copytree(before_root, after_root)
    act(Store(after_root, lambda: LATER), folder)
    before, after = view(Store(before_root)), view(Store(after_root))
    assert before != after

    result = set[bool]()
    for changes in range(10_000):
        root = tmp_path / f"{changes}"
        if before_root.exists():
            shutil.copytree(before_root, root)
        store = Store(root, lambda: LATER)
        try:
            if not killed_after(changes, lambda store=store: act(store, folder), lambda root=root: stamps(root)):  # type: ignore[misc]
                break
        except TracingRefusedError as refused:
            pytest.skip(f"this machine does not let a process trace its children ({refused})")
        check_as_it_lies(as_it_lies(store, monkeypatch), before, after, act)
        seen = view(store)
        assert seen in (before, after), changes
        is_after = seen == after
        result.add(is_after)
        check_that_the_next_command_cleans_up(store, folder, act, is_after, after)
        shutil.rmtree(root)
    assert changes > changes_min
    assert result == {False, True}


def check_as_it_lies(lies: View, before: View, after: View, act: Act) -> None:
    if act is not mend:
        assert lies in (before[:-1], after[:-1])
        return
    # a reader without write access sees one file repaired before the other, but each as before or as after
    for part, was, will_be in zip(lies, before, after, strict=False):
        assert part in (was, will_be)


def check_that_the_next_command_cleans_up(store: Store, folder: Path, act: Act, is_after: bool, after: View) -> None:
    if is_after:
        # any command that changes the store sweeps; this one changes nothing but that
        collect(store, grace=timedelta(days=1_000), keep_newest=9, by="a test")
    else:
        act(store, folder)
    assert view(store) == after
    assert inspect_store(store) == []
    verifier = Verifier(store)
    assert all(verifier.verify(version).intact for version in all_versions(store))
