"""How a worker process is started, with the daemon's own interpreter or with another one that the settings name; how it ended."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from typing import Final

import pillion_worker
from pilliond.ipc.loss_cause import WORKER_ENDED
from pilliond.limits import INTERPRETER_CHECK_BYTES_MAX, INTERPRETER_CHECK_S_MAX, WORKER_END_S_MAX
from pilliond.linux.group_command import CANNOT_START
from pilliond.linux.process_group import kill_group, wait_unreaped
from pilliond.linux.sandbox import CHILD_ENVIRONMENT

_BOOTSTRAP: Final = os.path.join(pillion_worker.__path__[0], "bootstrap.py")
_OF_OUR_PYTHON: Final = ("PYTHONPATH", "PYTHONHOME", "PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV")
"""What the daemon's own interpreter was started with: it would lead another one to the wrong packages."""

_HUGE_PAGES: Final = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Large allocations, such as weights, ask for transparent huge pages: a page fault for each 4 KiB takes most of a load."""


def worker_command(python: str, descriptor: int, engine: str = "") -> list[str]:
    """Returns the command of a worker with that end of a channel. `python` is `engine.python`.

    It imports the module `engine` of `pillion_worker.engines` before it is asked to load anything; none if it is empty.
    """
    program = [python, _BOOTSTRAP] if python else [sys.executable, "-P", "-m", "pillion_worker"]
    return [*program, str(descriptor), str(os.getpid()), *([engine] if engine else [])]


def worker_environment(python: str) -> dict[str, str]:
    """Returns the environment of a worker."""
    inherited = {name: value for name, value in os.environ.items() if not python or name not in _OF_OUR_PYTHON}
    return {**_HUGE_PAGES, **inherited, **CHILD_ENVIRONMENT}


def with_exit_status(reason: str, process: subprocess.Popen[bytes] | None) -> str:
    """Returns why a worker was lost; where all that is known is that it ended, with its exit code or the signal that killed it.

    Waits for the exit code, for `WORKER_END_S_MAX` at most: a worker may close its channel and go on. Does not reap it.
    """
    if process is None or reason != WORKER_ENDED:
        return reason
    code = wait_unreaped(process, WORKER_END_S_MAX)
    if code is None:
        return reason
    return f"{WORKER_ENDED} with exit code {code}" if code >= 0 else f"its worker was killed by {_signal_name(-code)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        # Most real-time signals have no name.
        return f"signal {number}"


def why_no_workers(python: str) -> str:
    """Returns why an interpreter cannot run workers; empty if it can. Starts it, and waits until it has imported numpy."""
    if os.path.isdir(python):
        return f"engine.python: expected an interpreter, such as {python}/bin/python, got the folder {python}"
    leader = [sys.executable, "-P", "-m", "pilliond.linux.group_command", str(os.getpid()), ",".join(_OF_OUR_PYTHON)]
    try:
        code, output, errors = _ends_of_output([*leader, python, _BOOTSTRAP, "--check"])
    except OSError as error:
        return f"engine.python: cannot start {python}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"engine.python: {python} did not answer within {INTERPRETER_CHECK_S_MAX:g} s: is it Python?"
    try:
        said = json.loads(output.splitlines()[-1])
        if code == CANNOT_START and "cannot_start" in said:
            return f"engine.python: cannot start {python}: {said['cannot_start']}"
        why_not = said["why_not"]
    except (ValueError, LookupError, TypeError):
        last_line = (errors.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1]
        return f"engine.python: expected Python 3.9 or later, got {python}, which ended with {code}: {last_line}"
    return f"engine.python: {python}: {why_not}" if why_not else ""


def _ends_of_output(command: list[str]) -> tuple[int, bytes, bytes]:
    """Runs a command that leads a process group; returns its exit code, and the ends of its output and of its errors.

    Nothing of the group is left then. Raises `OSError` and `TimeoutExpired`.

    What is no Python may write for ever, and `subprocess.run` would keep all of it.
    """
    until_s = time.monotonic() + INTERPRETER_CHECK_S_MAX
    pipe, nothing, environment = subprocess.PIPE, subprocess.DEVNULL, {**os.environ, **CHILD_ENVIRONMENT}
    with (
        subprocess.Popen(command, stdin=nothing, stdout=pipe, stderr=pipe, env=environment, process_group=0) as process,
        selectors.DefaultSelector() as selector,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        ends = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
        for descriptor in ends:
            selector.register(descriptor, selectors.EVENT_READ)
        try:
            while selector.get_map():
                ready = selector.select(until_s - time.monotonic())
                if time.monotonic() >= until_s:
                    raise subprocess.TimeoutExpired(command, INTERPRETER_CHECK_S_MAX)
                for key, _ in ready:
                    if piece := os.read(key.fd, INTERPRETER_CHECK_BYTES_MAX):
                        ends[key.fd] = (ends[key.fd] + piece)[-INTERPRETER_CHECK_BYTES_MAX:]
                    else:
                        selector.unregister(key.fd)
            code = process.wait(max(0.0, until_s - time.monotonic()))
        finally:
            kill_group(process)
        output, errors = ends.values()
        return code, output, errors
