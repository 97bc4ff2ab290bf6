"""Both sides of an arena see the same tensors, apart from each other and aligned."""

from __future__ import annotations

import os
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion_worker.arena import ALIGNMENT_BYTES, HEADER_BYTES, Arena, ArenaLayout, block_of
from pillion_worker.limits import DEPTH_MAX, FAILURE_BYTES_MAX
from pillion_worker.tensors import LoadRequest, State, Tensor
from pilliond.limits import WORKER_DEPTH_MAX

SHAPES = st.lists(st.integers(1, 5), max_size=3)
DTYPES = st.sampled_from(["uint8", "float16", "float32", "int64", "bool"])
TENSORS = st.lists(st.tuples(DTYPES, SHAPES), min_size=1, max_size=3)


def named(tensors: list[tuple[str, list[int]]]) -> list[Tensor]:
    return [Tensor(str(index), dtype, shape) for index, (dtype, shape) in enumerate(tensors)]


def mapped(layout: ArenaLayout, times: int) -> list[Arena]:
    """The same memory, mapped as often as that."""
    descriptor = os.memfd_create("pillion-test-arena", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, layout.total_bytes)
        return [Arena(descriptor, layout) for _ in range(times)]
    finally:
        os.close(descriptor)


@given(TENSORS, TENSORS, TENSORS, st.integers(1, 9), st.integers(1, DEPTH_MAX))
def test_tensors_are_aligned_and_do_not_overlap(
    observation: list[tuple[str, list[int]]],
    outputs: list[tuple[str, list[int]]],
    states: list[tuple[str, list[int]]],
    room: int,
    depth: int,
) -> None:
    carried = [State(str(index), f"{index} next", dtype, shape) for index, (dtype, shape) in enumerate(states)]
    layout = ArenaLayout(named(observation), named(outputs), carried, room, depth)
    ours, theirs = mapped(layout, 2)
    base = np.frombuffer(ours.bytes, np.uint8).ctypes.data
    spans = []
    for one, other in zip(ours.memories, theirs.memories, strict=True):
        pairs = [
            *zip(one.inputs, other.inputs, strict=True),
            *zip(one.outputs.values(), other.outputs.values(), strict=True),
            *((a, b) for p, q in zip(one.states, other.states, strict=True) for a, b in zip(p, q, strict=True)),
        ]
        for number, (written, read) in enumerate(pairs):
            assert written.shape[0] == room
            written[:] = number % 2
            assert np.array_equal(written, read)
            first = written.ctypes.data - base
            assert first % ALIGNMENT_BYTES == 0
            spans.append((first, first + written.nbytes))
    spans.sort()
    assert spans[0][0] == HEADER_BYTES
    assert spans[-1][1] <= layout.total_bytes
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_a_failure_message_is_shortened_and_read_by_the_other_side() -> None:
    layout = ArenaLayout([Tensor("x", "uint8", [1])], [], [], 1, DEPTH_MAX)
    ours, theirs = mapped(layout, 2)
    for index in range(DEPTH_MAX):
        length = ours.write_failure(index, f"{index} ü" * 400)
        assert length == FAILURE_BYTES_MAX
        assert theirs.failure(index, length).startswith(f"{index} ü{index} ü")
        assert ours.cells[block_of(index)] == 0
    assert theirs.failure(0, ours.write_failure(0, "short")) == "short"


def test_the_settings_allow_the_depths_that_an_arena_has() -> None:
    assert WORKER_DEPTH_MAX == DEPTH_MAX


@pytest.mark.parametrize("depth", [0, DEPTH_MAX + 1])
def test_a_depth_that_the_header_has_no_room_for_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="depth: expected 1 to 4"):
        ArenaLayout([], [], [], 1, depth)


def test_a_request_travels_as_it_is() -> None:
    tensor = Tensor("x", "float32", [2, 3])
    request = LoadRequest("onnx", [tensor], [tensor], ["logits"], [State("h", "h_next", "float32", [4])], 8, depth=2)
    assert LoadRequest.from_packet(request.to_packet()) == request
    with pytest.raises(TypeError):
        LoadRequest.from_packet({**request.to_packet(), "unknown": 1})
