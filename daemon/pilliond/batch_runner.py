"""Runs a batch: gathers its rows, looks at them, runs the engine, makes the replies. Hot path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pillion_protocol import Action, ErrorCode, RemoteProtocolError, encode
from pilliond import metrics_page as page_cells
from pilliond.engine import Array, EngineError
from pilliond.episodes import EpisodeGroup, Frame
from pilliond.metrics_page import MetricsPage
from pilliond.scheduler import Batch
from pilliond.sessions import Sessions
from pilliond.transport import Reply

_TOO_LATE = RemoteProtocolError(ErrorCode.DEADLINE_EXCEEDED, "the budget was spent before the engine was free")
_ENGINE_FAILED = RemoteProtocolError(ErrorCode.INTERNAL, "the engine failed to run this batch")


class BatchRunner:
    """Runs batches on the engine of their version.

    `run` makes the replies and `count` puts the last run into the metrics page: between the two the caller sends,
    so that nobody waits for a counter.
    """

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
        self._ran: list[EpisodeGroup] = []
        self._rows = 0
        self._close = 0
        self._dispatched_ns = 0
        self._ran_ns = 0

    def run(self, batch: Batch, replies: list[Reply]) -> None:
        """Runs what is in time and sound; adds a reply for every act of the batch to `replies`."""
        for group in batch.expired:
            self._answer_late(group, replies)
        groups = batch.groups
        self._rows = batch.rows
        self._close = batch.close
        if groups:
            _gather(groups)
            if not _is_finite(groups, batch.rows):
                groups = self._without_poisoned(groups, replies)
                self._rows = sum(group.rows for group in groups)
                _gather(groups)
        if groups and self._run_engine(groups, replies):
            self._answer(groups, replies)
            self._ran = groups

    def count(self) -> None:
        """Puts the last run into the metrics page."""
        groups = self._ran
        if not groups:
            return
        page = self._page
        cells = page.cells
        for group in groups:
            page.observe(page_cells.QUEUE_WAIT, self._dispatched_ns - group.queued_ns)
            page.observe(page_cells.REQUEST_DURATION, self._ran_ns - group.received_ns)
        cells[page_cells.REQUESTS] += len(groups)
        cells[page_cells.INFERENCES] += self._rows
        cells[page_cells.EXECUTIONS] += 1
        cells[page_cells.BATCH_CLOSES + self._close] += 1
        page.observe(page_cells.BATCH_ROWS, self._rows)
        page.observe(page_cells.INFERENCE_DURATION, self._ran_ns - self._dispatched_ns)
        self._ran = []

    def _run_engine(self, groups: list[EpisodeGroup], replies: list[Reply]) -> bool:
        self._dispatched_ns = self._clock()
        try:
            groups[0].version.engine.run(self._rows)
        except EngineError as error:
            for group in groups:
                self._sessions.answer_error(group, _ENGINE_FAILED, replies)
            self._report("engine_failed", {"error": str(error), "rows": self._rows})
            return False
        is_sampled = False
        for group in groups:
            if group.starting:
                group.apply_starts()
            if not group.deterministic:
                is_sampled = True
        if is_sampled:
            _sample(groups)
        self._ran_ns = self._clock()
        return True

    def _answer(self, groups: list[EpisodeGroup], replies: list[Reply]) -> None:
        outputs = groups[0].version.output_views
        first = 0
        for group in groups:
            last = first + group.rows
            tensors: list[Frame] = [bytes(view[first * size : last * size]) for view, size in outputs]
            group.acts += 1
            replies.append(self._reply(group, tensors, ""))
            first = last

    def _answer_late(self, group: EpisodeGroup, replies: list[Reply]) -> None:
        """Answers an act that is not run any more with what its session declared."""
        fallback = group.session.fallback
        tensors = group.version.fallback_tensors(fallback, group.rows, group.last_reply[1:])
        if tensors is None:
            self._sessions.answer_error(group, _TOO_LATE, replies)
            return
        self._dispatched_ns = self._ran_ns = self._clock()
        self._rows = self._close = 0
        replies.append(self._reply(group, tensors, fallback))
        self._page.outcome("fallback")

    def _reply(self, group: EpisodeGroup, tensors: list[Frame], fallback: str) -> Reply:
        """The answer to the act that waits under `group`; kept, for the case that it is asked for again."""
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
                self._dispatched_ns - received_ns,
                self._ran_ns - received_ns,
                self._rows,
                self._close,
                fallback,
            )
        )
        group.waiting = False
        group.tensors = []
        group.last_sequence = group.sequence
        group.last_reply = [head, *tensors]
        return [session.peer, head, *tensors]

    def _without_poisoned(self, groups: list[EpisodeGroup], replies: list[Reply]) -> list[EpisodeGroup]:
        """Answers the acts with a NaN or an infinity in them, and gives the others."""
        version = groups[0].version
        sound = []
        first = 0
        for group in groups:
            bad = [
                (tensor.name, _first_bad_row(array[first : first + group.rows]))
                for tensor, array in zip(version.spec.observation, version.engine.inputs, strict=True)
                if tensor.finite
            ]
            found = [(name, row) for name, row in bad if row is not None]
            first += group.rows
            if found:
                self._sessions.answer_error(group, _non_finite(*found[0]), replies)
            else:
                sound.append(group)
        return sound


def _gather(groups: list[EpisodeGroup]) -> None:
    """Writes every act's tensors into the batch buffer, once."""
    if not groups:
        return
    for index, view in enumerate(groups[0].version.engine.input_views):
        offset = 0
        for group in groups:
            tensor = group.tensors[index]
            end = offset + len(tensor)
            view[offset:end] = tensor
            offset = end


def _is_finite(groups: list[EpisodeGroup], rows: int) -> bool:
    for flat, row_elements in groups[0].version.finite_inputs:
        values = flat[: rows * row_elements]
        # One pass and no array made: the sum of squares of finite numbers is finite, or it overflows, which is
        # looked into.
        if not math.isfinite(np.dot(values, values)) and not np.isfinite(values).all():
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
