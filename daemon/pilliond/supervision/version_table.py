"""The version table: the versions that the serving process has loaded, as the control process knows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pillion_artifacts import Resolved
from pilliond.errors import SwitchError
from pilliond.ipc.batch_certificate import Certificate
from pilliond.ipc.placement import Placement
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.limits import VERSION_CELLS_PER_POLICY
from pilliond.traffic_split import Arm


def key_of(digest: str) -> bytes:
    """Returns the key of a version in the table and in messages, of its digest as text (`sha256:` and 64 hexadecimal digits)."""
    return bytes.fromhex(digest.removeprefix("sha256:"))


def resolved(version: SealedVersion) -> Resolved:
    """Returns the name of a version, as the store resolves it."""
    return Resolved(version.policy, version.version, version.digest)


class VersionTable:
    """The loaded versions of one policy, in the order of loading. Owns them; `close` releases them.

    It mirrors `core.residency` in the serving process. `number` is the place of the policy in the settings, from 0 on: no other
    policy has the metrics indices of its versions.
    """

    def __init__(self, stable: SealedVersion, number: int = 0) -> None:
        self.stable = stable
        self.previous: SealedVersion | None = None
        self.arms: list[Arm] = []
        """The arms of the route; the stable version gets the new episodes that they leave."""
        self.held: set[bytes] = set()
        """Digests of the versions that have an evaluation hold."""
        first = number * VERSION_CELLS_PER_POLICY
        # The first index is that of acts that several versions ran.
        self._indices = range(first + 1, first + VERSION_CELLS_PER_POLICY)
        stable.metrics_index = self._indices[0]
        self._versions = {stable.key: stable}

    def __iter__(self) -> Iterator[SealedVersion]:
        return iter(list(self._versions.values()))

    def find(self, digest: bytes) -> SealedVersion | None:
        """Returns the version with that digest, or None if it is not loaded."""
        return self._versions.get(digest)

    def free_metrics_index(self) -> int:
        """Returns a metrics index that no version has; raises `SwitchError` if there is none."""
        taken = {version.metrics_index for version in self}
        free = next((index for index in self._indices if index not in taken), None)
        if free is None:
            raise SwitchError(f"too many versions are loaded: expected at most {len(self._indices)}")
        return free

    def add(self, version: SealedVersion) -> None:
        """Takes over a version that was loaded."""
        self._versions[version.key] = version

    def switch(self, digest: bytes) -> None:
        """Makes the version with that digest the stable one. If it was an arm, it is one no longer."""
        version = self._versions[digest]
        if version is not self.stable:
            self.previous, self.stable = self.stable, version
            self.arms = [arm for arm in self.arms if arm.digest != digest]

    def remove(self, digest: bytes) -> None:
        """Releases a version that was unloaded."""
        version = self._versions.pop(digest)
        if version is self.previous:
            self.previous = None
        version.close()

    def resume(self, version: SealedVersion) -> None:
        """Takes over a version that the next serving process starts with; raises `SwitchError`."""
        version.metrics_index = self.free_metrics_index()
        self.add(version)

    def beside(self) -> list[SealedVersion]:
        """Returns the versions that a new serving process starts with beside the stable one: arms and held versions."""
        kept = self.held | {arm.digest for arm in self.arms}
        return [version for version in self if version is not self.stable and version.key in kept]

    def restart(self, alone: bool) -> None:
        """Releases what a new serving process starts without. It starts with the stable version `alone`, or with those beside it."""
        if alone:
            self.arms, self.held = [], self.held & {self.stable.key}
        kept = [self.stable, *self.beside()]
        for version in self:
            if version not in kept:
                self.remove(version.key)

    def certify(self, certificates: Mapping[bytes, Certificate], placements: Mapping[bytes, Placement]) -> None:
        """Notes the batch certificates that a new serving process measured, and where its versions run."""
        for version in self:
            version.certificate = certificates.get(version.key, version.certificate)
            version.placement = placements.get(version.key, version.placement)

    def refuse(self, digest: bytes) -> None:
        """Releases a version that a new serving process could not load."""
        self.arms = [arm for arm in self.arms if arm.digest != digest]
        self.held.discard(digest)
        self.remove(digest)

    @property
    def mixed_index(self) -> int:
        """The metrics index of acts that several versions of the policy ran."""
        return self._indices[0] - 1

    def close(self) -> None:
        """Releases every version."""
        for version in self:
            version.close()
        self._versions.clear()
