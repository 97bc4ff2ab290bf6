"""Tables for people: plain text, columns as wide as what stands in them. A list of ten thousand lines takes no time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The rows under their head, two blanks between columns."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def short_digest(digest: str) -> str:
    """As much of a digest as tells versions apart on a screen."""
    return digest.removeprefix("sha256:")[:12]


def size(count: int) -> str:
    """Bytes as people say them."""
    amount, unit = float(count), "B"
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if amount < 1_000 or unit == "TB":
            break
        amount /= 1_000
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
