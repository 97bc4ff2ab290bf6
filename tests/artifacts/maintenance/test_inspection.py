"""Faults anywhere in the store are found, and repaired from redundant data."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pillion_artifacts import InvalidArtifactError, Store
from pillion_artifacts.cli.verification_report import as_html, repair_and_report, report_as_json, verify_and_report
from pillion_artifacts.maintenance.inspection import Fault, inspect_store
from pillion_artifacts.oci.manifest import encode_json
from pillion_artifacts.store.aliases import move_alias
from pillion_artifacts.store.pins import pin_version
from pillion_artifacts.verify.keys import generate_keys, open_signer
from pillion_artifacts.verify.signing import sign
from tests.artifacts.support.stores import POLICY, example_card, example_model, flip
from tests.harness import blob_of, publish

STATE_FILES = ["index.json", f"aliases/{POLICY}/stable.json", "pins.json", "audit.jsonl", "oci-layout"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with versions, an alias, a pin and a signature."""
    for version in ("1.0.0", "1.1.0"):
        publish(tmp_path / "store", POLICY, version, example_model(), example_card(version))
    store = Store(tmp_path / "store")
    move_alias(store, POLICY, "stable", "1.0.0", expected="")
    move_alias(store, POLICY, "stable", "1.1.0", expected="1.0.0")
    pin_version(store, f"{POLICY}@1.0.0", reason="the paper")
    generate_keys(tmp_path / "ann")
    sign(store, POLICY, open_signer(str(tmp_path / "ann"), None))
    return store


def view(store: Store) -> tuple[object, ...]:
    return store.versions(POLICY), store.aliases(), store.pins(), store.index().manifests


def test_an_untouched_store_has_no_faults(store: Store) -> None:
    assert inspect_store(store) == []
    report = verify_and_report(store, (), everything=True)
    assert report.intact
    assert [verdict.version for verdict in report.verdicts] == ["1.0.0", "1.1.0"]


