"""The daemon that a bench speaks to: one of its own, or the one at an address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pillion_bench.process.daemon_process import DaemonProcess
from pillion_bench.process.placement import Placement


class Target(msgspec.Struct, frozen=True):
    """Where to connect, what to ask for there, and where server and client run."""

    address: str
    policy: str
    version_range: str
    placement: Placement
    daemon: DaemonProcess | None = None
    """The bench's own; None for the one at a given address."""

    @property
    def carrier(self) -> str:
        """`lane` or `zmq`."""
        return "lane" if self.address.startswith("lane://") else "zmq"

    @property
    def server(self) -> str:
        """Whose daemon it is, in words."""
        return "started for this run" if self.daemon else f"at {self.address}, placed by whoever started it"


@contextmanager
def open_target(
    address: str, store: Path, reference: str, placement: Placement, carrier: str = "zmq"
) -> Iterator[Target]:
    """A target for `reference` (`NAME[@VERSION]`, empty: what is served); starts a daemon where there is no address."""
    policy, _, version_range = reference.partition("@")
    if address:
        yield Target(address, policy, version_range, placement.for_foreign_daemon())
        return
    with DaemonProcess(store, reference, placement.server, carrier) as daemon:
        yield Target(daemon.address, policy, version_range, placement, daemon)
