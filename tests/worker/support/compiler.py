"""The C++ compiler that programs are compiled with."""

from __future__ import annotations

import os
import shutil

import pytest

COMPILER = "g++"


def needs_compiler() -> None:
    """Skips the test where there is no compiler, or fails it where CI has installed everything."""
    if shutil.which(COMPILER) is None:
        message = f"{COMPILER} is missing: apt-get install g++"
        if os.environ.get("PILLION_REQUIRE_SYSTEM_PACKAGES"):
            pytest.fail(message)
        pytest.skip(message)
