"""An act takes the path that `docs/internals.md` draws: the tests record every call and compare.

They use the parts of the serving process: real sockets, the real loop, ONNX Runtime. Only the clock is a fake, so that
no tick falls into the recorded iteration. After a change of the path, print it for the page:

    .venv/bin/python -m tests.daemon.serving.test_act_path
"""

from __future__ import annotations

import mmap
import os
import re
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol, Self

import msgspec
import pytest
import zmq

import pillion_protocol
import pillion_worker
import pilliond
from pillion_protocol import Action, Begin, Begun, Hello, Message, Welcome, decode, decode_spec, encode
from pillion_protocol.lane import pack, unpack
from pillion_protocol.limits import PACKET_BYTES_MAX
from pillion_protocol.slots import SLOTS, SlotLayout, write_generation
from pillion_protocol.steps import ActStep
from pilliond.core.routing import Router
from pilliond.core.scheduler import Scheduler
from pilliond.core.served_policy import ServedPolicy
from pilliond.core.sessions import Sessions
from pilliond.ipc.metrics_page import MetricsPage
from pilliond.limits import TICK_MS
from pilliond.linux.timerfd import PeriodicTimer
from pilliond.serving.__main__ import load_version
from pilliond.serving.loop import ServingLoop
from pilliond.serving.workers import Workers
from pilliond.settings.schema import EngineSettings
from pilliond.transport.interface import MessagePoller
from pilliond.transport.lane import LaneTransport
from pilliond.transport.zmq import ZmqTransport
from tests.daemon.support.fakes import Clock
from tests.daemon.support.startup_config import startup_config
from tests.harness import ROOT, wait_until

PAGE = ROOT / "docs" / "internals.md"
SHORT, SLOT, GENERAL = "The short path", "The short path through a slot", "The general path"

SYSTEM_CALLS = {"epoll.poll", "socket.recv_into", "socket.send"}
"""The only C functions that the page draws."""

DRAWN_LINE = re.compile(r"(lane|zmq )?( *)([\w.]+) {2,}(\S+)(?: {2,}.*)?")
"""A carrier or nothing, the indentation, a function, its module, an explanation or nothing."""

OF_BUDGETS = {
    "Sessions._receive_timed",
    "Sessions._budget_began_ns",
    "ServingLoop._refuses",
    "Scheduler.is_hopeless",
    "ServiceTimes.fast_ns",
}
"""The functions that only an act with a budget calls."""

COLUMN = 6
"""The column at which the call tree begins, behind the carrier."""

VECTOR, IMAGE = "lunar-lander", "cart-pole-pixels"
"""Shipped policies. Over the lane, observations of the first travel in the packet, those of the second in a slot."""


class Call(NamedTuple):
    """A call: its depth below the loop, its qualified name, and its module as the page writes it."""

    depth: int
    name: str
    module: str


