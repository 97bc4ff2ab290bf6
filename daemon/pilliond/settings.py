"""Settings: defaults < file < environment < flags.

The file is TOML; a variable is `PILLION_SECTION__KEY`. What is not named here is an error with its path.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from pillion_artifacts.trust import TrustPolicy
from pilliond.errors import SettingsError
from pilliond.limits import ServingLimits
from pilliond.listen import check_data_address, check_socket_path

_ENVIRONMENT_PREFIX: Final = "PILLION_"


def runtime_folder() -> Path:
    """Where this user's sockets lie: `$XDG_RUNTIME_DIR/pillion`, else `/run/user/UID/pillion`."""
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return Path(base) / "pillion"


class StoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which policy is served."""

    path: str = "/var/lib/pillion/store"
    policy: str = ""
    """`NAME`, `NAME@1.2.3` or `NAME@>=1.2,<2`; empty where the store holds one policy."""


class DataSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where clients come in; empty: `lane.sock` and `zmq.sock` in the runtime folder."""

    listen: list[str] = []


class AdminSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where operators come in: `http://ADDRESS:PORT` (port 0: any) or `unix:///PATH`; empty: nowhere."""

    listen: str = "http://127.0.0.1:9475"


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the engine runs."""

    threads: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= 256:
            raise ValueError(f"threads: expected 1 to 256, came {self.threads}")


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the daemon speaks to its operator, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that can be set."""

    store: StoreSettings = StoreSettings()
    trust: TrustPolicy = TrustPolicy()
    data: DataSettings = DataSettings()
    admin: AdminSettings = AdminSettings()
    engine: EngineSettings = EngineSettings()
    limits: ServingLimits = ServingLimits()
    log: LogSettings = LogSettings()

    def data_addresses(self) -> list[str]:
        """Where to listen, checked; raises `SettingsError`."""
        folder = runtime_folder()
        addresses = self.data.listen or [f"lane://{folder / 'lane.sock'}", f"ipc://{folder / 'zmq.sock'}"]
        for address in addresses:
            check_data_address(address)
        return addresses


def load_settings(
    file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Mapping[str, Any]]
) -> Settings:
    """The settings in force; raises `SettingsError` with the path of what is wrong."""
    merged: dict[str, dict[str, Any]] = {}
    for layer in (_read_file(file), _from_environment(environment), flags):
        for section, values in layer.items():
            if not isinstance(values, Mapping):
                raise SettingsError(f"{section}: expected a section, came {values!r}")
            merged.setdefault(section, {}).update(values)
    try:
        settings = msgspec.convert(merged, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(_with_path(error)) from None
    settings.data_addresses()
    check_admin_address(settings.admin.listen)
    return settings


def check_admin_address(address: str) -> None:
    """Raises `SettingsError` unless `address` is empty, `http://HOST:PORT` or `unix:///PATH`."""
    if not address:
        return
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme == "unix":
        check_socket_path(address.removeprefix("unix://"), address)
    elif parts.scheme != "http" or not parts.hostname or port is None or parts.path not in ("", "/"):
        raise SettingsError(f"admin.listen: expected http://127.0.0.1:PORT or unix:///PATH, came {address!r}")


def _with_path(error: msgspec.ValidationError) -> str:
    """`Expected X, got Y - at `$.a.b`` turned round: the path first, as an operator looks for it."""
    text, _, path = str(error).partition(" - at `$.")
    return f"{path.rstrip('`')}: {text}" if path else text


def _read_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: {error}") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for variable, value in environment.items():
        section, separator, key = variable.removeprefix(_ENVIRONMENT_PREFIX).lower().partition("__")
        if variable.startswith(_ENVIRONMENT_PREFIX) and separator:
            is_list = (section, key) == ("data", "listen")
            found.setdefault(section, {})[key] = value.split(",") if is_list else value
    return found
