"""The data path as `/v2` uses it: rows in, outputs out, as one more client of the serving process.

A request without a sequence id is one episode for each of its rows: begun, acted once, ended. A request with one is a
step of an episode for each of its rows, which lasts from the request that starts the sequence to the one that ends it.
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
from pilliond.admin.kserve.connection import Connection, ConnectionPool, Target
from pilliond.admin.kserve.errors import STATUSES, KServeError, bad_request
from pilliond.limits import KSERVE_SEQUENCE_IDLE_S, KSERVE_SEQUENCES_MAX

Array = NDArray[Any]
SequenceId = int | str

_TEND_S: Final = 1.0


class Call(msgspec.Struct, frozen=True):
    """One inference: `observation` holds arrays of shape [rows, …] in the spec's dtypes, `seeds` one seed for each row."""

    observation: dict[str, Array]
    seeds: list[int]
    deterministic: bool = True
    budget_us: int = 0
    digest: str = ""
    """`sha256:…` of the version that must run it; empty: any."""
    sequence: SequenceId = 0
    starts: bool = False
    ends: bool = False


class Result(msgspec.Struct, frozen=True):
    """The outputs by name, and the digest of the weights that ran each row."""

    outputs: dict[str, Array]
    row_digests: list[str]


class _Sequence:
    """One open sequence. Rule: its requests run one at a time, in the order of their arrival."""

    def __init__(self, connection: Connection, group: aio.EpisodeGroup, used_s: float) -> None:
        self.connection = connection
        self.group = group
        self.used_s = used_s
        self.lock = asyncio.Lock()
        self.digest = ""
        """Of the version that answers it; empty before the first answer."""
        self.is_over = False


