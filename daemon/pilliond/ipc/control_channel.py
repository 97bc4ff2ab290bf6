"""What the control process and the serving process say to each other: msgpack over a socket pair.

The control process sends one `StartupConfig`, then `Load`s, `Switch`es and at last `Drain`. The serving process answers with
reports. The memory of a version travels beside its order, as descriptors (`SCM_RIGHTS`).
"""

from __future__ import annotations

import asyncio
import socket
from array import array
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from pillion_artifacts.card.model_card import Distribution, StateCard, Tolerance
from pillion_protocol import Spec
from pilliond.ipc.batch_certificate import Certificate
from pilliond.ipc.session_info import SessionInfo
from pilliond.limits import ServingLimits
from pilliond.settings.schema import EngineSettings, ServingSettings, VersionSettings
from pilliond.traffic_split import Arm

_MESSAGE_BYTES_MAX: Final = 1 << 20
_DESCRIPTORS_MAX: Final = 2


class VersionRequest(msgspec.Struct, frozen=True):
    """What the serving process must know of a version, beside its bytes."""

    policy: str
    version: str
    digest: bytes
    spec: Spec
    distribution: Distribution
    safe_action: list[float] | None
    tolerance: Tolerance
    states: list[StateCard]
    metrics_index: int
    """Which cells of the metrics page are its own."""
    certificate: Certificate | None = None
    """How much the batch changes its answers; None: the serving process is to find out."""


class Beside(msgspec.Struct, frozen=True):
    """A version that is loaded beside the stable one when the process starts; the descriptors are as in `StartupConfig`."""

    version: VersionRequest
    model_descriptor: int
    golden_descriptor: int


class StartupConfig(msgspec.Struct, frozen=True, tag=True):
    """All that the serving process needs to know.

    The model itself is the sealed memfd `model_descriptor`, the golden pairs are `golden_descriptor`, -1 where the
    artifact has none.
    """

    epoch: int
    listen: list[str]
    version: VersionRequest
    model_descriptor: int
    golden_descriptor: int
    page_descriptor: int
    engine: EngineSettings
    limits: ServingLimits
    serving: ServingSettings
    residency: VersionSettings
    watch_s: float
    """How long the outputs of a version are looked at after it was switched to."""
    certificate: str
    """What the certificate of the version must meet: `any`, `within 1e-6` or `exact`."""
    group: int | None
    """The id of the group whose members may connect, beside this user and root."""
    beside: list[Beside] = []
    arms: list[Arm] = []
    """How new episodes are shared out from the start; their versions are among `beside`."""
    held: list[bytes] = []
    """Versions that are held for evaluations; they are the stable one or among `beside`."""


class Load(msgspec.Struct, frozen=True, tag=True):
    """Load a version that was staged, beside those that serve. The sealed memfd of its model comes with the message."""

    version: VersionRequest


class Switch(msgspec.Struct, frozen=True, tag=True):
    """New episodes lease this version, which is loaded, from now on."""

    digest: bytes


class Route(msgspec.Struct, frozen=True, tag=True):
    """Share out new episodes so; every version is loaded. `digest` is that of the stable version."""

    digest: bytes
    arms: list[Arm]


class Hold(msgspec.Struct, frozen=True, tag=True):
    """Hold these versions, which are loaded, for evaluations, and no others."""

    digests: list[bytes]


class Warm(msgspec.Struct, frozen=True, tag=True):
    """Run every bucket of a version that is loaded once, one a tick."""

    digest: bytes


class Shadow(msgspec.Struct, frozen=True, tag=True):
    """Copy what the stable version `digest` answers into a shadow's page, whose descriptor comes with the message."""

    digest: bytes


class ListSessions(msgspec.Struct, frozen=True, tag=True):
    """Tell of some sessions, those opened after the one with this number."""

    after: int


class EndShadow(msgspec.Struct, frozen=True, tag=True):
    """Copy no longer."""


