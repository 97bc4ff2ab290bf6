"""A terminal for what commands show to people alone."""

from __future__ import annotations

import os
import pty
import subprocess


def on_a_terminal(command: list[str]) -> tuple[str, str]:
    """What a command that ends well writes to its output, a pipe, and to its errors, a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment) as process:
        os.close(theirs)
        shown = b""
        # A terminal whose other side is closed reads as an error.
        while part := _read(ours):
            shown += part
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    return out, shown.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:
        return b""
