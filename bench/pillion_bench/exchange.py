"""The sizes of one act and its answer. A baseline means something only if it carries as many bytes."""

from __future__ import annotations

import time

import msgspec

from pillion_protocol import Act, Action, BatchClose, Spec, encode

_SESSION = 1 << 61
_EPOCH_NS_PER_MS = 1_000_000
_SEQUENCE = 1 << 47


class Exchange(msgspec.Struct, frozen=True):
    """Sizes in bytes of the frames of one act and of its action: the head first, then the tensors."""

    act_bytes: list[int]
    action_bytes: list[int]


def exchange_of(spec: Spec, rows: int) -> Exchange:
    """Returns the exchange of `rows` rows, with heads as large as a session's usually are."""
    epoch = time.time_ns() // _EPOCH_NS_PER_MS
    now_ns = time.monotonic_ns()
    act = Act(_SESSION, epoch, _SEQUENCE, 1, rows, 0, True)
    action = Action(
        _SESSION, epoch, _SEQUENCE, 1, rows, bytes(32), now_ns, 10_000, 20_000, 40_000, rows, BatchClose.ALL_SUBMITTED
    )
    return Exchange(
        [len(encode(act)), *(tensor.row_bytes * rows for tensor in spec.observation)],
        [len(encode(action)), *(tensor.row_bytes * rows for tensor in spec.outputs)],
    )
