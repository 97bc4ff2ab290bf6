"""Polls for an answer without sleeping, for a bounded time. Hot path."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


def spin(is_ready: Callable[[], object], busy_poll_ns: int) -> None:
    """Calls `is_ready` until it is true, for at most `busy_poll_ns`. Between two calls other threads of the core may run."""
    yield_core = os.sched_yield
    clock = time.monotonic_ns
    until_ns = clock() + busy_poll_ns
    while not is_ready() and clock() < until_ns:
        yield_core()
