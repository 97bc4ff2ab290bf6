"""Looking for an answer without sleeping, for as long as a caller wants to pay for it. Hot path."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


def spin(is_there: Callable[[], object], busy_poll_ns: int) -> None:
    """Asks `is_there` until it says so, or for `busy_poll_ns`; between two looks whoever shares the core may run."""
    give_way = os.sched_yield
    clock = time.monotonic_ns
    until_ns = clock() + busy_poll_ns
    while not is_there() and clock() < until_ns:
        give_way()
