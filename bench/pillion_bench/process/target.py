"""The daemon that a measurement connects to: the bench's own, or the one at an address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pillion_bench.process.daemon_process import DaemonProcess
from pillion_bench.process.placement import Placement


class Target(msgspec.Struct, frozen=True):
    """The address, the policy to request there, and the placement of server and client."""

    address: str
    policy: str
    version_range: str
    placement: Placement
    daemon: DaemonProcess | None = None
    """The bench's own daemon; None for one at a given address."""

    @property
    def carrier(self) -> str:
        """`lane` or `zmq`."""
        return "lane" if self.address.startswith("lane://") else "zmq"

    @property
    def server(self) -> str:
        """How the daemon was started, as the report says it."""
        return "started for this run" if self.daemon else f"at {self.address}, not placed by the bench"


@contextmanager
def open_target(
    address: str, store: Path, reference: str, placement: Placement, carrier: str = "zmq"
) -> Iterator[Target]:
    """Yields a target for `reference` (`NAME[@VERSION]`; empty: the served policy). Starts a daemon if `address` is empty."""
    policy, _, version_range = reference.partition("@")
    if address:
        yield Target(address, policy, version_range, placement.for_foreign_daemon())
        return
    with DaemonProcess(store, reference, placement.server, carrier) as daemon:
        yield Target(daemon.address, policy, version_range, placement, daemon)
