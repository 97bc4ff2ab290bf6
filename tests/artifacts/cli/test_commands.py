"""`pillion artifact`: the text, JSON and exit codes of each command, and the shell's completions."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pillion.cli import run
from pillion_artifacts import Store
from pillion_artifacts.cli.commands import artifact
from pillion_artifacts.store.aliases import move_alias
from tests.artifacts.card.test_model_card import CARDS
from tests.artifacts.support.stores import POLICY, example_folder, flip
from tests.harness import ROOT, START_S_MAX, blob_of, copy_examples

Type = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def type_it(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Type:
    """Runs a `pillion artifact` command on the test's store; returns exit code, standard output and error."""
    monkeypatch.setenv("PILLION_STORE__PATH", str(store.root))

    def type_line(line: str) -> tuple[int, str, str]:
        code = run(["artifact", *shlex.split(line)])
        result = capsys.readouterr()
        return code, result.out, result.err

    return type_line


@pytest.fixture
def published(type_it: Type, tmp_path: Path) -> Path:
    """Publishes 1.0.0 and 1.1.0 by command; returns the folder of the first."""
    for version in ("1.0.0", "1.1.0"):
        folder = example_folder(tmp_path / version, version)
        code, out, err = type_it(f"publish {folder} {POLICY}@v{version} --by ann --reason tested")
        assert (code, err) == (0, "")
        assert out.startswith(f"{POLICY}@v{version} sha256:")
    return tmp_path / "1.0.0"


def as_json(type_it: Type, line: str) -> Any:
    code, out, err = type_it(f"{line} --json")
    assert (code, err) == (0, ""), line
    return json.loads(out)


def test_every_command_has_its_json_beside_its_table(type_it: Type, published: Path, tmp_path: Path) -> None:
    file = tmp_path / "policy.tar"
    lines = [
        "list", f"show {POLICY}", f"diff {POLICY}@1.0.0 {POLICY}", "history", f"alias {POLICY}@stable 1.0.0",
        f"alias {POLICY}@stable", f"alias {POLICY}@stable 1.1.0 --expect 1.0.0", f"rollback {POLICY}",
        f"pin {POLICY}", f"unpin {POLICY}", "gc", f"verify {POLICY}", "verify --all", "fsck", "fsck --repair",
        f"migrate {CARDS / 'schema-1.yaml'}", f"keygen {tmp_path / 'KEY'}", f"sign {POLICY} --key {tmp_path / 'KEY'} --expires 30",
        f"export {file} {POLICY}", f"import {file}", f"alias {POLICY}@stable --remove",
        f"publish {example_folder(tmp_path / '2', '2.0.0')} {POLICY}@v2.0.0",
    ]  # fmt: skip
    without = {"push", "pull"}  # test_remotes types them, against real servers
    assert {line.split()[0] for line in lines} | without == set(artifact.commands)
    for line in lines:
        assert as_json(type_it, line) is not None
    for command in artifact.commands.values():
        assert any("--json" in option.opts for option in command.params), command.name


def test_the_list_names_versions_aliases_pins_and_signatures(type_it: Type, published: Path) -> None:
    type_it(f"alias {POLICY}@stable 1.0.0")
    type_it(f"pin {POLICY}@1.1.0")
    rows = as_json(type_it, "list")
    assert [(row["version"], row["aliases"], row["pinned"], row["published_by"]) for row in rows] == [
        ("1.0.0", ["stable"], False, "ann"),
        ("1.1.0", [], True, "ann"),
    ]
    _, out, _ = type_it("list")
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["POLICY", "VERSION"],
        [POLICY, "v1.0.0"],
        [POLICY, "v1.1.0"],
    ]


def test_show_and_diff_print_a_version_and_its_changes(type_it: Type, published: Path) -> None:
    shown = as_json(type_it, f"show {POLICY}@1.0.0")
    assert shown["card"]["name"] == POLICY
    assert [file["name"] for file in shown["files"]] == ["model.onnx", "model_card.yaml"]
    assert [record["reason"] for record in shown["history"]] == ["tested"]
    compared = as_json(type_it, f"diff {POLICY}@1.0.0 {POLICY}@1.1.0")
    assert [(found["part"], found["path"]) for found in compared["differences"]] == [
        ("file", "model_card.yaml"),
        ("card", "version"),
    ]
    assert "do not differ" in type_it(f"diff {POLICY} {POLICY}@1.1.0")[1]


