"""What an act came to, beside the action itself."""

from __future__ import annotations

from collections.abc import Callable
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


class Outcome:
    """The whole answer to an act. What is read of it is made then."""

    __slots__ = ("_action", "_decode_outputs", "_round_trip_ns", "observation_in_slot", "version")

    def __init__(
        self,
        action: Action,
        decode_outputs: Callable[[], dict[str, Array]],
        round_trip_ns: int,
        version: str,
        observation_in_slot: bool,
    ) -> None:
        self._action = action
        self._decode_outputs = decode_outputs
        self._round_trip_ns = round_trip_ns
        self.version = version
        self.observation_in_slot = observation_in_slot
        """Whether the observation travelled in shared memory instead of in the message."""

    def __repr__(self) -> str:
        shown = (
            "sequence",
            "version",
            "digest",
            "row_digests",
            "fallback",
            "observation_in_slot",
            "outputs_in_slot",
            "outputs",
            "timings",
        )
        return f"Outcome({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @property
    def sequence(self) -> int:
        return self._action.sequence

    @property
    def digest(self) -> str:
        """`sha256:…` of the artifact whose weights ran; of several rows, the first one's."""
        return _named(self._action.digest)

    @property
    def row_digests(self) -> list[str]:
        """The same for each row: while the daemon goes over to another version, rows of a group may hold different ones."""
        action = self._action
        if not action.row_leases:
            return [self.digest] * action.rows
        return [_named(action.leases[index].digest) for index in action.row_leases]

    @property
    def fallback(self) -> str:
        """What stands in for an action that could not be computed in time; empty: the policy computed it."""
        return self._action.fallback

    @property
    def outputs_in_slot(self) -> bool:
        """Whether the outputs travelled in shared memory."""
        return self._action.slot > 0

    @property
    def outputs(self) -> dict[str, Array]:
        """Every output of the spec by name; `action` is what the act returned."""
        return self._decode_outputs()

    @property
    def timings(self) -> Timings:
        """When the daemon did what."""
        action = self._action
        return Timings(
            received_ns=action.received_ns,
            queued_ns=action.queued_ns,
            dispatched_ns=action.dispatched_ns,
            ran_ns=action.ran_ns,
            round_trip_ns=self._round_trip_ns,
            batch_rows=action.batch_rows,
            batch_close=_CLOSES.get(action.batch_close, str(action.batch_close)),
        )


def _named(digest: bytes) -> str:
    return f"sha256:{digest.hex()}"