class Unload(msgspec.Struct, frozen=True, tag=True):
    """Forget a version that was loaded and will not be switched to."""

    digest: bytes


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Answer what was admitted, say goodbye, end."""

    reason: str


class LoadFailed(msgspec.Struct, frozen=True, tag=True):
    """A version cannot be loaded, or an order names one that is not; nothing has changed."""

    digest: bytes
    message: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Every bucket is warm and every address is listened at."""

    listen: list[str]
    engine: dict[str, Any]
    certificates: dict[bytes, Certificate]
    """Those of the versions that it began with, by digest."""
    process: dict[str, Any]
    """How it uses its core, as the kernel and the interpreter say it, not the settings."""
    refused: list[LoadFailed] = []
    """Which versions of `beside` could not be loaded, and why: they are not in the route."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The serving process cannot start; `exit_code` is the sysexits code of why."""

    message: str
    exit_code: int


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """A version is warm beside those that serve; `stall_ns` is how long the loop was kept from looking, at worst."""

    digest: bytes
    engine: dict[str, Any]
    load_ns: int
    stall_ns: int


class Switched(msgspec.Struct, frozen=True, tag=True):
    """New episodes lease `digest` since `at_ns` (CLOCK_MONOTONIC)."""

    digest: bytes
    was: bytes
    at_ns: int


class Routed(msgspec.Struct, frozen=True, tag=True):
    """New episodes are shared out so."""

    digest: bytes
    arms: list[Arm]


class Held(msgspec.Struct, frozen=True, tag=True):
    """These versions are held for evaluations. `error`: they are not, and why; then those are held that were before."""

    digests: list[bytes]
    error: str = ""

    @property
    def digest(self) -> bytes:
        """It is about no one version."""
        return b"held"


class Warmed(msgspec.Struct, frozen=True, tag=True):
    """Every bucket was run once; `longest_ns` is the longest that one of them kept the loop."""

    digest: bytes
    buckets: int
    longest_ns: int


class SessionList(msgspec.Struct, frozen=True, tag=True):
    """Some sessions, in the order in which they were opened."""

    after: int
    sessions: list[SessionInfo]
    is_last: bool
    """Whether there are no more."""

    @property
    def digest(self) -> bytes:
        """It is about no version."""
        return b"sessions"


class Shadowed(msgspec.Struct, frozen=True, tag=True):
    """The rows of the stable version are copied from now on; `error`: they are not, and why."""

    error: str = ""

    @property
    def digest(self) -> bytes:
        """It is about no one version."""
        return b"shadowed"


class Unloaded(msgspec.Struct, frozen=True, tag=True):
    """The memory of a version was given back; `leases` handles still held it and are told `version_gone`."""

    digest: bytes
    leases: int


class Event(msgspec.Struct, frozen=True, tag=True):
    """Something for the log."""

    name: str
    fields: dict[str, Any]


ControlMessage = (
    StartupConfig | Load | Switch | Route | Hold | Warm | Shadow | EndShadow | ListSessions | Unload | Drain
)
Report = (
    Ready | Failed | Loaded | LoadFailed | Switched | Routed | Held | Warmed | Shadowed | SessionList | Unloaded | Event
)

_encoder = msgspec.msgpack.Encoder()
_control_message_decoder: msgspec.msgpack.Decoder[ControlMessage] = msgspec.msgpack.Decoder(ControlMessage)
_report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def make_channel() -> tuple[socket.socket, socket.socket]:
    """The control process's end and the serving process's end; the caller owns both."""
    control_end, serving_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control_end.setblocking(False)
    return control_end, serving_end


def send(end: socket.socket, message: ControlMessage | Report, descriptors: Sequence[int] = ()) -> None:
    """Sends a message whole, and copies of `descriptors`; raises `BlockingIOError` where the other side does not read."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
    end.sendmsg([_encoder.encode(message)], rights, socket.MSG_NOSIGNAL)


def receive_control_message(end: socket.socket) -> tuple[ControlMessage | None, list[int]]:
    """The next order (None where the control process is gone) and the descriptors with it, which the caller owns."""
    data, descriptors, _, _ = socket.recv_fds(end, _MESSAGE_BYTES_MAX, _DESCRIPTORS_MAX)
    return (_control_message_decoder.decode(data) if data else None), descriptors


async def receive_report(end: socket.socket) -> Report | None:
    """The next report, or None where the serving process is gone."""
    try:
        data = await asyncio.get_running_loop().sock_recv(end, _MESSAGE_BYTES_MAX)
    except ConnectionResetError:
        return None
    return _report_decoder.decode(data) if data else None
