"""Folders of the shipped policies and recordings: beside the code in a wheel, else in the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pillion_artifacts
import pillion_bench

IMAGE: Final = "cart-pole-pixels"
"""The image policy."""


def examples_folder() -> Path:
    """Returns the store of the shipped policies."""
    return _beside(Path(pillion_artifacts.__file__).parent, "examples")


def episodes_folder() -> Path:
    """Returns the folder of the shipped recordings, which has a folder for each policy."""
    return _beside(Path(pillion_bench.__file__).parent, "episodes")


def peers_folder() -> Path:
    """Returns the folder of the peers' programs and of the driver that `pillion bench compare` uses for all clients."""
    return _beside(Path(pillion_bench.__file__).parent, "peers")


def peers_environment() -> Path:
    """Returns the virtual environment that `make peers` creates at the root of the repository."""
    return Path(pillion_bench.__file__).parents[2] / ".venv-peers"


def recordings(policy: str) -> list[Path]:
    """Returns the shipped recordings of a policy, sorted by name."""
    return sorted((episodes_folder() / policy).glob("*.safetensors"))


def recorded_policies() -> list[str]:
    """Returns the policies that have shipped recordings, sorted by name."""
    return sorted({path.parent.name for path in episodes_folder().glob("*/*.safetensors")})


def _beside(package: Path, name: str) -> Path:
    in_wheel = package / name
    return in_wheel if in_wheel.is_dir() else package.parent / name
