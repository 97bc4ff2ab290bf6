"""The progress bar of long work: a terminal shows it while the work runs; a pipe gets nothing of it."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.terminal import on_a_terminal

LONG_WORK = (
    "from pillion_artifacts.cli.progress import bytes_bar\n"
    "import sys, time\n"
    "with bytes_bar('verifying 2 versions', int(sys.argv[1])) as progress:\n"
    "    for _ in range(4):\n"
    "        progress(int(sys.argv[1]) // 4)\n"
    "        time.sleep(0.15)\n"
    "print('done')\n"
)
LONG, SHORT = "100000000", "1000"


def worked(total_bytes: str) -> tuple[str, str]:
    return on_a_terminal([sys.executable, "-c", LONG_WORK, total_bytes])


def test_on_a_terminal_a_bar_shows_the_progress() -> None:
    out, shown = worked(LONG)
    assert out == "done\n"
    assert "verifying 2 versions" in shown
    done = [float(number) for number in re.findall(r"([0-9.]+)/100\.0 MB", shown)]
    assert done == sorted(done)
    assert done[-1] > done[0]


def test_short_work_shows_no_bar() -> None:
    assert worked(SHORT) == ("done\n", "")


def test_a_pipe_gets_no_bar() -> None:
    done = subprocess.run([sys.executable, "-c", LONG_WORK, LONG], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")
