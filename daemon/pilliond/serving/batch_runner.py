"""Runs a batch: gathers its rows, checks them, runs the engine, fills the replies. Hot path."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pillion_protocol import Action, BatchClose, ErrorCode, RemoteProtocolError, TensorSpec, encode
from pillion_protocol.steps import ActionStep
from pilliond.core.action_steps import ExplicitActionStep
from pilliond.core.episodes import EpisodeGroup
from pilliond.core.sessions import Sessions
from pilliond.engine.batch_memory import BatchMemory, BatchViews
from pilliond.engine.integer_ranges import IntegerRange, Outside, first_outside
from pilliond.engine.interface import Array, EngineError
from pilliond.ipc.control_channel import LogEvent
from pilliond.ipc.metrics_page import VERSION_CELLS, MetricsPage
from pilliond.serving.shadow_tap import ShadowTap
from pilliond.transport.interface import Reply
from pilliond.versions.loaded_version import Version

_TOO_LATE = RemoteProtocolError(ErrorCode.DEADLINE_EXCEEDED, "the budget ended before the engine was free")
_OVERWRITTEN = RemoteProtocolError(
    ErrorCode.SLOT_STALE, "the slot was overwritten before the answer", "one generation until the answer", "another"
)
_ENGINE_FAILED = RemoteProtocolError(ErrorCode.INTERNAL, "the engine failed to run this batch")


class BatchRunner:
    """Runs batches on the engine of their version, and fills the replies."""

    def __init__(
        self,
        sessions: Sessions,
        page: MetricsPage,
        clock: Callable[[], int],
        log_event: LogEvent,
    ) -> None:
        self._sessions = sessions
        self._page = page
        self._clock = clock
        self._log_event = log_event
        self.tap: ShadowTap | None = None
        """Copies every answered batch, while there is a shadow."""
        self._rows = 0
        self._close = 0
        self._dispatched_ns = 0
        self._ran_ns = 0

    def run(self, groups: list[EpisodeGroup], rows: int, close: BatchClose, replies: list[Reply]) -> None:
        """Runs the acts of a batch whose rows are sound, and appends a reply for every act to `replies`."""
        self._rows = rows
        self._close = close
        version = groups[0].version
        engine = version.engine
        memory = engine.memories[0]
        _gather(groups, memory.views)
        if not memory.is_sound(rows):
            groups = self._without_poisoned(groups, memory, replies)
            memory.clear(rows)
            if not groups:
                return
            self._rows = sum(group.rows for group in groups)
            _gather(groups, memory.views)
        if version.states:
            for group in groups:
                group.put_states(memory)
        self._dispatched_ns = self._clock()
        try:
            engine.runs[self._rows]()
        except EngineError as error:
            self._answer_failed(groups, error, replies)
            return
        for group in groups:
            if group.starting or not group.deterministic:
                _start_and_sample(groups, memory)
                break
        self._ran_ns = self._clock()
        if version.watched:
            self._watch(version, memory, groups)
        self._answer(groups, memory, replies)
        if self.tap is not None:
            self.tap.take(version, memory, groups)

    def _watch(self, version: Version, memory: BatchMemory, groups: list[EpisodeGroup]) -> None:
        """Counts the acts that a new version answers with a NaN or an infinity."""
        outputs = [memory.outputs[tensor.name] for tensor in version.spec.outputs]
        floats = [output[: self._rows] for output in outputs if output.dtype.kind == "f"]
        if all(np.isfinite(output).all() for output in floats):
            return
        first = 0
        for group in groups:
            begin, first = first, first + group.rows
            finite = [np.isfinite(output[begin:first]).reshape(group.rows, -1).all(axis=1) for output in floats]
            for owner in version.owners_of(~np.logical_and.reduce(finite)):
                self._page.cells[VERSION_CELLS[owner.metrics_index].non_finite] += 1

    def _answer_failed(self, groups: list[EpisodeGroup], error: EngineError, replies: list[Reply]) -> None:
        for group in groups:
            self._sessions.answer_error(group, _ENGINE_FAILED, replies)
        self._log_event("engine_failed", {"error": str(error), "rows": self._rows})

    def _answer(self, groups: list[EpisodeGroup], memory: BatchMemory, replies: list[Reply]) -> None:
        acts = self._page.acts
        dispatched_ns, ran_ns = self._dispatched_ns, self._ran_ns
        rows, close = self._rows, self._close
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
            )
            reply[0] = group.session.peer
            group.answered(reply, tensors)
            if group.states:
                group.take_states(memory)
            replies.append(reply)
        self._page.batches += (rows, close, ran_ns - dispatched_ns, groups[0].version.metrics_index, answered)

    def answer_late(self, group: EpisodeGroup, replies: list[Reply]) -> None:
        """Answers an act whose deadline has passed with the fallback that its session declared."""
        session = group.session
        tensors = group.version.fallback_tensors(session.fallback, group.rows, group.last_outputs)
        if tensors is None:
            self._sessions.answer_error(group, _TOO_LATE, replies)
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

    def _without_poisoned(
        self, groups: list[EpisodeGroup], memory: BatchMemory, replies: list[Reply]
    ) -> list[EpisodeGroup]:
        """Answers the acts that hold a NaN, an infinity or an integer out of bounds with an error; returns the others."""
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
    return None if outside is None else _out_of_bounds(outside)


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


def _start_and_sample(groups: list[EpisodeGroup], memory: BatchMemory) -> None:
    """Begins the episodes that start with these acts, and samples the actions of the acts that ask for it."""
    for group in groups:
        if group.starting:
            group.apply_starts()
    chosen = []
    first = 0
    for group in groups:
        if not group.deterministic:
            chosen.append((group, np.arange(first, first + group.rows)))
        first += group.rows
    if not chosen:
        return
    groups[0].version.resample(
        memory,
        np.concatenate([rows for _, rows in chosen]),
        np.concatenate([group.seeds for group, _ in chosen]),
        np.concatenate([group.steps() for group, _ in chosen]),
    )
