"""The result cache of real daemons: over both carriers, with slots, in a worker, across a switch, and what operators see."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

import pillion
from pillion_bench.variants import POLICY, publish_variant
from tests.conftest import StartDaemon
from tests.daemon.support.policies.recurrent import publish_summing
from tests.daemon.support.policies.shadow import publish_times
from tests.daemon.support.policies.wide import WIDTH, publish_wide
from tests.daemon.support.worker_faults import the_worker
from tests.harness import Daemon, wait_until

CACHE = {"engine__cache_rows_max": 100}
NUMBERS = np.random.default_rng(5)
STEP = 100.0


def is_cached(episode: pillion.Episode | pillion.EpisodeGroup) -> bool:
    """Returns whether the last answer came from the cache, after checking that its timings agree."""
    assert episode.last is not None
    timings = episode.last.timings
    found = timings.batch_close == "cached"
    assert found == (timings.batch_rows == 0)
    if found:
        assert timings.engine_ns == 0
        assert timings.round_trip_ns > 0
    return found


def held(daemon: Daemon) -> tuple[int, int]:
    """Returns the hits and the misses."""
    return tuple(int(daemon.metric(f"pillion_result_cache_{each}_total")) for each in ("hits", "misses"))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def cached_daemon(module_daemon: StartDaemon, short_path: Path) -> Daemon:
    """A daemon on both carriers whose policy has several outputs."""
    listen = [f"lane://{short_path}/cached.lane", f"ipc://{short_path}/cached.zmq"]
    return module_daemon(policy=POLICY, listen=listen, settings=CACHE)


@pytest.mark.parametrize("carrier", [0, 1], ids=["lane", "zmq"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_hit_is_bit_for_bit_what_was_answered_before(cached_daemon: Daemon, carrier: int, rows: int) -> None:
    before = held(cached_daemon)
    observations = [NUMBERS.normal(size=(rows, 5, 5)).astype(np.float32) for _ in range(5)]
    with (
        pillion.connect(cached_daemon.addresses[carrier]) as session,
        pillion.connect(cached_daemon.addresses[1 - carrier]) as other,
    ):
        first = []
        with session.begin_many(rows) as group, other.begin_many(rows) as group_of_other:
            for observation in observations:
                action = group.act(observation)
                assert not is_cached(group)
                first.append((action.tobytes(), {name: value.tobytes() for name, value in group.last.outputs.items()}))
            for each in (group, group_of_other, group):
                for observation, expected in zip(observations, first, strict=True):
                    action = each.act(observation)
                    assert is_cached(each)
                    outputs = {name: value.tobytes() for name, value in each.last.outputs.items()}
                    assert (action.tobytes(), outputs) == expected
    hits, misses = held(cached_daemon)
    assert (hits - before[0], misses - before[1]) == (15, 5)
    assert cached_daemon.metric("pillion_requests_total", outcome="ok") == hits + misses
    assert cached_daemon.metric("pillion_executions_total") == misses
    assert cached_daemon.metric("pillion_result_cache_rows") >= 5 * rows
    assert cached_daemon.metric("pillion_result_cache_bytes") > 0
    assert cached_daemon.metric("pillion_batch_close_total", reason="cached") == 0


def test_a_drawn_action_is_drawn_each_time(cached_daemon: Daemon) -> None:
    observation = NUMBERS.normal(size=(5, 5)).astype(np.float32)
    with pillion.connect(cached_daemon.address) as session, session.begin(seed=3) as episode:
        drawn = []
        for _ in range(20):
            drawn.append(int(episode.act(observation, deterministic=False)))
            assert not is_cached(episode)
        chosen = int(episode.act(observation, deterministic=True))
        for _ in range(3):
            assert int(episode.act(observation, deterministic=True)) == chosen
            assert is_cached(episode)
    # What is drawn depends on the steps before, whoever answered those.
    with pillion.connect(cached_daemon.address) as session, session.begin(seed=3) as episode:
        assert [int(episode.act(observation, deterministic=False)) for _ in range(20)] == drawn


def test_by_default_there_is_none(daemon: Daemon) -> None:
    with pillion.connect(daemon.address) as session, session.begin() as episode:
        for _ in range(3):
            episode.act(np.zeros(8, np.float32))
            assert not is_cached(episode)
    assert held(daemon) == (0, 0)


def test_a_version_that_was_switched_to_begins_with_nothing(tmp_path: Path, start_daemon: StartDaemon) -> None:
    for number in range(2):
        publish_variant(tmp_path / "store", f"1.{number}.0", number * STEP)
    settings = {**CACHE, "auto_rollback__watch_s": 0}
    daemon = start_daemon(policy=f"{POLICY}@1.0.0", store=tmp_path / "store", settings=settings)
    observation = np.linspace(-1, 1, 25, dtype=np.float32).reshape(5, 5)

    def value_of(episode: pillion.Episode) -> float:
        episode.act(observation, deterministic=True)
        return float(episode.last.outputs["value"])

    with pillion.connect(daemon.address) as session:
        old = session.begin()
        base = value_of(old)
        assert value_of(old) == base
        assert is_cached(old)
        answer = daemon.ask("POST", f"/v1/policies/{POLICY}/switch", {"version": "1.1.0"})
        assert daemon.operation(answer)["outcome"] == "done"
        new = session.begin()
        assert new.version == "1.1.0"
        assert value_of(new) == pytest.approx(base + STEP, abs=1e-3)
        assert not is_cached(new)
        assert value_of(new) == pytest.approx(base + STEP, abs=1e-3)
        assert is_cached(new)


def test_a_version_on_probation_is_not_answered_for(tmp_path: Path, start_daemon: StartDaemon) -> None:
    for number in range(2):
        publish_variant(tmp_path / "store", f"1.{number}.0", number * STEP)
    daemon = start_daemon(policy=f"{POLICY}@1.0.0", store=tmp_path / "store", settings=CACHE)
    answer = daemon.ask("POST", f"/v1/policies/{POLICY}/switch", {"version": "1.1.0"})
    assert daemon.operation(answer)["outcome"] == "done"
    with pillion.connect(daemon.address) as session, session.begin() as episode:
        for _ in range(3):
            episode.act(np.zeros((5, 5), np.float32))
            assert not is_cached(episode)


def test_observations_and_outputs_in_slots_are_found_and_written_there(
    tmp_path: Path, short_path: Path, start_daemon: StartDaemon
) -> None:
    publish_wide(tmp_path / "store")
    listen = [f"lane://{short_path}/cached-wide.lane"]
    daemon = start_daemon(policy="wide", store=tmp_path / "store", listen=listen, settings=CACHE)
    observations = [NUMBERS.normal(size=WIDTH).astype(np.float32) for _ in range(4)]
    with pillion.connect(daemon.address) as session, session.begin() as episode:
        for turn in range(3):
            for observation in observations:
                assert (episode.act(observation) == 2 * observation).all()
                assert episode.last.observation_in_slot
                assert is_cached(episode) == (turn > 0)
    assert daemon.metric("pillion_result_cache_bytes") >= 4 * 2 * 4 * WIDTH


def test_its_memory_is_bounded(tmp_path: Path, short_path: Path, start_daemon: StartDaemon) -> None:
    """An entry takes 64 KB, so 15 fit into a MB."""
    publish_wide(tmp_path / "store")
    listen = [f"lane://{short_path}/small-wide.lane"]
    settings = {**CACHE, "engine__cache_mb_max": 1}
    daemon = start_daemon(policy="wide", store=tmp_path / "store", listen=listen, settings=settings)
    observations = [NUMBERS.normal(size=WIDTH).astype(np.float32) for _ in range(20)]
    with pillion.connect(daemon.address) as session, session.begin() as episode:
        for observation in observations:
            episode.act(observation)
        assert daemon.metric("pillion_result_cache_rows") == 15
        assert daemon.metric("pillion_result_cache_bytes") <= 1_000_000
        for observation in observations[::-1]:
            assert (episode.act(observation) == 2 * observation).all()
    assert held(daemon) == (15, 25)


def test_a_version_in_a_worker_is_answered_for_even_while_its_worker_is_away(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    publish_times(tmp_path / "store", "scaling", "1.0.0", 2)
    daemon = start_daemon(policy="scaling", store=tmp_path / "store", settings={**CACHE, "engine__placement": "worker"})
    observation = np.array([0.5, -1.5], np.float32)
    with pillion.connect(daemon.address) as session, session.begin() as episode:
        assert (episode.act(observation) == 2 * observation).all()
        assert not is_cached(episode)
        os.kill(the_worker(daemon), signal.SIGKILL)
        for _ in range(20):
            assert (episode.act(observation) == 2 * observation).all()
            assert is_cached(episode)
    wait_until(lambda: daemon.metric("pillion_worker_restarts_total") == 1)
    assert held(daemon) == (20, 1)


def test_a_recurrent_policy_is_never_answered_for(tmp_path: Path, start_daemon: StartDaemon) -> None:
    publish_summing(tmp_path / "store", "1.0.0", 1.0)
    daemon = start_daemon(policy="summing", store=tmp_path / "store", settings=CACHE)
    with pillion.connect(daemon.address) as session, session.begin() as episode:
        actions = [float(episode.act(np.ones(1, np.float32))[0]) for _ in range(4)]
    assert actions == [2, 4, 6, 8]
    assert held(daemon) == (0, 0)


def test_a_restarted_serving_process_begins_with_nothing(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(settings=CACHE)
    observation = np.zeros(8, np.float32)
    for start in (1, 2):
        with pillion.connect(daemon.address) as session, session.begin() as episode:
            for turn in range(2):
                episode.act(observation)
                assert is_cached(episode) == (turn > 0)
        assert held(daemon) == (start, start)
        assert daemon.metric("pillion_result_cache_rows") == 1
        if start == 1:
            daemon.kill_serving()
            daemon.wait_for_event("ready", 2)
