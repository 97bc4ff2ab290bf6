"""Both sides of the wire for tests: a running daemon, a raw client, and a fake daemon."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import math
import os
import pwd
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec
import zmq

from pillion_artifacts import Resolved, Store
from pillion_protocol import (
    Act,
    Action,
    Begin,
    Begun,
    End,
    Ended,
    Goodbye,
    Hello,
    Lease,
    Limits,
    Message,
    Ping,
    Pong,
    Spec,
    TensorSpec,
    Welcome,
    decode,
    encode,
    encode_spec,
    spec_hash,
)
from pilliond.limits import TICK_MS

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "artifacts" / "examples"

TIME_UNIT_S = float(os.environ.get("PILLION_TEST_TIME_UNIT_S", "1"))
"""The unit of all time-outs: a second, or more on a slow machine. It only bounds waits; no test asserts on it."""

START_S_MAX = 90 * TIME_UNIT_S
WAIT_S_MAX = 30 * TIME_UNIT_S
COMMAND_S_MAX = 240 * TIME_UNIT_S
"""For a command that has much to do."""
TEST_S_MAX = 300 * TIME_UNIT_S
"""For a test with its fixtures. It ends one that hangs; on a busy machine the slowest takes a few times what it takes alone."""

INLINE = {"engine__placement": "inline"}
"""Settings of a daemon whose test is not about workers: a version of `highway-fast` would have one, on a slow machine."""
SMALL_BATCHES = {**INLINE, "limits__rows_max": 64}
"""Settings of a daemon whose test is not about batches either: of fewer sizes each version is certified and measured sooner."""

USER = pwd.getpwuid(os.getuid()).pw_name
"""The user that the daemon sees at its Unix socket."""

Frame = bytes | memoryview


def publish(root: Path, policy: str, version: str, model: bytes, card: str) -> Resolved:
    """Publishes a policy of these files into the store at `root`."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "model.onnx").write_bytes(model)
        (Path(name) / "model_card.yaml").write_text(card)
        return Store(root).publish(policy, version, Path(name), created_by="a test")


def blob_of(root: Path, reference: str, title: str) -> Path:
    """Returns the path in the store at `root` of a version's file with that title."""
    store = Store(root)
    (layer,) = [each for each in store.manifest(store.resolve(reference)).layers if each.title == title]
    return root / "blobs" / "sha256" / layer.digest.removeprefix("sha256:")


def copy_examples(target: Path) -> Store:
    """The policies that ship, in a store at `target` that may be changed."""
    shutil.copytree(STORE, target)
    return Store(target)


def traces(root: Path) -> dict[str, tuple[int, int, str]]:
    """Of each file and folder when it was last written to, its mode and what it holds."""
    found = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(root))] = (status.st_mtime_ns, status.st_mode, content)
    return found


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=WAIT_S_MAX)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(WAIT_S_MAX)
        self.sock.connect(self._path)


