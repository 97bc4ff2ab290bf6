"""The serving loop: does what sessions and scheduler decide. Hot path.

transport → sessions → scheduler → engine → sessions → transport, and never back.
"""

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from pillion_protocol import Action, ErrorCode, RemoteProtocolError, encode
from pilliond import metrics_page as page_cells
from pilliond.engine import EngineError
from pilliond.episodes import NEVER_NS, EpisodeGroup, Frame
from pilliond.limits import HEARTBEAT_MS, MESSAGES_PER_WAKE_MAX, TICK_MS
from pilliond.metrics_page import MetricsPage
from pilliond.scheduler import Batch, Scheduler
from pilliond.sessions import Reply, Sessions
from pilliond.zmq_transport import Sent, ZmqTransport

_NANOSECONDS: Final = 1_000_000_000
_TICKS_PER_SWEEP: Final = max(1, HEARTBEAT_MS // 2 // TICK_MS)

_TOO_LATE = RemoteProtocolError(ErrorCode.DEADLINE_EXCEEDED, "the budget was spent before the engine was free")
_ENGINE_FAILED = RemoteProtocolError(ErrorCode.INTERNAL, "the engine failed to run this batch")


class ServingLoop:
    """Joins the parts to one event loop. Owns its timers and the reader it registers; not the parts."""

    def __init__(
        self,
        transport: ZmqTransport,
        sessions: Sessions,
        scheduler: Scheduler,
        page: MetricsPage,
        clock: Callable[[], int],
        report: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._transport = transport
        self._sessions = sessions
        self._scheduler = scheduler
        self._page = page
        self._clock = clock
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._replies: list[Reply] = []
        self._wait_timer: asyncio.TimerHandle | None = None
        self._tick_timer: asyncio.TimerHandle | None = None
        self._tick_due_ns = 0
        self._ticks = 0
        self._gc_started_ns = 0

    def start(self) -> None:
        """Begins to serve."""
        gc.callbacks.append(self._on_gc)
        self._loop.add_reader(self._transport.fileno(), self._on_readable)
        self._tick_due_ns = self._clock()
        self._tick()
        self._on_readable()

    def drain(self, reason: str) -> None:
        """Answers everything that has arrived, takes nothing more, and says goodbye to every session."""
        self._receive_all()
        self._sessions.draining = True
        while (batch := self._scheduler.take(self._clock(), 0, drain=True)) is not None:
            self._run(batch)
        self._sessions.say_goodbye(reason, self._replies)
        self._send_replies()

    def stop(self) -> None:
        """Lets go of the event loop."""
        self._loop.remove_reader(self._transport.fileno())
        for timer in (self._wait_timer, self._tick_timer):
            if timer is not None:
                timer.cancel()
        gc.callbacks.remove(self._on_gc)

    # Reading

    def _on_readable(self) -> None:
        taken = 0
        while taken < MESSAGES_PER_WAKE_MAX:
            taken += self._receive_burst()
            batch = self._scheduler.take(self._clock(), self._sessions.lock_step_live)
            if batch is not None:
                self._run(batch)
            if not self._transport.readable():
                self._arm_wait_timer()
                return
        self._loop.call_soon(self._on_readable)

    def _receive_burst(self) -> int:
        """Takes messages until there is none, or the batch has no reason to wait for more; gives their number."""
        sessions = self._sessions
        scheduler = self._scheduler
        taken = 0
        while taken < MESSAGES_PER_WAKE_MAX:
            message = self._transport.receive()
            if message is None:
                break
            taken += 1
            self._take(message)
            if scheduler.closed(sessions.lock_step_live) is not None:
                break
        if self._replies:
            self._send_replies()
        return taken

    def _receive_all(self) -> None:
        while (message := self._transport.receive()) is not None:
            self._take(message)
            self._send_replies()

    def _take(self, message: list[Frame]) -> None:
        now_ns = self._clock()
        group = self._sessions.receive(message, now_ns, self._replies)
        if group is not None:
            group.queued_ns = self._clock()
            self._scheduler.add(group, group.queued_ns)

    def _arm_wait_timer(self) -> None:
        if self._wait_timer is not None:
            self._wait_timer.cancel()
            self._wait_timer = None
        deadline_ns = self._scheduler.deadline_ns()
        if deadline_ns != NEVER_NS:
            delay_s = max(0, deadline_ns - self._clock()) / _NANOSECONDS
            self._wait_timer = self._loop.call_later(delay_s, self._on_readable)

    # Running

    def _run(self, batch: Batch) -> None:
        for group in batch.expired:
            self._answer_late(group)
        groups = batch.groups
        if groups:
            rows = self._gather(groups)
            if not self._finite(groups, rows):
                groups = self._without_poisoned(groups)
                rows = self._gather(groups)
            if groups:
                self._run_groups(groups, rows, batch.close)
        self._send_replies()

    def _gather(self, groups: list[EpisodeGroup]) -> int:
        """Writes every act's tensors into the batch buffer, once; gives the number of rows."""
        if not groups:
            return 0
        for index, view in enumerate(groups[0].version.engine.input_views):
            offset = 0
            for group in groups:
                tensor = group.tensors[index]
                end = offset + len(tensor)
                view[offset:end] = tensor
                offset = end
        return sum(group.rows for group in groups)

    def _finite(self, groups: list[EpisodeGroup], rows: int) -> bool:
        for flat, row_elements in groups[0].version.finite_inputs:
            values = flat[: rows * row_elements]
            # One pass and no array made: the sum of squares of finite numbers is finite, or overflows, which is
            # looked into.
            if not math.isfinite(np.dot(values, values)) and not np.isfinite(values).all():
                return False
        return True

    def _without_poisoned(self, groups: list[EpisodeGroup]) -> list[EpisodeGroup]:
        """Answers the acts with a NaN or an infinity in them, and gives the others."""
        version = groups[0].version
        sound = []
        first = 0
        for group in groups:
            bad = [
                (tensor.name, first_bad_row(array, first, group.rows))
                for tensor, array in zip(version.spec.observation, version.engine.inputs, strict=True)
                if tensor.finite
            ]
            found = [(name, row) for name, row in bad if row is not None]
            first += group.rows
            if found:
                self._sessions.answer_error(group, _non_finite(*found[0]), self._replies)
            else:
                sound.append(group)
        return sound

    def _run_groups(self, groups: list[EpisodeGroup], rows: int, close: int) -> None:
        version = groups[0].version
        dispatched_ns = self._clock()
        try:
            version.engine.run(rows)
        except EngineError as error:
            for group in groups:
                self._sessions.answer_error(group, _ENGINE_FAILED, self._replies)
            self._report("engine_failed", {"error": str(error), "rows": rows})
            return
        is_sampled = False
        for group in groups:
            if group.starting:
                group.apply_starts()
            if not group.deterministic:
                is_sampled = True
        if is_sampled:
            _sample(groups)
        ran_ns = self._clock()
        outputs = version.output_views
        first = 0
        for group in groups:
            last = first + group.rows
            tensors: list[Frame] = [bytes(view[first * size : last * size]) for view, size in outputs]
            self._answer(group, tensors, dispatched_ns, ran_ns, rows, close)
            first = last
        self._count_batch(rows, close, ran_ns - dispatched_ns)

    def _answer_late(self, group: EpisodeGroup) -> None:
        """Answers an act that is not run any more with what its session declared."""
        fallback = group.session.fallback
        tensors = group.version.fallback_tensors(fallback, group.rows, group.last_reply[1:])
        if tensors is None:
            self._sessions.answer_error(group, _TOO_LATE, self._replies)
            return
        now_ns = self._clock()
        self._reply(group, tensors, now_ns, now_ns, 0, 0, fallback)
        self._page.outcome("fallback")

    def _answer(
        self, group: EpisodeGroup, tensors: list[Frame], dispatched_ns: int, ran_ns: int, rows: int, close: int
    ) -> None:
        group.acts += 1
        self._reply(group, tensors, dispatched_ns, ran_ns, rows, close, "")
        page = self._page
        page.cells[page_cells.REQUESTS] += 1
        page.observe(page_cells.QUEUE_WAIT, dispatched_ns - group.queued_ns)
        page.observe(page_cells.REQUEST_DURATION, ran_ns - group.received_ns)

    def _reply(
        self,
        group: EpisodeGroup,
        tensors: list[Frame],
        dispatched_ns: int,
        ran_ns: int,
        rows: int,
        close: int,
        fallback: str,
    ) -> None:
        received_ns = group.received_ns
        session = group.session
        head = encode(
            Action(
                session.id,
                self._sessions.epoch,
                group.sequence,
                group.id,
                group.rows,
                group.version.digest,
                received_ns,
                group.queued_ns - received_ns,
                dispatched_ns - received_ns,
                ran_ns - received_ns,
                rows,
                close,
                fallback,
            )
        )
        group.waiting = False
        group.tensors = []
        group.last_sequence = group.sequence
        group.last_reply = [head, *tensors]
        self._replies.append([session.peer, head, *tensors])

    def _count_batch(self, rows: int, close: int, duration_ns: int) -> None:
        page = self._page
        cells = page.cells
        cells[page_cells.INFERENCES] += rows
        cells[page_cells.EXECUTIONS] += 1
        cells[page_cells.BATCH_CLOSES + close] += 1
        page.observe(page_cells.BATCH_ROWS, rows)
        page.observe(page_cells.INFERENCE_DURATION, duration_ns)

    # Writing

    def _send_replies(self) -> None:
        replies = self._replies
        for reply in replies:
            sent = self._transport.send(reply)
            if sent is not Sent.OK:
                self._drop(bytes(reply[0]), sent)
        replies.clear()

    def _drop(self, peer: bytes, why: Sent) -> None:
        dropped = self._sessions.drop_peer(peer)
        if dropped:
            self._report("peer_dropped", {"reason": why.value, "sessions": dropped})

    # Looking after itself

    def _tick(self) -> None:
        now_ns = self._clock()
        cells = self._page.cells
        lag_ns = max(0, now_ns - self._tick_due_ns)
        cells[page_cells.LOOP_LAG_NS] = lag_ns
        cells[page_cells.LOOP_LAG_NS_MAX] = max(cells[page_cells.LOOP_LAG_NS_MAX], lag_ns)
        cells[page_cells.TICK_AT_NS] = now_ns
        cells[page_cells.SESSIONS] = len(self._sessions)
        cells[page_cells.EPISODES] = self._sessions.episodes_live
        cells[page_cells.QUEUE_ROWS] = self._scheduler.rows_waiting
        self._ticks += 1
        if self._ticks % _TICKS_PER_SWEEP == 0:
            self._sessions.sweep(now_ns, self._replies)
            self._send_replies()
            if self._transport.readable():
                self._loop.call_soon(self._on_readable)
        self._tick_due_ns = self._clock() + TICK_MS * 1_000_000
        self._tick_timer = self._loop.call_later(TICK_MS / 1_000, self._tick)

    def _on_gc(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._gc_started_ns = self._clock()
            return
        pause_ns = self._clock() - self._gc_started_ns
        cells = self._page.cells
        cells[page_cells.GC_PAUSES] += 1
        cells[page_cells.GC_PAUSE_NS] += pause_ns
        cells[page_cells.GC_PAUSE_NS_MAX] = max(cells[page_cells.GC_PAUSE_NS_MAX], pause_ns)


def first_bad_row(array: np.ndarray[Any, Any], first: int, rows: int) -> int | None:
    """The first of `rows` rows from `first` on that holds a NaN or an infinity, counted from `first`."""
    finite = np.isfinite(array[first : first + rows]).reshape(rows, -1).all(axis=1)
    return None if finite.all() else int(np.argmin(finite))


def _non_finite(name: str, row: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        ErrorCode.NON_FINITE,
        f"observation {name!r} is not finite",
        "finite numbers",
        f"a NaN or an infinity in row {row}",
    )


def _sample(groups: list[EpisodeGroup]) -> None:
    """Draws the actions of those acts that asked for it."""
    chosen = []
    first = 0
    for group in groups:
        if not group.deterministic:
            chosen.append((group, np.arange(first, first + group.rows)))
        first += group.rows
    groups[0].version.resample(
        np.concatenate([rows for _, rows in chosen]),
        np.concatenate([group.seeds for group, _ in chosen]),
        np.concatenate([group.steps() for group, _ in chosen]),
    )
