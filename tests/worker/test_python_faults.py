"""Whatever the package of a Python policy does, its version is refused, its batch fails or its worker ends; then others serve."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import save

from pillion_protocol import Spec, TensorSpec
from pillion_worker.arena import FAILED, OK
from pillion_worker.limits import FAILURE_BYTES_MAX
from pilliond.engine.interface import EngineError
from pilliond.ipc.loss_cause import LossCause
from pilliond.limits import NEVER_NS
from tests.harness import WAIT_S_MAX, wait_until
from tests.worker.support.installed import EXAMPLE, HOSTILE, code, make_environment, mlp_actions, mlp_weights
from tests.worker.support.packages.pillion_hostile_policies.pillion_hostile_policies import LEAK_BYTES, TRIGGERS
from tests.worker.support.policies import Policy
from tests.worker.support.processes import Host

SPEC = Spec([TensorSpec("observation", "float32", [1])], [TensorSpec("action", "float32", [1])])

ADDRESS_BYTES_MAX = 2_000_000_000
"""Of the worker of a policy that leaks."""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment that has the packages of the tests, which that of the daemon has not."""
    return make_environment(tmp_path_factory.mktemp("environment"), EXAMPLE, HOSTILE)


class PythonHost(Host):
    """Runs the hostile policy."""

    def __init__(self, python: str, at_load: str = "", **settings: Any) -> None:
        asked = code(HOSTILE, "make", at_load=at_load)
        super().__init__(Policy(save({}), SPEC, [], []), engine="python", code=asked, **settings)
        self.python = python

    def attach(self, *arguments: str, **settings: Any) -> None:
        super().attach(*arguments, **{"python": self.python, **settings})

    def why_refused(self) -> str:
        """Why the version is refused when it loads."""
        self.attach()
        with pytest.raises(EngineError) as refused:
            self.engine.wait_ready(WAIT_S_MAX)
        return str(refused.value)

    def trigger(self, fault: str) -> None:
        """Lets the policy do this in one batch."""
        self.submit([TRIGGERS[fault]])
        count = len(self.answers) + 1
        self.pump(lambda: len(self.answers) == count or bool(self.losses))


@pytest.fixture
def orphans() -> Iterator[None]:
    """Fails if a process that the test started, or that one of those started, stays."""
    before = set(psutil.Process().children(recursive=True))
    yield
    wait_until(lambda: before.issuperset(psutil.Process().children(recursive=True)))


def is_cut_off(process: psutil.Process) -> bool:
    """Whether a process has no socket open. The only one of a worker is its channel."""
    folder = Path(f"/proc/{process.pid}/fd")
    try:
        return not any(os.readlink(entry).startswith("socket:") for entry in folder.iterdir())
    except FileNotFoundError:
        # It closes some right now.
        return False


def exit_code(process: psutil.Process) -> int:
    """The exit code of a process that has ended, and that nobody has waited for yet."""
    status = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[-1])
    return os.waitstatus_to_exitcode(status)


def test_a_policy_of_another_environment_answers(python: str) -> None:
    weights = mlp_weights()
    spec = Spec([TensorSpec("observation", "float32", [8])], [TensorSpec("action", "float32", [4])])
    policy = Policy(save(weights), spec, [], [])
    rows = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    with Host(policy, engine="python", code=code(EXAMPLE, "mlp", requires="~=1.2")) as host:
        host.attach(python=python)
        host.engine.wait_ready(WAIT_S_MAX)
        actions = np.reshape(host.run(rows), (5, 4))
        described = host.engine.describe()
    np.testing.assert_allclose(actions, mlp_actions(weights, rows), rtol=1e-5, atol=1e-6)
    assert (described["kind"], described["version"], described["distribution"]) == ("python", "1.2.0", EXAMPLE)
    assert not host.losses


def test_the_interpreter_of_the_daemon_has_not_the_package() -> None:
    with PythonHost(sys.executable) as host:
        where = f"{sys.executable}: install it there, or set engine.python"
        assert host.why_refused() == f"its package '{HOSTILE}' is not installed for {where}"
        assert host.engine.is_refused


LOADS = {
    "raise": "its factory raised ValueError: the policy is broken",
    "raise_much": "its factory raised ValueError: xxx",
    "exit": "its factory raised SystemExit: 3",
    "interrupt": "its factory raised KeyboardInterrupt",
    "end": "its worker ended",
    "crash": "its worker ended",
}


@pytest.mark.parametrize("fault", LOADS)
def test_a_factory_that_fails_is_refused_or_ends_its_worker(python: str, fault: str) -> None:
    with PythonHost(python, at_load=fault) as host:
        assert host.why_refused().startswith(LOADS[fault])
        assert host.engine.is_refused == (LOADS[fault] != "its worker ended")
        assert len(host.losses) == 1


def test_a_factory_that_holds_the_interpreter_for_ever_is_given_up(python: str) -> None:
    with PythonHost(python, at_load="hold_the_gil") as host:
        host.attach()
        with pytest.raises(EngineError, match="was not ready within 2 s"):
            host.engine.wait_ready(2)
        assert host.engine.cause is LossCause.HUNG


