"""Runs a batch: gathers its rows, checks them, runs the engine, fills the replies. Hot path."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pillion_protocol import Action, BatchClose, ErrorCode, RemoteProtocolError, TensorSpec, encode
from pillion_protocol.action_steps import NO_DEVICE_TIMES, ActionStep, DeviceTimes
from pilliond.core import rejections
from pilliond.core.action_steps import ExplicitActionStep, late_reply
from pilliond.core.episodes import EpisodeGroup
from pilliond.core.running import Running
from pilliond.core.scheduler import Scheduler
from pilliond.core.served_policy import Tap
from pilliond.core.sessions import Sessions
from pilliond.engine.batch_memory import BatchMemory, BatchViews
from pilliond.engine.checks.integer_ranges import IntegerRange, Outside, first_outside
from pilliond.engine.checks.text_rows import BadText, first_bad_text
from pilliond.engine.interface import Array, Engine, EngineError
from pilliond.ipc.control_channel import LogEvent
from pilliond.ipc.metrics_page import VERSION_CELLS, MetricsPage
from pilliond.limits import BATCHES_PER_OBSERVATION, POLL_NS_MAX, POLLED_RUN_NS_MAX, UNPOLLED_BATCHES
from pilliond.transport.interface import Reply
from pilliond.versions.loaded_version import Version

_TOO_LATE = RemoteProtocolError(ErrorCode.DEADLINE_EXCEEDED, "the budget ended before the engine was free")
_OVERWRITTEN = RemoteProtocolError(
    ErrorCode.SLOT_STALE, "the slot was overwritten before the answer", "one generation until the answer", "another"
)
_ENGINE_FAILED = RemoteProtocolError(ErrorCode.INTERNAL, "the engine failed to run this act")
_WORKER_LOST = RemoteProtocolError(
    ErrorCode.INTERNAL, "the engine's process crashed, hung or was killed twice while it ran this act"
)
_RESTARTING = RemoteProtocolError(ErrorCode.ENGINE_RESTARTING, "the engine's process is being replaced: act again")


class BatchRunner:
    """Runs batches on the engine of their version, and fills the replies."""

    def __init__(
        self,
        sessions: Sessions,
        scheduler: Scheduler,
        page: MetricsPage,
        clock: Callable[[], int],
        log_event: LogEvent,
        send: Callable[[], None],
    ) -> None:
        self._sessions = sessions
        self._scheduler = scheduler
        self._page = page
        self._clock = clock
        self._log_event = log_event
        self._send = send
        """Sends the replies that wait, and copies what the tap owes."""
        self.tap: Tap | None = None
        """Copies every answered batch, while there is a shadow."""
        self._batches = 0
        self._shares_the_loop = len(sessions.policies) > 1
        self.convicted: dict[Version, list[int]] = {}
        """By version the numbers of the sessions whose acts ended a worker, until somebody takes them."""
        self.in_flight: list[Running] = []
        """The batches that run on engines outside the loop, oldest first."""
        self.poll_until_ns = 0
        """Until when to poll for the end of the youngest batch: a quick one ends sooner than a process wakes up."""
        self._unpolled = 0

    def run(self, groups: list[EpisodeGroup], rows: int, close: BatchClose, replies: list[Reply]) -> None:
        """Runs the acts of a batch whose rows are sound. Appends a reply for every act to `replies`, now or in `complete`."""
        version = groups[0].version
        if version.states:
            groups = self._with_states(version, groups, replies)
            if not groups:
                return
            rows = sum(group.rows for group in groups)
        engine = version.engine
        memory = engine.free[-1] if engine.is_inline else engine.choose(rows)
        _gather(groups, memory.views)
        # Again after each refusal: a client can write to its slot, so what is gathered anew must be checked anew.
        while not memory.is_sound(rows):
            groups = self._without_poisoned(groups, memory, replies)
            memory.clear(rows)
            if not groups:
                return
            rows = sum(group.rows for group in groups)
            _gather(groups, memory.views)
        if version.states:
            for group in groups:
                group.put_states(memory)
        dispatched_ns = self._clock()
        if not engine.is_inline:
            self._submit(Running(version, memory, groups, rows, close, dispatched_ns))
            return
        try:
            engine.runs[rows]()
        except EngineError as error:
            self._failed(version, groups, str(error), replies)
            return
        self._answer(version, memory, groups, rows, close, dispatched_ns, replies)

    # Engines outside the loop

    def _submit(self, running: Running) -> None:
        version, memory = running.version, running.memory
        memory.user = running
        self.in_flight.append(running)
        for group in running.groups:
            group.running = running
        version.engine.submit(memory, running.rows)
        # The worker is waking up meanwhile.
        for group in running.groups:
            # Should it end, the act runs again: by then the buffer holds another message.
            group.keep()
        # If it was lost at once, the batch is concluded already.
        if running.runs_left:
            running.is_counted = True
            self._scheduler.submitted(running.groups, version, running.rows, running.dispatched_ns)
        if self._unpolled:
            self._unpolled -= 1
        elif 0 < version.service.fast_ns(running.rows) < POLLED_RUN_NS_MAX:
            self.poll_until_ns = running.dispatched_ns + POLL_NS_MAX

    def polled_in_vain(self) -> None:
        """Notes that no batch ended by `poll_until_ns`. Perhaps the worker needs this process's core: let it sleep for a while."""
        self._unpolled = UNPOLLED_BATCHES

    def exercise(self, version: Version, engine: Engine, rows: int) -> bool:
        """Runs so many rows on a version's engine outside the loop, or on one of its replicas, of whatever its memory holds.

        Returns False while it is busy. A replica that is lost meanwhile is left out: the next worker warms up by itself.
        """
        if not engine.free:
            return version.engine.is_ready and not engine.is_ready
        self._submit(Running(version, engine.choose(rows), [], rows, BatchClose.ENGINE_FREE, self._clock()))
        return True

    def complete(
        self, memory: BatchMemory, message: str | None, replies: list[Reply], times: DeviceTimes = NO_DEVICE_TIMES
    ) -> None:
        """Takes the outcome of a run that an engine outside the loop was given: a message says why it failed."""
        running: Running = memory.user
        running.runs_left -= 1
        if times is not NO_DEVICE_TIMES:
            running.took_device(times)
        if message is not None:
            running.message = message
        if not running.runs_left:
            self._conclude(running, replies)

    def lose(self, memories: Sequence[BatchMemory], replies: list[Reply]) -> int:
        """Takes the runs that a lost worker had not completed; returns how many acts of them will run again."""
        reruns = 0
        for memory in memories:
            running: Running = memory.user
            running.runs_left -= 1
            running.lost = True
            if not running.runs_left:
                self._conclude(running, replies)
            acts = zip(running.groups, running.sequences, strict=True)
            reruns += sum(group.waiting and group.sequence == sequence for group, sequence in acts)
        return reruns

    def _conclude(self, running: Running, replies: list[Reply]) -> None:
        version, memory = running.version, running.memory
        groups = running.take_awaited()
        if running.lost:
            self._lost(version, groups, replies)
        elif running.message:
            self._failed(version, groups, running.message, replies)
        elif groups:
            try:
                version.engine.collect(memory)
            except EngineError as error:
                self._failed(version, groups, str(error), replies)
            else:
                self._answer(
                    version,
                    memory,
                    groups,
                    running.rows,
                    running.close,
                    running.dispatched_ns,
                    replies,
                    running.device_times,
                )
                # Before the bookkeeping: the client waits. And before the memory is used again: the tap copies from it.
                self._send()
                if running.device_times is not NO_DEVICE_TIMES:
                    self._page.device_batches += (version.metrics_index, *running.device_times)
        self.in_flight.remove(running)
        if running.is_counted:
            self._scheduler.completed(running.groups)
        memory.user = None
        version.engine.release(memory)

    def _lost(self, version: Version, groups: list[EpisodeGroup], replies: list[Reply]) -> None:
        """Runs the acts of a lost batch again, each half by itself: one of them may have ended the worker.

        An act that is lost for the second time, and by itself, is refused.
        """
        if len(groups) == 1 and groups[0].lost_sequence == groups[0].sequence:
            session = groups[0].session
            # Where it is the only client, nobody else can say whether the version still works.
            if session.policy.sessions_live > 1 and not version.engine.parts:
                self.convicted.setdefault(version, []).append(session.number)
            self._sessions.answer_error(groups[0], _WORKER_LOST, replies)
            return
        for group in groups:
            group.lost_sequence = group.sequence
        if groups:
            self._scheduler.put_back(version, groups, in_halves=len(groups) > 1)

    def _failed(self, version: Version, groups: list[EpisodeGroup], message: str, replies: list[Reply]) -> None:
        """Runs the acts of a failed batch again, each half by itself, until only the act that fails is left."""
        if len(groups) > 1:
            self._scheduler.put_back(version, groups, in_halves=True)
            return
        for group in groups:
            self._sessions.answer_error(group, _ENGINE_FAILED, replies)
            self._log_event("engine_failed", {"version": str(version), "error": message, "rows": group.rows})

    def refuse_all(self, version: Version, error: RemoteProtocolError, replies: list[Reply]) -> None:
        """Answers everything that waits for a version with an error."""
        for group in self._scheduler.take_all(version):
            self._sessions.answer_error(group, error, replies)

    # Answering

    def _watch(self, version: Version, memory: BatchMemory, groups: list[EpisodeGroup], rows: int) -> None:
        """Counts the acts that a new version answers with a NaN or an infinity."""
        outputs = [memory.outputs[tensor.name] for tensor in version.spec.outputs]
        floats = [output[:rows] for output in outputs if output.dtype.kind == "f"]
        if all(np.isfinite(output).all() for output in floats):
            return
        for group in groups:
            begin = group.batch_view.first
            end = begin + group.rows
            finite = [np.isfinite(output[begin:end]).reshape(group.rows, -1).all(axis=1) for output in floats]
            for owner in version.owners_of(~np.logical_and.reduce(finite)):
                self._page.cells[VERSION_CELLS[owner.metrics_index].non_finite] += 1

    def _answer(
        self,
        version: Version,
        memory: BatchMemory,
        groups: list[EpisodeGroup],
        rows: int,
        close: BatchClose,
        dispatched_ns: int,
        replies: list[Reply],
        times: DeviceTimes = NO_DEVICE_TIMES,
    ) -> None:
        """Answers the acts of a batch that ran; samples their actions where they ask for it."""
        for group in groups:
            if group.starting or not group.deterministic:
                _start_and_sample(groups, memory)
                break
        ran_ns = self._clock()
        self._batches += 1
        if not self._batches % BATCHES_PER_OBSERVATION or not version.engine.is_inline:
            version.service.observe(rows, ran_ns - dispatched_ns)
        if version.watched:
            self._watch(version, memory, groups, rows)
        acts = self._page.acts
        others = memory.views.other_outputs
        answered = len(groups)
        for group in groups:
            received_ns = group.received_ns
            step = group.step
            reply: Reply = step
            tensors = step.tensors
            if group.slots is not None:
                if group.slot is not None and group.slot.generation() != group.generation:
                    self._sessions.answer_error(group, _OVERWRITTEN, replies)
                    answered -= 1
                    continue
                tensors, reply = _targets(group, step)
            acts += (dispatched_ns - group.queued_ns, ran_ns - received_ns)
            group.acts += 1
            outputs = group.batch_view.outputs
            tensors[0][:] = outputs[0]
            for index in others:
                tensors[index][:] = outputs[index]
            step.fill(
                group.sequence,
                received_ns,
                group.queued_ns - received_ns,
                dispatched_ns - received_ns,
                ran_ns - received_ns,
                rows,
                close,
                times,
            )
            reply[0] = group.session.peer
            if ran_ns > group.deadline_ns:
                reply = late_reply(reply, ran_ns - group.deadline_ns)
            group.answered(reply, tensors)
            if group.states:
                group.take_states(memory)
            replies.append(reply)
        self._page.batches += (rows, close, ran_ns - dispatched_ns, version.metrics_index, answered)
        if self._shares_the_loop and version.engine.is_inline:
            groups[0].session.share.used_ns += ran_ns - dispatched_ns
        if self.tap is not None:
            self.tap.take(version, memory, groups)

    def answer_late(self, group: EpisodeGroup, replies: list[Reply]) -> None:
        """Answers an act whose deadline has passed with the fallback that its session declared."""
        session = group.session
        tensors = group.version.fallback_tensors(session.fallback, group.rows, group.last_outputs)
        if tensors is None:
            error = group.version.out or (_TOO_LATE if group.version.engine.is_ready else _RESTARTING)
            self._sessions.answer_error(group, error, replies)
            return
        written, reply = _targets(group, group.step)
        for target, tensor in zip(written, tensors, strict=True):
            target[:] = tensor
        received_ns = group.received_ns
        offset_ns = self._clock() - received_ns
        is_in_slot = reply is group.step.in_slot
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
                offset_ns,
                offset_ns,
                fallback=session.fallback,
                slot=group.slot_number if is_in_slot else 0,
                generation=group.generation if is_in_slot else 0,
            )
        )
        late = [session.peer, head, *reply[2:]]
        group.answered(late, written)
        replies.append(late)
        self._page.outcome("fallback", group.version.metrics_index)

    def _with_states(self, version: Version, groups: list[EpisodeGroup], replies: list[Reply]) -> list[EpisodeGroup]:
        """Answers the acts whose recurrent state was lost, or finds no room, with an error. Returns the others."""
        if not version.has_room_for_states(sum(group.rows for group in groups)):
            for group in groups:
                limits = group.session.policy.limits
                error = rejections.no_state_memory(limits.states_mb_max, group.state_bytes)
                self._sessions.answer_error(group, error, replies)
            return []
        if not version.has_lost_states:
            return groups
        whole = []
        for group in groups:
            lost = group.rows_without_state()
            if lost:
                self._sessions.answer_error(group, rejections.state_lost(lost), replies)
            else:
                whole.append(group)
        return whole

    def _without_poisoned(
        self, groups: list[EpisodeGroup], memory: BatchMemory, replies: list[Reply]
    ) -> list[EpisodeGroup]:
        """Answers the acts that hold a NaN, an infinity, an integer out of bounds or no text with an error.

        Returns the others.
        """
        spec = groups[0].version.spec.observation
        sound = []
        first = 0
        for group in groups:
            error = _poison(spec, memory.ranges, [array[first : first + group.rows] for array in memory.inputs])
            first += group.rows
            if error is not None:
                self._sessions.answer_error(group, error, replies)
            else:
                sound.append(group)
        return sound


