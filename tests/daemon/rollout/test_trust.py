"""The daemon loads policies with a trusted signature and logs the signer. It refuses others before it loads them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pillion
from pillion_artifacts import Store
from pillion_artifacts.verify.keys import generate_keys, open_signer, public_path
from pillion_artifacts.verify.signing import sign
from tests.conftest import StartDaemon
from tests.harness import START_S_MAX, blob_of, copy_examples


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return copy_examples(tmp_path / "store")


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Settings that ask for the signature of ann for lunar-lander."""
    generate_keys(tmp_path / "ann")
    path = tmp_path / "pillion.toml"
    path.write_text(
        f'[[trust.keys]]\nname = "ann"\npath = "{public_path(tmp_path / "ann")}"\nexpires = 2999-01-01T00:00:00Z\n'
        '[[trust.rules]]\npolicies = ["lunar-*"]\nkeys = ["ann"]\n'
    )
    return path


def pilliond(settings: Path, store: Store, policy: str = "lunar-lander") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pilliond", "--config", str(settings), "--store", str(store.root), "--admin", ""]
    return subprocess.run(
        [*line, "--policy", policy, "--listen", f"ipc://{settings.parent}/x.sock"],
        capture_output=True,
        text=True,
        timeout=START_S_MAX,
    )


def test_a_policy_without_the_signature_that_is_required_is_refused(settings: Path, store: Store) -> None:
    result = pilliond(settings, store)
    assert result.returncode == os.EX_DATAERR
    assert result.stderr == ("pilliond: lunar-lander@v1.0.0: expected signatures of 1 of ann, got none that count\n")


def test_it_is_refused_before_any_of_its_files_is_read(settings: Path, store: Store) -> None:
    blob_of(store.root, "lunar-lander", "model.onnx").unlink()
    assert "got none that count" in pilliond(settings, store).stderr


def test_a_wrong_signature_is_refused(settings: Path, store: Store, tmp_path: Path) -> None:
    generate_keys(tmp_path / "eve")
    sign(store, "lunar-lander", open_signer(str(tmp_path / "eve"), None))
    result = pilliond(settings, store)
    assert result.returncode == os.EX_DATAERR
    assert "is not trusted" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_signed_policy_is_served_and_the_log_says_who_signed_it(
    settings: Path, store: Store, tmp_path: Path, start_daemon: StartDaemon
) -> None:
    sign(store, "lunar-lander", open_signer(str(tmp_path / "ann"), None))
    daemon = start_daemon("--config", str(settings), store=store.root)
    assert daemon.events("ready")[0]["signed_by"] == ["ann"]
    with pillion.connect(daemon.address) as session:
        assert session.digest == store.resolve("lunar-lander").digest
    maps = Path(f"/proc/{daemon.serving_pid}/maps").read_text()
    assert "cryptography" not in maps
    assert "cryptography" in Path(f"/proc/{daemon.pid}/maps").read_text()


def test_a_policy_that_no_rule_fits_is_loaded_unless_all_must_be_signed(
    settings: Path, store: Store, start_daemon: StartDaemon
) -> None:
    start_daemon("--config", str(settings), store=store.root, policy="highway-fast").stop()
    settings.write_text("[trust]\nrequired = true\n" + settings.read_text())
    result = pilliond(settings, store, "highway-fast")
    assert result.returncode == os.EX_DATAERR
    assert result.stderr == "pilliond: highway-fast@v1.0.0: trust.rules has no rule for it\n"


def test_a_rule_about_a_key_that_is_not_there_is_a_mistake_in_the_settings(settings: Path, store: Store) -> None:
    settings.write_text(settings.read_text().replace('keys = ["ann"]', 'keys = ["carl"]'))
    result = pilliond(settings, store)
    assert result.returncode == os.EX_CONFIG
    assert result.stderr == "pilliond: trust: rules: expected a key of ann, got 'carl'\n"


def test_the_serving_process_never_imports_what_checks_signatures_or_changes_the_store() -> None:
    script = "import sys, pilliond.serving.__main__; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    forbidden = {"securesystemslib", "cryptography", "filelock", "obstore", "pillion_artifacts.verify.signing"}
    assert not forbidden & set(loaded)
