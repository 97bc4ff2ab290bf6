"""Texts travel as `str`: over every carrier, alone and in groups, and what is no text never leaves the client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pillion
from pillion.limits import TEXTS_KEPT_BYTES_MAX
from pillion.tensors import TensorCodec
from pillion_protocol import Spec, TensorSpec
from tests.conftest import StartDaemon
from tests.daemon.support.policies.texts import NOTE_ROOM, ROOM, SPEC, action_of, publish_reader
from tests.harness import Daemon

WIDE_ROOM = 20_000
"""A prompt of so many bytes travels through a slot."""
SPEED = np.array([3.0, 0.0], np.float32)


def row(text: str, room: int) -> list[int]:
    return list(text.encode().ljust(room, b"\0"))


def observed(prompt: Any, note: Any = "", speed: Any = SPEED) -> dict[str, Any]:
    return {"speed": speed, "prompt": prompt, "note": note}


@pytest.fixture(scope="module")
def reader_daemon(tmp_path_factory: pytest.TempPathFactory, short_path: Path, module_daemon: StartDaemon) -> Daemon:
    folder = tmp_path_factory.mktemp("reader")
    publish_reader(folder / "store", folder / "made")
    listen = [f"{carrier}://{short_path}/reader-{carrier}.sock" for carrier in ("ipc", "lane")]
    return module_daemon(policy="reader", store=folder / "store", listen=listen)


@pytest.fixture(params=["ipc", "lane"])
def address(reader_daemon: Daemon, request: pytest.FixtureRequest) -> str:
    return next(address for address in reader_daemon.addresses if address.startswith(request.param))


def test_a_text_reaches_the_policy_byte_for_byte_and_may_change_at_each_step(address: str) -> None:
    with pillion.connect(address) as session, session.begin(seed=1) as episode:
        for prompt, note in [("pick up", "a"), ("é猫🤖", ""), ("x" * ROOM, "abcde"), ("pick up", "a"), ("p", "")]:
            action = episode.act(observed(prompt, note))
            assert action.tolist() == action_of(prompt, note, 3.0)


def test_each_row_of_a_group_has_its_own_text(address: str) -> None:
    prompts, notes = ["left", "right", "größer"], ["a", "", "bcd"]
    expected = [action_of(prompt, note, 0.0) for prompt, note in zip(prompts, notes, strict=True)]
    speed = np.zeros((3, 2), np.float32)
    forms: list[Callable[[list[str]], Any]] = [list, tuple, np.array, lambda texts: np.array(texts, object)]
    with pillion.connect(address) as session:
        group = session.begin_many(3)
        for form in forms:
            assert group.act(observed(form(prompts), form(notes), speed)).tolist() == expected
        starts = group.act(observed(prompts[::-1], notes[::-1], speed), episode_start=[True, False, True])
        assert starts.tolist() == expected[::-1]
        group.end()


async def test_the_asyncio_client_takes_texts_too(address: str) -> None:
    async with pillion.aio.connect(address) as session:
        episode = await session.begin(seed=1)
        assert (await episode.act(observed("left"))).tolist() == action_of("left", "", 3.0)
        with pytest.raises(pillion.InvalidObservationError, match="at most 24 bytes of UTF-8, got 'yyyy"):
            await episode.act(observed("y" * 25))
        group = await session.begin_many(2)
        actions = await group.act(observed(["up", "down"], ["", ""], np.zeros((2, 2), np.float32)))
        assert actions.tolist() == [action_of("up", "", 0.0), action_of("down", "", 0.0)]


def test_stable_baselines_predict_takes_texts(reader_daemon: Daemon) -> None:
    with pillion.Policy(reader_daemon.address) as policy:
        action, _ = policy.predict(observed("left"), deterministic=True)
        assert action.tolist() == action_of("left", "", 3.0)
        many, _ = policy.predict(observed(["up", "no"], ["", "a"], np.zeros((2, 2), np.float32)), deterministic=True)
        assert many.tolist() == [action_of("up", "", 0.0), action_of("no", "a", 0.0)]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("x" * (ROOM + 1), f"observation 'prompt': expected at most {ROOM} bytes of UTF-8, got 'xxxxx.*' of {ROOM + 1} bytes"),
        ("é" * 13, f"at most {ROOM} bytes of UTF-8, got 'ééééééééééééé' of 26 bytes"),
        ("", "observation 'prompt': expected at least 1 byte of UTF-8, got '' of 0 bytes"),
        ("a\0b", "text without zero bytes, got one at character 1"),
        ("a\ud800", r"text that UTF-8 can hold, got '\\ud800' at character 1"),
        (b"left", "expected a str, or an array of uint8 .*, got bytes"),
        (["left"], "expected a str, got a list of 1"),
        (7, "expected a str, .*, got int"),
        (None, "expected a str, .*, got NoneType"),
        (np.zeros(ROOM, np.float32), "expected a str, .*, got an array of float32"),
        (np.zeros(ROOM - 1, np.uint8), rf"expected shape \[{ROOM}\], got \[{ROOM - 1}\]"),
    ],
)  # fmt: skip
def test_what_is_no_text_of_the_spec_is_not_sent(reader_daemon: Daemon, prompt: Any, message: str) -> None:
    with pillion.connect(reader_daemon.address) as session, session.begin(seed=1) as episode:
        episode.act(observed("left"))
        sequence = episode.last.sequence
        with pytest.raises(pillion.InvalidObservationError, match=message):
            episode.act(observed(prompt))
        assert episode.act(observed("left")).tolist() == action_of("left", "", 3.0)
        assert episode.last.sequence == sequence + 1


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("left", "expected 2 texts, got a single str"),
        (("left",), "expected 2 texts, got a tuple of 1"),
        (["left", ""], "expected at least 1 byte of UTF-8, got '' of 0 bytes in row 1"),
        (["left", b"up"], "expected 2 texts, .*, got a list with bytes in row 1"),
    ],
)
def test_a_group_needs_a_text_for_each_row(reader_daemon: Daemon, prompts: Any, message: str) -> None:
    speed = np.zeros((2, 2), np.float32)
    with pillion.connect(reader_daemon.address) as session:
        group = session.begin_many(2)
        with pytest.raises(pillion.InvalidObservationError, match=message):
            group.act(observed(prompts, ["", ""], speed))
        # a list that another group has sent is no reason to take it from this one
        other = session.begin_many(1)
        other.act(observed(["left"], ["a"], speed[:1]))
        with pytest.raises(pillion.InvalidObservationError, match="expected 2 texts, got a list of 1"):
            group.act(observed(["left"], ["", ""], speed))


def test_encoded_rows_are_sent_as_they_are_and_the_daemon_refuses_what_is_no_text(address: str) -> None:
    with pillion.connect(address) as session, session.begin(seed=1) as episode:
        encoded = np.array(row("left", ROOM), np.uint8)
        assert episode.act(observed(encoded)).tolist() == action_of("left", "", 3.0)
        encoded[1] = 0xFF
        with pytest.raises(pillion.RefusedError) as refused:
            episode.act(observed(encoded))
        error = refused.value
        assert (error.code, error.expected) == ("bad_text", "UTF-8")
        assert error.actual == "0xff at byte 1 in row 0"
        assert episode.act(observed("left")).tolist() == action_of("left", "", 3.0)


def test_texts_travel_through_slots(short_path: Path, tmp_path: Path, start_daemon: StartDaemon) -> None:
    publish_reader(tmp_path / "store", tmp_path / "made", room=WIDE_ROOM)
    daemon = start_daemon(policy="reader", store=tmp_path / "store", listen=[f"lane://{short_path}/wide-reader.sock"])
    with pillion.connect(daemon.address) as session, session.begin(seed=1) as episode:
        for prompt in ("left", "a" * 3_000, "left", "right", "é"):
            assert episode.act(observed(prompt, "n")).tolist() == action_of(prompt, "n", 3.0)
            assert episode.last.observation_in_slot
        raw = np.array(row("left", WIDE_ROOM), np.uint8)
        raw[-1] = 1
        with pytest.raises(pillion.RefusedError, match="bad_text"):
            episode.act(observed(raw))
        assert episode.act(observed("left")).tolist() == action_of("left", "", 3.0)
        with pytest.raises(pillion.InvalidObservationError, match="at most 20000 bytes of UTF-8, got 'aaaaa"):
            episode.act(observed("a" * (WIDE_ROOM + 1)))


# The codec, without a daemon


def test_a_policy_that_observes_only_a_text_takes_it_without_a_name() -> None:
    codec = TensorCodec(Spec([TensorSpec("prompt", "uint8", [4], "Text")], []))
    assert [list(array) for array in codec.arrays("ab", None)] == [row("ab", 4)]
    assert codec.arrays(["ab", ""], 2)[0].tolist() == [row("ab", 4), row("", 4)]
    assert codec.arrays(np.str_("cd"), None)[0].tolist() == row("cd", 4)


def test_a_text_is_encoded_once() -> None:
    codec = TensorCodec(SPEC)
    first = codec.arrays(observed("left"), None)[1]
    assert codec.arrays(observed("".join(["le", "ft"])), None)[1] is first
    assert codec.arrays(observed("right"), None)[1] is not first
    assert codec.arrays(observed("left"), None)[1] is first


def test_the_texts_that_are_kept_have_a_bound() -> None:
    room = TEXTS_KEPT_BYTES_MAX // 4
    codec = TensorCodec(Spec([TensorSpec("prompt", "uint8", [room], "Text")], []))
    first = codec.arrays("0", None)[0]
    for number in range(1, 5):
        codec.arrays(str(number), None)
    again = codec.arrays("0", None)[0]
    assert again is not first
    assert again.tolist() == first.tolist()
    # more than may be kept at all
    texts = ["a"] * 5
    assert codec.arrays(texts, 5)[0] is not codec.arrays(texts, 5)[0]


def test_a_note_may_be_empty_and_fill_its_room() -> None:
    codec = TensorCodec(SPEC)
    assert codec.arrays(observed("a", ""), None)[2].tolist() == [0] * NOTE_ROOM
    assert codec.arrays(observed("a", "abcde"), None)[2].tolist() == row("abcde", NOTE_ROOM)


def test_a_space_that_the_client_does_not_know_is_treated_as_a_box() -> None:
    codec = TensorCodec(Spec([TensorSpec("x", "uint8", [3], "Orbit")], []))
    assert codec.arrays(np.arange(3, dtype=np.uint8), None)[0].tolist() == [0, 1, 2]
