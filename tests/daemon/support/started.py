"""Daemons that are to refuse their start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.harness import START_S_MAX


def refused_start(store: Path, policy: str, settings: Mapping[str, object]) -> tuple[int, str]:
    """Starts a daemon that must not start; returns its exit code and the last line that it wrote on standard error."""
    environment = {**os.environ, **{f"PILLION_{name.upper()}": str(value) for name, value in settings.items()}}
    command = [sys.executable, "-m", "pilliond", "--store", str(store), "--policy", policy, "--admin", ""]
    command += ["--listen", f"ipc://{store.parent / 'refused.sock'}"]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=START_S_MAX, cwd=store.parent, check=False
    )
    return result.returncode, result.stderr.splitlines()[-1]
