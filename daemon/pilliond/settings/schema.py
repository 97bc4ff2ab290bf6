"""Settings, in the order defaults < file < environment < flags.

The file is TOML. A variable is `PILLION_SECTION__KEY`. An unknown key is an error that names its path.
"""

from __future__ import annotations

import grp
import os
import tomllib
from collections.abc import Iterable, Mapping
from copy import copy
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from pillion_artifacts import ArtifactError
from pillion_artifacts.names import parse_reference
from pillion_artifacts.validation_text import text_of
from pillion_artifacts.verify.trust_policy import TrustPolicy
from pillion_protocol.default_addresses import own_lane_address, runtime_folder
from pilliond.errors import SettingsError
from pilliond.limits import (
    BUILD_S_MAX,
    ENGINE_BOUNDS,
    ENGINE_DEVICES_MAX,
    INLINE_US_HARD_MAX,
    LOAD_MARGIN_S,
    OLD_VERSIONS_MAX,
    POLICIES_MAX,
    WORKER_DELAY_S_MAX,
    WORKER_LOSSES_MAX,
    WORKER_MEMORY_MB_MIN,
    WORKER_REPLICAS_MAX,
    WORKER_START_S_MAX,
    PolicyLimits,
    ServingLimits,
    policy_mb,
)
from pilliond.settings.addresses import check_data_address
from pilliond.settings.admin_addresses import AdminAddress, check_admin_address, parse_admin_address
from pilliond.settings.secret_file import credential

_ENVIRONMENT_PREFIX: Final = "PILLION_"
_LISTS: Final = (("data", "listen"), ("admin", "listen"), ("trust", "code"), ("engine", "device"))
"""Settings whose variable holds a list separated by commas."""
_OWN_SECTIONS: Final = ("limits", "engine", "versions", "staging", "shadow", "auto_rollback")
"""Sections that an entry of `[[policies]]` may have too, for that policy."""


class StoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The policy to serve."""

    path: str = "/var/lib/pillion/store"
    policy: str = ""
    """`NAME`, `NAME@1.2.3`, `NAME@>=1.2,<2` or `NAME@ALIAS`. Empty: `[[policies]]`, else the only policy in the store."""


class DataSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Listen addresses for clients. Empty: `lane.sock` and `zmq.sock` in the runtime folder."""

    listen: list[str] = []
    group: str = ""
    """A group whose members may connect: the sockets belong to it, mode 0660. Empty: this user only."""

    def group_id(self) -> int | None:
        """Returns the id of `group`, or None; raises `SettingsError` if the host has no such group."""
        return _group_id(self.group, "data.group")


class AdminSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Listen addresses of the admin port, and who may do what there."""

    listen: str | list[str] = msgspec.field(default_factory=lambda: ["unix://", "http://127.0.0.1:9475"])
    """`unix://` is `admin.sock` in the runtime folder; port 0 is any free port. Empty: no admin port."""
    group: str = ""
    """A group whose members may use the Unix socket, which then belongs to it, mode 0660."""
    tokens_file: str = ""
    """The tokens for TCP. Empty: systemd's credential `tokens`; without any, TCP is read-only and on loopback only."""
    certificate_file: str = ""
    """The certificate for `https://`, PEM. Empty: systemd's credential `certificate`."""
    key_file: str = ""
    """The key of the certificate, PEM. Empty: systemd's credential `key`."""

    def addresses(self) -> list[AdminAddress]:
        """Returns the addresses to listen at, checked; raises `SettingsError`."""
        named = [self.listen] if isinstance(self.listen, str) else self.listen
        addresses = [parse_admin_address(text) for text in named if text]
        for address in addresses:
            check_admin_address(address, bool(self.tokens_file), bool(self.certificate_file and self.key_file))
        return addresses

    def group_id(self) -> int | None:
        """Returns the id of `group`, or None; raises `SettingsError` if the host has no such group."""
        return _group_id(self.group, "admin.group")

    def with_credentials(self, environment: Mapping[str, str]) -> AdminSettings:
        """Returns a copy that uses systemd's credentials for files that are not set."""
        return msgspec.structs.replace(
            self,
            tokens_file=self.tokens_file or credential("tokens", environment),
            certificate_file=self.certificate_file or credential("certificate", environment),
            key_file=self.key_file or credential("key", environment),
        )


class ServingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the serving process uses its core, and when it is replaced."""

    busy_poll_us: int = 0
    """How long it polls without sleeping while there are sessions. Use it on cores that the process has to itself."""
    cpus: str = ""
    """The CPUs to run on, such as `3` or `2,4-6`. Empty: those of the daemon."""
    switch_interval_us: int = 50
    """Python's thread switch interval. Python's default, 5000, is a stall that a step can feel."""
    gc_freeze: bool = True
    """Whether to exclude objects from start-up from garbage collection."""
    hang_s_max: float = 10.0
    """How long it may make no progress, in time of its own; then it is killed. Above the longest run of an inline engine.
    0: it is never killed for that."""
    restarts_max: int = 10
    """Restarts within `restarts_window_s`; instead of one more, the daemon ends."""
    restarts_window_s: float = 300.0

    def __post_init__(self) -> None:
        if self.hang_s_max != 0 and self.hang_s_max < 1:
            raise ValueError(f"hang_s_max: expected 0, or 1 or more, got {self.hang_s_max:g}")
        if self.restarts_max < 0 or self.restarts_window_s < 0:
            raise ValueError("restarts_max, restarts_window_s: expected 0 or more")
        if not 0 <= self.busy_poll_us <= 1_000_000:
            raise ValueError(f"busy_poll_us: expected 0 to 1000000, got {self.busy_poll_us}")
        if not 1 <= self.switch_interval_us <= 1_000_000:
            raise ValueError(f"switch_interval_us: expected 1 to 1000000, got {self.switch_interval_us}")
        if self.cpus:
            check_cpus("cpus", self.cpus)


class VersionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long an old version stays loaded: while episodes lease it, within these bounds."""

    old_max: int = 2
    """Old versions; beyond it the oldest is unloaded, leased or not. The previous stable one also stays without leases."""
    old_mb_max: int = 1_024
    """Memory of all old versions together."""
    lease_s_max: float = 3_600.0
    """How long an episode may keep an old version; then its next act gets `version_gone`."""

    def __post_init__(self) -> None:
        if not 0 <= self.old_max <= OLD_VERSIONS_MAX:
            raise ValueError(f"old_max: expected 0 to {OLD_VERSIONS_MAX}, got {self.old_max}")
        if self.old_mb_max < 0:
            raise ValueError(f"old_mb_max: expected 0 or more, got {self.old_mb_max}")
        if self.lease_s_max < 0:
            raise ValueError(f"lease_s_max: expected 0 or more, got {self.lease_s_max}")


class StagingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a version is tried before it may serve: in its own process, at a low priority."""

    memory_mb_max: int = 8_192
    """Address space of the staging process; a version that needs more is refused."""
    timeout_s: float = 600.0
    """How long staging may take."""
    certificate: Literal["any", "within 1e-6", "exact"] = "any"
    """The batch certificate that a version must reach."""
    deadline_misses_max: int = 20
    """Deadlines that the live version may miss during staging; one more ends the staging."""
    p99_ratio_max: float = 3.0
    """Staging pauses while the live version's p99 of one second is more than this multiple of before. 0: it never pauses."""
    pause_s_max: float = 120.0
    """How long staging may pause in all; then it ends."""

    def __post_init__(self) -> None:
        if self.p99_ratio_max < 0 or self.pause_s_max < 0:
            raise ValueError("p99_ratio_max, pause_s_max: expected 0 or more")
        if self.memory_mb_max < 1 or self.timeout_s <= 0 or self.deadline_misses_max < 0:
            raise ValueError(
                "memory_mb_max, timeout_s, deadline_misses_max: expected at least 1, more than 0, 0 or more"
            )


class ShadowSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a shadow is compared with the live version: in its own process, at the lowest priority."""

    ring_mb: int = 32
    """Shared memory for rows that wait for the shadow; rows that find no room are not compared."""
    states_mb_max: int = 256
    """Recurrent state of the shadow; beyond it the groups silent for longest are not compared until their next episode."""
    distance_max: float = 0.0
    """Euclidean distance up to which two continuous actions agree. 0: the tolerance of the live version's card."""
    silent_s_max: float = 120.0
    """A shadow process that reads nothing for this long is considered hung and is ended. On a busy host it reads rarely."""

    def __post_init__(self) -> None:
        if not 1 <= self.ring_mb <= 65_536:
            raise ValueError(f"ring_mb: expected 1 to 65536, got {self.ring_mb}")
        if self.states_mb_max < 1 or self.distance_max < 0 or self.silent_s_max <= 0:
            raise ValueError("states_mb_max, distance_max, silent_s_max: expected at least 1, 0 or more, more than 0")


class AutoRollbackSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Automatic rollback: the bounds that a new version must keep for a while after a switch."""

    watch_s: float = 300.0
    """How long it is watched after the switch. 0: not at all."""
    acts_min: int = 200
    """With fewer acts, shares are not judged."""
    error_share_max: float = 0.01
    """The share of acts that the engine failed to run."""
    late_share_max: float = 0.1
    """The share of acts whose budget ended before they ran."""
    non_finite_max: int = 0
    """Acts answered with a NaN or an infinity."""
    p99_us_max: float = 0.0
    """p99 from the receipt of an act to the end of its run. 0: no bound."""
    p99_ratio_max: float = 0.0
    """That p99 as a multiple of the previous version's. 0: no bound."""
    engine_out: bool = True
    """Whether a version whose engine is out makes way, at any time: the stable one for the version before it, an arm for the
    stable one."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the engine runs."""

    threads: int = 1
    strict: bool = False
    """Whether every batch runs in one shape, so that the rest of the batch cannot change an answer."""
    strict_rows: int = 1
    """The rows of that shape; a larger batch takes several runs."""
    cache_rows_max: int = 0
    """Rows in the result cache; 0: no cache. Only for a policy whose outputs depend on nothing but the observation."""
    cache_mb_max: int = 64
    """Memory of the result cache."""
    placement: Literal["auto", "inline", "worker"] = "auto"
    """Where the engine runs. `auto`: inside the serving process if its graph is bounded and fast, else in a worker."""
    inline_us_max: float = 200.0
    """The p99 of every bucket, in µs, below which `auto` calls an engine fast."""
    depth: int = 1
    """Batches that a worker has at once. 2 lets copying and computing overlap, where a device does the computing."""
    spin_us: int = 200
    """How long a worker polls for the next batch before it sleeps. It polls only while batches come within that time."""
    worker_cpus: str | list[str] = ""
    """The CPUs that workers run on, such as `3` or `2,4-6`. Empty: those of the daemon. A list has an entry for each device."""
    worker_memory_mb_max: int = 8_192
    """Address space of a worker: what needs more fails, in that worker alone. It is killed if its resident memory is more."""
    hang_ms_min: int = 1_000
    """A worker hangs when a batch takes this long and twenty times as long as its slowest ones; then it is replaced."""
    start_s_max: float = 60.0
    """How long a worker may take from its start until its version is warm, in seconds. One that takes longer is replaced."""
    python: str = ""
    """The interpreter that workers run in, with what is installed there: an absolute path. Empty: the daemon's own."""
    device: str | list[str] = "auto"
    """Where the engine computes: `auto`, `cpu` or `cuda:N`. Of several, each has a worker, and a batch runs in any of them."""
    device_required: bool = False
    """Whether a version that cannot compute on `device` is refused. Otherwise it computes elsewhere, and everything says so."""
    device_memory_mb: int = 0
    """Memory of each device that a version may use. 0: no bound. A Python policy is only held to it while it is staged."""
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    """The precision to compute in. A version whose golden pairs do not hold in it, within its tolerance, gets float32."""
    channels_last: bool = False
    """Whether the images of torch policies have their channels last in the memory of the device."""
    keep_warm_ms: int = 0
    """After how long without a batch a device computes a small one, so that its clocks stay up. 0: never."""
    provider: Literal["cuda", "tensorrt"] = "cuda"
    """What ONNX Runtime computes with on a CUDA device. `tensorrt` builds an engine while a version is staged."""
    compile: bool = False
    """Whether torch policies run compiled for this host. They are compiled while a version is staged, by a C++ compiler."""
    build_cache_dir: str = ""
    """Where engines and compiled programs are kept: an absolute path. Empty: `builds` in systemd's cache folder, or the user's."""
    build_cache_mb_max: int = 4_096
    """Size of that folder. What was not used for the longest time is removed first."""
    build_s_max: float = 600.0
    """How long a build may take, in seconds. A version whose build takes longer computes without it."""

    def __post_init__(self) -> None:
        if not 1 <= self.start_s_max <= WORKER_START_S_MAX:
            raise ValueError(f"start_s_max: expected 1 to {WORKER_START_S_MAX:g}, got {self.start_s_max:g}")
        if self.python and not os.path.isabs(self.python):
            raise ValueError(f"python: expected an absolute path, got {self.python!r}")
        if self.build_cache_dir and not os.path.isabs(self.build_cache_dir):
            raise ValueError(f"build_cache_dir: expected an absolute path, got {self.build_cache_dir!r}")
        if not 1 <= self.build_s_max <= BUILD_S_MAX:
            raise ValueError(f"build_s_max: expected 1 to {BUILD_S_MAX:g}, got {self.build_s_max:g}")
        self._check_devices()
        for name, (least, most) in ENGINE_BOUNDS.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name}: expected {least} to {most}, got {getattr(self, name)}")
        if self.worker_memory_mb_max < WORKER_MEMORY_MB_MIN:
            raise ValueError(
                f"worker_memory_mb_max: expected at least {WORKER_MEMORY_MB_MIN}, got {self.worker_memory_mb_max}"
            )
        for cpus in [self.worker_cpus] if isinstance(self.worker_cpus, str) else self.worker_cpus:
            if cpus:
                check_cpus("worker_cpus", cpus)
        if not 0 < self.inline_us_max <= INLINE_US_HARD_MAX:
            raise ValueError(
                f"inline_us_max: expected more than 0, at most {INLINE_US_HARD_MAX}, got {self.inline_us_max}"
            )

    @property
    def builds(self) -> bool:
        """Whether something may be built while a version is staged."""
        return self.provider == "tensorrt" or self.compile

    def _check_devices(self) -> None:
        """Raises `ValueError` unless it names devices, and what is there for each of several fits them."""
        devices = self.devices
        if not 1 <= len(devices) <= WORKER_REPLICAS_MAX:
            raise ValueError(f"device: expected 1 to {WORKER_REPLICAS_MAX} devices, got {len(devices)}")
        if len(devices) > 1 and "auto" in devices:
            raise ValueError("device: expected cpu or cuda:N as each of several, got 'auto'")
        if devices != ["auto"]:
            for device in devices:
                check_device("device", device)
        if len(devices) > 1 and self.placement == "inline":
            raise ValueError(f"placement: expected auto or worker for {len(devices)} devices, got 'inline'")
        if isinstance(self.worker_cpus, list) and len(self.worker_cpus) != len(devices):
            raise ValueError(
                f"worker_cpus: expected a text, or as many as devices ({len(devices)}), got {len(self.worker_cpus)}"
            )

    @property
    def devices(self) -> list[str]:
        """The devices of `device`. A version has a worker on each, if there are several."""
        return [self.device] if isinstance(self.device, str) else self.device

    def worker_count(self, *, is_recurrent: bool) -> int:
        """Returns how many workers a version has: one on each device; a recurrent one has one, on the first.

        Its state would have to follow each act to another device.
        """
        return 1 if is_recurrent else len(self.devices)

    def on_device(self, index: int) -> EngineSettings:
        """Returns the settings of the worker on one of the devices: with that device and its CPUs alone."""
        own = copy(self)
        # Not by `replace`, which would check them again: a CPU that is gone by now concerns one worker, not the caller.
        msgspec.structs.force_setattr(own, "device", self.devices[index])
        if not isinstance(self.worker_cpus, str):
            msgspec.structs.force_setattr(own, "worker_cpus", self.worker_cpus[index])
        return own

    @property
    def load_s_max(self) -> float:
        """From the request to load a version until it is warm: all tries to start its worker."""
        return WORKER_LOSSES_MAX * (self.start_s_max + WORKER_DELAY_S_MAX) + LOAD_MARGIN_S

    @property
    def one_shape_rows(self) -> int:
        """The rows of the strict shape; 0 if batches run in buckets."""
        return self.strict_rows if self.strict else 0

    @property
    def cache_mb(self) -> int:
        """The most MB of the result cache; 0 if there is none."""
        return self.cache_mb_max if self.cache_rows_max else 0


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The log on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class PolicySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of several policies: an entry of `[[policies]]`. A key that its sections leave out is as in the daemon's section."""

    policy: str
    """As `store.policy`; two entries may not name the same policy."""
    limits: PolicyLimits = PolicyLimits()
    engine: EngineSettings = EngineSettings()
    versions: VersionSettings = VersionSettings()
    staging: StagingSettings = StagingSettings()
    shadow: ShadowSettings = ShadowSettings()
    auto_rollback: AutoRollbackSettings = AutoRollbackSettings()


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings."""

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
    policies: list[PolicySettings] = []
    """The policies to serve, the default one first. Empty: only `store.policy`."""

    def served(self) -> list[Settings]:
        """Returns for each policy to serve, the default one first, the settings of a daemon that serves only that one."""
        return [self._of(policy) for policy in self.policies] or [self]

    @property
    def may_run_inline(self) -> bool:
        """Whether a version of any policy may run in the serving process."""
        return any(policy.engine.placement != "worker" for policy in self.served())

    def _of(self, policy: PolicySettings) -> Settings:
        own = {section: getattr(policy, section) for section in _OWN_SECTIONS if section != "limits"}
        return msgspec.structs.replace(
            self,
            **own,
            store=msgspec.structs.replace(self.store, policy=policy.policy),
            limits=msgspec.structs.replace(self.limits, **msgspec.structs.asdict(policy.limits)),
            policies=[],
        )

    def data_addresses(self) -> list[str]:
        """Returns the addresses to listen at, checked; raises `SettingsError`."""
        addresses = self.data.listen or [own_lane_address(), f"ipc://{runtime_folder() / 'zmq.sock'}"]
        for address in addresses:
            check_data_address(address)
        return addresses


def load_settings(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Settings:
    """Returns the effective settings; raises `SettingsError`, which begins with the path of the wrong setting."""
    merged: dict[str, Any] = {}
    policies: list[Any] = []
    for layer in (_read_file(file), _from_environment(environment), flags):
        for section, values in layer.items():
            if section == "policies":
                continue
            if not isinstance(values, Mapping):
                raise SettingsError(f"{section}: expected a section, got {values!r}")
            merged.setdefault(section, {}).update(values)
        policies = _policies_with(layer, policies, merged)
    # Last, so that an error in a section is reported there, and not in an entry that takes its keys over.
    merged["policies"] = [_completed(entry, merged) for entry in policies]
    try:
        settings = msgspec.convert(merged, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(_with_path(error)) from None
    _check_policies(settings.policies)
    settings.data_addresses()
    settings.data.group_id()
    settings = msgspec.structs.replace(settings, admin=settings.admin.with_credentials(environment))
    settings.admin.addresses()
    settings.admin.group_id()
    return settings


def check_memory(settings: Settings, rows_bytes: Iterable[int]) -> None:
    """Checks the sum of what several policies may take, given the bytes of a row of each; raises `SettingsError`."""
    served = settings.served()
    sums = [
        policy_mb(
            own.limits,
            row_bytes,
            own.versions.old_mb_max,
            own.shadow.ring_mb,
            own.engine.depth * len(own.engine.devices),
            own.engine.cache_mb,
        )
        for own, row_bytes in zip(served, rows_bytes, strict=True)
    ]
    if len(served) > 1 and sum(sums) > settings.limits.policies_mb_max:
        parts = ", ".join(f"{own.store.policy} {mb}" for own, mb in zip(served, sums, strict=True))
        raise SettingsError(
            f"limits.policies_mb_max: expected at least {sum(sums)}, which the policies may take by their limits ({parts}), "
            f"got {settings.limits.policies_mb_max}"
        )


def _policies_with(layer: Mapping[str, Any], below: list[Any], merged: dict[str, Any]) -> list[Any]:
    """Returns the entries of `[[policies]]` once `layer` lies over those `below`.

    A layer that names one policy (`store.policy`) or several (`[[policies]]`) replaces whatever the layers below it name.
    """
    several, is_one = layer.get("policies", []), bool(layer.get("store", {}).get("policy"))
    if not isinstance(several, list):
        raise SettingsError(f"policies: expected entries [[policies]], got {several!r}")
    if several and is_one:
        raise SettingsError("store.policy: expected either this or [[policies]], got both")
    if several:
        merged.setdefault("store", {}).pop("policy", None)
        return several
    return [] if is_one else below


def _completed(entry: Any, sections: Mapping[str, Any]) -> Any:
    """Returns an entry of `[[policies]]` with the keys of the daemon's sections that its own sections leave out."""
    if not isinstance(entry, Mapping):
        return entry
    completed = dict(entry)
    for section in _OWN_SECTIONS:
        own = entry.get(section, {})
        if isinstance(own, Mapping):
            below = sections.get(section, {})
            if section == "limits":
                below = {key: value for key, value in below.items() if key in PolicyLimits.__struct_fields__}
            completed[section] = {**below, **own}
    return completed


