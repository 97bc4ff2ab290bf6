"""`make release` on a clone that is thrown away: real git, a real build, and every reason to refuse."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VERSION = "9.8.7"
TODAY = datetime.datetime.now(datetime.UTC).date()
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    **{f"GIT_{who}_{what}": "tester@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


def git(folder: Path, *arguments: str) -> str:
    """What a git command prints there."""
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def change(file: Path, pattern: str, by: str) -> None:
    """Replaces the first match of a pattern in a file."""
    text, count = re.subn(pattern, by, file.read_text(), count=1, flags=re.MULTILINE)
    assert count == 1, (file, pattern)
    file.write_text(text)


def commit(clone: Path) -> None:
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "a change")


def release(clone: Path, *arguments: str, version: str = VERSION) -> subprocess.CompletedProcess[str]:
    """Runs the clone's own release command."""
    command = [sys.executable, str(clone / "tools" / "release.py"), version, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=100, env=ENVIRONMENT, cwd=clone.parent
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of this repository on main, whose next version is ready to be released."""
    folder = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", "--depth", "1", ROOT.as_uri(), str(folder))
    git(folder, "checkout", "--quiet", "-B", "main")
    change(folder / "pyproject.toml", r'^version = ".*"', f'version = "{VERSION}"')
    change(folder / "clients/python/pillion/__init__.py", r'^__version__ = ".*"', f'__version__ = "{VERSION}"')
    change(folder / "CHANGELOG.md", r"^## ", f"## {VERSION} - {TODAY}\n\n- Something new.\n\n## ")
    commit(folder)
    return folder


def test_it_builds_what_ships_and_tags_it(clone: Path) -> None:
    done = release(clone, "--skip-tests")
    assert done.returncode == 0, done.stdout + done.stderr
    assert git(clone, "cat-file", "-t", f"v{VERSION}") == "tag"
    assert git(clone, "rev-list", "-n", "1", f"v{VERSION}") == git(clone, "rev-parse", "HEAD")
    assert "- Something new." in git(clone, "tag", "--list", "--format=%(contents)", f"v{VERSION}")
    assert git(clone, "status", "--porcelain") == ""

    with zipfile.ZipFile(clone / "dist" / f"pillion-{VERSION}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"pillion-{VERSION}.dist-info/METADATA").decode()
    for folder in ("artifacts/examples", "bench/episodes"):
        shipped = git(clone, "ls-files", folder).splitlines()
        assert len(shipped) > 5
        inside = {"artifacts": "pillion_artifacts", "bench": "pillion_bench"}[folder.partition("/")[0]]
        assert {path.replace(folder.partition("/")[0], inside, 1) for path in shipped} <= names
    assert not [name for name in names if name.startswith(("tests", "tools", "locks"))]
    assert "Requires-Dist: msgspec>=" in metadata
    with tarfile.open(clone / "dist" / f"pillion-{VERSION}.tar.gz") as sdist:
        assert f"pillion-{VERSION}/hatch_build.py" in sdist.getnames()

    again = release(clone, "--skip-tests")
    assert (again.returncode, again.stderr) == (1, f"release: the tag v{VERSION} exists already\n")
    built = (clone / "dist" / f"pillion-{VERSION}-py3-none-any.whl").read_bytes()
    from_tag = release(clone, "--from-tag")
    assert from_tag.returncode == 0, from_tag.stderr
    assert (clone / "dist" / f"pillion-{VERSION}-py3-none-any.whl").read_bytes() == built


def leave_a_file(clone: Path) -> None:
    (clone / "notes.txt").write_text("mine")


def leave_main(clone: Path) -> None:
    git(clone, "checkout", "--quiet", "-b", "elsewhere")


def state_another_version(clone: Path) -> None:
    change(clone / "pyproject.toml", r'^version = ".*"', 'version = "9.8.6"')
    commit(clone)


def forget_the_client(clone: Path) -> None:
    change(clone / "clients/python/pillion/__init__.py", r'^__version__ = ".*"', '__version__ = "9.8.6"')
    commit(clone)


def change_the_changelog(heading: str) -> Callable[[Path], None]:
    def act(clone: Path) -> None:
        change(clone / "CHANGELOG.md", rf"^## {VERSION} - .*", heading)
        commit(clone)

    return act


def say_nothing(clone: Path) -> None:
    change(clone / "CHANGELOG.md", r"^- Something new\.\n", "")
    commit(clone)


def ship_the_index_alone(clone: Path) -> None:
    change(clone / "hatch_build.py", r'"(artifacts|pillion_artifacts)/examples"', r'"\1/examples/index.json"')
    commit(clone)


def ship_a_test(clone: Path) -> None:
    change(
        clone / "hatch_build.py",
        r'^( +)include\["bench/peers"\].*',
        r'\g<0>\n\1include["bench/README.md"] = "pillion_bench/README.md"',
    )
    commit(clone)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (leave_a_file, "the working tree is not clean:\n?? notes.txt"),
        (leave_main, "a release is made on main, this is elsewhere"),
        (state_another_version, "pyproject.toml says 9.8.6, not 9.8.7"),
        (forget_the_client, "pillion.__version__ is not 9.8.7"),
        (change_the_changelog("## 9.8.6 - 2020-01-01"), "CHANGELOG.md needs a section '## 9.8.7 - DATE' above all"),
        (change_the_changelog("## 9.8.7"), "expected '## 9.8.7 - YYYY-MM-DD', got the date ''"),
        (change_the_changelog("## 9.8.7 - tomorrow"), "expected '## 9.8.7 - YYYY-MM-DD', got the date 'tomorrow'"),
        (change_the_changelog("## 9.8.7 - 2999-01-01"), "CHANGELOG.md dates 9.8.7 into the future"),
        (say_nothing, "CHANGELOG.md says nothing about 9.8.7"),
        (ship_the_index_alone, "pillion-9.8.7-py3-none-any.whl lacks pillion_artifacts/examples/audit.jsonl"),
        (ship_a_test, "pillion-9.8.7-py3-none-any.whl must not hold pillion_bench/README.md (1 files)"),
    ],
)
def test_what_is_not_right_is_refused_and_not_tagged(
    clone: Path, spoil: Callable[[Path], None], complaint: str
) -> None:
    spoil(clone)
    done = release(clone, "--skip-tests")
    assert done.returncode == 1
    assert done.stderr.startswith("release: ")
    assert complaint in done.stderr
    assert git(clone, "tag", "--list") == ""


@pytest.mark.parametrize("version", ["1.2", "v1.2.3", "1.2.3rc1", "01.2.3", ""])
def test_a_version_has_three_numbers(clone: Path, version: str) -> None:
    done = release(clone, "--skip-tests", version=version)
    assert (done.returncode, done.stderr) == (1, f"release: VERSION must be x.y.z, got {version!r}\n")


def test_without_a_tag_nothing_is_built_from_one(clone: Path) -> None:
    done = release(clone, "--from-tag")
    assert (done.returncode, done.stderr) == (1, f"release: the tag v{VERSION} does not name this commit\n")


def test_a_failing_check_ends_it_before_anything_is_built(clone: Path) -> None:
    (clone / "Makefile").write_text("check:\n\t@echo this fails; false\ntest:\n")
    commit(clone)
    done = release(clone)
    assert done.returncode == 1
    assert "make check test failed (2)" in done.stderr
    assert not (clone / "dist").exists()
    assert git(clone, "tag", "--list") == ""
