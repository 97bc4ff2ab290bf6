"""Fixtures for all tests: daemons that really run, a raw peer, a fake daemon, and the leaks that fail."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import hypothesis
import pytest
import uvloop
import zmq

from tests.harness import STORE, TEST_S_MAX, Answer, Daemon, FakeDaemon, RawPeer, running, traces
from tests.isolation import isolate

# before any test is collected, and in each worker by itself
_own_environment = isolate()

hypothesis.settings.register_profile("pillion", deadline=None, print_blob=True)
hypothesis.settings.load_profile("pillion")


class StartDaemon(Protocol):
    """Starts a daemon, waits until it is ready, and ends it after the test.

    `listen` defaults to one ipc address in a folder of its own, the admin port to a Unix socket there and loopback; `settings` become PILLION_SECTION__KEY variables.
    """

    def __call__(
        self,
        *flags: str,
        policy: str = "lunar-lander",
        store: Path = STORE,
        listen: list[str] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> Daemon: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sets the timeout of each test, scaled to this machine."""
    for item in items:
        item.add_marker(pytest.mark.timeout(TEST_S_MAX))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collects the tests without the garbage collector, and keeps it from them: what was imported stays to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    """Removes the home and the runtime folder of this process's tests."""
    _own_environment.cleanup()


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], Any]]:
    """Every asyncio test runs on both loops."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def short_path() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's (107 bytes in all, see unix(7))."""
    with tempfile.TemporaryDirectory(prefix="pillion-") as folder:
        yield Path(folder)


def _starter(folder: Path, stack: ExitStack) -> StartDaemon:
    def start(
        *flags: str,
        policy: str = "lunar-lander",
        store: Path = STORE,
        listen: list[str] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> Daemon:
        own = Path(tempfile.mkdtemp(dir=folder))
        addresses = listen or [f"ipc://{own / 'zmq.sock'}"]
        arguments = ["--store", str(store), "--policy", policy, *flags]
        if "--admin" not in flags:
            arguments += ["--admin", f"unix://{own / 'admin.sock'}", "--admin", "http://127.0.0.1:0"]
        for address in addresses:
            arguments += ["--listen", address]
        environment = {f"PILLION_{name.upper()}": str(value) for name, value in (settings or {}).items()}
        return stack.enter_context(running(arguments, own / "stderr", environment))

    return start


@pytest.fixture
def start_daemon(short_path: Path) -> Iterator[StartDaemon]:
    """Starts daemons of the test's own."""
    with ExitStack() as stack:
        yield _starter(short_path, stack)


@pytest.fixture(scope="module")
def module_daemon(short_path: Path) -> Iterator[StartDaemon]:
    """Starts daemons that the tests of a module share."""
    with ExitStack() as stack:
        yield _starter(short_path, stack)


@pytest.fixture(scope="session")
def daemon(short_path: Path) -> Iterator[Daemon]:
    """The daemon that tests share which leave it as it was; it serves lunar-lander."""
    with ExitStack() as stack:
        yield _starter(short_path, stack)()


@pytest.fixture(scope="session")
def highway_daemon(short_path: Path) -> Iterator[Daemon]:
    """A shared daemon that serves highway-fast, which has a value and a log-probability beside its action."""
    with ExitStack() as stack:
        yield _starter(short_path, stack)(policy="highway-fast")


@pytest.fixture
def raw_peer(daemon: Daemon) -> Iterator[RawPeer]:
    """A raw DEALER, connected to the shared daemon; it has sent nothing yet."""
    with RawPeer(daemon.address) as peer:
        yield peer


@pytest.fixture
def fake_daemon(short_path: Path) -> Iterator[Callable[[Answer], FakeDaemon]]:
    """Makes fake daemons that answer as the test defines."""
    made: list[FakeDaemon] = []

    def make(answer: Answer) -> FakeDaemon:
        folder = Path(tempfile.mkdtemp(dir=short_path))
        made.append(FakeDaemon(f"ipc://{folder / 'fake.sock'}", answer))
        return made[-1]

    yield make
    for fake in made:
        fake.close()


@pytest.fixture(scope="session", autouse=True)
def _what_ships_stays_as_it_is() -> Iterator[None]:
    """Whatever daemons and commands of the tests do with the store that ships, they write nothing there."""
    before = traces(STORE)
    yield
    assert traces(STORE) == before


def _zmq_sockets() -> int:
    return sum(not socket.closed for socket in zmq.Context.instance()._sockets)


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    """A test that leaves a thread or an open ZeroMQ socket behind fails."""
    threads = set(threading.enumerate())
    sockets = _zmq_sockets()
    yield
    left = [thread.name for thread in set(threading.enumerate()) - threads if not thread.daemon]
    assert not left, f"threads left behind: {left}"
    assert _zmq_sockets() <= sockets, "a ZeroMQ socket was left open"
