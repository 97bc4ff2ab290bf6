"""A line: one session of the daemon's own client, and the handles that wait in it for the next request.

This module and `kserve_client` are the only ones of the daemon that import the client: `/v2` goes through the data
path as one more client does, and speaks the wire with the code that every other client speaks it with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from pillion import PillionError, RefusedError, aio
from pilliond.limits import KSERVE_ANSWER_S_MAX, KSERVE_IDLE_GROUP_S, KSERVE_IDLE_GROUPS_MAX


class Target(NamedTuple):
    """What a session is opened for: after a restart, or for another stable version, it is opened anew."""

    address: str
    starts: int
    digest: bytes


class Line:
    """Owns one session; `close` ends it and every handle of it. For one event loop."""

    def __init__(self, target: Target, session: aio.Session) -> None:
        self.target = target
        self.users = 0
        """Requests that run in it, and sequences that it holds."""
        self.is_retired = False
        """Whether it takes nobody new."""
        self._session = session
        self._idle: list[tuple[float, aio.EpisodeGroup]] = []
        """Handles that nobody uses, the one that was put back last behind the others."""

    @property
    def has_idle(self) -> bool:
        """Whether a handle waits for the next request."""
        return bool(self._idle)

    async def take(self, seeds: Sequence[int]) -> aio.EpisodeGroup:
        """A handle of as many rows, for one user alone. Whoever takes one that was used begins every row anew."""
        for index, (_, group) in enumerate(self._idle):
            if group.rows == len(seeds):
                del self._idle[index]
                return group
        while len(self._idle) >= KSERVE_IDLE_GROUPS_MAX:
            await self.end(self._idle.pop(0)[1])
        return await self.begin(seeds)

    async def begin(self, seeds: Sequence[int]) -> aio.EpisodeGroup:
        """A new handle."""
        return await self._session.begin_many(len(seeds), seeds)

    def put_back(self, group: aio.EpisodeGroup, now_s: float) -> None:
        """Keeps a handle for the next one who asks for as many rows."""
        self._idle.append((now_s, group))

    async def end_idle(self, now_s: float) -> None:
        """Ends the handles that were not asked for lately."""
        while self._idle and self._idle[0][0] + KSERVE_IDLE_GROUP_S <= now_s:
            await self.end(self._idle.pop(0)[1])

    async def end(self, group: aio.EpisodeGroup) -> None:
        """Ends a handle. Where it is not known that it ended, the line is retired, and gives it back when it closes."""
        try:
            await group.end()
        except RefusedError:
            # Gone is what was asked for.
            return
        except PillionError:
            self.is_retired = True

    async def close(self) -> None:
        """Ends the session; harmless to repeat."""
        self.is_retired = True
        self._idle.clear()
        await self._session.close()


async def open_line(target: Target) -> Line:
    """A line to the data path; raises `PillionError`."""
    # Not in lock-step: no batch is to wait for a handle that may never be asked again.
    session = await aio.connect(target.address, timeout_s=KSERVE_ANSWER_S_MAX, client_name="kserve", lock_step=False)
    return Line(target, session)


class Lines:
    """Owns the lines of one kind of use: one to what serves now, and old ones until nobody uses them."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._opening = asyncio.Lock()

    async def to(self, target: Target) -> Line:
        """The line to `target`, opened where there is none; raises `PillionError`."""
        async with self._opening:
            line = next((line for line in self._lines if line.target == target and not line.is_retired), None)
            if line is None:
                line = await open_line(target)
                self._lines.append(line)
            return line

    async def drop(self, line: Line) -> None:
        """Closes a line whose session is over."""
        if line in self._lines:
            self._lines.remove(line)
        await line.close()

    async def tend(self, target: Target | None, now_s: float) -> None:
        """Ends idle handles, and lines that nobody uses: an idle session would keep a serving process that spins awake."""
        for line in list(self._lines):
            await line.end_idle(now_s)
            serves = line.target == target and not line.is_retired
            if not line.users and not (serves and line.has_idle):
                await self.drop(line)

    async def close(self) -> None:
        """Closes every line."""
        for line in list(self._lines):
            await self.drop(line)
