"""`python -m pillion_worker FD PARENT_PID [ENGINE]`: one worker, on the channel FD, which dies with the process PARENT_PID.

With ENGINE it imports that engine before it is asked to load anything. The serving process has the other end of the channel.
The exit code is 0 when it is gone, 65 if the model was refused, 75 if the parent had ended already.
"""

from __future__ import annotations

import os
import platform
import socket
import sys

from pillion_worker.bootstrap import cure_of, refuse
from pillion_worker.sandbox import confine, die_with_parent, keep_to_the_log

_ENVIRONMENT = {
    # A batch is already as parallel as its settings say; more threads would only take cores away.
    "OPENBLAS_NUM_THREADS": "1",
    # Threads of OpenMP, which torch uses, would spin between batches and take a core from the simulator.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Newer builds of ONNX Runtime send telemetry every ten seconds, from threads of their own.
    "ORT_DISABLE_TELEMETRY": "1",
}


def main(arguments: list[str]) -> int:
    """Runs the worker; returns its exit code."""
    descriptor, parent_pid = int(arguments[0]), int(arguments[1])
    die_with_parent(parent_pid)
    keep_to_the_log()
    confinement = confine()
    # The kernel forgets the request where privileges change.
    die_with_parent(parent_pid)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # numpy starts threads, and then the process could not be confined any more.
    try:
        from pillion_worker.engines.interface import prepare
        from pillion_worker.worker import work
    except ImportError as error:
        why = f"a worker does not start on Python {platform.python_version()}: {error}{cure_of(error)}"
        return refuse(descriptor, why)

    with socket.socket(fileno=descriptor) as channel:
        try:
            for engine in arguments[2:]:
                prepare(engine)
            return work(channel, confinement)
        except (BrokenPipeError, ConnectionResetError):
            return os.EX_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
