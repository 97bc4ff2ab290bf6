"""The serving loop: does what the sessions and the scheduler decide. Hot path.

One direction: transport → sessions → scheduler → batch runner → engine → reply → transport.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from pillion_protocol import BatchClose, RemoteProtocolError
from pillion_protocol.action_steps import NO_DEVICE_TIMES, DeviceTimes
from pilliond.core.episodes import EpisodeGroup
from pilliond.core.scheduler import Batch, Scheduler
from pilliond.core.served_policy import Tap
from pilliond.core.sessions import Sessions
from pilliond.engine.batch_memory import BatchMemory
from pilliond.engine.interface import Engine
from pilliond.ipc import metrics_page as page_cells
from pilliond.ipc.control_channel import LogEvent
from pilliond.ipc.metrics_page import MetricsPage
from pilliond.limits import (
    DRAIN_ENGINES_NS_MAX,
    EVENTS_MAX,
    HEARTBEAT_MS,
    MESSAGES_PER_POLL_MAX,
    ROUNDS_PER_BATCH_MAX,
    SAMPLES_MAX,
    TICK_MS,
    TRAFFIC_LINGER_MS,
)
from pilliond.linux.epoll import Events
from pilliond.linux.timerfd import DeadlineTimer, PeriodicTimer
from pilliond.serving.batch_runner import BatchRunner
from pilliond.transport.interface import MessagePoller, Peer, Reply, Sent, Transport
from pilliond.transport.slots import SlotRegion
from pilliond.versions.loaded_version import Version

_DRAIN_POLL_S: Final = 0.05
_OK: Final = Sent.OK
_NOTHING: Final[Events] = []
_NANOSECONDS: Final = 1_000_000_000
_TICK_NS: Final = TICK_MS * 1_000_000
_LINGER_NS: Final = TRAFFIC_LINGER_MS * 1_000_000
_TICKS_PER_SWEEP: Final = max(1, HEARTBEAT_MS // 2 // TICK_MS)


class ServingLoop:
    """Puts the parts together, as a callback of the event loop that hosts it: uvloop.

    The host watches one descriptor, that of the epoll set with all data sockets and doorbells. When it is readable, the
    callback serves what is there and then *lingers*: it waits in the epoll set itself while there is traffic, because the
    way through the host costs as much as a step. Every `TRAFFIC_LINGER_MS` the host gets its turn. While there are sessions, the
    callback polls for `busy_poll_us` before it sleeps, and yields its core between two polls.
    """

    def __init__(
        self,
        poller: MessagePoller,
        transports: list[Transport],
        sessions: Sessions,
        scheduler: Scheduler,
        page: MetricsPage,
        clock: Callable[[], int],
        log_event: LogEvent,
        busy_poll_us: int = 0,
    ) -> None:
        self._poller = poller
        self._poll = poller.poll
        self._sources = poller.sources
        self._transports = transports
        self._edge_triggered = [transport for transport in transports if transport.is_edge_triggered]
        self._send_of = {transport.peer_type: transport.send for transport in transports}
        self._sessions = sessions
        self._scheduler = scheduler
        self._page = page
        self._clock = clock
        self._log_event = log_event
        self._busy_poll_ns = busy_poll_us * 1_000
        policies = list(sessions.policies.values())
        self._only_share = policies[0].share if len(policies) == 1 else None
        self._runner = BatchRunner(sessions, scheduler, page, clock, log_event, self._send_replies)
        self._in_flight = self._runner.in_flight
        self._wake_at: Callable[[int], None] = _no_timer
        self._tap: Tap | None = None
        self._replies: list[Reply] = []
        self._has_completed = False
        """Whether an engine outside the loop has completed a batch since this was looked at."""
        self._stop_reason: str | None = None
        self._now_ns = 0
        self._iteration_ns_max = 0
        self._stopped: asyncio.Future[str] | None = None
        self._linger: PeriodicTimer | None = None
        self._ticks = 0
        self._tick_due_ns = 0
        self._gc_started_ns = 0
        self.on_tick: Callable[[], None] = _nothing
        """Called on every tick."""

    async def run(self) -> str:
        """Serves until `stop` is called; returns the reason given there. Raises what a callback raises: that is a bug."""
        host = asyncio.get_running_loop()
        self._stopped = host.create_future()
        host.set_exception_handler(self._fail)
        gc.callbacks.append(self._on_gc)
        try:
            with PeriodicTimer(self._poller, _LINGER_NS) as self._linger, DeadlineTimer(self._poller) as deadline:
                self._wake_at = deadline.set
                host.add_reader(self._poller.descriptor, self._serve)
                self._tick_due_ns = self._clock()
                self._tick_on(host)
                # A message may have come before the host watched.
                host.call_soon(self._serve)
                try:
                    return await self._stopped
                finally:
                    host.remove_reader(self._poller.descriptor)
        finally:
            gc.callbacks.remove(self._on_gc)

    def stop(self, reason: str) -> None:
        """Makes `run` return after the current iteration."""
        self._stop_reason = reason
        if self._stopped is not None and not self._stopped.done():
            self._stopped.set_result(reason)

    def _fail(self, host: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # The host would log it and go on, with half a step done.
        self._stop_reason = "a bug"
        if self._stopped is not None and not self._stopped.done():
            self._stopped.set_exception(context.get("exception") or RuntimeError(context["message"]))

    def _tick_on(self, host: asyncio.AbstractEventLoop) -> None:
        """Ticks when it is time to, as a timer of the host."""
        self._tick_if_due()
        if self._busy_poll_ns and len(self._sessions):
            # Each tick begins a spell of polling, as a message does.
            self._now_ns = self._clock()
            host.call_soon(self._serve)
        host.call_later(max(0, self._tick_due_ns - self._clock()) / _NANOSECONDS, self._tick_on, host)

    def _tick_if_due(self) -> None:
        """Ticks, if the last one was `TICK_MS` ago. Aligned, however long a tick took."""
        if self._clock() >= self._tick_due_ns:
            self._tick()
            self._tick_due_ns += ((self._clock() - self._tick_due_ns) // _TICK_NS + 1) * _TICK_NS

    def _serve(self) -> None:
        """Serves while there is traffic. The host calls it when the epoll set is readable."""
        linger = self._linger
        assert linger is not None
        linger.start()
        is_busy = False
        ready = self._poll(0, EVENTS_MAX)
        while self._stop_reason is None:
            is_over = len(ready) == 1 and ready[0][0] == linger.descriptor
            if ready and not is_over:
                self.run_once(ready)
                is_busy = True
            # Where sources are always ready, the timer is read among them.
            if is_over or linger.has_expired:
                if is_busy or self._is_spinning():
                    # It is the host's turn, and then at once this one's again.
                    asyncio.get_running_loop().call_soon(self._serve)
                # The host's timers are late while its callbacks take long.
                self._tick_if_due()
                break
            ready = self._wait()
        linger.stop()

    def _is_spinning(self) -> bool:
        return bool(self._busy_poll_ns and len(self._sessions) and self._clock() - self._now_ns < self._busy_poll_ns)

    def set_tap(self, tap: Tap | None) -> None:
        """Copies every answered batch to `tap` from now on; None: to nothing."""
        self._tap = self._runner.tap = tap

    def send_cached(self, group: EpisodeGroup) -> None:
        """Sends the reply of an act that the result cache answered, and lets no other act wait for it."""
        self._scheduler.answered(group)
        self._send_replies()

    # Engines outside the loop

    def complete(self, memory: BatchMemory, message: str | None, times: DeviceTimes = NO_DEVICE_TIMES) -> None:
        """As `BatchRunner.complete`."""
        self._has_completed = True
        self._runner.complete(memory, message, self._replies, times)

    def lose(self, memories: Sequence[BatchMemory]) -> int:
        """As `BatchRunner.lose`."""
        return self._runner.lose(memories, self._replies)

    def take_convicted(self, version: Version) -> list[int]:
        """Returns the numbers of the sessions whose acts have ended a worker of a version since the last call."""
        return self._runner.convicted.pop(version, [])

    def refuse(self, version: Version, error: RemoteProtocolError) -> None:
        """Answers everything that waits for a version with an error."""
        self._runner.refuse_all(version, error, self._replies)

    def exercise(self, version: Version, engine: Engine, rows: int) -> bool:
        """As `BatchRunner.exercise`."""
        return self._runner.exercise(version, engine, rows)

    def drain(self, reason: str) -> None:
        """Answers everything that has arrived, says goodbye to every session, and refuses what arrives meanwhile."""
        self._receive_all()
        until_ns = self._clock() + DRAIN_ENGINES_NS_MAX
        while self._scheduler.active or self._runner.in_flight:
            self._run_due(drain=True)
            if self._clock() >= until_ns:
                break
            if self._scheduler.active or self._runner.in_flight:
                # Also the replacement of a lost worker arrives here.
                self._receive(self._poll(_DRAIN_POLL_S, EVENTS_MAX))
        self._sessions.draining = True
        self._sessions.say_goodbye(reason, self._replies)
        self._send_replies()
        self._receive_all()
        self._page.flush()

    def run_once(self, ready: Events) -> None:
        """Runs one iteration: receives messages, runs the batches that are due, and sends the replies."""
        scheduler = self._scheduler
        began_ns = self._clock()
        rounds = 0
        while ready and not self._receive(ready) and rounds < ROUNDS_PER_BATCH_MAX:
            ready = self._poll(0, EVENTS_MAX)
            rounds += 1
        if scheduler.active:
            self._run_due()
        self._now_ns = now_ns = self._clock()
        if now_ns - began_ns > self._iteration_ns_max:  # noqa: PLR1730 - a call less for each act
            self._iteration_ns_max = now_ns - began_ns
        if len(self._page.acts) >= SAMPLES_MAX:
            self._page.flush()

    # Waiting

    def _wait(self) -> Events:
        for transport in self._edge_triggered:
            if not transport.is_armed and (pending := transport.pending()):
                return pending
        if self._busy_poll_ns and len(self._sessions):
            ready = self._spin()
            if ready:
                return ready
        elif self._in_flight and (ready := self._poll_for_worker()):
            return ready
        if self._scheduler.active:
            self._wake_at(self._scheduler.deadline_ns())
        return self._poll(None, EVENTS_MAX)

    def _spin(self) -> Events:
        """Polls without sleeping and yields the core in between; returns no events if none arrived in time."""
        poll = self._poll
        clock = self._clock
        yield_core = os.sched_yield
        # It spins in many turns after one act: each counts its own time, and all end together.
        began_ns = now_ns = clock()
        until_ns = min(self._scheduler.deadline_ns(), self._now_ns + self._busy_poll_ns)
        while not (ready := poll(0, EVENTS_MAX)) and now_ns < until_ns:
            yield_core()
            now_ns = clock()
        self._page.cells[page_cells.SPUN_NS] += now_ns - began_ns
        return ready

    def _poll_for_worker(self) -> Events:
        """Polls while a quick batch may end any moment. It does not yield the core, as others might keep it for long."""
        until_ns = self._runner.poll_until_ns
        poll = self._poll
        clock = self._clock
        if clock() >= until_ns:
            return _NOTHING
        while not (ready := poll(0, EVENTS_MAX)):
            if clock() >= until_ns:
                self._runner.polled_in_vain()
                break
        return ready

    # Reading

    def _receive(self, ready: Events) -> bool:
        """Receives one message from each ready source, or several if only one is ready. Returns True once a batch can close."""
        sources = self._sources
        sessions = self._sessions
        scheduler = self._scheduler
        clock = self._clock
        replies = self._replies
        is_closed = False
        messages_max = MESSAGES_PER_POLL_MAX if len(ready) == 1 else 1
        # Where several policies could run, the scheduler decides which goes first. Where several sessions could join, it
        # would say no to each.
        share = self._only_share
        may_run_alone = len(ready) == 1 if share is None else share.lock_step_live <= 1
        for descriptor, _ in ready:
            source = sources.get(descriptor)
            left = messages_max
            while source is not None:
                message = source.receive()
                if message is None:
                    is_closed = self._after_no_message(ready)
                    break
                now_ns = clock()
                group = sessions.receive(message, now_ns, replies)
                if group is not None:
                    group.queued_ns = now_ns = clock()
                    if (group.budget_ns or group.version.out is not None) and self._refuses(group, now_ns):
                        pass
                    elif may_run_alone and scheduler.closes_alone(group, now_ns):
                        is_closed = True
                        self._runner.run([group], group.rows, BatchClose.ALL_SUBMITTED, replies)
                    else:
                        group.keep()
                        is_closed = scheduler.add(group, now_ns)
                left -= 1
                if is_closed or (left <= 0 and not source.bursts):
                    break
            if is_closed:
                break
        if replies:
            self._send_replies()
        return is_closed

    def _refuses(self, group: EpisodeGroup, now_ns: int) -> bool:
        """Answers an act that cannot be done in time, or whose version is out; returns whether it did."""
        out = group.version.out
        if out is None and not self._scheduler.is_hopeless(group, now_ns):
            return False
        if group.queue is not None:
            # The act that this one replaces is still queued.
            self._scheduler.remove(group)
        if out is not None:
            self._sessions.answer_error(group, out, self._replies)
        else:
            self._runner.answer_late(group, self._replies)
        return True

    def _after_no_message(self, ready: Events) -> bool:
        """Looks why a source has no message; returns whether to look no further now."""
        if not self._has_completed:
            self._forget_gone()
            return False
        self._has_completed = False
        # The replies of a batch are sent, and nothing else is there. Their receivers may share this CPU: sleep soon.
        return len(ready) == 1 and not self._scheduler.active

    def _receive_all(self) -> None:
        while ready := self._poll(0, EVENTS_MAX) or self._pending():
            self._receive(ready)

    def _pending(self) -> Events:
        return [event for transport in self._transports for event in transport.pending()]

    def _forget_gone(self) -> None:
        for transport in self._transports:
            for peer in transport.gone():
                self._sessions.drop_peer(peer)

    # Running and writing

    def _run_due(self, *, drain: bool = False) -> None:
        """Answers the acts that are too late, and runs the batches that are due."""
        scheduler = self._scheduler
        now_ns = self._clock()
        for group in scheduler.expire(now_ns):
            self._runner.answer_late(group, self._replies)
        if self._replies:
            self._send_replies()
        while scheduler.active and (batch := scheduler.take(now_ns, drain=drain)) is not None:
            self._run(batch)
            self._send_replies()
            now_ns = self._clock()

    def _run(self, batch: Batch) -> None:
        for group in batch.expired:
            self._runner.answer_late(group, self._replies)
        if batch.groups:
            self._runner.run(batch.groups, batch.rows, batch.close, self._replies)

    def _send_replies(self) -> None:
        replies = self._replies
        send_of = self._send_of
        for reply in replies:
            peer = reply[0]
            sent = send_of[type(peer)](reply)
            if sent is not _OK:
                assert not isinstance(peer, memoryview | SlotRegion)
                self._drop(peer, sent)
        replies.clear()
        if self._tap is not None:
            self._tap.pay()

    def _drop(self, peer: Peer, why: Sent) -> None:
        dropped = self._sessions.drop_peer(peer)
        if dropped:
            self._log_event("peer_dropped", {"reason": why.value, "sessions": dropped})

    # Looking after itself

    def _tick(self) -> None:
        page = self._page
        cells = page.cells
        cells[page_cells.LOOP_LAG_NS] = self._iteration_ns_max
        cells[page_cells.LOOP_LAG_NS_MAX] = max(cells[page_cells.LOOP_LAG_NS_MAX], self._iteration_ns_max)
        cells[page_cells.SESSIONS] = len(self._sessions)
        cells[page_cells.EPISODES] = self._sessions.episodes_live
        cells[page_cells.QUEUE_ROWS] = self._scheduler.rows_waiting
        cells[page_cells.SPINNING] = bool(self._busy_poll_ns and len(self._sessions))
        page.flush()
        self.on_tick()
        if self._replies:
            self._send_replies()
        if self._scheduler.active:
            self._run_due()
            self._wake_at(self._scheduler.deadline_ns())
        self._ticks += 1
        now_ns = cells[page_cells.TICK_AT_NS] = self._clock()
        if self._ticks % _TICKS_PER_SWEEP == 0:
            self._sessions.sweep(now_ns, self._replies)
            self._send_replies()
        self._iteration_ns_max = 0

    def _on_gc(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._gc_started_ns = self._clock()
            return
        pause_ns = self._clock() - self._gc_started_ns
        cells = self._page.cells
        cells[page_cells.GC_PAUSES] += 1
        cells[page_cells.GC_PAUSE_NS] += pause_ns
        cells[page_cells.GC_PAUSE_NS_MAX] = max(cells[page_cells.GC_PAUSE_NS_MAX], pause_ns)


def _nothing() -> None:
    pass


def _no_timer(moment_ns: int) -> None:
    """Stands in for the timer while the loop does not run."""
