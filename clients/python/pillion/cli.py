"""The commands, each imported when it is called for: `pillion --help` waits for none of them."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

import click

import pillion

GROUPS: Final = {
    "artifact": (
        "pillion_artifacts.cli.commands:artifact",
        "Publishes, verifies, signs and moves policies in a store.",
    ),
    "audit": ("pilliond.commands.inspect:audit", "Who changed what of the policy that a daemon serves."),
    "bench": ("pillion_bench.cli:bench", "Measures a daemon: load, replay, floors; and records episodes."),
    "canary": ("pilliond.commands.versions:canary", "Lets another version answer a share of a daemon's new episodes."),
    "drain": ("pilliond.commands.versions:drain", "Ends a daemon when all that has arrived is answered."),
    "holds": ("pilliond.commands.holds:holds", "The versions that a daemon holds for campaigns."),
    "rollback": ("pilliond.commands.versions:rollback", "Lets a daemon go back to the version that served before."),
    "sessions": ("pilliond.commands.inspect:sessions", "Who has a session with a daemon."),
    "shadow": (
        "pilliond.commands.versions:shadow",
        "Compares another version with the live one, on a daemon's own rows.",
    ),
    "stage": ("pilliond.commands.versions:stage", "Lets a daemon try a version and load it beside the live one."),
    "status": ("pilliond.commands.versions:status", "Which version a daemon serves, and which are loaded."),
    "switch": ("pilliond.commands.versions:switch", "Lets a daemon serve another version to new episodes."),
    "token": ("pilliond.commands.tokens:token", "Makes, lists and takes back tokens for a daemon's admin port."),
    "versions": ("pilliond.commands.versions:versions", "The versions in a daemon's store, and what they are to it."),
    "warmup": ("pilliond.commands.inspect:warmup", "Lets a daemon run every bucket of a version once."),
}
"""Where each command, or group of commands, is, and what the help says of it."""

SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class CommandGroups(click.Group):
    """Finds a group in `GROUPS` by its import path, when it is called for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(GROUPS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in GROUPS:
            return None
        module_name, _, attribute = GROUPS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module_name), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, GROUPS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=CommandGroups, invoke_without_command=True, context_settings=SETTINGS)
@click.version_option(pillion.__version__, prog_name="pillion")
@click.pass_context
def command(context: click.Context) -> None:
    """The tools of Pillion, a policy server for simulators and controllers on the same host."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (the process's own where `arguments` is None) and gives its exit code."""
    # ONNX Runtime, which some commands import, reports to its maker unless it is told not to before.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return guarded(lambda: command.main(arguments, "pillion", standalone_mode=False))


def guarded(call: Callable[[], object]) -> int:
    """Runs `call`; what is known to go wrong becomes one line on standard error and a sysexits code."""
    try:
        result = call()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        return _complain("interrupted", 130)
    except click.UsageError as error:
        return _complain(error.format_message(), os.EX_USAGE)
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    return result if isinstance(result, int) else os.EX_OK


def _complain(message: str, exit_code: int) -> int:
    print(f"pillion: {' '.join(message.split())}", file=sys.stderr)
    return exit_code
