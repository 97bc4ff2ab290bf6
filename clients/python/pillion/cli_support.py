"""What every command line shares: failures as one line and an exit code, JSON, tables and progress.

The packages beside the client may import this module, and no other of `pillion`; `tests/test_boundaries.py` holds that.
It needs click. It imports everything else in the functions that use it, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn
    from rich.table import Table

CONTEXT_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""Of every top-level command."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class Failure(click.ClickException):
    """An error that ends a command with one line on standard error and `exit_code`, a sysexits code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it on the class and reads it from the instance


Explain = Callable[[Exception], Failure | None]
"""Returns the failure that an error means, or None if the error is a bug."""


class PillionCommand(click.Command):
    """A command whose known errors end it as a `Failure`; any other error keeps its traceback."""

    def __init__(self, *args: Any, explain: Explain, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._explain = explain

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            failure = self._explain(error)
            if failure is None:
                raise
            raise failure from None


class PillionGroup(PillionCommand, click.Group):
    """A group whose commands all end so."""


def missing_package(error: Exception, extra_of: Mapping[str, str], default: str) -> Failure | None:
    """Returns the failure for a third-party package that is not installed, and None for any other error.

    `extra_of` maps a top-level package to the extra of `pillion` that installs it; `default` is the extra of all others.
    """
    package = (getattr(error, "name", "") or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package.startswith("pillion"):
        return None
    extra = extra_of.get(package, default)
    return Failure(f"{package} is not installed: pip install 'pillion[{extra}]'", os.EX_UNAVAILABLE)


def run_guarded(name: str, call: Callable[[], object]) -> int:
    """Runs `call`, a click command without its standalone mode, and returns the exit code of the process `name`.

    A known error becomes one line on standard error. Everything else raises.
    """
    try:
        result = call()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        return _complain(name, "interrupted", 130)
    except click.UsageError as error:
        return _complain(name, error.format_message(), os.EX_USAGE)
    except click.ClickException as error:
        return _complain(name, error.format_message(), error.exit_code)
    return result if isinstance(result, int) else os.EX_OK


def _complain(name: str, message: str, exit_code: int) -> int:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return exit_code


def examples(*lines: str) -> str:
    """Returns the epilog of a command: example lines, which click must not wrap."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def print_json(value: Any) -> None:
    """Prints plain values and msgspec Structs as indented JSON."""
    import json

    click.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


def columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns rows under a head as plain text, two blanks between columns. Fast for tens of thousands of rows."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def new_table(*headings: str) -> Table:
    """Returns an empty rich table without lines, which wraps its cells to the terminal."""
    from rich.table import Table

    return Table(*headings, box=None, pad_edge=False, header_style="bold")


def print_table(table: Table) -> None:
    """Prints a rich table on standard output."""
    from rich.console import Console

    Console(highlight=False).print(table)


def short_digest(digest: str) -> str:
    """Returns the first 12 hexadecimal digits of a digest: enough to tell versions apart on a screen."""
    return digest.removeprefix("sha256:")[:12]


def format_bytes(count: int) -> str:
    """Returns a byte count with a decimal unit: `512 B`, `1.5 MB`."""
    amount, unit = float(count), "B"
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if amount < 1_000 or unit == "TB":
            break
        amount /= 1_000
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


@contextmanager
def progress(*shown: ProgressColumn) -> Iterator[Progress]:
    """Shows a progress bar on standard error while the block runs, and nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(*shown, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield bar


@contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """Shows a spinner with `text` on standard error, and nothing where that is no terminal; yields what changes the text."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _text: None
        return
    with console.status(text) as status:
        yield status.update
