"""The tests see nothing of their host: neither its variables nor its user's home, runtime folder and daemons."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

from pillion_protocol.default_addresses import runtime_folder
from tests.harness import ROOT, START_S_MAX

HOSTILE = {
    "HOME": "/nonexistent",
    "XDG_RUNTIME_DIR": "/nonexistent/run",
    "XDG_STATE_HOME": "/nonexistent/state",
    "TMPDIR": str(ROOT),
    "USER": "nobody-at-all",
    "PILLION_STORE__PATH": "/nonexistent/store",
    "PILLION_LIMITS__ROWS_MAX": "1",
    "PILLION_TOKEN": "secret",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
    "http_proxy": "http://127.0.0.1:1",
    "AWS_REGION": "mars",
    "NO_COLOR": "1",
    "COLUMNS": "20",
    "LC_ALL": "C",
    "NOTIFY_SOCKET": "/nonexistent/notify",
    "PYTHONDONTWRITEBYTECODE": "1",
}
SHOW = """
import json, os, sys, tempfile
from tests.isolation import isolate
with isolate():
    print(json.dumps([dict(os.environ), os.listdir(os.environ["HOME"]), tempfile.gettempdir(), sys.dont_write_bytecode]))
"""


def test_no_variable_of_the_host_reaches_a_test() -> None:
    result = subprocess.run(
        [sys.executable, "-c", SHOW], env={**os.environ, **HOSTILE}, cwd=ROOT, capture_output=True, text=True,
        timeout=START_S_MAX, check=True,
    )  # fmt: skip
    seen, at_home, temporary, is_compiled_anew = json.loads(result.stdout)
    assert not HOSTILE.items() & seen.items()
    assert set(HOSTILE) & set(seen) == {"HOME", "XDG_RUNTIME_DIR"}
    assert at_home == []
    assert not is_compiled_anew
    assert temporary != HOSTILE["TMPDIR"]
    assert not Path(seen["HOME"]).exists()


def test_this_process_is_isolated() -> None:
    user = pwd.getpwuid(os.getuid())
    assert Path.home() != Path(user.pw_dir)
    assert runtime_folder() != Path(f"/run/user/{user.pw_uid}/pillion")
    assert not {name for name in os.environ if name.startswith(("OTEL_", "AWS_", "LC_")) or name == "NO_COLOR"}
