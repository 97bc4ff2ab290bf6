"""The spawner: starts child processes from a thread that keeps the priority with which the daemon was started."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Spawner:
    """Owns the thread. `start` it before the process lowers its priority (see `cpu_priority`): that cannot be undone.

    A child that asked to die with its parent is killed when the thread that started it ends (prctl(2)). So the thread
    lives until `close`, which must come after the last child.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "spawner")

    def start(self) -> None:
        """Starts the thread."""
        self._thread.submit(int).result()

    def spawn(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Starts a process; `options` are those of `subprocess.Popen`. Raises what that raises."""
        return self._thread.submit(lambda: subprocess.Popen(command, **options)).result()

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown()
