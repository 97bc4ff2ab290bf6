"""The arena: memory of `depth` batches that the serving process and one worker share. Hot path.

The serving process creates it as a memfd that is sealed in size, so that neither side can make the other one crash. It
begins with a header of 64-bit cells in the byte order of the host; then come the tensors of each batch, each tensor at a
64-byte aligned offset. Both sides compute the same layout from the same descriptions: no offset and no length is ever
read from shared memory.

Batch n (the first is 1) has block (n - 1) % depth, and lies in whichever memory is free. The serving process writes
number, rows, time and memory into the block, then `SUBMITTED`, then rings. The worker runs the batch, writes the other
cells of the block, then `COMPLETED`, then rings. Batches complete in the order of their numbers.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Final

import numpy as np

from pillion_worker.limits import DEPTH_MAX, FAILURE_BYTES_MAX
from pillion_worker.tensors import Array, State, Tensor, TensorMemory, round_up, row_bytes

LAYOUT_VERSION: Final = 2
HEADER_BYTES: Final = 4_096
ALIGNMENT_BYTES: Final = 64
"""A cache line, and the widest vector register."""

# Cells. Those that different sides write lie in different cache lines.
VERSION: Final = 0
SUBMITTED: Final = 8
"""The number of the last batch that the serving process submitted."""
COMPLETED: Final = 16
"""The number of the last batch that the worker completed."""
_BLOCKS: Final = 24

# Cells of a batch's block, from the block's first cell on.
NUMBER: Final = 0
ROWS: Final = 1
SUBMITTED_NS: Final = 2
STARTED_NS: Final = 3
FINISHED_NS: Final = 4
OUTCOME: Final = 5
FAILURE_BYTES: Final = 6
MEMORY: Final = 7
"""The index of the memory that the batch lies in."""
COPY_IN_NS: Final = 8
"""How long a device took to copy the batch in, by its own clock. The loop of a device writes these three for every batch;
the plain loop never writes them, so they stay 0."""
COMPUTE_NS: Final = 9
COPY_OUT_NS: Final = 10
_BLOCK_CELLS: Final = 16

# Outcomes
OK: Final = 1
FAILED: Final = 2

_CELL_BYTES: Final = 8
_TEXTS_AT: Final = 1_024
_TEXT_BYTES: Final = round_up(FAILURE_BYTES_MAX, ALIGNMENT_BYTES)

assert (_BLOCKS + DEPTH_MAX * _BLOCK_CELLS) * _CELL_BYTES <= _TEXTS_AT
assert _TEXTS_AT + DEPTH_MAX * _TEXT_BYTES <= HEADER_BYTES


def block_of(index: int) -> int:
    """The first cell of a block."""
    return _BLOCKS + index * _BLOCK_CELLS


class ArenaLayout:
    """Where each tensor lies. `outputs` are those that the graph really has, parameters too; `room` is rows per buffer."""

    def __init__(
        self, observation: Sequence[Tensor], outputs: Sequence[Tensor], states: Sequence[State], room: int, depth: int
    ) -> None:
        if not 1 <= depth <= DEPTH_MAX:
            raise ValueError(f"depth: expected 1 to {DEPTH_MAX}, got {depth}")
        self._observation = observation
        self._outputs = outputs
        self._states = states
        self._room = room
        self.depth = depth
        self.batch_bytes = sum(self._tensor_bytes(dtype, shape) for dtype, shape in self._in_order())
        self.total_bytes = HEADER_BYTES + depth * self.batch_bytes
        """The size of the whole arena."""

    def memory(self, arena: memoryview, index: int) -> TensorMemory:
        """Returns the arrays of one batch in the mapped arena."""
        at = HEADER_BYTES + index * self.batch_bytes
        arrays: list[Array] = []
        for dtype, shape in self._in_order():
            count = row_bytes(dtype, shape) * self._room
            arrays.append(np.frombuffer(arena[at : at + count], dtype).reshape(self._room, *shape))
            at += self._tensor_bytes(dtype, shape)
        rest = iter(arrays)
        inputs = [next(rest) for _ in self._observation]
        before = [next(rest) for _ in self._states]
        outputs = {tensor.name: next(rest) for tensor in self._outputs}
        states = list(zip(before, rest))
        return TensorMemory(inputs, outputs, states, list(rest))

    def _in_order(self) -> list[tuple[str, Sequence[int]]]:
        """Observations, states before, outputs, states after, and the numbers of the state rows."""
        states: list[tuple[str, Sequence[int]]] = [(state.dtype, state.shape) for state in self._states]
        inputs: list[tuple[str, Sequence[int]]] = [(tensor.dtype, tensor.shape) for tensor in self._observation]
        outputs: list[tuple[str, Sequence[int]]] = [(tensor.dtype, tensor.shape) for tensor in self._outputs]
        numbers: list[tuple[str, Sequence[int]]] = [("int64", ()), ("int64", ())] if states else []
        return [*inputs, *states, *outputs, *states, *numbers]

    def _tensor_bytes(self, dtype: str, shape: Sequence[int]) -> int:
        return round_up(row_bytes(dtype, shape) * self._room, ALIGNMENT_BYTES)


class Arena:
    """A mapped arena. The mapping ends when nothing refers to its views any more."""

    def __init__(self, descriptor: int, layout: ArenaLayout) -> None:
        """Maps the memfd, which may be closed afterwards. Raises `OSError` if there is no memory or no descriptor."""
        mapping = memoryview(mmap.mmap(descriptor, layout.total_bytes))
        self.bytes = mapping
        self.cells = mapping[:_TEXTS_AT].cast("Q")
        """The header's cells. Reading one is one load."""
        self.memories = [layout.memory(mapping, index) for index in range(layout.depth)]
        texts = [_TEXTS_AT + index * _TEXT_BYTES for index in range(layout.depth)]
        self._texts = [mapping[at : at + FAILURE_BYTES_MAX] for at in texts]

    def write_failure(self, index: int, message: str) -> int:
        """Writes a batch's failure message, shortened where it must be; returns its length in bytes."""
        text = message.encode("utf-8", "replace")[:FAILURE_BYTES_MAX]
        self._texts[index][: len(text)] = text
        return len(text)

    def failure(self, index: int, length: int) -> str:
        """Reads a batch's failure message."""
        return bytes(self._texts[index][:length]).decode("utf-8", "replace")
