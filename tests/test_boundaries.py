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
    "pillion_worker": ROOT / "daemon" / "pillion_worker",
    "pilliond": ROOT / "daemon" / "pilliond",
    "pillion_bench": ROOT / "bench" / "pillion_bench",
}
CLI_SUPPORT = "pillion.cli_support"
"""The plumbing of every command line. It lies in the client because that is the only package that all others see, and
it imports nothing of the client."""
MAY_IMPORT = {
    "pillion_protocol": set[str](),
    "pillion": {"pillion_protocol", CLI_SUPPORT},
    "pillion_artifacts": {"pillion_protocol", "pillion_worker", CLI_SUPPORT},
    "pillion_worker": set[str](),
    "pilliond": {"pillion_protocol", "pillion_artifacts", "pillion_worker", CLI_SUPPORT},
    "pillion_bench": {*PACKAGES, CLI_SUPPORT},
}
COMMAND_LINES = {
    "pillion_artifacts": PACKAGES["pillion_artifacts"] / "cli",
    "pilliond": PACKAGES["pilliond"] / "commands",
}
"""The only rooms of these packages that import `CLI_SUPPORT`."""
AS_ONE_MORE_CLIENT = {PACKAGES["pilliond"] / "admin" / "kserve"}
"""KServe goes through the daemon's own data path, with the code that every client speaks the wire with."""
FLOORS = {
    "pilliond": [
        ["__main__"],
        ["control"],
        ["admin"],
        ["admin/v1", "admin/kserve", "admin/monitoring", "commands", "serving"],
        ["admin/http", "core"],
        ["policy_rollout"],
        ["rollout"],
        ["shadow", "staging", "supervision", "transport"],
        ["versions"],
        ["engine"],
        ["engine/checks"],
        ["ipc"],
        ["settings", "linux"],
        ["limits", "traffic_split", "errors"],
        ["__init__"],
    ],
    "pillion_artifacts": [
        ["cli"],
        ["maintenance", "remotes", "__init__"],
        ["verify"],
        ["store"],
        ["publishing"],
        ["publishing/sb3", "publishing/torch"],
        ["publishing/onnx"],
        ["publishing/common"],
        ["oci", "card"],
        ["formats"],
        ["names", "yaml_text"],
        ["errors", "limits", "version_range", "json_schema", "validation_text"],
    ],
    "pillion_bench": [
        ["cli"],
        ["compare"],
        ["measurements/engines"],
        ["measurements"],
        ["roles"],
        ["recordings"],
        ["process"],
        ["variants", "tables", "torch_policies"],
        ["shipped", "errors", "exchange", "host", "percentiles", "progress"],
        ["limits", "__init__"],
    ],
}
"""The rooms of each package, and the modules beside them, top down: an import may only point to a lower floor."""

PLANES = [
    {"core", "serving", "transport", "engine"},
    {"rollout", "supervision", "admin", "commands"},
]
"""The data plane and the control plane: neither imports the other. They meet in `ipc`, `versions` and below."""

MODULES_MAX = 15
"""Of one folder, without its `__init__.py`."""

PUBLISHING = PACKAGES["pillion_artifacts"] / "publishing"
HEAVY = {"torch", "stable_baselines3", "sb3_contrib", "onnx", "onnxscript", "sklearn", "skl2onnx"}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def imported(package: str, without: Iterable[Path] = ()) -> set[str]:
    """The top-level modules that a package imports, in any function too; not those of the files and folders `without`.

    `CLI_SUPPORT` counts as a module of its own.
    """
    files = [file for file in PACKAGES[package].rglob("*.py") if not any(file.is_relative_to(each) for each in without)]
    return {name for file in files for name in imported_by(file)}


