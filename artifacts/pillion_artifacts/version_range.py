"""Version ranges: SemVer comparators separated by commas, all of which must hold."""

from __future__ import annotations

import re

import semver

_COMPARATOR = re.compile(r"^(<=|>=|==|!=|<|>|=)?\s*v?(.+)$")
_WILDCARD = re.compile(r"^v?(?:(\d+)\.)?(?:(\d+)\.)?[xX*]$")


class VersionRange:
    """`>=1.2,<2`, `1.2.3`, `1.2.x`, or empty for any release.

    Missing minor and patch numbers of a comparator count as 0. A pre-release fits only if a comparator names a
    pre-release of the same major, minor and patch number: `>=1.2.0-rc.1,<2` does not contain `2.0.0-rc.1`.
    Raises `ValueError` for any other text.
    """

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        parts = self.text.split(",") if self.text else []
        self._comparators = [comparator for part in parts for comparator in self._parse(part.strip())]
        versions = [semver.Version.parse(comparator.lstrip("<>=!")) for comparator in self._comparators]
        self._prereleases = {version.to_tuple()[:3] for version in versions if version.prerelease}

    @classmethod
    def is_valid(cls, text: str) -> bool:
        """Whether `text` is a valid range."""
        try:
            cls(text)
        except ValueError:
            return False
        return True

    @classmethod
    def _parse(cls, part: str) -> list[str]:
        if (wild := _WILDCARD.match(part)) is not None:
            return cls._between(*(int(number) for number in wild.groups() if number is not None))
        matched = _COMPARATOR.match(part)
        try:
            if matched is None:
                raise ValueError(part)
            version = semver.Version.parse(matched[2], optional_minor_and_patch=True)
        except ValueError:
            raise ValueError(f"expected a version range such as '>=1.2,<2', got {part!r}") from None
        operator = "==" if matched[1] in (None, "=") else matched[1]
        return [f"{operator}{version}"]

    @staticmethod
    def _between(*numbers: int) -> list[str]:
        """The comparators of `1.2.x` (numbers 1 and 2), of `1.x` (1) or of `x` (none)."""
        if not numbers:
            return []
        first = semver.Version(*numbers)
        return [f">={first}", f"<{first.bump_minor() if len(numbers) == 2 else first.bump_major()}"]

    def __contains__(self, version: str) -> bool:
        parsed = semver.Version.parse(version)
        if parsed.prerelease and parsed.to_tuple()[:3] not in self._prereleases:
            return False
        return all(parsed.match(comparator) for comparator in self._comparators)
