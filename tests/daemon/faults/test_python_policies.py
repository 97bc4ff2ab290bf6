"""Packages that break, as a whole daemon sees them: a version is refused, a batch fails or a worker is replaced; others go on."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

import pillion
from pillion.errors import RefusedError
from pillion_artifacts import Store
from pillion_artifacts.store.aliases import move_alias
from tests.conftest import StartDaemon
from tests.harness import WAIT_S_MAX, Daemon, copy_examples, wait_until
from tests.worker.support.installed import HOSTILE, make_environment
from tests.worker.support.packages.pillion_hostile_policies.pillion_hostile_policies import TRIGGERS

CARD = """
schema: 3
name: hostile
version: {version}
description: Doubles its observation, or misbehaves.
licence: Apache-2.0
observation:
- {{name: observation, dtype: float32, shape: [1], low: [-1000.0], high: [1000.0]}}
outputs:
- {{name: action, dtype: float32, shape: [1]}}
engine: {engine}
"""
LANDER = np.zeros(8, np.float32)


def publish(store: Store, version: str, factory: str = "make", distribution: str = HOSTILE, **arguments: str) -> None:
    """Publishes a version of the hostile policy with these arguments."""
    engine = {
        "kind": "python",
        "entry_point": f"pillion_hostile_policies:{factory}",
        "distribution": distribution,
        "arguments": arguments,
    }
    with tempfile.TemporaryDirectory() as name:
        save_file({}, Path(name) / "model.safetensors")
        (Path(name) / "model_card.yaml").write_text(CARD.format(version=version, engine=json.dumps(engine)))
        store.publish("hostile", version, Path(name), created_by="a test")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment that has the hostile package, which that of the daemon has not."""
    return make_environment(tmp_path_factory.mktemp("environment"), HOSTILE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """`hostile@stable` is 1.0.0, which serves; each test publishes other versions of its own."""
    store = copy_examples(tmp_path_factory.mktemp("hostile") / "store")
    publish(store, "1.0.0")
    move_alias(store, "hostile", "stable", "1.0.0", expected="", by="a test")
    return store


@pytest.fixture(scope="module")
def daemon(python: str, store: Store, tmp_path_factory: pytest.TempPathFactory, module_daemon: StartDaemon) -> Daemon:
    """A daemon that serves the hostile policy in an environment of its own, and lunar-lander beside it."""
    config = tmp_path_factory.mktemp("settings") / "pillion.toml"
    config.write_text(f'[trust]\ncode = ["{HOSTILE}"]\n')
    settings = {
        "engine__python": python,
        # The largest leak takes long on a busy host, where pages are filled one by one.
        "engine__hang_ms_min": 2_000,
        "engine__worker_memory_mb_max": 700,
        "limits__rows_max": 4,
    }
    flags = ("--config", str(config), "--policy", "lunar-lander")
    return module_daemon(*flags, policy="hostile@stable", store=store.root, settings=settings)


@pytest.fixture
def episode(daemon: Daemon) -> Iterator[pillion.Episode]:
    """An episode of the hostile policy; it still gets right answers afterwards, and the other policy too."""
    with pillion.connect(daemon.address, policy="hostile") as session, session.begin(seed=1) as episode:
        assert doubles(episode, 1.0)
        yield episode
        assert doubles(episode, 2.0)
    with pillion.connect(daemon.address, policy="lunar-lander") as session, session.begin(seed=1) as lander:
        assert lander.act(LANDER) in range(4)


def doubles(episode: pillion.Episode, value: float) -> bool:
    """Whether the policy answers as it should."""
    return bool(episode.act(np.array([value], np.float32)).tolist() == [2 * value])


def worker_pid(daemon: Daemon, of: str = "1.0.0") -> int:
    """The worker of this version, beside those of versions that were staged."""
    (policy,) = [each for each in daemon.health()["policies"] if each["policy"] == "hostile"]
    (version,) = [each for each in policy["versions"] if each["version"] == of]
    return int(version["worker"]["pid"])


def act(episode: pillion.Episode, fault: str) -> str:
    """Lets the policy do this; returns the code of the refusal, or an empty text."""
    try:
        episode.act(np.array([TRIGGERS[fault]], np.float32))
    except RefusedError as refused:
        return refused.code
    return ""


REFUSED = {
    "raises": ({"at_load": "raise"}, "its factory raised ValueError: the policy is broken"),
    "raises much": ({"at_load": "raise_much"}, "its factory raised ValueError: xxx"),
    "exits": ({"at_load": "exit"}, "its factory raised SystemExit: 3"),
    "interrupts": ({"at_load": "interrupt"}, "its factory raised KeyboardInterrupt"),
    "ends its process": ({"at_load": "end"}, "its worker ended with exit code 0"),
    "crashes": ({"at_load": "crash"}, "its worker was killed by SIGSEGV"),
    "returns another name": ({"always": "wrong_name"}, "its policy returned no 'action', but actions"),
    "returns another dtype": (
        {"always": "wrong_dtype"},
        "output 'action': expected float32 [1, 1], got float64 [1, 1]",
    ),
    "returns another shape": ({"always": "wrong_shape"}, "output 'action': expected float32 [1, 1], got float32 [1]"),
    "returns too few rows": ({"always": "few_rows"}, "output 'action': expected float32 [2, 1], got float32 [1, 1]"),
    "returns a NaN": ({"always": "nan"}, "output 'action': expected finite numbers, got a NaN"),
    "is of another package": (
        {"distribution": "numpy"},
        f"expected a package that trust.code allows ({HOSTILE}), got 'numpy'",
    ),
    "has no such factory": ({"factory": "absent"}, "pillion_hostile_policies has no 'absent'"),
    "makes no policy": (
        {"factory": "no_policy"},
        "its factory: expected a policy that can be called, got dict",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_version_that_breaks_is_refused_in_one_line(
    daemon: Daemon, store: Store, episode: pillion.Episode, what: str
) -> None:
    arguments, why = REFUSED[what]
    version = f"1.{1 + list(REFUSED).index(what)}.0"
    publish(store, version, **arguments)
    failed = daemon.operation(daemon.ask("POST", "/v1/policies/hostile/switch", {"version": version}))
    assert failed["outcome"] == "failed"
    assert why in failed["error"]
    assert "\n" not in failed["error"]
    assert store.resolve("hostile@stable").version == "1.0.0"
    assert doubles(episode, 3.0)


@pytest.mark.parametrize("fault", ["print", "fork", "fork_and_raise"])
def test_what_a_version_does_beside_its_work_disturbs_nobody(
    daemon: Daemon, store: Store, episode: pillion.Episode, fault: str
) -> None:
    lost = len(daemon.events("worker_lost"))
    version = f"2.0.0-{fault.replace('_', '-')}"
    publish(store, version, at_load=fault)
    stage = daemon.operation(daemon.ask("POST", "/v1/policies/hostile/stage", {"version": version}))
    assert stage["outcome"] == "done", stage
    assert act(episode, fault) == ""
    assert doubles(episode, 3.0)
    assert len(daemon.events("worker_lost")) == lost


def test_what_a_policy_prints_is_in_the_log(daemon: Daemon, episode: pillion.Episode) -> None:
    before = daemon.stderr.count("printed by the policy")
    assert act(episode, "print") == ""
    assert daemon.stderr.count("printed by the policy") == before + 1


@pytest.mark.parametrize(
    "fault", ["raise", "raise_much", "exit", "interrupt", "recurse", "wrong_name", "wrong_dtype", "no_dict", "a_list"]
)
def test_a_run_that_fails_is_refused_alone(daemon: Daemon, episode: pillion.Episode, fault: str) -> None:
    worker = worker_pid(daemon)
    for value in range(3):
        assert act(episode, fault) == "internal"
        assert doubles(episode, value)
    assert worker_pid(daemon) == worker


@pytest.mark.parametrize("fault", ["end", "crash", "hold_the_gil"])
def test_a_run_that_ends_or_hangs_costs_its_worker_alone(daemon: Daemon, episode: pillion.Episode, fault: str) -> None:
    worker = worker_pid(daemon)
    assert act(episode, fault) in ("internal", "engine_restarting")
    assert doubles(episode, 3.0)
    assert worker_pid(daemon) != worker


def test_a_policy_that_leaks_is_replaced_at_the_bound_of_its_memory(daemon: Daemon, episode: pillion.Episode) -> None:
    lost = len(daemon.events("worker_lost"))
    while len(daemon.events("worker_lost")) == lost:
        assert act(episode, "leak") in ("", "internal", "engine_restarting")
    event = daemon.events("worker_lost")[lost]
    assert event["cause"] == "memory"
    assert "engine.worker_memory_mb_max is 700" in event["reason"]
    assert doubles(episode, 3.0)


# Programs that a policy starts


def programs(daemon: Daemon) -> list[psutil.Process]:
    """The programs that policies have started and that run."""
    children = psutil.Process(daemon.pid).children(recursive=True)
    return [child for child in children if child.name() == "sleep"]


def wait_until_gone(processes: list[psutil.Process]) -> None:
    """Waits until none of them runs; a zombie does not."""
    wait_until(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes))


@pytest.fixture
def starting(python: str, store: Store, start_daemon: StartDaemon) -> Daemon:
    """A daemon of its own, whose policy `hostile@3.0.0` has started a program, as 3.1.0 and 3.2.0 do."""
    if "3.0.0" not in store.versions("hostile"):
        for number in range(3):
            publish(store, f"3.{number}.0", at_load="start_a_program")
    settings = {"engine__python": python, "limits__rows_max": 2, "trust__code": HOSTILE}
    return start_daemon(policy="hostile@3.0.0", store=store.root, settings=settings)


def test_a_program_that_a_policy_starts_ends_with_its_worker_and_that_with_the_daemon(starting: Daemon) -> None:
    worker, (program,) = worker_pid(starting, "3.0.0"), programs(starting)
    # A terminal's Ctrl-C reaches the daemon's own group alone.
    assert (os.getpgid(worker), os.getpgid(program.pid)) == (worker, worker)
    assert os.getpgid(starting.serving_pid) == os.getpgid(starting.pid) != worker
    os.kill(worker, signal.SIGKILL)
    wait_until_gone([program])
    wait_until(lambda: len(programs(starting)) == 1)
    everything = psutil.Process(starting.pid).children(recursive=True)
    starting.process.send_signal(signal.SIGINT)
    os.kill(starting.serving_pid, signal.SIGINT)
    assert starting.process.wait(WAIT_S_MAX) == 0
    wait_until_gone(everything)


def test_programs_of_versions_that_serve_or_are_tried_or_shadow_end_with_a_daemon_that_is_killed(
    starting: Daemon,
) -> None:
    path = "/v1/policies/hostile"
    staged = starting.operation(starting.ask("POST", f"{path}/stage", {"version": "3.1.0"}))
    assert staged["outcome"] == "done", staged
    # That of the worker in which it waits for a switch; none of the trial.
    wait_until(lambda: len(programs(starting)) == 2)
    body = {"arms": [], "shadow": {"version": "3.2.0", "share": 1.0}}
    shadowed = starting.operation(starting.ask("PUT", f"{path}/route", body))
    assert shadowed["outcome"] == "done", shadowed
    wait_until(lambda: len(programs(starting)) == 3)
    everything = psutil.Process(starting.pid).children(recursive=True)
    starting.kill()
    wait_until_gone(everything)
