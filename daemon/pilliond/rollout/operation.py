"""An operation: a change of what serves, asked for by an operator or by an alias that moved; and its steps.

Rule: an operation waits, prepares versions one after another, puts them to use, and ends once: done, failed or cancelled.

    WAITING ──► STARTING ─► VERIFYING ─► TRYING ─► CERTIFYING ──► LOADING ──► HOLDING    the version of a campaign
                    ▲ ▲           (each ◄─► PAUSED)     │            │    └─► SWITCHING  stable version or arms
                    │ └─────────────────────────────────┼────────────┘
                    └────────── STARTING_SHADOW ◄───────┘              WAITING ──► WARMING

A version that is loaded already skips its staging; one whose engine is out is loaded again, from WAITING on. One that was unloaded at the last moment is staged once more. Every step
may end as FAILED or CANCELLED; `NEXT_STEPS` has the whole table.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, Literal

import msgspec

from pillion_artifacts import Resolved
from pilliond.ipc.batch_certificate import Certificate
from pilliond.ipc.placement import ServiceTime
from pilliond.ipc.staging_channel import StagingStep

Kind = Literal["stage", "switch", "rollback", "route", "hold", "warmup"]


class Outcome(StrEnum):
    """How an operation ended. Rule: `running` becomes one of the others, once."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Step(StrEnum):
    """What an operation is doing now. Its value is the text that the admin API shows."""

    WAITING = "waiting"
    """It was accepted, and has not begun with a version."""
    STARTING = "starting"
    """The staging process starts."""
    VERIFYING = StagingStep.VERIFYING.value
    TRYING = StagingStep.TRYING.value
    CERTIFYING = StagingStep.CERTIFYING.value
    PAUSED = "paused"
    """The staging process is stopped, because the live version suffers."""
    LOADING = "loading"
    """The serving process loads the staged version, or a new worker loads one whose engine is out."""
    STARTING_SHADOW = "starting the shadow"
    HOLDING = "holding"
    """The serving process begins to hold the version for a campaign."""
    WARMING = "warming"
    SWITCHING = "switching"
    """The store and the serving process change what new episodes lease."""
    DONE = Outcome.DONE.value
    FAILED = Outcome.FAILED.value
    CANCELLED = Outcome.CANCELLED.value

    @property
    def is_final(self) -> bool:
        """Whether the operation has ended."""
        return not NEXT_STEPS[self]

    @property
    def is_cancellable(self) -> bool:
        """Whether an operator may cancel. Not while the serving process acts: its answer decides what is true."""
        return not self.is_final and self not in (Step.LOADING, Step.HOLDING, Step.SWITCHING)


_STAGING: Final = frozenset({Step.STARTING, Step.VERIFYING, Step.TRYING, Step.CERTIFYING, Step.PAUSED})
_STAGED: Final = frozenset({Step.LOADING, Step.STARTING_SHADOW})
_BROKEN_OFF: Final = frozenset({Step.FAILED, Step.CANCELLED})

NEXT_STEPS: Final[dict[Step, frozenset[Step]]] = {
    Step.WAITING: _BROKEN_OFF
    | {Step.STARTING, Step.STARTING_SHADOW, Step.LOADING, Step.HOLDING, Step.WARMING, Step.SWITCHING, Step.DONE},
    Step.STARTING: _BROKEN_OFF | {Step.PAUSED, Step.VERIFYING},
    Step.VERIFYING: _BROKEN_OFF | {Step.PAUSED, Step.TRYING},
    Step.TRYING: _BROKEN_OFF | {Step.PAUSED, Step.CERTIFYING},
    Step.CERTIFYING: _BROKEN_OFF | {Step.PAUSED} | _STAGED,
    # What the staging process sent before it was stopped may still be on its way.
    Step.PAUSED: _BROKEN_OFF | _STAGING - {Step.PAUSED} | _STAGED,
    Step.LOADING: _BROKEN_OFF | {Step.STARTING, Step.HOLDING, Step.SWITCHING, Step.DONE},
    Step.STARTING_SHADOW: _BROKEN_OFF | {Step.STARTING, Step.SWITCHING},
    Step.HOLDING: _BROKEN_OFF | {Step.STARTING, Step.DONE},
    Step.WARMING: _BROKEN_OFF | {Step.DONE},
    Step.SWITCHING: _BROKEN_OFF | {Step.STARTING, Step.DONE},
    Step.DONE: frozenset(),
    Step.FAILED: frozenset(),
    Step.CANCELLED: frozenset(),
}
"""The steps that may follow each step, beside itself. No step follows a final one."""


class OperationStatus(msgspec.Struct):
    """An operation as the admin API returns it: what is done, who asked for it (`by`), why, and the result."""

    number: int
    kind: Kind
    policy: str
    version: str
    digest: str
    was: str
    """The version that was stable when it began."""
    by: str
    reason: str
    outcome: Outcome = Outcome.RUNNING
    step: str = Step.WAITING.value
    error: str = ""
    began_at: str = ""
    took_s: float = 0.0
    effect_ms: float | None = None
    """From the request to the moment from which new episodes lease the version."""
    effect_ns: int | None = None
    """That moment on CLOCK_MONOTONIC."""
    load_ms: float | None = None
    stall_us: float | None = None
    """Longest time that the serving loop did not poll while the version was loaded there, or while a bucket was warmed."""
    swap_impact: float | None = None
    """p99 of the live version while this one was staged, over that before; None for too few acts."""
    paused_s: float = 0.0
    """How long its staging was paused, because the live version suffered."""
    certificate: Certificate | None = None
    placement: str = ""
    """Where staging decided that the version runs, `inline` or `worker`; empty if it was not staged."""
    placement_reason: str = ""
    service_us: list[ServiceTime] = []
    """What each bucket of rows took when it was staged."""


class Operation(OperationStatus):
    """An operation as the daemon keeps it. `advance` alone changes its step and its outcome."""

    step: Step = Step.WAITING
    began_ns: int = 0

    def status(self) -> OperationStatus:
        """Returns a copy for the admin API."""
        return msgspec.convert(self, OperationStatus, from_attributes=True)

    def advance(self, step: Step) -> None:
        """Enters a step; asserts that it may follow the present one. Repeating a step that is not final changes nothing."""
        assert step in NEXT_STEPS[self.step] or (step is self.step and not step.is_final), f"{self.step} → {step}"
        self.step = step
        if step.is_final:
            self.outcome = Outcome(step.value)
            self.took_s = (time.monotonic_ns() - self.began_ns) / 1e9

    def log_fields(self, *without: str) -> dict[str, Any]:
        """Returns what a log line says about it: all known fields except those named `without`."""
        fields = (
            "number", "policy", "version", "was", "by", "reason", "error", "effect_ms", "stall_us", "swap_impact", "placement",
        )  # fmt: skip
        known = {name: getattr(self, name) for name in fields if name not in without}
        return {name: value for name, value in known.items() if value not in ("", None)}


def begin_operation(number: int, kind: Kind, target: Resolved, was: str, by: str, reason: str) -> Operation:
    """Returns an operation on `target` that begins now."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Operation(
        number, kind, target.policy, target.version, target.digest, was, by, reason,
        began_at=at, began_ns=time.monotonic_ns(),
    )  # fmt: skip
