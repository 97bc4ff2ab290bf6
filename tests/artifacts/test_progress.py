"""The bar of long work: on a terminal it moves and is taken away again; into a pipe nothing of it is written."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

LONG_WORK = (
    "from pillion_artifacts.progress import LONG_BYTES, bytes_bar\n"
    "import sys, time\n"
    "with bytes_bar('verifying 2 versions', int(sys.argv[1])) as progress:\n"
    "    for _ in range(4):\n"
    "        progress(int(sys.argv[1]) // 4)\n"
    "        time.sleep(0.15)\n"
    "print('done')\n"
)
LONG, SHORT = "100000000", "1000"


def on_a_terminal(total_bytes: str) -> tuple[str, str]:
    """What the work writes to its output, a pipe, and to its errors, a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", LONG_WORK, total_bytes]
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


def test_on_a_terminal_a_bar_says_how_far_the_work_is() -> None:
    out, shown = on_a_terminal(LONG)
    assert out == "done\n"
    assert "verifying 2 versions" in shown
    done = [float(number) for number in re.findall(r"([0-9.]+)/100\.0 MB", shown)]
    assert done == sorted(done)
    assert done[-1] > done[0]


def test_work_that_is_over_at_once_shows_none() -> None:
    assert on_a_terminal(SHORT) == ("done\n", "")


def test_into_a_pipe_nothing_of_it_is_written() -> None:
    done = subprocess.run([sys.executable, "-c", LONG_WORK, LONG], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")
