"""Where an engine computes, as it says itself. A worker may say anything of itself: only short text gets through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from pilliond.limits import ENGINE_REASON_CHARACTERS_MAX, ENGINE_TEXT_CHARACTERS_MAX

CPU: Final = "cpu"


class DeviceStatus(msgspec.Struct, frozen=True):
    """Where a loaded version computes."""

    device: str
    """`cpu` or `cuda:N`, or several such as `cuda:0, cuda:1`; empty if that is not known yet."""
    fallback: str
    """What the settings ask for and the engine does not do, and why; empty if there is nothing."""

    @property
    def is_on_device(self) -> bool:
        """Whether it computes on a device other than the CPU."""
        return self.device not in ("", CPU)

    def for_log(self) -> dict[str, str]:
        """Returns the fields of a log record."""
        return {"device": self.device, **({"fallback": self.fallback} if self.fallback else {})}


def device_status(engine: Mapping[str, Any]) -> DeviceStatus:
    """Returns where an engine computes. `engine` is how it describes itself; empty if it is not known yet."""
    return DeviceStatus(engine_text(engine, "device"), engine_text(engine, "fallback", ENGINE_REASON_CHARACTERS_MAX))


def engine_of_replica(engine: Mapping[str, Any], replica: int) -> Mapping[str, Any]:
    """Returns how one worker of a version describes its engine; `engine` is the description of the version's."""
    replicas = replicas_of(engine)
    return replicas[replica] if replica < len(replicas) else engine


def replicas_of(engine: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the descriptions of a version's engines on several devices; none if it has one.

    A worker can say `replicas` of itself too, but no descriptions: its own has no depth.
    """
    replicas = engine.get("replicas")
    if not isinstance(replicas, list) or not all(isinstance(each, Mapping) for each in replicas):
        return []
    return replicas


def engine_text(engine: Mapping[str, Any], name: str, characters_max: int = ENGINE_TEXT_CHARACTERS_MAX) -> str:
    """Returns the beginning of a text that an engine says of itself; empty if it says none of that name."""
    value = engine.get(name, "")
    return value[:characters_max] if isinstance(value, str) else ""
