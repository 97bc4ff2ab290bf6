"""The `pillion` command. Each of its commands is imported when it is called: `pillion --help` imports none of them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Final

import click

import pillion
from pillion.cli_support import CONTEXT_SETTINGS, Failure, PillionGroup, missing_package, run_guarded

COMMANDS: Final = {
    "artifact": ("pillion_artifacts.cli.commands:artifact", "Publish, verify, sign and move policies in a store."),
    "audit": ("pilliond.commands.inspect:audit", "Show the audit log."),
    "bench": ("pillion_bench.cli.commands:bench", "Measure a daemon, and record episodes."),
    "canary": ("pilliond.commands.versions:canary", "Route a share of new episodes to another version."),
    "drain": ("pilliond.commands.versions:drain", "Answer pending requests, then stop the daemon."),
    "holds": ("pilliond.commands.holds:holds", "List, add and end evaluation holds."),
    "rollback": ("pilliond.commands.versions:rollback", "Roll back to the previous version."),
    "sessions": ("pilliond.commands.inspect:sessions", "List the live sessions."),
    "shadow": ("pilliond.commands.versions:shadow", "Compare a version with the stable one on live rows."),
    "stage": ("pilliond.commands.versions:stage", "Check a version and load it beside the stable one."),
    "status": ("pilliond.commands.versions:status", "Show the stable version and the loaded versions."),
    "switch": ("pilliond.commands.versions:switch", "Switch new episodes to another version."),
    "token": ("pilliond.commands.tokens:token", "Create, list and revoke tokens."),
    "versions": ("pilliond.commands.versions:versions", "List versions and their state."),
    "warmup": ("pilliond.commands.inspect:warmup", "Run every bucket of a loaded version once."),
}
"""The import path of each command or group, and its help line: a test compares that with the command's own."""


def explain(error: Exception) -> Failure | None:
    """Returns the failure of a command whose packages are not installed; None for any other error."""
    return missing_package(error, {}, "daemon")


class LazyGroup(PillionGroup):
    """Imports a command of `COMMANDS` when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module_name, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module_name), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, explain=explain, invoke_without_command=True, context_settings=CONTEXT_SETTINGS)
@click.version_option(pillion.__version__, prog_name="pillion")
@click.pass_context
def command(context: click.Context) -> None:
    """Publish policies, operate a running daemon, and measure it.

    Pillion serves policies to simulators and controllers on the same host. `pilliond` is its daemon.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line, that of this process if `arguments` is None, and returns its exit code."""
    # ONNX Runtime, which some commands import, sends telemetry unless this is set before the import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return run_guarded("pillion", lambda: command.main(arguments, "pillion", standalone_mode=False))
