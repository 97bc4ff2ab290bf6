"""Finds another Python of this machine: `python find_python.py 3.9` prints its path, or nothing."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path


@cache
def find_python(version: str) -> str | None:
    """The path of an interpreter of that version, such as 3.9, that starts: on PATH, or among those that pyenv keeps."""
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    kept = sorted(home.glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    candidates = [shutil.which(f"python{version}"), *map(str, kept)]
    return next((path for path in candidates if path and runs(path, "import sys")), None)


@cache
def runs(python: str, code: str) -> bool:
    """Whether an interpreter runs this code without an error."""
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    print(find_python(sys.argv[1]) or "")
