"""A progress bar on standard error, if that is a terminal; standard output holds only the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pillion import cli_support


@contextmanager
def progress_bar(steps: int) -> Iterator[Callable[[str], None]]:
    """Yields a function to call with a text as each of `steps` steps begins."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with cli_support.progress(*columns, TextColumn("{task.description}")) as bar:
        task = bar.add_task("", total=steps)
        begun = 0

        def advance(text: str) -> None:
            nonlocal begun
            bar.update(task, description=text, completed=begun)
            begun += 1

        yield advance
