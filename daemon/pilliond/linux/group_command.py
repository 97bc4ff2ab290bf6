"""`python -m pilliond.linux.group_command PARENT_PID NAME,NAME… PROGRAM …`: becomes a program that is not ours.

The program dies with the process PARENT_PID, and the group that this process was started to lead dies with the program. It
does not get the variables NAME. If it cannot be started, the exit code is 126 and the output `{"cannot_start": "why"}`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Final

from pillion_worker.sandbox import die_with_parent, end_group_with_leader

CANNOT_START: Final = 126
"""The exit code, as a shell has it."""


def main(arguments: list[str]) -> int:
    """Becomes the program; returns an exit code if it cannot."""
    parent_pid, names, *command = arguments
    die_with_parent(int(parent_pid))
    end_group_with_leader()
    environment = {name: value for name, value in os.environ.items() if name not in names.split(",")}
    try:
        os.execve(command[0], command, environment)  # noqa: S606 - no shell is wanted
    except OSError as error:
        print(json.dumps({"cannot_start": error.strerror}))
        return CANNOT_START


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
