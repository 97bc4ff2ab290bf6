"""A serving process gets its startup message whole, with descriptors of its own."""

from __future__ import annotations

import os
import resource
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from pilliond.errors import DescriptorsError
from pilliond.ipc import control_channel as channel
from pilliond.ipc.control_channel import Beside, StartupConfig
from pilliond.limits import STARTUP_DESCRIPTORS_MAX
from tests.daemon.support.startup_config import startup_config
from tests.harness import WAIT_S_MAX


def memory(content: str) -> int:
    descriptor = os.memfd_create("pillion-test")
    os.write(descriptor, content.encode())
    return descriptor


def content_of(descriptor: int) -> str:
    return os.pread(descriptor, 100, 0).decode() if descriptor >= 0 else ""


def with_versions(config: StartupConfig, count: int) -> StartupConfig:
    """The message with so many versions beside the stable one, every third without golden pairs."""
    (policy,) = config.policies
    beside = [
        Beside(policy.version, memory(f"model {each}"), -1 if each % 3 == 0 else memory(f"golden {each}"))
        for each in range(count)
    ]
    return msgspec.structs.replace(config, policies=[msgspec.structs.replace(policy, beside=beside)])


def test_more_descriptors_than_fit_into_a_packet_arrive_each_in_its_place(tmp_path: Path) -> None:
    config = with_versions(startup_config(f"lane://{tmp_path}/lane.sock"), STARTUP_DESCRIPTORS_MAX)
    control_end, serving_end = channel.make_channel()
    with control_end, serving_end:
        channel.send_startup(control_end, config)
        received = channel.receive_startup(serving_end)
    assert received is not None
    sent, got = config.policies[0].beside, received.policies[0].beside
    for own, other in zip(got, sent, strict=True):
        assert own.model_descriptor != other.model_descriptor
        assert content_of(own.model_descriptor) == content_of(other.model_descriptor)
        assert content_of(own.golden_descriptor) == content_of(other.golden_descriptor)
    assert os.fstat(received.page_descriptor).st_ino == os.fstat(config.page_descriptor).st_ino
    for each in (config, received):
        for beside in each.policies[0].beside:
            for descriptor in {beside.model_descriptor, beside.golden_descriptor} - {-1}:
                os.close(descriptor)


def test_a_serving_process_whose_parent_gives_up_before_it_has_verified_a_policy_gets_nothing() -> None:
    control_end, serving_end = channel.make_channel()
    control_end.close()
    with serving_end:
        assert channel.receive_startup(serving_end) is None


@pytest.mark.parametrize("left", [0, 1, 5])
def test_descriptors_that_the_kernel_drops_for_want_of_room_end_the_start(tmp_path: Path, left: int) -> None:
    """`left` files may still be opened when the message arrives; it brings 9 descriptors, and one of its own."""
    config = with_versions(startup_config(f"lane://{tmp_path}/lane.sock"), 4)
    control_end, serving_end = channel.make_channel()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with control_end, serving_end:
        serving_end.settimeout(WAIT_S_MAX)
        channel.send_startup(control_end, config)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        with ExitStack() as stack:
            # What lies free below the limit is taken, but for those left.
            for _ in range(highest):
                stack.callback(os.close, os.dup(control_end.fileno()))
            limit = max(map(int, os.listdir("/proc/self/fd"))) + left
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            with pytest.raises(DescriptorsError, match=f"descriptors of its start: .* limit of {limit} open files"):
                channel.receive_startup(serving_end)
    for beside in config.policies[0].beside:
        for descriptor in {beside.model_descriptor, beside.golden_descriptor} - {-1}:
            os.close(descriptor)
