"""The times that a device took, from a completed batch to the bytes of each reply: in the data plane without sockets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from pillion_protocol import Begun, Lease, decode, encode
from pillion_protocol.action_steps import (
    ACTION_STEP_BYTES,
    DEVICE_ACTION_STEP_BYTES,
    NO_DEVICE_TIMES,
    DeviceTimes,
)
from pilliond.core.action_steps import ExplicitActionStep, late_reply
from pilliond.ipc.metrics_page import VERSION_CELLS, Histogram, mixed_index
from pilliond.versions.loaded_version import Identity, Version
from pilliond.versions.mixed_version import MixedVersion
from tests.daemon.serving.test_late_engines import LateEngine, LatePlane
from tests.daemon.support.fakes import GAUSSIAN, SPEC, act, action_of, codes, observation

TIMES = DeviceTimes(2_000, 50_000, 3_000)
LONGER = DeviceTimes(1_000, 90_000, 2_000)


@pytest.fixture
def plane() -> LatePlane:
    return LatePlane()


@pytest.fixture
def begun(plane: LatePlane) -> Begun:
    return plane.begin(plane.open())


def submit(plane: LatePlane, begun: Begun, sequence: int, **fields: Any) -> None:
    """Sends an act that runs now, and is not answered yet."""
    plane.deliver(b"peer", act(begun, sequence, **fields), observation())
    assert plane.replies() == []
    assert plane.late.submitted


def times_of(head: bytes) -> DeviceTimes:
    action = action_of(decode(head))
    return DeviceTimes(action.copy_in_ns, action.compute_ns, action.copy_out_ns)


def totals(plane: LatePlane, index: int) -> list[tuple[int, int]]:
    """Returns of each phase how many batches were counted, and the sum of their times in ns."""
    plane.page.flush()
    return [_total(plane, histogram) for histogram in VERSION_CELLS[index].device_duration]


def _total(plane: LatePlane, histogram: Histogram) -> tuple[int, int]:
    cells = plane.page.cells
    return sum(cells[histogram.first : histogram.sum_cell]), cells[histogram.sum_cell]


def test_each_reply_has_the_times_of_its_own_batch_and_none_those_of_an_earlier_one(
    plane: LatePlane, begun: Begun
) -> None:
    found: list[tuple[DeviceTimes, int]] = []
    for sequence, times in enumerate((NO_DEVICE_TIMES, TIMES, LONGER, NO_DEVICE_TIMES, TIMES), 2):
        submit(plane, begun, sequence)
        ((_, head, action, _),) = plane.finish(times)
        found.append((times_of(head), len(head)))
        assert np.frombuffer(action, np.float32).tolist() == [3.0]
    plain, long = ACTION_STEP_BYTES, DEVICE_ACTION_STEP_BYTES
    assert found == [
        (NO_DEVICE_TIMES, plain), (TIMES, long), (LONGER, long), (NO_DEVICE_TIMES, plain), (TIMES, long),
    ]  # fmt: skip


def test_a_repeated_act_gets_the_same_bytes(plane: LatePlane, begun: Begun) -> None:
    submit(plane, begun, 2)
    (first,) = plane.finish(TIMES)
    plane.deliver(b"peer", act(begun, 2), observation())
    plane.run()
    assert [list(sent) for sent in plane.transport.sent] == [first]
    assert times_of(first[1]) == TIMES


def test_an_action_that_is_late_has_them_too(plane: LatePlane, begun: Begun) -> None:
    submit(plane, begun, 2, budget_us=100)
    plane.clock.now_ns += 150_000
    ((_, head, *_),) = plane.finish(TIMES)
    assert action_of(decode(head)).late_us == 50
    assert times_of(head) == TIMES
    step = plane.sessions._groups[begun.episode].step
    late = action_of(decode(bytes(late_reply([b"peer", *step[1:]], 1_000)[1])))  # type: ignore[arg-type]
    assert late == msgspec.structs.replace(action_of(decode(bytes(step[1]))), late_us=1)


def test_an_action_that_names_its_version_has_them_and_the_next_one_too(plane: LatePlane, begun: Begun) -> None:
    group = plane.sessions._groups[begun.episode]
    plain, lease = group.step, Lease("1.2.3", plane.version.digest)
    assert not isinstance(plain, ExplicitActionStep)
    group.step = ExplicitActionStep(group, begun.epoch, [lease], [], plain)
    heads = []
    for sequence in (2, 3):
        submit(plane, begun, sequence)
        ((_, head, *_),) = plane.finish(TIMES)
        heads.append(head)
    assert [action_of(decode(head)).leases for head in heads] == [[lease], []]
    assert [times_of(head) for head in heads] == [TIMES, TIMES]


def test_a_client_that_is_older_reads_the_same_action(plane: LatePlane, begun: Begun) -> None:
    """Clients have read 18 fields, and ignore what follows, since an action says whether it is late."""
    submit(plane, begun, 2)
    ((_, head, *_),) = plane.finish(TIMES)
    fields = msgspec.msgpack.decode(head[1:])
    assert len(fields) == 21
    older = decode(head[:1] + msgspec.msgpack.encode(fields[:18]))
    assert older == msgspec.structs.replace(action_of(decode(head)), **NO_DEVICE_TIMES._asdict())


def test_metrics_count_the_batches_of_a_device_and_no_others(plane: LatePlane, begun: Begun) -> None:
    for sequence, times in enumerate((TIMES, NO_DEVICE_TIMES, LONGER), 2):
        submit(plane, begun, sequence)
        plane.finish(times)
    assert totals(plane, plane.version.metrics_index) == [(2, 3_000), (2, 140_000), (2, 5_000)]
    assert not plane.page.device_batches
    plane.page.clear(plane.version.metrics_index)
    assert totals(plane, plane.version.metrics_index) == [(0, 0)] * 3


def test_a_batch_that_failed_or_whose_act_was_replaced_is_not_counted(plane: LatePlane, begun: Begun) -> None:
    submit(plane, begun, 2)
    plane.loop.complete(plane.late.compute(), "a test made it fail", TIMES)
    plane.loop._send_replies()
    assert codes(plane.replies()) == ["internal"]
    submit(plane, begun, 3)
    plane.deliver(b"peer", act(begun, 4), observation())
    plane.run()
    plane.transport.sent.clear()
    assert plane.finish(TIMES) == []
    assert totals(plane, plane.version.metrics_index) == [(0, 0)] * 3
    ((_, head, *_),) = plane.finish()
    assert times_of(head) == NO_DEVICE_TIMES


@pytest.mark.parametrize(
    ("said", "expected"),
    [((TIMES, LONGER), LONGER), ((LONGER, TIMES), LONGER), ((NO_DEVICE_TIMES, TIMES), TIMES)],
)
def test_a_group_of_several_versions_has_the_times_of_the_slowest_device(
    plane: LatePlane, said: Sequence[DeviceTimes], expected: DeviceTimes
) -> None:
    engines = [LateEngine(), LateEngine()]
    versions = [
        Version(Identity("counter", f"{number}.0.0", bytes(32)), SPEC, GAUSSIAN, engine)
        for number, engine in enumerate(engines)
    ]
    begun = plane.begin(plane.open(), rows=2)
    group = plane.sessions._groups[begun.episode]
    mixed = MixedVersion(versions)
    mixed.metrics_index = mixed_index(plane.version.metrics_index)
    group.version, group.row_versions = mixed, versions
    group.step = ExplicitActionStep(group, begun.epoch, mixed.named, mixed.row_leases, None)
    plane.deliver(b"peer", act(begun, 2, 2), observation(2))
    assert plane.replies() == []
    for engine, times in zip(engines, said, strict=True):
        plane.loop.complete(engine.compute(), None, times)
    (action,) = map(action_of, plane.replies())
    assert (len(action.leases), times_of(encode(action))) == (2, expected)
    assert totals(plane, mixed.metrics_index) == [(1, each) for each in expected]
