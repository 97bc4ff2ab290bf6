"""The serving loop: does what sessions and scheduler decide. Hot path.

transport → sessions → scheduler → engine → sessions → transport, and never back.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any, Final

from pilliond import metrics_page as page_cells
from pilliond.batch_runner import BatchRunner
from pilliond.episodes import NEVER_NS
from pilliond.limits import HEARTBEAT_MS, MESSAGES_PER_WAKE_MAX, TICK_MS
from pilliond.metrics_page import MetricsPage
from pilliond.scheduler import Scheduler
from pilliond.sessions import Sessions
from pilliond.transport import Incoming, Peer, Reply, Sent, Transport

_NANOSECONDS: Final = 1_000_000_000
_TICKS_PER_SWEEP: Final = max(1, HEARTBEAT_MS // 2 // TICK_MS)


class ServingLoop:
    """Joins the parts to one event loop. Owns its timers and the reader it registers; not the parts."""

    def __init__(
        self,
        transports: list[Transport],
        sessions: Sessions,
        scheduler: Scheduler,
        page: MetricsPage,
        clock: Callable[[], int],
        report: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._transports = transports
        self._transport_of = {transport.peer_type: transport for transport in transports}
        self._sessions = sessions
        self._scheduler = scheduler
        self._page = page
        self._clock = clock
        self._report = report
        self._runner = BatchRunner(sessions, page, clock, report)
        self._loop = asyncio.get_running_loop()
        self._replies: list[Reply] = []
        self._sent_to: set[Transport] = set()
        self._wait_timer: asyncio.TimerHandle | None = None
        self._tick_timer: asyncio.TimerHandle | None = None
        self._tick_due_ns = 0
        self._ticks = 0
        self._gc_started_ns = 0

    def start(self) -> None:
        """Begins to serve."""
        gc.callbacks.append(self._on_gc)
        self._tick_due_ns = self._clock()
        self._tick()
        for transport in self._transports:
            self._loop.add_reader(transport.fileno(), self._on_readable, transport)
            self._on_readable(transport)

    def drain(self, reason: str) -> None:
        """Answers everything that has arrived, says goodbye to every session, and refuses what comes meanwhile."""
        self._receive_all()
        while (batch := self._scheduler.take(self._clock(), 0, drain=True)) is not None:
            self._runner.run(batch, self._replies)
            self._runner.count()
        self._sessions.draining = True
        self._sessions.say_goodbye(reason, self._replies)
        self._send_replies()
        self._receive_all()

    def stop(self) -> None:
        """Lets go of the event loop."""
        for transport in self._transports:
            self._loop.remove_reader(transport.fileno())
        for timer in (self._wait_timer, self._tick_timer):
            if timer is not None:
                timer.cancel()
        gc.callbacks.remove(self._on_gc)

    # Reading

    def _on_readable(self, transport: Transport) -> None:
        taken = 0
        while taken < MESSAGES_PER_WAKE_MAX:
            taken += self._receive_burst(transport)
            self._run_batches()
            if not transport.readable():
                self._look_at_others(transport)
                self._arm_wait_timer()
                return
        self._loop.call_soon(self._on_readable, transport)

    def _run_batches(self) -> None:
        """Runs what waits, batch after batch, until nothing does or it is better to wait."""
        while (batch := self._scheduler.take(self._clock(), self._sessions.lock_step_live)) is not None:
            self._runner.run(batch, self._replies)
            self._send_replies()
            self._runner.count()

    def _look_at_others(self, transport: Transport) -> None:
        """A send may swallow the edge of a descriptor: whoever was sent to is looked at before the loop sleeps."""
        for other in self._sent_to:
            if other is not transport and other.readable():
                self._loop.call_soon(self._on_readable, other)
        self._sent_to.clear()

    def _receive_burst(self, transport: Transport) -> int:
        """Takes messages until there is none, or the batch has no reason to wait for more; gives their number."""
        sessions = self._sessions
        scheduler = self._scheduler
        taken = 0
        while taken < MESSAGES_PER_WAKE_MAX:
            message = transport.receive()
            if message is None:
                self._forget_gone(transport)
                break
            taken += 1
            self._take(message)
            if scheduler.closed(sessions.lock_step_live) is not None:
                break
        if self._replies:
            self._send_replies()
        return taken

    def _receive_all(self) -> None:
        for transport in self._transports:
            while (message := transport.receive()) is not None:
                self._take(message)
                self._send_replies()

    def _forget_gone(self, transport: Transport) -> None:
        for peer in transport.gone():
            self._sessions.drop_peer(peer)

    def _take(self, message: Incoming) -> None:
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
            self._wait_timer = self._loop.call_later(delay_s, self._on_readable, self._transports[0])

    # Writing

    def _send_replies(self) -> None:
        replies = self._replies
        for reply in replies:
            peer = reply[0]
            transport = self._transport_of[type(peer)]
            self._sent_to.add(transport)
            sent = transport.send(reply)
            if sent is not Sent.OK:
                self._drop(peer, sent)
        replies.clear()

    def _drop(self, peer: Peer, why: Sent) -> None:
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
            for transport in self._transports:
                if transport.readable():
                    self._loop.call_soon(self._on_readable, transport)
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
