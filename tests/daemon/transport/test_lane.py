"""The lane over real sockets: it keeps the promises that ZeroMQ keeps, with the same protocol."""

from __future__ import annotations

import asyncio
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pillion
from pillion_bench.roles.virtual_users import VirtualUserPool
from pillion_protocol import Act, Action, Begin, Begun, Error, Hello, Message, Ping, Welcome, decode, encode
from pillion_protocol.lane import pack, unpack
from pillion_protocol.limits import PACKET_BYTES_MAX
from tests.conftest import StartDaemon
from tests.daemon.support.process_resources import open_descriptors
from tests.daemon.support.undisturbed_client import undisturbed_client
from tests.harness import START_S_MAX, WAIT_S_MAX, Daemon, wait_until

OBSERVATION = np.zeros(8, np.float32)


@pytest.fixture(scope="module")
def lane_daemon(module_daemon: StartDaemon, short_path: Path) -> Daemon:
    """A daemon on the lane and on ZeroMQ's ipc."""
    return module_daemon(listen=[f"lane://{short_path}/lane.sock", f"ipc://{short_path}/beside-lane.sock"])


@pytest.fixture
def packets(lane_daemon: Daemon) -> Iterator[socket.socket]:
    """A raw connection that has sent nothing yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(WAIT_S_MAX)
        connection.connect(lane_daemon.address.removeprefix("lane://"))
        yield connection


@pytest.fixture
def other_client(lane_daemon: Daemon) -> Iterator[None]:
    """Another client of the lane, which the test must not disturb."""
    with undisturbed_client(lane_daemon.address):
        yield


def receive(connection: socket.socket) -> Message:
    """Returns the next message, without its tensors."""
    head: bytes = bytes(unpack(memoryview(connection.recv(PACKET_BYTES_MAX + 1)), [8])[0])
    return decode(head)


def send_until_disconnected(connection: socket.socket, packet: bytes) -> bool:
    """Sends and never reads; returns whether the daemon disconnected."""
    try:
        for _ in range(100_000):
            connection.send(packet)
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


def test_the_lane_returns_the_same_actions_as_zeromq(lane_daemon: Daemon) -> None:
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


def test_outputs_are_returned_by_name(start_daemon: StartDaemon, short_path: Path) -> None:
    path = f"{short_path}/named.sock"
    daemon = start_daemon(policy="highway-fast", listen=[f"lane://{path}"])
    with pillion.connect(daemon.address) as session:
        episode = session.begin()
        episode.act(np.zeros((5, 5), np.float32))
        assert set(episode.last.outputs) == {"action", "value", "log_probability"}
        assert episode.last.outputs["log_probability"] < 0


def test_sessions_on_one_connection_are_each_answered_for_their_own_observation(
    lane_daemon: Daemon,
) -> None:
    """The acts are queued in one socket, and wait for their batch while the daemon receives the next ones."""
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


async def test_the_asyncio_client_uses_the_lane(lane_daemon: Daemon) -> None:
    async with pillion.aio.connect(lane_daemon.address) as session:
        episodes = [await session.begin(seed) for seed in range(8)]
        for _ in range(5):
            actions = await asyncio.gather(*[episode.act(OBSERVATION) for episode in episodes])
            assert len(set(map(int, actions))) == 1


def test_a_client_of_the_lane_does_not_import_pyzmq(lane_daemon: Daemon) -> None:
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


def test_only_this_user_can_open_the_socket(lane_daemon: Daemon) -> None:
    path = Path(lane_daemon.address.removeprefix("lane://"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.usefixtures("other_client")
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
def test_a_bad_packet_gets_a_typed_error_and_disturbs_no_other_client(
    packets: socket.socket, packet: bytes, code: str
) -> None:
    packets.send(packet)
    error = receive(packets)
    assert isinstance(error, Error)
    assert error.code == code
    packets.send(pack(encode(Hello(0, 0, 2)), []))
    assert isinstance(receive(packets), Welcome)


@pytest.mark.usefixtures("other_client")
def test_an_act_of_the_wrong_size_is_refused_and_no_other_client_is(packets: socket.socket) -> None:
    packets.send(pack(encode(Hello(0, 0, 1)), []))
    welcome = receive(packets)
    packets.send(pack(encode(Begin(welcome.session, welcome.epoch, 2, [1])), []))
    begun = receive(packets)
    assert isinstance(begun, Begun)
    for sequence, tensor in enumerate([b"", bytes(31), bytes(64)], 3):
        act = Act(welcome.session, welcome.epoch, sequence, begun.episode, 1, 0, True)
        packets.send(pack(encode(act), [tensor]))
        error = receive(packets)
        assert isinstance(error, Error)
        assert (error.code, error.sequence) == ("shape_mismatch", sequence)


def test_a_message_too_large_for_the_lane_is_refused_before_it_is_sent(lane_daemon: Daemon) -> None:
    with pillion.connect(lane_daemon.address) as session:
        episode = session.begin()
        episode._step.packet = bytearray(PACKET_BYTES_MAX + 1)
        with pytest.raises(pillion.InvalidObservationError, match="connect over ipc"):
            episode.act(OBSERVATION)


def test_a_killed_client_leaves_no_session_and_no_descriptor(lane_daemon: Daemon) -> None:
    serving_pid = lane_daemon.serving_pid
    descriptors = open_descriptors(serving_pid)
    dropped = lane_daemon.metric("pillion_sessions_dropped_total")
    script = (
        "import os, sys, pillion, numpy\n"
        "sessions = [pillion.connect(sys.argv[1]) for _ in range(20)]\n"
        "for session in sessions: session.begin().act(numpy.zeros(8, 'float32'))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, lane_daemon.address], check=False, timeout=2 * START_S_MAX)
    wait_until(lambda: lane_daemon.metric("pillion_sessions_dropped_total") == dropped + 20)
    wait_until(lambda: open_descriptors(serving_pid) == descriptors)


@pytest.mark.usefixtures("other_client")
def test_a_peer_that_does_not_read_is_dropped_and_no_client_waits_for_it(
    lane_daemon: Daemon, packets: socket.socket
) -> None:
    dropped = lane_daemon.metric("pillion_sessions_dropped_total")
    packets.send(pack(encode(Hello(0, 0, 1)), []))
    welcome = receive(packets)
    ping = pack(encode(Ping(welcome.session, welcome.epoch, 2)), [])
    assert send_until_disconnected(packets, ping)
    wait_until(lambda: lane_daemon.metric("pillion_sessions_dropped_total") == dropped + 1)


def test_an_episode_is_lost_with_its_serving_process_and_a_new_one_begins(
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


def test_connecting_without_a_daemon_raises_unavailable(tmp_path: Path) -> None:
    with pytest.raises(pillion.UnavailableError, match="is pilliond running"):
        pillion.connect(f"lane://{tmp_path}/nobody.sock", timeout_s=0.2)


async def test_a_batch_with_acts_of_both_carriers_answers_them_all(start_daemon: StartDaemon, short_path: Path) -> None:
    # A batch waits for every lock-step group; the carrier with the last act runs it.
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
