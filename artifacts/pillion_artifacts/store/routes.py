"""Routes: what a daemon lets new episodes lease, kept in the store, so that it is the same after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from pillion_artifacts.errors import UNREADABLE, InvalidArtifactError, MissingFileError
from pillion_artifacts.limits import ROUTES_MAX, STATE_BYTES_MAX
from pillion_artifacts.oci.blobs import read_small

ROUTES_NAME: Final = "routes"


class RouteArm(msgspec.Struct, frozen=True):
    """A share of the new episodes that another version than the stable one answers."""

    name: str
    version: str
    digest: str
    share: float
    """Of all new episodes, above 0 and at most 1."""


class Route(msgspec.Struct, frozen=True, omit_defaults=True):
    """The route of those daemons that were told to serve `asked` of a policy."""

    policy: str
    asked: str
    """What stands behind the `@` of their `store.policy`: an alias, a range, a version, a digest; or nothing."""
    version: str
    digest: str
    """The stable version. Whoever follows an alias goes by that instead."""
    arms: list[RouteArm] = []
    was_version: str = ""
    was_digest: str = ""
    """The stable version before; kept by `gc`, so that a rollback finds it."""

    def digests(self) -> set[str]:
        """Every version that it names."""
        named = {self.digest, self.was_digest, *(arm.digest for arm in self.arms)}
        return named - {""}


def route_target(policy: str) -> str:
    """The path of a policy's routes inside a store."""
    return f"{ROUTES_NAME}/{policy}.json"


def encode_routes(routes: list[Route]) -> bytes:
    """The bytes of the file of a policy's routes."""
    return msgspec.json.encode(routes) + b"\n"


def read_routes(root: Path, policy: str) -> list[Route]:
    """The routes of a policy; raises `InvalidArtifactError` where the file is none."""
    target = route_target(policy)
    try:
        routes = msgspec.json.decode(read_small(root / target, STATE_BYTES_MAX, target), type=list[Route])
    except MissingFileError:
        return []
    except UNREADABLE as error:
        raise InvalidArtifactError(f"{target}: {error}") from None
    if any(route.policy != policy for route in routes):
        raise InvalidArtifactError(f"{target}: expected routes of {policy}, got some of another policy")
    return routes


def find_route(root: Path, policy: str, asked: str) -> Route | None:
    """The route of daemons that were told to serve `asked`, where there is one; raises `InvalidArtifactError`."""
    return next((route for route in read_routes(root, policy) if route.asked == asked), None)


def with_route(routes: list[Route], route: Route) -> list[Route]:
    """The routes with this one in the place of its predecessor; the oldest of too many is left out."""
    others = [each for each in routes if each.asked != route.asked]
    return [*others[1 - ROUTES_MAX :], route]


def routed_digests(root: Path) -> set[str]:
    """The versions that some route names; raises `InvalidArtifactError`."""
    policies = [path.stem for path in sorted((root / ROUTES_NAME).glob("*.json"))]
    return {digest for policy in policies for route in read_routes(root, policy) for digest in route.digests()}
