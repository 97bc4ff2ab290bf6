"""What an act came to, beside the action itself."""

from __future__ import annotations

from dataclasses import dataclass

from pillion.tensors import Array
from pillion_protocol import Action, BatchClose

_CLOSES = {close.value: close.name.lower() for close in BatchClose}


@dataclass(frozen=True, slots=True)
class Timings:
    """When the daemon did what, in ns; on one host its clock (CLOCK_MONOTONIC) is the client's.

    `received_ns` is absolute; `queued_ns`, `dispatched_ns` and `ran_ns` count from it. `round_trip_ns` is the
    client's own: from before the request was sent to after its answer was read.
    """

    received_ns: int
    queued_ns: int
    dispatched_ns: int
    ran_ns: int
    round_trip_ns: int
    batch_rows: int
    batch_close: str
    """Why the batch was closed when it was: a name of `pillion_protocol.BatchClose`, in lower case."""

    @property
    def engine_ns(self) -> int:
        """The run of the batch that held these rows."""
        return self.ran_ns - self.dispatched_ns

    @property
    def added_ns(self) -> int:
        """The round trip without the engine: what serving costs."""
        return self.round_trip_ns - self.engine_ns


@dataclass(frozen=True, slots=True)
class Outcome:
    """The whole answer to an act."""

    sequence: int
    version: str
    digest: str
    """`sha256:…` of the artifact whose weights ran; of several rows, the first one's."""
    row_digests: list[str]
    """The same for each row: while the daemon goes over to another version, rows of a group may hold different ones."""
    fallback: str
    """What stands in for an action that could not be computed in time; empty: the policy computed it."""
    observation_in_slot: bool
    """Whether the observation travelled in shared memory instead of in the message."""
    outputs_in_slot: bool
    """Whether the outputs did."""
    outputs: dict[str, Array]
    """Every output of the spec by name; `action` is what the act returned."""
    timings: Timings


def timings_of(action: Action, round_trip_ns: int) -> Timings:
    """The timings that an action message carries."""
    return Timings(
        received_ns=action.received_ns,
        queued_ns=action.queued_ns,
        dispatched_ns=action.dispatched_ns,
        ran_ns=action.ran_ns,
        round_trip_ns=round_trip_ns,
        batch_rows=action.batch_rows,
        batch_close=_CLOSES.get(action.batch_close, str(action.batch_close)),
    )
