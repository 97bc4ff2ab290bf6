"""What the pipeline needs of a device. Streams and events are those of `torch.cuda`, or act as they do.

Work that is enqueued on one stream runs in order. An event that is recorded on a stream happens when all that was enqueued
there before has run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

Copies = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""(to, from)"""


class Event(Protocol):
    """A point in a stream, with the time at which the device got there."""

    def record(self, stream: Any) -> None:
        """Puts it behind what is enqueued on a stream."""

    def query(self) -> bool:
        """Whether it has happened. Raises `RuntimeError` if the device has failed."""

    def synchronize(self) -> None:
        """Waits for it. Raises `RuntimeError` if the device has failed."""

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from this event to a later one; both have happened."""


class Stream(Protocol):
    """Work of a device in order."""

    def wait_event(self, event: Any) -> None:
        """What is enqueued from now on runs after an event."""


class Device(Protocol):
    """A device that runs torch programs beside this process."""

    place: str
    """Where torch puts its tensors, such as `cuda:0`."""

    def stream(self) -> Stream:
        """Makes a stream."""

    def event(self) -> Event:
        """Makes an event."""

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Makes a tensor in the device's memory, which every stream may use at once. Raises `torch.cuda.OutOfMemoryError`."""

    def lock(self, address: int, size_bytes: int) -> bool:
        """Locks memory of this process for the device's copies; returns whether it did. It stays locked, and must stay."""

    def copier(self, copies: Copies, stream: Stream) -> Callable[[], None]:
        """Returns a function that enqueues these copies on a stream."""

    def enqueuer(self, step: Callable[[], None], stream: Stream) -> Callable[[], None]:
        """Returns a function that enqueues `step` on a stream, operator by operator: it may do something else each time."""

    def launcher(self, step: Callable[[], None], stream: Stream) -> tuple[Callable[[], None], bool]:
        """Returns a function that enqueues `step` on a stream, and whether it is one graph that was captured of it.

        What cannot be captured is enqueued operator by operator: then the function raises what `step` raises. Runs `step`
        a few times; raises what that raises.
        """

    def synchronize(self) -> None:
        """Waits for all that is enqueued. Raises `RuntimeError` if the device has failed."""

    def free_cached(self) -> None:
        """Gives memory back that is only kept for later."""
