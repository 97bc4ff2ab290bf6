"""Whatever happens to a worker, or whatever it does, its engine is lost once, and the next worker serves."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path

import pytest

from pillion_worker.arena import COMPLETED, FAILED, OK, STARTED_NS, block_of
from pillion_worker.limits import REASON_CHARS_MAX
from pilliond.engine.interface import EngineError
from pilliond.engine.worker import WorkerState
from pilliond.ipc.loss_cause import LossCause
from tests.harness import WAIT_S_MAX
from tests.worker.support.policies import looping, shipped, summing
from tests.worker.support.processes import ROGUE, Host, arenas
from tests.worker.support.rogue import BEFORE_BATCHES, HARMLESS, WITH_A_BATCH

OUTCOMES = {
    "a message that is no text": FAILED,
    "another size of the arena": OK,
    "times before the batch": OK,
    "times to come": OK,
    "a device that took for ever": OK,
}
REFUSED = {
    "an impossible parameter": "too many elements",
    "a large parameter": "its batches need [0-9]+ bytes",
    "a parameter without elements": "no memory is left for its batches",
}
OF_PARAMETERS = {"a parameter of many axes"}
FOREVER = 2**62


def serves_with_a_new_worker(host: Host) -> None:
    """Fails unless the engine was lost once, and serves with the next worker."""
    assert len(host.losses) == 1
    assert host.engine.state is WorkerState.LOST
    assert not host.engine.free
    host.start()
    assert host.run([3.0]) == [3.0]
    assert len(host.losses) == 1


@pytest.mark.parametrize("mode", sorted(set(BEFORE_BATCHES) - set(REFUSED) - OF_PARAMETERS))
def test_a_worker_that_is_rogue_before_its_first_batch_is_contained(mode: str) -> None:
    with Host(summing()) as host:
        host.attach(mode, program=ROGUE)
        host.pump(lambda: bool(host.losses))
        assert len(host.losses[0]) <= REASON_CHARS_MAX
        assert host.losses[0].startswith(("its worker is rogue: ", "its worker rang without", "its worker completed"))
        assert not host.engine.is_refused
        serves_with_a_new_worker(host)
    assert len(host.answers) == 1


@pytest.mark.parametrize("mode", sorted(WITH_A_BATCH))
def test_a_worker_that_is_rogue_with_a_batch_is_contained(mode: str) -> None:
    with Host(summing()) as host:
        host.attach(mode, program=ROGUE)
        host.engine.wait_ready(WAIT_S_MAX)
        host.submit([1.0])
        host.pump(lambda: bool(host.losses))
        assert host.losses[0].startswith(
            ("its worker rang without", "its worker completed", "its worker answered", "its worker does not read")
        )
        # the first of two outcomes counts, unless both are there when it is looked at
        assert len(host.answers) <= (mode == "two outcomes")
        assert len(host.engine.in_flight) == 1 - len(host.answers)
        serves_with_a_new_worker(host)


@pytest.mark.parametrize("mode", sorted(HARMLESS))
def test_what_a_worker_may_write_does_no_harm(mode: str) -> None:
    with Host(summing()) as host:
        host.attach(mode, program=ROGUE)
        host.engine.wait_ready(WAIT_S_MAX)
        host.submit([1.0])
        batch = host.engine.in_flight[0]
        host.pump(lambda: bool(host.answers or host.losses))
        (answer,) = host.answers
        assert answer.outcome == OUTCOMES[mode]
        assert batch.submitted_ns <= answer.started_ns <= answer.finished_ns < 2**62
        took_ns = answer.finished_ns - answer.started_ns if mode == "a device that took for ever" else 0
        assert sum(answer.times) == took_ns
        assert not host.losses


@pytest.mark.parametrize("mode", sorted(REFUSED))
def test_a_shape_that_no_memory_holds_is_refused(mode: str) -> None:
    with Host(shipped("lunar-lander")) as host:
        host.attach(mode, program=ROGUE)
        with pytest.raises(EngineError, match=REFUSED[mode]):
            host.engine.wait_ready(WAIT_S_MAX)
        assert host.engine.is_refused


def test_the_quickest_run_that_a_worker_claims_is_taken_with_caution() -> None:
    with Host(summing()) as host:
        host.attach("slow claims", program=ROGUE)
        host.engine.wait_ready(WAIT_S_MAX)
        # an act is refused by the one, and a worker is judged by the other
        assert (host.engine.service.fast_ns(8), host.engine.service.slow_ns(8)) == (500, 3_000)


@pytest.mark.parametrize("mode", sorted(OF_PARAMETERS))
def test_a_parameter_that_no_engine_has_is_rogue(mode: str) -> None:
    with Host(shipped("lunar-lander")) as host:
        host.attach(mode, program=ROGUE)
        host.pump(lambda: bool(host.losses))
        assert host.losses[0].startswith("its worker is rogue: ")
        assert not host.engine.is_refused
        host.start()


def kill_before_it_loads(host: Host) -> None:
    host.attach(is_late=True)
    host.process.kill()


def kill_before_it_exists(host: Host) -> None:
    host.attach("garbage", program=["-c", ""])


def kill_while_it_loads(host: Host) -> None:
    host.attach()
    host.process.send_signal(signal.SIGSTOP)
    host.process.kill()


def kill_before_the_arena(host: Host) -> None:
    host.attach()
    host.pump(lambda: bool(host.engine.memories))
    host.process.kill()


def kill_between_batches(host: Host) -> None:
    host.start()
    assert host.run([1.0]) == [1.0]
    host.process.kill()


def kill_with_a_batch(host: Host) -> None:
    host.start()
    host.process.send_signal(signal.SIGSTOP)
    host.submit([1.0])
    host.process.kill()


@pytest.mark.parametrize(
    "kill",
    [
        kill_before_it_loads,
        kill_before_it_exists,
        kill_while_it_loads,
        kill_before_the_arena,
        kill_between_batches,
        kill_with_a_batch,
    ],
)
def test_a_worker_may_be_killed_in_any_phase(kill: object) -> None:
    assert callable(kill)
    with Host(summing()) as host:
        kill(host)
        host.pump(lambda: bool(host.losses))
        assert host.losses == ["its worker ended"]
        assert len(host.engine.in_flight) == (kill is kill_with_a_batch)
        assert not host.engine.is_refused
        serves_with_a_new_worker(host)


def test_what_a_worker_completed_before_it_was_killed_is_answered() -> None:
    with Host(summing()) as host:
        engine = host.start().engine
        host.submit([1.0])
        while engine._cells[COMPLETED] == 0:
            time.sleep(0.001)
        host.process.kill()
        host.process.wait(WAIT_S_MAX)
        # whichever descriptor is looked at first
        engine._handshake.receive()
        assert [answer.outcome for answer in host.answers] == [OK]
        assert not engine.in_flight
        serves_with_a_new_worker(host)


def test_a_worker_may_be_killed_while_its_engine_runs() -> None:
    with Host(looping()) as host:
        engine = host.start().engine
        assert host.run([5]) == [5.0]
        memory = host.submit([FOREVER])
        submitted_ns = engine.in_flight[0].submitted_ns
        host.pump(lambda: engine._cells[block_of(0) + STARTED_NS] >= submitted_ns)
        host.process.kill()
        host.pump(lambda: bool(host.losses))
        assert host.losses == ["its worker ended"]
        (batch,) = engine.in_flight
        # what is to be run again can still be read
        assert batch.memory is memory
        assert memory.inputs[0][0, 0] == FOREVER
        del memory, batch
        serves_with_a_new_worker(host)


def test_a_stopped_worker_completes_its_batches_when_it_goes_on() -> None:
    with Host(summing(), depth=2) as host:
        host.start()
        host.process.send_signal(signal.SIGSTOP)
        for number in (1.0, 2.0):
            host.submit([number])
        assert not host.engine.free
        host.process.send_signal(signal.SIGCONT)
        host.pump(lambda: len(host.answers) == 2)
        assert [answer.memory.outputs["action"][0, 0] for answer in host.answers] == [1.0, 2.0]


def test_a_load_that_does_not_end_is_not_waited_for_forever() -> None:
    with Host(summing()) as host:
        host.attach()
        host.process.send_signal(signal.SIGSTOP)
        with pytest.raises(EngineError, match=r"its worker was not ready within 0\.05 s"):
            host.engine.wait_ready(0.05)
        host.process.kill()
        serves_with_a_new_worker(host)


def test_without_descriptors_for_an_arena_the_worker_is_lost() -> None:
    with Host(summing()) as host:
        host.attach()
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(int(number) for number in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, before[1]))
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        try:
            host.pump(lambda: host.engine.state is not WorkerState.LOADING)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for descriptor in taken:
                os.close(descriptor)
        assert host.losses[0].startswith("no memory is left for its batches")
        assert host.engine.cause is LossCause.SHORTAGE
        assert not host.engine.is_refused
        serves_with_a_new_worker(host)


def test_without_memory_for_an_arena_the_worker_is_lost() -> None:
    with Host(summing()) as host:
        host.attach()
        before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used, before[1]))
        try:
            host.pump(lambda: host.engine.state is not WorkerState.LOADING)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
        assert host.losses[0].startswith("no memory is left for its batches")
        assert host.engine.cause is LossCause.SHORTAGE
        assert not host.engine.is_refused
        serves_with_a_new_worker(host)


def test_an_engine_that_is_given_up_says_why_and_stays_out() -> None:
    with Host(summing()) as host:
        host.start()
        host.process.kill()
        host.pump(lambda: bool(host.losses))
        host.engine.give_up("it was lost five times")
        assert host.engine.state is WorkerState.OUT
        assert host.engine.reason == "it was lost five times"
        host.engine.give_up("it was lost a sixth time")
        assert host.engine.state is WorkerState.OUT
        assert host.engine.reason == "it was lost a sixth time"
        assert not host.engine.free
    assert len(host.losses) == 1


def test_nothing_is_left_of_engines_and_their_workers() -> None:
    mapped, before = arenas(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with Host(summing(), depth=2) as host:
            kill_with_a_batch(host)
            host.pump(lambda: bool(host.losses))
            # the arena of the lost worker is there until the next one: a mapping, which has a descriptor
            assert arenas() == mapped + 2
            host.start()
            assert host.run([1.0]) == [1.0]
            host.answers.clear()
            assert arenas() == mapped + 2
            host.engine.close()
            assert host.process.wait(WAIT_S_MAX) == os.EX_OK
        assert arenas() == mapped
    assert len(os.listdir("/proc/self/fd")) == before
