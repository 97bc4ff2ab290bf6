"""A row that should hold text and does not is refused before anything runs, and no other act of its batch notices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pillion
from pillion_artifacts.card.model_card import Distribution
from pillion_protocol import Error, ErrorCode, Message, decode
from pilliond.engine.onnx import OnnxEngine
from pilliond.versions.loaded_version import Identity, Version
from tests.conftest import StartDaemon
from tests.daemon.support.fakes import DIGEST, DataPlane, act
from tests.daemon.support.policies.texts import NOTE_ROOM, ROOM, SPEC, action_of, publish_reader, reader_model
from tests.daemon.support.worker_faults import worker_pids


class ReaderPlane(DataPlane):
    """A data plane that serves `reader`."""

    def first_version(self, safe_action: list[float] | None) -> Version:
        engine = OnnxEngine(reader_model(), SPEC, [], self.limits.rows_max)
        return Version(Identity("reader", "1.0.0", DIGEST), SPEC, Distribution(), engine, safe_action)


def frames(*prompts: bytes) -> list[bytes]:
    """The tensor frames of an act with these prompts, a speed of zero and empty notes."""
    rows = len(prompts)
    padded = b"".join(prompt.ljust(ROOM, b"\0") for prompt in prompts)
    return [bytes(8 * rows), padded, bytes(NOTE_ROOM * rows)]


def sent(plane: ReaderPlane) -> dict[int, tuple[Message, list[list[float]]]]:
    """Runs the loop. Returns the reply to each sequence number, and its actions."""
    plane.run()
    replies = {}
    for message in plane.transport.sent:
        head = decode(bytes(message[1]))
        replies[head.sequence] = (
            head,
            [np.frombuffer(part, np.float32).reshape(-1, 4).tolist() for part in message[2:]],
        )
    return {sequence: (head, parts[0] if parts else []) for sequence, (head, parts) in replies.items()}


@pytest.mark.parametrize(
    ("bad", "expected", "actual"),
    [
        (b"a\xff", "UTF-8", "0xff at byte 1 in row 1"),
        (b"a\0b", "nothing but zero bytes after the text", "others after the zero byte 1 in row 1"),
        (b"", "at least 1 byte of UTF-8", "0 bytes in row 1"),
    ],
)
def test_only_the_act_with_the_bad_text_is_refused_in_a_batch(bad: bytes, expected: str, actual: str) -> None:
    plane = ReaderPlane()
    welcome = plane.open()
    first, middle, last = (plane.begin(welcome, number, rows=2) for number in (1, 2, 3))
    plane.deliver(b"peer", act(first, 4, rows=2), *frames(b"left", b"right"))
    plane.deliver(b"peer", act(middle, 5, rows=2), *frames(b"up", bad))
    plane.deliver(b"peer", act(last, 6, rows=2), *frames("é".encode(), b"x" * ROOM))
    replies = sent(plane)
    error, _ = replies[5]
    assert isinstance(error, Error)
    assert (error.code, error.expected, error.actual) == (ErrorCode.BAD_TEXT, expected, actual)
    assert replies[4][1] == [action_of("left", "", 0.0), action_of("right", "", 0.0)]
    assert replies[6][1] == [action_of("é", "", 0.0), action_of("x" * ROOM, "", 0.0)]


def test_the_text_of_one_act_does_not_excuse_that_of_another() -> None:
    """The rows that were sound in the last batch are compared with those of this one, not trusted by their place."""
    plane = ReaderPlane()
    welcome = plane.open()
    one, two = plane.begin(welcome, 1), plane.begin(welcome, 2)
    plane.deliver(b"peer", act(one, 3), *frames(b"left"))
    plane.deliver(b"peer", act(two, 4), *frames(b"right"))
    assert [sent(plane)[number][1] for number in (3, 4)] == [[action_of(text, "", 0.0)] for text in ("left", "right")]
    plane.transport.sent.clear()
    plane.deliver(b"peer", act(two, 5), *frames(b"left"))
    plane.deliver(b"peer", act(one, 6), *frames(b"\xffeft"))
    replies = sent(plane)
    assert replies[5][1] == [action_of("left", "", 0.0)]
    error, _ = replies[6]
    assert isinstance(error, Error)
    assert error.code == ErrorCode.BAD_TEXT


def test_a_bad_text_of_a_full_batch_is_found() -> None:
    plane = ReaderPlane()
    welcome = plane.open()
    full = plane.begin(welcome, 1, rows=8)
    plane.deliver(b"peer", act(full, 2, rows=8), *frames(*[b"left"] * 7, b"lef\xc3"))
    error, _ = sent(plane)[2]
    assert isinstance(error, Error)
    assert error.actual == "0xc3 at byte 3 in row 7"
    plane.transport.sent.clear()
    plane.deliver(b"peer", act(full, 3, rows=8), *frames(*[b"left"] * 7, "lefé".encode()))
    assert sent(plane)[3][1] == [action_of("left", "", 0.0)] * 7 + [action_of("lefé", "", 0.0)]


@pytest.mark.parametrize("placement", ["inline", "worker"])
def test_a_daemon_serves_texts_in_either_place(placement: str, tmp_path: Path, start_daemon: StartDaemon) -> None:
    publish_reader(tmp_path / "store", tmp_path / "made")
    daemon = start_daemon(policy="reader", store=tmp_path / "store", settings={"engine__placement": placement})
    assert len(worker_pids(daemon)) == (placement == "worker")
    bad = np.full(ROOM, 0xFF, np.uint8)
    with pillion.connect(daemon.address) as session, session.begin(seed=1) as episode:
        observation = {"speed": np.ones(2, np.float32), "prompt": "pick up", "note": "é"}
        assert episode.act(observation).tolist() == action_of("pick up", "é", 1.0)
        with pytest.raises(pillion.RefusedError) as refused:
            episode.act({**observation, "prompt": bad})
        assert refused.value.code == "bad_text"
        assert episode.act(observation).tolist() == action_of("pick up", "é", 1.0)
    assert daemon.metric("pillion_requests_total", outcome="bad_text") == 1
