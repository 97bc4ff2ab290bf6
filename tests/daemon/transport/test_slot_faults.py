"""What a peer may do to its slots, and to its connection, hurts nobody but itself."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import signal
import socket
import struct
import threading
import time
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
from tests.daemon.support.raw_lane import Floats, RawEpisodeGroup, RawLane
from tests.daemon.support.wide_policies import NARROW, WIDTH, publish_tall, publish_wide
from tests.daemon.transport.test_slots import memfds, wait_for_no_memfd
from tests.harness import WAIT_S_MAX, Daemon

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
    """Serves a policy of 32 KB a row, in and out, over both carriers."""
    listen = [f"lane://{short_path}/wide.lane", f"ipc://{short_path}/wide.zmq"]
    return module_daemon(policy="wide", store=store, listen=listen)


@pytest.fixture(scope="module")
def tall_daemon(module_daemon: StartDaemon, short_path: Path, store: Path) -> Daemon:
    """Serves a policy whose outputs alone are large."""
    return module_daemon(policy="tall", store=store, listen=[f"lane://{short_path}/tall.lane"])


@pytest.fixture(scope="module")
def patient_daemon(module_daemon: StartDaemon, short_path: Path, store: Path) -> Daemon:
    """Lets an act wait for the other groups, long enough for its slot to be written meanwhile."""
    settings = {"limits__batch_wait_us_max": 300_000}
    return module_daemon(policy="wide", store=store, listen=[f"lane://{short_path}/slow.lane"], settings=settings)


@pytest.fixture
def lane(wide_daemon: Daemon) -> Iterator[RawLane]:
    with RawLane(wide_daemon.address) as raw:
        yield raw.hello()


@pytest.fixture
def bystander(wide_daemon: Daemon) -> Iterator[None]:
    """Another client, in slots of its own, that must notice nothing."""
    with pillion.connect(wide_daemon.address) as session, session.begin() as episode:
        check(episode)
        yield
        check(episode)
    assert wide_daemon.health()["serving"]["starts"] == 1


def some() -> Floats:
    """An observation that no other act has."""
    return _NUMBERS.normal(size=WIDTH).astype(np.float32)


def check(episode: pillion.Episode, times: int = 5) -> None:
    """Acts, and looks at every number of the answers."""
    for _ in range(times):
        observation = some()
        np.testing.assert_array_equal(episode.act(observation), 2 * observation)


def eventually(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S_MAX
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def refused(message: Message) -> str:
    """The code of an error."""
    assert isinstance(message, Error), message
    return message.code


def acts_run(lane: RawLane, group: RawEpisodeGroup) -> int:
    """Ends a group and gives how many acts of it the daemon says it has run."""
    ended = lane.ask(lane.conversation.end(group.episode)[1][0])
    assert isinstance(ended, Ended)
    return ended.acts


# Large outputs


def test_large_outputs_come_back_in_the_slot_of_their_act(wide_daemon: Daemon) -> None:
    for address, in_slot in zip(wide_daemon.addresses, (True, False), strict=True):
        with pillion.connect(address) as session, session.begin() as episode:
            check(episode, 20)
            assert (episode.last.observation_in_slot, episode.last.outputs_in_slot) == (in_slot, in_slot)


def test_rows_that_no_packet_could_hold_travel_in_slots_both_ways(wide_daemon: Daemon) -> None:
    rows = TENSOR_BYTES_MAX // (4 * WIDTH) + 1
    with pillion.connect(wide_daemon.address) as session:
        group = session.begin_many(rows)
        for _ in range(5):
            observations = np.stack([some() for _ in range(rows)])
            np.testing.assert_array_equal(group.act(observations), 2 * observations)
        assert group.last.outputs_in_slot


def test_outputs_alone_may_be_large(tall_daemon: Daemon) -> None:
    with pillion.connect(tall_daemon.address) as session, session.begin() as episode:
        for _ in range(5):
            observation = some()[:NARROW]
            np.testing.assert_array_equal(episode.act(observation), np.tile(observation, WIDTH // NARROW))
        assert episode.last.outputs_in_slot


def test_an_act_in_a_packet_has_its_outputs_in_a_packet_where_they_fit_and_else_is_refused(tall_daemon: Daemon) -> None:
    with RawLane(tall_daemon.address) as lane:
        lane.hello()
        observation = some()[:NARROW]
        lane.say(lane.begin(1).act_head(), observation.tobytes())
        message, (action,) = lane.hear(4 * WIDTH)
        assert isinstance(message, Action)
        assert message.slot == 0
        np.testing.assert_array_equal(np.frombuffer(action, np.float32), np.tile(observation, WIDTH // NARROW))
        rows = TENSOR_BYTES_MAX // (4 * WIDTH) + 1
        group = lane.begin(rows)
        assert refused(lane.ask(group.act_head(), observation.tobytes() * rows)) == "too_large"
        group.write(1, 5, np.tile(observation, rows))
        assert isinstance(lane.ask(group.act_head(1, 5)), Action)
        np.testing.assert_array_equal(group.outputs(1), np.tile(observation, rows * WIDTH // NARROW))


def test_an_act_in_a_slot_that_is_sent_again_gets_the_same_reply_and_is_not_run_again(lane: RawLane) -> None:
    group = lane.begin()
    observation = some()
    group.write(2, 9, observation)
    head = group.act_head(2, 9)
    assert lane.ask(head) == lane.ask(head)
    np.testing.assert_array_equal(group.outputs(2), 2 * observation)
    assert acts_run(lane, group) == 1


# Another's, an old one, one that is written


@pytest.mark.usefixtures("bystander")
def test_nobody_acts_in_a_slot_of_somebody_else(wide_daemon: Daemon, lane: RawLane) -> None:
    mine = lane.begin()
    with RawLane(wide_daemon.address) as other:
        theirs = other.hello().begin()
        mine.write(1, 77, some())
        theirs.write(2, 5, some())
        assert refused(other.ask(theirs.act_head(1, 77, episode=mine.episode))) == "episode_unknown"
        assert refused(other.ask(theirs.act_head(1, 77))) == "slot_stale"
        without = other.begin(slots=False)
        assert refused(other.ask(without.act_head(2, 5))) == "slot_unknown"
    assert isinstance(lane.ask(mine.act_head(1, 77)), Action)


def test_a_generation_is_good_until_the_slot_is_written_anew(lane: RawLane) -> None:
    group = lane.begin()
    group.write(1, 1, some())
    assert isinstance(lane.ask(group.act_head(1, 1)), Action)
    group.write(1, 2, some())
    assert refused(lane.ask(group.act_head(1, 1))) == "slot_stale"
    assert isinstance(lane.ask(group.act_head(1, 2)), Action)


@pytest.mark.parametrize("others_act", [False, True])
def test_a_slot_that_is_written_while_it_is_read_gets_slot_stale_and_its_neighbour_in_the_batch_its_answer(
    patient_daemon: Daemon, others_act: bool
) -> None:
    ok = patient_daemon.metric("pillion_requests_total", outcome="ok")
    with RawLane(patient_daemon.address) as lane, pillion.connect(patient_daemon.address) as session:
        group = lane.hello().begin()
        neighbour = session.begin()
        group.write(1, 1, some())
        lane.say(group.act_head(1, 1))
        # A pong behind the act: the act was admitted.
        assert isinstance(lane.ask(lane.conversation.ping()[1][0]), Pong)
        group.set_generation(1, 0)
        if others_act:
            check(neighbour, 1)
        stale, _ = lane.hear()
        assert refused(stale) == "slot_stale"
        assert isinstance(stale, Error)
        assert "overwritten before the answer" in stale.message
        neighbour.end()
        observation = some()
        group.write(1, 2, observation)
        assert isinstance(lane.ask(group.act_head(1, 2)), Action)
        np.testing.assert_array_equal(group.outputs(1), 2 * observation)
        assert acts_run(lane, group) == 1
    assert patient_daemon.metric("pillion_requests_total", outcome="ok") == ok + 1 + others_act


@pytest.mark.usefixtures("bystander")
def test_a_peer_that_writes_all_the_time_gets_one_reply_for_each_act_and_hurts_nobody(lane: RawLane) -> None:
    group = lane.begin()
    region = memoryview(group.map())
    is_done = threading.Event()

    def scribble() -> None:
        chance = random.Random(5)
        while not is_done.is_set():
            # Now and then it is the generation.
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


# What a peer does to the memory itself


@pytest.mark.usefixtures("bystander")
def test_a_peer_that_unmaps_its_slots_and_closes_them_is_answered_all_the_same(lane: RawLane) -> None:
    group = lane.begin()
    group.write(1, 3, some())
    group.close()
    assert isinstance(lane.ask(group.act_head(1, 3)), Action)


@pytest.mark.usefixtures("bystander")
def test_a_peer_can_neither_shrink_nor_grow_nor_seal_the_memory_and_a_hole_in_it_reads_as_zeros(lane: RawLane) -> None:
    group = lane.begin()
    group.write(1, 3, some())
    for size in (0, 1, group.layout.region_bytes * 2):
        with pytest.raises(PermissionError):
            os.ftruncate(group.descriptor, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(group.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    length = ctypes.c_long(group.layout.region_bytes)
    assert ctypes.CDLL(None).fallocate(group.descriptor, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(0), length) == 0
    assert refused(lane.ask(group.act_head(1, 3))) == "slot_stale"
    group.set_generation(1, 4)
    assert isinstance(lane.ask(group.act_head(1, 4)), Action)
    assert not group.outputs(1).any()


@pytest.mark.usefixtures("bystander")
def test_slots_live_as_long_as_anybody_holds_the_connection_and_end_with_the_last(
    wide_daemon: Daemon, short_path: Path
) -> None:
    before = memfds(wide_daemon)
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        _begin_fork_and_die(wide_daemon, reading, writing)
    os.close(reading)
    _, status = os.waitpid(parent, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    # Its child still has the connection.
    assert memfds(wide_daemon) > before
    os.close(writing)
    eventually(lambda: memfds(wide_daemon) == before)


def _begin_fork_and_die(daemon: Daemon, reading: int, writing: int) -> None:
    """In a child: never returns. Its own child exits when the test closes its end of the pipe."""
    try:
        group = RawLane(daemon.address).hello().begin()
        group.write(1, 1, some())
        assert isinstance(group.lane.ask(group.act_head(1, 1)), Action)
        if os.fork() == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    finally:
        os._exit(1)


# What a peer does to its connection


@pytest.mark.usefixtures("bystander")
def test_half_a_message_of_any_length_gets_one_typed_error(wide_daemon: Daemon, lane: RawLane) -> None:
    group = lane.begin(slots=False)
    packet = pack(group.act_head(), [some().tobytes()])
    for length in [*range(1, 131), 190, 4_000, len(packet) - 4, len(packet) - 1]:
        lane.socket.send(packet[:length])
        assert refused(lane.hear()[0]) == ("malformed" if length < 128 else "shape_mismatch"), length
    lane.socket.send(packet)
    assert isinstance(lane.hear(4 * WIDTH)[0], Action)


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("kind", ["pings", "begins with descriptors", "acts in slots"])
def test_who_does_not_read_is_owed_so_much_and_then_dropped_with_a_count(wide_daemon: Daemon, kind: str) -> None:
    dropped = wide_daemon.metric("pillion_sessions_dropped_total")
    descriptors = len(os.listdir(f"/proc/{wide_daemon.serving_pid}/fd"))
    memory = memfds(wide_daemon)
    with RawLane(wide_daemon.address) as lane:
        group = lane.hello().begin()
        group.write(1, 1, some())
        heads: dict[str, Callable[[], bytes | memoryview]] = {
            "pings": lambda: lane.conversation.ping()[1][0],
            "begins with descriptors": lambda: lane.conversation.begin([1], True)[1][0],
            "acts in slots": lambda: group.act_head(1, 1),
        }
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            say_for_ever(lane, heads[kind])
        lane.socket.settimeout(0)
        assert 0 < sum(map(len, unread(lane))) <= 2 * LANE_SEND_BUFFER_BYTES
        eventually(lambda: wide_daemon.metric("pillion_sessions_dropped_total") == dropped + 1)
        eventually(lambda: len(os.listdir(f"/proc/{wide_daemon.serving_pid}/fd")) == descriptors)
        assert memfds(wide_daemon) == memory


def say_for_ever(lane: RawLane, head: Callable[[], bytes | memoryview]) -> None:
    """Sends and never reads, until the connection breaks."""
    for _ in range(100_000):
        lane.say(head())


def unread(lane: RawLane) -> Iterator[bytes]:
    """What the daemon had sent; descriptors that came with it are not taken."""
    while True:
        try:
            packet = lane.socket.recv(1 << 20)
        except ConnectionResetError:
            continue
        if not packet:
            return
        yield packet


@pytest.mark.usefixtures("bystander")
def test_what_a_peer_says_while_it_hangs_up_is_no_message(wide_daemon: Daemon) -> None:
    sessions = wide_daemon.health()["sessions"]
    for how in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
        with RawLane(wide_daemon.address) as lane:
            group = lane.hello().begin()
            lane.say(group.act_head(), some().tobytes())
            lane.socket.shutdown(how)
            eventually(lambda: wide_daemon.metric("pillion_sessions") == sessions)


def test_the_page_counts_acts_in_slots_and_the_memory_leased_for_them(wide_daemon: Daemon) -> None:
    wait_for_no_memfd(wide_daemon)
    acts = wide_daemon.metric("pillion_slot_acts_total")
    with RawLane(wide_daemon.address) as lane:
        group = lane.hello().begin()
        group.write(1, 1, some())
        assert isinstance(lane.ask(group.act_head(1, 1)), Action)
        lane.say(group.act_head(), some().tobytes())
        assert isinstance(lane.hear(4 * WIDTH)[0], Action)
        assert wide_daemon.metric("pillion_slot_acts_total") == acts + 1
        assert wide_daemon.metric("pillion_slot_bytes") == group.layout.region_bytes
    eventually(lambda: wide_daemon.metric("pillion_slot_bytes") == 0)


def test_a_daemon_whose_serving_process_died_leases_no_memory(
    start_daemon: StartDaemon, short_path: Path, store: Path
) -> None:
    daemon = start_daemon(policy="wide", store=store, listen=[f"lane://{short_path}/died.lane"])
    with RawLane(daemon.address) as lane:
        lane.hello().begin()
        daemon.kill_serving()
        daemon.wait_ready(2)
        assert daemon.metric("pillion_slot_bytes") == 0