def test_a_damaged_store_ends_with_65_and_the_page_shows_it(
    type_it: Type, published: Path, store: Store, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    assert type_it(f"verify --all --html {page}")[0] == 0
    assert "<h1>intact</h1>" in page.read_text()
    # self-contained: it names nothing that a browser would fetch
    assert not re.findall(r"(?:src|href)=|url\(|@import|<(?:script|link|img|iframe)", page.read_text())
    flip(blob_of(store.root, f"{POLICY}@1.0.0", "model_card.yaml"), 0.5)
    code, out, _ = type_it(f"verify --all --html {page}")
    assert code == os.EX_DATAERR
    assert "REFUSED: lunar-lander@v1.0.0: model_card.yaml is not what was published" in out
    assert "<h1>damaged</h1>" in page.read_text()
    assert type_it(f"verify {POLICY}@1.1.0")[0] == 0
    assert type_it("fsck --repair")[0] == os.EX_DATAERR
    assert type_it("fsck --repair --quarantine")[0] == 0
    assert type_it(f"verify {POLICY}@1.0.0")[0] == os.EX_DATAERR


def test_verify_requires_the_signatures_of_key_or_trust(type_it: Type, published: Path, tmp_path: Path) -> None:
    key = tmp_path / "ann"
    type_it(f"keygen {key}")
    type_it(f"sign {POLICY} --key {key}")
    assert type_it(f"verify {POLICY} --key {key}.pub")[0] == 0
    code, out, _ = type_it(f"verify --all --key {key}.pub")
    assert code == os.EX_DATAERR
    assert "lunar-lander@v1.0.0: expected signatures of 1 of" in out
    settings = tmp_path / "pillion.toml"
    settings.write_text(
        f'[[trust.keys]]\nname = "ann"\npath = "{key}.pub"\n[[trust.rules]]\npolicies = ["*"]\nkeys = ["ann"]\n'
    )
    (verdict,) = as_json(type_it, f"verify {POLICY} --trust {settings}")["verdicts"]
    assert verdict["signed_by"] == ["ann"]


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("publish FOLDER lunar-lander@v1.0.0", os.EX_CANTCREAT, "lunar-lander@v1.0.0 is published already"),
        ("publish FOLDER lunar-lander@v3.0.0", os.EX_DATAERR, "the card belongs to lunar-lander@1.0.0"),
        ("publish FOLDER lunar-lander", os.EX_USAGE, "expected NAME@vMAJOR.MINOR.PATCH, got 'lunar-lander'"),
        (
            "publish /nowhere lunar-lander@v3.0.0",
            os.EX_DATAERR,
            "lunar-lander@v3.0.0: /nowhere: no such file: expected a folder with a model",
        ),
        ("show walker", os.EX_DATAERR, "policy 'walker' is not in the store, which holds lunar-lander"),
        ("alias lunar-lander stable", os.EX_USAGE, "expected NAME@ALIAS, got 'lunar-lander'"),
        ("alias lunar-lander@stable 1.0.0 --expect 1.1.0", os.EX_CANTCREAT, "it points at nothing"),
        ("rollback lunar-lander", os.EX_DATAERR, "has no alias 'stable'"),
        ("unpin lunar-lander", os.EX_DATAERR, "lunar-lander@v1.1.0 is not pinned"),
        ("verify", os.EX_USAGE, "expected a REF, or --all"),
        ("fsck --quarantine", os.EX_USAGE, "expected --repair with it"),
        ("import /nowhere.tar", os.EX_DATAERR, "/nowhere.tar: No such file or directory"),
        ("export /nowhere/x.tar lunar-lander", os.EX_IOERR, "/nowhere/x.tar: No such file or directory"),
        ("push ftp://x lunar-lander", os.EX_USAGE, "expected oci://HOST/PREFIX"),
        ("sign lunar-lander --key /nowhere", os.EX_DATAERR, "/nowhere: No such file or directory"),
        ("list --store /nowhere", os.EX_DATAERR, "there is no store at /nowhere"),
        ("list --store nowhere", os.EX_DATAERR, f"there is no store at {Path('nowhere').absolute()}"),
        ("nonsense", os.EX_USAGE, "No such command"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    type_it: Type, published: Path, line: str, code: int, message: str
) -> None:
    result, out, err = type_it(line.replace("FOLDER", str(published)))
    assert (result, out) == (code, "")
    assert err.startswith("pillion: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("pillion art", ["artifact"]),
        ("pillion artifact ver", ["verify"]),
        ("pillion artifact show lunar", ["lunar-lander", "lunar-lander@stable", "lunar-lander@v1.0.0"]),
        ("pillion artifact list high", ["highway-fast"]),
        ("pillion artifact show --js", ["--json"]),
    ],
)
def test_the_shell_completes_commands_policies_and_versions(tmp_path: Path, words: str, expected: list[str]) -> None:
    move_alias(copy_examples(tmp_path / "store"), POLICY, "stable", "1.0.0", expected="")
    environment = {
        **os.environ, "_PILLION_COMPLETE": "bash_complete", "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1), "PILLION_STORE__PATH": str(tmp_path / "store"),
    }  # fmt: skip
    result = subprocess.run(
        [Path(sys.executable).parent / "pillion"], env=environment, capture_output=True, text=True, timeout=START_S_MAX
    )
    assert result.stderr == ""
    assert sorted(line.partition(",")[2] for line in result.stdout.splitlines()) == expected


