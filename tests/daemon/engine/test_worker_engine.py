"""An engine in a worker returns what the inline engine returns, and the loop never waits for it."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import termios
import time

import numpy as np
import pytest

from pillion_worker.arena import FAILED, OK
from pillion_worker.doorbell import CAN_SPIN
from pillion_worker.limits import RINGS_MAX
from pilliond.engine.certifier import certify
from pilliond.engine.interface import Engine, EngineError
from pilliond.engine.onnx import OnnxEngine
from pilliond.engine.worker import WorkerState
from pilliond.limits import NEVER_NS
from pilliond.versions.warmer import distinct_runs
from tests.daemon.engine.test_onnx import POLICIES
from tests.harness import WAIT_S_MAX
from tests.worker.support.policies import TABLE, Policy, allocating, looking_up, shipped, summing
from tests.worker.support.processes import Host, sealed, spawn

ROWS_MAX = 20


def inline(policy: Policy, rows_max: int = ROWS_MAX, strict_rows: int = 0) -> OnnxEngine:
    engine = OnnxEngine(
        policy.model, policy.spec, policy.parameters, rows_max, states=policy.states, strict_rows=strict_rows
    )
    engine.warm_up()
    return engine


def fill(engine: Engine, rows: int, seed: int) -> None:
    """Writes the same random rows into any engine."""
    random = np.random.default_rng(seed)
    for array in [*engine.inputs, *(before for before, _ in engine.states)]:
        numbers = random.uniform(0, 255 if array.dtype == np.uint8 else 1, (rows, *array.shape[1:]))
        array[:rows] = numbers.astype(array.dtype)


def results(engine: Engine, rows: int) -> dict[str, bytes]:
    """The outputs, parameters and states of these rows."""
    after = {f"state {index}": pair[1] for index, pair in enumerate(engine.states)}
    return {name: array[:rows].tobytes() for name, array in {**engine.outputs, **after}.items()}


@pytest.mark.parametrize("strict_rows", [0, 8])
@pytest.mark.parametrize("name", POLICIES)
def test_every_number_of_rows_returns_the_bits_that_the_inline_engine_returns(name: str, strict_rows: int) -> None:
    policy = shipped(name)
    reference = inline(policy, strict_rows=strict_rows)
    with Host(policy, ROWS_MAX, strict_rows=strict_rows) as host:
        engine = host.start().engine
        assert set(engine.outputs) == set(reference.outputs)
        for rows in range(1, ROWS_MAX + 1):
            for each in (engine, reference):
                fill(each, rows, seed=rows)
                each.runs[rows]()
            assert results(engine, rows) == results(reference, rows)
    assert not host.losses


def test_recurrent_states_are_read_and_written() -> None:
    policy = summing()
    reference = inline(policy)
    with Host(policy, ROWS_MAX) as host:
        engine = host.start().engine
        for rows in (1, 3, ROWS_MAX):
            for each in (engine, reference):
                fill(each, rows, seed=rows)
                each.runs[rows]()
            assert results(engine, rows) == results(reference, rows)
            assert engine.states[0][1][:rows].any()


def test_a_worker_is_certified_as_the_inline_engine_is() -> None:
    policy = shipped("lunar-lander")
    with Host(policy, ROWS_MAX) as host:
        certificate = certify(host.start().engine, policy.spec, policy.states, None, ROWS_MAX)
    assert certificate == certify(inline(policy), policy.spec, policy.states, None, ROWS_MAX)


def test_the_counts_of_a_bucket_share_a_run() -> None:
    with Host(summing(), ROWS_MAX) as host:
        assert host.start().engine.buckets == [1, 2, 4, 8, 16, 20]
        assert len(distinct_runs(host.engine)) == 6


@pytest.mark.parametrize("spin_us", [0, 1_000])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_batches_complete_in_their_order_each_with_its_own_answer(depth: int, spin_us: int) -> None:
    with Host(summing(), depth=depth, spin_us=spin_us) as host:
        engine = host.start().engine
        assert len(engine.free) == len(engine.memories) == depth
        for number in range(0, 60, depth):
            submitted = [host.submit([number + index]) for index in range(depth)]
            assert not engine.free
            assert [batch.memory for batch in engine.in_flight] == submitted
            host.pump_answers(number + depth)
            assert [answer.memory for answer in host.answers[-depth:]] == submitted
            assert [memory.outputs["action"][0, 0] for memory in submitted] == [number + i for i in range(depth)]
            assert len(engine.free) == depth
    assert {answer.outcome for answer in host.answers} == {OK}
    assert not host.losses


def test_any_memory_that_is_free_can_be_submitted_next() -> None:
    with Host(summing(), depth=2) as host:
        engine = host.start().engine
        for number in range(4):
            memory = engine.memories[1]
            memory.inputs[0][0] = number
            engine.submit(memory, 1)
            host.pump_answers(number + 1)
            assert memory.outputs["action"][0, 0] == number


def test_a_spinning_worker_reads_its_rings_before_the_doorbell_is_full() -> None:
    with Host(summing(), spin_us=60_000_000) as host:
        engine = host.start().engine
        rings_max = fcntl.fcntl(engine._submit, fcntl.F_SETPIPE_SZ, 1)
        assert rings_max > RINGS_MAX
        for number in range(rings_max + 10):
            host.submit([1])
            host.pump_answers(number + 1)
    assert not host.losses


@pytest.mark.skipif(not CAN_SPIN, reason="workers spin on x86-64 only")
@pytest.mark.parametrize(
    ("spin_us", "pause_s", "unread"), [(60_000_000, 0.0, [0, 0, 1, 2]), (1_000, 0.01, [0] * 4), (0, 0.0, [0] * 4)]
)
def test_a_worker_spins_only_while_batches_follow_each_other_soon(
    spin_us: int, pause_s: float, unread: list[int]
) -> None:
    """A ring that is left in the doorbell announced a batch that a spinning worker saw before."""
    rings: list[int] = []
    with Host(summing(), spin_us=spin_us) as host:
        engine = host.start().engine
        for number in range(4):
            host.submit([1])
            host.pump_answers(number + 1)
            (waiting,) = struct.unpack("i", fcntl.ioctl(engine._submit, termios.FIONREAD, bytes(4)))
            rings.append(waiting)
            time.sleep(pause_s)
    assert rings == unread


def test_a_failed_batch_says_why_and_the_worker_goes_on() -> None:
    with Host(looking_up(), depth=2) as host:
        host.start()
        memories = [host.submit([1, 99]), host.submit([2, 3])]
        host.pump(lambda: len(host.answers) == 2)
        failed, answered = host.answers
        assert (failed.memory, failed.outcome) == (memories[0], FAILED)
        assert failed.message.startswith("onnxruntime: ")
        assert answered.outcome == OK
        assert answered.memory.outputs["action"][:2, 0].tolist() == [TABLE[2], TABLE[3]]
        host.engine.inputs[0][0] = 99
        with pytest.raises(EngineError, match="onnxruntime: "):
            host.engine.runs[1]()
        assert host.run([0]) == [TABLE[0]]
    assert not host.losses


def test_times_and_progress_are_known() -> None:
    with Host(summing(), depth=2) as host:
        assert host.engine.owes_since_ns == NEVER_NS
        host.attach()
        assert host.engine.owes_since_ns < NEVER_NS
        host.engine.wait_ready(WAIT_S_MAX)
        assert host.readies == [WorkerState.READY]
        times = host.engine.service
        assert all(0 < times.fast_ns(rows) <= times.slow_ns(rows) for rows in range(1, 9))
        assert host.engine.owes_since_ns == NEVER_NS
        host.process.send_signal(signal.SIGSTOP)
        host.submit([1])
        first = host.engine.in_flight[0].submitted_ns
        host.submit([2])
        assert host.engine.owes_since_ns == first
        host.process.send_signal(signal.SIGCONT)
        host.pump(lambda: bool(host.answers))
        assert host.engine.owes_since_ns > first
        host.pump(lambda: len(host.answers) == 2)
        assert host.engine.owes_since_ns == NEVER_NS
        for answer in host.answers:
            assert first <= answer.started_ns <= answer.finished_ns


def test_a_version_that_a_worker_refuses_says_why() -> None:
    lander = shipped("lunar-lander")
    for policy, message in (
        (lander._replace(model=b"not a model"), "onnxruntime cannot load the model"),
        (lander._replace(parameters=["action"]), "output 'action' of two rows: expected floats, got int64"),
        (summing()._replace(states=[]), "the graph's inputs are not the card's"),
    ):
        with Host(policy) as host:
            host.attach()
            with pytest.raises(EngineError, match=message):
                host.engine.wait_ready(WAIT_S_MAX)
            assert host.engine.is_refused
            assert host.engine.state is WorkerState.LOST
            assert host.process.wait(WAIT_S_MAX) == os.EX_DATAERR
        assert len(host.losses) == 1


def test_an_engine_that_no_worker_has_is_refused() -> None:
    with Host(summing(), engine="../../os") as host:
        host.attach()
        with pytest.raises(EngineError, match=r"engine: expected one of onnx, .*got '\.\./\.\./os'"):
            host.engine.wait_ready(WAIT_S_MAX)


def test_a_worker_keeps_to_its_address_space() -> None:
    """What fails first in it depends on the machine: an import, the compiler, a mapping."""
    with Host(summing(), memory_bytes_max=100_000_000) as host:
        host.attach()
        with pytest.raises(EngineError):
            host.engine.wait_ready(WAIT_S_MAX)
        assert len(host.losses) == 1
    with Host(summing(), memory_bytes_max=8_000_000_000) as host:
        assert host.start().run([1]) == [1.0]


def test_a_batch_that_needs_more_memory_than_its_worker_may_have_fails_alone() -> None:
    with Host(allocating(), memory_bytes_max=1_500_000_000) as host:
        host.start()
        assert host.run([3]) == [3.0]
        host.submit([500_000_000])
        host.pump_answers(2)
        assert host.answers[-1].outcome == FAILED
        assert host.run([4]) == [4.0]
    assert not host.losses


def test_a_busy_or_lost_engine_does_not_run_for_who_waits() -> None:
    with Host(summing(), depth=2) as host:
        host.start()
        host.process.send_signal(signal.SIGSTOP)
        host.submit([1])
        with pytest.raises(EngineError, match="its worker is busy"):
            host.engine.runs[1]()
        run = host.engine.runs[1]
        host.process.kill()
        host.pump(lambda: bool(host.losses))
        with pytest.raises(EngineError, match="its worker ended"):
            run()


def test_an_engine_needs_no_loop_to_start() -> None:
    policy = summing()
    with Host(policy) as host:
        host.engine._descriptors = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, sealed(policy.model) as model:
            host.processes.append(spawn(theirs))
            host.engine.attach(ours, model)
        host.engine.wait_ready(WAIT_S_MAX)
        host.engine.inputs[0][0] = 5
        host.engine.runs[1]()
        assert host.engine.outputs["action"][0, 0] == 5
        assert host.engine.describe()["kind"] == "onnxruntime"
