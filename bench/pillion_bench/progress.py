"""A progress bar on standard error. Standard output has the report alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(steps: int) -> Iterator[Callable[[str], None]]:
    """Shows a bar if standard error is a terminal; yields a function to call with a label as each step begins."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    label = TextColumn("{task.description}")
    is_terminal = sys.stderr.isatty()
    with Progress(*columns, label, console=Console(stderr=True), transient=True, disable=not is_terminal) as bar:
        task = bar.add_task("", total=steps)
        begun = 0

        def advance(step: str) -> None:
            nonlocal begun
            bar.update(task, description=step, completed=begun)
            begun += 1

        yield advance
