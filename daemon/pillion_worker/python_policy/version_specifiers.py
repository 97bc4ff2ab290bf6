"""Versions and version specifiers of PEP 440, as far as a card needs them: interpreters need not have `packaging`."""

from __future__ import annotations

import math
import re
from typing import Final, NamedTuple

from pillion_worker.errors import EngineError

_VERSION: Final = re.compile(
    r"\s*v?(?:(?P<epoch>\d+)!)?(?P<release>\d+(?:\.\d+)*)"
    r"(?:[-_.]?(?P<phase>alpha|beta|preview|pre|a|b|c|rc)[-_.]?(?P<phase_number>\d*))?"
    r"(?:-(?P<post_alone>\d+)|[-_.]?(?P<post>post|rev|r)[-_.]?(?P<post_number>\d*))?"
    r"(?:[-_.]?(?P<dev>dev)[-_.]?(?P<dev_number>\d*))?"
    r"(?P<local>\+[a-z0-9]+(?:[-_.][a-z0-9]+)*)?\s*",
    re.ASCII | re.IGNORECASE,
)
_SPECIFIER: Final = re.compile(r"(~=|==|!=|<=|>=|<|>)\s*([^\s=<>~]+)")
_PHASES: Final = {"a": 0, "alpha": 0, "b": 1, "beta": 1, "c": 2, "rc": 2, "pre": 2, "preview": 2}
_BEFORE_ALL: Final = -1
_FINAL: Final = 3


class _Version(NamedTuple):
    """A version without its local part. Two of them compare in the order of PEP 440."""

    epoch: int
    release: tuple[int, ...]
    """Without the zeros at its end."""
    phase: tuple[int, int]
    post: int
    dev: float

    @property
    def is_pre(self) -> bool:
        return self.phase < (_FINAL, 0) or self.dev < math.inf

    @property
    def is_post(self) -> bool:
        return self.post >= 0


def fits(version: str, specifiers: str) -> bool:
    """Whether a version fits every specifier of a comma-separated list; an empty list fits any version.

    Local parts (`+cpu`) do not count, and a pre-release fits like any other version. Raises `EngineError` if either
    cannot be read.
    """
    return all(_fits(version, each.strip()) for each in specifiers.split(",") if each.strip())


def _fits(version: str, specifier: str) -> bool:
    found = _SPECIFIER.fullmatch(specifier)
    if not found or "+" in specifier:
        raise EngineError(f"requires: expected specifiers such as '>=1.2,<2' (PEP 440), got {specifier!r}")
    operator, text = found.groups()
    if text.endswith(".*"):
        if operator not in ("==", "!="):
            raise EngineError(f"requires: expected == or != before {text!r}, got {operator!r}")
        return _begins_with(version, text[: -len(".*")]) == (operator == "==")
    actual, stated = _parse(version), _parse(text)
    if operator == "~=":
        series = _match(text)["release"].rpartition(".")[0]
        if not series:
            raise EngineError(f"requires: expected two numbers or more after '~=', got {text!r}")
        return actual >= stated and _begins_with(version, f"{stated.epoch}!{series}")
    if operator == "<":
        # Nor a pre-release of the stated version.
        releases = (_Version(*actual[:2], (_FINAL, 0), -1, math.inf), actual._replace(dev=math.inf))
        return actual < stated and not (actual.is_pre and not stated.is_pre and stated in releases)
    if operator == ">":
        # Nor a post-release of the stated version.
        return actual > stated and not (actual.is_post and stated == actual._replace(post=-1, dev=math.inf))
    return {"==": actual == stated, "!=": actual != stated, "<=": actual <= stated, ">=": actual >= stated}[operator]


def _begins_with(version: str, series: str) -> bool:
    """Whether a version is of a series of releases, such as `1.2`."""
    numbers = _numbers(_match(series))
    actual = _numbers(_match(version))
    missing = (0,) * (len(numbers) - len(actual))
    return _epoch(version) == _epoch(series) and (actual + missing)[: len(numbers)] == numbers


def _parse(version: str) -> _Version:
    match = _match(version)
    release = _numbers(match)
    while len(release) > 1 and not release[-1]:
        release = release[:-1]
    post = _number(match, "post", "post_number") if match["post_alone"] is None else int(match["post_alone"])
    dev = _number(match, "dev", "dev_number")
    if match["phase"]:
        phase = (_PHASES[match["phase"].lower()], int(match["phase_number"] or 0))
    else:
        # 1.0.dev1 comes before 1.0a1, but 1.0.post1.dev1 after 1.0.
        phase = (_BEFORE_ALL if dev >= 0 and post < 0 else _FINAL, 0)
    return _Version(_epoch(version), release, phase, post, dev if dev >= 0 else math.inf)


def _match(version: str) -> re.Match[str]:
    match = _VERSION.fullmatch(version)
    if not match:
        raise EngineError(f"expected a version of PEP 440, got {version!r}")
    return match


def _epoch(version: str) -> int:
    return int(_match(version)["epoch"] or 0)


def _numbers(match: re.Match[str]) -> tuple[int, ...]:
    return tuple(int(number) for number in match["release"].split("."))


def _number(match: re.Match[str], name: str, number: str) -> int:
    """The number of a part of a version, 0 where it has none; -1 if there is no such part."""
    return int(match[number] or 0) if match[name] else -1
