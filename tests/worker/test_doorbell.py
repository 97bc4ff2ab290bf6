"""A doorbell counts rings, and never makes the loop wait."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pillion_worker.doorbell import Doorbell, ring


@pytest.fixture
def descriptor() -> Iterator[int]:
    descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield descriptor
    os.close(descriptor)


def test_it_counts_the_rings_since_it_was_asked(descriptor: int) -> None:
    bell = Doorbell(descriptor)
    assert bell.take() == 0
    for _ in range(3):
        assert ring(descriptor)
    assert [bell.take(), bell.take()] == [3, 0]


def test_asking_never_waits_even_if_the_other_side_made_the_descriptor_blocking(descriptor: int) -> None:
    os.set_blocking(descriptor, True)
    assert Doorbell(descriptor).take() == 0


def test_a_full_doorbell_says_so(descriptor: int) -> None:
    os.eventfd_write(descriptor, 2**64 - 2)
    assert not ring(descriptor)
    assert Doorbell(descriptor).take() == 2**64 - 2
