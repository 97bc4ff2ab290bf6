"""Makes a release: checks that everything agrees, builds it from the commit, looks inside, and tags. It never pushes.

    make release VERSION=0.1.0                             # on main: checks, tests, builds, tags
    make release VERSION=0.1.0 RELEASE_ARGS=--skip-tests   # where CI has run them on this commit
    make release VERSION=0.1.0 RELEASE_ARGS=--from-tag     # builds what the tag v0.1.0 already names

What is built lies in dist/. Any check that fails ends it before the tag is made.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
BRANCH = "main"

SHIPPED = {
    "protocol/pillion_protocol": "pillion_protocol",
    "clients/python/pillion": "pillion",
    "daemon/pilliond": "pilliond",
    "daemon/pillion_worker": "pillion_worker",
    "artifacts/pillion_artifacts": "pillion_artifacts",
    "artifacts/examples": "pillion_artifacts/examples",
    "artifacts/examples.read-only": "pillion_artifacts/examples.read-only",
    "bench/pillion_bench": "pillion_bench",
    "bench/episodes": "pillion_bench/episodes",
    "bench/peers": "pillion_bench/peers",
}
"""Folders and files of the repository and where the wheel has them: every file that git tracks there, and nothing else."""


class ReleaseError(Exception):
    """Something speaks against the release; nothing was tagged."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Check, build and tag a release. It never pushes.")
    parser.add_argument("version", help="x.y.z")
    parser.add_argument("--skip-tests", action="store_true", help="do not run make check and make test")
    parser.add_argument("--from-tag", action="store_true", help="build what the tag already names; make no tag")
    options = parser.parse_args()
    try:
        release(options.version, skip_tests=options.skip_tests or options.from_tag, from_tag=options.from_tag)
    except ReleaseError as error:
        sys.exit(f"release: {error}")


def release(version: str, *, skip_tests: bool, from_tag: bool) -> None:
    """All of it, in order."""
    notes = check_sources(version)
    check_tree(version, from_tag=from_tag)
    if not skip_tests:
        run("make", "check", "test")
        check_tree(version, from_tag=from_tag)  # a test must leave no trace
    wheel, sdist = build(version)
    check_wheel(wheel, version)
    check_sdist(sdist, version)
    run(sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist))
    print(f"built {wheel.name} and {sdist.name} in {DIST.name}/")
    if not from_tag:
        run("git", "tag", "--annotate", f"v{version}", "--message", f"Pillion {version}\n\n{notes}")
        print(f"tagged v{version}; to publish it: git push origin {BRANCH} v{version}")


def check_sources(version: str) -> str:
    """Raises unless the sources say that version everywhere; returns what the changelog says of it."""
    if not re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", version):
        raise ReleaseError(f"VERSION must be x.y.z, got {version!r}")
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    if stated != version:
        raise ReleaseError(f"pyproject.toml says {stated}, not {version}")
    client = (ROOT / "clients/python/pillion/__init__.py").read_text()
    if f'__version__ = "{version}"' not in client:
        raise ReleaseError(f"pillion.__version__ is not {version}")
    return check_changelog((ROOT / "CHANGELOG.md").read_text(), version)


