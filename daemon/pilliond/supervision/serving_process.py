"""A serving process as it is started: it imports its modules, and then waits for its `StartupConfig`."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

from pilliond.ipc.control_channel import INLINE, make_channel
from pilliond.linux.sandbox import CHILD_ENVIRONMENT
from pilliond.linux.spawner import Spawner

_COMMAND: Final = [sys.executable, "-P", "-m", "pilliond.serving"]


class ServingProcess:
    """Owns the process and this side's `end` of its channel, until somebody takes them over. Raises `OSError`.

    The first one is started before this process reads a policy: both then do at once what takes either of them long.
    Only if it `may_run_inline`, it imports ONNX Runtime, too.
    """

    def __init__(self, spawner: Spawner, *, may_run_inline: bool) -> None:
        self.end, serving_end = make_channel()
        try:
            with serving_end:
                self.process = spawner.spawn(
                    [*_COMMAND, str(serving_end.fileno()), str(os.getpid()), *([INLINE] if may_run_inline else [])],
                    pass_fds=[serving_end.fileno()],
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **CHILD_ENVIRONMENT},
                )
        except BaseException:
            self.end.close()
            raise

    def close(self) -> None:
        """Kills the process, and waits until it has ended. Safe to repeat."""
        self.end.close()
        self.process.kill()
        self.process.wait()
