"""A client of the lane by hand: it sends what it is told to, and looks after nothing."""

from __future__ import annotations

import mmap
import os
import socket
from types import TracebackType
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
    """A group and the memory of its slots, if it has some. Owns its mapping and its descriptor."""

    def __init__(self, lane: RawLane, begun: Begun, rows: int, descriptors: list[int]) -> None:
        self.lane = lane
        self.episode = begun.episode
        self.rows = rows
        self.layout = SlotLayout(lane.conversation.spec, rows)
        self.descriptor = descriptors[0] if descriptors else -1
        self.region: mmap.mmap | None = None

    def map(self) -> mmap.mmap:
        """The memory of its slots."""
        if self.region is None:
            self.region = mmap.mmap(self.descriptor, self.layout.region_bytes)
        return self.region

    def write(self, slot: int, generation: int, observation: Floats) -> None:
        """Writes an observation and its generation into a slot, as a client should."""
        view = self.layout.slots(memoryview(self.map()))[slot - 1]
        write_generation(view, 0, 0)
        self.layout.observations(view)[0][:] = observation.tobytes()
        write_generation(view, 0, generation)

    def set_generation(self, slot: int, generation: int) -> None:
        """Writes the generation of a slot alone."""
        write_generation(self.map(), (slot - 1) * self.layout.slot_bytes, generation)

    def generation(self, slot: int) -> int:
        """The generation that a slot holds."""
        found: int = read_generation(self.map(), (slot - 1) * self.layout.slot_bytes)[0]
        return found

    def outputs(self, slot: int) -> Floats:
        """A copy of the first output in a slot."""
        view = self.layout.slots(memoryview(self.map()))[slot - 1]
        return np.frombuffer(bytes(self.layout.outputs(view)[0]), np.float32)

    def act_head(self, slot: int = 0, generation: int = 0, episode: int | None = None, **fields: Any) -> bytes:
        """The head of the next act."""
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
        """Unmaps and closes what it has."""
        if self.region is not None:
            self.region.close()
            self.region = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class RawLane:
    """One connection. Owns its socket and its groups."""

    def __init__(self, address: str) -> None:
        self.conversation = Conversation("raw")
        self.groups: list[RawEpisodeGroup] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(WAIT_S_MAX)
        self.socket.connect(address.removeprefix("lane://"))

    def next(self) -> int:
        """The number of the next request."""
        self.conversation.sequence += 1
        return self.conversation.sequence

    def say(self, head: bytes | memoryview, *tensors: bytes) -> None:
        """Sends a message."""
        self.socket.send(pack(head, tensors))

    def hear(self, row_bytes: int = 1) -> tuple[Message, list[bytes]]:
        """The next message and its tensors; `row_bytes` of the first output where there are some."""
        head, *tensors = unpack(memoryview(self.socket.recv(PACKET_BYTES_MAX)), [row_bytes])
        return decode(head), [bytes(tensor) for tensor in tensors]

    def hear_frames(self) -> Reply:
        """The next message as the client's conversation reads it."""
        reply = self.conversation.read([*unpack(memoryview(self.socket.recv(PACKET_BYTES_MAX)), [1])])
        assert reply is not None
        return reply

    def ask(self, head: bytes | memoryview, *tensors: bytes) -> Message:
        """Sends a message and gives the next that comes."""
        self.say(head, *tensors)
        return self.hear()[0]

    def hello(self) -> Self:
        """Opens the session."""
        self.say(self.conversation.hello()[1][0])
        self.conversation.opened(self.hear_frames())
        return self

    def begin(self, rows: int = 1, slots: bool = True) -> RawEpisodeGroup:
        """Begins a group."""
        self.say(self.conversation.begin(list(range(rows)), slots)[1][0])
        return self.take_begun(rows)

    def take_begun(self, rows: int = 1) -> RawEpisodeGroup:
        """Receives a `begun` and the descriptor that comes with it."""
        packet, descriptors, _, _ = socket.recv_fds(self.socket, PACKET_BYTES_MAX, 4)
        begun = decode(unpack(memoryview(packet), [1])[0])
        assert isinstance(begun, Begun), begun
        self.groups.append(RawEpisodeGroup(self, begun, rows, descriptors))
        return self.groups[-1]

    def close(self) -> None:
        """Closes everything."""
        for group in self.groups:
            group.close()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
