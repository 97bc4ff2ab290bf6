"""The full answer to an act, beyond the action itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pillion.tensors import Array
from pillion_protocol import Action, BatchClose

_CLOSES = {close.value: close.name.lower() for close in BatchClose}


@dataclass(frozen=True, slots=True)
class Timings:
    """The times of one act in ns. On one host the daemon's clock (CLOCK_MONOTONIC) is also the client's.

    `received_ns` is when the daemon had read the act. `queued_ns` (admitted), `dispatched_ns` (its batch went to the
    engine) and `ran_ns` (the engine finished) count from then. `round_trip_ns` is measured by the client: from before it
    sends the request until after it has read the answer. `batch_rows` is the number of rows in the batch. An answer from the
    result cache ran in no batch: its `batch_close` is `cached`, and `batch_rows` and `engine_ns` are 0.

    If a device computed the batch, `copy_in_ns`, `compute_ns` and `copy_out_ns` are how long it took to copy the batch in,
    to compute it and to copy it out, by its own clock. They are parts of `engine_ns`; its rest is the way to the worker and
    to the device. All three are 0 on the CPU, and where the engine does not measure them.
    """

    received_ns: int
    queued_ns: int
    dispatched_ns: int
    ran_ns: int
    round_trip_ns: int
    batch_rows: int
    batch_close: str
    """Why the batch was closed: a name of `pillion_protocol.BatchClose` in lower case, or a newer number."""
    copy_in_ns: int = 0
    compute_ns: int = 0
    copy_out_ns: int = 0

    @property
    def engine_ns(self) -> int:
        """How long the engine ran the batch, in ns."""
        return self.ran_ns - self.dispatched_ns

    @property
    def added_ns(self) -> int:
        """The round trip without the engine, in ns: the cost of serving."""
        return self.round_trip_ns - self.engine_ns


class Outcome:
    """The full answer to an act. Each property is computed when it is read."""

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
            "late_us",
            "observation_in_slot",
            "outputs_in_slot",
            "outputs",
            "timings",
        )
        return f"Outcome({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @property
    def sequence(self) -> int:
        """The number of the request; each act of a session has a greater one."""
        return self._action.sequence

    @property
    def digest(self) -> str:
        """The digest of the artifact whose weights ran, `sha256:…`; in a group, that of the first row."""
        return _digest_text(self._action.digest)

    @property
    def row_digests(self) -> list[str]:
        """The digest for each row. After a switch, the rows of a group may hold different versions for a while."""
        action = self._action
        if not action.row_leases:
            return [self.digest] * action.rows
        return [_digest_text(action.leases[index].digest) for index in action.row_leases]

    @property
    def fallback(self) -> str:
        """What replaced an action that could not run in time (`last`, `zeros`, `safe`); empty if the policy computed it."""
        return self._action.fallback

    @property
    def late_us(self) -> int:
        """How long after the end of the act's budget the engine finished, in µs; 0 is in time, or without a budget."""
        return self._action.late_us

    @property
    def outputs_in_slot(self) -> bool:
        """Whether the outputs travelled in shared memory instead of in the message."""
        return self._action.slot > 0

    @property
    def outputs(self) -> dict[str, Array]:
        """Every output of the spec by name, with its dtype and shape; `action` is what `act` returned."""
        return self._decode_outputs()

    @property
    def timings(self) -> Timings:
        """When the daemon received, queued and ran the act."""
        action = self._action
        return Timings(
            received_ns=action.received_ns,
            queued_ns=action.queued_ns,
            dispatched_ns=action.dispatched_ns,
            ran_ns=action.ran_ns,
            round_trip_ns=self._round_trip_ns,
            batch_rows=action.batch_rows,
            batch_close=_CLOSES.get(action.batch_close, str(action.batch_close)),
            copy_in_ns=action.copy_in_ns,
            compute_ns=action.compute_ns,
            copy_out_ns=action.copy_out_ns,
        )


def _digest_text(digest: bytes) -> str:
    return f"sha256:{digest.hex()}"
