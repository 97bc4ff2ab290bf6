"""Puts the policies, episodes and peers that ship into a wheel; an editable install reads them where they are."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShippedData(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling's own force-include would copy the data into editable installs too, where it goes stale."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            include = build_data["force_include"]
            include["artifacts/examples"] = "pillion_artifacts/examples"
            include["artifacts/examples.read-only"] = "pillion_artifacts/examples.read-only"
            include["bench/episodes"] = "pillion_bench/episodes"
            include["bench/peers"] = "pillion_bench/peers"
