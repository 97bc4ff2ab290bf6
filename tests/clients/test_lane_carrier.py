"""The last words of a daemon reach the client, whatever the client was doing when the connection was closed."""

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
LAST_WORDS = encode(Goodbye(1, 2, 0, "bye"))


class Meeting:
    """A carrier and the daemon's end of its connection."""

    def __init__(self, folder: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(folder / "words.sock"))
        self.listener.listen()
        self.carrier = LaneCarrier(f"lane://{folder}/words.sock")
        self.carrier.set_wait(WAIT_S_MAX)
        assert self.carrier.readiness()[1]
        self.daemon, _ = self.listener.accept()

    def say_and_hang_up(self) -> None:
        self.daemon.send(pack(encode(Ping(1, 2, 0)), []))
        self.daemon.send(pack(LAST_WORDS, []))
        self.daemon.close()


@pytest.fixture
def meeting(tmp_path: Path) -> Iterator[Meeting]:
    made = Meeting(tmp_path)
    yield made
    made.carrier.close()
    made.daemon.close()
    made.listener.close()


def words(carrier: LaneCarrier) -> list[str]:
    """The kinds of messages that are still to be had without a new connection."""
    heard = []
    while (frames := carrier.receive_now()) is not None:
        heard.append(type(decode(frames[0])).__name__)
    return heard


def test_a_send_that_finds_the_connection_closed_leaves_the_last_word_to_be_heard(meeting: Meeting) -> None:
    meeting.say_and_hang_up()
    heard = meeting.carrier.exchange(PING)
    assert heard is not None
    assert decode(heard[0]) == Goodbye(1, 2, 0, "bye")
    assert words(meeting.carrier) == []


def test_an_act_that_finds_the_connection_closed_hears_every_word(meeting: Meeting) -> None:
    meeting.say_and_hang_up()
    heard = meeting.carrier.exchange(ActStep(1, 2, 3, 1, [4]))
    assert heard is not None
    assert decode(heard[0]) == Ping(1, 2, 0)
    assert words(meeting.carrier) == ["Goodbye"]


@pytest.mark.parametrize("frames", [PING, ActStep(1, 2, 3, 1, [4])], ids=["ping", "act"])
def test_a_message_that_the_daemon_closed_upon_without_reading_it_hides_no_word(
    meeting: Meeting, frames: Frames
) -> None:
    # Unread messages make the kernel say ECONNRESET, once, before it gives what lies there.
    assert meeting.carrier.send_now(PING)
    assert meeting.carrier.send_now(frames)
    meeting.say_and_hang_up()
    assert words(meeting.carrier) == ["Ping", "Goodbye"]
    assert meeting.carrier.send_now(PING) is False


def test_packets_of_one_size_are_divided_as_was_said_last(meeting: Meeting) -> None:
    """A session that is opened anew may have another spec, whose packets are as long."""
    head = encode(Ping(1, 2, 3))
    for row_bytes, tensors in ([4, 8], [b"four", b"and 8..."]), ([8, 4], [b"and 8...", b"four"]):
        meeting.carrier.expect(row_bytes)
        meeting.daemon.send(pack(head, tensors))
        assert meeting.carrier.receive() == [head, *tensors]


def test_what_was_received_stays_when_the_next_packet_comes(meeting: Meeting) -> None:
    meeting.carrier.expect([4])
    packets = [(encode(Ping(1, 2, number)), bytes([number] * 4)) for number in (1, 2)]
    for head, tensor in packets:
        meeting.daemon.send(pack(head, [tensor]))
    received = [meeting.carrier.receive() for _ in packets]
    assert received == [[head, tensor] for head, tensor in packets]
