"""The admin port over TLS: real certificates of an authority of the test's own, real clients, the operator's commands."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from tests.conftest import StartDaemon
from tests.daemon.support.tokens import asked, make_tokens
from tests.harness import START_S_MAX, WAIT_S_MAX, Daemon

POLICY = "lunar-lander"


def issue(authority: trustme.CA, folder: Path) -> None:
    """Writes a new certificate and its key, each as a whole."""
    issued = authority.issue_cert("127.0.0.1", "localhost")
    for name, data in (
        ("certificate", b"".join(part.bytes() for part in issued.cert_chain_pems)),
        ("key", issued.private_key_pem.bytes()),
    ):
        new = folder / f"{name}.new"
        new.touch(mode=0o600)
        new.write_bytes(data)
        new.rename(folder / name)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Path:
    """The folder with `certificate`, `key` and `tokens`, and with `authority` for clients."""
    folder = tmp_path_factory.mktemp("tls")
    issue(authority, folder)
    authority.cert_pem.write_to_path(folder / "authority")
    return folder


@pytest.fixture(scope="module")
def secrets(folder: Path) -> dict[str, str]:
    return make_tokens(folder / "tokens")


@pytest.fixture(scope="module")
def wide(module_daemon: StartDaemon, folder: Path, short_path: Path, secrets: dict[str, str]) -> Daemon:
    """A daemon that operators on other hosts can reach."""
    return module_daemon(
        "--admin", f"unix://{short_path}/tls-admin.sock", "--admin", "https://0.0.0.0:0",
        settings={f"admin__{name}_file": folder / name for name in ("tokens", "certificate", "key")},
    )  # fmt: skip


@pytest.fixture
def url(wide: Daemon) -> str:
    """The address that clients use."""
    assert wide.tcp_admin.startswith("https://0.0.0.0:")
    return wide.tcp_admin.replace("0.0.0.0", "127.0.0.1")


def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "authority"))


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """An operator's command."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PILLION_")}
    return subprocess.run(
        [sys.executable, "-m", "pillion", *words],
        capture_output=True, text=True, timeout=START_S_MAX, check=False, env={**clean, **environment},
    )  # fmt: skip


def test_over_tls_a_token_is_accepted_and_required(url: str, folder: Path, secrets: dict[str, str]) -> None:
    context = trusting(folder)
    assert asked(url, token=secrets["view"], context=context).status == 200
    assert asked(url, context=context).status == 401
    assert asked(url, path="/livez", context=context).status == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_supported(url: str, folder: Path, version: ssl.TLSVersion) -> None:
    context = trusting(folder)
    context.minimum_version = context.maximum_version = version
    assert asked(url, path="/livez", context=context).status == 200


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_older_tls_versions_are_refused(url: str, folder: Path) -> None:
    context = trusting(folder)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        asked(url, path="/livez", context=context)


def test_a_peer_without_tls_gets_no_answer_and_disturbs_nobody(url: str, folder: Path, wide: Daemon) -> None:
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        asked(url.replace("https:", "http:"), path="/livez")
    parts = urlsplit(url)
    for data in (b"", b"\x16\x03\x01\xff\xff" + b"x" * 100, b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection((parts.hostname, parts.port), WAIT_S_MAX) as connection:
            connection.sendall(data)
    assert asked(url, path="/livez", context=trusting(folder)).status == 200
    assert "Traceback" not in wide.stderr


def test_a_new_certificate_is_used_without_a_restart_unless_its_key_does_not_match(
    url: str, folder: Path, wide: Daemon, authority: trustme.CA
) -> None:
    def shown() -> str:
        parts = urlsplit(url)
        assert parts.hostname is not None
        with (
            socket.create_connection((parts.hostname, parts.port), WAIT_S_MAX) as connection,
            trusting(folder).wrap_socket(connection, server_hostname=parts.hostname) as secured,
        ):
            return str((secured.getpeercert() or {})["serialNumber"])

    first = shown()
    issue(authority, folder)
    second = shown()
    assert second != first
    key = (folder / "key").read_bytes()
    (folder / "key").write_bytes(b"not a key")
    assert shown() == second
    assert wide.wait_for_event("certificate_unreadable")["error"].startswith("admin.certificate_file: ")
    (folder / "key").write_bytes(key)
    assert shown() == second


def test_operators_commands_use_tls_and_a_token(url: str, folder: Path, secrets: dict[str, str]) -> None:
    (folder / "mine").write_text(secrets["operate"] + "\n")
    flags = ["--admin", url, "--ca-file", str(folder / "authority")]
    by_file = command("status", "--json", *flags, "--token-file", str(folder / "mine"))
    assert (by_file.returncode, by_file.stderr) == (0, "")
    assert json.loads(by_file.stdout)["policy"] == POLICY
    by_variables = command(
        "status", "--json",
        PILLION_ADMIN__LISTEN=url, PILLION_CA_FILE=str(folder / "authority"), PILLION_TOKEN=secrets["view"],
    )  # fmt: skip
    assert by_variables.returncode == 0, by_variables.stderr
    files = {"PILLION_TOKEN_FILE": str(folder / "mine"), "PILLION_TOKEN": "pillion_wrong"}
    assert command("versions", *flags, **files).returncode == 0


@pytest.mark.parametrize(
    ("words", "environment", "exit_code", "text"),
    [
        (["status"], {}, os.EX_NOPERM, "expected Authorization: Bearer TOKEN"),
        (["status"], {"PILLION_TOKEN": "pillion_wrong"}, os.EX_NOPERM, "expected a token of this daemon, got another"),
        (["drain"], {"PILLION_TOKEN": "{view}"}, os.EX_NOPERM, "expected the scope admin, the token view has view"),
        (["status"], {"PILLION_TOKEN": "x\r\ny"}, os.EX_USAGE, "the token is not valid"),
        (["status", "--token-file", "/nowhere"], {}, os.EX_USAGE, "--token-file: /nowhere: No such file"),
        (["status", "--ca-file", "/nowhere"], {}, os.EX_USAGE, "--ca-file: /nowhere: No such file"),
        (["status", "--ca-file", ""], {"PILLION_TOKEN": "{view}"}, os.EX_NOPERM, "its certificate is not trusted"),
    ],
)
def test_a_refusal_is_one_line_and_an_exit_code(
    url: str, folder: Path, secrets: dict[str, str],
    words: list[str], environment: dict[str, str], exit_code: int, text: str,
) -> None:  # fmt: skip
    shown = {name: value.format(**secrets) for name, value in environment.items()}
    result = command(*words[:1], "--admin", url, "--ca-file", str(folder / "authority"), *words[1:], **shown)
    assert (result.returncode, result.stdout) == (exit_code, "")
    assert text in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_token_is_never_sent_unencrypted() -> None:
    result = command("status", "--admin", "http://192.0.2.1:9475", PILLION_TOKEN="pillion_secret")
    assert result.returncode == os.EX_USAGE
    assert "expected https:// for http://192.0.2.1:9475: a token is not sent unencrypted" in result.stderr
