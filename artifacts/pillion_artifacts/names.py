"""Names: policies, versions, aliases, and the references that people write.

NAME             the newest release
NAME@1.2.3       that version; NAME@v1.2.3 is the same
NAME@>=1.2,<2    the newest release of a range; NAME@1.2.x is one too
NAME@stable      what the alias points at
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
    """What a reference asks for: a digest, an alias, or the newest version of a range."""

    policy: str
    digest: str = ""
    alias: str = ""
    range_text: str = ""

    def __str__(self) -> str:
        asked = self.digest or self.alias or self.range_text
        return f"{self.policy}@{asked}" if asked else self.policy


def parse_reference(text: str) -> Reference:
    """What `text` asks for; raises `PolicyNotFoundError` where no store could have it."""
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
    """Policy and version of `NAME@vMAJOR.MINOR.PATCH`; raises `InvalidNameError`."""
    policy, separator, version = text.partition("@")
    if not separator or not version:
        raise InvalidNameError(f"expected NAME@vMAJOR.MINOR.PATCH, got {text!r}")
    return checked_policy(policy), checked_version(version)


def checked_policy(text: str) -> str:
    """`text`, where it is the name of a policy; raises `InvalidNameError`."""
    if not is_policy_name(text):
        raise InvalidNameError(
            f"expected the name of a policy: small letters, digits and single hyphens, at most "
            f"{NAME_CHARACTERS_MAX} characters; got {text!r}"
        )
    return text


def checked_version(text: str) -> str:
    """The version without its `v`; raises `InvalidNameError`.

    Build metadata is refused: it does not count when versions are compared, so that two versions would be alike.
    """
    version = text.removeprefix("v")
    if not semver.Version.is_valid(version) or len(version) > NAME_CHARACTERS_MAX:
        raise InvalidNameError(f"expected vMAJOR.MINOR.PATCH, got {text!r}")
    if "+" in version:
        raise InvalidNameError(f"expected a version without build metadata, got {text!r}")
    return version


def checked_alias(text: str) -> str:
    """`text`, where it can name an alias; raises `InvalidNameError`."""
    if not is_alias_name(text):
        raise InvalidNameError(
            f"expected the name of an alias, such as 'stable': a small letter, then small letters, digits and "
            f"single hyphens, and no version; got {text!r}"
        )
    return text


def is_policy_name(text: str) -> bool:
    """Whether a policy can have that name."""
    return _NAME.fullmatch(text) is not None and len(text) <= NAME_CHARACTERS_MAX


def is_alias_name(text: str) -> bool:
    """Whether an alias can have that name: one that no version range could be taken for."""
    return _ALIAS.fullmatch(text) is not None and len(text) <= NAME_CHARACTERS_MAX and not VersionRange.is_valid(text)


def precedence(version: str) -> semver.Version:
    """What versions are sorted by; what is none comes before all that are."""
    return semver.Version.parse(version) if semver.Version.is_valid(version) else semver.Version(0, 0, 0, "0")


def version_name(policy: str, version: str) -> str:
    """The name of a version as people write it."""
    return f"{policy}@v{version}"


def ref_name(policy: str, version: str) -> str:
    """The name of a version in an OCI layout; it fits OCI's grammar of tags, which has no `@`."""
    return f"{policy}_v{version}"
