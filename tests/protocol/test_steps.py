"""A head that is laid out once and overwritten means the same as one from the general encoder."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pillion_protocol import Act, Action, decode, encode
from pillion_protocol.action_steps import NO_DEVICE_TIMES, ActionStep, DeviceTimes
from pillion_protocol.lane import pack, unpack
from pillion_protocol.limits import HEAD_SPACE_BYTES
from pillion_protocol.steps import (
    ACT_STEP_BYTES,
    NO_SLOT,
    SENT_FORM,
    ActStep,
    is_act_step,
    slot_number,
    split_act,
    split_timed_act,
)

numbers = st.integers(0, 2**63 - 1)
rows = st.integers(1, 2**16 - 1)
slots = st.integers(0, 127)
budgets_us = numbers | st.sampled_from([0, 1_000])
"""Repeated values matter: `ActStep` writes a budget only when it changes."""
sent_times_ns = numbers | st.sampled_from([0, 0, 5])
"""0 matters: an act that does not say when it was sent has another layout."""
device_times = st.just(NO_DEVICE_TIMES) | st.builds(DeviceTimes, numbers, numbers, numbers)
"""None matters: an action of a batch that no device ran has another layout."""

HEAD_OF_OLD = bytes.fromhex(
    "7e00 06 9f cf0000000000000001 cf0000000000000002 cf0000000000000009 cf0000000000000003 cd0001"
    "c420" + bytes(range(32)).hex() + "cf0000000000000005 cf0000000000000006 cf0000000000000007 cf0000000000000008"
    "cd0001 01 a0 00 cf0000000000000000"
)
"""An action of session 1, epoch 2, sequence 9, episode 3, as every daemon has written it."""

BEGIN_AND_MIDDLE: dict[Any, bytes] = {}
"""The bytes of an act without its numbers, by the values that they depend on."""


@given(
    identity=st.tuples(numbers, numbers, numbers),
    rows=rows,
    acts=st.lists(st.tuples(numbers, budgets_us, st.booleans(), slots, numbers, sent_times_ns), min_size=1, max_size=4),
)
def test_an_act_written_in_place_is_the_act_that_was_meant(
    identity: tuple[int, int, int], rows: int, acts: list[tuple[int, int, bool, int, int, int]]
) -> None:
    session, epoch, episode = identity
    step = ActStep(session, epoch, episode, rows, [4])
    for sequence, budget_us, deterministic, slot, generation, sent_ns in acts:
        step.fill(sequence, budget_us, deterministic, sent_ns)
        step.point(slot, generation)
        meant = Act(
            session, epoch, sequence, episode, rows, budget_us, deterministic, slot=slot, generation=generation,
            sent_ns=sent_ns,
        )  # fmt: skip
        assert decode(bytes(step[0])) == decode(encode(meant)) == meant
        assert step.sequence == sequence
        assert is_act_step(bytes(step[0]))
        assert bytes(step.packet) == pack(step[0], [bytes(4)])
        if sent_ns:
            begin, result, middle, slot_form, split_generation, *sent = split_timed_act(step[0])
            assert sent == [SENT_FORM, sent_ns]
        else:
            begin, result, middle, slot_form, split_generation = split_act(step[0])
        assert split_act(step[0][:ACT_STEP_BYTES])[:3:2] == (begin, middle)
        assert (result, slot_number(slot_form), split_generation) == (sequence, slot, generation)
        assert (slot_form == NO_SLOT) == (slot == 0)
        values = (identity, rows, budget_us, deterministic, sent_ns > 0)
        assert begin + middle == BEGIN_AND_MIDDLE.setdefault(values, begin + middle)


@given(
    identity=st.tuples(numbers, numbers, numbers),
    rows=rows,
    digest=st.binary(min_size=32, max_size=32),
    actions=st.lists(
        st.tuples(numbers, st.tuples(numbers, numbers, numbers, numbers), rows, slots, slots, numbers, device_times),
        min_size=1,
        max_size=4,
    ),
    points_first=st.booleans(),
)
def test_an_action_written_in_place_is_the_action_that_was_meant(
    identity: tuple[int, int, int], rows: int, digest: bytes, actions: list[Any], points_first: bool
) -> None:
    session, epoch, episode = identity
    step = ActionStep(session, epoch, episode, rows, digest, [8, 2])
    step.tensors[0][:], step.tensors[1][:] = b"observed", b"it"
    for sequence, times_ns, batch_rows, batch_close, slot, generation, device in actions:
        received_ns, queued_ns, dispatched_ns, ran_ns = times_ns
        if points_first:
            step.point(slot, generation)
        step.fill(sequence, received_ns, queued_ns, dispatched_ns, ran_ns, batch_rows, batch_close, device)
        if not points_first:
            step.point(slot, generation)
        meant = Action(
            session, epoch, sequence, episode, rows, digest, received_ns, queued_ns, dispatched_ns, ran_ns, batch_rows,
            batch_close, slot=slot, generation=generation, **device._asdict(),
        )  # fmt: skip
        assert decode(bytes(step[1])) == decode(encode(meant)) == meant
        assert bytes(step.packet) == pack(step[1], [b"observed", b"it"])
        assert bytes(step.in_slot.packet) == pack(step.in_slot[1], [])
        assert step.in_slot[1] == step[1]


@given(
    tensors=st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=4), sequence=numbers, times=device_times
)
def test_a_packet_written_in_place_is_the_packet_of_its_frames(
    tensors: list[bytes], sequence: int, times: DeviceTimes
) -> None:
    sizes = list(map(len, tensors))
    act = ActStep(1, 2, 3, 1, sizes)
    act.fill(sequence, 0, True)
    action = ActionStep(1, 2, 3, 1, bytes(32), sizes)
    action.fill(sequence, 1, 2, 3, 4, 1, 1, times)
    for step, head, targets in ((act, act[0], act.tensors), (action, action[1], action.tensors)):
        for target, tensor in zip(targets, tensors, strict=True):
            target[:] = tensor
        packet = bytes(step.packet)
        assert packet == pack(head, tensors)
        assert unpack(memoryview(packet), sizes) == [bytes(head), *tensors]
        begin = 192 if step is action and any(times) else HEAD_SPACE_BYTES
        assert packet[begin:] == b"".join(tensors)


def test_an_action_that_no_device_ran_has_the_layout_that_it_always_had() -> None:
    step = ActionStep(1, 2, 3, 1, bytes(range(32)), [4])
    step.fill(9, 5, 6, 7, 8, 1, 1)
    before = bytes(step.packet)
    assert before[: len(HEAD_OF_OLD)] == HEAD_OF_OLD
    step.fill(10, 5, 6, 7, 8, 1, 1, DeviceTimes(1, 2, 3))
    step.fill(9, 5, 6, 7, 8, 1, 1)
    assert bytes(step.packet) == before


def test_no_other_head_counts_as_one_written_in_place() -> None:
    step = ActStep(1, 2, 3, 1, [4])
    step.fill(9, 0, True)
    assert is_act_step(bytes(step[0]))
    assert not is_act_step(encode(Act(1, 2, 9, 3, 1, 0, True)))
    assert not is_act_step(b"")
    timed = encode(Act(2**62, 2**62, 2**62, 2**62, 2**15, 2**62, True, slot=1, generation=2**62, sent_ns=2**62))
    plain = timed[:1] + b"\x9c" + timed[2:-9]
    slot_at = len(plain) - len(b"\x01\xcf") - 8
    for wide in (plain, timed):
        assert is_act_step(wide)
        assert not is_act_step(wide[:slot_at] + b"\xcc" + wide[slot_at + 1 :])
        assert not is_act_step(wide[: slot_at + 1] + b"\xce" + wide[slot_at + 2 :])
    assert not is_act_step(timed[:-9] + b"\xce" + timed[-8:])
    assert not is_act_step(timed[:1] + b"\x9c" + timed[2:])
    assert not is_act_step(plain[:1] + b"\x9d" + plain[2:])
