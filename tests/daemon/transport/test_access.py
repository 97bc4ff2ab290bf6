"""Access to the lane: only the daemon's user, root and members of the configured group can connect."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import pillion
from pillion_protocol import Error, ErrorCode, decode
from pillion_protocol.lane import unpack
from pillion_protocol.limits import PACKET_BYTES_MAX
from tests.conftest import StartDaemon
from tests.daemon.support.other_users import GROUP, OUTSIDER, as_user
from tests.harness import WAIT_S_MAX, Daemon

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user: run the tests as root")


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter."""
    with tempfile.TemporaryDirectory(prefix="pillion-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture(scope="module", autouse=True)
def _import_all_modules(daemon: Daemon) -> None:
    """Imports what the children need: as another user they may not be able to read the modules."""
    for act in (act_once, act_once_asyncio):
        act(daemon.address)
        with pytest.raises(pillion.UnavailableError):
            pillion.connect("lane:///nowhere", timeout_s=0.01)


@pytest.fixture(scope="module")
def group_daemon(module_daemon: StartDaemon, open_folder: Path) -> Daemon:
    """A daemon that accepts the group, with its socket in a folder that it creates."""
    return module_daemon(listen=[f"lane://{open_folder}/made/lane.sock"], settings={"data__group": GROUP.gr_name})


@pytest.fixture(scope="module")
def open_daemon(module_daemon: StartDaemon, open_folder: Path) -> Daemon:
    """The same without the file permissions, so that only the daemon itself can refuse."""
    address = f"lane://{open_folder}/opened/lane.sock"
    daemon = module_daemon(listen=[address], settings={"data__group": GROUP.gr_name})
    open_socket_to_all(daemon)
    return daemon


def open_socket_to_all(daemon: Daemon) -> None:
    """Removes the file permissions."""
    path = Path(daemon.address.removeprefix("lane://"))
    path.chmod(0o666)
    path.parent.chmod(0o755)


def act_once(address: str) -> str:
    """Acts with the blocking client; returns the action, or the code of the refusal."""
    try:
        with pillion.connect(address, timeout_s=WAIT_S_MAX) as session:
            return f"action {session.begin(seed=1).act(np.zeros(8, np.float32))}"
    except pillion.RefusedError as refused:
        return refused.code


def act_once_asyncio(address: str) -> str:
    """Does the same with the asyncio client."""

    async def once() -> str:
        async with pillion.aio.connect(address, timeout_s=WAIT_S_MAX) as session:
            return f"action {await (await session.begin(seed=1)).act(np.zeros(8, np.float32))}"

    try:
        return asyncio.run(once())
    except pillion.RefusedError as refused:
        return refused.code


def receive_refusal(address: str) -> str:
    """Connects without sending anything; returns the error that the daemon sends before it disconnects."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(WAIT_S_MAX)
        connection.connect(address.removeprefix("lane://"))
        message = decode(bytes(unpack(memoryview(connection.recv(PACKET_BYTES_MAX)), [32])[0]))
        assert isinstance(message, Error)
        assert connection.recv(PACKET_BYTES_MAX) == b""
        return f"{message.session} {message.epoch} {message.sequence} {message.code}"


@pytest.mark.parametrize(("gid", "groups"), [(OUTSIDER, [7, GROUP.gr_gid]), (GROUP.gr_gid, [])])
def test_a_member_of_the_group_can_connect(group_daemon: Daemon, gid: int, groups: list[int]) -> None:
    own = act_once(group_daemon.address)
    assert own.startswith("action ")
    assert as_user(OUTSIDER, gid, groups, lambda: act_once(group_daemon.address)) == own
    assert group_daemon.metric("pillion_refusals_total", outcome="not_allowed") == 0


def test_the_socket_and_its_new_folder_are_open_to_the_user_and_the_group(group_daemon: Daemon) -> None:
    path = Path(group_daemon.address.removeprefix("lane://"))
    for file, mode in ((path, 0o660), (path.parent, 0o710)):
        assert (stat.S_IMODE(file.stat().st_mode), file.stat().st_gid) == (mode, GROUP.gr_gid)


@pytest.mark.parametrize("act", [act_once, act_once_asyncio])
def test_outside_the_group_the_file_permissions_refuse_with_a_typed_error(
    group_daemon: Daemon, act: Callable[[str], str]
) -> None:
    assert as_user(OUTSIDER, OUTSIDER, [], lambda: act(group_daemon.address)) == ErrorCode.NOT_ALLOWED


@pytest.mark.parametrize("act", [act_once, act_once_asyncio])
def test_outside_the_group_the_daemon_refuses_with_a_typed_error_and_counts_it(
    open_daemon: Daemon, act: Callable[[str], str]
) -> None:
    refused = open_daemon.metric("pillion_refusals_total", outcome="not_allowed")
    for _ in range(10):
        # Whether the hello is sent before the daemon disconnects is a race; the answer must not depend on it.
        assert as_user(OUTSIDER, OUTSIDER, [], lambda: act(open_daemon.address)) == ErrorCode.NOT_ALLOWED
    assert as_user(OUTSIDER, OUTSIDER, [], lambda: receive_refusal(open_daemon.address)) == "0 0 0 not_allowed"
    assert open_daemon.metric("pillion_refusals_total", outcome="not_allowed") >= refused + 11
    assert open_daemon.health()["sessions"] == 0
    assert act_once(open_daemon.address).startswith("action ")


def test_a_peer_with_too_many_groups_to_read_is_refused_and_the_daemon_goes_on(open_daemon: Daemon) -> None:
    many = [GROUP.gr_gid, *range(1_000, 3_000)]
    assert as_user(OUTSIDER, OUTSIDER, many, lambda: act_once(open_daemon.address)) == ErrorCode.NOT_ALLOWED
    assert as_user(OUTSIDER, GROUP.gr_gid, many, lambda: act_once(open_daemon.address)).startswith("action ")
    assert open_daemon.health()["serving"]["starts"] == 1


def test_without_a_group_only_the_same_user_and_root_can_connect(start_daemon: StartDaemon, open_folder: Path) -> None:
    daemon = start_daemon(listen=[f"lane://{open_folder}/lane.sock"])
    open_socket_to_all(daemon)
    for gid, groups in ((OUTSIDER, []), (OUTSIDER, [GROUP.gr_gid]), (0, [0])):
        assert as_user(OUTSIDER, gid, groups, lambda: act_once(daemon.address)) == ErrorCode.NOT_ALLOWED
    assert daemon.metric("pillion_refusals_total", outcome="not_allowed") >= 3


def test_an_unknown_group_is_a_settings_error(start_daemon: StartDaemon) -> None:
    with pytest.raises(
        AssertionError, match=r"data\.group: expected the name of a group of this host, got 'nobody-here'"
    ):
        start_daemon(settings={"data__group": "nobody-here"})
