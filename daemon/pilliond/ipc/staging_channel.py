"""The messages between the control process and the staging process: msgpack over a socket pair, with descriptors."""

from __future__ import annotations

import asyncio
import socket
from array import array
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from pillion_artifacts.card.model_card import ModelCard
from pillion_artifacts.verify.trust_policy import TrustPolicy
from pilliond.errors import DescriptorsError
from pilliond.ipc.batch_certificate import Certificate
from pilliond.ipc.descriptor_messages import close_all, receive
from pilliond.ipc.placement import Placement, ServiceTime
from pilliond.limits import CHANNEL_DESCRIPTORS_MAX, CHANNEL_MESSAGE_BYTES_MAX
from pilliond.settings.schema import EngineSettings


class StageRequest(msgspec.Struct, frozen=True, tag=True):
    """The version to stage, and what it must pass."""

    store: str
    policy: str
    version: str
    digest: str
    trust: TrustPolicy
    rows_max: int
    engine: EngineSettings
    memory_mb_max: int
    certificate: str
    """The certificate that it must reach: `any`, `within 1e-6` or `exact`."""


class StagingStep(StrEnum):
    """The steps of the staging process, in their order."""

    VERIFYING = "verifying"
    TRYING = "loading, warming and running the golden pairs"
    CERTIFYING = "certifying"


class StageStep(msgspec.Struct, frozen=True, tag=True):
    """The current step."""

    name: StagingStep


class Staged(msgspec.Struct, frozen=True, tag=True):
    """The version passed. Its sealed memory comes with the message: the model, then the golden pairs."""

    card: ModelCard
    signed_by: list[str]
    certificate: Certificate
    unbounded: str
    """Why its graph is not bounded; empty: it is."""
    placement: Placement
    service_us: list[ServiceTime]
    """What each bucket of rows takes."""
    fallback: str = ""
    """As in `VersionRequest`."""
    has_golden: bool = False
    """Whether it has golden pairs, so that two descriptors come with the message and not one."""
    device_memory_mb: int = 0
    """What a Python policy took of its devices; 0: nothing, or that was not measured. Other workers that serve measure it."""


class StageFailed(msgspec.Struct, frozen=True, tag=True):
    """Why the version did not pass."""

    message: str


StageReport = StageStep | Staged | StageFailed

_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(StageRequest)
_report_decoder: msgspec.msgpack.Decoder[StageReport] = msgspec.msgpack.Decoder(StageReport)


def send(end: socket.socket, message: StageRequest | StageReport, descriptors: Sequence[int] = ()) -> None:
    """Sends a message, with copies of `descriptors`."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
    end.sendmsg([_encoder.encode(message)], rights, socket.MSG_NOSIGNAL)


def receive_request(end: socket.socket) -> StageRequest:
    """Returns the request."""
    return _request_decoder.decode(end.recv(CHANNEL_MESSAGE_BYTES_MAX))


async def receive_report(end: socket.socket) -> tuple[StageReport | None, list[int]]:
    """Returns the next report (None if the staging process is gone) and all or none of its descriptors, see `receive`.

    Raises `DescriptorsError` if the version passed, but its sealed memory did not arrive, and `msgspec.MsgspecError`.
    """
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(end, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(end)
    try:
        report, descriptors = receive(end, _report_decoder.decode, CHANNEL_DESCRIPTORS_MAX)
    except ConnectionResetError:
        return None, []
    if isinstance(report, Staged) and len(descriptors) != 1 + report.has_golden:
        close_all(descriptors)
        raise DescriptorsError("no descriptor was left for its sealed memory in the control process")
    return report, descriptors
