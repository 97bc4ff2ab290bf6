"""Restore: brings back what a daemon served before it was restarted: the stable version, the arms and the held versions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from pillion_artifacts import ArtifactError, Resolved, Store
from pillion_artifacts.card.model_card import EngineCard
from pillion_artifacts.errors import StoreError
from pillion_artifacts.store.daemon_locks import DaemonLock
from pillion_artifacts.verify.trust_policy import TrustPolicy
from pilliond.errors import BadPolicyError, DaemonError
from pilliond.ipc.sealed_version import SealedVersion, seal
from pilliond.limits import ARMS_MAX
from pilliond.rollout.route_file import RouteFile
from pilliond.settings.schema import Settings
from pilliond.staging.preflight import admit
from pilliond.supervision.version_table import VersionTable, key_of
from pilliond.traffic_split import Arm


def admitted(
    store: Store, reference: str, trust: TrustPolicy, on_card: Callable[[EngineCard], None] = lambda _: None
) -> SealedVersion:
    """Returns the verified, sealed version that `reference` names; the caller closes it. Raises `BadPolicyError`.

    `on_card` is as in `admit`.

    It has no daemon lock if this process may not write to the store. Then `gc` may delete the stored version; the copy in
    memory is not affected.
    """
    try:
        resolved, lock = _locked(store, reference)
    except ArtifactError as error:
        raise BadPolicyError(str(error)) from None
    try:
        artifact, signed_by = admit(store, resolved, trust, on_card)
    except BadPolicyError:
        if lock is not None:
            lock.close()
        raise
    return seal(artifact, lock, signed_by)


class Restore:
    """Adds to `version_table` what the first serving process starts with beside the stable version. Owns nothing.

    The serving process runs the golden pairs before it answers. A version that cannot be loaded is logged and left out.
    """

    def __init__(self, settings: Settings, version_table: VersionTable, log: FilteringBoundLogger) -> None:
        self._store = Store(Path(settings.store.path))
        self._trust = settings.trust
        self._version_table = version_table
        self._log = log

    def run(self, reference: str) -> None:
        """Adds the arms of daemons that serve `reference`, then the versions of evaluation holds."""
        self._resume_arms(reference)
        self._resume_held()

    def _resume_arms(self, reference: str) -> None:
        try:
            route = RouteFile(self._store, reference).read()
        except ArtifactError as error:
            self._log.error("route_not_resumed", error=str(error))
            return
        version_table = self._version_table
        for arm in (route.arms if route else [])[:ARMS_MAX]:
            version = None if arm.digest == version_table.stable.digest else self._find_or_add(arm.digest, arm=arm.name)
            if version is not None:
                version_table.arms.append(Arm(arm.name, version.key, arm.share))

    def _resume_held(self) -> None:
        try:
            holds = self._store.evaluation_holds(self._version_table.stable.policy)
        except ArtifactError as error:
            self._log.error("holds_not_resumed", error=str(error))
            return
        for hold in holds:
            version = self._find_or_add(hold.digest, hold=hold.name)
            if version is not None:
                self._version_table.held.add(version.key)

    def _find_or_add(self, digest: str, **what: str) -> SealedVersion | None:
        """Returns the version with that digest, which is added if it is not there yet; None if it cannot be loaded."""
        found = self._version_table.find(key_of(digest))
        if found is not None:
            return found
        version = None
        try:
            version = admitted(self._store, f"{self._version_table.stable.policy}@{digest}", self._trust)
            self._version_table.resume(version)
        except DaemonError as error:
            self._log.error("version_not_resumed", **what, error=str(error))
            if version is not None:
                version.close()
            return None
        return version


def _locked(store: Store, reference: str) -> tuple[Resolved, DaemonLock | None]:
    try:
        return store.lock_version(reference)
    except StoreError:
        return store.resolve(reference), None
