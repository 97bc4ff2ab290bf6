"""Routing: which version serves a session. Today there is one."""

from __future__ import annotations

from pillion_artifacts.version_range import VersionRange
from pillion_protocol import ErrorCode, Hello, RemoteProtocolError
from pilliond.versions import Version


class Router:
    """Answers hellos with a version, or says why there is none."""

    def __init__(self, version: Version) -> None:
        self.version = version

    def route(self, hello: Hello) -> Version:
        """The version for a session that asks with `hello`; raises `RemoteProtocolError`."""
        served = self.version.identity
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
        if hello.spec_hash not in (b"", self.version.spec_hash):
            raise RemoteProtocolError(
                ErrorCode.SPEC_MISMATCH,
                "the client was made for other observations or outputs",
                self.version.spec_hash.hex(),
                hello.spec_hash.hex(),
            )
        return self.version
