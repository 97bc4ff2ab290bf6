"""The messages between the control process and the shadow process: msgpack over a socket pair, with descriptors."""

from __future__ import annotations

import asyncio
import socket
from array import array
from typing import Final

import msgspec

from pillion_artifacts.card.model_card import Tolerance
from pilliond.errors import DescriptorsError
from pilliond.ipc.control_channel import VersionRequest
from pilliond.ipc.descriptor_messages import close_all, receive
from pilliond.limits import CHANNEL_MESSAGE_BYTES_MAX
from pilliond.settings.schema import EngineSettings

_DESCRIPTORS: Final = 2


class ShadowRequest(msgspec.Struct, frozen=True, tag=True):
    """The version to shadow with. The sealed memory of its model and the shadow page come with the message."""

    version: VersionRequest
    live_tolerance: Tolerance
    share: float
    """The share of the live version's episodes, above 0 and at most 1."""
    distance_max: float
    rows_max: int
    engine: EngineSettings
    memory_mb_max: int
    states_mb_max: int
    code: list[str] = []
    """`trust.code`: the packages that Python policies may come from."""


class ShadowReady(msgspec.Struct, frozen=True, tag=True):
    """The version is warm, and the process reads the page."""


class ShadowFailed(msgspec.Struct, frozen=True, tag=True):
    """Why it cannot shadow, or no longer can."""

    message: str


ShadowReport = ShadowReady | ShadowFailed

_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(ShadowRequest)
_report_decoder: msgspec.msgpack.Decoder[ShadowReport] = msgspec.msgpack.Decoder(ShadowReport)


def send_request(end: socket.socket, request: ShadowRequest, model_descriptor: int, page_descriptor: int) -> None:
    """Sends the request, with copies of the descriptors."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [model_descriptor, page_descriptor]))]
    end.sendmsg([_encoder.encode(request)], rights, socket.MSG_NOSIGNAL)


def receive_request(end: socket.socket) -> tuple[ShadowRequest, int, int]:
    """Returns the request and the descriptors of the model and the page, which the caller owns.

    Raises `DescriptorsError` if they did not both arrive.
    """
    request, descriptors = receive(end, _request_decoder.decode, _DESCRIPTORS)
    if request is None or len(descriptors) != _DESCRIPTORS:
        close_all(descriptors)
        raise DescriptorsError("no descriptor was left for its sealed memory in the shadow process")
    model_descriptor, page_descriptor = descriptors
    return request, model_descriptor, page_descriptor


def send_report(end: socket.socket, report: ShadowReport) -> None:
    """Sends a report."""
    end.sendmsg([_encoder.encode(report)], [], socket.MSG_NOSIGNAL)


async def receive_report(end: socket.socket) -> ShadowReport | None:
    """Returns the next report, or None if the shadow process is gone."""
    try:
        data = await asyncio.get_running_loop().sock_recv(end, CHANNEL_MESSAGE_BYTES_MAX)
    except ConnectionResetError:
        return None
    return _report_decoder.decode(data) if data else None
