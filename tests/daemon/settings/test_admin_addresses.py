"""Admin listen addresses: one that is too open is refused at startup, with what to do instead."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from pilliond.admin.http.tls import TlsIdentity
from pilliond.errors import SettingsError
from pilliond.settings.schema import Settings, load_settings
from tests.daemon.support.tokens import asked, make_token
from tests.docs.pages import OPERATING
from tests.harness import START_S_MAX, STORE, running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokens, a certificate and its key, and with invalid variants of each."""
    folder = tmp_path_factory.mktemp("admin")
    authority = trustme.CA()
    for name in ("good", "other"):
        issued = authority.issue_cert("127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.crt")
        key = folder / f"{name}.key"
        issued.private_key_pem.write_to_path(key)
        key.chmod(0o600)
    (folder / "open.key").write_bytes((folder / "good.key").read_bytes())
    (folder / "open.key").chmod(0o644)
    encrypted = load_pem_private_key((folder / "good.key").read_bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"passphrase")
    )
    (folder / "encrypted.key").touch(mode=0o600)
    (folder / "encrypted.key").write_bytes(encrypted)
    make_token(folder / "tokens", "ann", "admin")
    os.mkfifo(folder / "pipe", 0o600)
    (folder / "open-tokens").write_bytes((folder / "tokens").read_bytes())
    (folder / "open-tokens").chmod(0o640)
    (folder / "broken-tokens").touch(mode=0o600)
    (folder / "broken-tokens").write_text("[[tokens]]\nname = 3\n")
    return folder


WIDE = "https://0.0.0.0:0"
TLS = {"certificate_file": "good.crt", "key_file": "good.key"}


@pytest.mark.parametrize(
    ("address", "files", "message"),
    [
        ("http://0.0.0.0:0", {}, "expected https:// off loopback"),
        (WIDE, TLS, "would be open to other hosts: expected an admin.tokens_file (make it with: pillion token new"),
        (WIDE, {"tokens_file": "tokens"}, "needs admin.certificate_file and admin.key_file"),
        (WIDE, {"tokens_file": "open-tokens", **TLS}, "expected mode 0600, got 0640: others can read it (chmod 600)"),
        (WIDE, {"tokens_file": "broken-tokens", **TLS}, "admin.tokens_file: "),
        (WIDE, {"tokens_file": "nowhere", **TLS}, "nowhere: No such file or directory"),
        (WIDE, {"tokens_file": "tokens", **TLS, "key_file": "open.key"}, "admin.key_file: "),
        (WIDE, {"tokens_file": "tokens", **TLS, "key_file": "other.key"}, "expected a PEM certificate and its key"),
        ("http://127.0.0.1:0", {"tokens_file": "pipe"}, "pipe: expected a file"),
    ],
)
def test_an_admin_address_that_is_too_open_is_refused_at_startup(
    folder: Path, address: str, files: dict[str, str], message: str
) -> None:
    settings = {f"PILLION_ADMIN__{name.upper()}": str(folder / path) for name, path in files.items()}
    command = [sys.executable, "-m", "pilliond", "--store", str(STORE), "--policy", "lunar-lander", "--admin", address]
    command += ["--listen", f"ipc://{folder}/never.sock"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=START_S_MAX, check=False, env={**os.environ, **settings}
    )
    assert (result.returncode, result.stdout) == (os.EX_CONFIG, "")
    assert result.stderr.startswith("pilliond: admin.")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("address", "files", "message"),
    [
        ("http://0.0.0.0:0", {"tokens_file": "x", **TLS}, "expected https:// off loopback"),
        ("http://192.0.2.1:80", {"tokens_file": "x"}, "expected https:// off loopback"),
        ("http://[::]:0", {"tokens_file": "x"}, "expected https:// off loopback"),
        ("https://[::]:0", TLS, "expected an admin.tokens_file"),
        ("https://127.0.0.1:0", {}, "needs admin.certificate_file and admin.key_file"),
        (WIDE, {"tokens_file": "x", "certificate_file": "x"}, "needs admin.certificate_file and admin.key_file"),
        ("https://example.org:9475", {"tokens_file": "x", **TLS}, "expected unix://"),
        ("http://127.0.0.1:0/admin", {}, "expected unix://"),
        ("http://127.0.0.1:99999", {}, "expected unix://"),
        ("http://127.0.0.1", {}, "expected unix://"),
        ("unix://relative.sock", {}, "expected an absolute path"),
    ],
)
def test_an_invalid_admin_address_is_a_settings_error(address: str, files: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(None, {}, {"admin": {"listen": ["unix://", address], **files}})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        ("tokens", "good.key", "expected a PEM certificate"),
        ("nowhere", "good.key", "nowhere: No such file or directory"),
        ("good.crt", "nowhere", "nowhere: No such file or directory"),
        ("good.crt", ".", "Is a directory"),
        ("good.crt", "encrypted.key", "its key without a passphrase"),
    ],
)
def test_an_unusable_certificate_or_key_is_an_error_of_one_line(
    folder: Path, certificate: str, key: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        TlsIdentity(str(folder / certificate), str(folder / key), None)
    assert "\n" not in str(caught.value)


def loaded(text: str, tmp_path: Path, environment: dict[str, str] | None = None) -> Settings:
    """Loads settings from a file with this text."""
    file = tmp_path / "pillion.toml"
    file.write_text(text)
    return load_settings(file, environment or {}, {})


def test_the_default_is_a_unix_socket_of_this_user_and_loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    addresses = loaded("", tmp_path).admin.addresses()
    assert [address.taken(address.port) for address in addresses] == [
        "unix:///run/user/7/pillion/admin.sock",
        "http://127.0.0.1:9475",
    ]


@pytest.mark.parametrize(
    ("text", "variable", "expected"),
    [
        ('listen = "http://127.0.0.1:80"', None, ["http://127.0.0.1:80"]),
        ('listen = ["http://localhost:80", "http://[::1]:80"]', None, ["http://127.0.0.1:80", "http://[::1]:80"]),
        ("", "unix:///x/a.sock,http://127.0.0.1:80", ["unix:///x/a.sock", "http://127.0.0.1:80"]),
        ("listen = []", None, []),
        ('listen = ["unix:///x/a.sock"]', "", []),
    ],
)
def test_one_address_or_a_list_can_be_set(tmp_path: Path, text: str, variable: str | None, expected: list[str]) -> None:
    environment = {} if variable is None else {"PILLION_ADMIN__LISTEN": variable}
    addresses = loaded(f"[admin]\n{text}\n", tmp_path, environment).admin.addresses()
    assert [address.taken(address.port) for address in addresses] == expected


def test_settings_override_the_credentials_of_systemd(tmp_path: Path) -> None:
    for name in ("tokens", "certificate", "key"):
        (tmp_path / name).touch()
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    admin = loaded("", tmp_path, environment).admin
    assert (admin.tokens_file, admin.certificate_file, admin.key_file) == tuple(
        f"{tmp_path}/{name}" for name in ("tokens", "certificate", "key")
    )
    assert loaded('[admin]\ntokens_file = "/own"\n', tmp_path, environment).admin.tokens_file == "/own"


def test_the_settings_on_the_page_are_valid(tmp_path: Path) -> None:
    text = OPERATING.read_text()
    blocks = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    # The CPUs in an example are those of the reader's host.
    others = [
        re.sub(r'"[0-9]"', f'"{min(os.sched_getaffinity(0))}"', block) for block in blocks if "listen" not in block
    ]
    assert [loaded(block, tmp_path).engine.worker_cpus for block in others]
    (settings,) = [block for block in blocks if "listen" in block]
    assert [address.is_tls for address in loaded(settings, tmp_path).admin.addresses()] == [False, True]


def test_an_unknown_group_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"admin\.group: expected the name of a group of this host, got 'x-y-z'"):
        loaded('[admin]\ngroup = "x-y-z"\n', tmp_path)


