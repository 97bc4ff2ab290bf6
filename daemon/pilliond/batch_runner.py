"""Runs a batch: gathers its rows, looks at them, runs the engine, makes the replies. Hot path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pillion_protocol import Action, BatchClose, ErrorCode, RemoteProtocolError, encode
from pillion_protocol.steps import ActionStep
from pilliond.engine import Array, EngineError
from pilliond.episodes import EpisodeGroup
from pilliond.joined_version import NamingStep
from pilliond.metrics_page import PLACES, MetricsPage
from pilliond.sessions import Sessions
from pilliond.transport import Reply
from pilliond.versions import Version

_FEW = 64

_TOO_LATE = RemoteProtocolError(ErrorCode.DEADLINE_EXCEEDED, "the budget was spent before the engine was free")
_WRITTEN_MEANWHILE = RemoteProtocolError(
    ErrorCode.SLOT_STALE, "the slot was written while it was read", "one generation until the answer", "another"
)
_ENGINE_FAILED = RemoteProtocolError(ErrorCode.INTERNAL, "the engine failed to run this batch")


class BatchRunner:
    """Runs batches on the engine of their version, and makes the replies."""

    def __init__(
        self,
        sessions: Sessions,
        page: MetricsPage,
        clock: Callable[[], int],
        report: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._sessions = sessions
        self._page = page
        self._clock = clock
        self._report = report
        self._rows = 0
        self._close = 0
        self._dispatched_ns = 0
        self._ran_ns = 0

    def run(self, groups: list[EpisodeGroup], rows: int, close: BatchClose, replies: list[Reply]) -> None:
        """Runs the acts of a batch that are sound; adds a reply for each to `replies`."""
        self._rows = rows
        self._close = close
        version = groups[0].version
        slot = groups[0].slot if len(groups) == 1 else None
        if slot is not None and slot.run is not None:
            # A batch that is one handle's rows: the engine reads them where its client wrote them.
            if slot.finite_inputs and not _is_finite(slot.finite_inputs, rows):
                self._without_poisoned(groups, slot.inputs, replies)
                return
            run = slot.run
        else:
            engine = version.engine
            _gather(groups, engine.input_views)
            if version.finite_inputs and not _is_finite(version.finite_inputs, rows):
                groups = self._without_poisoned(groups, engine.inputs, replies)
                self._rows = sum(group.rows for group in groups)
                _gather(groups, engine.input_views)
            run = engine.runs[self._rows]
        if not groups:
            return
        self._dispatched_ns = self._clock()
        try:
            run()
        except EngineError as error:
            self._answer_failed(groups, error, replies)
            return
        for group in groups:
            if group.starting or not group.deterministic:
                _start_and_sample(groups)
                break
        self._ran_ns = self._clock()
        if version.watched:
            self._watch(version, groups)
        self._answer(groups, replies)

    def _watch(self, version: Version, groups: list[EpisodeGroup]) -> None:
        """Counts the acts that a version answers with a NaN or an infinity, while it is new."""
        outputs = [version.engine.outputs[tensor.name] for tensor in version.spec.outputs]
        floats = [output[: self._rows] for output in outputs if output.dtype.kind == "f"]
        if all(np.isfinite(output).all() for output in floats):
            return
        first = 0
        for group in groups:
            begin, first = first, first + group.rows
            if not all(np.isfinite(output[begin:first]).all() for output in floats):
                self._page.cells[PLACES[version.place].non_finite] += 1

    def _answer_failed(self, groups: list[EpisodeGroup], error: EngineError, replies: list[Reply]) -> None:
        for group in groups:
            self._sessions.answer_error(group, _ENGINE_FAILED, replies)
        self._report("engine_failed", {"error": str(error), "rows": self._rows})

    def _answer(self, groups: list[EpisodeGroup], replies: list[Reply]) -> None:
        outputs = groups[0].version.output_views
        acts = self._page.acts
        dispatched_ns = self._dispatched_ns
        ran_ns = self._ran_ns
        first = 0
        for group in groups:
            begin, first = first, first + group.rows
            received_ns = group.received_ns
            acts += (dispatched_ns - group.queued_ns, ran_ns - received_ns)
            group.acts += 1
            step = group.step
            reply: Reply = step
            places = step.tensors
            if group.slots is not None:
                if group.slot is not None and group.slot.generation() != group.generation:
                    self._sessions.answer_error(group, _WRITTEN_MEANWHILE, replies)
                    continue
                places, reply = _direct(group, step)
            for place, (view, size) in zip(places, outputs, strict=True):
                place[:] = view[begin * size : first * size]
            step.fill(
                group.sequence,
                received_ns,
                group.queued_ns - received_ns,
                dispatched_ns - received_ns,
                ran_ns - received_ns,
                self._rows,
                self._close,
            )
            reply[0] = group.session.peer
            group.answered(reply, places)
            replies.append(reply)
        self._page.batches += (self._rows, self._close, ran_ns - dispatched_ns, groups[0].version.place, len(groups))

    def answer_late(self, group: EpisodeGroup, replies: list[Reply]) -> None:
        """Answers an act that is not run any more with what its session declared."""
        session = group.session
        tensors = group.version.fallback_tensors(session.fallback, group.rows, group.last_outputs)
        if tensors is None:
            self._sessions.answer_error(group, _TOO_LATE, replies)
            return
        places, reply = _direct(group, group.step)
        for place, tensor in zip(places, tensors, strict=True):
            place[:] = tensor
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
        group.answered(late, places)
        replies.append(late)
        self._page.outcome("fallback", group.version.place)

    def _without_poisoned(
        self, groups: list[EpisodeGroup], inputs: list[Array], replies: list[Reply]
    ) -> list[EpisodeGroup]:
        """Answers the acts with a NaN or an infinity in them, and gives the others."""
        version = groups[0].version
        sound = []
        first = 0
        for group in groups:
            bad = [
                (tensor.name, _first_bad_row(array[first : first + group.rows]))
                for tensor, array in zip(version.spec.observation, inputs, strict=True)
                if tensor.finite
            ]
            found = [(name, row) for name, row in bad if row is not None]
            first += group.rows
            if found:
                self._sessions.answer_error(group, _non_finite(*found[0]), replies)
            else:
                sound.append(group)
        return sound


def _gather(groups: list[EpisodeGroup], views: list[memoryview]) -> None:
    """Writes every act's tensors into the batch buffer, once."""
    for index, view in enumerate(views):
        offset = 0
        for group in groups:
            tensor = group.tensors[index]
            end = offset + len(tensor)
            view[offset:end] = tensor
            offset = end


def _direct(group: EpisodeGroup, step: ActionStep | NamingStep) -> tuple[list[memoryview], Reply]:
    """Where the outputs of the act that waits go, and the reply that says so."""
    slot = group.slot
    if slot is not None and slot.outputs:
        step.point(group.slot_number, group.generation)
        return slot.outputs, step.in_slot
    step.point(0, 0)
    return step.tensors, step


def _is_finite(finite_inputs: list[tuple[Array, int]], rows: int) -> bool:
    for flat, row_elements in finite_inputs:
        values = flat[: rows * row_elements]
        # One pass and no array made: a sum of finite numbers is finite, or it overflows, which is looked into. Python
        # adds a few of them sooner than numpy finds the loop for it.
        total = sum(values.data) if len(values) <= _FEW else np.dot(values, values)
        if not math.isfinite(total) and not np.isfinite(values).all():
            return False
    return True


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


def _start_and_sample(groups: list[EpisodeGroup]) -> None:
    """Begins the episodes that begin with these acts, and draws the actions of those acts that asked for it."""
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
        np.concatenate([rows for _, rows in chosen]),
        np.concatenate([group.seeds for group, _ in chosen]),
        np.concatenate([group.steps() for group, _ in chosen]),
    )
