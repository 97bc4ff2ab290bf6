"""Batches overlap on a device, and nothing is written that another batch still uses; see `support/simulated_device.py`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pillion_worker.arena import FAILED, OK
from tests.worker.support.pipelines import ROWS_MAX, Answer, Batch, Serving, batch, expected, opened
from tests.worker.support.simulated_device import HOST_NS, LostError, Operation, SimulatedDevice

COPY_NS, COMPUTE_NS = 40 * HOST_NS, 100 * HOST_NS
LASTS = {"copy in": COPY_NS, "compute": COMPUTE_NS, "copy out": COPY_NS // 2}


def serve(device: SimulatedDevice, batches: Sequence[Batch], depth: int, strict_rows: int = 0) -> list[Answer]:
    """The answers to these batches."""
    with opened(device):
        return Serving(device, batches, depth, strict_rows=strict_rows).run()


def of(device: SimulatedDevice, stream: str) -> list[Operation]:
    """What a stream did."""
    return [each for each in device.operations if each.stream == stream]


def check(batches: Sequence[Batch], answers: Sequence[Answer]) -> None:
    """Each answer is that of its batch."""
    assert len(answers) == len(batches)
    for asked, answer in zip(batches, answers, strict=True):
        assert answer.outcome == OK, answer.message
        for actual, due in zip(answer.outputs, expected(asked.images, asked.numbers), strict=True):
            np.testing.assert_array_equal(actual, due)


def test_with_two_batches_the_next_copy_in_and_the_last_copy_out_overlap_with_the_compute() -> None:
    taken_ns = {}
    for depth in (1, 2):
        device = SimulatedDevice(LASTS.__getitem__)
        batches = [batch(2, seed) for seed in range(8)]
        answers = serve(device, batches, depth)
        check(batches, answers)
        taken_ns[depth] = answers[-1].answered_ns - of(device, "copy in")[0].began_ns
        copies_in, computes, copies_out = (of(device, stream) for stream in ("copy in", "compute", "copy out"))
        for before, compute, later in zip(copies_out, computes[1:], copies_in[2:], strict=False):
            assert (before.ended_ns > compute.began_ns) == (depth == 2)
            assert (later.began_ns < compute.ended_ns) == (depth == 2)
    assert taken_ns[2] < taken_ns[1] * 0.8, "the copies cost time of their own"


def test_a_batch_that_comes_while_another_one_runs_begins_before_that_ends() -> None:
    device = SimulatedDevice(LASTS.__getitem__)
    batches = [batch(1, 0), batch(3, 1, at_ns=COPY_NS + COMPUTE_NS // 2)]
    check(batches, serve(device, batches, 2))
    assert of(device, "compute")[0].began_ns < batches[1].at_ns
    assert of(device, "copy in")[1].began_ns < of(device, "compute")[0].ended_ns


def test_the_times_of_a_batch_are_those_of_the_device() -> None:
    device = SimulatedDevice(LASTS.__getitem__)
    for answer in serve(device, [batch(rows) for rows in (1, 2, 5)], 2):
        for taken_ns, lasts_ns in zip(answer.times_ns, LASTS.values(), strict=True):
            # The host enqueues one after the other, while the stream may idle.
            assert lasts_ns <= taken_ns <= lasts_ns + 2 * HOST_NS


def test_a_batch_that_fails_as_it_begins_fails_alone_and_in_its_turn() -> None:
    device = SimulatedDevice(LASTS.__getitem__, captures=False)
    batches = [batch(2, seed) for seed in range(5)]
    batches[1].numbers[0, 0] = -1
    answers = serve(device, batches, 2)
    assert [each.outcome for each in answers] == [OK, FAILED, OK, OK, OK]
    assert "negative" in answers[1].message
    assert answers[1].times_ns == [0, 0, 0]
    check(batches[:1] + batches[2:], answers[:1] + answers[2:])


@pytest.mark.parametrize("where", ["copy in", "compute", "copy out", "wait"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_device_without_memory_or_with_another_error_fails_one_batch(where: str, depth: int) -> None:
    for fault, message in (
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "device memory is used up: CUDA out of",
        ),
        (RuntimeError("misaligned"), "torch: misaligned"),
    ):
        device = SimulatedDevice(LASTS.__getitem__)
        device.faults = {where: [None, None, fault]}
        batches = [batch(2, seed) for seed in range(5)]
        answers = serve(device, batches, depth)
        assert [each.outcome for each in answers] == [OK, OK, FAILED, OK, OK]
        assert answers[2].message.startswith(message)
        check(batches[:2] + batches[3:], answers[:2] + answers[3:])
        assert device.freed == (message.startswith("device memory"))


@pytest.mark.parametrize("where", ["copy in", "compute", "copy out", "wait"])
def test_a_worker_whose_device_is_lost_ends(where: str) -> None:
    device = SimulatedDevice(LASTS.__getitem__)
    device.faults = {where: [None, LostError("device-side assert triggered")]}
    with pytest.raises(SystemExit) as ended:
        serve(device, [batch(2, seed) for seed in range(3)], 2)
    assert ended.value.code == 69


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_takes_how_long_each_batch_gets_its_own_answer_in_order(data: st.DataObject) -> None:
    depth = data.draw(st.integers(1, 3), "depth")
    strict_rows = data.draw(st.sampled_from([0, 0, 2]), "strict rows")
    lengths = itertools.cycle(data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=9), "lengths"))
    plans = st.lists(st.tuples(st.integers(1, ROWS_MAX), st.integers(0, 300)), min_size=1, max_size=7)
    batches, at_ns = [], 0
    for seed, (rows, later) in enumerate(data.draw(plans, "batches")):
        at_ns += later * HOST_NS
        batches.append(batch(rows, seed, at_ns))
    device = SimulatedDevice(lambda _: next(lengths) * HOST_NS, captures=data.draw(st.booleans(), "captures"))
    check(batches, serve(device, batches, depth, strict_rows))
