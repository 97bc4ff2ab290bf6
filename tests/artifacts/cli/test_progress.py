"""The bar of long work: on a terminal it moves and is taken away again; into a pipe nothing of it is written."""

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


def test_on_a_terminal_a_bar_says_how_far_the_work_is() -> None:
    out, shown = worked(LONG)
    assert out == "done\n"
    assert "verifying 2 versions" in shown
    done = [float(number) for number in re.findall(r"([0-9.]+)/100\.0 MB", shown)]
    assert done == sorted(done)
    assert done[-1] > done[0]


def test_work_that_is_over_at_once_shows_none() -> None:
    assert worked(SHORT) == ("done\n", "")


def test_into_a_pipe_nothing_of_it_is_written() -> None:
    done = subprocess.run([sys.executable, "-c", LONG_WORK, LONG], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")
