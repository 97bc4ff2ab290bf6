"""Packages of `packages/`, installed by hand: without network, and without a build backend."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

FOLDER: Final = Path(__file__).with_name("packages")
EXAMPLE: Final = "pillion-example-policy"
HOSTILE: Final = "pillion-hostile-policies"
PROMPTED: Final = "pillion-prompt-policy"
TAKING: Final = "pillion-device-policy"
"""Takes memory of the devices of `stub_gpu`."""


def install(distribution: str, site: Path, version: str = "", *, editable: Path | None = None) -> None:
    """Installs a package into a folder of site-packages as pip does: its module, and what `importlib.metadata` reads.

    With `editable`, its module is copied there, and the folder refers to it as `pip install -e` does (PEP 610).
    """
    source = FOLDER / distribution.replace("-", "_")
    module = f"{source.name}.py"
    version = version or tomllib.loads((source / "pyproject.toml").read_text())["project"]["version"]
    info = site / f"{source.name}-{version}.dist-info"
    info.mkdir(parents=True)
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n",
        "INSTALLER": "pip\n",
    }
    target = editable or site
    shutil.copy(source / module, target / module)
    if editable is None:
        names = [module]
    else:
        names = [f"__editable__.{source.name}.pth"]
        (site / names[0]).write_text(f"{editable}\n")
        files["direct_url.json"] = json.dumps({"url": editable.as_uri(), "dir_info": {"editable": True}})
    for name, text in files.items():
        (info / name).write_text(text)
    names += [f"{info.name}/{name}" for name in [*files, "RECORD"]]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))


def make_environment(folder: Path, *distributions: str, base: str = sys.executable) -> str:
    """Makes a virtual environment with these packages, and all that `base` has; returns its interpreter."""
    subprocess.run([base, "-m", "venv", "--without-pip", str(folder)], check=True)
    add_packages_of(base, folder)
    for distribution in distributions:
        install(distribution, site_of(folder))
    return str(folder / "bin" / "python")


def site_of(environment: Path) -> Path:
    """The folder of an environment that packages are installed into."""
    (site,) = environment.glob("lib/python*/site-packages")
    return site


def add_packages_of(python: str, environment: Path) -> None:
    """Lets an environment see what another interpreter has installed, as a network would be needed for it otherwise."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    (site_of(environment) / "others.pth").write_text(found.stdout)


def code(distribution: str, factory: str, *, requires: str = "", **arguments: Any) -> dict[str, Any]:
    """The `code` of a `LoadRequest` for a factory of one of these packages, which the settings allow."""
    return {
        "entry_point": f"{distribution.replace('-', '_')}:{factory}",
        "distribution": distribution,
        "requires": requires,
        "arguments": arguments,
        "allowed": [EXAMPLE, HOSTILE],
    }


def mlp_weights(seed: int = 0, sizes: tuple[int, ...] = (8, 16, 4)) -> dict[str, npt.NDArray[np.float32]]:
    """Weights of the example policy."""
    random = np.random.default_rng(seed)
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for number, (inner, outer) in enumerate(pairwise(sizes)):
        weights[f"{number}.weight"] = random.standard_normal((outer, inner)).astype(np.float32) / np.float32(inner)
        weights[f"{number}.bias"] = random.standard_normal(outer).astype(np.float32)
    return weights


def mlp_actions(weights: dict[str, npt.NDArray[np.float32]], rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What the example policy answers, computed with torch's conventions and without it."""
    hidden = np.tanh(np.einsum("oi,ri->ro", weights["0.weight"], rows) + weights["0.bias"])
    actions: npt.NDArray[np.float32] = np.einsum("oi,ri->ro", weights["1.weight"], hidden) + weights["1.bias"]
    return actions