def _check_policies(policies: list[PolicySettings]) -> None:
    """Raises `SettingsError` if there are too many, or if one has no valid name or that of another."""
    if len(policies) > POLICIES_MAX:
        raise SettingsError(f"policies: expected at most {POLICIES_MAX}, got {len(policies)}")
    names: list[str] = []
    for index, entry in enumerate(policies):
        try:
            name = parse_reference(entry.policy).policy
        except ArtifactError as error:
            raise SettingsError(f"policies[{index}].policy: {error}") from None
        if name in names:
            raise SettingsError(
                f"policies[{index}].policy: expected each policy once, got {name} here and in policies[{names.index(name)}]"
            )
        names.append(name)


def check_cpus(name: str, text: str) -> None:
    """Raises `ValueError` unless the list names CPUs that this process may use."""
    usable = os.sched_getaffinity(0)
    if not cpu_numbers(text) <= usable:
        raise ValueError(f"{name}: expected some of {_as_list(usable)}, got {text!r}")


def check_device(name: str, text: str) -> None:
    """Raises `ValueError` unless the text names a device."""
    number = text.removeprefix("cuda:")
    is_cuda = number != text and number.isascii() and number.isdecimal() and str(int(number)) == number
    if text != "cpu" and not (is_cuda and int(number) < ENGINE_DEVICES_MAX):
        raise ValueError(f"{name}: expected auto, cpu, or cuda:0 to cuda:{ENGINE_DEVICES_MAX - 1}, got {text!r}")


def cpu_numbers(text: str) -> set[int]:
    """Returns the CPUs in a list such as `2,4-6`; raises `ValueError`."""
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
    """Puts the path first, as an operator looks for it. Where msgspec words its error otherwise, the text stays as it is."""
    text, _, path = text_of(error, Settings).partition(" - at `$.")
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
