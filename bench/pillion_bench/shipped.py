"""Where the policies and the recordings that ship with Pillion lie: in a wheel beside the code, else in the repository."""

from __future__ import annotations

from pathlib import Path

import pillion_artifacts
import pillion_bench


def examples_folder() -> Path:
    """The store of the policies that ship."""
    return _beside(Path(pillion_artifacts.__file__).parent, "examples")


def episodes_folder() -> Path:
    """The recordings that ship, in a folder for each policy."""
    return _beside(Path(pillion_bench.__file__).parent, "episodes")


def peers_folder() -> Path:
    """The programs of the peers, and the driver that `pillion bench compare` drives everybody with."""
    return _beside(Path(pillion_bench.__file__).parent, "peers")


def peers_environment() -> Path:
    """The virtual environment that `make peers` makes, in the folder of the repository."""
    return Path(pillion_bench.__file__).parents[2] / ".venv-peers"


def recordings(policy: str) -> list[Path]:
    """The recordings of a policy that ship, sorted by name."""
    return sorted((episodes_folder() / policy).glob("*.safetensors"))


def recorded_policies() -> list[str]:
    """The policies of which recordings ship, sorted by name."""
    return sorted({path.parent.name for path in episodes_folder().glob("*/*.safetensors")})


def _beside(package: Path, name: str) -> Path:
    in_wheel = package / name
    return in_wheel if in_wheel.is_dir() else package.parent / name
