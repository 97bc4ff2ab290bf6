"""The operations of a policy: one at a time, each with a number, each ended once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from itertools import count
from typing import NamedTuple

from structlog.typing import FilteringBoundLogger

from pillion_artifacts import ArtifactError, Resolved
from pilliond.errors import BusyError, NotReadyError, SwitchError
from pilliond.limits import OPERATIONS_KEPT_MAX
from pilliond.rollout.operation import Kind, Operation, Outcome, Step, begin_operation
from pilliond.supervision.version_table import VersionTable

Work = Callable[[Operation], Coroutine[object, None, None]]
"""What an operation does. It raises `SwitchError` or `ArtifactError` if it fails."""


class _Running(NamedTuple):
    operation: Operation
    task: asyncio.Task[None]


class Operations:
    """Begins, runs, cancels and remembers operations. Owns the task of the one that runs.

    `on_failure` is called with an operation that failed, and whether that is its version's fault: it is not if the switch
    itself failed, or if there was no serving process to switch. `numbers` numbers the operations of all policies.
    """

    def __init__(
        self,
        version_table: VersionTable,
        log: FilteringBoundLogger,
        on_failure: Callable[[Operation, bool], None],
        numbers: Iterator[int] | None = None,
    ) -> None:
        self.revision = 0
        """How often anything changed; for `ETag`."""
        self.switches: dict[Outcome, int] = dict.fromkeys((Outcome.DONE, Outcome.FAILED, Outcome.CANCELLED), 0)
        """Switches and rollbacks by their outcome."""
        self._version_table = version_table
        self._log = log
        self._on_failure = on_failure
        self._numbers = count(1) if numbers is None else numbers
        self._kept: deque[Operation] = deque(maxlen=OPERATIONS_KEPT_MAX)
        self._running: _Running | None = None
        self._cancel_reason: str | None = None
        """Why the operation that runs was cancelled; None while nobody cancelled it."""

    @property
    def current(self) -> Operation | None:
        """The operation that runs."""
        return None if self._running is None else self._running.operation

    @property
    def last(self) -> Operation | None:
        """The operation that runs, else the one that ran last."""
        return self._kept[-1] if self._kept else None

    def find(self, number: int) -> Operation | None:
        """Returns an operation by its number; the last `OPERATIONS_KEPT_MAX` are kept."""
        return next((operation for operation in self._kept if operation.number == number), None)

    def count_change(self) -> None:
        """Counts a change that is no operation."""
        self.revision += 1

    def check_free(self) -> None:
        """Raises `BusyError` while an operation runs."""
        if self.current is not None:
            raise BusyError(f"{self.current.version} is under way ({self.current.step}): wait for it, or cancel it")

    def begin(self, kind: Kind, target: Resolved, by: str, reason: str, work: Work) -> Operation:
        """Begins an operation that does `work`; raises `BusyError`."""
        self.check_free()
        operation = begin_operation(next(self._numbers), kind, target, self._version_table.stable.version, by, reason)
        self._kept.append(operation)
        self._cancel_reason = None
        self.revision += 1
        self._log.info(f"{kind}_begun", **operation.log_fields())
        task = asyncio.create_task(work(operation))
        task.add_done_callback(partial(self._end, operation))
        self._running = _Running(operation, task)
        return operation

    async def run(self, kind: Kind, target: Resolved, by: str, reason: str, work: Work) -> Operation:
        """Begins an operation and waits until it has ended; raises `BusyError`."""
        operation = self.begin(kind, target, by, reason, work)
        await self.wait()
        return operation

    async def wait(self) -> None:
        """Waits until the operation that runs now has ended."""
        if self._running is not None:
            await asyncio.wait([self._running.task])

    async def cancel(self, why: str) -> Operation | None:
        """Cancels the operation that runs and returns it; None if it cannot be cancelled, or ended otherwise first."""
        running = self._running
        if running is None:
            return None
        # The event loop runs a task's first step before this line returns. Work that never began would not clean up.
        await asyncio.sleep(0)
        operation = running.operation
        if running is not self._running or not operation.step.is_cancellable:
            return None
        if self._cancel_reason is None:
            self._cancel_reason = why
            running.task.cancel()
        await asyncio.wait([running.task])
        return operation if operation.outcome is Outcome.CANCELLED else None

    async def make_way(self, why: str) -> None:
        """Cancels the operation that runs now, or waits for its end if it cannot be cancelled."""
        running = self._running
        if await self.cancel(why) is None and self._running is running:
            await self.wait()

    async def close(self) -> None:
        """Ends the operation that runs, at whatever step it is."""
        await asyncio.sleep(0)
        if self._running is not None:
            self._running.task.cancel()
            await self.wait()

    def _end(self, operation: Operation, task: asyncio.Task[None]) -> None:
        """Notes how the operation ended. Called once, as soon as its task is done."""
        self._running = None
        self.revision += 1
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            operation.error = self._cancel_reason or "it was cancelled"
            operation.advance(Step.CANCELLED)
            self._log.warning(f"{operation.kind}_cancelled", **operation.log_fields())
        elif error is None:
            operation.advance(Step.DONE)
            self._log.info(f"{operation.kind}_done", **operation.log_fields())
        else:
            self._fail(operation, error, task)
        if operation.kind in ("switch", "rollback"):
            self.switches[operation.outcome] += 1

    def _fail(self, operation: Operation, error: BaseException, task: asyncio.Task[None]) -> None:
        is_its_fault = operation.step is not Step.SWITCHING and not isinstance(error, NotReadyError)
        is_expected = isinstance(error, SwitchError | ArtifactError)
        operation.error = str(error) if is_expected else "a bug: see the log"
        operation.advance(Step.FAILED)
        if not is_expected:
            message = f"a bug in operation {operation.number}"
            task.get_loop().call_exception_handler({"message": message, "exception": error, "task": task})
            return
        self._on_failure(operation, is_its_fault)
        self._log.error(f"{operation.kind}_failed", **operation.log_fields())
