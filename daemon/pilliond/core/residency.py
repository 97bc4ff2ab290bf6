"""Residency: which versions are loaded in the serving process, and when an old one is unloaded."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Final

import semver

from pilliond.core.routing import Router
from pilliond.core.scheduler import Scheduler
from pilliond.core.sessions import Sessions
from pilliond.limits import NEVER_NS
from pilliond.settings.schema import VersionSettings
from pilliond.versions.loaded_version import Version

_NANOSECONDS: Final = 1_000_000_000
_BYTES_PER_MB: Final = 1_000_000


class Residency:
    """The loaded versions. Pure: the caller passes the time, and unloads the versions that `sweep` returns.

    Rule: a version is *loaded*, then perhaps *stable*, then *retired*, then *gone*.
    - A retired version stays while an episode group leases it or a session can lease nothing else, for at most
      `lease_s_max`.
    - The previous stable version also stays without leases, so that a rollback finds it.
    - Beyond `old_max` versions or `old_mb_max`, the oldest go first.
    - A version *held* for an evaluation stays, and does not count. When the hold ends it is retired.
    """

    def __init__(
        self, router: Router, sessions: Sessions, scheduler: Scheduler, bounds: VersionSettings, watch_s: float = 0.0
    ) -> None:
        self.previous: Version | None = None
        self._router = router
        self._sessions = sessions
        self._scheduler = scheduler
        self._bounds = bounds
        self._watch_ns = int(watch_s * _NANOSECONDS)
        self._watch_until_ns = 0
        self._shares: list[tuple[Version, float]] = []
        self._versions: dict[bytes, Version] = {router.stable.digest: router.stable}

    def __len__(self) -> int:
        return len(self._versions)

    def versions(self) -> Iterable[Version]:
        """Every loaded version."""
        return self._versions.values()

    def find(self, digest: bytes) -> Version | None:
        """The loaded version with that digest, or None."""
        return self._versions.get(digest)

    def add(self, version: Version) -> None:
        """Adds a loaded version. No episode leases it before `switch`, `set_arms` or `hold`."""
        self._versions[version.digest] = version

    def switch(self, version: Version, now_ns: int) -> Version:
        """Makes `version` the stable one, for new episodes; returns the one that was stable until now."""
        was = self._router.stable
        if version is not was:
            # The other arms keep their shares. If `version` was an arm, its share goes to the stable version, which it now is.
            self._divide([(arm, share) for arm, share in self._shares if arm is not version])
            self._router.stable = version
            version.retired_ns = NEVER_NS
            was.retired_ns = now_ns
            self.previous = was
            was.watched = False
            version.watched = self._watch_ns > 0
            self._watch_until_ns = now_ns + self._watch_ns
        return was

    def set_arms(self, arms: list[tuple[Version, float]], now_ns: int) -> None:
        """Splits new episodes from now on: each version gets its share, the stable one gets the rest."""
        for _, version in self._router.arms:
            version.retired_ns = now_ns
            version.watched = False
        for version, _ in arms:
            version.retired_ns = NEVER_NS
            version.watched = self._watch_ns > 0
        self._divide(arms)

    def _divide(self, shares: list[tuple[Version, float]]) -> None:
        """Gives each arm its interval of [0, 1), one after another."""
        self._shares = shares
        ends = accumulate(share for _, share in shares)
        self._router.arms = [(end, version) for end, (version, _) in zip(ends, shares, strict=True)]

    def hold(self, held: Iterable[Version], now_ns: int) -> None:
        """Holds exactly these versions for evaluations from now on."""
        newest_first = sorted(held, key=lambda version: semver.Version.parse(version.identity.version), reverse=True)
        ended = [version for version in self._router.held if version not in newest_first]
        self._router.held = newest_first
        for version in newest_first:
            version.held = True
        for version in ended:
            version.held = False
            if not self._is_routed(version):
                version.retired_ns = now_ns

    def _is_routed(self, version: Version) -> bool:
        return version is self._router.stable or any(version is arm for _, arm in self._router.arms)

    def forget(self, version: Version) -> None:
        """Retires a loaded version that no episode will lease."""
        if version is not self._router.stable and not version.leases and not version.held:
            version.retired_ns = 0
            if version is self.previous:
                self.previous = None

    def sweep(self, now_ns: int) -> list[tuple[bytes, int]]:
        """Unloads versions that are no longer needed; returns the digest of each, and how many leases were ended for it."""
        if now_ns >= self._watch_until_ns:
            self._router.stable.watched = False
        unloaded = []
        for version in self._ending(now_ns):
            version.ended_leases += self._sessions.end_leases(version)
            if version.leases or self._scheduler.has_work(version):
                # An act waits or runs; the next sweep finds it answered.
                continue
            self._scheduler.forget(version)
            self._unbind(version)
            del self._versions[version.digest]
            if version is self.previous:
                self.previous = None
            unloaded.append((version.digest, version.ended_leases))
        return unloaded

    def _ending(self, now_ns: int) -> list[Version]:
        old = [version for version in self._versions.values() if version.retired_ns < NEVER_NS and not version.held]
        old.sort(key=lambda version: (version is self.previous, version.retired_ns))
        ending = [version for version in old if version.ended_leases or self._is_spent(version, now_ns)]
        staying = [version for version in old if version not in ending]
        while staying and self._is_too_much(staying):
            ending.append(staying.pop(0))
        return ending

    def _is_spent(self, version: Version, now_ns: int) -> bool:
        is_late = now_ns - version.retired_ns >= self._bounds.lease_s_max * _NANOSECONDS
        if version is self.previous:
            if is_late and version.leases:
                # Its leases end, but it stays for a rollback.
                self._sessions.end_leases(version)
            return False
        return is_late or not (version.leases or self._is_bound(version))

    def _is_bound(self, version: Version) -> bool:
        """Whether a session can lease only this version. Sessions that can use the stable one move to it.

        A session of an evaluation whose hold has ended can lease nothing, so it does not count.
        """
        return any(
            session.version is version and not self._router.follow(session) and not session.is_evaluation
            for session in self._sessions.opened()
        )

    def _unbind(self, version: Version) -> None:
        """Detaches sessions from a version that is unloaded; one that can use no other keeps its name."""
        left = version.without_engine()
        for session in self._sessions.opened():
            if session.version is version and not self._router.follow(session):
                session.version = left

    def _is_too_much(self, staying: Iterable[Version]) -> bool:
        held = [version.resident_bytes for version in staying]
        return len(held) > self._bounds.old_max or sum(held) > self._bounds.old_mb_max * _BYTES_PER_MB
