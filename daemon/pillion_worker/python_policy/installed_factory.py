"""The factory of a Python policy: found in an installed package that the settings allow, and nowhere else."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pillion_worker.errors import EngineError
from pillion_worker.python_policy.version_specifiers import fits


class InstalledFactory(NamedTuple):
    """Where a factory is; nothing of its package has been imported yet."""

    distribution: str
    version: str
    module: str
    attribute: str

    def load(self) -> Callable[..., Any]:
        """Imports the module, and returns the factory, which the package itself defines.

        Raises `EngineError`, and whatever the module raises.
        """
        package = f"its package {self.distribution!r}"
        found: Any = importlib.import_module(self.module)
        for part in self.attribute.split("."):
            if not hasattr(found, part):
                raise EngineError(f"{package}: {self.module} has no {self.attribute!r}")
            found = getattr(found, part)
        if not callable(found):
            raise EngineError(f"{package}: {self.attribute}: expected a function, got {type(found).__name__}")
        # What a package has imported is within reach of a card, too: `np.f2py.subprocess.run` would run the names of weights.
        home = getattr(found, "__module__", None)
        if not isinstance(home, str) or not _has_module(distribution(self.distribution), home):
            raise EngineError(f"{package} does not define {self.module}:{self.attribute}, {home or 'another'} does")
        function: Callable[..., Any] = found
        return function


def find_factory(code: Mapping[str, Any]) -> InstalledFactory:
    """Finds the factory that a card names: `code` is that of `LoadRequest`. Imports nothing of the package.

    Raises `EngineError` if the package is not among those that are allowed, is not installed for this interpreter, has
    another version than the card requires, or is not the one that the module belongs to.
    """
    name = code["distribution"]
    _check_allowed(name, code["allowed"])
    module, _, attribute = code["entry_point"].partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
        raise EngineError(f"entry point: expected MODULE:FACTORY, got {code['entry_point']!r}")
    try:
        found = distribution(name)
    except (PackageNotFoundError, ValueError):
        where = f"{sys.executable}: install it there, or set engine.python"
        raise EngineError(f"its package {name!r} is not installed for {where}") from None
    version = found.version or "(none)"
    if not fits(version, code["requires"]):
        raise EngineError(f"its package {name!r}: expected version {code['requires']}, got {version}")
    _check_owner(found, name, module)
    return InstalledFactory(name, version, module, attribute)


def _check_allowed(name: str, allowed: Sequence[str]) -> None:
    if _normal(name) not in map(_normal, allowed):
        expected = f"expected one of {', '.join(allowed)}" if allowed else "which is empty"
        raise EngineError(f"its package {name!r} is not among trust.code ({expected})")


def _normal(name: str) -> str:
    """The same for each spelling of a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _check_owner(found: Distribution, name: str, module: str) -> None:
    """Without this, a card could name any module of the interpreter beside a package that is allowed."""
    origin = _origin_of(module)
    if origin is None:
        raise EngineError(f"its package {name!r} has no module {module!r}")
    if not _owns(found, origin):
        raise EngineError(f"its package {name!r} has no module {module!r}: {origin} is not one of its files")


def _has_module(found: Distribution, module: str) -> bool:
    origin = _origin_of(module)
    return origin is not None and _owns(found, origin)


def _owns(found: Distribution, origin: str) -> bool:
    return _is_file_of(found, origin) or _is_in_project(found, origin)


def _origin_of(module: str) -> str | None:
    """The file that a module would be imported from. Imports nothing, unlike `find_spec` of a module in a package."""
    top, *rest = module.split(".")
    try:
        spec: ModuleSpec | None = importlib.util.find_spec(top)
    except ValueError:  # a module that was made by hand
        return None
    path = top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        path = f"{path}.{part}"
        spec = PathFinder.find_spec(path, spec.submodule_search_locations)
    return spec.origin if spec is not None and spec.has_location else None


def _is_file_of(found: Distribution, origin: str) -> bool:
    """Whether a file was installed with a package."""
    name = os.path.basename(origin)
    candidates = [str(found.locate_file(file)) for file in found.files or () if file.name == name]
    return any(os.path.exists(each) and os.path.samefile(each, origin) for each in candidates)


def _is_in_project(found: Distribution, origin: str) -> bool:
    """Whether a file is in the folder that a package was installed from in editable mode (PEP 610)."""
    try:
        direct = json.loads(found.read_text("direct_url.json") or "{}")
        if not direct["dir_info"]["editable"]:
            return False
        folder = Path(url2pathname(urlsplit(direct["url"]).path)).resolve()
    except (KeyError, TypeError, ValueError):
        return False
    file, environment = Path(origin).resolve(), Path(sys.prefix).resolve()
    # A virtual environment often lies in the project's folder: then what is installed there is not the project's.
    is_installed = folder in environment.parents and environment in file.parents
    return folder in file.parents and not is_installed
