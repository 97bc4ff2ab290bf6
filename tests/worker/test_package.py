"""A worker needs numpy and the package of its engine, and runs on Python 3.9."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import WAIT_S_MAX
from tests.test_boundaries import PACKAGES
from tests.worker.support.policies import shipped
from tests.worker.support.processes import Host
from tests.worker.support.pythons import python_3_9

WORKER = PACKAGES["pillion_worker"]
ENGINES = WORKER / "engines"
OF_ENGINES = {
    ENGINES: {"interface.py"},
    WORKER / "onnx_engine": {"providers.py"},
    WORKER / "torch_engine": {"pt2_archive.py"},
}
"""Folders that need an engine's package, with the modules that do not."""
BEFORE_THE_ENGINE = [
    ".".join(file.relative_to(WORKER.parent).with_suffix("").parts)
    for file in sorted(WORKER.rglob("*.py"))
    if file.name != "__init__.py" and file.name in OF_ENGINES.get(file.parent, {file.name})
]


def loaded_by(python: str, modules: list[str]) -> set[str]:
    """The top-level modules that a fresh interpreter loads for these modules, beside those that it has anyway."""
    code = f"""
import json, sys
sys.path.insert(0, {str(WORKER.parent)!r})
before = set(sys.modules)
import {", ".join(modules)}
print(json.dumps(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})))
"""
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, timeout=WAIT_S_MAX)
    return set(json.loads(result.stdout))


def test_before_its_engine_a_worker_loads_the_standard_library_and_numpy() -> None:
    assert "pillion_worker.worker" in BEFORE_THE_ENGINE
    loaded = loaded_by(sys.executable, BEFORE_THE_ENGINE)
    assert "numpy" in loaded
    assert loaded - set(sys.stdlib_module_names) == {"pillion_worker", "numpy"}


def test_what_confines_a_worker_is_loaded_before_numpy() -> None:
    loaded = loaded_by(sys.executable, ["pillion_worker.__main__"])
    assert "pillion_worker" in loaded
    assert "numpy" not in loaded


def test_every_module_compiles_on_python_3_9() -> None:
    python = python_3_9()
    code = "import ast, sys; [ast.parse(open(file).read(), file) for file in sys.argv[1:]]"
    files = [str(file) for file in WORKER.rglob("*.py")]
    assert len(files) > 10
    subprocess.run([python, "-c", code, *files], check=True, timeout=WAIT_S_MAX)


def test_every_module_is_imported_on_python_3_9() -> None:
    assert "numpy" in loaded_by(python_3_9("numpy"), BEFORE_THE_ENGINE)


def test_a_worker_on_python_3_9_serves() -> None:
    python = python_3_9("numpy", "onnxruntime")
    policy = shipped("lunar-lander")
    with Host(policy) as host:
        host.attach(python=python)
        host.engine.wait_ready(WAIT_S_MAX)
        assert host.engine.describe()["python"].startswith("3.9.")
        (action,) = host.run([[0.0] * 8])
        assert 0 <= action < 4
    assert not host.losses


@pytest.mark.parametrize("file", sorted(ENGINES.glob("*.py")), ids=lambda file: file.name)
def test_each_engine_is_one_file(file: Path) -> None:
    if file.name not in ("__init__.py", "interface.py"):
        text = file.read_text()
        assert "\ndef load(model: Model, request: LoadRequest, meter: DeviceMeter | None = None)" in text
        assert "pillion_worker.engines" not in text
