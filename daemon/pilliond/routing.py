"""Routing: which version serves a session, and which one an episode leases. Plain: it decides, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pillion_artifacts.version_range import VersionRange
from pillion_protocol import ErrorCode, Hello, RemoteProtocolError
from pilliond.shares import salt_of, unit_of
from pilliond.versions import Version

if TYPE_CHECKING:
    from pilliond.sessions import Session


class Router:
    """Answers hellos and begins with a version, or says why there is none.

    Rule: an episode that begins leases the arm that its seed falls to, else the stable version, where its session can go
    over to it; else the one that the session was opened on, for as long as that is loaded.
    """

    def __init__(self, version: Version) -> None:
        self.stable = version
        self.arms: list[tuple[float, Version]] = []
        """Each arm, and the end of its part of the numbers from 0 to 1; the rest is the stable version's."""
        self._salt = salt_of(version.identity.policy)

    def route(self, hello: Hello) -> Version:
        """The version for a session that asks with `hello`; raises `RemoteProtocolError`."""
        served = self.stable.identity
        if hello.policy not in ("", served.policy):
            raise RemoteProtocolError(
                ErrorCode.POLICY_NOT_FOUND, "this policy is not served here", served.policy, hello.policy
            )
        try:
            fits = served.version in VersionRange(hello.version_range)
        except ValueError:
            raise RemoteProtocolError(
                ErrorCode.VERSION_NOT_FOUND,
                "this is no version range",
                "comparators joined by commas, such as >=1.2,<2",
                hello.version_range,
            ) from None
        if not fits:
            raise RemoteProtocolError(
                ErrorCode.VERSION_NOT_FOUND,
                f"no served version of {served.policy} fits the range",
                hello.version_range,
                served.version,
            )
        if hello.spec_hash not in (b"", self.stable.spec_hash):
            raise RemoteProtocolError(
                ErrorCode.SPEC_MISMATCH,
                "the client was made for other observations or outputs",
                self.stable.spec_hash.hex(),
                hello.spec_hash.hex(),
            )
        return self.stable

    def lease(self, session: Session, seed: int) -> Version:
        """The version for an episode of `session` that begins with `seed`; raises `RemoteProtocolError` (`version_gone`)."""
        if session.version is not self.stable:
            self.follow(session)
        arm = self._arm(session, seed) if self.arms else None
        if arm is not None:
            return arm
        if session.version.gone:
            raise version_gone(session.version)
        return session.version

    def is_settled(self, version: Version) -> bool:
        """Whether a handle of `version` would lease the same again, whoever asks."""
        return version is self.stable and not self.arms

    def _arm(self, session: Session, seed: int) -> Version | None:
        unit = unit_of(self._salt, seed)
        chosen = next((version for end, version in self.arms if unit < end), None)
        if chosen is None or not chosen.suits(session.version, session.version_range, session.fallback):
            return None
        return chosen

    def follow(self, session: Session) -> bool:
        """Lets a session go over to the stable version, where it can; tells whether it is there."""
        if session.version is not self.stable and self.stable.suits(
            session.version, session.version_range, session.fallback
        ):
            session.version = self.stable
        return session.version is self.stable


def version_gone(version: Version) -> RemoteProtocolError:
    """What an episode is told whose version was unloaded."""
    return RemoteProtocolError(
        ErrorCode.VERSION_GONE,
        f"version {version.identity.version} was unloaded after a switch",
        "a new episode",
        "one of a version that is gone",
    )
