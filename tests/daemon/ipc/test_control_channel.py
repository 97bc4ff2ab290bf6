"""What the kernel drops of a control message: it comes without any descriptor, and nothing of it stays open."""

from __future__ import annotations

import os
import resource
from contextlib import ExitStack

import pytest

from pilliond.ipc import control_channel as channel
from pilliond.ipc.control_channel import Drain, WorkerStarted
from pilliond.limits import CHANNEL_DESCRIPTORS_MAX

MESSAGE = WorkerStarted(b"d" * 32)


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_a_message_with_more_descriptors_than_fit_has_none() -> None:
    control_end, serving_end = channel.make_channel()
    with control_end, serving_end:
        before = open_descriptors()
        channel.send(control_end, MESSAGE, [control_end.fileno()] * (CHANNEL_DESCRIPTORS_MAX + 1))
        channel.send(control_end, Drain("a test"))
        assert channel.receive_control_message(serving_end) == (MESSAGE, [])
        assert open_descriptors() == before
        assert channel.receive_control_message(serving_end) == (Drain("a test"), [])


@pytest.mark.parametrize("left", [0, 1])
def test_a_message_whose_descriptors_do_not_all_find_room_in_the_process_has_none(left: int) -> None:
    control_end, serving_end = channel.make_channel()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with control_end, serving_end, ExitStack() as stack:
        channel.send(control_end, MESSAGE, [control_end.fileno()] * CHANNEL_DESCRIPTORS_MAX)
        # What lies free below the limit is taken, but for those left.
        for _ in range(max(map(int, open_descriptors()))):
            stack.callback(os.close, os.dup(control_end.fileno()))
        before = open_descriptors()
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, before)) + left, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        received = channel.receive_control_message(serving_end)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert received == (MESSAGE, [])
        assert open_descriptors() == before


def test_a_message_has_every_descriptor_that_it_brings() -> None:
    control_end, serving_end = channel.make_channel()
    with control_end, serving_end:
        channel.send(control_end, MESSAGE, [control_end.fileno(), serving_end.fileno()])
        message, descriptors = channel.receive_control_message(serving_end)
        assert message == MESSAGE
        assert [os.fstat(each).st_ino for each in descriptors] == [
            os.fstat(end.fileno()).st_ino for end in (control_end, serving_end)
        ]
        for each in descriptors:
            os.close(each)