@pytest.mark.parametrize("fault", ["raise", "raise_much", "raise_half_a_character", "exit", "interrupt", "recurse"])
def test_a_run_that_raises_fails_its_batch_alone(python: str, fault: str) -> None:
    with PythonHost(python) as host:
        host.start()
        assert host.run([1.0, 2.0]) == [2.0, 4.0]
        host.trigger(fault)
        assert host.answers[-1].outcome == FAILED
        assert host.answers[-1].message.startswith("its policy raised ")
        assert len(host.answers[-1].message.encode()) <= FAILURE_BYTES_MAX
        assert host.run([3.0]) == [6.0]
        assert not host.losses


@pytest.mark.parametrize("fault", ["end", "crash"])
def test_a_run_that_ends_the_worker_costs_it_its_worker_alone(python: str, fault: str) -> None:
    with PythonHost(python) as host:
        host.start()
        host.trigger(fault)
        assert host.losses == ["its worker ended"]
        assert not host.engine.is_refused
        host.start()
        assert host.run([3.0]) == [6.0]


def test_a_run_that_holds_the_interpreter_for_ever_owes_its_batch_until_it_is_killed(python: str) -> None:
    with PythonHost(python) as host:
        host.start()
        host.submit([TRIGGERS["hold_the_gil"]])
        assert host.engine.owes_since_ns < NEVER_NS
        host.engine.lose("it made no progress", LossCause.HUNG)
        host.process.kill()
        host.start()
        assert host.run([3.0]) == [6.0]


def test_what_is_not_a_number_is_answered_as_such(python: str) -> None:
    # The serving process refuses those rows alone.
    with PythonHost(python) as host:
        host.start()
        host.trigger("nan")
        assert host.answers[-1].outcome == OK
        assert np.isnan(host.answers[-1].memory.outputs["action"][0, 0])
        assert not host.losses


@pytest.mark.parametrize("at_load", ["print", ""])
def test_what_a_policy_prints_goes_to_the_log(python: str, at_load: str, capfd: pytest.CaptureFixture[str]) -> None:
    with PythonHost(python, at_load) as host:
        host.start()
        if not at_load:
            host.trigger("print")
        assert host.run([3.0]) == [6.0]
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "printed by the policy\n" in captured.err
    assert "written by the policy\n" in captured.err


@pytest.mark.usefixtures("orphans")
@pytest.mark.parametrize("at_load", [True, False], ids=["at load", "in a run"])
@pytest.mark.parametrize("fault", ["fork", "fork_and_stay", "fork_and_raise"])
def test_a_process_that_a_policy_forks_has_no_say_and_ends_with_the_worker(
    python: str, at_load: bool, fault: str
) -> None:
    with PythonHost(python, fault if at_load else "") as host:
        host.start()
        if not at_load:
            host.trigger(fault)
        assert host.run([3.0]) == [6.0]
        assert all(answer.outcome == OK for answer in host.answers)
        assert not host.losses
        children = psutil.Process(host.process.pid).children()
        if fault == "fork_and_stay":
            assert children
            # The worker is seen to be gone, though a process that it forked is not.
            for child in children:
                # A process that was not given the CPU since it was forked has still to cut itself off.
                wait_until(partial(is_cut_off, child))
                child.suspend()
        host.process.kill()
        host.pump(lambda: bool(host.losses))
        assert host.losses == ["its worker ended"]
        psutil.wait_procs(children, WAIT_S_MAX)
        assert not any(child.is_running() for child in children)
        host.start()
        assert host.run([3.0]) == [6.0]


@pytest.mark.usefixtures("orphans")
@pytest.mark.parametrize("at_load", [True, False], ids=["at load", "in a run"])
def test_a_forked_process_that_comes_back_from_a_call_ends_there_and_writes_nothing(python: str, at_load: bool) -> None:
    fault = "fork_and_come_back_late"
    with PythonHost(python, fault if at_load else "") as host:
        host.start()
        if not at_load:
            host.trigger(fault)
        (child,) = psutil.Process(host.process.pid).children()
        wait_until(lambda: child.status() == psutil.STATUS_STOPPED)
        memories: list[Any] = []
        while len(memories) < len(host.engine.memories):
            assert host.run([3.0]) == [6.0]
            memories.append(host.answers[-1].memory)
        assert set(map(id, memories)) == set(map(id, host.engine.memories))
        child.resume()
        wait_until(lambda: child.status() == psutil.STATUS_ZOMBIE)
        assert exit_code(child) == os.EX_SOFTWARE
        assert [memory.outputs["action"][0, 0] for memory in memories] == [6.0] * len(memories)
        assert not host.losses


def test_a_policy_that_leaks_fails_its_batches_at_the_bound_of_its_address_space(python: str) -> None:
    with PythonHost(python, memory_bytes_max=ADDRESS_BYTES_MAX) as host:
        host.start()
        for _ in range(ADDRESS_BYTES_MAX // LEAK_BYTES):
            host.trigger("leak")
            if host.answers[-1].outcome == FAILED:
                break
        assert host.answers[-1].message.startswith("its policy raised MemoryError: Unable to allocate 95")
        assert host.run([3.0]) == [6.0]
        assert not host.losses