def test_a_flipped_bit_anywhere_in_the_store_is_found(store: Store) -> None:
    files = sorted(path for path in store.root.rglob("*") if path.is_file() and path.name != "lock")
    assert {str(path.relative_to(store.root)) for path in files} >= set(STATE_FILES)
    for path in files:
        whole = path.read_bytes()
        offsets = range(0, len(whole), max(1, len(whole) // 40))
        for offset in [*offsets, len(whole) - 1]:
            flip(path, offset / len(whole), bit=offset % 8)
            if path.read_bytes() == whole:
                continue
            assert not verify_and_report(store, (), everything=True).intact, (path, offset)
            path.write_bytes(whole)
    assert verify_and_report(store, (), everything=True).intact


@pytest.mark.parametrize("name", ["index.json", f"aliases/{POLICY}/stable.json", "pins.json", "oci-layout"])
@pytest.mark.parametrize("damage", ["removed", "emptied", "flipped"])
def test_a_damaged_small_file_is_restored(store: Store, name: str, damage: str) -> None:
    path = store.root / name
    before = view(store)
    if damage == "removed":
        path.unlink()
    elif damage == "emptied":
        os.truncate(path, 0)
    else:
        flip(path, 0.5)
    assert not verify_and_report(store, (), everything=True).intact
    report = repair_and_report(store, False, "ann", "")
    assert report.intact, report.faults
    assert len(report.repairs) == 1
    assert view(store) == before
    assert store.history()[-1].action == "repair"


def test_an_edited_index_is_found_and_repaired(store: Store) -> None:
    path = store.root / "index.json"
    text = path.read_text()
    old, new = (store.resolve(f"{POLICY}@{version}").digest for version in ("1.0.0", "1.1.0"))
    path.write_text(text.replace(f'"digest": "{new}"', f'"digest": "{old}"', 1))
    texts = [fault.text for fault in inspect_store(store)]
    assert any(f"the audit log has {new}" in each for each in texts)
    assert repair_and_report(store, False, "", "").intact
    assert path.read_text() == text


@pytest.mark.parametrize("damage", ["changed", "taken out", "moved"])
def test_an_edited_log_is_found_and_not_hidden_by_a_repair(store: Store, damage: str) -> None:
    path = store.root / "audit.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if damage == "changed":
        lines[2] = lines[2].replace('"by":"', '"by":"not-')
    elif damage == "taken out":
        del lines[2]
    else:
        lines[2], lines[3] = lines[3], lines[2]
    path.write_text("".join(lines))
    faults = [fault for fault in inspect_store(store) if fault.kind == "audit"]
    assert faults
    assert any(fault.kind == "audit" for fault in repair_and_report(store, True, "", "").faults)


def test_a_log_without_its_last_line_is_found(store: Store) -> None:
    path = store.root / "audit.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert any("the audit log does not have these bytes" in fault.text for fault in inspect_store(store))


def test_a_damaged_version_goes_to_quarantine_and_the_others_stay(store: Store) -> None:
    flip(blob_of(store.root, f"{POLICY}@1.0.0", "model_card.yaml"), 0.5)
    report = repair_and_report(store, False, "", "")
    assert not report.intact
    assert store.versions(POLICY) == ["1.0.0", "1.1.0"]
    report = repair_and_report(store, True, "ann", "a disk that forgets")
    assert "removed lunar-lander@v1.0.0 from the index" in report.repairs
    assert store.versions(POLICY) == ["1.1.0"]
    assert report.intact
    # the manifest, and the card that was damaged; the model is that of the other version too
    assert len(list((store.root / "quarantine").iterdir())) == 2
    assert store.load(POLICY).version == "1.1.0"
    assert inspect_store(store) == []


def test_leftovers_are_found_and_removed(store: Store) -> None:
    blobs = store.root / "blobs" / "sha256"
    (blobs / "not-a-blob").write_text("x")
    (blobs / ("0" * 64)).write_text("x")
    orphan = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    (blobs / orphan).write_text("x")
    (store.root / "staging" / "tmpabandoned").mkdir()
    kinds = sorted((fault.kind, fault.harmful) for fault in inspect_store(store))
    assert kinds == [("blob", True), ("blob", True), ("leftover", False), ("orphan", False)]
    report = repair_and_report(store, False, "", "")
    assert [(fault.kind, fault.subject) for fault in report.faults] == [("blob", "not-a-blob")]
    assert (store.root / "quarantine" / ("0" * 64)).is_file()
    assert not (blobs / orphan).exists()


def test_an_alias_of_a_missing_version_is_found(store: Store) -> None:
    digest = store.resolve(f"{POLICY}@stable").digest.removeprefix("sha256:")
    (store.root / "blobs" / "sha256" / digest).unlink()
    assert Fault(
        "alias", f"{POLICY}@stable", "the alias lunar-lander@stable is broken: "
        "lunar-lander@v1.1.0: manifest: No such file or directory"
    ) in inspect_store(store)  # fmt: skip


def test_a_forged_intent_reaches_nothing_outside_the_store(store: Store, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (store.root / "staging" / "tmpx").mkdir()
    for intent in (
        {"folder": "tmpx", "moves": [], "removals": ["../precious"], "records": []},
        {"folder": "tmpx", "moves": [], "removals": [str(precious)], "records": []},
        {"folder": "tmpx", "moves": [{"source": "../precious", "target": "index.json"}], "removals": [], "records": []},
        {"folder": "..", "moves": [{"source": "staging/../x", "target": "index.json"}], "removals": [], "records": []},
        {"folder": "tmpx", "moves": [{"source": "index.json", "target": "../out"}], "removals": [], "records": []},
    ):
        (store.root / "intent.json").write_text(json.dumps(intent))
        with pytest.raises(InvalidArtifactError, match="a change of the store does not write"):
            store.policies()
    assert precious.read_text() == "precious"
    assert not (tmp_path / "out").exists()


def test_text_json_and_page_of_a_report_agree(store: Store) -> None:
    flip(blob_of(store.root, f"{POLICY}@1.0.0", "model_card.yaml"), 0.5)
    report = verify_and_report(store, (), everything=True)
    as_json = report_as_json(report)
    assert (as_json["intact"], [verdict["intact"] for verdict in as_json["verdicts"]]) == (False, [False, True])
    page = as_html(report)
    assert report.verdicts[0].faults[0].partition(":")[0] in page
    for loaded in ("<script", "<link", "<img", "http://", "https://", "src="):
        assert loaded not in page


def test_a_page_escapes_text_from_the_store(store: Store) -> None:
    path = store.root / "blobs" / "sha256" / "<script>alert(1)<"
    path.write_text("x")
    page = as_html(verify_and_report(store, (), everything=True))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page


def test_a_layout_of_another_tool_is_intact_without_a_log(store: Store) -> None:
    (store.root / "audit.jsonl").unlink()
    shutil.rmtree(store.root / "aliases")
    assert verify_and_report(store, (), everything=True).intact
    assert encode_json(store.index()) == (store.root / "index.json").read_bytes()