def _poison(spec: list[TensorSpec], ranges: list[IntegerRange], inputs: list[Array]) -> RemoteProtocolError | None:
    """Why the rows of one act must not run, if they must not."""
    for tensor, rows in zip(spec, inputs, strict=True):
        if tensor.finite and (row := _first_bad_row(rows)) is not None:
            return _non_finite(tensor.name, row)
    outside = first_outside(ranges, inputs)
    if outside is not None:
        return _out_of_bounds(outside)
    bad = first_bad_text(spec, inputs)
    return None if bad is None else _bad_text(bad)


def _gather(groups: list[EpisodeGroup], views: BatchViews) -> None:
    """Assigns every act its rows of the batch, and copies its tensors there, once."""
    first = 0
    others = views.other_inputs
    for group in groups:
        rows = group.rows
        group.batch_view = view = views.get((first, rows)) or views.make(first, rows)
        # Indexed: `zip` would cost more than the copy, and nearly every policy has one observation.
        inputs, tensors = view.inputs, group.tensors
        inputs[0][:] = tensors[0]
        for index in others:
            inputs[index][:] = tensors[index]
        first += rows


def _targets(group: EpisodeGroup, step: ActionStep | ExplicitActionStep) -> tuple[list[memoryview], Reply]:
    """Returns the tensors to write the outputs of the waiting act to, and the reply that carries or names them."""
    slot = group.slot
    if slot is not None and slot.outputs:
        step.point(group.slot_number, group.generation)
        return slot.outputs, step.in_slot
    step.point(0, 0)
    return step.tensors, step


