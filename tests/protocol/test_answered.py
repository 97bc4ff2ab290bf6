"""Which heads a client accepts as the action of its act without decoding them."""

from __future__ import annotations

from typing import Any

import pytest

from pillion_protocol import Action, Fallback, decode, encode
from pillion_protocol.action_steps import NO_DEVICE_TIMES, ActionStep, DeviceTimes
from pillion_protocol.steps import ActStep

SESSION, EPOCH, EPISODE, DIGEST = 2**61 + 5, 2**40 + 1, 7, bytes(range(32))
OF_A_DEVICE = DeviceTimes(2_000, 50_000, 3_000)
NO_LEASES_AND_NOT_LATE = b"\x90\x90\x00"


def action(
    sequence: int = 9, session: int = SESSION, epoch: int = EPOCH, episode: int = EPISODE, rows: int = 1,
    digest: bytes = DIGEST, slot: int = 0, times: DeviceTimes = NO_DEVICE_TIMES,
) -> bytes:  # fmt: skip
    step = ActionStep(session, epoch, episode, rows, digest, [8 * rows])
    step.fill(sequence, 12345678901234, 1000, 2000, 70_000, 3, 1, times)
    step.point(slot, 4 * slot)
    return bytes(step[1])


@pytest.fixture(params=[NO_DEVICE_TIMES, OF_A_DEVICE], ids=["after one of the CPU", "after one of a device"])
def asked(request: pytest.FixtureRequest) -> ActStep:
    """Act 9, after the action for act 8."""
    step = ActStep(SESSION, EPOCH, EPISODE, 1, [32])
    step.fill(9, 0, True)
    step.pattern.learn(action(sequence=8, times=request.param))
    return step


def is_answered(asked: ActStep, head: bytes | memoryview) -> bool:
    return asked.pattern.fits(head, asked.sequence)


@pytest.mark.parametrize("times", [NO_DEVICE_TIMES, OF_A_DEVICE, DeviceTimes(0, 0, 1)])
def test_an_action_that_differs_only_in_its_numbers_is_the_answer(asked: ActStep, times: DeviceTimes) -> None:
    assert is_answered(asked, action(times=times))
    assert is_answered(asked, memoryview(action(times=times)))


@pytest.mark.parametrize("times", [NO_DEVICE_TIMES, OF_A_DEVICE])
@pytest.mark.parametrize(
    "other",
    [
        {"sequence": 8}, {"sequence": 10}, {"session": SESSION + 1}, {"epoch": EPOCH + 1}, {"episode": EPISODE + 1},
        {"rows": 2}, {"digest": bytes(32)}, {"slot": 1},
    ],
)  # fmt: skip
def test_any_other_action_must_be_decoded(asked: ActStep, other: dict[str, Any], times: DeviceTimes) -> None:
    assert not is_answered(asked, action(**other, times=times))


def test_an_action_that_says_more_must_be_decoded(asked: ActStep) -> None:
    head = action(times=OF_A_DEVICE)
    assert head.count(NO_LEASES_AND_NOT_LATE) == 1
    for more in (b"\x90\x90\x01", b"\x91\x90\x00", b"\x90\x91\x00"):
        assert not is_answered(asked, head.replace(NO_LEASES_AND_NOT_LATE, more))
    assert not is_answered(asked, b"\x05" + head[1:])
    assert not is_answered(asked, b"\x05" + action()[1:])


def test_the_same_action_in_another_encoding_must_be_decoded(asked: ActStep) -> None:
    for head in (action(), action(times=OF_A_DEVICE)):
        plain = decode(head)
        assert isinstance(plain, Action)
        assert not is_answered(asked, encode(plain))
    assert not is_answered(
        asked, encode(Action(SESSION, EPOCH, 9, EPISODE, 1, DIGEST, 5, 1, 1, 1, fallback=Fallback.ZEROS))
    )


@pytest.mark.parametrize("times", [NO_DEVICE_TIMES, OF_A_DEVICE])
def test_the_first_action_must_be_decoded(times: DeviceTimes) -> None:
    step = ActStep(SESSION, EPOCH, EPISODE, 1, [32])
    step.fill(9, 0, True)
    assert not is_answered(step, action(times=times))
    step.pattern.learn(encode(decode(action(times=times))))
    assert not is_answered(step, action(times=times))
