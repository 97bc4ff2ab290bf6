"""Version ranges: SemVer comparators joined by commas, all of which must hold."""

from __future__ import annotations

import re

import semver

_COMPARATOR = re.compile(r"^(<=|>=|==|!=|<|>|=)?\s*v?(.+)$")


class VersionRange:
    """`>=1.2,<2`, `1.2.3`, or empty for any release.

    Missing minor and patch numbers of a comparator count as 0. A pre-release fits only where a comparator
    names a pre-release. Raises `ValueError` for what is no range.
    """

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self._comparators = [self._parse(part) for part in self.text.split(",")] if self.text else []
        self._prereleases = any(
            semver.Version.parse(comparator.lstrip("<>=!")).prerelease for comparator in self._comparators
        )

    @staticmethod
    def _parse(part: str) -> str:
        matched = _COMPARATOR.match(part.strip())
        try:
            if matched is None:
                raise ValueError(part)
            version = semver.Version.parse(matched[2], optional_minor_and_patch=True)
        except ValueError:
            raise ValueError(f"expected a version range such as '>=1.2,<2', came {part.strip()!r}") from None
        operator = "==" if matched[1] in (None, "=") else matched[1]
        return f"{operator}{version}"

    def __contains__(self, version: str) -> bool:
        parsed = semver.Version.parse(version)
        if parsed.prerelease and not self._prereleases:
            return False
        return all(parsed.match(comparator) for comparator in self._comparators)
