"""The heads of acts and actions, laid out once in a packet; each step only overwrites the numbers. Hot path.

msgpack can write an integer in several widths. Here every integer that changes has a fixed width, so that its offset is
known. The same fields in other widths are the same message.

An act has one of two layouts. A *timed* act has one more field: when it was sent. Only acts with a budget are timed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

from pillion_protocol.limits import HEAD_SPACE_BYTES
from pillion_protocol.messages import MessageType

_UINT64: Final = 0xCF
_UINT16: Final = 0xCD
_FALSE: Final = 0xC2
_ARRAY: Final = 0x90
_NO_TEXT: Final = 0xA0
_BYTES: Final = 0xC4
_LENGTH_BYTES: Final = 2

# The fields of `Act` in order: session, epoch, sequence, episode, rows, budget_us, deterministic; then an empty
# episode_start, no seeds, no traceparent; slot, generation. A timed act has one more: sent_ns.
_ACT: Final = struct.Struct(">BB BQ BQ BQ BQ BH BQ B BB B B B BQ")
_ACT_SEQUENCE_AT: Final = _LENGTH_BYTES + struct.calcsize(">BB BQ BQ B")
_ACT_BUDGET_AT: Final = _ACT_SEQUENCE_AT + struct.calcsize(">Q BQ BH B")
_ACT_SLOT_AT: Final = _ACT_BUDGET_AT + struct.calcsize(">QB BB B B")

_ACT_SENT_AT: Final = _LENGTH_BYTES + _ACT.size
_SENT: Final = struct.Struct(">BQ")

_SLOT_IN_HEAD_AT: Final = _ACT_SLOT_AT - _LENGTH_BYTES
_ACT_ARRAY: Final = _ARRAY | 12
_TIMED_ACT_ARRAY: Final = _ARRAY | 13
_FOUR_WIDE: Final = (_UINT64, _UINT64, _UINT64, _UINT64)
_LAST_FIXINT: Final = 127
"""The greatest integer that msgpack writes in one byte."""

# The fields of `Action` in order: session, epoch, sequence, episode, rows, digest, received_ns, queued_ns, dispatched_ns,
# ran_ns, batch_rows, batch_close; then no fallback; slot, generation.
_ACTION: Final = struct.Struct(">BB BQ BQ BQ BQ BH BB32s BQ BQ BQ BQ BH B B B BQ")
_ACTION_SEQUENCE_AT: Final = _LENGTH_BYTES + struct.calcsize(">BB BQ BQ B")
_ACTION_RUN_AT: Final = _ACTION_SEQUENCE_AT + struct.calcsize(">Q BQ BH BB32s B")
_ACTION_SLOT_AT: Final = _ACTION_RUN_AT + struct.calcsize(">Q BQ BQ BQ BH BB")

ACT_STEP_BYTES: Final = _ACT.size
"""The bytes of the head of an `ActStep` that is not timed."""

TIMED_ACT_STEP_BYTES: Final = _ACT.size + _SENT.size
"""The bytes of the head of a timed `ActStep`."""

_SEQUENCE_AT: Final = _ACT_SEQUENCE_AT - _LENGTH_BYTES
_ACT_PARTS: Final = f">{_SEQUENCE_AT}sQ{_SLOT_IN_HEAD_AT - _SEQUENCE_AT - 8}sHQ"

split_act: Final = struct.Struct(_ACT_PARTS).unpack
"""Splits the head of an `ActStep` into the bytes before the sequence, the sequence, the bytes between it and the slot, the
slot (see `slot_number`) and its generation. Acts of one episode group differ only in these three numbers."""

split_timed_act: Final = struct.Struct(_ACT_PARTS + "BQ").unpack
"""Splits the head of a timed `ActStep` as `split_act` splits its first `ACT_STEP_BYTES`, and then into the form of its last field, which must be
`SENT_FORM`, and its `sent_ns`."""

SENT_FORM: Final = _UINT64

NO_SLOT: Final = _UINT64
"""The slot of an act whose observations follow in the packet, as `split_act` returns it."""

ACTION_STEP_BYTES: Final = _ACTION.size
"""The bytes of the head of an `ActionStep`."""

_ACTION_BEGIN: Final = struct.Struct(">BB BQ BQ B")
_RUN_BYTES: Final = struct.calcsize(">Q BQ BQ BQ BH B")
_split_action: Final = struct.Struct(
    f">{_ACTION_BEGIN.size}sQ{_ACTION_RUN_AT - _ACTION_SEQUENCE_AT - 8}s{_RUN_BYTES}x"
    f"{ACTION_STEP_BYTES + _LENGTH_BYTES - _ACTION_RUN_AT - _RUN_BYTES}s"
).unpack
"""Splits the head of an `ActionStep` into the bytes before the sequence, the sequence, the bytes between it and the numbers
of the run, and the bytes after those numbers."""

_PLAIN_END: Final = struct.pack(">B BBQ", _NO_TEXT, 0, _UINT64, 0)

_put_number: Final = struct.Struct(">Q").pack_into
_put_budget: Final = struct.Struct(">QB").pack_into
_put_sent: Final = _SENT.pack_into
_put_slot: Final = struct.Struct(">BBQ").pack_into
_put_run: Final = struct.Struct(f">Q {_ACTION_RUN_AT - _ACTION_SEQUENCE_AT - 8}s Q BQ BQ BQ BH B").pack_into


class Packed(list[Any]):
    """The frames of a message, already laid out as a packet of the lane. The owner reuses them for the next message."""

    __slots__ = ("packet",)

    packet: bytearray | memoryview


class ActStep(Packed):
    """The acts of one episode group: the frames (head, tensors), overwritten for each act.

    Only for acts without `episode_start`, seeds and traceparent. The caller writes the observations into `tensors`.
    """

    __slots__ = ("_action_begin", "_action_middle", "_heads", "_written", "sequence", "tensors")

    def __init__(self, session: int, epoch: int, episode: int, rows: int, tensor_bytes: Sequence[int]) -> None:
        self.packet = bytearray(HEAD_SPACE_BYTES + sum(tensor_bytes))
        self.packet[:_LENGTH_BYTES] = _ACT.size.to_bytes(_LENGTH_BYTES, "little")
        _ACT.pack_into(
            self.packet, _LENGTH_BYTES, MessageType.ACT, _ACT_ARRAY, _UINT64, session, _UINT64, epoch, _UINT64, 0,
            _UINT64, episode, _UINT16, rows, _UINT64, 0, _FALSE, _BYTES, 0, _ARRAY, _NO_TEXT, 0, _UINT64, 0,
        )  # fmt: skip
        view = memoryview(self.packet)
        self.sequence = 0
        self.tensors = _cut(view, tensor_bytes)
        self._written = (0, False, 0)
        """The budget, the flag and the time that the head holds; the time is 0 if the act is not timed."""
        self._heads = tuple(
            view[_LENGTH_BYTES : _LENGTH_BYTES + size] for size in (ACT_STEP_BYTES, TIMED_ACT_STEP_BYTES)
        )
        self._action_begin = _ACTION_BEGIN.pack(
            MessageType.ACTION, _ARRAY | 15, _UINT64, session, _UINT64, epoch, _UINT64
        )
        self._action_middle = b""
        super().__init__([self._heads[0], *self.tensors])

    def fill(self, sequence: int, budget_us: int, deterministic: bool, sent_ns: int = 0) -> None:
        """Writes the sequence number, the budget in µs, the flag of the next act, and when it is sent (0: unknown)."""
        self.sequence = sequence
        _put_number(self.packet, _ACT_SEQUENCE_AT, sequence)
        if self._written != (budget_us, deterministic, sent_ns):
            _put_budget(self.packet, _ACT_BUDGET_AT, budget_us, _FALSE | deterministic)
            _put_sent(self.packet, _ACT_SENT_AT, _UINT64 if sent_ns else 0, sent_ns)
            self._written = (budget_us, deterministic, sent_ns)
            self._resize(sent_ns > 0)

    def _resize(self, is_timed: bool) -> None:
        """Sets the length of the head and of its array. The tensors stay where they are."""
        packet = self.packet
        self[0] = head = self._heads[is_timed]
        packet[0] = len(head)
        packet[_LENGTH_BYTES + 1] = _TIMED_ACT_ARRAY if is_timed else _ACT_ARRAY

    def is_answered_by(self, head: bytes | memoryview) -> bool:
        """Returns True if `head` is the action for this act and differs from the `expect`ed one only in its numbers.

        Such a head need not be decoded. False means only that the caller must decode it to know.
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
        """Remembers a decoded action head of this episode group, as the pattern of those that follow."""
        if len(head) == ACTION_STEP_BYTES:
            self._action_middle = _split_action(head)[2]

    def point(self, slot: int, generation: int) -> None:
        """Writes the slot and generation that hold the observations."""
        _put_slot(self.packet, _ACT_SLOT_AT, slot, _UINT64, generation)