def imported_by(file: Path) -> set[str]:
    """The top-level modules that a file imports, and `CLI_SUPPORT`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    is_support = {name for name in names if f"{name}.".startswith(f"{CLI_SUPPORT}.")}
    return {name.split(".")[0] for name in names - is_support} | ({CLI_SUPPORT} if is_support else set())


def room_of(package: str, file: Path) -> str:
    """The folder of a module in its package, or its own name where it lies beside the rooms."""
    inside = file.relative_to(PACKAGES[package])
    return inside.stem if len(inside.parts) == 1 else inside.parent.as_posix()


def room_imports(package: str) -> dict[tuple[str, str], str]:
    """Each pair of different rooms of which the first imports the second, with the module that does."""
    base = PACKAGES[package]
    found = {}
    for file in base.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                top, *parts = name.split(".")
                if top == package:
                    room, other = room_of(package, file), room_of(package, module_of(base, parts))
                    if room != other:
                        found[room, other] = file.relative_to(base).as_posix()
    return found


def module_of(base: Path, parts: list[str]) -> Path:
    """The file of the module that a dotted name below `base` stands for, or holds."""
    for length in range(len(parts), 0, -1):
        path = base.joinpath(*parts[:length])
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
        if (path / "__init__.py").is_file():
            return path / "__init__.py"
    return base / "__init__.py"


@pytest.mark.parametrize("package", FLOORS)
def test_imports_between_rooms_point_to_a_lower_floor(package: str) -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS[package]) for room in rooms}
    files = [file for file in PACKAGES[package].rglob("*.py") if "examples" not in file.parts]
    assert {room_of(package, file) for file in files} == set(floor), "a room without a floor, or a floor without a room"
    imports = room_imports(package)
    assert imports
    upwards = {pair: where for pair, where in imports.items() if floor[pair[0]] >= floor[pair[1]]}
    assert not upwards


def test_data_plane_and_control_plane_do_not_import_each_other() -> None:
    data, control = PLANES
    for (room, other), where in room_imports("pilliond").items():
        halves = {room.split("/")[0], other.split("/")[0]}
        assert not (halves & data and halves & control), f"{where} imports {other}"


def test_no_folder_holds_more_modules_than_one_can_take_in() -> None:
    roots = [*PACKAGES.values(), ROOT / "tests", ROOT / "bench" / "peers", ROOT / "artifacts" / "training"]
    for folder in {file.parent for root in roots for file in root.rglob("*.py")}:
        modules = [file.name for file in folder.glob("*.py") if file.name != "__init__.py"]
        assert len(modules) <= MODULES_MAX, f"{folder.relative_to(ROOT)}: {len(modules)} modules"


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_between_our_packages_go_one_way(package: str) -> None:
    assert imported(package, AS_ONE_MORE_CLIENT) & set(PACKAGES) <= MAY_IMPORT[package] | {package}


@pytest.mark.parametrize("package", COMMAND_LINES)
def test_only_command_lines_import_the_plumbing_of_commands(package: str) -> None:
    importers = [file for file in PACKAGES[package].rglob("*.py") if CLI_SUPPORT in imported_by(file)]
    assert importers
    assert all(file.is_relative_to(COMMAND_LINES[package]) for file in importers)


def test_the_plumbing_of_commands_imports_nothing_of_the_client() -> None:
    assert not imported_by(PACKAGES["pillion"] / "cli_support.py") & {*PACKAGES, CLI_SUPPORT}


def test_the_serving_process_does_not_hold_the_client() -> None:
    code = "import sys, pilliond.serving.__main__, pilliond.staging.__main__; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
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
    command_line = [PACKAGES["pillion"] / name for name in ("cli.py", "cli_support.py")]
    ours = {*PACKAGES, *sys.stdlib_module_names, CLI_SUPPORT}
    client = (imported("pillion", command_line) | imported("pillion_protocol")) - ours
    assert client == {"msgspec", "numpy", "zmq"}
    assert {name for file in command_line for name in imported_by(file)} - ours == {"click", "msgspec", "rich"}


def test_only_publishing_runs_the_engines_of_the_worker() -> None:
    files = PACKAGES["pillion_artifacts"].rglob("*.py")
    importers = [file for file in files if "pillion_worker" in imported_by(file)]
    assert importers
    assert all(file.is_relative_to(PUBLISHING) for file in importers)


@pytest.mark.parametrize("package", ["pilliond", "pillion_artifacts"])
def test_the_default_path_needs_no_torch(package: str) -> None:
    assert not imported(package, without=[PUBLISHING]) & HEAVY


def test_what_publishes_is_not_imported_by_what_serves() -> None:
    served = "pillion_artifacts, pilliond.control, pilliond.serving.__main__, pilliond.settings.schema"
    code = f"import sys, {served}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "pilliond.serving.__main__" in loaded
    assert not loaded & HEAVY
    importers = {name for name in loaded if name.startswith("pillion_artifacts.publishing.")}
    assert {name.rpartition(".")[2] for name in importers} <= {"sources", "common", "files"}
