"""Connections to the data path: each one is a session of Pillion's own client, with idle episode groups for reuse.

This module and `data_path` are the only ones of the daemon that import the client. So `/v2` uses the data path as every
other client does, with the same code for the wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from pillion import PillionError, RefusedError, aio
from pilliond.limits import KSERVE_ANSWER_S_MAX, KSERVE_IDLE_GROUP_S, KSERVE_IDLE_GROUPS_MAX


class Target(NamedTuple):
    """What a session connects to. After a restart, or with another stable version, a new session is opened."""

    address: str
    policy: str
    starts: int
    digest: bytes


class Connection:
    """Owns one session; `close` ends it and all its episode groups. For one event loop."""

    def __init__(self, target: Target, session: aio.Session) -> None:
        self.target = target
        self.users = 0
        """Running requests, and open sequences."""
        self.is_retired = False
        """Whether it accepts no more requests."""
        self._session = session
        self._idle: list[tuple[float, aio.EpisodeGroup]] = []
        """Unused episode groups with the time of their last use, the oldest first."""

    @property
    def has_idle(self) -> bool:
        """Whether an episode group is kept for the next request."""
        return bool(self._idle)

    async def take(self, seeds: Sequence[int]) -> aio.EpisodeGroup:
        """Returns an episode group with a row for each seed, for one request. The request must begin every row anew."""
        for index, (_, group) in enumerate(self._idle):
            if group.rows == len(seeds):
                del self._idle[index]
                return group
        while len(self._idle) >= KSERVE_IDLE_GROUPS_MAX:
            await self.end(self._idle.pop(0)[1])
        return await self.begin(seeds)

    async def begin(self, seeds: Sequence[int]) -> aio.EpisodeGroup:
        """Begins a new episode group."""
        return await self._session.begin_many(len(seeds), seeds)

    def put_back(self, group: aio.EpisodeGroup, now_s: float) -> None:
        """Keeps an episode group for the next request with as many rows."""
        self._idle.append((now_s, group))

    async def end_idle(self, now_s: float) -> None:
        """Ends the episode groups that were unused for `KSERVE_IDLE_GROUP_S`."""
        while self._idle and self._idle[0][0] + KSERVE_IDLE_GROUP_S <= now_s:
            await self.end(self._idle.pop(0)[1])

    async def end(self, group: aio.EpisodeGroup) -> None:
        """Ends an episode group. If that fails, the connection is retired, and its close ends the group."""
        try:
            await group.end()
        except RefusedError:
            # The group no longer exists.
            return
        except PillionError:
            self.is_retired = True

    async def close(self) -> None:
        """Ends the session; safe to repeat."""
        self.is_retired = True
        self._idle.clear()
        await self._session.close()


async def open_connection(target: Target) -> Connection:
    """Opens a connection to the data path; raises `PillionError`."""
    # Not in lock-step: no batch must wait for a group that may never act again.
    session = await aio.connect(
        target.address, policy=target.policy, timeout_s=KSERVE_ANSWER_S_MAX, client_name="kserve", lock_step=False
    )
    return Connection(target, session)


class ConnectionPool:
    """Owns the connections of one kind of request: one to the current target, and old ones until they are unused."""

    def __init__(self) -> None:
        self._connections: list[Connection] = []
        self._opening = asyncio.Lock()

    async def connect(self, target: Target) -> Connection:
        """Returns the connection to `target`, and opens it if there is none. Raises `PillionError`."""
        async with self._opening:
            usable = (each for each in self._connections if each.target == target and not each.is_retired)
            connection = next(usable, None)
            if connection is None:
                connection = await open_connection(target)
                self._connections.append(connection)
            return connection

    async def drop(self, connection: Connection) -> None:
        """Closes a connection whose session has ended."""
        if connection in self._connections:
            self._connections.remove(connection)
        await connection.close()

    async def end_unused(self, target: Target | None, now_s: float) -> None:
        """Ends idle episode groups and unused connections: an idle session would keep a busy-polling process awake."""
        for connection in list(self._connections):
            await connection.end_idle(now_s)
            is_current = connection.target == target and not connection.is_retired
            if not connection.users and not (is_current and connection.has_idle):
                await self.drop(connection)

    async def close(self) -> None:
        """Closes every connection."""
        for connection in list(self._connections):
            await self.drop(connection)
