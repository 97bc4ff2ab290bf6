"""`docs/reference.md` lists what the code has, and nothing else."""

from __future__ import annotations

import ast
import importlib
import json
import os
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec

import pilliond
from pilliond.__main__ import command
from pilliond.errors import DaemonError
from pilliond.rollout.operation import Kind
from pilliond.settings.schema import Settings
from tests.docs.pages import REFERENCE, names, rows, section
from tests.harness import ROOT, Daemon

SOURCES = ROOT / "daemon" / "pilliond"
LEVELS = ("debug", "info", "warning", "error")
METRIC = re.compile(r"pillion_[a-z_]*[a-z]")


def calls(folder: Path) -> Iterator[ast.Call]:
    """Every call in the modules of a folder."""
    for file in sorted(folder.rglob("*.py")):
        yield from (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))


def test_it_lists_every_option_of_the_daemon() -> None:
    listed = [names(row[0])[0].split()[0] for row in rows(section(REFERENCE, "Command line"))]
    options = [option for parameter in command.params for option in parameter.opts]
    assert [option for option in options if option != "--version"] == listed


def test_it_lists_every_setting_with_its_default() -> None:
    listed = {names(row[0])[0]: row[1].strip("`") for row in rows(section(REFERENCE, "Settings"))}
    defaults: dict[str, str] = {}
    for part, keys in msgspec.to_builtins(Settings()).items():
        # `policies` is no section but a list of them.
        items = keys.items() if isinstance(keys, dict) else [("", keys)]
        defaults |= {f"{part}.{key}".rstrip("."): json.dumps(value) for key, value in items}
    assert list(listed.items()) == list(defaults.items())


# Metrics


def listed_metrics() -> dict[str, tuple[str, list[str]]]:
    """The type and the labels of each metric of the page."""
    return {names(row[0])[0]: (row[1], names(row[2])) for row in rows(section(REFERENCE, "Metrics"))}


def test_it_lists_every_metric() -> None:
    strings = {
        node.value
        for file in (SOURCES / "admin").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    found = {text for text in strings if METRIC.fullmatch(text)}
    assert {name.removesuffix("_total") for name in listed_metrics()} == found


def test_it_has_the_type_and_the_labels_of_each_metric_that_a_daemon_exposes(daemon: Daemon) -> None:
    _, text = daemon.get("/metrics")
    types: dict[str, str] = dict(re.findall(r"^# TYPE (pillion_\w+) (\w+)$", text, re.MULTILINE))
    assert len(types) > 30
    listed = listed_metrics()
    for name, kind in types.items():
        assert listed[name][0] == kind, name
        samples = re.findall(rf"^{name}(?:_sum)?(?:{{(.*)}})? \S+$", text, re.MULTILINE)
        for sample in samples:
            labels = re.findall(r'(\w+)="', sample)
            assert sorted(labels) == sorted(listed[name][1]), name
    assert {name for name in listed if name not in types} <= {
        name for name in listed if name.startswith("pillion_shadow_") or name == "pillion_swap_impact_ratio"
    }


# The log


def logged() -> set[str]:
    """The name of every event that the daemon logs."""
    events = set()
    for call in calls(SOURCES):
        function = call.func
        is_log = (
            isinstance(function, ast.Attribute)
            and function.attr in LEVELS
            and ast.unparse(function.value).split(".")[-1] in ("log", "_log")
        ) or ast.unparse(function) in ("log", "self._log_event")
        if is_log:
            event = call.args[0]
            if isinstance(event, ast.Constant):
                events.add(str(event.value))
            elif isinstance(event, ast.JoinedStr):
                # An operation's kind, and what became of it.
                kind, became = event.values
                assert isinstance(kind, ast.FormattedValue), ast.unparse(event)
                assert isinstance(became, ast.Constant), ast.unparse(event)
                assert isinstance(became.value, str)
                assert ast.unparse(kind.value).split(".")[-1] == "kind"
                events |= {f"{each}{became.value}" for each in get_args(Kind)}
            else:
                # What the serving process reports is found where it reports it.
                assert ast.unparse(event) == "report.name"
    return events


def test_it_lists_every_event_of_the_log() -> None:
    found = [name for row in rows(section(REFERENCE, "Log events")) for name in names(row[0])]
    assert len(found) == len(set(found))
    assert set(found) == logged()


def test_each_event_has_a_level_that_the_log_knows() -> None:
    for row in rows(section(REFERENCE, "Log events")):
        assert set(row[1].split(", ")) <= set(LEVELS), row


# Codes


def listed_codes(first: str, after: str) -> set[int]:
    """The codes in the table that follows a sentence of the page."""
    text = section(REFERENCE, "Exit codes")
    assert first in text
    begin = text.index(first)
    end = text.index(after, begin)
    return {int(row[0]) for row in rows(text[begin:end])}


def exit_codes(folder: Path) -> set[int]:
    """The sysexits codes that the modules of a folder name."""
    text = "\n".join(file.read_text() for file in folder.glob("*.py"))
    return {getattr(os, name) for name in re.findall(r"\bEX_[A-Z]+\b", text)}


def every_error() -> set[type[DaemonError]]:
    """Every class of error of the daemon."""
    for module in pkgutil.walk_packages(pilliond.__path__, "pilliond."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: set[type[DaemonError]] = set()
    waiting = [DaemonError]
    while waiting:
        kind = waiting.pop()
        found.add(kind)
        waiting += kind.__subclasses__()
    return found


def test_it_lists_the_exit_codes_of_the_daemon() -> None:
    raised = {kind.exit_code for kind in every_error()}
    assert listed_codes("`pilliond` exits with", "The `pillion` commands") == raised | exit_codes(SOURCES)


def test_it_lists_the_exit_codes_of_the_operators_commands() -> None:
    commands = SOURCES / "commands"
    raised = {
        kind.exit_code for kind in every_error() if any(kind.__name__ in f.read_text() for f in commands.glob("*.py"))
    }
    used = exit_codes(commands) | raised | {os.EX_OK}
    assert listed_codes("The `pillion` commands", "[`pillion artifact`]") == used


def test_it_lists_every_problem_of_the_admin_port() -> None:
    found = set()
    for call in calls(SOURCES / "admin"):
        if ast.unparse(call.func).split(".")[-1] in ("ProblemError", "problem") and len(call.args) >= 2:
            kind = call.args[1]
            if isinstance(kind, ast.Constant):
                found.add(kind.value)
    listed = {names(row[0])[0] for row in rows(section(REFERENCE, "Problem types"))}
    assert listed == found
