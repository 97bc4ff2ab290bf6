"""The route file: keeps the route of this daemon in the store, so that it is the same after a restart.

Which version is stable after a restart depends on `store.policy`:

`NAME@ALIAS`             the version that the alias points to
`NAME`                   the version that was stable; the newest release if none was made stable here
`NAME@RANGE`             the same, if that version lies in the range; a version by itself is such a range
`NAME@sha256:DIGEST`     that version

The arms are the same as before, except one whose version is the stable one now.
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
    """Reads and writes the route of the daemons that serve `reference`. Owns nothing."""

    def __init__(self, store: Store, reference: str) -> None:
        self._store = store
        self._reference: Reference = parse_reference(reference)

    def read(self) -> Route | None:
        """Returns the stored route, or None; raises `InvalidArtifactError`."""
        asked = self._reference
        return find_route(self._store.root, asked.policy, _asked(asked))

    def stable(self) -> str:
        """Returns the reference of the version that a daemon starts with; raises `ArtifactError`."""
        asked = self._reference
        route = None if asked.alias or asked.digest else self.read()
        if route is None or (asked.range_text and route.version not in VersionRange(asked.range_text)):
            return str(asked)
        return f"{asked.policy}@{route.digest}"

    async def keep(
        self, action: Action, stable: Resolved, arms: Iterable[RouteArm], was: Resolved | None, by: str, reason: str
    ) -> None:
        """Writes a route into the store, and who set it and why into the audit log; raises `ArtifactError`.

        `was` is the stable version before this one. None: the one that is stored already stays.
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