class ActionStep(Packed):
    """The actions of one episode group: the peer and the frames (head, tensors), overwritten for each act."""

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
        """The bytes between the sequence and the numbers of the run."""
        view = memoryview(self.packet)
        head = view[_LENGTH_BYTES : _LENGTH_BYTES + _ACTION.size]
        self.tensors = _cut(view, tensor_bytes)
        super().__init__([None, head, *self.tensors])
        self.in_slot = Packed([None, head])
        """The same message without tensor frames, for outputs in a slot."""
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
        """Writes the sequence number and the numbers of the run; the outputs are in `tensors`."""
        _put_run(
            self.packet, _ACTION_SEQUENCE_AT, sequence, self._middle, received_ns, _UINT64, queued_ns, _UINT64,
            dispatched_ns, _UINT64, ran_ns, _UINT16, batch_rows, batch_close,
        )  # fmt: skip

    def point(self, slot: int, generation: int) -> None:
        """Writes the slot and generation that hold the outputs; 0, 0 means that tensor frames follow."""
        _put_slot(self.packet, _ACTION_SLOT_AT, slot, _UINT64, generation)


def slot_number(slot: int) -> int:
    """Returns the number of a slot that `split_act` returned. If it has another width, returns a number that no slot has."""
    number, form = divmod(slot, 256)
    return number if form == _UINT64 else _LAST_FIXINT + 1


def is_act_step(head: bytes) -> bool:
    """Returns True if this head of an act has a layout of `ActStep`."""
    if len(head) == ACT_STEP_BYTES:
        is_form = head[1] == _ACT_ARRAY
    elif len(head) == TIMED_ACT_STEP_BYTES:
        is_form = head[1] == _TIMED_ACT_ARRAY and head[ACT_STEP_BYTES] == SENT_FORM
    else:
        return False
    return (
        is_form
        and (head[2], head[11], head[20], head[_SLOT_IN_HEAD_AT + 1]) == _FOUR_WIDE
        and head[_SLOT_IN_HEAD_AT] <= _LAST_FIXINT
    )


def _cut(packet: memoryview, tensor_bytes: Sequence[int]) -> list[memoryview]:
    tensors = []
    begin = HEAD_SPACE_BYTES
    for size in tensor_bytes:
        tensors.append(packet[begin : begin + size])
        begin += size
    return tensors


assert max(TIMED_ACT_STEP_BYTES, _ACTION.size) + _LENGTH_BYTES <= HEAD_SPACE_BYTES
