"""Routing: which version a session gets, and which one each of its episodes leases. Pure: it only decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pillion_artifacts.version_range import VersionRange
from pillion_protocol import Hello
from pilliond.core import rejections
from pilliond.traffic_split import salt_of, unit_of
from pilliond.versions.loaded_version import Version

if TYPE_CHECKING:
    from pilliond.core.session import Session


class Router:
    """Answers a hello or a begin for one policy with a version, or raises why there is none.

    Rule: an episode that begins leases the first of these that its session can use:
    1. the version that is held for an evaluation, if the session was opened on it: nothing else while it is held;
    2. the arm that the episode's seed falls into;
    3. the stable version;
    4. the version that the session was opened on, for as long as that is loaded.
    """

    def __init__(self, version: Version) -> None:
        self.stable = version
        self.arms: list[tuple[float, Version]] = []
        """Each arm with the end of its interval in [0, 1); what the arms leave is the stable version's."""
        self.held: list[Version] = []
        """The versions that are held for evaluations, newest first."""
        self._salt = salt_of(version.identity.policy)

    def route(self, hello: Hello) -> Version:
        """Returns the version for a new session; raises `RemoteProtocolError`."""
        served = self.stable.identity
        try:
            wanted = VersionRange(hello.version_range)
        except ValueError:
            raise rejections.invalid_range(hello) from None
        version = next((each for each in [self.stable, *self.held] if each.identity.version in wanted), None)
        if version is None:
            raise rejections.version_not_found(served, hello)
        if hello.spec_hash not in (b"", version.spec_hash):
            raise rejections.spec_mismatch(version, hello)
        return version

    def lease(self, session: Session, seed: int) -> Version:
        """Returns the version for an episode that begins with `seed`; raises `RemoteProtocolError` (`version_gone`)."""
        if session.is_evaluation:
            if session.version.held:
                return session.version
            if not self.follow(session):
                raise rejections.hold_ended(session.version)
        elif session.version is not self.stable:
            self.follow(session)
        arm = self._arm(session, seed) if self.arms else None
        if arm is not None:
            return arm
        if session.version.gone:
            raise rejections.version_gone(session.version)
        return session.version

    def is_settled(self, version: Version) -> bool:
        """Whether every new episode of a group on `version` would lease the same version again."""
        return version is self.stable and not self.arms

    def follow(self, session: Session) -> bool:
        """Moves a session to the stable version if it can use it; returns whether it is there now."""
        is_free = not (session.is_evaluation and session.version.held)
        if (
            is_free
            and session.version is not self.stable
            and self.stable.suits(session.version, session.version_range, session.fallback)
        ):
            session.version = self.stable
            session.is_evaluation = False
        return session.version is self.stable

    def _arm(self, session: Session, seed: int) -> Version | None:
        unit = unit_of(self._salt, seed)
        chosen = next((version for end, version in self.arms if unit < end), None)
        if chosen is None or not chosen.suits(session.version, session.version_range, session.fallback):
            return None
        return chosen
