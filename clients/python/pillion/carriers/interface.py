"""The interface of a carrier, and the choice of one by address."""

from __future__ import annotations

from typing import ClassVar, Protocol

from pillion.conversation import Frames
from pillion_protocol.default_addresses import own_lane_address


class Carrier(Protocol):
    """Sends and receives whole messages, and reconnects by itself. For one thread at a time."""

    address: str
    passes_memory: ClassVar[bool]
    """Whether a `begun` may pass shared memory for slots, as the frame after its head."""

    shares_clock: bool
    """Whether the daemon is on this host, so that both have the same CLOCK_MONOTONIC."""

    must_read_before_send: ClassVar[bool]
    """Whether pending messages must be read before a send that follows a pause, lest they are lost."""

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        ...

    def expect(self, row_bytes: list[int]) -> None:
        """Sets the bytes of one row of each output, by which a carrier may divide a message."""
        ...

    def set_wait(self, wait_s: float) -> None:
        """Sets how long `receive` waits, in seconds."""
        ...

    def send(self, frames: Frames, wait_s: float) -> bool:
        """Sends a message. Returns False if there was no connection for `wait_s`."""
        ...

    def send_now(self, frames: Frames) -> bool:
        """Sends a message. Returns False if there is no connection now."""
        ...

    def exchange(self, frames: Frames) -> Frames | None:
        """Does `send_now`, then `receive`. Returns None also if there was no connection."""
        ...

    def receive(self) -> Frames | None:
        """Returns the next message, or None if none arrived within the wait."""
        ...

    def receive_now(self) -> Frames | None:
        """Returns the next message if one is pending, else None."""
        ...

    def fileno(self) -> int:
        """Returns a descriptor for an event loop. Each time it is readable, call `receive_now` until it returns None."""
        ...

    def readiness(self) -> tuple[bool, bool]:
        """Returns whether a message may be pending, and whether one can be sent."""
        ...

    def close(self) -> None:
        """Closes the connection."""
        ...


def open_carrier(address: str | None, busy_poll_us: int = 0) -> Carrier:
    """Returns the carrier for `lane:///PATH`, `ipc:///PATH` or `tcp://HOST:PORT`; without an address, this user's lane.

    `receive` polls for `busy_poll_us` before it sleeps. Raises `UnavailableError` for an impossible address.
    """
    if address is None:
        address = own_lane_address()
    if address.startswith("lane://"):
        # Imported here, so that a client on the lane does not import pyzmq.
        from pillion.carriers.lane import LaneCarrier

        return LaneCarrier(address, busy_poll_us)
    from pillion.carriers.zmq import ZmqCarrier

    return ZmqCarrier(address, busy_poll_us=busy_poll_us)
