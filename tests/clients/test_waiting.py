"""Every wait ends; late, foreign and unreadable answers are dropped; a request without an answer is sent again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pillion
from pillion_protocol import (
    Act,
    Begin,
    Begun,
    End,
    Error,
    Goodbye,
    Hello,
    Lease,
    Message,
    Ping,
    Pong,
    encode,
)
from tests.harness import SMALL_SPEC, TIME_UNIT_S, Answer, Daemon, FakeDaemon, RawPeer, head, honest

MakeFake = Callable[[Answer], FakeDaemon]

SHORT_S = 0.4 * TIME_UNIT_S
OBSERVATION = np.zeros(2, np.float32)


def silent_on(*kinds: type[Message]) -> Answer:
    """A daemon that never answers messages of these kinds."""

    def answer(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if not isinstance(message, kinds):
            honest(fake, peer, message, tensors)

    return answer


def first_sending(send: Callable[[FakeDaemon, bytes, Act], None]) -> Answer:
    """A daemon that sends something else before it answers an act."""

    def answer(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Act):
            send(fake, peer, message)
        honest(fake, peer, message, tensors)

    return answer


# Time-outs


def test_connecting_without_a_daemon_times_out(tmp_path: Path) -> None:
    with pytest.raises(pillion.UnavailableError, match="is pilliond running"):
        pillion.connect(f"ipc://{tmp_path}/nobody.sock", timeout_s=SHORT_S)


def test_connecting_to_a_silent_daemon_times_out(fake_daemon: MakeFake) -> None:
    fake = fake_daemon(silent_on(Hello))
    with pytest.raises(pillion.UnavailableError, match="is pilliond running"):
        pillion.connect(fake.address, timeout_s=SHORT_S)
    assert fake.heard


def test_a_begin_without_an_answer_times_out(fake_daemon: MakeFake) -> None:
    with pillion.connect(fake_daemon(silent_on(Begin)).address, timeout_s=SHORT_S) as session:
        with pytest.raises(pillion.RequestTimeoutError, match="no response from ipc"):
            session.begin()
        with pytest.raises(pillion.RequestTimeoutError):
            session.begin_many(2)


def test_an_act_without_an_answer_times_out_and_so_does_the_end_of_its_episode(fake_daemon: MakeFake) -> None:
    with pillion.connect(fake_daemon(silent_on(Act, End)).address, timeout_s=SHORT_S) as session:
        episode = session.begin()
        for _ in range(2):
            with pytest.raises(pillion.RequestTimeoutError):
                episode.act(OBSERVATION)
        with pytest.raises(pillion.RequestTimeoutError):
            episode.end()


def test_a_ping_without_an_answer_times_out(fake_daemon: MakeFake) -> None:
    with (
        pillion.connect(fake_daemon(silent_on(Ping)).address, timeout_s=SHORT_S) as session,
        pytest.raises(pillion.RequestTimeoutError),
    ):
        session.ping()


def test_closing_does_not_wait_for_an_answer(fake_daemon: MakeFake) -> None:
    pillion.connect(fake_daemon(silent_on(Goodbye)).address, timeout_s=SHORT_S).close()


def test_a_daemon_that_only_sends_pings_does_not_keep_an_act_waiting_for_ever(fake_daemon: MakeFake) -> None:
    def chatter(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, (Act, Pong)):
            fake.send(peer, Ping(fake.session, fake.epoch, 0))
        else:
            honest(fake, peer, message, tensors)

    with pillion.connect(fake_daemon(chatter).address, timeout_s=SHORT_S) as session:
        episode = session.begin()
        with pytest.raises(pillion.RequestTimeoutError):
            episode.act(OBSERVATION)


def test_a_time_out_is_a_timeout_error_and_a_connection_error() -> None:
    assert issubclass(pillion.RequestTimeoutError, TimeoutError)
    assert issubclass(pillion.RequestTimeoutError, pillion.UnavailableError)
    assert issubclass(pillion.UnavailableError, ConnectionError)
    assert issubclass(pillion.InvalidObservationError, ValueError)


# What is dropped


def one(fake: FakeDaemon) -> bytes:
    """The action 1, which is never the right answer here."""
    return b"\x01" + bytes(7)


def stale(fake: FakeDaemon, peer: bytes, act: Act) -> None:
    fake.send(peer, fake.action(act, act.sequence - 1), one(fake))


def from_the_future(fake: FakeDaemon, peer: bytes, act: Act) -> None:
    fake.send(peer, fake.action(act, act.sequence + 1), one(fake))


def of_another_session(fake: FakeDaemon, peer: bytes, act: Act) -> None:
    fake.send(peer, fake.action(act, session=fake.session + 1), one(fake))


def of_another_epoch(fake: FakeDaemon, peer: bytes, act: Act) -> None:
    fake.send(peer, fake.action(act, epoch=fake.epoch - 1), one(fake))


def an_error_for_another_request(fake: FakeDaemon, peer: bytes, act: Act) -> None:
    fake.send(peer, Error(fake.session, fake.epoch, act.sequence - 1, "superseded", "late"))


def an_error_for_nobody(fake: FakeDaemon, peer: bytes, act: Act) -> None:
    fake.send(peer, Error(0, 0, 0, "malformed", "unknown sender"))


def a_goodbye_of_another_session(fake: FakeDaemon, peer: bytes, act: Act) -> None:
    fake.send(peer, Goodbye(fake.session + 1, fake.epoch, 0, "not you"))


def an_unknown_type(fake: FakeDaemon, peer: bytes, act: Act) -> None:
    fake.send_raw(peer, head(99, [fake.session, fake.epoch, act.sequence]), one(fake))


def garbage(fake: FakeDaemon, peer: bytes, act: Act) -> None:
    fake.send_raw(peer, b"\xff\x00garbage")


def nothing(fake: FakeDaemon, peer: bytes, act: Act) -> None:
    fake.send_raw(peer, b"")


DROPPED = [
    stale, from_the_future, of_another_session, of_another_epoch, an_error_for_another_request, an_error_for_nobody,
    a_goodbye_of_another_session, an_unknown_type, garbage, nothing,
]  # fmt: skip


@pytest.mark.parametrize("send", DROPPED)
def test_what_does_not_answer_this_act_is_dropped(
    fake_daemon: MakeFake, send: Callable[[FakeDaemon, bytes, Act], None]
) -> None:
    with pillion.connect(fake_daemon(first_sending(send)).address) as session:
        episode = session.begin()
        for _ in range(3):
            assert episode.act(OBSERVATION) == 2


@pytest.mark.parametrize("send", DROPPED)
async def test_what_does_not_answer_this_act_is_dropped_on_asyncio(
    fake_daemon: MakeFake, send: Callable[[FakeDaemon, bytes, Act], None]
) -> None:
    async with pillion.aio.connect(fake_daemon(first_sending(send)).address) as session:
        episode = await session.begin()
        for _ in range(3):
            assert await episode.act(OBSERVATION) == 2


def test_the_late_answer_to_an_act_that_timed_out_is_not_taken_for_the_next_one(fake_daemon: MakeFake) -> None:
    late: list[Act] = []

    def answer(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Act) and not late:
            late.append(message)
        elif isinstance(message, Act) and message.sequence != late[0].sequence:
            fake.send(peer, fake.action(late[0]), one(fake))
            fake.send(peer, fake.action(message), fake.two())
        elif not isinstance(message, Act):
            honest(fake, peer, message, tensors)

    with pillion.connect(fake_daemon(answer).address, timeout_s=SHORT_S) as session:
        episode = session.begin()
        with pytest.raises(pillion.RequestTimeoutError):
            episode.act(OBSERVATION)
        assert episode.act(OBSERVATION) == 2
        assert episode.last.sequence > late[0].sequence


def test_an_act_is_not_sent_after_its_budget(fake_daemon: MakeFake) -> None:
    fake = fake_daemon(silent_on(Act))
    with pillion.connect(fake.address, timeout_s=10 * TIME_UNIT_S) as session:
        episode = session.begin()
        with pytest.raises(pillion.RequestTimeoutError):
            episode.act(OBSERVATION, budget_us=1_000)
        assert sum(isinstance(message, Act) for message in fake.heard) == 1
        fake.close()
        for _ in range(3):
            with pytest.raises(pillion.RequestTimeoutError):
                episode.act(OBSERVATION, budget_us=1_000)
        again = FakeDaemon(fake.address, honest)
        try:
            assert session.ping() > 0
        finally:
            again.close()
        assert not any(isinstance(message, Act) for message in again.heard)


async def test_an_act_is_not_sent_after_its_budget_on_asyncio(fake_daemon: MakeFake) -> None:
    fake = fake_daemon(silent_on(Act))
    async with pillion.aio.connect(fake.address, timeout_s=10 * TIME_UNIT_S) as session:
        episode = await session.begin()
        with pytest.raises(pillion.RequestTimeoutError):
            await episode.act(OBSERVATION, budget_us=1_000)
        assert sum(isinstance(message, Act) for message in fake.heard) == 1
        fake.close()
        acts = [asyncio.create_task(episode.act(OBSERVATION, budget_us=1_000)) for _ in range(3)]
        await asyncio.sleep(0.05)
        again = FakeDaemon(fake.address, honest)
        try:
            assert await session.ping() > 0
            for act in acts:
                with pytest.raises(pillion.RequestTimeoutError):
                    await act
        finally:
            again.close()
        assert not any(isinstance(message, Act) for message in again.heard)


# What is sent again


def test_a_request_without_an_answer_is_sent_again_with_the_same_number(
    fake_daemon: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pillion.session.RESEND_S", 0.05)
    lost: set[type[Message]] = set()

    def answer(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if type(message) in lost:
            honest(fake, peer, message, tensors)
        lost.add(type(message))

    fake = fake_daemon(answer)
    with pillion.connect(fake.address, timeout_s=10 * TIME_UNIT_S) as session:
        episode = session.begin(seed=1)
        assert episode.act(OBSERVATION) == 2
        assert session.ping() > 0
        episode.end()
    requests = [message for message in fake.heard if not isinstance(message, Goodbye)]
    for kind in (Hello, Begin, Act, Ping, End):
        sent = [message for message in requests if isinstance(message, kind)]
        assert len(sent) >= 2
        assert all(message == sent[0] for message in sent)


async def test_a_request_without_an_answer_is_sent_again_on_asyncio(
    fake_daemon: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pillion.aio.RESEND_S", 0.05)
    lost: set[type[Message]] = set()

    def answer(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if type(message) in lost:
            honest(fake, peer, message, tensors)
        lost.add(type(message))

    fake = fake_daemon(answer)
    async with pillion.aio.connect(fake.address, timeout_s=10 * TIME_UNIT_S) as session:
        episode = await session.begin(seed=1)
        assert await episode.act(OBSERVATION) == 2
        await episode.end()
    for kind in (Hello, Begin, Act, End):
        sent = [message for message in fake.heard if isinstance(message, kind)]
        assert len(sent) >= 2
        assert all(message == sent[0] for message in sent)


def test_a_repeated_act_gets_the_same_bytes_and_is_run_once(daemon: Daemon, raw_peer: RawPeer) -> None:
    raw_peer.open()
    begun, _ = raw_peer.ask(Begin(raw_peer.session, raw_peer.epoch, raw_peer.next(), [7]))
    assert isinstance(begun, Begun)
    ran = daemon.metric("pillion_inferences_total")
    resends = daemon.metric("pillion_resends_total")
    act = Act(raw_peer.session, raw_peer.epoch, raw_peer.next(), begun.episode, deterministic=False)
    replies = []
    for _ in range(3):
        raw_peer.say(act, bytes(32))
        replies.append(raw_peer.receive())
    assert replies[0] == replies[1] == replies[2]
    assert daemon.metric("pillion_inferences_total") == ran + 1
    assert daemon.metric("pillion_resends_total") == resends + 2


def test_a_repeated_hello_begin_or_end_gets_the_same_bytes(raw_peer: RawPeer) -> None:
    welcome = raw_peer.open(5)
    raw_peer.say(Hello(0, 0, 5))
    assert raw_peer.hear()[0] == welcome
    begin = Begin(raw_peer.session, raw_peer.epoch, raw_peer.next(), [7])
    begun, _ = raw_peer.ask(begin)
    assert isinstance(begun, Begun)
    assert raw_peer.ask(begin)[0] == begun
    end = End(raw_peer.session, raw_peer.epoch, raw_peer.next(), begun.episode)
    ended, _ = raw_peer.ask(end)
    assert raw_peer.ask(end)[0] == ended


# Wrong answers


def test_an_answer_with_tensors_that_do_not_fit_the_spec_is_an_error(fake_daemon: MakeFake) -> None:
    wrong: list[list[bytes]] = [[], [bytes(4)], [bytes(16)], [bytes(8), bytes(8)]]

    def answer(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Act) and wrong:
            fake.send(peer, fake.action(message), *wrong.pop())
        else:
            honest(fake, peer, message, tensors)

    with pillion.connect(fake_daemon(answer).address) as session:
        episode = session.begin()
        for _ in range(4):
            with pytest.raises(pillion.RefusedError) as refused:
                episode.act(OBSERVATION)
            assert refused.value.code == "shape_mismatch"
        assert episode.act(OBSERVATION) == 2


def test_a_welcome_with_an_unreadable_spec_is_refused(fake_daemon: MakeFake) -> None:
    def answer(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        welcome = fake.welcome(message)
        fields = [getattr(welcome, name) for name in welcome.__struct_fields__]
        fields[8] = b"\xc1"
        fake.send(peer, type(welcome)(*fields))

    with pytest.raises(pillion.RefusedError) as refused:
        pillion.connect(fake_daemon(answer).address)
    assert refused.value.code == "malformed"


def test_a_reply_of_the_wrong_type_is_an_error(fake_daemon: MakeFake) -> None:
    def answer(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Act):
            fake.send(peer, Pong(message.session, message.epoch, message.sequence))
        else:
            honest(fake, peer, message, tensors)

    with pillion.connect(fake_daemon(answer).address) as session:
        episode = session.begin()
        with pytest.raises(pillion.RefusedError, match="expected action, got pong"):
            episode.act(OBSERVATION)


def test_an_unknown_error_code_is_reported_unchanged(fake_daemon: MakeFake) -> None:
    def answer(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Act):
            error = Error(message.session, message.epoch, message.sequence, "tired", "not now", "a rest", "an act")
            fake.send(peer, error)
        else:
            honest(fake, peer, message, tensors)

    with pillion.connect(fake_daemon(answer).address) as session:
        with pytest.raises(pillion.RefusedError) as refused:
            session.begin().act(OBSERVATION)
        assert (refused.value.code, str(refused.value)) == (
            "tired", "tired: not now; expected a rest, got an act",
        )  # fmt: skip


def test_the_version_of_a_group_is_the_lease_of_its_first_row(fake_daemon: MakeFake) -> None:
    def answer(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Begin):
            leases = [Lease("1.0.0", bytes(32)), Lease("2.0.0", bytes([1] * 32))]
            fake.send(peer, Begun(message.session, message.epoch, message.sequence, 1, leases, [1, 0]))
        else:
            honest(fake, peer, message, tensors)

    with pillion.connect(fake_daemon(answer).address) as session:
        assert session.spec == SMALL_SPEC
        group = session.begin_many(2)
        assert group.version == "2.0.0"
        assert group.act(np.zeros((2, 2), np.float32)).tolist() == [2, 2]
        assert group.last.version == "1.0.0"


# What the daemon sends on its own


def test_the_daemons_ping_is_answered_while_waiting(fake_daemon: MakeFake) -> None:
    def ping(fake: FakeDaemon, peer: bytes, act: Act) -> None:
        fake.send(peer, Ping(fake.session, fake.epoch, 0))

    fake = fake_daemon(first_sending(ping))
    with pillion.connect(fake.address) as session:
        assert session.begin().act(OBSERVATION) == 2
        session.ping()
        assert Pong(fake.session, fake.epoch, 0) in fake.heard


def test_after_a_goodbye_the_episode_is_lost_and_the_next_begin_opens_a_session(fake_daemon: MakeFake) -> None:
    has_ended: list[bool] = []

    def answer(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Act) and not has_ended:
            has_ended.append(True)
            fake.send(peer, Goodbye(fake.session, fake.epoch, 0, "the daemon got SIGTERM"))
            fake.session += 1
        else:
            honest(fake, peer, message, tensors)

    fake = fake_daemon(answer)
    with pillion.connect(fake.address) as session:
        episode = session.begin()
        with pytest.raises(pillion.EpisodeLostError, match="the daemon got SIGTERM"):
            episode.act(OBSERVATION)
        with pytest.raises(pillion.EpisodeLostError):
            episode.act(OBSERVATION)
        episode.end()
        assert session.begin().act(OBSERVATION) == 2
    assert sum(isinstance(message, Hello) for message in fake.heard) == 2


def test_a_ping_in_a_session_that_has_ended_raises_an_error(raw_peer: RawPeer, daemon: Daemon) -> None:
    with pillion.connect(daemon.address) as session:
        goodbye = Goodbye(session._conversation.session, session._conversation.epoch, 2**40 * 2**10, "on its behalf")
        raw_peer.send(encode(goodbye))
        raw_peer.hear()
        with pytest.raises(pillion.EpisodeLostError, match="no such session"):
            session.ping()
        assert session.begin().act(np.zeros(8, np.float32)).shape == ()


def test_the_action_answers_the_observation_it_was_sent_for(fake_daemon: MakeFake) -> None:
    """The daemon answers all acts so far, the newest first; each answer holds the number of its act."""
    held: list[tuple[bytes, Act]] = []

    def answer(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if not isinstance(message, Act):
            honest(fake, peer, message, tensors)
            return
        held.append((peer, message))
        for receiver, act in reversed(held):
            fake.send(receiver, fake.action(act), act.sequence.to_bytes(8, "little"))

    with pillion.connect(fake_daemon(answer).address) as session:
        episode = session.begin()
        for _ in range(5):
            assert int(episode.act(OBSERVATION)) == episode.last.sequence
