"""How a message gets to the daemon and back: what a session asks of a carrier, and which one an address names."""

from __future__ import annotations

from typing import ClassVar, Protocol

from pillion.conversation import Frames
from pillion_protocol.default_addresses import own_lane_address


class Carrier(Protocol):
    """A connection that comes back by itself. For one thread at a time."""

    address: str
    passes_memory: ClassVar[bool]
    """Whether a `begun` may come with shared memory for slots, as the frame behind its head."""

    must_listen: ClassVar[bool]
    """Whether what came meanwhile must be read before something is sent after a pause."""

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        ...

    def expect(self, row_bytes: list[int]) -> None:
        """Takes the bytes of a row of each output, which a carrier may need to divide a message."""
        ...

    def set_wait(self, wait_s: float) -> None:
        """How long `receive` waits, in seconds."""
        ...

    def send(self, frames: Frames, wait_s: float) -> bool:
        """Sends a message; False where there was no connection to send it on for `wait_s`."""
        ...

    def send_now(self, frames: Frames) -> bool:
        """Sends a message; False where there is no connection to send it on at this moment."""
        ...

    def exchange(self, frames: Frames) -> Frames | None:
        """`send_now`, and then `receive`; None also where there was no connection to send on."""
        ...

    def receive(self) -> Frames | None:
        """The next message, or None where none came within the wait."""
        ...

    def receive_now(self) -> Frames | None:
        """The next message, or None where none is there."""
        ...

    def fileno(self) -> int:
        """A descriptor for an event loop: after each time it was readable, receive until there is nothing."""
        ...

    def readiness(self) -> tuple[bool, bool]:
        """Whether a message may wait, and whether one could be sent."""
        ...

    def close(self) -> None:
        """Closes the connection."""
        ...


def open_carrier(address: str | None, busy_poll_us: int = 0) -> Carrier:
    """The carrier for `lane:///PATH`, `ipc:///PATH` or `tcp://HOST:PORT`; raises `UnavailableError`.

    Without an address it is the lane of this user's daemon. `receive` looks for `busy_poll_us` before it sleeps. Who takes the lane does not import pyzmq.
    """
    if address is None:
        address = own_lane_address()
    if address.startswith("lane://"):
        from pillion.carriers.lane import LaneCarrier

        return LaneCarrier(address, busy_poll_us)
    from pillion.carriers.zmq import ZmqCarrier

    return ZmqCarrier(address, busy_poll_us=busy_poll_us)