@pytest.mark.parametrize(("shell", "mark"), [("bash", "complete"), ("zsh", "#compdef pillion"), ("fish", "function")])
def test_each_shell_gets_its_completion(shell: str, mark: str) -> None:
    result = subprocess.run(
        [Path(sys.executable).parent / "pillion"],
        env={**os.environ, "_PILLION_COMPLETE": f"{shell}_source"}, capture_output=True, text=True, timeout=START_S_MAX,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert mark in result.stdout
    assert f"_PILLION_COMPLETE={shell}_complete" in result.stdout


def readme_commands() -> list[str]:
    """Every command line of `artifacts/README.md`, in its order."""
    text = (ROOT / "artifacts" / "README.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line.split("  #")[0].strip() for line in "".join(blocks).replace("\\\n", " ").splitlines() if line.strip()]


def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    example_folder(tmp_path / "my-folder", "1.1.0")
    example_folder(tmp_path / "first", "1.0.0")
    environment = {**os.environ, "PILLION_STORE__PATH": str(tmp_path / "store")}
    for line in [f"pillion artifact publish {tmp_path / 'first'} lunar-lander@v1.0.0", *readme_commands()]:
        words = shlex.split(line.replace(".venv/bin/", ""))
        if words[0] != "pillion" or "://" in line:
            continue
        result = subprocess.run(
            [Path(sys.executable).parent / words[0], *words[1:]],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=START_S_MAX,
        )  # fmt: skip
        assert result.returncode == 0, (line, result.stderr)
    assert Store(tmp_path / "store").aliases()


def test_verifying_a_large_blob_needs_the_memory_of_one_chunk(tmp_path: Path) -> None:
    folder = example_folder(tmp_path / "folder")
    with (folder / "golden.safetensors").open("wb") as file:
        for _ in range(200):
            file.write(os.urandom(1_000_000))
    Store(tmp_path / "store").publish(POLICY, "1.0.0", folder)
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from pillion_artifacts.cli.verification_report import verify_and_report\n"
        "from pillion_artifacts import Store\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "report = verify_and_report(Store(Path(sys.argv[1])), (), True)\n"
        "print(report.intact, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    line = [sys.executable, "-c", script, str(tmp_path / "store")]
    intact, grown_kb = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    assert intact == "True"
    assert int(grown_kb) < 64_000