class Daemon:
    """A running `pilliond`. Owns its process: `stop` or `kill` ends it, by its pid.

    `addresses` are the data addresses that it listens at, `address` is the first of them. `admins` are its admin URLs,
    `admin` is the first of them.
    """

    def __init__(self, arguments: list[str], stderr: Path, environment: dict[str, str] | None = None) -> None:
        self.addresses: list[str] = []
        self.admins: list[str] = []
        self._stderr = stderr
        with stderr.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pilliond", "--log-format", "json", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
                cwd=stderr.parent,
            )

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def admin(self) -> str:
        return self.admins[0]

    @property
    def tcp_admin(self) -> str:
        """The URL of the admin port over TCP, which is read-only unless there are tokens."""
        (found,) = [address for address in self.admins if not address.startswith("unix://")]
        return found

    @property
    def pid(self) -> int:
        """The process id of the control process."""
        return self.process.pid

    @property
    def serving_pid(self) -> int:
        """The process id of the serving process."""
        return int(self.health()["serving"]["pid"])

    @property
    def stderr(self) -> str:
        """Everything that it has written so far."""
        return self._stderr.read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Returns the log records of that name, oldest first."""
        records = []
        for line in self.stderr.splitlines(keepends=True):
            # Most lines are others: to parse each of them again and again would keep the daemon waiting.
            if line.startswith("{") and line.endswith("\n") and json.dumps(name) in line:
                record = json.loads(line)
                if record.get("event") == name:
                    records.append(record)
        return records

    def wait_for_event(self, name: str, number: int = 1) -> dict[str, Any]:
        """Waits for the `number`-th log record of that name and returns it."""
        deadline_s = time.monotonic() + START_S_MAX
        while time.monotonic() < deadline_s:
            found = self.events(name)
            if len(found) >= number:
                return found[number - 1]
            if self.process.poll() is not None and len(self.events(name)) < number:
                raise AssertionError(f"pilliond ended with {self.process.returncode}: {self.stderr}")
            time.sleep(0.01)
        raise AssertionError(f"no {name!r} in the log: {self.stderr}")

    def wait_ready(self, number: int = 1) -> None:
        """Waits until the daemon is ready for the `number`-th time."""
        ready = self.wait_for_event("ready", number)
        self.addresses = ready["listen"]
        self.admins = ready["admin"]

    def get(self, path: str) -> tuple[int, str]:
        """Returns status and body of a GET on the admin port."""
        connection = self.admin_connection()
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Returns status, JSON and headers of a request to the admin port."""
        connection = self.admin_connection()
        try:
            data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            return response.status, json.loads(response.read()), dict(response.getheaders())
        finally:
            connection.close()

    def operation(self, answer: tuple[int, dict[str, Any], dict[str, str]]) -> dict[str, Any]:
        """Waits for the end of the operation that `ask` began, and returns its status."""
        deadline_s = time.monotonic() + START_S_MAX
        status, operation, _ = answer
        assert status in (200, 202), answer
        while operation["outcome"] == "running":
            assert time.monotonic() < deadline_s, operation
            time.sleep(0.01)
            operation = self.ask("GET", f"/v1/operations/{operation['number']}")[1]
        return operation

    def health(self) -> dict[str, Any]:
        """Returns the body of `/health`."""
        body: dict[str, Any] = json.loads(self.get("/health")[1])
        return body

    def metric(self, name: str, **labels: str) -> float:
        """Returns the sum of the samples with that name and these labels, including everything answered so far."""
        self._wait_for_ticks()
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            matched = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if matched is None or matched[1] != name:
                continue
            if labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', matched[2] or "")).items():
                total += float(matched[3])
        return total

    def _wait_for_ticks(self) -> None:
        """Until all that was answered before is in the metrics page: the serving process puts it there at each tick.

        A tick is dated when it ends. So the first that ends from now on may have begun before; the one after it has not.
        """
        since_s = time.monotonic()
        first_s = math.inf
        while True:
            asked_s = time.monotonic()
            age_ms = self.health()["loop_lag_ms"]["tick_age"]
            told_s = time.monotonic()
            if age_ms is None:
                # no serving process is ready: nothing is to come
                time.sleep(2 * TICK_MS / 1_000)
                return
            # when the last tick was, at the earliest and at the latest
            earliest_s, latest_s = asked_s - age_ms / 1_000, told_s - age_ms / 1_000
            if earliest_s > first_s:
                return
            if earliest_s > since_s and first_s == math.inf:
                first_s = latest_s
            assert told_s - since_s < START_S_MAX, "the serving process does not tick"
            time.sleep(TICK_MS / 10_000)

    def kill_serving(self) -> None:
        """Sends SIGKILL to the serving process."""
        os.kill(self.serving_pid, signal.SIGKILL)

    def stop(self) -> int:
        """Sends SIGTERM, waits, and returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(START_S_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"pilliond did not stop: {self.stderr}") from None

    def kill(self) -> None:
        """Sends SIGKILL; the serving process dies with its parent."""
        self.process.kill()
        self.process.wait()

    def admin_socket(self) -> socket.socket:
        """Returns an unused connection to the Unix socket of the admin port. The caller closes it."""
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(WAIT_S_MAX)
        peer.connect(self.admin.removeprefix("unix://"))
        return peer

    def admin_connection(self) -> http.client.HTTPConnection:
        """Returns a connection to the admin port that is not open yet. The caller closes it."""
        parts = urlsplit(self.admin)
        if parts.scheme == "unix":
            return UnixConnection(self.admin.removeprefix("unix://"))
        assert parts.hostname
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=WAIT_S_MAX)


class RawPeer:
    """A DEALER that sends any frames and returns what it receives. Owns its socket."""

    def __init__(self, address: str) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(address)
        self.session = 0
        self.epoch = 0
        self.sequence = 0
        self.welcome: Welcome

    def send(self, *frames: Frame) -> None:
        """Sends one message of these frames."""
        self.socket.send_multipart(frames)

    def say(self, message: Message, *tensors: Frame) -> None:
        """Sends a message and its tensors."""
        self.send(encode(message), *tensors)

    def receive(self, timeout_s: float = WAIT_S_MAX) -> list[bytes]:
        """Returns the frames of the next message. Raises `TimeoutError`."""
        if not self.socket.poll(round(timeout_s * 1_000)):
            raise TimeoutError("no message arrived")
        frames: list[bytes] = self.socket.recv_multipart()
        return frames

    def hear(self, timeout_s: float = WAIT_S_MAX) -> tuple[Message, list[bytes]]:
        """Returns the next message and its tensors."""
        head, *tensors = self.receive(timeout_s)
        return decode(head), tensors

    def ask(self, message: Message, *tensors: Frame) -> tuple[Message, list[bytes]]:
        """Sends a message and returns the next one that arrives."""
        self.say(message, *tensors)
        return self.hear()

    def next(self) -> int:
        """Returns the sequence number of the next request."""
        self.sequence += 1
        return self.sequence

    def open(self, sequence: int = 1, **fields: Any) -> Welcome:
        """Sends a hello and keeps the session, epoch and sequence of the welcome."""
        reply, _ = self.ask(Hello(0, 0, sequence, **fields))
        assert isinstance(reply, Welcome), reply
        self.session, self.epoch, self.sequence, self.welcome = reply.session, reply.epoch, sequence, reply
        return reply

    def is_silent(self, for_s: float = 0.2) -> bool:
        """Returns True if nothing arrives for `for_s` seconds."""
        return not self.socket.poll(round(for_s * 1_000))

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


Answer = Callable[["FakeDaemon", bytes, Message, list[bytes]], None]


class FakeDaemon:
    """A ROUTER that passes each message, with its peer, to the test's `answer`. Owns its socket and its thread.

    `heard` holds the received messages, oldest first.
    """

    session = 4711
    epoch = 9

    def __init__(self, address: str, answer: Answer) -> None:
        self.address = address
        self.heard: list[Message] = []
        self.errors: list[BaseException] = []
        self._answer = answer
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(address)
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake daemon")
        self._thread.start()

    def send(self, peer: bytes, message: Message, *tensors: bytes) -> None:
        """Sends a message to a peer."""
        self._socket.send_multipart([peer, encode(message), *tensors])

    def send_raw(self, peer: bytes, *frames: bytes) -> None:
        """Sends frames to a peer."""
        self._socket.send_multipart([peer, *frames])

    def welcome(self, hello: Message, spec: Spec | None = None) -> Welcome:
        """Returns a welcome for this hello, with an observation of two float32 and an int64 action."""
        spec_bytes = encode_spec(spec or SMALL_SPEC)
        return Welcome(
            session=self.session,
            epoch=self.epoch,
            sequence=hello.sequence,
            protocol_version=1,
            server_name="fake",
            policy="fake",
            version="1.0.0",
            digest=bytes(32),
            spec=spec_bytes,
            spec_hash=spec_hash(spec_bytes),
            limits=Limits(rows_max=8, episodes_max=8, head_bytes_max=65536),
            heartbeat_ms=5000,
            silent_ms_max=600_000,
        )

    def action(self, act: Act, sequence: int | None = None, **fields: int) -> Action:
        """Returns an action for this act, or for another act of the same group."""
        return Action(
            fields.get("session", self.session),
            fields.get("epoch", self.epoch),
            act.sequence if sequence is None else sequence,
            act.episode,
            act.rows,
            bytes(32),
            1,
            2,
            3,
            4,
            act.rows,
            1,
        )

    def two(self, rows: int = 1) -> bytes:
        """Returns a tensor with the action 2 in every row."""
        return struct.pack(f"<{rows}q", *[2] * rows)

    def count(self, kind: type[Message]) -> int:
        """Returns how many messages of that type were received."""
        return sum(isinstance(message, kind) for message in list(self.heard))

    def close(self) -> None:
        self._is_stopping.set()
        self._thread.join(WAIT_S_MAX)
        assert not self._thread.is_alive()
        self._socket.close()
        assert not self.errors, self.errors

    def _run(self) -> None:
        try:
            while not self._is_stopping.is_set():
                if self._socket.poll(20):
                    peer, head, *tensors = self._socket.recv_multipart()
                    message = decode(head)
                    self.heard.append(message)
                    self._answer(self, peer, message, tensors)
        except BaseException as error:  # noqa: BLE001 - `close` reports it to the test
            self.errors.append(error)


def honest(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
    """Answers as a daemon does; the action is always 2, in every row."""
    opening = (message.session, message.epoch, message.sequence)
    match message:
        case Hello():
            fake.send(peer, fake.welcome(message))
        case Begin():
            fake.send(peer, Begun(*opening, message.sequence, [Lease("1.0.0", bytes(32))]))
        case Act():
            fake.send(peer, fake.action(message), fake.two(message.rows))
        case End():
            fake.send(peer, Ended(*opening, message.episode, 0))
        case Ping():
            fake.send(peer, Pong(*opening))
        case Goodbye():
            fake.send(peer, Goodbye(*opening, "bye"))


SMALL_SPEC = Spec(
    observation=[TensorSpec("observation", "float32", [2])],
    outputs=[TensorSpec("action", "int64", [], "Discrete", [0.0], [3.0])],
)


def head(kind: int, fields: Any) -> bytes:
    """Returns a head with this type byte and these fields, whether or not they are valid."""
    return bytes([kind]) + msgspec.msgpack.encode(fields)


@contextmanager
def running(arguments: list[str], stderr: Path, environment: dict[str, str] | None = None) -> Iterator[Daemon]:
    """Starts a daemon, waits until it is ready, and ends it afterwards."""
    daemon = Daemon(arguments, stderr, environment)
    try:
        daemon.wait_ready()
        yield daemon
        daemon.stop()
    finally:
        if daemon.process.poll() is None:
            daemon.kill()


def wait_until(condition: Callable[[], bool], timeout_s: float = WAIT_S_MAX) -> None:
    """Waits until `condition` holds. Raises `TimeoutError`."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError("the condition never held")
        time.sleep(0.01)


async def until(condition: Callable[[], bool]) -> None:
    """Runs the loop until `condition` holds. Raises `TimeoutError`."""
    for _ in range(round(WAIT_S_MAX * 1_000)):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError("the condition never held")
