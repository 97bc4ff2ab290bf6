"""`protocol/vectors/lane.json`: whole packets, encoded and decoded by the codec, by the client and by the daemon."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import example_values
from lane_vectors import STEPS_BY_HAND
from pillion.carriers.lane import LaneCarrier
from pillion.conversation import Frames
from pillion_protocol import MessageType, RemoteProtocolError, decode
from pillion_protocol.lane import pack, unpack
from pillion_protocol.limits import PACKET_BYTES_MAX
from pillion_protocol.slots import SlotLayout
from pilliond.ipc.metrics_page import MetricsPage, make_page
from pilliond.transport.interface import MessagePoller, Sent
from pilliond.transport.lane import LaneConnection, LaneTransport
from tests.harness import ROOT, WAIT_S_MAX

VECTORS: dict[str, Any] = json.loads((ROOT / "protocol" / "vectors" / "lane.json").read_bytes())
PACKETS = [pytest.param(entry, id=entry["name"]) for entry in VECTORS["packets"]]
BROKEN = [pytest.param(entry, id=entry["name"]) for entry in VECTORS["broken"]]


def frames_of(entry: dict[str, Any]) -> Frames:
    return [bytes.fromhex(frame) for frame in entry["frames"]]


def broken_packet(entry: dict[str, Any]) -> bytes:
    return bytes.fromhex(entry["bytes"]) + bytes(entry["zeros"])


class Pair:
    """The path of a packet socket, and the poller and metrics page that a daemon's transport needs."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "vectors.sock")
        self.poller = MessagePoller()
        self.page = MetricsPage(make_page())

    def transport(self, row_bytes: list[int]) -> tuple[LaneTransport, LaneConnection, socket.socket]:
        """Returns the daemon's transport, its connection, and the peer's socket."""
        transport = LaneTransport(row_bytes, self.poller, self.page)
        transport.bind(f"lane://{self.path}")
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        peer.connect(self.path)
        (listener,) = list(self.poller.sources.values())
        assert listener.receive() is None
        (connection,) = [source for source in self.poller.sources.values() if isinstance(source, LaneConnection)]
        return transport, connection, peer


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.poller.close()
    made.page.close()


@pytest.mark.parametrize("entry", PACKETS)
def test_a_packet_holds_the_frames_beside_it(entry: dict[str, Any]) -> None:
    packet = bytes.fromhex(entry["bytes"])
    head, *tensors = frames_of(entry)
    assert pack(head, tensors) == packet
    assert unpack(memoryview(packet), entry["row_bytes"]) == [head, *tensors]


@pytest.mark.parametrize("entry", PACKETS)
def test_the_daemon_sends_and_receives_the_packet(entry: dict[str, Any], pair: Pair) -> None:
    packet, frames = bytes.fromhex(entry["bytes"]), frames_of(entry)
    transport, connection, peer = pair.transport(entry["row_bytes"])
    with peer:
        peer.send(packet)
        assert connection.receive() == (connection, *frames)
        assert transport.send([connection, *frames]) is Sent.OK
        assert peer.recv(PACKET_BYTES_MAX) == packet
        transport.close()


@pytest.mark.parametrize("entry", PACKETS)
def test_the_client_sends_and_receives_the_packet(entry: dict[str, Any], tmp_path: Path) -> None:
    packet, frames = bytes.fromhex(entry["bytes"]), frames_of(entry)
    path = str(tmp_path / "vectors.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        carrier = LaneCarrier(f"lane://{path}")
        carrier.set_wait(WAIT_S_MAX)
        carrier.expect(entry["row_bytes"])
        assert carrier.send_now(frames)
        daemon, _ = listener.accept()
        with daemon:
            assert daemon.recv(PACKET_BYTES_MAX) == packet
            daemon.send(packet)
            assert carrier.receive() == frames
        carrier.close()


@pytest.mark.parametrize("entry", BROKEN)
def test_a_packet_that_holds_no_message_has_the_code_beside_it(entry: dict[str, Any], pair: Pair) -> None:
    transport, connection, peer = pair.transport([8])
    with peer:
        peer.send(broken_packet(entry))
        received = connection.receive()
        assert received is not None
        error = received[1]
        assert isinstance(error, RemoteProtocolError)
        assert error.code == entry["code"]
        transport.close()


@pytest.mark.parametrize("entry", VECTORS["slots"], ids=lambda entry: f"{entry['spec']}, {entry['rows']} rows")
def test_tensors_in_a_slot_have_the_offsets_of_the_vectors(entry: dict[str, Any]) -> None:
    spec = getattr(example_values, entry["spec"].upper())
    layout = SlotLayout(spec, entry["rows"])
    assert layout.slot_bytes == entry["slot_bytes"]
    slot = memoryview(bytearray(layout.slot_bytes))
    for described, cut, listed in (
        (spec.observation, layout.observations(slot), entry["observation"]),
        (spec.outputs, layout.outputs(slot), entry["outputs"]),
    ):
        assert [tensor.name for tensor in described] == [entry["name"] for entry in listed]
        for number, (part, expected) in enumerate(zip(cut, listed, strict=True), 1):
            part[:] = bytes([number]) * len(part)
            assert bytes(slot[expected["offset"] : expected["offset"] + expected["bytes"]]) == bytes([number]) * len(
                part
            )


def test_the_steps_written_by_hand_mean_what_is_beside_them() -> None:
    assert {bytes.fromhex(data)[0] for data, _ in STEPS_BY_HAND.values()} == {MessageType.ACT, MessageType.ACTION}
    for data, message in STEPS_BY_HAND.values():
        assert decode(bytes.fromhex(data)) == message
