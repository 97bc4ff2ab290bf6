"""The route file: where the store keeps the route of this daemon, so that it is the same after a restart.

Which version is stable after a restart, by what `store.policy` says:

`NAME@ALIAS`             what the alias points at
`NAME`                   what was stable; the newest release where nothing was ever made stable here
`NAME@RANGE`             the same, where that lies in the range; a version by itself is such a range
`NAME@sha256:DIGEST`     that version

The arms are those that there were, but for one whose version is stable then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from pillion_artifacts import Resolved, Store
from pillion_artifacts.names import Reference, parse_reference
from pillion_artifacts.store.audit_log import Action
from pillion_artifacts.store.routes import Route, RouteArm, find_route, keep_route
from pillion_artifacts.version_range import VersionRange


class RouteFile:
    """The route of the daemons that serve what `reference` says. Owns nothing."""

    def __init__(self, store: Store, reference: str) -> None:
        self._store = store
        self._reference: Reference = parse_reference(reference)

    def read(self) -> Route | None:
        """The route that is kept, where there is one; raises `InvalidArtifactError`."""
        asked = self._reference
        return find_route(self._store.root, asked.policy, _asked(asked))

    def stable(self) -> str:
        """The reference of the version that a daemon begins with; raises `ArtifactError`."""
        asked = self._reference
        route = None if asked.alias or asked.digest else self.read()
        if route is None or (asked.range_text and route.version not in VersionRange(asked.range_text)):
            return str(asked)
        return f"{asked.policy}@{route.digest}"

    async def keep(
        self, action: Action, stable: Resolved, arms: Iterable[RouteArm], was: Resolved | None, by: str, reason: str
    ) -> None:
        """Keeps a route, and writes into the audit log who made it so and why; raises `ArtifactError`.

        `was` is the stable version before this one; None: as it was kept.
        """
        kept = self.read()
        was_version, was_digest = (kept.was_version, kept.was_digest) if kept else ("", "")
        if was is not None:
            was_version, was_digest = was.version, was.digest
        route = Route(
            stable.policy, _asked(self._reference), stable.version, stable.digest, list(arms), was_version, was_digest
        )
        before = kept.version if kept else ""
        await asyncio.to_thread(keep_route, self._store, action, route, was=before, by=by, reason=reason)


def _asked(reference: Reference) -> str:
    return reference.digest or reference.alias or reference.range_text
