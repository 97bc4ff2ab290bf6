"""The state of the serving process, as the control process sees it from outside. Pure."""

from __future__ import annotations

from enum import Enum

from pilliond.ipc.metrics_page import Phase


class ServingState(Enum):
    """One word for operators. Only SERVING means that acts are answered."""

    STARTING = "starting"
    """It loads and warms its versions."""
    SERVING = "serving"
    UNRESPONSIVE = "unresponsive"
    """It was ready and does not tick any more: it is stopped, hangs, or gets no CPU."""
    WAITING = "waiting"
    """It ended; the next start is due after a pause."""
    DRAINING = "draining"
    """The daemon is ending."""
    FAILED = "failed"
    """It is not restarted any more; the daemon ends."""


def serving_state(phase: Phase, is_running: bool, is_late: bool, gave_up: bool) -> ServingState:
    """Returns the state: `phase` is what the process says of itself, the rest what is seen of it."""
    if gave_up:
        return ServingState.FAILED
    if phase in (Phase.DRAINING, Phase.STOPPED):
        return ServingState.DRAINING
    if phase is Phase.FAILED or (not is_running and phase is not Phase.STARTING):
        return ServingState.WAITING
    if phase is not Phase.READY:
        return ServingState.STARTING
    return ServingState.UNRESPONSIVE if is_late else ServingState.SERVING


def in_words(state: ServingState, phase: Phase, silent_s: float, exit_code: int | None, gave_up: str) -> str:
    """Returns the state in a few words, with its reason. `exit_code`: None until the process that ended has been reaped."""
    match state:
        case ServingState.SERVING:
            return "ready"
        case ServingState.UNRESPONSIVE:
            return f"unresponsive: the serving process has made no progress for {silent_s:.0f} s"
        case ServingState.WAITING:
            ended = "is gone" if exit_code is None else f"ended with {exit_code}"
            return f"waiting: the serving process {ended}; it is restarted after a pause"
        case ServingState.FAILED:
            return f"failed: the serving process ended with {exit_code}, and {gave_up}"
        case ServingState.STARTING | ServingState.DRAINING:
            return phase.name.lower()
