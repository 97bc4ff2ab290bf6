"""Who takes part in a comparison: Pillion over its carriers, asleep and spinning, and the peers that are published."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Final

import msgspec

from pillion_bench.errors import BadOptionError, PeersMissingError
from pillion_bench.shipped import peers_environment

BUSY_POLL_US: Final = 200
"""How long each side of a spinning contestant looks before it sleeps."""

FLOOR: Final = "floor"

PEERS_STAMP: Final = "peers.stamp"
"""A file in the peers' environment: `make peers` has come to its end."""


class Contestant(msgspec.Struct, frozen=True):
    """One way to serve a policy, with a client of its own in `bench/peers`."""

    name: str
    words: str
    client: str
    """The module that the driver imports."""
    carrier: str = ""
    """Pillion's; empty for a peer."""
    busy_poll_us: int = 0
    server: str = ""
    """A peer's program in `bench/peers`."""
    packages: tuple[str, ...] = ()
    """Those of a peer whose versions are reported."""

    @property
    def is_peer(self) -> bool:
        """Whether it needs the peers' environment."""
        return bool(self.server)


CONTESTANTS: Final = (
    Contestant("lane", "Pillion over the lane", "client_pillion", "lane"),
    Contestant("lane-spin", "Pillion over the lane, both sides spinning", "client_pillion", "lane", BUSY_POLL_US),
    Contestant("zmq", "Pillion over ZeroMQ", "client_pillion", "zmq"),
    Contestant("zmq-spin", "Pillion over ZeroMQ, both sides spinning", "client_pillion", "zmq", BUSY_POLL_US),
    Contestant(
        "openpi",
        "websocket and msgpack, openpi-client",
        "client_openpi",
        server="server_openpi.py",
        packages=("openpi-client", "websockets"),
    ),
    Contestant(
        "req-rep", "ZeroMQ REQ/REP and np.save", "client_req_rep", server="server_req_rep.py", packages=("pyzmq",)
    ),
    Contestant("mosec", "mosec, msgpack over HTTP", "client_mosec", server="server_mosec.py", packages=("mosec",)),
    Contestant(
        "litserve", "LitServe, JSON over HTTP", "client_litserve", server="server_litserve.py", packages=("litserve",)
    ),
)

NAMES: Final = (FLOOR, *(contestant.name for contestant in CONTESTANTS))


class Field(msgspec.Struct, frozen=True):
    """Who is measured, and who is not and why."""

    contestants: list[Contestant]
    has_floor: bool
    left_out: dict[str, str]

    def omissions(self) -> list[str]:
        """Who is left out, a line for each reason."""
        reasons = dict.fromkeys(self.left_out.values())
        return [
            f"left out: {', '.join(name for name in self.left_out if self.left_out[name] == why)}: {why}"
            for why in reasons
        ]


def choose(named: list[str]) -> Field:
    """The field of the contestants that were named; of nobody: of all that can be measured here.

    Raises `BadOptionError` for an unknown name, `PeersMissingError` where a peer was named and its environment is absent.
    """
    for name in named:
        if name not in NAMES:
            raise BadOptionError(f"--contestants: expected some of {','.join(NAMES)}, got {name!r}")
    wanted = [contestant for contestant in CONTESTANTS if not named or contestant.name in named]
    left_out = {contestant.name: why for contestant in wanted if (why := _hindrance(contestant))}
    if named and left_out:
        raise PeersMissingError("; ".join(f"{name}: {why}" for name, why in left_out.items()))
    taking_part = [contestant for contestant in wanted if contestant.name not in left_out]
    return Field(taking_part, not named or FLOOR in named, left_out)


def peers_python() -> Path:
    """The interpreter of the peers' environment."""
    return peers_environment() / "bin" / "python"


def versions(contestant: Contestant) -> dict[str, str]:
    """The versions of a peer's packages in its environment."""
    folders = [str(folder) for folder in peers_environment().glob("lib/python3*/site-packages")]
    found = {}
    for package in contestant.packages:
        for distribution in importlib.metadata.distributions(name=package, path=folders):
            found[package] = distribution.version
    return found


def _hindrance(contestant: Contestant) -> str:
    """Why it cannot be measured here; empty where it can."""
    if contestant.is_peer and not (peers_environment() / PEERS_STAMP).exists():
        return f"no {peers_environment().name}, which `make peers` makes"
    return ""
