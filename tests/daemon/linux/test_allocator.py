"""Memory that was freed goes back to the kernel."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FREED = """
import os
from pathlib import Path
from pilliond.linux.allocator import return_freed_memory

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1_000_000

# Each is small enough for the heap, and the last one keeps the heap from shrinking by itself.
blocks = [bytes(60_000) for _ in range(1_000)]
del blocks[:-1]
kept_mb = resident_mb()
return_freed_memory()
print(kept_mb - resident_mb())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library decides by itself")
def test_freed_memory_is_returned_to_the_kernel() -> None:
    result = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(result.stdout) > 30