def drawn(title: str, carrier: str) -> list[Call]:
    """Returns the calls that the page draws under `title` for an act over `carrier`."""
    found = re.search(rf"^### {title}\n.*?^```text\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, title
    calls = []
    for line in found[1].splitlines():
        matched = DRAWN_LINE.fullmatch(line)
        assert matched, f"not a line of a path: {line!r}"
        tag, blanks, name, module = matched.groups("")
        if tag.strip() in ("", carrier):
            calls.append(Call((len(tag) + len(blanks) - COLUMN) // 2, name, module))
    return calls


class Recorder:
    """Records every call in the daemon's packages while it is entered, in the order in which the calls begin."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._depth = 0
        self._packages = {
            f"{Path(package.__file__ or '').parent}/": package.__name__
            for package in (pilliond, pillion_protocol, pillion_worker)
        }

    def __enter__(self) -> Self:
        sys.setprofile(self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _on_event(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call":
            if getattr(argument, "__qualname__", "") in SYSTEM_CALLS:
                self.calls.append(Call(self._depth, argument.__qualname__, "kernel"))
            return
        module = self._module(frame.f_code.co_filename)
        # In Python 3.11 a comprehension is a call of its own; the page does not draw it.
        if not module or frame.f_code.co_name.startswith("<"):
            return
        if event == "call":
            self.calls.append(Call(self._depth, frame.f_code.co_qualname.replace(".<locals>", ""), module))
            self._depth += 1
        elif event == "return":
            self._depth -= 1

    def _module(self, file: str) -> str:
        """Returns `core/sessions.py` for the daemon, `pillion_protocol/steps.py` for the wire, …, and "" for all other files."""
        for folder, package in self._packages.items():
            if file.startswith(folder):
                inside = file.removeprefix(folder)
                return inside if package == "pilliond" else f"{package}/{inside}"
        return ""


class Client(Protocol):
    """A raw client of either carrier."""

    def send(self, head: bytes | memoryview, *tensors: bytes | memoryview) -> None:
        """Sends one message."""

    def has_reply(self) -> bool:
        """Whether `receive` would return at once."""

    def receive(self) -> Message:
        """Returns the next message, without its tensors."""


class LaneClient:
    """One connection of the lane. Owns its socket."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(address.removeprefix("lane://"))
        self.descriptors: list[int] = []
        """The descriptors that arrived with messages; the caller closes them."""

    def close(self) -> None:
        self._socket.close()

    def send(self, head: bytes | memoryview, *tensors: bytes | memoryview) -> None:
        self._socket.send(pack(head, tensors))

    def has_reply(self) -> bool:
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False

    def receive(self) -> Message:
        packet, descriptors, _, _ = socket.recv_fds(self._socket, PACKET_BYTES_MAX, 1)
        self.descriptors += descriptors
        return decode(bytes(unpack(memoryview(packet), [1])[0]))


class ZmqClient:
    """One DEALER. Owns its context and its socket."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(address)

    def close(self) -> None:
        self._context.destroy(linger=0)

    def send(self, head: bytes | memoryview, *tensors: bytes | memoryview) -> None:
        self._socket.send_multipart([head, *tensors])

    def has_reply(self) -> bool:
        return bool(self._socket.poll(0))

    def receive(self) -> Message:
        return decode(self._socket.recv_multipart()[0])


class Server:
    """The data plane of a serving process, assembled as `pilliond.serving` does, and run one iteration at a time."""

    def __init__(self, folder: Path, carrier: str, policy: str, stack: ExitStack) -> None:
        self._carrier = carrier
        self._stack = stack
        self._addresses = {"lane": f"lane://{folder}/path-lane.sock", "zmq": f"ipc://{folder}/path-zmq.sock"}
        config = startup_config("", policy)
        (policy_config,) = config.policies
        limits = policy_config.limits
        policy_config = msgspec.structs.replace(policy_config, engine=EngineSettings(placement="inline"))
        page = MetricsPage(config.page_descriptor)
        self._poller = MessagePoller()
        end = stack.enter_context(socket.socket())
        version = load_version(policy_config, Workers(end, self._poller, print))
        stack.callback(self._poller.close)
        lane, self._zmq = LaneTransport(version.observation_bytes, self._poller, page), ZmqTransport(self._poller)
        stack.callback(lane.close)
        stack.callback(self._zmq.close)
        lane.bind(self._addresses["lane"])
        self._zmq.bind(self._addresses["zmq"])
        served = ServedPolicy(Router(version), limits, policy_config.engine)
        sessions = Sessions(config.epoch, [served], config.sessions_max, page)
        self.clock = Clock()
        self._loop = ServingLoop(
            self._poller, [lane, self._zmq], sessions, Scheduler(), page, self.clock, lambda name, fields: None
        )

    def connect(self) -> Client:
        address = self._addresses[self._carrier]
        client = LaneClient(address) if self._carrier == "lane" else ZmqClient(address)
        self._stack.callback(client.close)
        return client

    def iterate(self) -> None:
        """Runs one iteration of `ServingLoop.run`."""
        self._loop.run_once(self._loop._wait())

    def reply_to(self, client: Client) -> Message:
        """Iterates until a reply arrives and returns it. A timer ends each wait, as in the serving process."""
        with PeriodicTimer(self._poller, TICK_MS * 1_000_000) as timer:
            timer.start()
            while not client.has_reply():
                self.iterate()
        return client.receive()

    def recorded(self) -> list[Call]:
        """Runs the iteration that receives the act just sent, and returns its calls."""
        if self._carrier == "zmq":
            # A packet of the lane is there when `send` returns. ZeroMQ's own thread delivers a message later.
            wait_until(lambda: bool(self._zmq.pending()))
            # As after every receive and send, so that the loop checks `pending` before it sleeps.
            self._zmq.is_armed = False
        with Recorder() as recorder:
            self.iterate()
        return recorder.calls


class Actor:
    """A session with an episode of one row. It encodes its acts as the Python client does: into one packet.

    With a budget they say when they were sent: now.
    """

    def __init__(self, server: Server, seed: int, *, slots: bool = False, budget_us: int = 0) -> None:
        self.budget_us = budget_us
        self.sent_ns = server.clock() if budget_us else 0
        self.client = server.connect()
        self.client.send(encode(Hello(0, 0, seed)))
        welcome = server.reply_to(self.client)
        assert isinstance(welcome, Welcome)
        self.spec = decode_spec(welcome.spec)
        self.client.send(encode(Begin(welcome.session, welcome.epoch, 1, [seed], slots)))
        begun = server.reply_to(self.client)
        assert isinstance(begun, Begun)
        self.sequence = 1
        sizes = [tensor.row_bytes for tensor in self.spec.observation]
        self.step = ActStep(begun.session, begun.epoch, begun.episode, 1, sizes)

    def act(self) -> None:
        """Sends the next act, with its observation in the packet."""
        self.sequence += 1
        self.step.fill(self.sequence, self.budget_us, True, self.sent_ns)
        self.client.send(bytes(self.step[0]), *map(bytes, self.step.tensors))


class SlotActor(Actor):
    """The same, with its observations in the slots of its group. Owns its mapping of them."""

    def __init__(self, server: Server, seed: int, stack: ExitStack, budget_us: int = 0) -> None:
        super().__init__(server, seed, slots=True, budget_us=budget_us)
        assert isinstance(self.client, LaneClient)
        (descriptor,) = self.client.descriptors
        layout = SlotLayout(self.spec, 1)
        self._region = mmap.mmap(descriptor, layout.region_bytes)
        stack.callback(self._region.close)
        os.close(descriptor)
        self._slot_bytes = layout.slot_bytes

    def act(self) -> None:
        """Sends the next act. Its observation, all zeros, alternates between the slots, with a new generation each time."""
        self.sequence += 1
        slot = self.sequence % SLOTS
        write_generation(self._region, slot * self._slot_bytes, self.sequence)
        self.step.fill(self.sequence, self.budget_us, True, self.sent_ns)
        self.step.point(slot + 1, self.sequence)
        self.client.send(bytes(self.step[0]))


def act(server: Server, actor: Actor) -> list[Call]:
    """Sends the next act of `actor` and returns the calls that answer it."""
    actor.act()
    calls = server.recorded()
    assert isinstance(server.reply_to(actor.client), Action)
    return calls


def short_path(folder: Path, carrier: str, stack: ExitStack, budget_us: int = 0) -> list[Call]:
    """Returns the calls of the second act of an episode in the only session."""
    server = Server(folder, carrier, VECTOR, stack)
    actor = Actor(server, 1, budget_us=budget_us)
    act(server, actor)
    return act(server, actor)


def slot_path(folder: Path, carrier: str, stack: ExitStack, budget_us: int = 0) -> list[Call]:
    """Returns the same for an observation in a slot."""
    server = Server(folder, carrier, IMAGE, stack)
    actor = SlotActor(server, 1, stack, budget_us)
    act(server, actor)
    return act(server, actor)


def general_path(folder: Path, carrier: str, stack: ExitStack) -> list[Call]:
    """Returns the calls of an episode's first act, while another session could act too."""
    server = Server(folder, carrier, VECTOR, stack)
    act(server, Actor(server, 1))
    return act(server, Actor(server, 2))


PATHS = {
    (SHORT, "lane"): short_path,
    (SHORT, "zmq"): short_path,
    (SLOT, "lane"): slot_path,
    (GENERAL, "lane"): general_path,
    (GENERAL, "zmq"): general_path,
}


@pytest.mark.parametrize(("title", "carrier"), PATHS)
def test_an_act_takes_the_path_that_the_page_draws(title: str, carrier: str, folder: Path) -> None:
    with ExitStack() as stack:
        assert PATHS[title, carrier](folder, carrier, stack) == drawn(title, carrier)


@pytest.mark.parametrize(
    ("path", "carrier"), [(short_path, "lane"), (short_path, "zmq"), (slot_path, "lane")], ids=["lane", "zmq", "slot"]
)
def test_an_act_with_a_budget_takes_the_same_short_path(
    path: Callable[..., list[Call]], carrier: str, folder: Path
) -> None:
    """It calls five functions more, which reckon its deadline and whether it can be met. Nothing is cut anew, decoded or checked in full."""
    with ExitStack() as stack:
        without = [call.name for call in path(folder, carrier, stack)]
    other = folder / "budget"
    other.mkdir()
    with ExitStack() as stack:
        names = [call.name for call in path(other, carrier, stack, budget_us=1_000)]
    assert [name for name in names if name not in OF_BUDGETS] == without
    assert set(names) - set(without) == OF_BUDGETS


@pytest.fixture
def folder(short_path: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=short_path))


def print_paths() -> None:
    """Prints each path as the page draws it, without the explanations."""
    for (title, carrier), path in PATHS.items():
        print(f"\n### {title} ({carrier})\n")
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            for call in path(Path(name), carrier, stack):
                print(f"{' ' * COLUMN}{'  ' * call.depth}{call.name}".ljust(47), call.module)


if __name__ == "__main__":
    print_paths()
