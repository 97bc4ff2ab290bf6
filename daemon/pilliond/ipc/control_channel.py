"""The messages between the control process and the serving process: msgpack over a socket pair.

The control process sends one `StartupConfig`, then control messages such as `Load` and `Switch`, and at last `Drain`. The
serving process answers with reports. The sealed memory of a version travels with its message, as descriptors
(`SCM_RIGHTS`).
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec
from msgspec.structs import replace

from pillion_artifacts.card.model_card import Distribution, EngineCard, StateCard, Tolerance
from pillion_protocol import Spec
from pilliond.errors import DescriptorsError
from pilliond.ipc.batch_certificate import Certificate
from pilliond.ipc.descriptor_messages import receive
from pilliond.ipc.loss_cause import LossCause
from pilliond.ipc.placement import Placement, ServiceTime
from pilliond.ipc.session_info import SessionInfo
from pilliond.limits import CHANNEL_DESCRIPTORS_MAX, CHANNEL_MESSAGE_BYTES_MAX, STARTUP_DESCRIPTORS_MAX, PolicyLimits
from pilliond.settings.schema import EngineSettings, ServingSettings, VersionSettings
from pilliond.traffic_split import Arm

EventFields = dict[str, str | int | float]
"""The fields of a log event."""

LogEvent = Callable[[str, EventFields], None]
"""`log_event(name, fields)`: the serving process has no log of its own, so it reports events to the control process."""


class VersionRequest(msgspec.Struct, frozen=True):
    """What the serving process needs to build a version, beside its bytes."""

    policy: str
    version: str
    digest: bytes
    spec: Spec
    distribution: Distribution
    safe_action: list[float] | None
    tolerance: Tolerance
    states: list[StateCard]
    metrics_index: int
    """Which version cells of the metrics page it counts in."""
    certificate: Certificate | None = None
    """How much the rest of a batch changes its answers; None: the serving process measures it."""
    unbounded: str = ""
    """Why its graph is not bounded, so that it must not run inside the serving process; empty: it is bounded."""
    placement: Placement | None = None
    """Where its engine runs; None: the serving process decides when it starts."""
    service_us: list[ServiceTime] = []
    """What each bucket of rows took when it was staged; empty: it was not staged."""
    engine: EngineCard = EngineCard()
    """What runs the model."""
    fallback: str = ""
    """Why it computes in float32 although the settings ask for more speed; empty: it does what they ask for, or was not tried."""


class Beside(msgspec.Struct, frozen=True):
    """A version to load beside the stable one at start. The descriptors are as in `PolicyConfig`."""

    version: VersionRequest
    model_descriptor: int
    golden_descriptor: int


class PolicyConfig(msgspec.Struct, frozen=True):
    """Everything that the serving process needs to serve one policy. `version` is the stable one.

    `model_descriptor` is the sealed memfd of the model, `golden_descriptor` that of the golden pairs (-1: none).
    """

    version: VersionRequest
    model_descriptor: int
    golden_descriptor: int
    engine: EngineSettings
    limits: PolicyLimits
    residency: VersionSettings
    watch_s: float
    """How long after a switch the outputs of the new version are checked, in seconds."""
    certificate: str
    """The certificate that the version must reach: `any`, `within 1e-6` or `exact`."""
    beside: list[Beside] = []
    arms: list[Arm] = []
    """The traffic split of new episodes from the start; the versions are among `beside`."""
    held: list[bytes] = []
    """Digests of versions held for evaluations: the stable one, or some of `beside`."""


class StartupConfig(msgspec.Struct, frozen=True):
    """Everything that the serving process needs to start."""

    epoch: int
    listen: list[str]
    policies: list[PolicyConfig]
    """The first is the default: a hello that names no policy gets it."""
    page_descriptor: int
    serving: ServingSettings
    sessions_max: int
    """Sessions at once, of all policies."""
    group: int | None
    """The id of the group whose members may connect, besides this user and root."""
    code: list[str] = []
    """`trust.code`: the packages that Python policies may come from."""


class Load(msgspec.Struct, frozen=True, tag=True):
    """Load a staged version beside those that serve. The sealed memfd of its model comes with the message."""

    version: VersionRequest


class Switch(msgspec.Struct, frozen=True, tag=True):
    """Make this loaded version the stable one: new episodes lease it from now on."""

    digest: bytes


class Route(msgspec.Struct, frozen=True, tag=True):
    """Split new episodes between these arms, whose versions are loaded. `digest` is that of the stable version."""

    digest: bytes
    arms: list[Arm]


class Hold(msgspec.Struct, frozen=True, tag=True):
    """Hold exactly these loaded versions of a policy for evaluations."""

    policy: str
    digests: list[bytes]


class Warm(msgspec.Struct, frozen=True, tag=True):
    """Run every bucket of a loaded version once, one per tick."""

    digest: bytes


class Shadow(msgspec.Struct, frozen=True, tag=True):
    """Copy the batches of the stable version `digest` into a shadow's page, whose descriptor comes with the message."""

    digest: bytes


class ListSessions(msgspec.Struct, frozen=True, tag=True):
    """Report some of the sessions opened after the one with this number."""

    after: int