def _first_bad_row(rows: Array) -> int | None:
    """The first row that holds a NaN or an infinity."""
    finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    return None if finite.all() else int(np.argmin(finite))


def _non_finite(name: str, row: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        ErrorCode.NON_FINITE,
        f"observation {name!r} is not finite",
        "finite numbers",
        f"a NaN or an infinity in row {row}",
    )


def _out_of_bounds(outside: Outside) -> RemoteProtocolError:
    return RemoteProtocolError(
        ErrorCode.OUT_OF_BOUNDS,
        f"observation {outside.name!r} is out of its bounds",
        f"{outside.low} to {outside.high}",
        f"{outside.value} in row {outside.row}",
    )


def _bad_text(bad: BadText) -> RemoteProtocolError:
    return RemoteProtocolError(
        ErrorCode.BAD_TEXT,
        f"observation {bad.name!r} is no text",
        bad.fault.expected,
        f"{bad.fault.actual} in row {bad.row}",
    )


def _start_and_sample(groups: list[EpisodeGroup], memory: BatchMemory) -> None:
    """Begins the episodes that start with these acts, and samples the actions of the acts that ask for it."""
    for group in groups:
        if group.starting:
            group.apply_starts()
    chosen = []
    for group in groups:
        if not group.deterministic:
            first = group.batch_view.first
            chosen.append((group, np.arange(first, first + group.rows)))
    if not chosen:
        return
    groups[0].version.resample(
        memory,
        np.concatenate([rows for _, rows in chosen]),
        np.concatenate([group.seeds for group, _ in chosen]),
        np.concatenate([group.steps() for group, _ in chosen]),
    )
