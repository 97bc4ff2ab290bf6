"""What the client brings along, and what it does not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib

import pytest

import pillion
from tests.harness import ROOT

LOADED = """
import json, sys
before = set(sys.modules)
import pillion{submodule}
pillion.connect, pillion.Policy, pillion.PillionError
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def modules_of(submodule: str = "") -> set[str]:
    """What importing the client in a fresh interpreter brings into `sys.modules`."""
    script = LOADED.format(submodule=submodule)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout))


def test_the_client_imports_numpy_pyzmq_and_msgspec_and_nothing_else_beside_the_standard_library() -> None:
    packages = {name.partition(".")[0] for name in modules_of(".carriers.zmq")}
    beside = {
        name for name in packages - sys.stdlib_module_names if not name.startswith(("_cython_", "cython_runtime", "__"))
    }
    # msgspec imports typing_extensions where it happens to be installed, and does without where it is not.
    assert beside - {"typing_extensions"} == {"pillion", "pillion_protocol", "numpy", "zmq", "msgspec"}


def test_the_blocking_client_does_not_import_asyncio() -> None:
    assert not {"asyncio", "pillion.aio", "zmq.asyncio"} & modules_of()
    assert {"asyncio", "pillion.aio"} <= modules_of(".aio")


def test_the_client_does_not_import_the_daemon_or_torch() -> None:
    for submodule in ("", ".aio", ".policy"):
        packages = {name.partition(".")[0] for name in modules_of(submodule)}
        unwanted = {"pilliond", "pillion_artifacts", "torch", "onnxruntime", "aiohttp", "click", "yaml", "uvloop"}
        assert not packages & unwanted


def test_asyncio_is_there_at_its_first_use_without_an_import_of_its_own() -> None:
    assert callable(pillion.aio.connect)
    with pytest.raises(AttributeError, match="no attribute 'trio'"):
        pillion.trio  # noqa: B018


def test_the_base_dependencies_are_three_without_an_upper_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=!~ ;\[]", dependency)[0] for dependency in project["dependencies"]}
    assert names == {"msgspec", "numpy", "pyzmq"}
    assert not [dependency for dependency in project["dependencies"] if re.search(r"<|==|~=|!=", dependency)]
    assert project["version"] == pillion.__version__


def test_everything_public_has_a_name_in_all_and_a_docstring() -> None:
    for name in pillion.__all__:
        assert getattr(pillion, name).__doc__
