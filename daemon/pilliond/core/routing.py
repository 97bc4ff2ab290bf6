"""Routing: which version serves a session, and which one an episode leases. Plain: it decides, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pillion_artifacts.version_range import VersionRange
from pillion_protocol import ErrorCode, Hello, RemoteProtocolError
from pilliond.traffic_split import salt_of, unit_of
from pilliond.versions.loaded_version import Version

if TYPE_CHECKING:
    from pilliond.core.session import Session


class Router:
    """Answers hellos and begins with a version, or says why there is none.

    Rule: an episode that begins leases the arm that its seed falls to, else the stable version, where its session can go
    over to it; else the one that the session was opened on, for as long as that is loaded. A session whose range holds a
    version that is held for an evaluation, and not the stable one, is the campaign's: it leases that version, and no other
    for as long as it is held.
    """

    def __init__(self, version: Version) -> None:
        self.stable = version
        self.arms: list[tuple[float, Version]] = []
        """Each arm, and the end of its part of the numbers from 0 to 1; the rest is the stable version's."""
        self.held: list[Version] = []
        """The versions that are held for evaluations, newest first."""
        self._salt = salt_of(version.identity.policy)

    def route(self, hello: Hello) -> Version:
        """The version for a session that asks with `hello`; raises `RemoteProtocolError`."""
        served = self.stable.identity
        if hello.policy not in ("", served.policy):
            raise RemoteProtocolError(
                ErrorCode.POLICY_NOT_FOUND, "this policy is not served here", served.policy, hello.policy
            )
        try:
            wanted = VersionRange(hello.version_range)
        except ValueError:
            raise RemoteProtocolError(
                ErrorCode.VERSION_NOT_FOUND,
                "this is no version range",
                "comparators joined by commas, such as >=1.2,<2",
                hello.version_range,
            ) from None
        version = self._fitting(wanted)
        if version is None:
            raise RemoteProtocolError(
                ErrorCode.VERSION_NOT_FOUND,
                f"no served version of {served.policy} fits the range",
                hello.version_range,
                served.version,
            )
        if hello.spec_hash not in (b"", version.spec_hash):
            raise RemoteProtocolError(
                ErrorCode.SPEC_MISMATCH,
                "the client was made for other observations or outputs",
                version.spec_hash.hex(),
                hello.spec_hash.hex(),
            )
        return version

    def lease(self, session: Session, seed: int) -> Version:
        """The version for an episode of `session` that begins with `seed`; raises `RemoteProtocolError` (`version_gone`)."""
        if session.is_evaluation:
            if session.version.held:
                return session.version
            if not self.follow(session):
                raise _evaluation_ended(session.version)
        elif session.version is not self.stable:
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

    def _fitting(self, wanted: VersionRange) -> Version | None:
        return next((each for each in [self.stable, *self.held] if each.identity.version in wanted), None)

    def _arm(self, session: Session, seed: int) -> Version | None:
        unit = unit_of(self._salt, seed)
        chosen = next((version for end, version in self.arms if unit < end), None)
        if chosen is None or not chosen.suits(session.version, session.version_range, session.fallback):
            return None
        return chosen

    def follow(self, session: Session) -> bool:
        """Lets a session go over to the stable version, where it can; tells whether it is there."""
        is_free = not (session.is_evaluation and session.version.held)
        if (
            is_free
            and session.version is not self.stable
            and self.stable.suits(session.version, session.version_range, session.fallback)
        ):
            session.version = self.stable
            session.is_evaluation = False
        return session.version is self.stable


def version_gone(version: Version) -> RemoteProtocolError:
    """What an episode is told whose version was unloaded."""
    return RemoteProtocolError(
        ErrorCode.VERSION_GONE,
        f"version {version.identity.version} was unloaded after a switch",
        "a new episode",
        "one of a version that is gone",
    )


def _evaluation_ended(version: Version) -> RemoteProtocolError:
    """What a session of a campaign is told that begins an episode after the campaign's lease has ended."""
    return RemoteProtocolError(
        ErrorCode.VERSION_GONE,
        f"version {version.identity.version} is not held for an evaluation any more",
        "a new session",
        "an episode of one that was opened while it was held",
    )