class DataPath:
    """Owns its sessions with the serving process, opened at first use; `close` ends them. For one event loop.

    `target` returns what to connect to now, or raises `KServeError` if the daemon is not ready. `run` raises
    `KServeError` for every error on the data path.
    """

    def __init__(self, target: Callable[[], Target], clock: Callable[[], float] = time.monotonic) -> None:
        self._target = target
        self._clock = clock
        self._single_pool = ConnectionPool()
        self._sequence_pool = ConnectionPool()
        self._open: dict[SequenceId, _Sequence] = {}
        """The sequences by id, the one that was unused for longest first."""
        self._tending: asyncio.Task[None] | None = None

    @property
    def sequences(self) -> list[SequenceId]:
        """The ids of the open sequences, the one that was unused for longest first."""
        return list(self._open)

    def digest_of(self, sequence: SequenceId) -> str:
        """Returns `sha256:…` of the version that answers a sequence; empty if it is not open, or has no answer yet."""
        found = self._open.get(sequence)
        return "" if found is None else found.digest

    async def run(self, call: Call) -> Result:
        """Runs an inference; raises `KServeError`."""
        if self._tending is None or self._tending.done():
            self._tending = asyncio.create_task(self._tend_forever())
        try:
            if call.sequence:
                return await self._step(call)
            return await self._run_single(call)
        except PillionError as error:
            raise _kserve_error(error) from None

    async def tend(self, now_s: float) -> None:
        """Ends what was unused for too long, and what belongs to an old version or process."""
        for name, sequence in list(self._open.items()):
            if sequence.used_s + KSERVE_SEQUENCE_IDLE_S <= now_s and not sequence.lock.locked():
                await self._end(name, sequence)
        try:
            target = self._target()
        except KServeError:
            target = None
        await self._single_pool.end_unused(target, now_s)
        await self._sequence_pool.end_unused(target, now_s)

    async def close(self) -> None:
        """Ends every session."""
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.wait([self._tending])
        self._open.clear()
        await self._single_pool.close()
        await self._sequence_pool.close()

    async def _tend_forever(self) -> None:
        while True:
            await asyncio.sleep(_TEND_S)
            await self.tend(self._clock())

    # A request without a sequence

    async def _run_single(self, call: Call) -> Result:
        try:
            return await self._run_once(call)
        except EpisodeLostError:
            # The serving process restarted. These episodes hold nothing but this act, so it can run again.
            return await self._run_once(call)

    async def _run_once(self, call: Call) -> Result:
        connection = await self._single_pool.connect(self._target())
        connection.users += 1
        try:
            group = await connection.take(call.seeds)
            try:
                return await _act(group, call, starts=True)
            finally:
                connection.put_back(group, self._clock())
        except EpisodeLostError:
            await self._single_pool.drop(connection)
            raise
        except PillionError:
            if connection.is_retired:
                # Another request found the session ended, and closed the connection that this request used.
                raise EpisodeLostError("the session was closed meanwhile") from None
            raise
        finally:
            connection.users -= 1

    # A step of a sequence

    async def _step(self, call: Call) -> Result:
        sequence, replaced = await self._begin(call) if call.starts else (await self._acquire(call.sequence), None)
        try:
            if replaced is not None:
                await self._end(*replaced)
            self._check(sequence, call)
            result = await self._act_in(sequence, call)
            sequence.digest = result.row_digests[0]
            if call.ends:
                await self._finish(call.sequence, sequence)
            return result
        finally:
            sequence.lock.release()

    async def _acquire(self, name: SequenceId) -> _Sequence:
        """Returns an open sequence once the caller holds its lock."""
        sequence = self._open.get(name)
        if sequence is None:
            raise _not_open(name)
        await sequence.lock.acquire()
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

    async def _act_in(self, sequence: _Sequence, call: Call) -> Result:
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
        """Begins a sequence and acquires its lock. Also returns the sequence that it replaces: of the same id, or one too many."""
        connection = await self._sequence_pool.connect(self._target())
        connection.users += 1
        try:
            group = await connection.begin(call.seeds)
        except BaseException:
            connection.users -= 1
            raise
        sequence = _Sequence(connection, group, self._clock())
        # No other request can hold the lock of a new sequence: this does not wait.
        await sequence.lock.acquire()
        before = self._open.pop(call.sequence, None)
        self._open[call.sequence] = sequence
        if before is not None:
            return sequence, (call.sequence, before)
        if len(self._open) > KSERVE_SEQUENCES_MAX:
            oldest = next(iter(self._open))
            return sequence, (oldest, self._open.pop(oldest))
        return sequence, None

    def _touch(self, name: SequenceId, sequence: _Sequence) -> None:
        """Moves it behind the others: it was used last."""
        if self._open.get(name) is sequence:
            self._open[name] = self._open.pop(name)

    async def _end(self, name: SequenceId, sequence: _Sequence) -> None:
        """Ends it after its running requests."""
        async with sequence.lock:
            await self._finish(name, sequence)

    async def _finish(self, name: SequenceId, sequence: _Sequence) -> None:
        """Ends it; the caller holds its lock. Safe to repeat."""
        if self._open.get(name) is sequence:
            del self._open[name]
        if not sequence.is_over:
            sequence.is_over = True
            await sequence.connection.end(sequence.group)
            sequence.connection.users -= 1


async def _act(group: aio.EpisodeGroup, call: Call, *, starts: bool) -> Result:
    """Runs one act of every row; with `starts`, each row begins a new episode with its seed."""
    mask = np.ones(group.rows, dtype=bool) if starts else None
    await group.act(call.observation, mask, call.seeds if starts else None, call.deterministic, call.budget_us)
    result = Result(group.last.outputs, group.last.row_digests)
    if call.digest and set(result.row_digests) != {call.digest}:
        raise KServeError(HTTPStatus.NOT_FOUND, "another version answers this seed")
    return result


def _not_open(name: SequenceId) -> KServeError:
    return bad_request(
        f"sequence {name!r} is not open: it never began, ended, was unused for {KSERVE_SEQUENCE_IDLE_S:g} s, or was one of "
        "too many; begin it with sequence_start"
    )


def _kserve_error(error: PillionError) -> KServeError:
    """Returns an error of the data path with its HTTP status."""
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
