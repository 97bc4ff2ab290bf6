"""Names of policies, versions and aliases, and the references to them.

NAME             the newest release
NAME@1.2.3       that version; NAME@v1.2.3 means the same
NAME@>=1.2,<2    the newest release in a range; NAME@1.2.x is a range too
NAME@stable      the version that the alias points at
NAME@sha256:…    the version with that digest
"""

from __future__ import annotations

import re

import msgspec
import semver

from pillion_artifacts.errors import InvalidNameError, PolicyNotFoundError
from pillion_artifacts.limits import NAME_CHARACTERS_MAX
from pillion_artifacts.version_range import VersionRange

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_ALIAS = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Reference(msgspec.Struct, frozen=True):
    """A parsed reference: a digest, an alias, or the newest version in a range."""

    policy: str
    digest: str = ""
    alias: str = ""
    range_text: str = ""

    def __str__(self) -> str:
        asked = self.digest or self.alias or self.range_text
        return f"{self.policy}@{asked}" if asked else self.policy


def parse_reference(text: str) -> Reference:
    """Parses a reference. Raises `PolicyNotFoundError` if no store can have such a policy."""
    policy, _, asked = text.partition("@")
    asked = asked.strip()
    if not is_policy_name(policy):
        raise PolicyNotFoundError(f"expected NAME, NAME@VERSION, NAME@ALIAS or NAME@sha256:DIGEST, got {text!r}")
    if _DIGEST.fullmatch(asked):
        return Reference(policy, digest=asked)
    if is_alias_name(asked):
        return Reference(policy, alias=asked)
    return Reference(policy, range_text=asked)


def parse_name(text: str) -> tuple[str, str]:
    """Parses `NAME@vMAJOR.MINOR.PATCH` into policy and version. Raises `InvalidNameError`."""
    policy, separator, version = text.partition("@")
    if not separator or not version:
        raise InvalidNameError(f"expected NAME@vMAJOR.MINOR.PATCH, got {text!r}")
    return checked_policy(policy), checked_version(version)


def checked_policy(text: str) -> str:
    """Returns `text` if it is a valid policy name. Raises `InvalidNameError`."""
    if not is_policy_name(text):
        raise InvalidNameError(
            f"expected the name of a policy: lower-case letters, digits and single hyphens, at most "
            f"{NAME_CHARACTERS_MAX} characters; got {text!r}"
        )
    return text


def checked_version(text: str) -> str:
    """Returns the version without its `v`. Raises `InvalidNameError`.

    Build metadata is refused: SemVer ignores it in comparisons, so two versions could be equal.
    """
    version = text.removeprefix("v")
    if not semver.Version.is_valid(version) or len(version) > NAME_CHARACTERS_MAX:
        raise InvalidNameError(f"expected vMAJOR.MINOR.PATCH, got {text!r}")
    if "+" in version:
        raise InvalidNameError(f"expected a version without build metadata, got {text!r}")
    return version


def checked_alias(text: str) -> str:
    """Returns `text` if it is a valid alias name. Raises `InvalidNameError`."""
    if not is_alias_name(text):
        raise InvalidNameError(
            f"expected the name of an alias, such as 'stable': a lower-case letter, then lower-case letters, digits and "
            f"single hyphens, and no version; got {text!r}"
        )
    return text


def is_policy_name(text: str) -> bool:
    """Whether `text` is a valid policy name."""
    return _NAME.fullmatch(text) is not None and len(text) <= NAME_CHARACTERS_MAX


def is_alias_name(text: str) -> bool:
    """Whether `text` is a valid alias name. A version range is none, so that a reference has one meaning."""
    return _ALIAS.fullmatch(text) is not None and len(text) <= NAME_CHARACTERS_MAX and not VersionRange.is_valid(text)


def precedence(version: str) -> semver.Version:
    """The sort key of versions. Text that is no version sorts first."""
    return semver.Version.parse(version) if semver.Version.is_valid(version) else semver.Version(0, 0, 0, "0")


def version_name(policy: str, version: str) -> str:
    """The name of a version: `policy@vMAJOR.MINOR.PATCH`."""
    return f"{policy}@v{version}"


def ref_name(policy: str, version: str) -> str:
    """The name of a version in an OCI layout. OCI's grammar of tags has no `@`."""
    return f"{policy}_v{version}"
