"""Every relative link between the documents leads somewhere, and every anchor to a heading."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import markdown_files
from tests.harness import ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
FILES = markdown_files()


def anchors(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them of its headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = 0
        while (unique := f"{anchor}-{number}" if number else anchor) in found:
            number += 1
        found.add(unique)
    return found


def links(page: Path) -> list[str]:
    """The targets of a page's links, without those that lead out of the repository."""
    targets = LINK.findall(CODE.sub("", page.read_text()))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize("page", FILES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_and_anchor_resolves(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


def test_the_documents_link_to_each_other() -> None:
    assert sum(len(links(page)) for page in FILES) > 60


def test_every_page_can_be_reached_from_those_at_the_top() -> None:
    reached: set[Path] = set()
    waiting = list(ROOT.glob("*.md"))
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            targets = [(page.parent / target.partition("#")[0]).resolve() for target in links(page)]
            targets += [target / "README.md" for target in targets if (target / "README.md").exists()]
            waiting += [target for target in targets if target.suffix == ".md" and target.exists()]
    assert set(FILES) - reached == set()
