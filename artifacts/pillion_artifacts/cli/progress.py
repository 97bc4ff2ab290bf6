"""The progress bar of a long copy or check."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pillion import cli_support
from pillion_artifacts.limits import PROGRESS_BYTES_MIN
from pillion_artifacts.oci.blobs import Progress, no_progress


@contextmanager
def bytes_bar(text: str, total_bytes: int | None) -> Iterator[Progress]:
    """Shows a bar of bytes on standard error, of unknown length if `total_bytes` is None; yields what adds bytes to it."""
    if total_bytes is not None and total_bytes < PROGRESS_BYTES_MIN:
        yield no_progress
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    shown = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with cli_support.progress(*shown) as bar:
        task = bar.add_task(text, total=total_bytes)
        yield lambda count: bar.advance(task, count)
