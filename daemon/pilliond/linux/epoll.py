"""The epoll set that the serving loop waits on: one for every carrier. Hot path."""

from __future__ import annotations

import select
from typing import ClassVar, Generic, Never, Protocol, TypeVar

Events = list[tuple[int, int]]
"""Readable descriptors, as `select.epoll.poll` returns them."""

MessageT = TypeVar("MessageT")
Message_co = TypeVar("Message_co", covariant=True)


class Source(Protocol[Message_co]):
    """What is behind a descriptor of the set."""

    bursts: ClassVar[bool]
    """Whether to call `receive` until it returns None, because its descriptor reports only the first message."""

    def receive(self) -> Message_co | None:
        """Returns the next message, or None if there is none or it was handled here. Never waits."""
        ...


class DescriptorSet(Protocol):
    """What a source that yields no messages, such as a timer, needs of a `Poller`."""

    def add(self, descriptor: int, source: Source[Never]) -> None:
        """Adds a descriptor."""
        ...

    def remove(self, descriptor: int) -> None:
        """Removes a descriptor. Call it before the descriptor is closed."""
        ...


class Poller(Generic[MessageT]):
    """Owns the epoll set, not the descriptors in it. Level-triggered: it reports again what is left unread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.sources: dict[int, Source[MessageT]] = {}
        self.poll = self._epoll.poll
        """`poll(timeout_s, EVENTS_MAX)` returns the readable descriptors of `sources`."""

    @property
    def descriptor(self) -> int:
        """The descriptor of the set, which is readable while one in it is."""
        return self._epoll.fileno()

    def add(self, descriptor: int, source: Source[MessageT]) -> None:
        """Adds a descriptor to the set."""
        self._epoll.register(descriptor, select.EPOLLIN)
        self.sources[descriptor] = source

    def remove(self, descriptor: int) -> None:
        """Removes a descriptor from the set. Call it before the descriptor is closed."""
        del self.sources[descriptor]
        self._epoll.unregister(descriptor)

    def close(self) -> None:
        """Closes the set."""
        self._epoll.close()