def test_the_commands_find_the_daemon_at_the_default_socket(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = short_path / "operators"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.delenv("PILLION_ADMIN__LISTEN", raising=False)
    arguments = ["--store", str(STORE), "--policy", "lunar-lander", "--admin", "unix://", "--admin", "http://[::1]:0"]
    with running(arguments, runtime / "stderr") as daemon:
        assert daemon.admins[0] == f"unix://{runtime}/pillion/admin.sock"
        assert daemon.admins[1].startswith("http://[::1]:")
        assert stat.S_IMODE((runtime / "pillion").stat().st_mode) == 0o700
        command = [sys.executable, "-m", "pillion", "status"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=START_S_MAX, check=False)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith("lunar-lander: ready")
        assert asked(daemon.admins[1], source="::1").status == 200


def test_without_a_runtime_folder_the_default_is_loopback_only_and_a_configured_socket_is_an_error(
    short_path: Path,
) -> None:
    common = ["--store", str(STORE), "--policy", "lunar-lander", "--listen", f"ipc://{short_path}/folderless.sock"]
    # Not even root can create a folder in /proc.
    nowhere = {"XDG_RUNTIME_DIR": "/proc/nowhere"}
    arguments = [*common, "--admin", "unix://", "--admin", "http://127.0.0.1:0"]
    with running(arguments, short_path / "folderless", nowhere) as daemon:
        assert [address.partition(":")[0] for address in daemon.admins] == ["http"]
        assert "/proc/nowhere/pillion" in daemon.wait_for_event("no_admin_socket")["error"]
    command = [sys.executable, "-m", "pilliond", *common, "--admin", "unix:///proc/nowhere/admin.sock"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=START_S_MAX, check=False)
    assert (result.returncode, result.stdout) == (os.EX_UNAVAILABLE, "")
    assert result.stderr.startswith("pilliond: cannot make /proc/nowhere for a socket")
