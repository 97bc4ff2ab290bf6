"""A progress bar on standard error, where that is a terminal; standard output holds the report alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(steps: int) -> Iterator[Callable[[str], None]]:
    """What is to be called with words as each of `steps` steps begins."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    described = TextColumn("{task.description}")
    is_terminal = sys.stderr.isatty()
    with Progress(*columns, described, console=Console(stderr=True), transient=True, disable=not is_terminal) as bar:
        task = bar.add_task("", total=steps)
        begun = 0

        def advance(words: str) -> None:
            nonlocal begun
            bar.update(task, description=words, completed=begun)
            begun += 1

        yield advance
