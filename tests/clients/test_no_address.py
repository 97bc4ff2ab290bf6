"""Without an address a client finds the daemon of its user, and takes the lane."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pillion
from pilliond.settings.schema import Settings
from tests.harness import STORE, Daemon, running

OBSERVATION = np.zeros(8, np.float32)


@pytest.fixture(scope="module")
def users_daemon(short_path: Path) -> Iterator[Daemon]:
    """A daemon that was not told where to listen."""
    folder = short_path / "runtime"
    folder.mkdir()
    arguments = ["--store", str(STORE), "--policy", "lunar-lander", "--admin", "http://127.0.0.1:0"]
    with running(arguments, folder / "stderr", {"XDG_RUNTIME_DIR": str(folder)}) as daemon:
        yield daemon


@pytest.fixture
def _same_user(users_daemon: Daemon, short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path / "runtime"))


@pytest.mark.usefixtures("_same_user")
def test_the_blocking_client_finds_the_lane_of_the_users_daemon(users_daemon: Daemon, short_path: Path) -> None:
    assert users_daemon.address == f"lane://{short_path}/runtime/pillion/lane.sock"
    with pillion.connect() as found, pillion.connect(users_daemon.addresses[1]) as named:
        assert found.begin(seed=1).act(OBSERVATION) == named.begin(seed=1).act(OBSERVATION)
        assert found._carrier.address == users_daemon.address


@pytest.mark.usefixtures("_same_user")
async def test_the_asyncio_client_finds_it_too(users_daemon: Daemon) -> None:
    async with pillion.aio.connect() as session:
        assert (await (await session.begin(seed=1)).act(OBSERVATION)).shape == ()
        assert session._carrier.address == users_daemon.address


@pytest.mark.usefixtures("_same_user")
def test_a_policy_finds_it_too() -> None:
    with pillion.Policy() as policy:
        assert policy.predict(OBSERVATION, deterministic=True)[0].shape == ()


def test_where_no_daemon_runs_the_error_names_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    where = rf"lane://{tmp_path}/pillion/lane\.sock \(where this user's daemon listens by default\)"
    with pytest.raises(pillion.UnavailableError, match=where):
        pillion.connect(timeout_s=0.1)


async def test_where_no_daemon_runs_asyncio_names_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(pillion.UnavailableError, match="where this user's daemon listens by default"):
        await pillion.aio.connect(timeout_s=0.1)


def test_an_address_that_was_named_is_not_called_a_default(tmp_path: Path) -> None:
    with pytest.raises(pillion.UnavailableError, match=r"nobody\.sock within"):
        pillion.connect(f"lane://{tmp_path}/nobody.sock", timeout_s=0.1)


def test_without_a_runtime_folder_both_sides_take_the_one_of_this_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    # nobody's, so that no daemon of this host answers
    monkeypatch.setattr(os, "getuid", lambda: 2**32 - 2)
    folder = f"/run/user/{2**32 - 2}/pillion"
    assert Settings().data_addresses() == [f"lane://{folder}/lane.sock", f"ipc://{folder}/zmq.sock"]
    with pytest.raises(pillion.UnavailableError, match=f"{folder}/lane.sock"):
        pillion.connect(timeout_s=0.05)
