"""Runs a worker with an interpreter that has nothing of ours: `PYTHON bootstrap.py FD PARENT_PID`.

The daemon's interpreter keeps this package beside all others of the daemon. None of those may get onto the path of the
other interpreter, so the package is loaded from its folder alone. `PYTHON bootstrap.py --check` only says, as JSON, whether
a worker could run: `{"python": "3.12.1", "why_not": ""}`.

Every Python 3 must be able to read this file, so that one that is too old can say so.
"""

import importlib.util
import json
import os
import platform
import socket
import sys

_OLDEST = (3, 9)
_PACKET_BYTES = 128 * 1024
_FOLDER = os.path.dirname(os.path.abspath(__file__))


def load_package() -> None:
    """Loads `pillion_worker` from this folder. A package of that name that the interpreter has is not touched."""
    spec = importlib.util.spec_from_file_location(
        "pillion_worker", os.path.join(_FOLDER, "__init__.py"), submodule_search_locations=[_FOLDER]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["pillion_worker"] = package
    spec.loader.exec_module(package)


def why_not() -> str:
    """Returns why no worker can run here; empty if one can. Imports numpy."""
    if sys.version_info < _OLDEST:
        return "it is Python {}, expected 3.9 or later".format(platform.python_version())  # noqa: UP032
    try:
        import pillion_worker.worker  # noqa: F401
    except Exception as error:  # noqa: BLE001 - a package that is broken fails in its own ways
        return "it is Python {}, and a worker does not start there: {}: {}{}".format(  # noqa: UP032
            platform.python_version(), type(error).__name__, error, cure_of(error)
        )
    return ""


def cure_of(error: Exception) -> str:
    """Returns the command that installs numpy here, for the end of a message, if an import failed for it; else empty."""
    is_missing = isinstance(error, ModuleNotFoundError) and error.name == "numpy"
    return ": {} -m pip install numpy".format(sys.executable) if is_missing else ""  # noqa: UP032


def main(arguments: "list[str]") -> int:
    """Runs a worker, or checks whether one could run; returns the exit code."""
    # The folder of this file is not for imports: it would hide modules of other packages.
    if not sys.flags.isolated and not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    load_package()
    if arguments == ["--check"]:
        print(json.dumps({"python": platform.python_version(), "why_not": why_not()}))
        return 0
    if sys.version_info < _OLDEST:
        return refuse(int(arguments[0]), why_not())
    from pillion_worker.__main__ import main as run

    return run(arguments)


def refuse(descriptor: int, reason: str) -> int:
    """Tells the daemon why no worker runs here; returns the exit code."""
    with socket.socket(fileno=descriptor) as channel:
        # Closing a channel with an unread request would drop the answer.
        channel.recv(_PACKET_BYTES)
        channel.send(json.dumps({"type": "failed", "message": "engine.python: " + reason}).encode())
    return os.EX_DATAERR


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
