"""Who may connect to the lane: this user, root, and the members of the group that the settings name."""

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

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else: run the tests as root")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="pillion-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture(scope="module", autouse=True)
def _all_is_imported(daemon: Daemon) -> None:
    """A child that is somebody else may not be able to read our modules: it inherits them."""
    for act in (act_once, act_once_awaited):
        act(daemon.address)
        with pytest.raises(pillion.UnavailableError):
            pillion.connect("lane:///nowhere", timeout_s=0.01)


@pytest.fixture
def group_daemon(start_daemon: StartDaemon, open_folder: Path) -> Daemon:
    """A daemon that lets the group in, at a socket in a folder that it had to make."""
    return start_daemon(listen=[f"lane://{open_folder}/made/lane.sock"], settings={"data__group": GROUP.gr_name})


def let_everybody_at(daemon: Daemon) -> None:
    """Takes the file's own protection away, so that only the daemon itself is left to refuse."""
    path = Path(daemon.address.removeprefix("lane://"))
    path.chmod(0o666)
    path.parent.chmod(0o755)


def act_once(address: str) -> str:
    """An action, or the code of the refusal, of the blocking client."""
    try:
        with pillion.connect(address, timeout_s=WAIT_S_MAX) as session:
            return f"action {session.begin(seed=1).act(np.zeros(8, np.float32))}"
    except pillion.RefusedError as refused:
        return refused.code


def act_once_awaited(address: str) -> str:
    """The same of the asyncio client."""

    async def once() -> str:
        async with pillion.aio.connect(address, timeout_s=WAIT_S_MAX) as session:
            return f"action {await (await session.begin(seed=1)).act(np.zeros(8, np.float32))}"

    try:
        return asyncio.run(once())
    except pillion.RefusedError as refused:
        return refused.code


def hear_unasked(address: str) -> str:
    """What the daemon says to who only connects, and then that it is the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(WAIT_S_MAX)
        connection.connect(address.removeprefix("lane://"))
        message = decode(bytes(unpack(memoryview(connection.recv(PACKET_BYTES_MAX)), [32])[0]))
        assert isinstance(message, Error)
        assert connection.recv(PACKET_BYTES_MAX) == b""
        return f"{message.session} {message.epoch} {message.sequence} {message.code}"


@pytest.mark.parametrize(("gid", "groups"), [(OUTSIDER, [7, GROUP.gr_gid]), (GROUP.gr_gid, [])])
def test_a_member_of_the_group_gets_in(group_daemon: Daemon, gid: int, groups: list[int]) -> None:
    mine = act_once(group_daemon.address)
    assert mine.startswith("action ")
    assert as_user(OUTSIDER, gid, groups, lambda: act_once(group_daemon.address)) == mine
    assert group_daemon.metric("pillion_refusals_total", outcome="not_allowed") == 0


def test_the_socket_and_the_folder_made_for_it_are_for_the_user_and_the_group(group_daemon: Daemon) -> None:
    path = Path(group_daemon.address.removeprefix("lane://"))
    for file, mode in ((path, 0o660), (path.parent, 0o710)):
        assert (stat.S_IMODE(file.stat().st_mode), file.stat().st_gid) == (mode, GROUP.gr_gid)


@pytest.mark.parametrize("act", [act_once, act_once_awaited])
def test_outside_the_group_the_file_says_no_and_the_client_says_so_at_once(
    group_daemon: Daemon, act: Callable[[str], str]
) -> None:
    assert as_user(OUTSIDER, OUTSIDER, [], lambda: act(group_daemon.address)) == ErrorCode.NOT_ALLOWED


@pytest.mark.parametrize("act", [act_once, act_once_awaited])
def test_outside_the_group_the_daemon_refuses_with_a_typed_error_and_counts(
    group_daemon: Daemon, act: Callable[[str], str]
) -> None:
    let_everybody_at(group_daemon)
    for _ in range(10):
        # Whether the hello is sent before the connection is closed is a race; the answer must not be.
        assert as_user(OUTSIDER, OUTSIDER, [], lambda: act(group_daemon.address)) == ErrorCode.NOT_ALLOWED
    assert as_user(OUTSIDER, OUTSIDER, [], lambda: hear_unasked(group_daemon.address)) == "0 0 0 not_allowed"
    assert group_daemon.metric("pillion_refusals_total", outcome="not_allowed") >= 11
    assert group_daemon.health()["sessions"] == 0
    assert act_once(group_daemon.address).startswith("action ")


def test_a_peer_in_more_groups_than_can_be_asked_for_is_refused_and_hurts_nobody(group_daemon: Daemon) -> None:
    let_everybody_at(group_daemon)
    many = [GROUP.gr_gid, *range(1_000, 3_000)]
    assert as_user(OUTSIDER, OUTSIDER, many, lambda: act_once(group_daemon.address)) == ErrorCode.NOT_ALLOWED
    assert as_user(OUTSIDER, GROUP.gr_gid, many, lambda: act_once(group_daemon.address)).startswith("action ")
    assert group_daemon.health()["serving"]["starts"] == 1


def test_without_a_group_nobody_but_this_user_and_root_gets_in(start_daemon: StartDaemon, open_folder: Path) -> None:
    daemon = start_daemon(listen=[f"lane://{open_folder}/lane.sock"])
    let_everybody_at(daemon)
    for gid, groups in ((OUTSIDER, []), (OUTSIDER, [GROUP.gr_gid]), (0, [0])):
        assert as_user(OUTSIDER, gid, groups, lambda: act_once(daemon.address)) == ErrorCode.NOT_ALLOWED
    assert daemon.metric("pillion_refusals_total", outcome="not_allowed") >= 3


def test_a_group_that_is_not_there_is_a_mistake_in_the_settings(start_daemon: StartDaemon) -> None:
    with pytest.raises(
        AssertionError, match=r"data\.group: expected the name of a group of this host, got 'nobody-here'"
    ):
        start_daemon(settings={"data__group": "nobody-here"})
