"""On the daemon's host, a client's budget counts from when it acted; the answers say what became of late work."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pillion
from pillion_protocol import Act, Error, ErrorCode, Message, MessageType
from tests.conftest import StartDaemon
from tests.harness import TIME_UNIT_S, WAIT_S_MAX, Answer, Daemon, FakeDaemon, head, honest

OBSERVATION = np.zeros(8, np.float32)
SMALL_OBSERVATION = np.zeros(2, np.float32)
BUDGET_US = 60_000_000
SHORT_BUDGET_S = 0.3 * TIME_UNIT_S
CARRIERS = ["lane", "ipc", "tcp"]


@pytest.fixture(scope="module")
def everywhere(module_daemon: StartDaemon, short_path: Path) -> Daemon:
    """A daemon on every carrier."""
    return module_daemon(listen=[f"lane://{short_path}/b.lane", f"ipc://{short_path}/b.zmq", "tcp://127.0.0.1:0"])


def address_of(daemon: Daemon, carrier: str) -> str:
    (address,) = (address for address in daemon.addresses if address.startswith(f"{carrier}://"))
    return address


def counted(daemon: Daemon) -> dict[str, float]:
    """Returns how many budgets counted from when the act was sent, and how many from when it was read."""
    return {name: daemon.metric("pillion_budgeted_acts_total", counted_from=name) for name in ("sent", "read")}


def executions(daemon: Daemon) -> tuple[float, float]:
    """Returns the batches and the rows that the engine ran."""
    return daemon.metric("pillion_executions_total"), daemon.metric("pillion_inferences_total")


# A daemon that was stopped


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that waits for the answer to an act although its budget has ended, and sends nothing again."""
    monkeypatch.setattr(pillion.aio, "RESEND_S", WAIT_S_MAX)


async def act_while_stopped(daemon: Daemon, episode: pillion.aio.Episode) -> float:
    """Sends an act to a serving process that is stopped until its budget has ended; returns the action."""
    pid = daemon.serving_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        waiting = asyncio.create_task(episode.act(OBSERVATION, budget_us=round(SHORT_BUDGET_S * 1e6)))
        # Runs the task up to its first wait: the act was sent.
        await asyncio.sleep(0)
        await asyncio.sleep(1.5 * SHORT_BUDGET_S)
    finally:
        os.kill(pid, signal.SIGCONT)
    return float(await waiting)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("acts_before", [0, 2], ids=["the general path", "the short path"])
@pytest.mark.parametrize("carrier", ["lane", "ipc"])
async def test_an_act_whose_budget_ended_in_the_socket_is_never_run(
    everywhere: Daemon, carrier: str, acts_before: int
) -> None:
    async with pillion.aio.connect(address_of(everywhere, carrier)) as session:
        episode = await session.begin()
        for _ in range(acts_before):
            await episode.act(OBSERVATION, budget_us=round(SHORT_BUDGET_S * 1e6))
        before = executions(everywhere)
        with pytest.raises(pillion.RefusedError) as refused:
            await act_while_stopped(everywhere, episode)
        assert refused.value.code == "deadline_exceeded"
        assert executions(everywhere) == before
        await episode.act(OBSERVATION, budget_us=BUDGET_US)
        assert executions(everywhere) == (before[0] + 1, before[1] + 1)


@pytest.mark.usefixtures("patient")
async def test_it_gets_the_fallback_that_the_session_declared(everywhere: Daemon) -> None:
    async with pillion.aio.connect(address_of(everywhere, "lane"), fallback="zeros") as session:
        episode = await session.begin()
        before = executions(everywhere)
        assert await act_while_stopped(everywhere, episode) == 0
        assert (episode.last.fallback, episode.last.late_us) == ("zeros", 0)
        assert executions(everywhere) == before


@pytest.mark.usefixtures("patient")
async def test_over_tcp_the_budget_counts_from_reading_so_the_act_runs(everywhere: Daemon) -> None:
    async with pillion.aio.connect(address_of(everywhere, "tcp"), fallback="zeros") as session:
        episode = await session.begin()
        before = executions(everywhere)
        await act_while_stopped(everywhere, episode)
        assert (episode.last.fallback, episode.last.late_us) == ("", 0)
        assert executions(everywhere) == (before[0] + 1, before[1] + 1)


# What a client sends


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_only_clients_on_the_daemons_host_say_when_they_act(everywhere: Daemon, carrier: str) -> None:
    address = address_of(everywhere, carrier)
    before = counted(everywhere)
    with pillion.connect(address) as session, session.begin() as episode:
        for _ in range(3):
            episode.act(OBSERVATION, budget_us=BUDGET_US)
            episode.act(OBSERVATION)
        group = session.begin_many(1)
        group.act(OBSERVATION[None], [True], budget_us=BUDGET_US)
    async with pillion.aio.connect(address) as other:
        async_episode = await other.begin()
        for _ in range(2):
            await async_episode.act(OBSERVATION, budget_us=BUDGET_US, traceparent="")
    expected = "read" if carrier == "tcp" else "sent"
    before[expected] += 6
    assert counted(everywhere) == before


