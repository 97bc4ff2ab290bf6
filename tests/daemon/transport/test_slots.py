"""Slots: what is too large for a packet travels through shared memory, which a client can neither misuse nor leak."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pillion
import pillion.aio
from pillion_protocol import Action, Error
from pillion_protocol.lane import pack
from pillion_protocol.limits import PACKET_BYTES_MAX
from tests.conftest import StartDaemon
from tests.daemon.support.process_resources import open_descriptors, slot_regions
from tests.daemon.support.raw_lane import RawLane
from tests.harness import START_S_MAX, STORE, WAIT_S_MAX, Daemon, running, wait_until

PIXELS = np.random.default_rng(3).integers(0, 255, (4, 84, 84), np.uint8)


@pytest.fixture(scope="module")
def pixel_daemon(short_path: Path) -> Iterator[Daemon]:
    arguments = ["--store", str(STORE), "--policy", "cart-pole-pixels", "--admin", "http://127.0.0.1:0"]
    listen = ["--listen", f"lane://{short_path}/pixels.lane", "--listen", f"ipc://{short_path}/pixels.zmq"]
    with running([*arguments, *listen], short_path / "pixels.log") as daemon:
        daemon.wait_ready()
        yield daemon


@pytest.fixture(scope="module")
def lane_daemon(module_daemon: StartDaemon, short_path: Path) -> Daemon:
    return module_daemon(listen=[f"lane://{short_path}/small.lane"])


def zmq_address(daemon: Daemon) -> str:
    return daemon.address.replace("lane://", "ipc://").replace("pixels.lane", "pixels.zmq")


def wait_until_no_slots(daemon: Daemon) -> None:
    wait_until(lambda: slot_regions(daemon.serving_pid) == 0)


def test_an_image_gets_the_same_action_in_a_slot_over_the_lane_and_inline_over_zeromq(
    pixel_daemon: Daemon,
) -> None:
    outcomes = []
    for address in (pixel_daemon.address, zmq_address(pixel_daemon)):
        with pillion.connect(address) as session, session.begin(1) as episode:
            for shift in range(5):
                episode.act(np.roll(PIXELS, shift))
            outcomes.append(episode.last)
    by_slot, inline = outcomes
    assert (by_slot.observation_in_slot, inline.observation_in_slot) == (True, False)
    for name, array in by_slot.outputs.items():
        np.testing.assert_array_equal(array, inline.outputs[name])


@pytest.mark.parametrize("rows", [3, 4])
def test_rows_read_in_a_slot_or_copied_from_it_get_the_same_actions_as_inline(pixel_daemon: Daemon, rows: int) -> None:
    observations = np.stack([np.roll(PIXELS, row) for row in range(rows)])
    actions = []
    for address in (pixel_daemon.address, zmq_address(pixel_daemon)):
        with pillion.connect(address) as session:
            group = session.begin_many(rows)
            actions.append(group.act(observations).tolist())
            assert group.last.observation_in_slot == (address == pixel_daemon.address)
    assert actions[0] == actions[1]


async def test_the_asyncio_client_uses_slots(pixel_daemon: Daemon) -> None:
    async with pillion.aio.connect(pixel_daemon.address) as session:
        first, second = await session.begin(1), await session.begin(2)
        assert int(await first.act(PIXELS)) == int(await second.act(PIXELS))
        assert first.last.observation_in_slot
        assert second.last.observation_in_slot


def test_small_observations_travel_inline(lane_daemon: Daemon) -> None:
    with pillion.connect(lane_daemon.address) as session, session.begin(1) as episode:
        episode.act(np.zeros(8, np.float32))
        assert not episode.last.observation_in_slot
        assert not episode.last.outputs_in_slot


@pytest.mark.parametrize(
    ("slot", "generation", "code"),
    [
        (3, 7, "slot_unknown"),
        (2**40, 7, "slot_unknown"),
        (1, 6, "slot_stale"),
        (2, 7, "slot_stale"),
        (2, 0, "slot_stale"),
    ],
)
def test_an_unknown_slot_and_a_stale_generation_are_refused_and_the_session_goes_on(
    pixel_daemon: Daemon, slot: int, generation: int, code: str
) -> None:
    with RawLane(pixel_daemon.address) as lane:
        group = lane.hello().begin()
        group.set_generation(1, 7)
        refused = lane.ask(group.act_head(slot, generation))
        assert isinstance(refused, Error)
        assert refused.code == code
        assert isinstance(lane.ask(group.act_head(1, 7)), Action)


def test_a_client_can_neither_shrink_nor_grow_its_slots(pixel_daemon: Daemon) -> None:
    with RawLane(pixel_daemon.address) as lane:
        group = lane.hello().begin()
        for size in (0, group.layout.region_bytes * 2):
            with pytest.raises(PermissionError):
                os.ftruncate(group.descriptor, size)


def test_slots_are_freed_with_their_group_their_session_or_their_killed_client(pixel_daemon: Daemon) -> None:
    wait_until_no_slots(pixel_daemon)
    with pillion.connect(pixel_daemon.address) as session:
        episode = session.begin()
        episode.act(PIXELS)
        assert slot_regions(pixel_daemon.serving_pid) > 0
        episode.end()
        assert slot_regions(pixel_daemon.serving_pid) == 0
        session.begin().act(PIXELS)
    wait_until_no_slots(pixel_daemon)
    script = (
        "import os, sys, pillion, numpy\n"
        "episode = pillion.connect(sys.argv[1]).begin()\n"
        "episode.act(numpy.zeros((4, 84, 84), 'uint8'))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    for _ in range(3):
        subprocess.run([sys.executable, "-c", script, pixel_daemon.address], check=False, timeout=START_S_MAX)
    wait_until_no_slots(pixel_daemon)


def test_descriptors_that_a_client_sends_are_closed(lane_daemon: Daemon) -> None:
    before = open_descriptors(lane_daemon.serving_pid)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(WAIT_S_MAX)
        connection.connect(lane_daemon.address.removeprefix("lane://"))
        for _ in range(5):
            socket.send_fds(connection, [pack(b"\xff", ())], [0] * 200)
            connection.recv(PACKET_BYTES_MAX)
        assert open_descriptors(lane_daemon.serving_pid) == before + 1


def test_without_memory_for_slots_observations_travel_inline(short_path: Path) -> None:
    arguments = ["--store", str(STORE), "--policy", "cart-pole-pixels", "--listen", f"lane://{short_path}/none.lane"]
    environment = {"PILLION_LIMITS__SLOTS_MB_MAX": "0", "PILLION_ADMIN__LISTEN": "http://127.0.0.1:0"}
    with running(arguments, short_path / "none.log", environment) as daemon:
        daemon.wait_ready()
        with pillion.connect(daemon.address) as session, session.begin() as episode:
            episode.act(PIXELS)
            assert not episode.last.observation_in_slot
