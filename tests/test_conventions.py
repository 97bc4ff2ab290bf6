"""What the house rules ask of every package: drawn errors, and bounds in one place."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.test_boundaries import PACKAGES

BOUND = re.compile(r"_?[A-Z][A-Z0-9_]*_(MAX|MIN)")
NOT_OURS = {"Exception", "BaseException"}


def sources(package: str) -> list[Path]:
    """The modules of a package, without the policies that ship in its folder."""
    return [file for file in PACKAGES[package].rglob("*.py") if "examples" not in file.parts]


def error_classes(package: str) -> dict[str, str]:
    """Every exception class of a package, with the name of the first class that it derives from."""
    bases = {
        node.name: ast.unparse(node.bases[0]).rpartition(".")[2]
        for file in sources(package)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef) and node.bases
    }
    found = {name: base for name, base in bases.items() if base in NOT_OURS or base.endswith("Error")}
    while more := {name: base for name, base in bases.items() if base in found and name not in found}:
        found |= more
    return found


def drawn_tree(package: str) -> dict[str, str]:
    """The tree at the top of a package's `errors.py`: each class with the one that it hangs from, or an empty name."""
    text = ast.get_docstring(ast.parse((PACKAGES[package] / "errors.py").read_text())) or ""
    above: list[tuple[int, str]] = []
    tree = {}
    for line in text.splitlines():
        match = re.match(r"([│├└─ ]*)([A-Z]\w+)(?= |$)", line)
        if match is None or not (match[1] or re.fullmatch(r"\w*(Error|Refused)", match[2])):
            continue
        depth = len(match[1])
        above = [(column, name) for column, name in above if column < depth]
        tree[match[2]] = above[-1][1] if above else ""
        above.append((depth, match[2]))
    return tree


@pytest.mark.parametrize("package", PACKAGES)
def test_every_error_class_is_drawn_where_it_hangs(package: str) -> None:
    classes = error_classes(package)
    tree = drawn_tree(package)
    assert tree
    assert set(tree) == set(classes)
    for name, parent in tree.items():
        assert (parent or classes[name]) == classes[name], name


@pytest.mark.parametrize("package", PACKAGES)
def test_every_bound_is_in_the_limits_of_its_package(package: str) -> None:
    strays = []
    for file in sources(package):
        if file == PACKAGES[package] / "limits.py":
            continue
        for node in ast.parse(file.read_text()).body:
            target = (
                node.target
                if isinstance(node, ast.AnnAssign)
                else node.targets[0]
                if isinstance(node, ast.Assign)
                else None
            )
            value = node.value if isinstance(node, ast.AnnAssign | ast.Assign) else None
            if isinstance(target, ast.Name) and BOUND.fullmatch(target.id) and not isinstance(value, ast.Call):
                strays.append(f"{file.relative_to(PACKAGES[package])}: {target.id}")
    assert not strays