@pytest.fixture(params=["ipc", "tcp"])
def fake_address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "ipc":
        return f"ipc://{tmp_path_factory.mktemp('f')}/f.sock"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def fake(fake_address: str) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(fake_address, honest)
    yield daemon
    daemon.close()


def test_it_says_when_it_acts_only_with_a_budget_and_only_on_the_same_host(fake: FakeDaemon) -> None:
    with pillion.connect(fake.address) as session:
        group = session.begin_many(1)
        began_ns = time.monotonic_ns()
        for start in (None, [True]):
            for budget_us in (0, 5_000_000, 5_000_000, 0):
                group.act(SMALL_OBSERVATION[None], start, budget_us=budget_us)
        ended_ns = time.monotonic_ns()
    sent_ns = [message.sent_ns for message in fake.heard if isinstance(message, Act)]
    is_near = fake.address.startswith("ipc")
    assert [time_ns > 0 for time_ns in sent_ns] == [False, is_near, is_near, False] * 2
    near_ns = [time_ns for time_ns in sent_ns if time_ns]
    assert [began_ns, *near_ns, ended_ns] == sorted([began_ns, *near_ns, ended_ns])


# What a daemon answers


def answering(reply: Error | list[object]) -> Answer:
    """A daemon that answers every act with this error, or with an action of these fields after the opening three."""

    def answer(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if not isinstance(message, Act):
            honest(fake, peer, message, tensors)
        elif isinstance(reply, Error):
            fake.send(peer, Error(fake.session, fake.epoch, message.sequence, reply.code, reply.message))
        else:
            fields = [fake.session, fake.epoch, message.sequence, message.episode, 1, *reply]
            fake.send_raw(peer, head(MessageType.ACTION, fields), fake.two())

    return answer


ACTION_OF_FIFTEEN: list[object] = [bytes(32), 1, 2, 3, 4, 1, 1, "", 0, 0]


@pytest.mark.parametrize(
    ("fields", "late_us"),
    [
        (ACTION_OF_FIFTEEN, 0),
        ([*ACTION_OF_FIFTEEN, [], []], 0),
        ([*ACTION_OF_FIFTEEN, [], [], 0], 0),
        ([*ACTION_OF_FIFTEEN, [], [], 1_234], 1_234),
        ([*ACTION_OF_FIFTEEN, [], [], 1_234, 10, 20, 30], 1_234),
        ([*ACTION_OF_FIFTEEN, [], [], 1_234, 10, 20, 30, "a field from the future"], 1_234),
    ],
    ids=["without leases", "of an older daemon", "in time", "late", "late, on a device", "late, of a newer daemon"],
)
def test_last_says_how_late_the_work_finished(fields: list[object], late_us: int, short_path: Path) -> None:
    fake = FakeDaemon(f"ipc://{short_path}/late-{os.getpid()}.sock", answering(fields))
    try:
        with pillion.connect(fake.address) as session, session.begin() as episode:
            for _ in range(3):
                assert episode.act(SMALL_OBSERVATION, budget_us=BUDGET_US) == 2
                assert episode.last.late_us == late_us
                assert f"late_us={late_us}" in repr(episode.last)
    finally:
        fake.close()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (ErrorCode.ENGINE_RESTARTING, pillion.EngineRestartingError),
        (ErrorCode.ENGINE_OUT, pillion.EngineOutError),
        (ErrorCode.STATE_LOST, pillion.StateLostError),
        (ErrorCode.INTERNAL, pillion.RefusedError),
    ],
)
async def test_each_code_of_a_lost_engine_has_an_exception_of_its_own(
    code: ErrorCode, expected: type[pillion.RefusedError], short_path: Path
) -> None:
    fake = FakeDaemon(f"ipc://{short_path}/engine-{os.getpid()}.sock", answering(Error(0, 0, 0, code, "of the engine")))
    try:
        with pillion.connect(fake.address) as session:
            with pytest.raises(pillion.RefusedError, match="of the engine") as refused:
                session.begin().act(SMALL_OBSERVATION)
            assert (type(refused.value), refused.value.code) == (expected, code)
        async with pillion.aio.connect(fake.address) as other:
            episode = await other.begin()
            with pytest.raises(pillion.RefusedError) as refused:
                await episode.act(SMALL_OBSERVATION)
            assert type(refused.value) is expected
    finally:
        fake.close()
