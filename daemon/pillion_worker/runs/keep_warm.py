"""Keeps a device warm that slows down when it idles: runs something now and then while no batch comes."""

from __future__ import annotations

import contextlib
import select
import sys
from collections.abc import Callable

from pillion_worker.doorbell import wait_for_rings
from pillion_worker.errors import EngineError, one_line


class KeepWarm:
    """Waits for rings as `wait_for_rings` does, and calls `run` whenever none has come for `every_ms`.

    A batch that comes meanwhile waits for the end of that run. One that fails is the last; the log says so.
    """

    def __init__(self, run: Callable[[], None], every_ms: int) -> None:
        self._run = run
        self._every_ms: int | None = every_ms

    def wait_for_rings(self, descriptor: int) -> int:
        """As `wait_for_rings`."""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not poll.poll(self._every_ms):
            self._tick()
        return wait_for_rings(descriptor)

    def _tick(self) -> None:
        try:
            self._run()
        except EngineError as error:
            # The next batch says the same, if it is more than this run's bad luck.
            self._every_ms = None
            with contextlib.suppress(OSError):
                print(f"the device is not kept warm any more: {one_line(error)}", file=sys.stderr, flush=True)
