"""A packet of the lane holds a whole message; any other packet is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion_protocol import ErrorCode, RemoteProtocolError
from pillion_protocol.lane import pack, unpack
from pillion_protocol.limits import HEAD_SPACE_BYTES


def test_a_packet_by_hand() -> None:
    head = b"\x09\x93\x01\x02\x03"
    packet = b"\x05\x00" + head + bytes(128 - 7) + b"tensors!"
    assert pack(head, [b"tensors!"]) == packet
    assert unpack(memoryview(packet), [8]) == [head, b"tensors!"]
    assert unpack(memoryview(packet), [4]) == [head, b"tensors!"]
    assert unpack(memoryview(packet), [1, 3]) == [head, b"te", b"nsors!"]


@given(
    head=st.binary(max_size=1_000),
    row_bytes=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    rows=st.integers(0, 20),
)
def test_every_message_survives(head: bytes, row_bytes: list[int], rows: int) -> None:
    tensors = [bytes([index]) * size * rows for index, size in enumerate(row_bytes)]
    expected = [head, *tensors] if rows else [head]
    assert unpack(memoryview(pack(head, tensors)), row_bytes) == expected


@pytest.mark.parametrize(("length", "begin"), [(0, 128), (126, 128), (127, 192), (190, 192), (191, 256)])
def test_tensors_begin_after_the_head_at_128_or_a_multiple_of_64(length: int, begin: int) -> None:
    assert len(pack(bytes(length), [])) == begin
    assert pack(bytes(length), [b"x"])[begin:] == b"x"


@given(st.binary(max_size=400), st.lists(st.integers(1, 9), max_size=3))
def test_any_packet_is_frames_or_malformed(packet: bytes, row_bytes: list[int]) -> None:
    length = int.from_bytes(packet[:2], "little")
    if len(packet) < max(HEAD_SPACE_BYTES, -(-(length + 2) // 64) * 64):
        with pytest.raises(RemoteProtocolError) as caught:
            unpack(memoryview(packet), row_bytes)
        assert caught.value.code is ErrorCode.MALFORMED
    else:
        frames = unpack(memoryview(packet), row_bytes)
        assert packet.endswith(b"".join(frames[1:]))


def test_a_rest_that_is_not_whole_rows_is_one_frame() -> None:
    assert unpack(memoryview(pack(b"h", [b"12345"])), [2, 2]) == [b"h", b"12345"]
