"""The lane over real sockets: the same protocol, the same promises."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import pillion
from pillion_bench.roles.virtual_users import VirtualUserPool
from pillion_protocol import Act, Action, Begin, Begun, Error, Hello, Message, Ping, Welcome, decode, encode
from pillion_protocol.lane import pack, unpack
from pillion_protocol.limits import PACKET_BYTES_MAX
from tests.conftest import StartDaemon
from tests.harness import WAIT_S_MAX, Daemon

OBSERVATION = np.zeros(8, np.float32)


@pytest.fixture(scope="module")
def lane_daemon(module_daemon: StartDaemon, short_path: Path) -> Daemon:
    """A daemon on the lane and on ZeroMQ."""
    return module_daemon(listen=[f"lane://{short_path}/lane.sock", f"ipc://{short_path}/beside-lane.sock"])


@pytest.fixture
def packets(lane_daemon: Daemon) -> Iterator[socket.socket]:
    """A raw connection that has said nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(WAIT_S_MAX)
        connection.connect(lane_daemon.address.removeprefix("lane://"))
        yield connection


@pytest.fixture
def bystander(lane_daemon: Daemon) -> Iterator[None]:
    """A client of the lane that must notice nothing."""
    with pillion.connect(lane_daemon.address) as session:
        episode = session.begin(seed=1)
        before = episode.act(OBSERVATION)
        yield
        assert episode.act(OBSERVATION) == before


def hear(connection: socket.socket) -> Message:
    head: bytes = bytes(unpack(memoryview(connection.recv(PACKET_BYTES_MAX + 1)), [8])[0])
    return decode(head)


def _send_until_it_breaks(connection: socket.socket, packet: bytes) -> bool:
    try:
        for _ in range(100_000):
            connection.send(packet)
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


