"""The heads of actions, laid out once in a packet; each step only overwrites the numbers. Hot path.

As in `steps`, every integer that changes has a fixed width. An action has one of two layouts: that of a batch which ran on
a device has six more fields, the last three of which say how long the device took.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from pillion_protocol.lane import pack
from pillion_protocol.limits import HEAD_SPACE_BYTES
from pillion_protocol.messages import MessageType
from pillion_protocol.packed import LENGTH_BYTES, Packed, cut

_UINT64: Final = 0xCF
_UINT16: Final = 0xCD
_BYTES: Final = 0xC4
_NO_TEXT: Final = 0xA0
_NO_LIST: Final = 0x90

_START: Final = bytes([MessageType.ACTION, 0x9F])
"""The type, and the begin of an array of 15 fields."""
_DEVICE_START: Final = bytes([MessageType.ACTION, 0xDC, 0, 21])

# The fields of `Action` that every action has, in order: session, epoch, sequence, episode, rows, digest, received_ns,
# queued_ns, dispatched_ns, ran_ns, batch_rows, batch_close; then no fallback; slot, generation.
_FIELDS: Final = struct.Struct(">BQ BQ BQ BQ BH BB32s BQ BQ BQ BQ BH B B B BQ")
_IDS_BYTES: Final = struct.calcsize(">BQ BQ B")
_MIDDLE_BYTES: Final = struct.calcsize(">BQ BH BB32s B")
_RUN_BYTES: Final = struct.calcsize(">Q BQ BQ BQ BH B")
_RUN_AT: Final = _IDS_BYTES + 8 + _MIDDLE_BYTES
_SLOT_AT: Final = _RUN_AT + _RUN_BYTES + 1
_PLAIN_END: Final = struct.pack(">B BBQ", _NO_TEXT, 0, _UINT64, 0)

# Then come, where a device took part: no leases, no row_leases, not late; copy_in_ns, compute_ns, copy_out_ns.
_GAP: Final = bytes([_NO_LIST, _NO_LIST, 0])
_DEVICE_END: Final = _PLAIN_END + _GAP
_TIMES: Final = struct.Struct(">BQ BQ BQ")

ACTION_STEP_BYTES: Final = len(_START) + _FIELDS.size
"""The bytes of the head of an `ActionStep`, of a batch that no device ran."""

DEVICE_ACTION_STEP_BYTES: Final = len(_DEVICE_START) + _FIELDS.size + len(_GAP) + _TIMES.size
"""The bytes of the head of an `ActionStep`, of a batch that ran on a device."""

_DEVICE_HEAD_SPACE_BYTES: Final = 192
"""Where the tensors of a packet begin whose head has the longer layout."""
_APART: Final = _DEVICE_HEAD_SPACE_BYTES - HEAD_SPACE_BYTES
_TIMES_AT: Final = LENGTH_BYTES + DEVICE_ACTION_STEP_BYTES - _TIMES.size

_PARTS: Final = f"Q{_MIDDLE_BYTES}s{_RUN_BYTES}x"
_split: Final = struct.Struct(f">{len(_START) + _IDS_BYTES}s{_PARTS}{len(_PLAIN_END)}s").unpack
"""Splits a head into the bytes before the sequence, the sequence, the bytes between it and the numbers of the run, and the
bytes between or after the other numbers."""
_split_device: Final = struct.Struct(
    f">{len(_DEVICE_START) + _IDS_BYTES}s{_PARTS}{len(_DEVICE_END)}s{_TIMES.size}x"
).unpack

_put_run: Final = struct.Struct(f">Q {_MIDDLE_BYTES}s Q BQ BQ BQ BH B").pack_into
_put_slot: Final = struct.Struct(">BBQ").pack_into
_put_times: Final = _TIMES.pack_into


class DeviceTimes(NamedTuple):
    """How long a device took for one batch, in ns by its own clock."""

    copy_in_ns: int
    compute_ns: int
    copy_out_ns: int


NO_DEVICE_TIMES: Final = DeviceTimes(0, 0, 0)
"""Those of a batch that no device ran, or of a device that does not say."""


class ActionPattern:
    """What the heads of one episode group's actions have in common, in either layout: a client need not decode those.

    `learn` a decoded one first.
    """

    __slots__ = ("_begin", "_device_begin", "_middle")

    def __init__(self, session: int, epoch: int) -> None:
        ids = struct.pack(">BQ BQ B", _UINT64, session, _UINT64, epoch, _UINT64)
        self._begin = _START + ids
        self._device_begin = _DEVICE_START + ids
        self._middle = b""

    def fits(self, head: bytes | memoryview, sequence: int) -> bool:
        """Returns True if `head` is the action with this sequence and differs from the learned one only in its numbers.

        False means only that the caller must decode it to know.
        """
        if len(head) == ACTION_STEP_BYTES:
            begin, number, middle, end = _split(head)
            return bool(number == sequence and middle == self._middle and begin == self._begin and end == _PLAIN_END)
        if len(head) != DEVICE_ACTION_STEP_BYTES:
            return False
        begin, number, middle, end = _split_device(head)
        return bool(
            number == sequence and middle == self._middle and begin == self._device_begin and end == _DEVICE_END
        )

    def learn(self, head: bytes | memoryview) -> None:
        """Remembers a decoded head, if it may have one of the layouts."""
        if len(head) == ACTION_STEP_BYTES:
            self._middle = _split(head)[2]
        elif len(head) == DEVICE_ACTION_STEP_BYTES:
            self._middle = _split_device(head)[2]


class ActionStep(Packed):
    """The actions of one episode group: the peer and the frames (head, tensors), overwritten for each act.

    A head of the longer layout begins so much earlier in the same buffer that the tensors stay where they are. So whoever
    writes the tensors need not know yet which layout follows.
    """

    __slots__ = (
        "_buffer",
        "_fields_at",
        "_forms",
        "_middle",
        "_sequence_at",
        "_slot_at",
        "_times",
        "in_slot",
        "tensors",
    )

    def __init__(
        self, session: int, epoch: int, episode: int, rows: int, digest: bytes, tensor_bytes: list[int]
    ) -> None:
        self._buffer = bytearray(_DEVICE_HEAD_SPACE_BYTES + sum(tensor_bytes))
        view = memoryview(self._buffer)
        self._forms = (_form(view[_APART:], ACTION_STEP_BYTES), _form(view, DEVICE_ACTION_STEP_BYTES))
        self.tensors = cut(view[_APART:], tensor_bytes)
        super().__init__([None, b"", *self.tensors])
        self.in_slot = Packed([None, b""])
        """The same message without tensor frames, for outputs in a slot."""
        fields = _FIELDS.pack(
            _UINT64, session, _UINT64, epoch, _UINT64, 0, _UINT64, episode, _UINT16, rows, _BYTES, len(digest), digest,
            _UINT64, 0, _UINT64, 0, _UINT64, 0, _UINT64, 0, _UINT16, 0, 0, _NO_TEXT, 0, _UINT64, 0,
        )  # fmt: skip
        self._middle = fields[_IDS_BYTES + 8 : _RUN_AT]
        """The bytes between the sequence and the numbers of the run."""
        self._times = NO_DEVICE_TIMES
        """What the head says of the device."""
        self._lay_out(fields, has_device=False)

    def fill(
        self,
        sequence: int,
        received_ns: int,
        queued_ns: int,
        dispatched_ns: int,
        ran_ns: int,
        batch_rows: int,
        batch_close: int,
        times: DeviceTimes = NO_DEVICE_TIMES,
    ) -> None:
        """Writes the sequence number, the numbers of the run and the times of its device; the outputs are in `tensors`."""
        if times is not self._times:
            self._write_times(times)
        _put_run(
            self._buffer, self._sequence_at, sequence, self._middle, received_ns, _UINT64, queued_ns, _UINT64,
            dispatched_ns, _UINT64, ran_ns, _UINT16, batch_rows, batch_close,
        )  # fmt: skip

    def point(self, slot: int, generation: int) -> None:
        """Writes the slot and generation that hold the outputs; 0, 0 means that tensor frames follow."""
        _put_slot(self._buffer, self._slot_at, slot, _UINT64, generation)

    def _write_times(self, times: DeviceTimes) -> None:
        has_device = any(times)
        if has_device != any(self._times):
            at = self._fields_at
            self._lay_out(bytes(self._buffer[at : at + _FIELDS.size]), has_device)
        if has_device:
            copy_in_ns, compute_ns, copy_out_ns = times
            _put_times(self._buffer, _TIMES_AT, _UINT64, copy_in_ns, _UINT64, compute_ns, _UINT64, copy_out_ns)
        self._times = times

    def _lay_out(self, fields: bytes, has_device: bool) -> None:
        """Writes the head anew, in one layout or the other. The tensors stay."""
        if has_device:
            head, begin, start = _DEVICE_START + fields + _GAP + bytes(_TIMES.size), 0, _DEVICE_START
        else:
            head, begin, start = _START + fields, _APART, _START
        self.packet, self[1], self.in_slot.packet = self._forms[has_device]
        self.in_slot[1] = self[1]
        self.in_slot.packet[:] = pack(head, ())
        self._fields_at = at = begin + LENGTH_BYTES + len(start)
        self._sequence_at, self._slot_at = at + _IDS_BYTES, at + _SLOT_AT


def _form(packet: memoryview, head_bytes: int) -> tuple[memoryview, memoryview, memoryview]:
    """Returns a packet, its head, and the packet without tensors."""
    return packet, packet[LENGTH_BYTES : LENGTH_BYTES + head_bytes], packet[: len(pack(bytes(head_bytes), ()))]


assert LENGTH_BYTES + ACTION_STEP_BYTES <= HEAD_SPACE_BYTES
assert LENGTH_BYTES + DEVICE_ACTION_STEP_BYTES <= _DEVICE_HEAD_SPACE_BYTES
