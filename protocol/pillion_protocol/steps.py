"""The heads of acts, laid out once in a packet; each step only overwrites the numbers. Hot path.

msgpack can write an integer in several widths. Here every integer that changes has a fixed width, so that its offset is
known. The same fields in other widths are the same message.

An act has one of two layouts. A *timed* act has one more field: when it was sent. Only acts with a budget are timed.
`action_steps` has the heads of actions.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from pillion_protocol.action_steps import ActionPattern
from pillion_protocol.limits import HEAD_SPACE_BYTES
from pillion_protocol.messages import MessageType
from pillion_protocol.packed import LENGTH_BYTES, Packed, cut

_UINT64: Final = 0xCF
_UINT16: Final = 0xCD
_FALSE: Final = 0xC2
_ARRAY: Final = 0x90
_NO_TEXT: Final = 0xA0
_BYTES: Final = 0xC4

# The fields of `Act` in order: session, epoch, sequence, episode, rows, budget_us, deterministic; then an empty
# episode_start, no seeds, no traceparent; slot, generation. A timed act has one more: sent_ns.
_ACT: Final = struct.Struct(">BB BQ BQ BQ BQ BH BQ B BB B B B BQ")
_ACT_SEQUENCE_AT: Final = LENGTH_BYTES + struct.calcsize(">BB BQ BQ B")
_ACT_BUDGET_AT: Final = _ACT_SEQUENCE_AT + struct.calcsize(">Q BQ BH B")
_ACT_SLOT_AT: Final = _ACT_BUDGET_AT + struct.calcsize(">QB BB B B")

_ACT_SENT_AT: Final = LENGTH_BYTES + _ACT.size
_SENT: Final = struct.Struct(">BQ")

_SLOT_IN_HEAD_AT: Final = _ACT_SLOT_AT - LENGTH_BYTES
_ACT_ARRAY: Final = _ARRAY | 12
_TIMED_ACT_ARRAY: Final = _ARRAY | 13
_FOUR_WIDE: Final = (_UINT64, _UINT64, _UINT64, _UINT64)
_LAST_FIXINT: Final = 127
"""The greatest integer that msgpack writes in one byte."""

ACT_STEP_BYTES: Final = _ACT.size
"""The bytes of the head of an `ActStep` that is not timed."""

TIMED_ACT_STEP_BYTES: Final = _ACT.size + _SENT.size
"""The bytes of the head of a timed `ActStep`."""

_SEQUENCE_AT: Final = _ACT_SEQUENCE_AT - LENGTH_BYTES
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

_put_number: Final = struct.Struct(">Q").pack_into
_put_budget: Final = struct.Struct(">QB").pack_into
_put_sent: Final = _SENT.pack_into
_put_slot: Final = struct.Struct(">BBQ").pack_into


class ActStep(Packed):
    """The acts of one episode group: the frames (head, tensors), overwritten for each act.

    Only for acts without `episode_start`, seeds and traceparent. The caller writes the observations into `tensors`.
    """

    __slots__ = ("_heads", "_written", "pattern", "sequence", "tensors")

    def __init__(self, session: int, epoch: int, episode: int, rows: int, tensor_bytes: Sequence[int]) -> None:
        self.packet = bytearray(HEAD_SPACE_BYTES + sum(tensor_bytes))
        self.packet[:LENGTH_BYTES] = _ACT.size.to_bytes(LENGTH_BYTES, "little")
        _ACT.pack_into(
            self.packet, LENGTH_BYTES, MessageType.ACT, _ACT_ARRAY, _UINT64, session, _UINT64, epoch, _UINT64, 0,
            _UINT64, episode, _UINT16, rows, _UINT64, 0, _FALSE, _BYTES, 0, _ARRAY, _NO_TEXT, 0, _UINT64, 0,
        )  # fmt: skip
        view = memoryview(self.packet)
        self.sequence = 0
        self.tensors = cut(view, tensor_bytes)
        self._written = (0, False, 0)
        """The budget, the flag and the time that the head holds; the time is 0 if the act is not timed."""
        self._heads = tuple(view[LENGTH_BYTES : LENGTH_BYTES + size] for size in (ACT_STEP_BYTES, TIMED_ACT_STEP_BYTES))
        self.pattern = ActionPattern(session, epoch)
        """What the answers have in common."""
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
        packet[LENGTH_BYTES + 1] = _TIMED_ACT_ARRAY if is_timed else _ACT_ARRAY

    def point(self, slot: int, generation: int) -> None:
        """Writes the slot and generation that hold the observations."""
        _put_slot(self.packet, _ACT_SLOT_AT, slot, _UINT64, generation)


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


assert TIMED_ACT_STEP_BYTES + LENGTH_BYTES <= HEAD_SPACE_BYTES
