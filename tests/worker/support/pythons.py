"""Other Pythons than the one of the tests, where the host has them."""

from __future__ import annotations

import os

import pytest

from tests.harness import ROOT
from tools.find_python import find_python, runs

FOREIGN = ROOT / ".venv-foreign" / "bin" / "python"
"""What `make foreign` installs: numpy 1 and jax, and nothing of ours."""


def python_of(version: str, *packages: str) -> str:
    """Returns the path of a Python of that version that has these packages; else skips the test, with a line that names what is missing.

    That of `make foreign`, if it has made an environment for that version.
    """
    made = ROOT / f".venv-foreign-{version}" / "bin" / "python"
    python = str(made) if made.exists() else find_python(version)
    if python is None:
        pytest.skip(f"there is no python{version}")
    missing = [package for package in packages if not runs(python, f"import {package}")]
    if missing:
        hint = ": make foreign" if (ROOT / "locks" / f"foreign-{version}.in").exists() else ""
        pytest.skip(f"{python} has no {' and no '.join(missing)}{hint}")
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
