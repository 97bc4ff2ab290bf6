"""A raw client of the lane: it sends exactly what a test asks for and checks nothing."""

from __future__ import annotations

import mmap
import os
import socket
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pillion.conversation import Conversation, Reply
from pillion_protocol import Act, Begun, Message, decode, encode
from pillion_protocol.lane import pack, unpack
from pillion_protocol.limits import PACKET_BYTES_MAX
from pillion_protocol.slots import SlotLayout, read_generation, write_generation
from tests.harness import WAIT_S_MAX

Floats = NDArray[np.float32]


class RawEpisodeGroup:
    """An episode group and its slot region, if it has one. Owns the mapping and the descriptor."""

    def __init__(self, lane: RawLane, begun: Begun, rows: int, descriptors: list[int]) -> None:
        self.lane = lane
        self.episode = begun.episode
        self.rows = rows
        self.layout = SlotLayout(lane.conversation.spec, rows)
        self.descriptor = descriptors[0] if descriptors else -1
        self.region: mmap.mmap | None = None

    def map(self) -> mmap.mmap:
        """Returns the slot region, mapped."""
        if self.region is None:
            self.region = mmap.mmap(self.descriptor, self.layout.region_bytes)
        return self.region

    def write(self, slot: int, generation: int, observation: Floats) -> None:
        """Writes an observation and its generation into a slot, in the order that the protocol requires."""
        view = self.layout.slots(memoryview(self.map()))[slot - 1]
        write_generation(view, 0, 0)
        self.layout.observations(view)[0][:] = observation.tobytes()
        write_generation(view, 0, generation)

    def set_generation(self, slot: int, generation: int) -> None:
        """Writes only the generation of a slot."""
        write_generation(self.map(), (slot - 1) * self.layout.slot_bytes, generation)

    def generation(self, slot: int) -> int:
        """Returns the generation of a slot."""
        found: int = read_generation(self.map(), (slot - 1) * self.layout.slot_bytes)[0]
        return found

    def outputs(self, slot: int) -> Floats:
        """Returns a copy of the first output in a slot."""
        view = self.layout.slots(memoryview(self.map()))[slot - 1]
        return np.frombuffer(bytes(self.layout.outputs(view)[0]), np.float32)

    def act_head(self, slot: int = 0, generation: int = 0, episode: int | None = None, **fields: Any) -> bytes:
        """Returns the encoded head of the next act. Slot 0 means that the observation is in the packet."""
        conversation = self.lane.conversation
        act = Act(
            conversation.session,
            conversation.epoch,
            fields.pop("sequence", 0) or self.lane.next(),
            self.episode if episode is None else episode,
            fields.pop("rows", self.rows),
            deterministic=True,
            slot=slot,
            generation=generation,
        )
        return encode(act)

    def close(self) -> None:
        """Unmaps the region and closes the descriptor."""
        if self.region is not None:
            self.region.close()
            self.region = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class RawLane:
    """One connection of the lane. Owns its socket and its groups."""

    def __init__(self, address: str) -> None:
        self.conversation = Conversation("raw")
        self.groups: list[RawEpisodeGroup] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(WAIT_S_MAX)
        self.socket.connect(address.removeprefix("lane://"))

    def next(self) -> int:
        """Returns the sequence number of the next request."""
        self.conversation.sequence += 1
        return self.conversation.sequence

    def send(self, head: bytes | memoryview, *tensors: bytes) -> None:
        """Sends one message."""
        self.socket.send(pack(head, tensors))

    def receive(self, row_bytes: int = 1) -> tuple[Message, list[bytes]]:
        """Returns the next message and its tensors; a row of the first output has `row_bytes` bytes."""
        head, *tensors = unpack(memoryview(self.socket.recv(PACKET_BYTES_MAX)), [row_bytes])
        return decode(head), [bytes(tensor) for tensor in tensors]

    def receive_reply(self) -> Reply:
        """Returns the next message as the client's conversation reads it."""
        reply = self.conversation.read([*unpack(memoryview(self.socket.recv(PACKET_BYTES_MAX)), [1])])
        assert reply is not None
        return reply

    def ask(self, head: bytes | memoryview, *tensors: bytes) -> Message:
        """Sends a message and returns the next one that arrives."""
        self.send(head, *tensors)
        return self.receive()[0]

    def hello(self) -> Self:
        """Opens a session."""
        self.send(self.conversation.hello()[1][0])
        self.conversation.opened(self.receive_reply())
        return self

    def begin(self, rows: int = 1, slots: bool = True) -> RawEpisodeGroup:
        """Begins an episode group."""
        self.send(self.conversation.begin(list(range(rows)), slots)[1][0])
        return self.receive_begun(rows)

    def receive_begun(self, rows: int = 1) -> RawEpisodeGroup:
        """Receives a `begun` and the descriptor of its slots, if it carries one."""
        packet, descriptors, _, _ = socket.recv_fds(self.socket, PACKET_BYTES_MAX, 4)
        begun = decode(unpack(memoryview(packet), [1])[0])
        assert isinstance(begun, Begun), begun
        self.groups.append(RawEpisodeGroup(self, begun, rows, descriptors))
        return self.groups[-1]

    def close(self) -> None:
        """Closes the connection and its groups."""
        for group in self.groups:
            group.close()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
