"""A progress bar on standard error, where that is a terminal and the work is long enough to wait for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pillion_artifacts.oci.blobs import Progress, no_progress

LONG_BYTES: Final = 50_000_000
"""Below this nobody sees a bar before the work is done."""


@contextmanager
def bytes_bar(what: str, total_bytes: int | None) -> Iterator[Progress]:
    """A bar of bytes, of unknown length where `total_bytes` is None; gives what is to be told how many more are done."""
    if total_bytes is not None and total_bytes < LONG_BYTES:
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    shown = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*shown, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda count: bar.advance(task, count)
