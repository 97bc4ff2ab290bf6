"""An operation: something that an operator, or an alias that moved, has told the daemon to do with a version."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal

import msgspec

from pilliond.ipc.batch_certificate import Certificate

Kind = Literal["stage", "switch", "rollback", "route", "hold", "warmup"]


class Outcome(StrEnum):
    """Where it stands. Rule: from `running` it goes to one of the others, once."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class OperationStatus(msgspec.Struct):
    """What is done, for whom and why, and what came of it, as the admin port tells it."""

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
    step: str = "waiting"
    error: str = ""
    began_at: str = ""
    took_s: float = 0.0
    effect_ms: float | None = None
    """From the request to the moment from which new episodes lease the version."""
    effect_ns: int | None = None
    """That moment on CLOCK_MONOTONIC."""
    load_ms: float | None = None
    stall_us: float | None = None
    """How long the serving loop was kept from looking, at worst, while the version was loaded there, or by a run to warm it."""
    swap_impact: float | None = None
    """p99 of the live version while this one was staged, over that before; None of too few acts."""
    paused_s: float = 0.0
    """How long its staging was paused, since the live version suffered."""
    certificate: Certificate | None = None


class Operation(OperationStatus):
    """An operation as the daemon keeps it."""

    began_ns: int = 0

    def told(self) -> OperationStatus:
        """As it stands now."""
        return msgspec.convert(self, OperationStatus, from_attributes=True)

    def end(self, outcome: Outcome, error: str = "") -> None:
        """Notes what came of it."""
        self.outcome = outcome
        self.step = outcome.value
        self.error = error
        self.took_s = (time.monotonic_ns() - self.began_ns) / 1e9


def begin_operation(
    number: int, kind: Kind, policy: str, version: str, digest: str, was: str, by: str, reason: str
) -> Operation:
    """An operation that begins now."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Operation(number, kind, policy, version, digest, was, by, reason, began_at=at, began_ns=time.monotonic_ns())
