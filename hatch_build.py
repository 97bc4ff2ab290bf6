"""Puts the policies, episodes and peers that ship into a wheel; an editable install reads them where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

STORE = Path("artifacts/examples")
NOT_SHIPPED = {"lock", "leases", "staging"}
"""What commands and daemons that used the store leave in it."""


class ShippedData(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling's own force-include would copy the data into editable installs too, where it goes stale."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            include = build_data["force_include"]
            for entry in sorted((Path(self.root) / STORE).iterdir()):
                if entry.name not in NOT_SHIPPED:
                    include[str(STORE / entry.name)] = f"pillion_artifacts/examples/{entry.name}"
            include["bench/episodes"] = "pillion_bench/episodes"
            include["bench/peers"] = "pillion_bench/peers"
