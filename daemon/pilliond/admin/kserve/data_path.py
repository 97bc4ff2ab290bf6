"""The data path as `/v2` uses it: rows in, outputs out, as one more client of the serving process.

A request by itself is an episode of each of its rows: begun, acted once, ended. A request with a sequence id is a step
of one episode of each of its rows, from the request that starts the sequence to the one that ends it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pillion import (
    EpisodeLostError,
    InvalidObservationError,
    PillionError,
    RefusedError,
    RequestTimeoutError,
    aio,
)
from pillion_protocol import ErrorCode
from pilliond.admin.kserve.connection import Line, Lines, Target
from pilliond.admin.kserve.errors import STATUSES, KServeError, bad_request
from pilliond.limits import KSERVE_SEQUENCE_IDLE_S, KSERVE_SEQUENCES_MAX

Array = NDArray[Any]
SequenceId = int | str

_LOOK_S: Final = 1.0


class Call(msgspec.Struct, frozen=True):
    """What is to be run: `observation` holds arrays of shape [rows, …] in the spec's dtypes, `seeds` one for each row."""

    observation: dict[str, Array]
    seeds: list[int]
    deterministic: bool = True
    budget_us: int = 0
    digest: str = ""
    """`sha256:…` of the version that must run it; empty: whichever does."""
    sequence: SequenceId = 0
    starts: bool = False
    ends: bool = False


class Ran(msgspec.Struct, frozen=True):
    """What came of it: outputs by name, and the digest of the weights that ran each row."""

    outputs: dict[str, Array]
    row_digests: list[str]


class _Sequence:
    """One open sequence. Rule: one request of it at a time, in the order of their arrival."""

    def __init__(self, line: Line, group: aio.EpisodeGroup, used_s: float) -> None:
        self.line = line
        self.group = group
        self.used_s = used_s
        self.turn = asyncio.Lock()
        self.digest = ""
        """Of the version that answered so far; empty before the first answer."""
        self.is_over = False