class WorkerStarted(msgspec.Struct, frozen=True, tag=True):
    """A worker for a version runs. The sealed memfd of the model and an end of the worker's channel come with the message."""

    digest: bytes
    replica: int = 0
    """Which of its workers: the index of its device in `engine.device`."""


class GiveUp(msgspec.Struct, frozen=True, tag=True):
    """No further worker is started for a version, or for one of its replicas: it is out."""

    digest: bytes
    reason: str
    replica: int = 0


class EndShadow(msgspec.Struct, frozen=True, tag=True):
    """Stop copying batches of a policy for its shadow."""

    policy: str


class Unload(msgspec.Struct, frozen=True, tag=True):
    """Unload a version that was loaded and is not needed after all."""

    digest: bytes


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Answer what was admitted, say goodbye, and exit."""

    reason: str


class LoadFailed(msgspec.Struct, frozen=True, tag=True):
    """A version cannot be loaded, or a message names one that is not loaded; nothing has changed."""

    digest: bytes
    message: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Every bucket is warm, and the process listens at every address."""

    listen: list[str]
    engines: dict[bytes, dict[str, Any]]
    """The engines of the versions that it started with, by digest."""
    certificates: dict[bytes, Certificate]
    """The certificates of the versions that it started with, by digest. A digest is that of one policy only."""
    placements: dict[bytes, Placement]
    """Where the engines of these versions run."""
    process: dict[str, Any]
    """How it uses its core, as the kernel and the interpreter report it, not the settings."""
    refused: list[LoadFailed] = []
    """The versions of `beside` that could not be loaded, and why. The routes do not have them."""


class NeedWorker(msgspec.Struct, frozen=True, tag=True):
    """A version needs a worker: its first one, or one that replaces a lost one, which may still run."""

    digest: bytes
    reason: str = ""
    """Why the last one was lost; empty for the first."""
    batches: int = 0
    """Batches that the last one completed."""
    reruns: int = 0
    """Acts that ran in the last one and will run again: one of them may have ended it."""
    is_repeat: bool = False
    """Whether the act that ended it is of a session whose acts have done so before: it says nothing new of the version."""
    cause: LossCause = LossCause.ENDED
    """The kind of that reason."""
    replica: int = 0
    """As in `WorkerStarted`."""


class WorkerReady(msgspec.Struct, frozen=True, tag=True):
    """A worker has loaded its version and warmed it up. `engine` describes the version's engine, with all its workers."""

    digest: bytes
    engine: dict[str, Any]
    replica: int = 0


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The serving process cannot start; `exit_code` is the sysexits code of the reason."""

    message: str
    exit_code: int


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """A version is loaded and warm. `stall_ns` is the longest time that the load kept the serving loop from running."""

    digest: bytes
    engine: dict[str, Any]
    load_ns: int
    stall_ns: int


class Switched(msgspec.Struct, frozen=True, tag=True):
    """New episodes lease `digest` since `at_ns` (CLOCK_MONOTONIC); before, they leased `was`."""

    digest: bytes
    was: bytes
    at_ns: int


class Routed(msgspec.Struct, frozen=True, tag=True):
    """New episodes are split between these arms."""

    digest: bytes
    arms: list[Arm]


class Held(msgspec.Struct, frozen=True, tag=True):
    """These versions of a policy are held for evaluations. If `error` is set, they are not, and the earlier holds remain."""

    policy: str
    digests: list[bytes]
    error: str = ""

    @property
    def digest(self) -> bytes:
        """A key for the waiting caller: this report is about no single version."""
        return self.policy.encode()


class Warmed(msgspec.Struct, frozen=True, tag=True):
    """Every bucket ran once; `longest_ns` is the longest time that one of them blocked the loop."""

    digest: bytes
    buckets: int
    longest_ns: int


class SessionList(msgspec.Struct, frozen=True, tag=True):
    """Some sessions, oldest first."""

    after: int
    sessions: list[SessionInfo]
    is_last: bool
    """Whether these are the last."""

    @property
    def digest(self) -> bytes:
        """A key for the waiting caller: this report is about no version."""
        return b"sessions"


class Shadowed(msgspec.Struct, frozen=True, tag=True):
    """The batches of this stable version are copied from now on; `error` says why they are not."""

    digest: bytes
    error: str = ""


class Unloaded(msgspec.Struct, frozen=True, tag=True):
    """A version was unloaded. `leases` episode groups still leased it; their next act gets `version_gone`."""

    digest: bytes
    leases: int


class Event(msgspec.Struct, frozen=True, tag=True):
    """A log event."""

    name: str
    fields: EventFields


ControlMessage = (
    WorkerStarted | GiveUp | Load | Switch | Route | Hold | Warm | Shadow | EndShadow | ListSessions | Unload | Drain
)
Report = (
    Ready
    | Failed
    | NeedWorker
    | WorkerReady
    | Loaded
    | LoadFailed
    | Switched
    | Routed
    | Held
    | Warmed
    | Shadowed
    | SessionList
    | Unloaded
    | Event
)

INLINE: Final = "inline"
"""The argument of a serving process that may run versions itself, and not only in workers."""

_STARTUP: Final = b"startup"

V = TypeVar("V", PolicyConfig, Beside)

_startup_decoder: msgspec.msgpack.Decoder[StartupConfig] = msgspec.msgpack.Decoder(StartupConfig)
_encoder = msgspec.msgpack.Encoder()
_control_message_decoder: msgspec.msgpack.Decoder[ControlMessage] = msgspec.msgpack.Decoder(ControlMessage)
_report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def make_channel() -> tuple[socket.socket, socket.socket]:
    """Returns the end of the control process and that of the serving process; the caller owns both."""
    control_end, serving_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control_end.setblocking(False)
    return control_end, serving_end


def send(end: socket.socket, message: ControlMessage | Report, descriptors: Sequence[int] = ()) -> None:
    """Sends a whole message with copies of `descriptors`; raises `BlockingIOError` if the other side does not read."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
    end.sendmsg([_encoder.encode(message)], rights, socket.MSG_NOSIGNAL)


