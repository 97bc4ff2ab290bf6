"""Imports go one way, nothing heavy is on the client's path, and nothing here unpickles."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "pillion_protocol": ROOT / "protocol" / "pillion_protocol",
    "pillion": ROOT / "clients" / "python" / "pillion",
    "pillion_artifacts": ROOT / "artifacts" / "pillion_artifacts",
    "pilliond": ROOT / "daemon" / "pilliond",
    "pillion_bench": ROOT / "bench" / "pillion_bench",
}
MAY_IMPORT = {
    "pillion_protocol": set[str](),
    "pillion": {"pillion_protocol"},
    "pillion_artifacts": {"pillion_protocol"},
    "pilliond": {"pillion_protocol", "pillion_artifacts"},
    "pillion_bench": set(PACKAGES),
}
AS_ONE_MORE_CLIENT = {PACKAGES["pilliond"] / "kserve_line.py", PACKAGES["pilliond"] / "kserve_client.py"}
"""They go through the daemon's own data path, with the code that every client speaks the wire with."""
PUBLISHING = PACKAGES["pillion_artifacts"] / "publishing"
HEAVY = {"torch", "stable_baselines3", "sb3_contrib", "onnx", "onnxscript", "sklearn", "skl2onnx"}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def imported(package: str, without: Iterable[Path] = ()) -> set[str]:
    """The top-level modules that a package imports, in any function too; not those of the files and folders `without`."""
    names: set[str] = set()
    for file in PACKAGES[package].rglob("*.py"):
        if any(file.is_relative_to(each) for each in without):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_between_our_packages_go_one_way(package: str) -> None:
    assert imported(package, AS_ONE_MORE_CLIENT) & set(PACKAGES) <= MAY_IMPORT[package] | {package}


def test_the_serving_process_does_not_hold_the_client() -> None:
    code = "import sys, pilliond.serving.__main__, pilliond.staging.__main__; print(*sys.modules)"
    came = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(came.stdout.split())
    assert "pilliond.serving.loop" in loaded
    assert not loaded & {"pillion", "aiohttp", "pilliond.admin.kserve.data_path"}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_pickle_anywhere(package: str) -> None:
    assert not imported(package) & UNPICKLERS
    for file in PACKAGES[package].rglob("*.py"):
        assert "allow_pickle=True" not in file.read_text()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "load" and ast.unparse(node.value) == "torch":
                assert file.is_relative_to(PUBLISHING), file
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in [ast.unparse(keyword) for keyword in node.keywords], file


def test_the_client_and_the_wire_need_three_packages() -> None:
    outside = (imported("pillion") | imported("pillion_protocol")) - set(PACKAGES) - set(sys.stdlib_module_names)
    # click is the command line's, and only imported there.
    assert outside - {"click"} == {"msgspec", "numpy", "zmq"}


@pytest.mark.parametrize("package", ["pilliond", "pillion_artifacts"])
def test_the_default_path_needs_no_torch(package: str) -> None:
    assert not imported(package, without=[PUBLISHING]) & HEAVY


def test_what_publishes_is_not_imported_by_what_serves() -> None:
    served = "pillion_artifacts, pilliond.control, pilliond.serving.__main__, pilliond.settings.schema"
    code = f"import sys, {served}; print(*sys.modules)"
    came = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(came.stdout.split())
    assert "pilliond.serving.__main__" in loaded
    assert not loaded & HEAVY
    importers = {name for name in loaded if name.startswith("pillion_artifacts.publishing.")}
    assert {name.rpartition(".")[2] for name in importers} <= {"sources", "files", "limits"}
