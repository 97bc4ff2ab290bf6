"""Python 3.9, the oldest that a worker runs on, where the host has one."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest


@cache
def _find() -> str | None:
    """The path of an interpreter that starts: on PATH, or among those that pyenv keeps."""
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    kept = sorted(home.glob(".pyenv/versions/3.9*/bin/python3.9"))
    candidates = [shutil.which("python3.9"), *map(str, kept)]
    return next((path for path in candidates if path and _runs(path, "import sys")), None)


def _runs(python: str, code: str) -> bool:
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def python_3_9(*packages: str) -> str:
    """Returns the path of a Python 3.9 that has these packages; else skips the test, with a line that names what is missing."""
    python = _find()
    if python is None:
        pytest.skip("there is no python3.9")
    missing = [package for package in packages if not _runs(python, f"import {package}")]
    if missing:
        pytest.skip(f"python3.9 has no {' and no '.join(missing)}")
    return python