class DataPath:
    """Owns its sessions with the serving process, opened when first used; `close` ends them. For one event loop.

    `target` says where they go now; it raises `KServeError` where nobody serves. `run` raises `KServeError` for
    whatever goes wrong on the way.
    """

    def __init__(self, target: Callable[[], Target], clock: Callable[[], float] = time.monotonic) -> None:
        self._target = target
        self._clock = clock
        self._alone = Lines()
        self._sequences_lines = Lines()
        self._open: dict[SequenceId, _Sequence] = {}
        """The sequences by id, the one that was used last behind the others."""
        self._looking: asyncio.Task[None] | None = None

    @property
    def sequences(self) -> list[SequenceId]:
        """The ids of the open sequences, the one that was longest unused first."""
        return list(self._open)

    def digest_of(self, sequence: SequenceId) -> str:
        """`sha256:…` of the version that answers a sequence; empty where it is not open, or not answered yet."""
        found = self._open.get(sequence)
        return "" if found is None else found.digest

    async def run(self, call: Call) -> Ran:
        """Runs it."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            if call.sequence:
                return await self._step(call)
            return await self._run_alone(call)
        except PillionError as error:
            raise _told(error) from None

    async def tend(self, now_s: float) -> None:
        """Ends what was not used for long, and what belongs to a version or a process that serves no more."""
        for name, sequence in list(self._open.items()):
            if sequence.used_s + KSERVE_SEQUENCE_IDLE_S <= now_s and not sequence.turn.locked():
                await self._end(name, sequence)
        try:
            target = self._target()
        except KServeError:
            target = None
        await self._alone.tend(target, now_s)
        await self._sequences_lines.tend(target, now_s)

    async def close(self) -> None:
        """Ends every session."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        self._open.clear()
        await self._alone.close()
        await self._sequences_lines.close()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.tend(self._clock())

    # A request by itself

    async def _run_alone(self, call: Call) -> Ran:
        try:
            return await self._run_once(call)
        except EpisodeLostError:
            # The serving process was started again meanwhile. Nothing of these episodes was there but this act.
            return await self._run_once(call)

    async def _run_once(self, call: Call) -> Ran:
        line = await self._alone.to(self._target())
        line.users += 1
        try:
            group = await line.take(call.seeds)
            try:
                return await _act(group, call, starts=True)
            finally:
                line.put_back(group, self._clock())
        except EpisodeLostError:
            await self._alone.drop(line)
            raise
        except PillionError:
            if line.is_retired:
                # Another request found that the session is over, and closed it under this one.
                raise EpisodeLostError("the session was closed meanwhile") from None
            raise
        finally:
            line.users -= 1

    # A step of a sequence

    async def _step(self, call: Call) -> Ran:
        sequence, goes = await self._begin(call) if call.starts else (await self._next_turn(call.sequence), None)
        try:
            if goes is not None:
                await self._end(*goes)
            self._check(sequence, call)
            ran = await self._act_in(sequence, call)
            sequence.digest = ran.row_digests[0]
            if call.ends:
                await self._finish(call.sequence, sequence)
            return ran
        finally:
            sequence.turn.release()

    async def _next_turn(self, name: SequenceId) -> _Sequence:
        """The open sequence of that name, as soon as its turn is the caller's."""
        sequence = self._open.get(name)
        if sequence is None:
            raise _not_open(name)
        await sequence.turn.acquire()
        return sequence

    def _check(self, sequence: _Sequence, call: Call) -> None:
        if sequence.is_over:
            raise _not_open(call.sequence)
        if sequence.group.rows != len(call.seeds):
            raise bad_request(
                f"sequence {call.sequence!r}: expected {sequence.group.rows} rows, as it began, got {len(call.seeds)}"
            )
        if sequence.digest and call.digest not in ("", sequence.digest):
            raise KServeError(HTTPStatus.NOT_FOUND, f"sequence {call.sequence!r}: another version answers it")

    async def _act_in(self, sequence: _Sequence, call: Call) -> Ran:
        self._touch(call.sequence, sequence)
        try:
            return await _act(sequence.group, call, starts=False)
        except (EpisodeLostError, KServeError):
            await self._finish(call.sequence, sequence)
            raise
        except RefusedError as error:
            if error.code == ErrorCode.VERSION_GONE:
                await self._finish(call.sequence, sequence)
            raise
        finally:
            sequence.used_s = self._clock()

    async def _begin(self, call: Call) -> tuple[_Sequence, tuple[SequenceId, _Sequence] | None]:
        """A new sequence, its turn the caller's, and the one that must be ended for it, if any: of its name, or one too many."""
        line = await self._sequences_lines.to(self._target())
        line.users += 1
        try:
            group = await line.begin(call.seeds)
        except BaseException:
            line.users -= 1
            raise
        sequence = _Sequence(line, group, self._clock())
        # Nobody else knows of it: this does not wait.
        await sequence.turn.acquire()
        before = self._open.pop(call.sequence, None)
        self._open[call.sequence] = sequence
        if before is not None:
            return sequence, (call.sequence, before)
        if len(self._open) > KSERVE_SEQUENCES_MAX:
            oldest = next(iter(self._open))
            return sequence, (oldest, self._open.pop(oldest))
        return sequence, None

    def _touch(self, name: SequenceId, sequence: _Sequence) -> None:
        """Notes that it was used last."""
        if self._open.get(name) is sequence:
            self._open[name] = self._open.pop(name)

    async def _end(self, name: SequenceId, sequence: _Sequence) -> None:
        """Ends it when what runs in it was answered."""
        async with sequence.turn:
            await self._finish(name, sequence)

    async def _finish(self, name: SequenceId, sequence: _Sequence) -> None:
        """Ends it, for whoever has its turn; harmless to repeat."""
        if self._open.get(name) is sequence:
            del self._open[name]
        if not sequence.is_over:
            sequence.is_over = True
            await sequence.line.end(sequence.group)
            sequence.line.users -= 1


async def _act(group: aio.EpisodeGroup, call: Call, *, starts: bool) -> Ran:
    """One act of every row; where `starts`, each begins a new episode with its seed."""
    mask = np.ones(group.rows, dtype=bool) if starts else None
    await group.act(call.observation, mask, call.seeds if starts else None, call.deterministic, call.budget_us)
    ran = Ran(group.last.outputs, group.last.row_digests)
    if call.digest and set(ran.row_digests) != {call.digest}:
        raise KServeError(HTTPStatus.NOT_FOUND, "another version answers this seed")
    return ran


def _not_open(name: SequenceId) -> KServeError:
    return bad_request(
        f"sequence {name!r}: it is not open (never begun, ended, unused for {KSERVE_SEQUENCE_IDLE_S:g} s, or one of too "
        "many): begin it with sequence_start"
    )


def _told(error: PillionError) -> KServeError:
    """What went wrong on the data path, with its HTTP status."""
    match error:
        case RefusedError():
            known = error.code in STATUSES
            status = STATUSES[ErrorCode(error.code)] if known else HTTPStatus.INTERNAL_SERVER_ERROR
        case InvalidObservationError():
            status = HTTPStatus.BAD_REQUEST
        case EpisodeLostError():
            status = HTTPStatus.GONE
        case RequestTimeoutError():
            status = HTTPStatus.GATEWAY_TIMEOUT
        case _:
            status = HTTPStatus.SERVICE_UNAVAILABLE
    return KServeError(status, str(error))
