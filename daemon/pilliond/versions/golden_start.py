"""Starts a version in a worker, and checks there that it acts as its source did: as the settings ask, or else in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from pillion_worker.tensors import fallback_text
from pilliond.engine.interface import EngineError
from pilliond.engine.parity import check_parity
from pilliond.ipc.control_channel import VersionRequest
from pilliond.ipc.device_status import replicas_of
from pilliond.settings.schema import EngineSettings
from pilliond.versions.loaded_version import Version


def start_checked(
    start: Callable[[VersionRequest], Version],
    request: VersionRequest,
    golden: bytes | None,
    rows_max: int,
    settings: EngineSettings,
) -> Version:
    """Starts a version and checks its golden pairs, if any. Raises `EngineError` if they do not hold in float32 either.

    `start` is called again, with a request for float32, if they only fail as the settings ask to compute: the version that it
    returned before is not used any more.
    """
    version = start(request)
    if golden is None:
        return version
    try:
        _check(version, request, golden, rows_max)
        return version
    except EngineError as error:
        described = version.engine.describe()
        if request.fallback or not _is_faster(described, settings):
            raise
        reason = fallback_text(settings.precision, settings.channels_last, settings.compile, str(error))
    plain = msgspec.structs.replace(request, fallback=reason)
    version = start(plain)
    _check(version, plain, golden, rows_max)
    return version


def _check(version: Version, request: VersionRequest, golden: bytes, rows_max: int) -> None:
    check_parity(version.engine, request.spec, request.states, golden, request.tolerance, rows_max)


def _is_faster(described: dict[str, Any], settings: EngineSettings) -> bool:
    """Whether an engine computes otherwise than plainly in float32, as the settings ask. One that does not say so does."""
    return any(
        each.get("precision", settings.precision) != "float32"
        or each.get("channels_last", settings.channels_last)
        or each.get("compiled", settings.compile)
        for each in replicas_of(described) or [described]
    )
