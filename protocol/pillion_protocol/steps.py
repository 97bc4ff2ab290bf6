"""The two heads that every step has, laid out once in a packet; a step only puts numbers into their places. Hot path.

msgpack lets an integer be written in more than one form: those that change are written in one of fixed size here. Any
other writing of the same fields is the same message.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

from pillion_protocol.lane import HEAD_SPACE_BYTES
from pillion_protocol.messages import MessageType

_UINT64: Final = 0xCF
_UINT16: Final = 0xCD
_FALSE: Final = 0xC2
_ARRAY: Final = 0x90
_NO_TEXT: Final = 0xA0
_BYTES: Final = 0xC4
_LENGTH_BYTES: Final = 2

# In the order of `Act`: session, epoch, sequence, episode, rows, budget_us, deterministic; then no starts, no seeds, no
# traceparent; slot, generation.
_ACT: Final = struct.Struct(">BB BQ BQ BQ BQ BH BQ B BB B B B BQ")
_ACT_SEQUENCE_AT: Final = _LENGTH_BYTES + struct.calcsize(">BB BQ BQ B")
_ACT_BUDGET_AT: Final = _ACT_SEQUENCE_AT + struct.calcsize(">Q BQ BH B")
_ACT_SLOT_AT: Final = _ACT_BUDGET_AT + struct.calcsize(">QB BB B B")

_SLOT_IN_HEAD_AT: Final = _ACT_SLOT_AT - _LENGTH_BYTES
_ACT_FORM: Final = (_ARRAY | 12, _UINT64, _UINT64, _UINT64, _UINT64)
_SMALL_INTEGER_MAX: Final = 127

# In the order of `Action`: session, epoch, sequence, episode, rows, digest, received_ns, queued_ns, dispatched_ns, ran_ns,
# batch_rows, batch_close; then no fallback; slot, generation.
_ACTION: Final = struct.Struct(">BB BQ BQ BQ BQ BH BB32s BQ BQ BQ BQ BH B B B BQ")
_ACTION_SEQUENCE_AT: Final = _LENGTH_BYTES + struct.calcsize(">BB BQ BQ B")
_ACTION_RUN_AT: Final = _ACTION_SEQUENCE_AT + struct.calcsize(">Q BQ BH BB32s B")
_ACTION_SLOT_AT: Final = _ACTION_RUN_AT + struct.calcsize(">Q BQ BQ BQ BH BB")

ACT_STEP_BYTES: Final = _ACT.size
"""The bytes of the head of an `ActStep`."""

_SEQUENCE_AT: Final = _ACT_SEQUENCE_AT - _LENGTH_BYTES

split_act: Final = struct.Struct(f">{_SEQUENCE_AT}sQ{_SLOT_IN_HEAD_AT - _SEQUENCE_AT - 8}sHQ").unpack
"""Splits the head of an `ActStep`: what is before the sequence, the sequence, what is between it and the slot, the slot (see
`slot_number`), its generation. Two acts of a handle differ in nothing but these three numbers."""

NO_SLOT: Final = _UINT64
"""The slot of an act whose observations follow, as `split_act` gives it."""

ACTION_STEP_BYTES: Final = _ACTION.size
"""The bytes of the head of an `ActionStep`."""

_ACTION_BEGIN: Final = struct.Struct(">BB BQ BQ B")
_RUN_BYTES: Final = struct.calcsize(">Q BQ BQ BQ BH B")
_split_action: Final = struct.Struct(
    f">{_ACTION_BEGIN.size}sQ{_ACTION_RUN_AT - _ACTION_SEQUENCE_AT - 8}s{_RUN_BYTES}x"
    f"{ACTION_STEP_BYTES + _LENGTH_BYTES - _ACTION_RUN_AT - _RUN_BYTES}s"
).unpack
"""What is before the sequence, the sequence, what is between it and the numbers of the run, what is behind those."""

_PLAIN_END: Final = struct.pack(">B BBQ", _NO_TEXT, 0, _UINT64, 0)

_put_number: Final = struct.Struct(">Q").pack_into
_put_budget: Final = struct.Struct(">QB").pack_into
_put_slot: Final = struct.Struct(">BBQ").pack_into
_put_run: Final = struct.Struct(f">Q {_ACTION_RUN_AT - _ACTION_SEQUENCE_AT - 8}s Q BQ BQ BQ BH B").pack_into


class Packed(list[Any]):
    """The frames of a message that lie in a packet of the lane already. Whoever makes them may write into them again."""

    __slots__ = ("packet",)

    packet: bytearray | memoryview


class ActStep(Packed):
    """The acts of one handle: frames (head, tensors), written again for each act. For acts without starts or trace."""

    __slots__ = ("_action_begin", "_action_middle", "_is_plain", "sequence", "tensors")

    def __init__(self, session: int, epoch: int, episode: int, rows: int, tensor_bytes: Sequence[int]) -> None:
        self.packet = bytearray(HEAD_SPACE_BYTES + sum(tensor_bytes))
        self.packet[:_LENGTH_BYTES] = _ACT.size.to_bytes(_LENGTH_BYTES, "little")
        _ACT.pack_into(
            self.packet, _LENGTH_BYTES, MessageType.ACT, _ARRAY | 12, _UINT64, session, _UINT64, epoch, _UINT64, 0,
            _UINT64, episode, _UINT16, rows, _UINT64, 0, _FALSE, _BYTES, 0, _ARRAY, _NO_TEXT, 0, _UINT64, 0,
        )  # fmt: skip
        view = memoryview(self.packet)
        self.sequence = 0
        self.tensors = _cut(view, tensor_bytes)
        self._is_plain = (0, False)
        self._action_begin = _ACTION_BEGIN.pack(
            MessageType.ACTION, _ARRAY | 15, _UINT64, session, _UINT64, epoch, _UINT64
        )
        self._action_middle = b""
        super().__init__([view[_LENGTH_BYTES : _LENGTH_BYTES + _ACT.size], *self.tensors])

    def fill(self, sequence: int, budget_us: int, deterministic: bool) -> None:
        """Makes it the act with this number, for observations in `tensors`."""
        self.sequence = sequence
        _put_number(self.packet, _ACT_SEQUENCE_AT, sequence)
        if self._is_plain != (budget_us, deterministic):
            self._is_plain = (budget_us, deterministic)
            _put_budget(self.packet, _ACT_BUDGET_AT, budget_us, _FALSE | deterministic)

    def is_answered_by(self, head: bytes | memoryview) -> bool:
        """Whether this is the action for the act, unlike the last one that was `expect`ed in its numbers alone.

        It need not be decoded then. False may also mean that it has to be looked at closely.
        """
        if len(head) != ACTION_STEP_BYTES:
            return False
        begin, sequence, middle, end = _split_action(head)
        return bool(
            sequence == self.sequence
            and middle == self._action_middle
            and begin == self._action_begin
            and end == _PLAIN_END
        )

    def expect(self, head: bytes | memoryview) -> None:
        """Takes the head of an action of this handle, which was decoded, for what others of it will look like."""
        if len(head) == ACTION_STEP_BYTES:
            self._action_middle = _split_action(head)[2]

    def point(self, slot: int, generation: int) -> None:
        """Says in which slot the observations lie."""
        _put_slot(self.packet, _ACT_SLOT_AT, slot, _UINT64, generation)


class ActionStep(Packed):
    """The actions of one handle: the peer and the frames (head, tensors), written again for each act."""

    __slots__ = ("_middle", "in_slot", "tensors")

    def __init__(
        self, session: int, epoch: int, episode: int, rows: int, digest: bytes, tensor_bytes: list[int]
    ) -> None:
        self.packet = bytearray(HEAD_SPACE_BYTES + sum(tensor_bytes))
        self.packet[:_LENGTH_BYTES] = _ACTION.size.to_bytes(_LENGTH_BYTES, "little")
        _ACTION.pack_into(
            self.packet, _LENGTH_BYTES, MessageType.ACTION, _ARRAY | 15, _UINT64, session, _UINT64, epoch, _UINT64, 0,
            _UINT64, episode, _UINT16, rows, _BYTES, len(digest), digest, _UINT64, 0, _UINT64, 0, _UINT64, 0,
            _UINT64, 0, _UINT16, 0, 0, _NO_TEXT, 0, _UINT64, 0,
        )  # fmt: skip
        self._middle = bytes(self.packet[_ACTION_SEQUENCE_AT + 8 : _ACTION_RUN_AT])
        """What is between its number and those of its run."""
        view = memoryview(self.packet)
        head = view[_LENGTH_BYTES : _LENGTH_BYTES + _ACTION.size]
        self.tensors = _cut(view, tensor_bytes)
        super().__init__([None, head, *self.tensors])
        self.in_slot = Packed([None, head])
        """The same without tensors, which lie in a slot."""
        self.in_slot.packet = view[:HEAD_SPACE_BYTES]

    def fill(
        self,
        sequence: int,
        received_ns: int,
        queued_ns: int,
        dispatched_ns: int,
        ran_ns: int,
        batch_rows: int,
        batch_close: int,
    ) -> None:
        """Makes it the action with this number, for outputs in `tensors`."""
        _put_run(
            self.packet, _ACTION_SEQUENCE_AT, sequence, self._middle, received_ns, _UINT64, queued_ns, _UINT64,
            dispatched_ns, _UINT64, ran_ns, _UINT16, batch_rows, batch_close,
        )  # fmt: skip

    def point(self, slot: int, generation: int) -> None:
        """Says in which slot the outputs lie; 0, 0: they follow."""
        _put_slot(self.packet, _ACTION_SLOT_AT, slot, _UINT64, generation)


def slot_number(slot: int) -> int:
    """The number of a slot as `split_act` gives it; a number that no slot has where it is written in another form."""
    number, form = divmod(slot, 256)
    return number if form == _UINT64 else _SMALL_INTEGER_MAX + 1


def is_act_step(head: bytes) -> bool:
    """Whether this head of an act is written as `ActStep` writes it."""
    return (
        len(head) == _ACT.size
        and (head[1], head[2], head[11], head[20], head[_SLOT_IN_HEAD_AT + 1]) == _ACT_FORM
        and head[_SLOT_IN_HEAD_AT] <= _SMALL_INTEGER_MAX
    )


def _cut(packet: memoryview, tensor_bytes: Sequence[int]) -> list[memoryview]:
    tensors = []
    begin = HEAD_SPACE_BYTES
    for size in tensor_bytes:
        tensors.append(packet[begin : begin + size])
        begin += size
    return tensors


assert max(_ACT.size, _ACTION.size) + _LENGTH_BYTES <= HEAD_SPACE_BYTES
