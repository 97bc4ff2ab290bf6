"""A pytest plugin that marks the tests which start no process and no thread as `fast`, so that nobody keeps a list of them.

    python -m pytest -p tools.fast_tests -m fast

A test is fast if neither it nor one of its fixtures reaches, through the definitions that it names in the tests and in
the product, anything in `STARTS`, `IS_HEAVY` or `COMMANDS`. This reads the sources; it runs nothing. It looks at names,
not at types: a method that starts a process is found where its class is named, not where it is called. Files without a
fast test are not imported.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = (
    "tests",
    "pillion",
    "pillion_protocol",
    "pilliond",
    "pillion_worker",
    "pillion_artifacts",
    "pillion_bench",
    "driver",
)
STARTS = {
    *("subprocess", "multiprocessing", "create_subprocess_exec", "fork", "posix_spawn", "posix_spawnp", "execv"),
    *("Thread", "ThreadPoolExecutor"),
    "import_module",  # of what, the source does not say
}
IS_HEAVY = {"torch", "stable_baselines3", "sb3_contrib", "onnxscript", "skl2onnx", "sklearn", "matplotlib", "gymnasium"}

COMMANDS = {"pillion.cli", "pillion_bench.cli"}
"""Modules whose commands start processes; click finds a command by its group, so no name leads to it."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fast: starts no process and no thread, and imports nothing heavy")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if config.option.markexpr != "fast" or not collection_path.name.startswith("test_"):
        return None
    tests = [name for name in contents(collection_path)[0] if name.lower().startswith("test")]
    return imports_what_is_heavy(collection_path) or all(reaches_what_is_slow(collection_path, each) for each in tests)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and is_fast(item):
            item.add_marker("fast")


def is_fast(item: pytest.Function) -> bool:
    """Whether neither the test nor one of its fixtures reaches what is slow."""
    if imports_what_is_heavy(item.path):
        return False
    functions = [item.function]
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        functions += [definition.func for definition in definitions]
    for function in map(inspect.unwrap, functions):
        file = Path(inspect.getfile(function))
        if file.is_relative_to(ROOT) and ".venv" not in file.parts[len(ROOT.parts)]:
            name = function.__qualname__.partition(".")[0]
            if reaches_what_is_slow(file, name):
                return False
    return True


@cache
def imports_what_is_heavy(file: Path) -> bool:
    """Whether importing that file of the tests imports something heavy; the product imports such things when it needs them."""
    for module, attribute in contents(file)[1].values():
        if module.partition(".")[0] in IS_HEAVY:
            return True
        if module.partition(".")[0] == "tests":
            for each in (module, f"{module}.{attribute}"):
                source = source_of(each)
                if source and imports_what_is_heavy(source):
                    return True
    return False


@cache
def reaches_what_is_slow(file: Path, name: str) -> bool:
    """Whether the definition of that name in that file leads to anything slow."""
    seen: set[tuple[Path, str]] = set()
    waiting = [(file, name)]
    while waiting:
        here = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        definitions, imports = contents(here[0])
        if here[1] in imports:
            named, imported = frozenset[str](), frozenset([imports[here[1]]])
        elif here[1] in definitions:
            named, imported = definitions[here[1]]
        else:
            waiting += [(each, here[1]) for each in conftests(here[0])]
            continue
        if named & STARTS or any(is_slow(*each) for each in imported):
            return True
        waiting += [(here[0], each) for each in named]
        waiting += [found for each in imported for found in definition_of(*each)]
    return False


def is_slow(module: str, attribute: str | None) -> bool:
    """Whether that import is of something slow."""
    is_command = not COMMANDS.isdisjoint({module, f"{module}.{attribute}"})
    return is_command or module.partition(".")[0] in STARTS | IS_HEAVY or attribute in STARTS


@cache
def conftests(file: Path) -> list[Path]:
    """The files that may define a fixture for the tests in that file."""
    folders = [each for each in file.parents if each.is_relative_to(ROOT / "tests")]
    return [each / "conftest.py" for each in folders if (each / "conftest.py").exists() and file.name != "conftest.py"]


def definition_of(module: str, attribute: str | None) -> list[tuple[Path, str]]:
    """Where a name is defined that is imported from one of our modules."""
    if attribute is None or module.partition(".")[0] not in OURS:
        return []
    file = source_of(module)
    return [(file, attribute)] if file else []


@cache
def source_of(module: str) -> Path | None:
    """The file of one of our modules, unless it is none of the repository's."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # its parent is a module, not a package
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


Imported = tuple[str, str | None]
"""A module, and the name that is taken from it, if one is."""


@cache
def contents(file: Path) -> tuple[dict[str, tuple[frozenset[str], frozenset[Imported]]], dict[str, Imported]]:
    """What a file defines, with the names and imports inside each definition, and what it imports at its top."""
    definitions: dict[str, tuple[frozenset[str], frozenset[Imported]]] = {}
    imports: dict[str, Imported] = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.If):  # if TYPE_CHECKING
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports |= bound(node)
            continue
        for name in defined(node):
            parts = list(without_annotations(node))
            named = {part.id for part in parts if isinstance(part, ast.Name)}
            named |= {part.arg for part in parts if isinstance(part, ast.arg)}  # a fixture, in a test
            named |= {part.attr for part in parts if isinstance(part, ast.Attribute) and part.attr in STARTS}
            inner = [bound(part) for part in parts if isinstance(part, ast.Import | ast.ImportFrom)]
            definitions[name] = frozenset(named - {name}), frozenset(one for each in inner for one in each.values())
    return definitions, imports


def bound(node: ast.Import | ast.ImportFrom) -> dict[str, Imported]:
    """The names that an import binds, with where they come from."""
    if isinstance(node, ast.Import):
        return {alias.asname or alias.name.partition(".")[0]: (alias.name, None) for alias in node.names}
    return {alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names}


def defined(node: ast.stmt) -> Iterable[str]:
    """The names that a statement at the top of a module defines."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Assign():
            return [part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case _:
            return []


def without_annotations(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it, but for annotations: they name classes without using them."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns"}:
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, ast.AST):
                yield from without_annotations(each)
