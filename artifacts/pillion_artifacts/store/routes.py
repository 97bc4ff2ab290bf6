"""Routes: which versions a daemon serves to new episodes, kept in the store so that a restart changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.limits import ROUTES_MAX
from pillion_artifacts.names import checked_policy
from pillion_artifacts.store.audit_log import Action
from pillion_artifacts.store.state_files import encode_list, read_list

if TYPE_CHECKING:
    from pillion_artifacts.store.store import Store

ROUTES_NAME: Final = "routes"


class RouteArm(msgspec.Struct, frozen=True):
    """A version other than the stable one, and its share of the new episodes."""

    name: str
    version: str
    digest: str
    share: float
    """Of all new episodes, above 0 and at most 1."""


class Route(msgspec.Struct, frozen=True, omit_defaults=True):
    """The traffic split of the daemons that serve `asked` of a policy."""

    policy: str
    asked: str
    """The part of their `store.policy` after the `@`: an alias, a range, a version, a digest, or nothing."""
    version: str
    digest: str
    """The digest of the stable version. A daemon that follows an alias uses the alias's version instead."""
    arms: list[RouteArm] = []
    was_version: str = ""
    was_digest: str = ""
    """The previous stable version; `gc` keeps it, so that a rollback finds it."""

    def digests(self) -> set[str]:
        """The digests of all versions that the route names."""
        return {self.digest, self.was_digest, *(arm.digest for arm in self.arms)} - {""}


def route_target(policy: str) -> str:
    """The path of a policy's routes inside a store."""
    return f"{ROUTES_NAME}/{policy}.json"


def read_routes(root: Path, policy: str) -> list[Route]:
    """Reads the routes of a policy. Raises `InvalidArtifactError` for a damaged file."""
    target = route_target(policy)
    routes = read_list(root, target, list[Route])
    if any(route.policy != policy for route in routes):
        raise InvalidArtifactError(f"{target}: expected routes of {policy}, got some of another policy")
    return routes


def find_route(root: Path, policy: str, asked: str) -> Route | None:
    """The route of daemons that were started with `asked`, None if there is none. Raises `InvalidArtifactError`."""
    return next((route for route in read_routes(root, policy) if route.asked == asked), None)


def routed_digests(root: Path) -> set[str]:
    """The digests of all versions that a route names. Raises `InvalidArtifactError` for a damaged file."""
    policies = [path.stem for path in sorted((root / ROUTES_NAME).glob("*.json"))]
    return {digest for policy in policies for route in read_routes(root, policy) for digest in route.digests()}


def keep_route(store: Store, action: Action, route: Route, *, was: str = "", by: str = "", reason: str = "") -> None:
    """Keeps a route, in place of the one for the same `asked`. Raises `StoreError`."""
    with store.change(f"{route.policy}: route") as change:
        others = [each for each in read_routes(store.root, route.policy) if each.asked != route.asked]
        # beyond the bound, the oldest route is dropped
        routes = [*others[1 - ROUTES_MAX :], route]
        change.write(route_target(checked_policy(route.policy)), encode_list(routes))
        record = store.record(
            action, by, reason, policy=route.policy, version=route.version, digest=route.digest, was=was
        )
        change.commit([record])
