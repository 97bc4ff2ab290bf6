"""Actions that say more than usual: which versions answered, while a switch moves the rows of an episode group; and that
the work finished late. Hot path."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pillion_protocol import Action, Lease, decode, encode
from pillion_protocol.action_steps import NO_DEVICE_TIMES, ActionStep, DeviceTimes

if TYPE_CHECKING:
    from pilliond.core.episodes import EpisodeGroup
    from pilliond.transport.interface import Reply

_NANOSECONDS_PER_US: Final = 1_000


class ExplicitActionStep(list[Any]):
    """Stands in for an `ActionStep`: an action that names its leases, encoded anew for each act.

    It stays for as long as the rows lease different versions. If they lease the same one, it is sent once, to say
    which, and `next_step` replaces it.
    """

    __slots__ = ("_generation", "_group", "_make", "_next_step", "_slot", "in_slot", "tensors")

    def __init__(
        self, group: EpisodeGroup, epoch: int, leases: list[Lease], row_leases: list[int], next_step: ActionStep | None
    ) -> None:
        version = group.version
        self.tensors = [memoryview(bytearray(size * group.rows)) for size in version.output_bytes]
        super().__init__([None, b"", *self.tensors])
        self.in_slot: list[Any] = [None, b""]
        """The same reply without tensors, for outputs in a slot."""
        self._group = group
        self._make = partial(_head, group, epoch, version.digest, leases, row_leases)
        self._next_step = next_step
        self._slot = self._generation = 0

    def point(self, slot: int, generation: int) -> None:
        """Names the slot that holds the outputs; 0, 0 means that they follow in the message."""
        self._slot, self._generation = slot, generation

    def fill(
        self,
        sequence: int,
        received_ns: int,
        queued_ns: int,
        dispatched_ns: int,
        ran_ns: int,
        batch_rows: int,
        batch_close: int,
        times: DeviceTimes = NO_DEVICE_TIMES,
    ) -> None:
        """Encodes the action with these numbers, as `ActionStep.fill` writes them."""
        run = (received_ns, queued_ns, dispatched_ns, ran_ns, batch_rows, batch_close)
        self[1] = self.in_slot[1] = self._make(sequence, run, self._slot, self._generation, times)
        if self._next_step is not None:
            self._group.step = self._next_step


def late_reply(reply: Reply, late_ns: int) -> Reply:
    """Returns `reply`, an action whose head is written, with a head that says how late it is: `late_ns`, more than 0."""
    action = decode(reply[1])  # type: ignore[arg-type]
    assert isinstance(action, Action)
    late_us = -(-late_ns // _NANOSECONDS_PER_US)
    return [reply[0], encode(msgspec.structs.replace(action, late_us=late_us)), *reply[2:]]


def _head(
    group: EpisodeGroup,
    epoch: int,
    digest: bytes,
    leases: list[Lease],
    row_leases: list[int],
    sequence: int,
    run: tuple[int, ...],
    slot: int,
    generation: int,
    times: DeviceTimes,
) -> bytes:
    received_ns, queued_ns, dispatched_ns, ran_ns, batch_rows, batch_close = run
    action = Action(
        session=group.session.id,
        epoch=epoch,
        sequence=sequence,
        episode=group.id,
        rows=group.rows,
        digest=digest,
        received_ns=received_ns,
        queued_ns=queued_ns,
        dispatched_ns=dispatched_ns,
        ran_ns=ran_ns,
        batch_rows=batch_rows,
        batch_close=batch_close,
        slot=slot,
        generation=generation,
        leases=leases,
        row_leases=row_leases,
        copy_in_ns=times.copy_in_ns,
        compute_ns=times.compute_ns,
        copy_out_ns=times.copy_out_ns,
    )
    return encode(action)