def check_changelog(text: str, version: str) -> str:
    """Raises unless the changelog's newest version is this one, with its date; returns its section."""
    sections = re.findall(r"^## (\S+)(?: - (\S+))?\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    released = [section for section in sections if section[0] != "Unreleased"]
    if not released or released[0][0] != version:
        newest = released[0][0] if released else "none"
        raise ReleaseError(
            f"CHANGELOG.md needs a section '## {version} - DATE' above all others, its newest is {newest}"
        )
    _, date, notes = released[0]
    try:
        is_past = datetime.date.fromisoformat(date) <= datetime.datetime.now(datetime.UTC).date()
    except ValueError:
        raise ReleaseError(f"CHANGELOG.md: expected '## {version} - YYYY-MM-DD', got the date {date!r}") from None
    if not is_past:
        raise ReleaseError(f"CHANGELOG.md dates {version} into the future: {date}")
    if not notes.strip():
        raise ReleaseError(f"CHANGELOG.md says nothing about {version}")
    return str(notes).strip()


def check_tree(version: str, *, from_tag: bool) -> None:
    """Raises unless everything is committed and the commit is the one to release."""
    if dirty := git("status", "--porcelain"):
        raise ReleaseError(f"the working tree is not clean:\n{dirty}")
    tag = f"v{version}"
    exists = bool(git("tag", "--list", tag))
    if from_tag:
        if not exists or git("rev-list", "-n", "1", tag) != git("rev-parse", "HEAD"):
            raise ReleaseError(f"the tag {tag} does not name this commit")
        return
    if exists:
        raise ReleaseError(f"the tag {tag} exists already")
    if (branch := git("branch", "--show-current")) != BRANCH:
        raise ReleaseError(f"a release is made on {BRANCH}, this is {branch or 'no branch'}")


def build(version: str) -> tuple[Path, Path]:
    """Builds the sdist from the commit's own files, and the wheel from the sdist; returns wheel and sdist."""
    shutil.rmtree(DIST, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "source.tar"
        sources = Path(folder) / "source"
        run("git", "archive", "--output", str(archive), "HEAD")
        with tarfile.open(archive) as files:
            files.extractall(sources, filter="data")
        # The same commit builds the same bytes.
        environment = {**os.environ, "SOURCE_DATE_EPOCH": git("log", "-1", "--format=%ct")}
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(DIST), str(sources)]
        run(*command, environment=environment)
    wheel = DIST / f"pillion-{version}-py3-none-any.whl"
    sdist = DIST / f"pillion-{version}.tar.gz"
    built = sorted(path.name for path in DIST.iterdir())
    if built != sorted([wheel.name, sdist.name]):
        raise ReleaseError(f"expected {wheel.name} and {sdist.name}, got {', '.join(built)}")
    return wheel, sdist


def check_wheel(wheel: Path, version: str) -> None:
    """Raises unless the wheel holds exactly what git tracks of what ships, and its client imports."""
    expected = {target + path.removeprefix(folder) for folder, target in SHIPPED.items() for path in tracked(folder)}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.startswith(f"pillion-{version}.dist-info/")}
        check_same(wheel.name, held, expected)
        for folder, target in SHIPPED.items():
            for path in tracked(folder):
                if archive.read(target + path.removeprefix(folder)) != (ROOT / path).read_bytes():
                    raise ReleaseError(f"{wheel.name} holds another {path}")
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r}); import pillion; print(pillion.__version__, pillion.__file__)"
    )
    printed = run(sys.executable, "-I", "-c", code)
    if not printed.startswith(f"{version} {wheel}"):
        raise ReleaseError(f"the client in {wheel.name} is not {version}: {printed}")


def check_sdist(sdist: Path, version: str) -> None:
    """Raises unless the sdist holds what the wheel is made from, the licence, and no file that git does not track."""
    with tarfile.open(sdist) as archive:
        held = {member.name.removeprefix(f"pillion-{version}/") for member in archive.getmembers() if member.isfile()}
    everything = set(tracked(".")) | {"PKG-INFO"}
    needed = {path for folder in SHIPPED for path in tracked(folder)}
    needed |= {"pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "CHANGELOG.md"}
    check_same(sdist.name, held, needed | (held & everything))


def check_same(name: str, held: set[str], expected: set[str]) -> None:
    """Raises where an archive holds other files than it should."""
    if missing := sorted(expected - held):
        raise ReleaseError(f"{name} lacks {', '.join(missing[:5])} ({len(missing)} files)")
    if surplus := sorted(held - expected):
        raise ReleaseError(f"{name} must not hold {', '.join(surplus[:5])} ({len(surplus)} files)")


def tracked(folder: str) -> list[str]:
    """The files in a folder of the repository that git tracks."""
    return git("ls-files", "--", folder).splitlines()


def git(*arguments: str) -> str:
    """What a git command prints."""
    return run("git", *arguments)


def run(*command: str, environment: dict[str, str] | None = None) -> str:
    """Runs a command; returns what it prints. Raises with all its output where it fails."""
    shows = command[0] == "make"
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=None if shows else subprocess.PIPE,
        stderr=None if shows else subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ReleaseError(f"{' '.join(command)} failed ({done.returncode})\n{done.stdout or ''}")
    return (done.stdout or "").strip()


if __name__ == "__main__":
    main()
