"""What the serving loop waits for: one epoll set for every carrier. Hot path."""

from __future__ import annotations

import select
from typing import Any, ClassVar, Final, Protocol

EVENTS_MAX: Final = 256
"""Descriptors that one look tells of; the next look tells of the others."""

Events = list[tuple[int, int]]
"""Descriptors that are readable, as `select.epoll.poll` gives them."""


class Source(Protocol):
    """What stands behind a descriptor."""

    bursts: ClassVar[bool]
    """Whether it must be asked until it has nothing, since its descriptor tells only of the first message."""

    def receive(self) -> list[Any] | None:
        """The next message (see `pilliond.transport.Incoming`), or None where there is none, or it was none. Never waits."""
        ...


class Poller:
    """Owns the epoll set, not the descriptors in it. Level-triggered: what is left unread is told of again."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.sources: dict[int, Source] = {}
        self.poll = self._epoll.poll
        """`poll(timeout_s, EVENTS_MAX)`: the descriptors in `sources` that are readable."""

    def add(self, descriptor: int, source: Source) -> None:
        """Watches a descriptor."""
        self._epoll.register(descriptor, select.EPOLLIN)
        self.sources[descriptor] = source

    def remove(self, descriptor: int) -> None:
        """Watches it no longer; to be called before it is closed."""
        del self.sources[descriptor]
        self._epoll.unregister(descriptor)

    def close(self) -> None:
        """Closes the set."""
        self._epoll.close()
