"""Which heads a client accepts as the action of its act without decoding them."""

from __future__ import annotations

import pytest

from pillion_protocol import Action, Fallback, decode, encode
from pillion_protocol.steps import ActionStep, ActStep

SESSION, EPOCH, EPISODE, DIGEST = 2**61 + 5, 2**40 + 1, 7, bytes(range(32))


def action(
    sequence: int = 9, session: int = SESSION, epoch: int = EPOCH, episode: int = EPISODE, rows: int = 1,
    digest: bytes = DIGEST, slot: int = 0,
) -> bytes:  # fmt: skip
    step = ActionStep(session, epoch, episode, rows, digest, [8 * rows])
    step.fill(sequence, 12345678901234, 1000, 2000, 70_000, 3, 1)
    step.point(slot, 4 * slot)
    return bytes(step[1])


@pytest.fixture
def asked() -> ActStep:
    """Act 9, after the action for act 8."""
    step = ActStep(SESSION, EPOCH, EPISODE, 1, [32])
    step.fill(9, 0, True)
    step.expect(action(sequence=8))
    return step


def test_an_action_that_differs_only_in_its_numbers_is_the_answer(asked: ActStep) -> None:
    assert asked.is_answered_by(action())
    assert asked.is_answered_by(memoryview(action()))


@pytest.mark.parametrize(
    "other",
    [
        action(sequence=8), action(sequence=10), action(session=SESSION + 1), action(epoch=EPOCH + 1),
        action(episode=EPISODE + 1), action(rows=2), action(digest=bytes(32)), action(slot=1),
    ],
)  # fmt: skip
def test_any_other_action_must_be_decoded(asked: ActStep, other: bytes) -> None:
    assert not asked.is_answered_by(other)


def test_the_same_action_in_another_encoding_must_be_decoded(asked: ActStep) -> None:
    plain = decode(action())
    assert isinstance(plain, Action)
    assert not asked.is_answered_by(encode(plain))
    assert not asked.is_answered_by(
        encode(Action(SESSION, EPOCH, 9, EPISODE, 1, DIGEST, 5, 1, 1, 1, fallback=Fallback.ZEROS))
    )


def test_the_first_action_must_be_decoded() -> None:
    step = ActStep(SESSION, EPOCH, EPISODE, 1, [32])
    step.fill(9, 0, True)
    assert not step.is_answered_by(action())
    step.expect(encode(decode(action())))
    assert not step.is_answered_by(action())
