"""What a worker writes of its device: each batch has its own times, at most as long as the worker had it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion_protocol.action_steps import NO_DEVICE_TIMES
from pillion_worker.arena import COMPUTE_NS, COPY_IN_NS, COPY_OUT_NS, block_of
from pilliond.engine.device_times import read_device_times
from pilliond.engine.worker import WorkerState
from tests.worker.support.on_device import times_of
from tests.worker.support.policies import summing
from tests.worker.support.processes import ON_DEVICE, Host

written = st.integers(0, 2**64 - 1) | st.integers(0, 100)


@given(index=st.integers(0, 3), times=st.tuples(written, written, written), run_ns=st.integers(0, 100))
def test_times_are_those_of_the_block_cut_to_the_run(index: int, times: tuple[int, int, int], run_ns: int) -> None:
    cells = memoryview(bytearray(8 * 128)).cast("Q")
    block = block_of(index)
    cells[block + COPY_IN_NS], cells[block + COMPUTE_NS], cells[block + COPY_OUT_NS] = times
    read = read_device_times(cells, block, run_ns)
    assert sum(read) == min(sum(times), run_ns)
    assert all(0 <= each <= said for each, said in zip(read, times, strict=True))
    # `is`: without a device nothing else is done for a batch.
    assert (read is NO_DEVICE_TIMES) == (not any(read))


def start(host: Host, device: str) -> None:
    """Attaches a worker that says it is on that device, and waits until it is ready."""
    host.attach(device, program=ON_DEVICE)
    host.pump(lambda: host.engine.state is not WorkerState.LOADING)
    assert host.engine.state is WorkerState.READY, host.engine.reason


@pytest.mark.parametrize("depth", [1, 2])
def test_each_batch_has_its_own_times_and_a_replacement_on_the_cpu_has_none(depth: int) -> None:
    with Host(summing(), depth=depth) as host:
        start(host, "cuda:0")
        assert [host.run([float(number)]) for number in range(5)] == [[float(number)] for number in range(5)]
        assert [answer.times for answer in host.answers] == [times_of(number) for number in range(1, 6)]
        host.process.kill()
        host.pump(lambda: bool(host.losses))
        start(host, "cpu")
        assert host.run([7.0]) == [7.0]
        assert host.answers[-1].times is NO_DEVICE_TIMES
        host.process.kill()
        host.pump(lambda: len(host.losses) == 2)
        start(host, "cuda:1")
        assert host.run([8.0]) == [8.0]
        assert host.answers[-1].times == times_of(1)
