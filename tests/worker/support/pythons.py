"""Other Pythons than the one of the tests, where the host has them."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.harness import ROOT

FOREIGN = ROOT / ".venv-foreign" / "bin" / "python"
"""What `make foreign` installs: numpy 1 and jax, and nothing of ours."""


@cache
def find_python(version: str) -> str | None:
    """The path of an interpreter of that version, such as 3.9, that starts: on PATH, or among those that pyenv keeps."""
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    kept = sorted(home.glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    candidates = [shutil.which(f"python{version}"), *map(str, kept)]
    return next((path for path in candidates if path and _runs(path, "import sys")), None)


@cache
def _runs(python: str, code: str) -> bool:
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def python_of(version: str, *packages: str) -> str:
    """Returns the path of a Python of that version that has these packages; else skips the test, with a line that names what is missing."""
    python = find_python(version)
    if python is None:
        pytest.skip(f"there is no python{version}")
    missing = [package for package in packages if not _runs(python, f"import {package}")]
    if missing:
        pytest.skip(f"python{version} has no {' and no '.join(missing)}")
    return python


def python_3_9(*packages: str) -> str:
    """As `python_of`, for the oldest Python that a worker runs on."""
    return python_of("3.9", *packages)


def foreign_python() -> str:
    """Returns the interpreter of `make foreign`; else skips the test, or fails it where CI has installed everything."""
    if not FOREIGN.exists():
        message = "the foreign interpreter is missing: make foreign"
        if os.environ.get("PILLION_REQUIRE_SYSTEM_PACKAGES"):
            pytest.fail(message)
        pytest.skip(message)
    return str(FOREIGN)