def send_startup(end: socket.socket, config: StartupConfig) -> None:
    """Sends the first message and copies of its descriptors. Raises `OSError`.

    It may be larger than a packet, so it travels in memory of its own.
    """
    descriptor = os.memfd_create("pillion-startup", os.MFD_CLOEXEC)
    with open(descriptor, "r+b") as memory:
        memory.write(_encoder.encode(config))
        memory.flush()
        socket.send_fds(end, [_STARTUP], [descriptor], socket.MSG_NOSIGNAL)
    numbers = _descriptors_of(config)
    for first in range(0, len(numbers), STARTUP_DESCRIPTORS_MAX):
        socket.send_fds(end, [_STARTUP], numbers[first : first + STARTUP_DESCRIPTORS_MAX], socket.MSG_NOSIGNAL)


def receive_startup(end: socket.socket) -> StartupConfig | None:
    """Returns the first message, with this process's descriptors; None if the control process is gone, or sent another.

    Raises `DescriptorsError` if the kernel drops one of them.
    """
    data, descriptors, flags, _ = socket.recv_fds(end, len(_STARTUP), 1)
    _check_whole(flags, 0, 1)
    if data != _STARTUP or not descriptors:
        return None
    with open(descriptors[0], "rb") as memory:
        memory.seek(0)
        config = _startup_decoder.decode(memory.read())
    numbers = _descriptors_of(config)
    received: list[int] = []
    while len(received) < len(numbers):
        _, descriptors, flags, _ = socket.recv_fds(end, len(_STARTUP), STARTUP_DESCRIPTORS_MAX)
        received += descriptors
        _check_whole(flags, len(received), len(numbers))
        if not descriptors:
            return None
    return _with_descriptors(config, dict(zip(numbers, received, strict=True)))


def _check_whole(flags: int, received: int, expected: int) -> None:
    """Raises `DescriptorsError` if the kernel has dropped descriptors: they are not sent again."""
    if flags & socket.MSG_CTRUNC:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise DescriptorsError(
            f"the serving process got {received} of {expected} descriptors of its start: expected room for them, "
            f"got a limit of {limit} open files (LimitNOFILE, ulimit -n)"
        )


def _descriptors_of(config: StartupConfig) -> list[int]:
    """The descriptors that a startup message names."""
    versions: list[PolicyConfig | Beside] = []
    for policy in config.policies:
        versions += [policy, *policy.beside]
    named = [number for version in versions for number in (version.model_descriptor, version.golden_descriptor)]
    return [config.page_descriptor, *(number for number in named if number >= 0)]


def _with_descriptors(config: StartupConfig, own: dict[int, int]) -> StartupConfig:
    """The message with this process's numbers instead of the control process's."""

    def with_own(version: V) -> V:
        model, golden = own[version.model_descriptor], own.get(version.golden_descriptor, -1)
        return replace(version, model_descriptor=model, golden_descriptor=golden)

    policies = [
        replace(with_own(policy), beside=[with_own(beside) for beside in policy.beside]) for policy in config.policies
    ]
    return replace(config, page_descriptor=own[config.page_descriptor], policies=policies)


def receive_control_message(end: socket.socket) -> tuple[ControlMessage | None, list[int]]:
    """Returns the next message (None if the control process is gone) and all or none of its descriptors, see `receive`."""
    return receive(end, _control_message_decoder.decode, CHANNEL_DESCRIPTORS_MAX)


def is_to_stop(end: socket.socket) -> bool:
    """Whether the next message, which stays unread, is `Drain`, or the control process is gone. Never waits."""
    try:
        data = end.recv(CHANNEL_MESSAGE_BYTES_MAX, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    return not data or isinstance(_control_message_decoder.decode(data), Drain)


async def receive_report(end: socket.socket) -> Report | None:
    """Returns the next report, or None if the serving process is gone."""
    try:
        data = await asyncio.get_running_loop().sock_recv(end, CHANNEL_MESSAGE_BYTES_MAX)
    except ConnectionResetError:
        return None
    return _report_decoder.decode(data) if data else None
