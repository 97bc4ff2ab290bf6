"""The daemon's final message reaches the client, whatever the client did when the connection was closed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pillion.carriers.lane import LaneCarrier
from pillion.conversation import Frames
from pillion_protocol import Goodbye, Ping, decode, encode
from pillion_protocol.lane import pack
from pillion_protocol.steps import ActStep
from tests.harness import WAIT_S_MAX

PING: Frames = [encode(Ping(1, 2, 3))]
FINAL_MESSAGE = encode(Goodbye(1, 2, 0, "bye"))


class Connected:
    """A carrier and the daemon's end of its connection."""

    def __init__(self, folder: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(folder / "lane.sock"))
        self.listener.listen()
        self.carrier = LaneCarrier(f"lane://{folder}/lane.sock")
        self.carrier.set_wait(WAIT_S_MAX)
        assert self.carrier.readiness()[1]
        self.daemon, _ = self.listener.accept()

    def send_and_close(self) -> None:
        self.daemon.send(pack(encode(Ping(1, 2, 0)), []))
        self.daemon.send(pack(FINAL_MESSAGE, []))
        self.daemon.close()


@pytest.fixture
def connected(tmp_path: Path) -> Iterator[Connected]:
    made = Connected(tmp_path)
    yield made
    made.carrier.close()
    made.daemon.close()
    made.listener.close()


def pending(carrier: LaneCarrier) -> list[str]:
    """Returns the types of the messages that can still be read without a new connection."""
    types = []
    while (frames := carrier.receive_now()) is not None:
        types.append(type(decode(frames[0])).__name__)
    return types


def test_a_send_on_a_closed_connection_returns_the_final_message(connected: Connected) -> None:
    connected.send_and_close()
    heard = connected.carrier.exchange(PING)
    assert heard is not None
    assert decode(heard[0]) == Goodbye(1, 2, 0, "bye")
    assert pending(connected.carrier) == []


def test_an_act_on_a_closed_connection_loses_no_message(connected: Connected) -> None:
    connected.send_and_close()
    heard = connected.carrier.exchange(ActStep(1, 2, 3, 1, [4]))
    assert heard is not None
    assert decode(heard[0]) == Ping(1, 2, 0)
    assert pending(connected.carrier) == ["Goodbye"]


@pytest.mark.parametrize("frames", [PING, ActStep(1, 2, 3, 1, [4])], ids=["ping", "act"])
def test_a_message_that_the_daemon_never_read_hides_none_of_its_messages(connected: Connected, frames: Frames) -> None:
    # Unread messages make the kernel report ECONNRESET once, before it returns what can still be read.
    assert connected.carrier.send_now(PING)
    assert connected.carrier.send_now(frames)
    connected.send_and_close()
    assert pending(connected.carrier) == ["Ping", "Goodbye"]
    assert connected.carrier.send_now(PING) is False


def test_packets_of_one_size_are_divided_by_the_last_expect(connected: Connected) -> None:
    """A session that is opened again may have another spec with packets of the same size."""
    head = encode(Ping(1, 2, 3))
    for row_bytes, tensors in ([4, 8], [b"four", b"and 8..."]), ([8, 4], [b"and 8...", b"four"]):
        connected.carrier.expect(row_bytes)
        connected.daemon.send(pack(head, tensors))
        assert connected.carrier.receive() == [head, *tensors]


def test_received_frames_stay_the_same_when_the_next_packet_arrives(connected: Connected) -> None:
    connected.carrier.expect([4])
    packets = [(encode(Ping(1, 2, number)), bytes([number] * 4)) for number in (1, 2)]
    for head, tensor in packets:
        connected.daemon.send(pack(head, [tensor]))
    received = [connected.carrier.receive() for _ in packets]
    assert received == [[head, tensor] for head, tensor in packets]
