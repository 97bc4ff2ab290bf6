"""Observations that break an engine: only the act that holds one is refused, and everyone else gets right answers.

This folder mirrors no room of the daemon: a fault goes through all of them, from the transport to the worker's process.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import pillion
from pillion.errors import RefusedError
from pillion_protocol import Error
from pilliond.limits import WORKER_LOSSES_MAX
from tests.conftest import StartDaemon
from tests.daemon.support.policies.hostile import Poison, publish_harmless, publish_hostile, row
from tests.daemon.support.raw_lane import RawLane
from tests.daemon.support.worker_faults import OK, BackgroundActor, the_worker, worker_pids
from tests.harness import WAIT_S_MAX, Daemon

BYSTANDERS = 3
FAILING = [Poison.BEYOND, Poison.BY_ZERO, Poison.LARGE, Poison.HUGE]
"""They fail a batch, in a worker that lives on."""
ENDING = {Poison.CRASH: "its worker was killed by SIGFPE", Poison.FOR_EVER: "it made no progress"}
"""They end the worker; the log gives this reason."""
SETTINGS = {"engine__hang_ms_min": 200, "engine__worker_memory_mb_max": 1_024, "limits__rows_max": 16}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "store"
    publish_hostile(root)
    publish_harmless(root)
    return root


@pytest.fixture(scope="module")
def poisoned(store: Path, short_path: Path, module_daemon: StartDaemon) -> Daemon:
    """A daemon with a policy that can be poisoned, in a worker, and a harmless one, inline."""
    daemon = module_daemon(
        "--policy",
        "harmless",
        policy="hostile",
        store=store,
        listen=[f"lane://{short_path}/poison.sock"],
        settings=SETTINGS,
    )
    assert len(worker_pids(daemon)) == 1
    return daemon


def refusal(episode: pillion.Episode, value: int, poison: Poison) -> RefusedError:
    """Acts, and returns the refusal that it must get."""
    with pytest.raises(RefusedError) as refused:
        episode.act(row(value, poison))
    return refused.value


@pytest.mark.parametrize("poison", FAILING)
def test_an_act_that_fails_its_batch_is_refused_alone(poisoned: Daemon, poison: Poison) -> None:
    worker = the_worker(poisoned)
    lost = len(poisoned.events("worker_lost"))
    with ExitStack() as stack:
        others = [
            stack.enter_context(BackgroundActor(poisoned.address, "hostile", seed=2 + n)) for n in range(BYSTANDERS)
        ]
        beside = stack.enter_context(BackgroundActor(poisoned.address, "harmless"))
        session = stack.enter_context(pillion.connect(poisoned.address, policy="hostile"))
        episode = session.begin(seed=1)
        for value in range(20):
            assert refusal(episode, value, poison).code == "internal"
            assert episode.act(row(value)) == value
        for other in [*others, beside]:
            other.wait_for(1)
            assert set(other.stop()) == {OK}
    assert worker_pids(poisoned) == [worker]
    assert len(poisoned.events("worker_lost")) == lost


@pytest.mark.parametrize("poison", ENDING)
def test_an_act_that_ends_its_worker_is_refused_alone_and_the_others_are_answered_by_the_next(
    poisoned: Daemon, poison: Poison
) -> None:
    lost = len(poisoned.events("worker_lost"))
    with ExitStack() as stack:
        others = [
            stack.enter_context(BackgroundActor(poisoned.address, "hostile", seed=2 + n)) for n in range(BYSTANDERS)
        ]
        beside = stack.enter_context(BackgroundActor(poisoned.address, "harmless"))
        session = stack.enter_context(pillion.connect(poisoned.address, policy="hostile"))
        episode = session.begin(seed=1)
        for other in others:
            other.wait_for(1)
        refused = refusal(episode, 1, poison)
        assert refused.code == "internal"
        # It may hang as well as end.
        assert refused.message == "the engine's process crashed, hung or was killed twice while it ran this act"
        assert episode.act(row(2)) == 2
        for other in [*others, beside]:
            other.wait_for(1)
            assert set(other.stop()) == {OK}
    reasons = [event["reason"] for event in poisoned.events("worker_lost")[lost:]]
    assert 2 <= len(reasons) <= 2 + BYSTANDERS
    assert all(reason.startswith(ENDING[poison]) for reason in reasons), reasons
    assert not poisoned.events("version_out")


def test_a_poisoner_that_never_stops_neither_puts_the_version_out_nor_starves_the_others(
    store: Path, short_path: Path, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(policy="hostile", store=store, listen=[f"lane://{short_path}/never.sock"], settings=SETTINGS)
    with ExitStack() as stack:
        others = [stack.enter_context(BackgroundActor(daemon.address, seed=2 + n)) for n in range(BYSTANDERS)]
        for other in others:
            other.wait_for(1)
        poisoner = stack.enter_context(BackgroundActor(daemon.address, poison=Poison.CRASH))
        for _ in range(3):
            poisoner.wait_for(1, "internal")
            for other in others:
                other.wait_for(1)
        assert set(poisoner.stop()) == {"internal"}
        for other in others:
            assert set(other.stop()) == {OK}
    assert not daemon.events("version_out")
    assert daemon.health()["phase"] == "ready"


def test_a_poisoner_among_idle_sessions_does_not_put_the_version_out_either(
    store: Path, short_path: Path, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(policy="hostile", store=store, listen=[f"lane://{short_path}/alone.sock"], settings=SETTINGS)
    with (
        pillion.connect(daemon.address),
        pillion.connect(daemon.address, timeout_s=WAIT_S_MAX) as session,
        session.begin(seed=1) as episode,
    ):
        for value in range(WORKER_LOSSES_MAX + 1):
            assert refusal(episode, value, Poison.CRASH).code == "internal"
    assert not daemon.events("version_out")
    with BackgroundActor(daemon.address, seed=2) as other:
        other.wait_for(1)
        assert set(other.stop()) == {OK}


def test_one_act_among_many_does_not_put_the_version_out(
    store: Path, short_path: Path, start_daemon: StartDaemon
) -> None:
    """It is the first of a full batch, and so in the first half each time: no worker completes a batch until it is alone."""
    settings = {**SETTINGS, "limits__batch_wait_us_max": 1_000_000}
    daemon = start_daemon(policy="hostile", store=store, listen=[f"lane://{short_path}/many.sock"], settings=settings)
    with ExitStack() as stack:
        lanes = [stack.enter_context(RawLane(daemon.address)).hello() for _ in range(16)]
        groups = [lane.begin(slots=False) for lane in lanes]
        for value, (lane, group) in enumerate(zip(lanes, groups, strict=True)):
            lane.send(group.act_head(), row(value, Poison.NONE if value else Poison.CRASH).tobytes())
        (refused, _), *answers = [lane.receive(8) for lane in lanes]
        assert isinstance(refused, Error), refused
        assert refused.code == "internal"
        assert [tensors for _, tensors in answers] == [[np.int64(value).tobytes()] for value in range(1, 16)]
    assert len(daemon.events("worker_lost")) == 5
    assert not daemon.events("version_out")