def eventually(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S_MAX
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_the_lane_gives_what_zeromq_gives(lane_daemon: Daemon) -> None:
    observations = np.random.default_rng(5).normal(size=(20, 3, 8)).astype(np.float32)
    answers = []
    for address in lane_daemon.addresses:
        with pillion.connect(address) as session:
            group = session.begin_many(3, seeds=[1, 2, 3])
            mask = np.array([False, True, False])
            answers.append(
                [group.act(rows, deterministic=False, episode_start=mask if step == 9 else None).tolist()
                 for step, rows in enumerate(observations)]
            )  # fmt: skip
            assert group.last.digest == session.digest
    assert answers[0] == answers[1]


def test_named_tensors_are_told_apart(start_daemon: StartDaemon, short_path: Path) -> None:
    path = f"{short_path}/named.sock"
    daemon = start_daemon(policy="highway-fast", listen=[f"lane://{path}"])
    with pillion.connect(daemon.address) as session:
        episode = session.begin()
        episode.act(np.zeros((5, 5), np.float32))
        assert set(episode.last.outputs) == {"action", "value", "log_probability"}
        assert episode.last.outputs["log_probability"] < 0


def test_acts_of_sessions_that_share_a_connection_are_each_answered_for_their_own_observation(
    lane_daemon: Daemon,
) -> None:
    """They lie behind one another in the socket, and wait for one batch while the next is received."""
    observations = np.random.default_rng(6).normal(size=(16, 8)).astype(np.float32)
    with pillion.connect(lane_daemon.address) as session:
        episode = session.begin()
        alone = [int(episode.act(observation)) for observation in observations]
    assert len(set(alone)) > 2
    batches = []
    with VirtualUserPool(lane_daemon.address, sessions=16, connections=1) as pool:
        pool.open()
        pool.begin([[index] for index in range(16)])
        for _ in range(5):
            for user in pool.users:
                user.act([observations[user.index].tobytes()])
            result = {}
            for _ in pool.users:
                user, message, tensors = pool.receive()
                assert isinstance(message, Action)
                batches.append(message.batch_rows)
                result[user.index] = int(np.frombuffer(tensors[0], np.int64)[0])
            assert [result[index] for index in range(16)] == alone
    assert max(batches) > 1


async def test_the_asyncio_client_takes_the_lane(lane_daemon: Daemon) -> None:
    import asyncio

    async with pillion.aio.connect(lane_daemon.address) as session:
        episodes = [await session.begin(seed) for seed in range(8)]
        for _ in range(5):
            actions = await asyncio.gather(*[episode.act(OBSERVATION) for episode in episodes])
            assert len(set(map(int, actions))) == 1


def test_who_takes_the_lane_does_not_import_pyzmq(lane_daemon: Daemon) -> None:
    script = (
        "import sys, pillion, numpy\n"
        "with pillion.connect(sys.argv[1]) as session:\n"
        "    session.begin().act(numpy.zeros(8, 'float32'))\n"
        "print(*sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, lane_daemon.address], capture_output=True, text=True, check=True
    )
    assert not {"zmq", "asyncio"} & set(result.stdout.split())


def test_the_socket_is_for_this_user_alone(lane_daemon: Daemon) -> None:
    path = Path(lane_daemon.address.removeprefix("lane://"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize(
    ("packet", "code"),
    [
        (b"\x00", "malformed"),
        (b"\xff\xff" + bytes(500), "malformed"),
        (bytes(128), "malformed"),
        (pack(b"\xff", []), "unknown_message"),
        (pack(encode(Hello(0, 0, 1))[:-1], []), "malformed"),
        (pack(encode(Hello(0, 0, 1)), [b"tensor"]), "shape_mismatch"),
        (bytes(PACKET_BYTES_MAX + 1), "too_large"),
        (bytes(PACKET_BYTES_MAX + 5_000), "too_large"),
    ],
)
def test_a_bad_packet_gets_a_typed_error_and_disturbs_nobody(packets: socket.socket, packet: bytes, code: str) -> None:
    packets.send(packet)
    error = hear(packets)
    assert isinstance(error, Error)
    assert error.code == code
    packets.send(pack(encode(Hello(0, 0, 2)), []))
    assert isinstance(hear(packets), Welcome)


@pytest.mark.usefixtures("bystander")
def test_an_act_of_the_wrong_size_is_refused_alone(packets: socket.socket) -> None:
    packets.send(pack(encode(Hello(0, 0, 1)), []))
    welcome = hear(packets)
    packets.send(pack(encode(Begin(welcome.session, welcome.epoch, 2, [1])), []))
    begun = hear(packets)
    assert isinstance(begun, Begun)
    for sequence, tensor in enumerate([b"", bytes(31), bytes(64)], 3):
        act = Act(welcome.session, welcome.epoch, sequence, begun.episode, 1, 0, True)
        packets.send(pack(encode(act), [tensor]))
        error = hear(packets)
        assert isinstance(error, Error)
        assert (error.code, error.sequence) == ("shape_mismatch", sequence)


def test_a_message_too_large_for_the_lane_is_refused_before_it_is_sent(lane_daemon: Daemon) -> None:
    with pillion.connect(lane_daemon.address) as session:
        episode = session.begin()
        episode._step.packet = bytearray(PACKET_BYTES_MAX + 1)
        with pytest.raises(pillion.InvalidObservationError, match="connect over ipc"):
            episode.act(OBSERVATION)


def test_a_client_that_dies_leaves_neither_session_nor_descriptor(lane_daemon: Daemon) -> None:
    serving_pid = lane_daemon.serving_pid
    descriptors = len(os.listdir(f"/proc/{serving_pid}/fd"))
    dropped = lane_daemon.metric("pillion_sessions_dropped_total")
    script = (
        "import os, sys, pillion, numpy\n"
        "sessions = [pillion.connect(sys.argv[1]) for _ in range(20)]\n"
        "for session in sessions: session.begin().act(numpy.zeros(8, 'float32'))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, lane_daemon.address], check=False, timeout=60)
    eventually(lambda: lane_daemon.metric("pillion_sessions_dropped_total") == dropped + 20)
    eventually(lambda: len(os.listdir(f"/proc/{serving_pid}/fd")) == descriptors)


@pytest.mark.usefixtures("bystander")
def test_a_peer_that_does_not_read_is_dropped_and_nobody_waits_for_it(
    lane_daemon: Daemon, packets: socket.socket
) -> None:
    dropped = lane_daemon.metric("pillion_sessions_dropped_total")
    packets.send(pack(encode(Hello(0, 0, 1)), []))
    welcome = hear(packets)
    ping = pack(encode(Ping(welcome.session, welcome.epoch, 2)), [])
    assert _send_until_it_breaks(packets, ping)
    eventually(lambda: lane_daemon.metric("pillion_sessions_dropped_total") == dropped + 1)


def test_over_the_lane_too_an_episode_is_lost_with_its_daemon_and_a_new_one_begins(
    start_daemon: StartDaemon, short_path: Path
) -> None:
    path = short_path / "restart.sock"
    daemon = start_daemon(listen=[f"lane://{path}"])
    with pillion.connect(daemon.address) as session:
        episode = session.begin()
        episode.act(OBSERVATION)
        daemon.kill_serving()
        daemon.wait_ready(2)
        with pytest.raises(pillion.EpisodeLostError):
            episode.act(OBSERVATION)
        episode = session.begin()
        episode.act(OBSERVATION)
        assert daemon.stop() == 0
        with pytest.raises(pillion.EpisodeLostError, match="the daemon ended the session"):
            episode.act(OBSERVATION)
    assert not path.exists()


def test_connecting_to_nobody_over_the_lane_ends(tmp_path: Path) -> None:
    with pytest.raises(pillion.UnavailableError, match="is pilliond running"):
        pillion.connect(f"lane://{tmp_path}/nobody.sock", timeout_s=0.2)


async def test_acts_of_both_carriers_in_one_batch_are_all_answered(start_daemon: StartDaemon, short_path: Path) -> None:
    import asyncio

    # A batch that waits for every lock-step group is run by whichever carrier brings the last act.
    daemon = start_daemon(
        listen=[f"lane://{short_path}/mixed.sock", f"ipc://{short_path}/mixed-zmq.sock"],
        settings={"limits__batch_wait_us_max": 20_000},
    )
    async with pillion.aio.connect(daemon.addresses[0]) as lane, pillion.aio.connect(daemon.addresses[1]) as zmq:
        episodes = [await session.begin(seed) for seed in range(4) for session in (lane, zmq)]
        for _ in range(200):
            await asyncio.gather(*[episode.act(OBSERVATION) for episode in episodes])
        assert episodes[0].last.timings.batch_rows == len(episodes)
    assert daemon.metric("pillion_resends_total") == 0
    assert daemon.metric("pillion_requests_total", outcome="ok") == 200 * len(episodes)
