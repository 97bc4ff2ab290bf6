"""Which packages the client imports, and which it does not."""

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
    """Returns the modules that importing the client adds in a fresh interpreter."""
    script = LOADED.format(submodule=submodule)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout))


def test_the_client_imports_only_numpy_pyzmq_and_msgspec_besides_the_standard_library() -> None:
    packages = {name.partition(".")[0] for name in modules_of(".carriers.zmq")}
    besides = {
        name for name in packages - sys.stdlib_module_names if not name.startswith(("_cython_", "cython_runtime", "__"))
    }
    # msgspec imports typing_extensions if it happens to be installed, and works without it.
    assert besides - {"typing_extensions"} == {"pillion", "pillion_protocol", "numpy", "zmq", "msgspec"}


def test_the_blocking_client_does_not_import_asyncio() -> None:
    assert not {"asyncio", "pillion.aio", "zmq.asyncio"} & modules_of()
    assert {"asyncio", "pillion.aio"} <= modules_of(".aio")


def test_the_client_does_not_import_the_daemon_or_torch() -> None:
    for submodule in ("", ".aio", ".policy"):
        packages = {name.partition(".")[0] for name in modules_of(submodule)}
        unwanted = {"pilliond", "pillion_artifacts", "torch", "onnxruntime", "aiohttp", "click", "yaml", "uvloop"}
        assert not packages & unwanted


def test_the_asyncio_client_is_imported_at_its_first_use() -> None:
    assert callable(pillion.aio.connect)
    with pytest.raises(AttributeError, match="no attribute 'trio'"):
        pillion.trio  # noqa: B018


def test_there_are_three_base_dependencies_without_an_upper_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=!~ ;\[]", dependency)[0] for dependency in project["dependencies"]}
    assert names == {"msgspec", "numpy", "pyzmq"}
    assert not [dependency for dependency in project["dependencies"] if re.search(r"<|==|~=|!=", dependency)]
    assert project["version"] == pillion.__version__


def test_everything_public_has_a_name_in_all_and_a_docstring() -> None:
    for name in pillion.__all__:
        assert getattr(pillion, name).__doc__
