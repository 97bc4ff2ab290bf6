"""The version_table: which versions the serving process has, as the control process knows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pillion_artifacts import Resolved
from pilliond.errors import SwitchError
from pilliond.ipc.batch_certificate import Certificate
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.limits import VERSION_CELLS_MAX
from pilliond.traffic_split import Arm


def key_of(digest: str) -> bytes:
    """Returns the key of a version in the table and in messages, of its digest as text (`sha256:` and 64 hexadecimal digits)."""
    return bytes.fromhex(digest.removeprefix("sha256:"))


def resolved(version: SealedVersion) -> Resolved:
    """Returns the name of a version, as the store resolves it."""
    return Resolved(version.policy, version.version, version.digest)


class VersionTable:
    """Owns the sealed versions that are loaded; `close` gives them all back. It mirrors `residency` over there."""

    def __init__(self, stable: SealedVersion) -> None:
        self.stable = stable
        self.previous: SealedVersion | None = None
        self.arms: list[Arm] = []
        """Who gets which share of new episodes; the stable version gets the rest."""
        self.held: set[bytes] = set()
        """The versions that are held for evaluations."""
        stable.metrics_index = 1
        self._versions = {stable.key: stable}

    def __iter__(self) -> Iterator[SealedVersion]:
        return iter(list(self._versions.values()))

    def find(self, digest: bytes) -> SealedVersion | None:
        """The version with that digest, or None where it is not loaded."""
        return self._versions.get(digest)

    def free_metrics_index(self) -> int:
        """A metrics index that no version has; raises `SwitchError` where there is none."""
        taken = {version.metrics_index for version in self}
        free = next((index for index in range(1, VERSION_CELLS_MAX) if index not in taken), None)
        if free is None:
            raise SwitchError(f"too many versions are loaded: expected at most {VERSION_CELLS_MAX - 1}")
        return free

    def add(self, version: SealedVersion) -> None:
        """Takes over a version that was loaded."""
        self._versions[version.key] = version

    def switch(self, digest: bytes) -> None:
        """The version with that digest is the stable one now."""
        version = self._versions[digest]
        if version is not self.stable:
            self.previous, self.stable = self.stable, version
            self.arms = [arm for arm in self.arms if arm.digest != digest]

    def remove(self, digest: bytes) -> None:
        """Gives a version back that was unloaded."""
        version = self._versions.pop(digest)
        if version is self.previous:
            self.previous = None
        version.close()

    def resume(self, version: SealedVersion) -> None:
        """Takes over a version that the next serving process is to begin with; raises `SwitchError`."""
        version.metrics_index = self.free_metrics_index()
        self.add(version)

    def beside(self) -> list[SealedVersion]:
        """What a new serving process begins with beside the stable version: arms, and what is held."""
        kept = self.held | {arm.digest for arm in self.arms}
        return [version for version in self if version is not self.stable and version.key in kept]

    def restart(self, alone: bool) -> None:
        """A new serving process begins with the stable version and those beside it, or with the stable one `alone`."""
        if alone:
            self.arms, self.held = [], self.held & {self.stable.key}
        kept = [self.stable, *self.beside()]
        for version in self:
            if version not in kept:
                self.remove(version.key)

    def certify(self, certificates: Mapping[bytes, Certificate]) -> None:
        """Notes what a new serving process has found of the versions that it began with."""
        for digest, certificate in certificates.items():
            self._versions[digest].certificate = certificate

    def refuse(self, digest: bytes) -> None:
        """Gives a version back that a new serving process could not load."""
        self.arms = [arm for arm in self.arms if arm.digest != digest]
        self.held.discard(digest)
        self.remove(digest)

    def close(self) -> None:
        """Gives everything back."""
        for version in self:
            version.close()
        self._versions.clear()
