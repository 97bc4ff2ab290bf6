"""Tokens and `pillion token`: the file keeps hashes, belongs to one user and is replaced atomically."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pilliond.admin.http.token_file import read_tokens
from pilliond.admin.http.tokens import Token, find_token, format_tokens, new_token, parse_tokens
from pilliond.errors import SettingsError
from pilliond.limits import TOKENS_MAX
from tests.daemon.support.tokens import make_token, make_tokens
from tests.docs.pages import OPERATING
from tests.harness import START_S_MAX


def token_command(*words: str, file: Path) -> subprocess.CompletedProcess[str]:
    """A command line of `pillion token`."""
    command = [sys.executable, "-m", "pillion", "token", *words, "--file", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_S_MAX, check=False)


def json_of(*words: str, file: Path) -> dict[str, Any]:
    result = token_command(*words, "--json", file=file)
    assert (result.returncode, result.stderr) == (0, ""), result
    reply: dict[str, Any] = json.loads(result.stdout)
    return reply


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def test_a_token_is_created_listed_and_revoked(file: Path) -> None:
    secret = token_command("new", "ci", "--scope", "operate", file=file).stdout.strip()
    assert len(secret) >= 43
    reply = json_of("new", "prometheus", "--scope", "view", "--days", "90", file=file)
    assert set(reply) >= {"name", "scope", "expires", "token", "file"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [(entry["name"], entry["scope"]) for entry in json_of("list", file=file)["tokens"]] == [
        ("ci", "operate"),
        ("prometheus", "view"),
    ]
    assert secret not in file.read_text()
    assert hashlib.sha256(secret.encode()).hexdigest() in file.read_text()
    table = token_command("list", file=file).stdout
    assert re.search(r"^ci +operate +never", table, re.MULTILINE)
    assert re.search(r"^prometheus +view +\d{4}-", table, re.MULTILINE)
    assert json_of("revoke", "ci", file=file) == {"revoked": "ci", "file": str(file)}
    assert [entry["name"] for entry in json_of("list", file=file)["tokens"]] == ["prometheus"]


@pytest.mark.parametrize(
    ("words", "exit_code", "text"),
    [
        (["new", "ci", "--scope", "view"], os.EX_CONFIG, "token ci exists"),
        (["revoke", "nobody"], os.EX_CONFIG, "there is no token nobody"),
        (["new", "a b", "--scope", "view"], os.EX_CONFIG, "expected a name"),
        (["new", '"]\n', "--scope", "view"], os.EX_CONFIG, "expected a name"),
        (["new", "x", "--scope", "everything"], os.EX_USAGE, "everything"),
        (["new", "x"], os.EX_USAGE, "--scope"),
        (["new", "x", "--scope", "view", "--days", "0"], os.EX_USAGE, "--days"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(
    file: Path, words: list[str], exit_code: int, text: str
) -> None:
    make_token(file, "ci", "view")
    before = file.read_bytes()
    result = token_command(*words, file=file)
    assert (result.returncode, result.stdout) == (exit_code, "")
    assert text in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert file.read_bytes() == before
    assert [entry.name for entry in file.parent.iterdir()] == ["tokens"]


def test_a_missing_file_is_no_empty_list(file: Path) -> None:
    result = token_command("list", file=file)
    assert (result.returncode, result.stdout) == (os.EX_CONFIG, "")
    assert "there is no such file" in result.stderr


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    result = token_command("new", "ci", "--scope", "view", file=tmp_path / "nowhere" / "tokens")
    assert (result.returncode, result.stderr.count("\n")) == (os.EX_CONFIG, 1)
    assert "No such file or directory" in result.stderr


def test_tokens_created_concurrently_are_all_kept(file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: make_token(file, f"token-{number}", "view"), range(40)))
    assert {token.name for token in read_tokens(str(file))} == {f"token-{number}" for number in range(40)}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away: run the tests as root")
def test_an_edit_by_root_keeps_the_owner_of_the_file(file: Path) -> None:
    make_token(file, "ci", "view")
    os.chown(file, 65534, 65534)
    make_token(file, "second", "view")
    found = file.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 65534, 0o600)
    assert [entry["name"] for entry in json_of("list", file=file)["tokens"]] == ["ci", "second"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away: run the tests as root")
def test_a_daemon_refuses_the_tokens_file_of_another_user(file: Path) -> None:
    make_token(file, "ci", "view")
    os.chown(file, 65534, 65534)
    with pytest.raises(SettingsError, match="expected a file of this user or of root, it is of user 65534"):
        read_tokens(str(file))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_can_read_is_refused(file: Path, mode: int) -> None:
    make_token(file, "ci", "view")
    file.chmod(mode)
    with pytest.raises(SettingsError, match=f"expected mode 0600, got {mode:04o}"):
        read_tokens(str(file))


def test_each_secret_finds_its_own_token_and_no_other(file: Path) -> None:
    secrets = make_tokens(file)
    tokens = read_tokens(str(file))
    for name, secret in secrets.items():
        found = find_token(tokens, secret)
        assert found is not None
        assert found.name == name
    assert find_token(tokens, secrets["admin"][:-1]) is None
    assert find_token(tokens, "") is None
    assert find_token((), secrets["admin"]) is None


def test_a_written_file_reads_back_equal(file: Path) -> None:
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    tokens = [new_token("a", "view")[0], new_token("b", "admin", expires)[0]]
    assert parse_tokens(format_tokens(tokens), "file") == tokens
    assert parse_tokens(b"", "file") == []


HASH = "0" * 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[tokens]\n", "file: "),
        (f'[[tokens]]\nname = "a"\nscope = "all"\nsha256 = "{HASH}"\n', "file: .*'all'"),
        ('[[tokens]]\nname = "a"\nscope = "view"\nsha256 = "secret"\n', r"file: .*\[0\]\.sha256"),
        ('[[tokens]]\nname = "a"\nscope = "view"\n', "file: .*`sha256`"),
        (f'[[tokens]]\nname = "a"\nscope = "view"\nsha256 = "{HASH}"\n' * 2, "names that differ"),
        (f'[[tokens]]\nname = "a\\nb"\nscope = "view"\nsha256 = "{HASH}"\n', r"file: .*\[0\]\.name"),
        (
            f'[[tokens]]\nname = "a"\nscope = "view"\nsha256 = "{HASH}"\nexpires = 2027-01-01T00:00:00\n',
            r"file: .*\[0\]\.expires",
        ),
        (
            "".join(f'[[tokens]]\nname = "t{n}"\nscope = "view"\nsha256 = "{HASH}"\n' for n in range(TOKENS_MAX + 1)),
            f"file: .*{TOKENS_MAX}",
        ),
        ('[[token]]\nname = "a"\n', "file: .*`token`"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        parse_tokens(text.encode(), "file")
    assert "\n" not in str(caught.value)


def test_a_token_expires_exactly_at_its_time() -> None:
    now = datetime.now(UTC)
    token = Token("a", "view", HASH, now)
    assert token.has_expired(now)
    assert not token.has_expired(now - timedelta(seconds=1))
    assert not Token("a", "view", HASH).has_expired(now)


def test_every_token_command_of_the_page_runs(tmp_path: Path) -> None:
    text = OPERATING.read_text()
    lines = re.findall(r"^\.venv/bin/pillion (token .*)$", text, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line.replace("/etc/pillion", str(tmp_path)))
        result = subprocess.run(
            [sys.executable, "-m", "pillion", *words], capture_output=True, text=True, timeout=START_S_MAX, check=False
        )
        assert (result.returncode, result.stderr) == (0, ""), line
    assert read_tokens(str(tmp_path / "tokens")) == []
