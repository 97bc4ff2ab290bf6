"""The spawner: starts the serving process from a thread of its own, which stays as important as the daemon was started."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Spawner:
    """Owns the thread. `start` it before the others give way (see `turns`): a process that was nice cannot take that back.

    The kernel ends a child that asked to die with its parent when the thread that started it is gone (prctl(2)), so this one
    lives until `close`, which comes after the last child.
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
