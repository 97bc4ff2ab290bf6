"""A running daemon keeps what its certificate states: the same answers, whatever else is in the batch."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pillion
import pillion.aio
from pillion_artifacts import Store
from tests.conftest import StartDaemon
from tests.daemon.support.policies.batch_sensitive import LARGE_WIDTH, ROUNDED_WIDTH, publish_rounded
from tests.harness import START_S_MAX, STORE, Daemon

STRICT = {"engine__strict": "true"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("batch-sensitive")
    publish_rounded(root)
    publish_rounded(root, "large", LARGE_WIDTH)
    return root


def random_observations(width: int, rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (np.random.default_rng(5).standard_normal((rows, width)) * 3).astype(np.float32)


def alone(session: pillion.Session, observations: np.ndarray[Any, Any], **act: Any) -> list[bytes]:
    """Returns the bytes of each observation's action, each from an episode of its own."""
    episodes = [session.begin(seed) for seed in range(len(observations))]
    return [episode.act(row, **act).tobytes() for episode, row in zip(episodes, observations, strict=True)]


def in_batches(session: pillion.Session, observations: np.ndarray[Any, Any], rows: int, **act: Any) -> list[bytes]:
    """Returns the same from groups of `rows` rows; the last group may be smaller."""
    result = []
    for first in range(0, len(observations), rows):
        chosen = observations[first : first + rows]
        group = session.begin_many(len(chosen), seeds=range(first, first + len(chosen)))
        result += [action.tobytes() for action in group.act(chosen, **act)]
        group.end()
    return result


def test_the_welcome_and_the_admin_port_report_that_batches_change_the_rounding(
    root: Path, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(policy="rounded", store=root)
    observations = random_observations(ROUNDED_WIDTH, 16)
    with pillion.connect(daemon.address) as session:
        assert session.certificate == "within 1e-6"
        assert alone(session, observations) != in_batches(session, observations, 16)
    (resident,) = daemon.ask("GET", "/v1/policies/rounded")[1]["resident"]
    assert resident["certificate"]["batch"] == "within 1e-6"
    assert daemon.events("ready")[0]["certificate"] == "within 1e-6"


@pytest.mark.parametrize("carrier", ["lane", "ipc"])
def test_strict_execution_is_exact_in_any_batch(
    carrier: str, root: Path, start_daemon: StartDaemon, short_path: Path
) -> None:
    daemon = start_daemon(policy="rounded", store=root, settings=STRICT, listen=[f"{carrier}://{short_path}/{carrier}"])
    observations = random_observations(ROUNDED_WIDTH, 19)
    with pillion.connect(daemon.address) as session:
        assert session.certificate == "exact"
        expected = alone(session, observations)
        for rows in (2, 5, 16, 19):
            assert in_batches(session, observations, rows) == expected
    assert daemon.health()["engine"]["strict"]


@pytest.mark.parametrize("strict_rows", [1, 2])
def test_strict_execution_is_exact_for_rows_that_the_engine_reads_in_a_slot(
    strict_rows: int, root: Path, start_daemon: StartDaemon, short_path: Path
) -> None:
    lane, inline = f"lane://{short_path}/slots{strict_rows}.sock", f"ipc://{short_path}/inline{strict_rows}.sock"
    settings = {**STRICT, "engine__strict_rows": strict_rows, "limits__rows_max": 8}
    daemon = start_daemon(policy="large", store=root, settings=settings, listen=[lane, inline])
    observations = random_observations(LARGE_WIDTH, 7)
    with pillion.connect(daemon.addresses[1]) as session:
        is_exact = session.certificate == "exact"
        expected = alone(session, observations)
    with pillion.connect(daemon.addresses[0]) as session:
        # With two rows at a time the certificate may be less than exact. Then the actions may differ.
        for rows in (1, 2, 3, 4):
            assert not is_exact or in_batches(session, observations, rows) == expected
        with session.begin() as episode:
            episode.act(observations[0])
            assert episode.last.observation_in_slot
    assert is_exact or strict_rows > 1


async def test_with_an_exact_certificate_the_same_seed_returns_the_same_actions_in_any_batch(
    highway_daemon: Daemon,
) -> None:
    observations = (np.random.default_rng(7).standard_normal((40, 5, 5))).astype(np.float32)

    async def drive(session: pillion.aio.Session, seed: int) -> list[bytes]:
        episode = await session.begin(seed)
        result = []
        for observation in np.roll(observations, seed, axis=0):
            await episode.act(observation, deterministic=False)
            result.append(b"".join(array.tobytes() for array in episode.last.outputs.values()))
        await episode.end()
        return result

    async with pillion.aio.connect(highway_daemon.address) as session:
        assert session.certificate == "exact"
        alone_each = [await drive(session, seed) for seed in range(12)]
        together = await asyncio.gather(*(drive(session, seed) for seed in range(12)))
    assert together == alone_each
    assert highway_daemon.metric("pillion_batch_rows_bucket", le="1") < highway_daemon.metric(
        "pillion_batch_rows_count"
    )


def test_a_startup_version_that_does_not_meet_the_gate_is_not_served(root: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "pilliond", "--store", str(root), "--policy", "rounded", "--admin", ""]
    result = subprocess.run(
        [*line, "--listen", f"ipc://{tmp_path}/x.sock"],
        capture_output=True,
        text=True,
        timeout=START_S_MAX,
        env={**os.environ, "PILLION_STAGING__CERTIFICATE": "exact"},
    )
    assert result.returncode == os.EX_DATAERR
    assert "pilliond: rounded@1.0.0: batch certificate: expected exact, got within 1e-6: an output" in result.stderr


def test_strict_execution_meets_the_gate(root: Path, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(policy="rounded", store=root, settings={**STRICT, "staging__certificate": "exact"})
    assert daemon.health()["phase"] == "ready"


def test_a_restarted_serving_process_reports_the_same_certificate(root: Path, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(policy="rounded", store=root)
    daemon.kill_serving()
    daemon.wait_ready(2)
    with pillion.connect(daemon.address) as session:
        assert session.certificate == "within 1e-6"


def test_the_shipped_policies_are_exact(start_daemon: StartDaemon) -> None:
    for policy in Store(STORE).policies():
        with pillion.connect(start_daemon(policy=policy).address) as session:
            assert session.certificate == "exact"
