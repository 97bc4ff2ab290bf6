"""Keeps the tests away from their host: its settings, its user's home and the daemons that run there."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

_KEPT = {
    "PATH",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PYTHONPYCACHEPREFIX",
    "PILLION_REQUIRE_SYSTEM_PACKAGES",
    "PILLION_SHARED_POLICIES",
    "PILLION_TEST_TIME_UNIT_S",
}
_KEPT_PREFIXES = ("COV_", "COVERAGE_", "PYTEST_")


def isolate() -> tempfile.TemporaryDirectory[str]:
    """Gives this process and its children an environment of the tests' own; the caller removes the folder.

    It has an empty home and a runtime folder that no daemon listens in. No variable that
    Pillion, a library or a terminal reads reaches a test: `PILLION_…`, `XDG_…`, `OTEL_…`, `NO_COLOR`, proxies, credentials, `TMPDIR`, `USER`.
    """
    for name in set(os.environ) - _KEPT:
        if not name.startswith(_KEPT_PREFIXES):
            del os.environ[name]
    # The suite starts some thousand Python processes: each would compile the daemon anew.
    sys.dont_write_bytecode = False
    tempfile.tempdir = None  # so that TMPDIR is forgotten
    own = tempfile.TemporaryDirectory(prefix="pillion-tests-")
    for name, folder in (("HOME", "home"), ("XDG_RUNTIME_DIR", "run")):
        path = Path(own.name, folder)
        path.mkdir(mode=0o700)
        os.environ[name] = str(path)
    os.environ["LANG"] = "C.UTF-8"
    os.umask(0o022)
    # a shell that starts the tests in the background ignores it, and then so would every child
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return own
