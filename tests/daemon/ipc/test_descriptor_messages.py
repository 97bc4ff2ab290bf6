"""A report or a request whose descriptors do not all arrive is refused in one line, and nothing of it stays open."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pillion_artifacts import Store
from pillion_artifacts.card.golden_pairs import Golden
from pillion_artifacts.card.model_card import Tolerance
from pillion_artifacts.verify.trust_policy import TrustPolicy
from pilliond.errors import DescriptorsError
from pilliond.ipc import shadow_channel, staging_channel
from pilliond.ipc.batch_certificate import Certificate
from pilliond.ipc.placement import Placement
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.ipc.shadow_channel import ShadowRequest
from pilliond.ipc.staging_channel import Staged, StageFailed
from pilliond.rollout.restore import admitted
from pilliond.settings.schema import EngineSettings
from tests.daemon.support.policies.batch_sensitive import ROUNDED_WIDTH, publish_plain
from tests.daemon.support.process_resources import descriptors_left


@pytest.fixture
def version(tmp_path: Path) -> Iterator[SealedVersion]:
    """A version with golden pairs."""
    rows = np.zeros((2, ROUNDED_WIDTH), np.float32)
    publish_plain(tmp_path / "store", "1.0.0", Golden({"observation": rows}, {"action": rows}))
    version = admitted(Store(tmp_path / "store"), "rounded@1.0.0", TrustPolicy())
    yield version
    version.close()


def staged(version: SealedVersion, *, has_golden: bool) -> Staged:
    return Staged(
        version.card, [], Certificate("exact", 0.0, 0, "", []), "", Placement("inline", ""), [], "", has_golden
    )


def inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino


@pytest.mark.parametrize("has_golden", [False, True])
def test_a_staged_version_comes_with_its_model_and_its_golden_pairs(version: SealedVersion, has_golden: bool) -> None:
    descriptors = version.descriptors()[: 1 + has_golden]
    end, staging_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with end, staging_end:
        report = staged(version, has_golden=has_golden)
        staging_channel.send(staging_end, report, descriptors)
        received, own = asyncio.run(staging_channel.receive_report(end))
        assert received == report
        assert [inode(each) for each in own] == [inode(each) for each in descriptors]
        for each in own:
            os.close(each)


@pytest.mark.parametrize("left", [0, 1])
def test_a_staged_version_of_which_a_descriptor_is_lost_is_not_one_without_golden_pairs(
    version: SealedVersion, left: int
) -> None:
    end, staging_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def receive() -> None:
        with descriptors_left(left), pytest.raises(DescriptorsError, match="no descriptor was left for its sealed"):
            await staging_channel.receive_report(end)

    async def scenario() -> None:
        before = os.listdir("/proc/self/fd")
        await receive()
        assert os.listdir("/proc/self/fd") == before

    with end, staging_end:
        staging_channel.send(staging_end, staged(version, has_golden=True), version.descriptors())
        asyncio.run(scenario())


def test_a_report_that_brings_fewer_descriptors_than_it_says_is_refused(version: SealedVersion) -> None:
    end, staging_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with end, staging_end:
        before = os.listdir("/proc/self/fd")
        staging_channel.send(staging_end, staged(version, has_golden=True), version.descriptors()[:1])
        with pytest.raises(DescriptorsError):
            asyncio.run(staging_channel.receive_report(end))
        assert os.listdir("/proc/self/fd") == before
        staging_channel.send(staging_end, StageFailed("it is bad"))
        assert asyncio.run(staging_channel.receive_report(end)) == (StageFailed("it is bad"), [])


@pytest.mark.parametrize("left", [0, 1])
def test_a_shadow_that_loses_a_descriptor_of_its_request_says_so(version: SealedVersion, left: int) -> None:
    end, shadow_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = ShadowRequest(version.request(), Tolerance(0.0, 0.0), 1.0, 0.0, 1, EngineSettings(), 1, 1)
    with end, shadow_end:
        shadow_channel.send_request(end, request, *version.descriptors())
        before = os.listdir("/proc/self/fd")
        with descriptors_left(left), pytest.raises(DescriptorsError, match="no descriptor was left for its sealed"):
            shadow_channel.receive_request(shadow_end)
        assert os.listdir("/proc/self/fd") == before
        shadow_channel.send_request(end, request, *version.descriptors())
        received, *descriptors = shadow_channel.receive_request(shadow_end)
        assert received == request
        assert [inode(each) for each in descriptors] == [inode(each) for each in version.descriptors()]
        for each in descriptors:
            os.close(each)


def test_nothing_of_a_message_that_cannot_be_read_stays_open(version: SealedVersion) -> None:
    end, staging_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with end, staging_end:
        before = os.listdir("/proc/self/fd")
        socket.send_fds(staging_end, [b"?"], version.descriptors())
        with pytest.raises(Exception, match=r"Expected `object`|invalid"):
            asyncio.run(staging_channel.receive_report(end))
        assert os.listdir("/proc/self/fd") == before
