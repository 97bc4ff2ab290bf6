"""Doorbells count rings, and never make the loop wait."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pillion_worker.doorbell import Doorbell, ring_loop, ring_worker, wait_for_rings


@pytest.fixture
def eventfd() -> Iterator[int]:
    descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(ends[1], False)
    yield ends
    for end in ends:
        os.close(end)


def test_the_loop_counts_the_rings_since_it_was_asked(eventfd: int) -> None:
    bell = Doorbell(eventfd)
    assert bell.take() == 0
    for _ in range(3):
        ring_loop(eventfd)
    assert [bell.take(), bell.take()] == [3, 0]


def test_the_loop_never_waits_even_if_the_worker_made_the_descriptor_blocking(eventfd: int) -> None:
    os.set_blocking(eventfd, True)
    assert Doorbell(eventfd).take() == 0


def test_the_worker_counts_rings_and_sees_the_end(pipe: tuple[int, int]) -> None:
    bell, end = pipe
    for _ in range(3):
        assert ring_worker(end)
    assert wait_for_rings(bell) == 3
    with open(os.devnull) as other:
        os.dup2(other.fileno(), end)
    assert wait_for_rings(bell) == 0


def test_a_ring_for_a_worker_that_is_gone_is_no_error(pipe: tuple[int, int]) -> None:
    bell, end = pipe
    with open(os.devnull) as other:
        os.dup2(other.fileno(), bell)
    assert ring_worker(end)


def test_a_full_doorbell_says_so_even_if_the_worker_made_its_end_blocking(pipe: tuple[int, int]) -> None:
    bell, end = pipe
    while ring_worker(end):
        pass
    os.set_blocking(bell, True)
    assert not ring_worker(end)
