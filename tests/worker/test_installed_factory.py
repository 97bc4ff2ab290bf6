"""A factory comes from an installed package that the settings allow, and from no other module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pillion_worker.errors import EngineError
from pillion_worker.python_policy.installed_factory import find_factory
from tests.worker.support.installed import EXAMPLE, code, install

MODULE = EXAMPLE.replace("-", "_")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of site-packages on the path, with the example package; what is imported from it is forgotten again."""
    site = tmp_path / "site-packages"
    install(EXAMPLE, site)
    monkeypatch.syspath_prepend(site)
    yield site
    sys.modules.pop(MODULE, None)


def changed(**fields: Any) -> dict[str, Any]:
    """The code of a good request, but for these fields."""
    return {**code(EXAMPLE, "mlp"), **fields}


def test_a_factory_is_found_without_importing_it(site: Path) -> None:
    found = find_factory(changed(requires=">=1.2,<2"))
    assert (found.distribution, found.version) == (EXAMPLE, "1.2.0")
    assert MODULE not in sys.modules
    assert found.load().__name__ == "mlp"


@pytest.mark.parametrize("name", ["Pillion_Example.Policy", "pillion--example__policy"])
def test_every_spelling_of_a_name_is_the_same_package(site: Path, name: str) -> None:
    assert find_factory(changed(allowed=[name], distribution="pillion_example_policy")).version == "1.2.0"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"allowed": []}, f"^its package '{EXAMPLE}' is not among trust.code \\(which is empty\\)$"),
        (
            {"allowed": ["numpy", "jax"]},
            f"^its package '{EXAMPLE}' is not among trust.code \\(expected one of numpy, jax\\)$",
        ),
        ({"distribution": "numpy"}, "^its package 'numpy' is not among trust.code"),
        (
            {"distribution": "absent", "allowed": ["absent"]},
            f"^its package 'absent' is not installed for {sys.executable}: install it there, or set engine.python$",
        ),
        ({"requires": ">=2"}, f"^its package '{EXAMPLE}': expected version >=2, got 1.2.0$"),
        ({"requires": "new"}, "^requires: expected specifiers such as"),
        ({"entry_point": f"{MODULE}.more:mlp"}, f"has no module '{MODULE}.more'"),
        ({"entry_point": "os:system"}, "has no module 'os'"),
        ({"entry_point": "builtins:exec"}, "has no module 'builtins'"),
        ({"entry_point": "__main__:main"}, "has no module '__main__'"),
        ({"entry_point": "numpy:array"}, "has no module 'numpy': .* is not one of its files"),
        ({"entry_point": "numpy.linalg:norm"}, "has no module 'numpy.linalg': .* is not one of its files"),
        ({"entry_point": "absent:mlp"}, "has no module 'absent'"),
        ({"entry_point": MODULE}, "^entry point: expected MODULE:FACTORY, got"),
        ({"entry_point": ":mlp"}, "^entry point: expected MODULE:FACTORY"),
        ({"entry_point": f"../{MODULE}:mlp"}, "^entry point: expected MODULE:FACTORY"),
        ({"entry_point": f"{MODULE}:mlp()"}, "^entry point: expected MODULE:FACTORY"),
    ],
)
def test_everything_else_is_refused_before_it_is_imported(site: Path, fields: dict[str, Any], why: str) -> None:
    with pytest.raises(EngineError, match=why):
        find_factory(changed(**fields))
    assert MODULE not in sys.modules


def test_a_module_within_a_package_of_others_is_refused_before_that_is_imported(site: Path) -> None:
    (site / "others").mkdir()
    (site / "others" / "__init__.py").write_text("raise SystemExit('it was imported')")
    (site / "others" / "inner.py").write_text("def mlp(weights): pass")
    with pytest.raises(EngineError, match=r"has no module 'others\.inner': .* is not one of its files"):
        find_factory(changed(entry_point="others.inner:mlp"))


@pytest.mark.parametrize(
    ("factory", "why"), [("absent", "has no 'absent'"), ("ACTIVATIONS", "expected a function, got dict")]
)
def test_a_module_that_has_no_such_factory_is_refused(site: Path, factory: str, why: str) -> None:
    with pytest.raises(EngineError, match=why):
        find_factory(code(EXAMPLE, factory)).load()


def test_a_factory_may_be_part_of_a_class(site: Path) -> None:
    with (site / f"{MODULE}.py").open("a") as module:
        module.write("class Maker:\n    @classmethod\n    def make(cls, weights): pass\n")
    assert find_factory(code(EXAMPLE, "Maker.make")).load().__name__ == "make"
    assert find_factory(code(EXAMPLE, "Maker")).load().__name__ == "Maker"


@pytest.mark.parametrize(
    ("factory", "home"),
    [
        ("np.zeros", "numpy"),
        ("np.f2py.subprocess.run", "subprocess"),
        ("Callable", "collections.abc"),
        ("mlp.__class__", "builtins"),
        ("mlp.__init_subclass__", "another"),
        ("run", "subprocess"),
        ("inherited.run", "subprocess"),
        ("bound", "functools"),
    ],
)
def test_what_the_package_has_only_imported_is_no_factory(site: Path, factory: str, home: str) -> None:
    with (site / f"{MODULE}.py").open("a") as module:
        module.write(
            "import functools\n"
            "from subprocess import Popen, run\n"
            "class inherited(Popen): run = staticmethod(run)\n"
            "bound = functools.partial(run)\n"
        )
    with pytest.raises(EngineError, match=f"^its package '{EXAMPLE}' does not define {MODULE}:{factory}, {home} does$"):
        find_factory(code(EXAMPLE, factory)).load()


def test_a_module_beside_the_package_is_none_of_its_own(site: Path) -> None:
    (site / "stranger.py").write_text("raise SystemExit")
    with pytest.raises(EngineError, match=r"stranger\.py is not one of its files"):
        find_factory(changed(entry_point="stranger:mlp"))


def test_a_package_that_does_not_say_what_it_installed_is_refused(site: Path) -> None:
    (site / f"{MODULE}-1.2.0.dist-info" / "RECORD").unlink()
    with pytest.raises(EngineError, match="is not one of its files"):
        find_factory(changed())


def test_a_package_in_editable_mode_owns_what_lies_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, site = tmp_path / "a project", tmp_path / "a project" / ".venv" / "site-packages"
    site.mkdir(parents=True)
    install(EXAMPLE, site, editable=project)
    for folder in (site, project):
        monkeypatch.syspath_prepend(folder)
    assert find_factory(changed()).version == "1.2.0"
    # What is installed in an environment inside that folder belongs to others.
    (site / "stranger.py").write_text("raise SystemExit")
    monkeypatch.setattr(sys, "prefix", str(project / ".venv"))
    assert find_factory(changed()).version == "1.2.0"
    with pytest.raises(EngineError, match=r"stranger\.py is not one of its files"):
        find_factory(changed(entry_point="stranger:mlp"))
