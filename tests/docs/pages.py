"""How the tests read the documents: their files, tables, code blocks and commands."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.harness import ROOT

DOCS = ROOT / "docs"
CONCEPTS, ENGINES, GLOSSARY, INTERNALS, OPERATING, REFERENCE = (
    DOCS / f"{name}.md" for name in ("concepts", "engines", "glossary", "internals", "operating", "reference")
)

BUILT = {"build", "dist", "out", "shared"}
"""Folders that are not the repository's."""


def markdown_files() -> list[Path]:
    """Every document of the repository; nothing of hidden folders, such as virtual environments."""
    found = []
    for folder, inner, files in os.walk(ROOT):
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name not in BUILT)
        found += [Path(folder) / name for name in sorted(files) if name.endswith(".md")]
    return found


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Every command line in the shell blocks of a page, on one line and without its comment."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [" ".join(line.split("  #")[0].split()) for line in lines if line.strip()]


def section(page: Path, title: str) -> str:
    """The text under a heading, up to the next heading of its level or above."""
    text = page.read_text()
    found = re.search(rf"^(#+) {re.escape(title)}\n", text, re.MULTILINE)
    assert found, f"{page.name} has no section {title!r}"
    rest = text[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", _without_code(rest), re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str) -> list[list[str]]:
    """The cells of each row of the tables in a text, without their headings."""
    lines = [line for line in _without_code(text).splitlines() if line.startswith("|")]
    heads = {index - 1 for index, line in enumerate(lines) if re.fullmatch(r"[| -]+", line)}
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for index, line in enumerate(lines)
        if index not in heads and not re.fullmatch(r"[| -]+", line)
    ]


def names(cell: str) -> list[str]:
    """The code names in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def _without_code(text: str) -> str:
    """The same with the lines of code blocks made empty of meaning; every offset stays."""
    return re.sub(r"^```.*?^```", lambda found: re.sub(r"[^\n]", ".", found[0]), text, flags=re.MULTILINE | re.DOTALL)
