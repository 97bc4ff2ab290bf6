"""The residents: which versions the serving process has, as the control process knows it."""

from __future__ import annotations

from collections.abc import Iterator

from pilliond.errors import SwitchError
from pilliond.metrics_page import PLACES_MAX
from pilliond.sealed_version import SealedVersion
from pilliond.shares import Arm


class Residents:
    """Owns the sealed versions that are loaded; `close` gives them all back. It mirrors `residence` over there."""

    def __init__(self, stable: SealedVersion) -> None:
        self.stable = stable
        self.previous: SealedVersion | None = None
        self.arms: list[Arm] = []
        """Who gets which share of new episodes; the stable version gets the rest."""
        stable.place = 1
        self._versions = {stable.key: stable}

    def __iter__(self) -> Iterator[SealedVersion]:
        return iter(list(self._versions.values()))

    def find(self, digest: bytes) -> SealedVersion | None:
        """The version with that digest, or None where it is not loaded."""
        return self._versions.get(digest)

    def free_place(self) -> int:
        """A place of the metrics page that no version has; raises `SwitchError` where there is none."""
        taken = {version.place for version in self}
        free = next((place for place in range(1, PLACES_MAX) if place not in taken), None)
        if free is None:
            raise SwitchError(f"too many versions are loaded: expected at most {PLACES_MAX - 1}")
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

    def restart(self) -> None:
        """A new serving process begins with the stable version alone."""
        self.arms = []
        for version in self:
            if version is not self.stable:
                self.remove(version.key)

    def close(self) -> None:
        """Gives everything back."""
        for version in self:
            version.close()
        self._versions.clear()
