"""Whatever a peer does to its slots or its connection, no other client is affected."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import pillion
from pillion_protocol import Action, Ended, Error, Message, Pong
from pillion_protocol.lane import pack
from pillion_protocol.limits import TENSOR_BYTES_MAX
from pilliond.limits import LANE_SEND_BUFFER_BYTES
from tests.conftest import StartDaemon
from tests.daemon.support.policies.wide import NARROW, WIDTH, publish_tall, publish_wide
from tests.daemon.support.process_resources import open_descriptors, slot_regions
from tests.daemon.support.raw_lane import Floats, RawEpisodeGroup, RawLane
from tests.harness import Daemon, wait_until

_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
_NUMBERS = np.random.default_rng(7)


@pytest.fixture(scope="module")
def store(short_path: Path) -> Path:
    folder = short_path / "wide-store"
    publish_wide(folder)
    publish_tall(folder)
    return folder


@pytest.fixture(scope="module")
def wide_daemon(module_daemon: StartDaemon, short_path: Path, store: Path) -> Daemon:
    """A daemon on both carriers, with observations and outputs of 32 KB a row."""
    listen = [f"lane://{short_path}/wide.lane", f"ipc://{short_path}/wide.zmq"]
    return module_daemon(policy="wide", store=store, listen=listen)


@pytest.fixture(scope="module")
def tall_daemon(module_daemon: StartDaemon, short_path: Path, store: Path) -> Daemon:
    """A daemon whose policy has large outputs only."""
    return module_daemon(policy="tall", store=store, listen=[f"lane://{short_path}/tall.lane"])


@pytest.fixture(scope="module")
def patient_daemon(module_daemon: StartDaemon, short_path: Path, store: Path) -> Daemon:
    """A daemon whose batches wait for other groups, long enough to overwrite the slot of a waiting act."""
    settings = {"limits__batch_wait_us_max": 300_000}
    return module_daemon(policy="wide", store=store, listen=[f"lane://{short_path}/slow.lane"], settings=settings)


@pytest.fixture
def lane(wide_daemon: Daemon) -> Iterator[RawLane]:
    with RawLane(wide_daemon.address) as raw:
        yield raw.hello()


@pytest.fixture
def other_client(wide_daemon: Daemon) -> Iterator[None]:
    """Another client, with slots of its own, whose episode begins before the test and must go on after it."""
    with pillion.connect(wide_daemon.address) as session, session.begin() as episode:
        check_answers(episode)
        yield
        check_answers(episode)
    assert wide_daemon.health()["serving"]["starts"] == 1


def random_observation() -> Floats:
    """Returns an observation that no other act has."""
    return _NUMBERS.normal(size=WIDTH).astype(np.float32)


def check_answers(episode: pillion.Episode, times: int = 5) -> None:
    """Acts and compares every number of the answers."""
    for _ in range(times):
        observation = random_observation()
        np.testing.assert_array_equal(episode.act(observation), 2 * observation)


def error_code(message: Message) -> str:
    """Returns the code of a message, which must be an error."""
    assert isinstance(message, Error), message
    return message.code


def acts_run(lane: RawLane, group: RawEpisodeGroup) -> int:
    """Ends a group and returns how many acts the daemon reports for it."""
    ended = lane.ask(lane.conversation.end(group.episode)[1][0])
    assert isinstance(ended, Ended)
    return ended.acts


# Large outputs


def test_large_outputs_return_in_the_slot_of_their_act(wide_daemon: Daemon) -> None:
    for address, in_slot in zip(wide_daemon.addresses, (True, False), strict=True):
        with pillion.connect(address) as session, session.begin() as episode:
            check_answers(episode, 20)
            assert (episode.last.observation_in_slot, episode.last.outputs_in_slot) == (in_slot, in_slot)


def test_rows_too_large_for_any_packet_travel_in_slots_both_ways(wide_daemon: Daemon) -> None:
    rows = TENSOR_BYTES_MAX // (4 * WIDTH) + 1
    with pillion.connect(wide_daemon.address) as session:
        group = session.begin_many(rows)
        for _ in range(5):
            observations = np.stack([random_observation() for _ in range(rows)])
            np.testing.assert_array_equal(group.act(observations), 2 * observations)
        assert group.last.outputs_in_slot


def test_large_outputs_of_small_observations_return_in_slots(tall_daemon: Daemon) -> None:
    with pillion.connect(tall_daemon.address) as session, session.begin() as episode:
        for _ in range(5):
            observation = random_observation()[:NARROW]
            np.testing.assert_array_equal(episode.act(observation), np.tile(observation, WIDTH // NARROW))
        assert episode.last.outputs_in_slot


def test_an_act_in_a_packet_is_refused_if_its_outputs_do_not_fit_into_one(
    tall_daemon: Daemon,
) -> None:
    with RawLane(tall_daemon.address) as lane:
        lane.hello()
        observation = random_observation()[:NARROW]
        lane.send(lane.begin(1).act_head(), observation.tobytes())
        message, (action,) = lane.receive(4 * WIDTH)
        assert isinstance(message, Action)
        assert message.slot == 0
        np.testing.assert_array_equal(np.frombuffer(action, np.float32), np.tile(observation, WIDTH // NARROW))
        rows = TENSOR_BYTES_MAX // (4 * WIDTH) + 1
        group = lane.begin(rows)
        assert error_code(lane.ask(group.act_head(), observation.tobytes() * rows)) == "too_large"
        group.write(1, 5, np.tile(observation, rows))
        assert isinstance(lane.ask(group.act_head(1, 5)), Action)
        np.testing.assert_array_equal(group.outputs(1), np.tile(observation, rows * WIDTH // NARROW))


def test_a_repeated_act_in_a_slot_gets_the_same_reply_and_runs_once(lane: RawLane) -> None:
    group = lane.begin()
    observation = random_observation()
    group.write(2, 9, observation)
    head = group.act_head(2, 9)
    assert lane.ask(head) == lane.ask(head)
    np.testing.assert_array_equal(group.outputs(2), 2 * observation)
    assert acts_run(lane, group) == 1


# A slot of another client, a stale slot, a slot that is being written


@pytest.mark.usefixtures("other_client")
def test_a_client_cannot_act_in_a_slot_of_another_client(wide_daemon: Daemon, lane: RawLane) -> None:
    own = lane.begin()
    with RawLane(wide_daemon.address) as other:
        theirs = other.hello().begin()
        own.write(1, 77, random_observation())
        theirs.write(2, 5, random_observation())
        assert error_code(other.ask(theirs.act_head(1, 77, episode=own.episode))) == "episode_unknown"
        assert error_code(other.ask(theirs.act_head(1, 77))) == "slot_stale"
        without = other.begin(slots=False)
        assert error_code(other.ask(without.act_head(2, 5))) == "slot_unknown"
    assert isinstance(lane.ask(own.act_head(1, 77)), Action)


def test_a_generation_is_valid_until_the_slot_is_overwritten(lane: RawLane) -> None:
    group = lane.begin()
    group.write(1, 1, random_observation())
    assert isinstance(lane.ask(group.act_head(1, 1)), Action)
    group.write(1, 2, random_observation())
    assert error_code(lane.ask(group.act_head(1, 1))) == "slot_stale"
    assert isinstance(lane.ask(group.act_head(1, 2)), Action)


@pytest.mark.parametrize("others_act", [False, True])
def test_an_act_whose_slot_is_overwritten_gets_slot_stale_and_others_in_the_batch_are_answered(
    patient_daemon: Daemon, others_act: bool
) -> None:
    ok = patient_daemon.metric("pillion_requests_total", outcome="ok")
    with RawLane(patient_daemon.address) as lane, pillion.connect(patient_daemon.address) as session:
        group = lane.hello().begin()
        neighbour = session.begin()
        group.write(1, 1, random_observation())
        lane.send(group.act_head(1, 1))
        # The pong follows the act, so the act was admitted.
        assert isinstance(lane.ask(lane.conversation.ping()[1][0]), Pong)
        group.set_generation(1, 0)
        if others_act:
            check_answers(neighbour, 1)
        stale, _ = lane.receive()
        assert error_code(stale) == "slot_stale"
        assert isinstance(stale, Error)
        assert "overwritten before the answer" in stale.message
        neighbour.end()
        observation = random_observation()
        group.write(1, 2, observation)
        assert isinstance(lane.ask(group.act_head(1, 2)), Action)
        np.testing.assert_array_equal(group.outputs(1), 2 * observation)
        assert acts_run(lane, group) == 1
    assert patient_daemon.metric("pillion_requests_total", outcome="ok") == ok + 1 + others_act


@pytest.mark.usefixtures("other_client")
def test_a_peer_that_writes_without_pause_gets_one_reply_for_each_act(lane: RawLane) -> None:
    group = lane.begin()
    region = memoryview(group.map())
    is_done = threading.Event()

    def scribble() -> None:
        chance = random.Random(5)
        while not is_done.is_set():
            # About one write in 256 hits the generation, at offset 0.
            offset = chance.randrange(0, len(region), 8) if chance.randrange(256) else 0
            region[offset : offset + 8] = struct.pack("<2f", chance.random(), chance.random())

    scribbler = threading.Thread(target=scribble)
    scribbler.start()
    try:
        answers = []
        for generation in range(1, 300):
            group.set_generation(1, generation)
            answers.append(lane.ask(group.act_head(1, generation)))
    finally:
        is_done.set()
        scribbler.join()
        region.release()
    codes = {message.code if isinstance(message, Error) else "action" for message in answers}
    assert codes == {"action", "slot_stale"}


# What a peer does to the shared memory


@pytest.mark.usefixtures("other_client")
def test_a_peer_that_unmaps_and_closes_its_slots_is_still_answered(lane: RawLane) -> None:
    group = lane.begin()
    group.write(1, 3, random_observation())
    group.close()
    assert isinstance(lane.ask(group.act_head(1, 3)), Action)


@pytest.mark.usefixtures("other_client")
def test_a_peer_can_neither_resize_nor_seal_its_slots_and_a_hole_reads_as_zeros(lane: RawLane) -> None:
    group = lane.begin()
    group.write(1, 3, random_observation())
    for size in (0, 1, group.layout.region_bytes * 2):
        with pytest.raises(PermissionError):
            os.ftruncate(group.descriptor, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(group.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    length = ctypes.c_long(group.layout.region_bytes)
    assert ctypes.CDLL(None).fallocate(group.descriptor, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(0), length) == 0
    assert error_code(lane.ask(group.act_head(1, 3))) == "slot_stale"
    group.set_generation(1, 4)
    assert isinstance(lane.ask(group.act_head(1, 4)), Action)
    assert not group.outputs(1).any()


@pytest.mark.usefixtures("other_client")
def test_slots_last_until_the_last_process_closes_the_connection(wide_daemon: Daemon, short_path: Path) -> None:
    before = slot_regions(wide_daemon.serving_pid)
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        _begin_fork_and_die(wide_daemon, reading, writing)
    os.close(reading)
    _, status = os.waitpid(parent, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    # The child of the killed process still has the connection.
    assert slot_regions(wide_daemon.serving_pid) > before
    os.close(writing)
    wait_until(lambda: slot_regions(wide_daemon.serving_pid) == before)


def _begin_fork_and_die(daemon: Daemon, reading: int, writing: int) -> None:
    """Runs in a child and never returns. The grandchild exits when the test closes its end of the pipe."""
    try:
        group = RawLane(daemon.address).hello().begin()
        group.write(1, 1, random_observation())
        assert isinstance(group.lane.ask(group.act_head(1, 1)), Action)
        if os.fork() == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    finally:
        os._exit(1)


# What a peer does to its connection


@pytest.mark.usefixtures("other_client")
def test_a_truncated_message_of_any_length_gets_one_typed_error(wide_daemon: Daemon, lane: RawLane) -> None:
    group = lane.begin(slots=False)
    packet = pack(group.act_head(), [random_observation().tobytes()])
    for length in [*range(1, 131), 190, 4_000, len(packet) - 4, len(packet) - 1]:
        lane.socket.send(packet[:length])
        assert error_code(lane.receive()[0]) == ("malformed" if length < 128 else "shape_mismatch"), length
    lane.socket.send(packet)
    assert isinstance(lane.receive(4 * WIDTH)[0], Action)


@pytest.mark.usefixtures("other_client")
@pytest.mark.parametrize("kind", ["pings", "begins with descriptors", "acts in slots"])
def test_a_peer_that_does_not_read_is_dropped_and_counted_when_its_buffer_is_full(
    wide_daemon: Daemon, kind: str
) -> None:
    dropped = wide_daemon.metric("pillion_sessions_dropped_total")
    descriptors = open_descriptors(wide_daemon.serving_pid)
    memory = slot_regions(wide_daemon.serving_pid)
    with RawLane(wide_daemon.address) as lane:
        group = lane.hello().begin()
        group.write(1, 1, random_observation())
        heads: dict[str, Callable[[], bytes | memoryview]] = {
            "pings": lambda: lane.conversation.ping()[1][0],
            "begins with descriptors": lambda: lane.conversation.begin([1], True)[1][0],
            "acts in slots": lambda: group.act_head(1, 1),
        }
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            send_until_disconnected(lane, heads[kind])
        lane.socket.settimeout(0)
        assert 0 < sum(map(len, unread(lane))) <= 2 * LANE_SEND_BUFFER_BYTES
        wait_until(lambda: wide_daemon.metric("pillion_sessions_dropped_total") == dropped + 1)
        wait_until(lambda: open_descriptors(wide_daemon.serving_pid) == descriptors)
        assert slot_regions(wide_daemon.serving_pid) == memory


def send_until_disconnected(lane: RawLane, head: Callable[[], bytes | memoryview]) -> None:
    """Sends and never reads, until the daemon disconnects."""
    for _ in range(100_000):
        lane.send(head())


def unread(lane: RawLane) -> Iterator[bytes]:
    """Yields what the daemon has sent and the peer has not read; descriptors are discarded."""
    while True:
        try:
            packet = lane.socket.recv(1 << 20)
        except ConnectionResetError:
            # The kernel reports the reset once, before the packets that are still queued.
            continue
        if not packet:
            return
        yield packet


@pytest.mark.usefixtures("other_client")
def test_a_peer_that_shuts_down_its_connection_after_an_act_loses_its_session(wide_daemon: Daemon) -> None:
    # `metric` waits for the tick that counts the other client's session; `health` does not.
    sessions = wide_daemon.metric("pillion_sessions")
    for how in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
        with RawLane(wide_daemon.address) as lane:
            group = lane.hello().begin()
            lane.send(group.act_head(), random_observation().tobytes())
            lane.socket.shutdown(how)
            # After SHUT_RD the daemon may notice only at its next ping.
            wait_until(lambda: wide_daemon.metric("pillion_sessions") == sessions)


def test_metrics_count_acts_in_slots_and_the_memory_of_slots(wide_daemon: Daemon) -> None:
    wait_until(lambda: slot_regions(wide_daemon.serving_pid) == 0)
    acts = wide_daemon.metric("pillion_slot_acts_total")
    with RawLane(wide_daemon.address) as lane:
        group = lane.hello().begin()
        group.write(1, 1, random_observation())
        assert isinstance(lane.ask(group.act_head(1, 1)), Action)
        lane.send(group.act_head(), random_observation().tobytes())
        assert isinstance(lane.receive(4 * WIDTH)[0], Action)
        assert wide_daemon.metric("pillion_slot_acts_total") == acts + 1
        assert wide_daemon.metric("pillion_slot_bytes") == group.layout.region_bytes
    wait_until(lambda: wide_daemon.metric("pillion_slot_bytes") == 0)


def test_after_a_restart_of_the_serving_process_no_slot_memory_is_counted(
    start_daemon: StartDaemon, short_path: Path, store: Path
) -> None:
    daemon = start_daemon(policy="wide", store=store, listen=[f"lane://{short_path}/died.lane"])
    with RawLane(daemon.address) as lane:
        lane.hello().begin()
        daemon.kill_serving()
        daemon.wait_ready(2)
        assert daemon.metric("pillion_slot_bytes") == 0
