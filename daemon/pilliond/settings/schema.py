"""Settings: defaults < file < environment < flags.

The file is TOML; a variable is `PILLION_SECTION__KEY`. What is not named here is an error with its path.
"""

from __future__ import annotations

import grp
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from pillion_artifacts.verify.trust_policy import TrustPolicy
from pillion_protocol.default_addresses import own_lane_address, runtime_folder
from pilliond.errors import SettingsError
from pilliond.limits import OLD_VERSIONS_MAX, ServingLimits
from pilliond.settings.addresses import check_data_address
from pilliond.settings.admin_addresses import AdminAddress, check_admin_address, parse_admin_address
from pilliond.settings.secret_file import credential

_ENVIRONMENT_PREFIX: Final = "PILLION_"
_LISTS: Final = (("data", "listen"), ("admin", "listen"))
"""What a variable holds separated by commas."""


class StoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which policy is served."""

    path: str = "/var/lib/pillion/store"
    policy: str = ""
    """`NAME`, `NAME@1.2.3` or `NAME@>=1.2,<2`; empty where the store holds one policy."""


class DataSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where clients come in; empty: `lane.sock` and `zmq.sock` in the runtime folder."""

    listen: list[str] = []
    group: str = ""
    """Whose members may connect too: the sockets belong to this group then, mode 0660. Empty: this user alone."""

    def group_id(self) -> int | None:
        """The id of `group`, or None; raises `SettingsError` where there is no such group."""
        return _group_id(self.group, "data.group")


class AdminSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where operators come in, and who may do what there."""

    listen: str | list[str] = msgspec.field(default_factory=lambda: ["unix://", "http://127.0.0.1:9475"])
    """`unix://` is `admin.sock` in the runtime folder; port 0: any. Empty: nowhere."""
    group: str = ""
    """Whose members may use the Unix socket too, which belongs to this group then, mode 0660."""
    tokens_file: str = ""
    """Who may ask over TCP. Empty: systemd's credential `tokens`; without one TCP is for looking, on loopback."""
    certificate_file: str = ""
    """For `https://`, PEM. Empty: systemd's credential `certificate`."""
    key_file: str = ""
    """Its key. Empty: systemd's credential `key`."""

    def addresses(self) -> list[AdminAddress]:
        """Where to listen, checked; raises `SettingsError`."""
        named = [self.listen] if isinstance(self.listen, str) else self.listen
        addresses = [parse_admin_address(text) for text in named if text]
        for address in addresses:
            check_admin_address(address, bool(self.tokens_file), bool(self.certificate_file and self.key_file))
        return addresses

    def group_id(self) -> int | None:
        """The id of `group`, or None; raises `SettingsError` where there is no such group."""
        return _group_id(self.group, "admin.group")

    def with_credentials(self, environment: Mapping[str, str]) -> AdminSettings:
        """The same with what systemd gave in the place of what is not set."""
        return msgspec.structs.replace(
            self,
            tokens_file=self.tokens_file or credential("tokens", environment),
            certificate_file=self.certificate_file or credential("certificate", environment),
            key_file=self.key_file or credential("key", environment),
        )


class ServingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the serving process uses its core."""

    busy_poll_us: int = 0
    """How long it looks for messages without sleeping, while somebody has a session. For cores that it has to itself."""
    cpus: str = ""
    """The CPUs that it may run on, such as `3` or `2,4-6`; empty: those of the daemon."""
    switch_interval_us: int = 50
    """After how long Python gives way to another thread; its own default, 5000, is a stall that a step can feel."""
    gc_freeze: bool = True
    """Whether the garbage collector forgets what start-up made."""

    def __post_init__(self) -> None:
        if not 0 <= self.busy_poll_us <= 1_000_000:
            raise ValueError(f"busy_poll_us: expected 0 to 1000000, got {self.busy_poll_us}")
        if not 1 <= self.switch_interval_us <= 1_000_000:
            raise ValueError(f"switch_interval_us: expected 1 to 1000000, got {self.switch_interval_us}")
        usable = os.sched_getaffinity(0)
        if self.cpus and not cpu_numbers(self.cpus) <= usable:
            raise ValueError(f"cpus: expected some of {_as_list(usable)}, got {self.cpus!r}")


class VersionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a version that is not current any more stays loaded: while it is leased, within these bounds."""

    old_max: int = 2
    """Versions beside the current one; beyond it the oldest go, leased or not. The last current one is kept unleased."""
    old_mb_max: int = 1_024
    """Memory of all of them together."""
    lease_s_max: float = 3_600.0
    """How long an episode may go on with a version that is not current any more; then it is told `version_gone`."""

    def __post_init__(self) -> None:
        if not 0 <= self.old_max <= OLD_VERSIONS_MAX:
            raise ValueError(f"old_max: expected 0 to {OLD_VERSIONS_MAX}, got {self.old_max}")
        if self.old_mb_max < 0:
            raise ValueError(f"old_mb_max: expected 0 or more, got {self.old_mb_max}")
        if self.lease_s_max < 0:
            raise ValueError(f"lease_s_max: expected 0 or more, got {self.lease_s_max}")


class StagingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a version is tried before it may serve, in a process apart and at the lowest priority."""

    memory_mb_max: int = 8_192
    """Address space of that process; a version that needs more is refused."""
    timeout_s: float = 600.0
    """How long it may take."""
    certificate: Literal["any", "within 1e-6", "exact"] = "any"
    """How little the batch may change an answer for the version to be taken."""
    deadline_misses_max: int = 20
    """Deadlines that the live version may miss meanwhile; at one more staging gives up. 0: at the first."""
    p99_ratio_max: float = 3.0
    """Staging pauses where the live version's p99 of a second is more than so many times what it was. 0: it does not."""
    pause_s_max: float = 120.0
    """How long it may pause in all; then it gives up."""

    def __post_init__(self) -> None:
        if self.p99_ratio_max < 0 or self.pause_s_max < 0:
            raise ValueError("p99_ratio_max, pause_s_max: expected 0 or more")
        if self.memory_mb_max < 1 or self.timeout_s <= 0 or self.deadline_misses_max < 0:
            raise ValueError(
                "memory_mb_max, timeout_s, deadline_misses_max: expected at least 1, more than 0, 0 or more"
            )


class ShadowSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a version is compared with the live one, in a process apart and at the lowest priority."""

    ring_mb: int = 32
    """Shared memory for rows that wait for the shadow; rows that find no room are not compared."""
    states_mb_max: int = 256
    """What a recurrent shadow carries for all handles; beyond it those longest silent are not compared until their next episode."""
    distance_max: float = 0.0
    """Up to which Euclidean distance two continuous actions agree; 0: within the tolerance of the live version's card."""
    silent_s_max: float = 120.0
    """After how long a shadow process that does not even look is taken to hang, and ended. On a busy host it looks rarely."""

    def __post_init__(self) -> None:
        if not 1 <= self.ring_mb <= 65_536:
            raise ValueError(f"ring_mb: expected 1 to 65536, got {self.ring_mb}")
        if self.states_mb_max < 1 or self.distance_max < 0 or self.silent_s_max <= 0:
            raise ValueError("states_mb_max, distance_max, silent_s_max: expected at least 1, 0 or more, more than 0")


class AutoRollbackSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a version that was switched to is taken back by itself: what it must keep within at first."""

    watch_s: float = 300.0
    """How long it is watched after the switch; 0: not at all."""
    acts_min: int = 200
    """Fewer acts say nothing of shares."""
    error_share_max: float = 0.01
    """Acts that the engine failed to run."""
    late_share_max: float = 0.1
    """Acts whose budget was spent before they could be run."""
    non_finite_max: int = 0
    """Acts that were answered with a NaN or an infinity."""
    p99_us_max: float = 0.0
    """From an act's receipt to its answer; 0: no bound."""
    p99_ratio_max: float = 0.0
    """The same over that of the version before; 0: no bound."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the engine runs."""

    threads: int = 1
    strict: bool = False
    """Whether every batch is run in one shape, so that the batch cannot change an answer."""
    strict_rows: int = 1
    """The rows of that shape; a batch of more is run in several runs."""

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= 256:
            raise ValueError(f"threads: expected 1 to 256, got {self.threads}")
        if not 1 <= self.strict_rows <= 4_096:
            raise ValueError(f"strict_rows: expected 1 to 4096, got {self.strict_rows}")

    @property
    def one_shape_rows(self) -> int:
        """The rows of the one shape; 0 where batches are run in buckets."""
        return self.strict_rows if self.strict else 0


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
    serving: ServingSettings = ServingSettings()
    versions: VersionSettings = VersionSettings()
    staging: StagingSettings = StagingSettings()
    shadow: ShadowSettings = ShadowSettings()
    auto_rollback: AutoRollbackSettings = AutoRollbackSettings()
    limits: ServingLimits = ServingLimits()
    log: LogSettings = LogSettings()

    def data_addresses(self) -> list[str]:
        """Where to listen, checked; raises `SettingsError`."""
        addresses = self.data.listen or [own_lane_address(), f"ipc://{runtime_folder() / 'zmq.sock'}"]
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
                raise SettingsError(f"{section}: expected a section, got {values!r}")
            merged.setdefault(section, {}).update(values)
    try:
        settings = msgspec.convert(merged, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(_with_path(error)) from None
    settings.data_addresses()
    settings.data.group_id()
    settings = msgspec.structs.replace(settings, admin=settings.admin.with_credentials(environment))
    settings.admin.addresses()
    settings.admin.group_id()
    return settings


def cpu_numbers(text: str) -> set[int]:
    """The CPUs in a list such as `2,4-6`; raises `ValueError`."""
    numbers: set[int] = set()
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            numbers.update(range(int(first), int(last or first) + 1))
    except ValueError:
        numbers.clear()
    if not numbers:
        raise ValueError(f"cpus: expected CPUs such as 3 or 2,4-6, got {text!r}")
    return numbers


def _group_id(name: str, setting: str) -> int | None:
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise SettingsError(f"{setting}: expected the name of a group of this host, got {name!r}") from None


def _as_list(numbers: Iterable[int]) -> str:
    return ",".join(str(number) for number in sorted(numbers))


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
            is_list = (section, key) in _LISTS
            found.setdefault(section, {})[key] = value.split(",") if is_list else value
    return found
