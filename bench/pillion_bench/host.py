"""The machine that a figure was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe_host() -> dict[str, str | int]:
    """Returns the CPU model, the number of CPUs, and the versions of kernel and Python."""
    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count() or 1,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return models[0] if models else platform.machine()
