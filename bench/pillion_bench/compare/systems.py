"""The systems of a comparison: Pillion over its carriers, sleeping and spinning, and the published peers."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Final

import msgspec

from pillion_bench.errors import BadOptionError, PeersMissingError
from pillion_bench.shipped import peers_environment

BUSY_POLL_US: Final = 200
"""How long each side of a spinning system polls before it sleeps."""

FLOOR: Final = "floor"

PEERS_STAMP: Final = "peers.stamp"
"""A file in the peers' environment, which `make peers` creates when it is complete."""


class System(msgspec.Struct, frozen=True):
    """One way to serve a policy, with its own client in `bench/peers`."""

    name: str
    label: str
    client: str
    """The client's module, which the driver imports."""
    carrier: str = ""
    """Pillion's carrier; empty for a peer."""
    busy_poll_us: int = 0
    server: str = ""
    """The program of a peer's server in `bench/peers`."""
    packages: tuple[str, ...] = ()
    """The packages of a peer whose versions are reported."""

    @property
    def is_peer(self) -> bool:
        """Whether it runs in the peers' environment."""
        return bool(self.server)


SYSTEMS: Final = (
    System("lane", "Pillion over the lane", "client_pillion", "lane"),
    System("lane-spin", "Pillion over the lane, both sides spinning", "client_pillion", "lane", BUSY_POLL_US),
    System("zmq", "Pillion over ZeroMQ", "client_pillion", "zmq"),
    System("zmq-spin", "Pillion over ZeroMQ, both sides spinning", "client_pillion", "zmq", BUSY_POLL_US),
    System(
        "openpi",
        "websocket and msgpack, openpi-client",
        "client_openpi",
        server="server_openpi.py",
        packages=("openpi-client", "websockets"),
    ),
    System("req-rep", "ZeroMQ REQ/REP and np.save", "client_req_rep", server="server_req_rep.py", packages=("pyzmq",)),
    System("mosec", "mosec, msgpack over HTTP", "client_mosec", server="server_mosec.py", packages=("mosec",)),
    System(
        "litserve", "LitServe, JSON over HTTP", "client_litserve", server="server_litserve.py", packages=("litserve",)
    ),
)

NAMES: Final = (FLOOR, *(system.name for system in SYSTEMS))


class Selection(msgspec.Struct, frozen=True):
    """The systems to measure, and those left out with the reason."""

    systems: list[System]
    has_floor: bool
    """Whether the baselines are measured."""
    left_out: dict[str, str]
    """The reason for each name."""

    def omissions(self) -> list[str]:
        """Returns a line for each reason, with the systems left out."""
        reasons = dict.fromkeys(self.left_out.values())
        return [
            f"left out: {', '.join(name for name in self.left_out if self.left_out[name] == reason)}: {reason}"
            for reason in reasons
        ]


def choose(named: list[str]) -> Selection:
    """Selects the named systems; without names, all that this host can measure.

    Raises `BadOptionError` for an unknown name, `PeersMissingError` if a named peer has no environment.
    """
    for name in named:
        if name not in NAMES:
            raise BadOptionError(f"--contestants: expected names from {','.join(NAMES)}, got {name!r}")
    wanted = [system for system in SYSTEMS if not named or system.name in named]
    left_out = {system.name: reason for system in wanted if (reason := _obstacle(system))}
    if named and left_out:
        raise PeersMissingError("; ".join(f"{name}: {reason}" for name, reason in left_out.items()))
    available = [system for system in wanted if system.name not in left_out]
    return Selection(available, not named or FLOOR in named, left_out)


def peers_python() -> Path:
    """Returns the interpreter of the peers' environment."""
    return peers_environment() / "bin" / "python"


def versions(system: System) -> dict[str, str]:
    """Returns the versions of a peer's packages in its environment."""
    folders = [str(folder) for folder in peers_environment().glob("lib/python3*/site-packages")]
    found = {}
    for package in system.packages:
        for distribution in importlib.metadata.distributions(name=package, path=folders):
            found[package] = distribution.version
    return found


def _obstacle(system: System) -> str:
    """Returns why a system cannot be measured on this host; empty if it can."""
    if system.is_peer and not (peers_environment() / PEERS_STAMP).exists():
        return f"{peers_environment().name} is missing; create it with `make peers`"
    return ""
