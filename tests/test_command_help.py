"""The help of every command: an imperative sentence, and a text for every option."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest

from pillion.cli import COMMANDS, command
from pilliond.__main__ import command as daemon_command

VERBS = {
    "Answer", "Check", "Compare", "Convert", "Copy", "Create", "End", "Hold", "List", "Measure", "Play", "Point", "Print",
    "Protect", "Publish", "Read", "Remove", "Replay", "Revoke", "Roll", "Route", "Run", "Serve", "Show", "Sign", "Switch",
    "Write",
}  # fmt: skip
"""What a help line may begin with. A new command may add a verb in the imperative: `Switch`, not `Switches`."""

LINE_CHARACTERS_MAX = 62
"""Longer help lines are cut in the list of commands, on a terminal of 80 columns."""


def commands_of(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all commands below it, each with its full name."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for each in command.list_commands(context):
            below = command.get_command(context, each)
            assert below is not None
            yield from commands_of(below, f"{name} {each}")


ALL = dict([*commands_of(command, "pillion"), *commands_of(daemon_command, "pilliond")])


def test_all_commands_are_looked_at() -> None:
    assert len(ALL) > 50
    assert {"pilliond", "pillion status", "pillion bench load", "pillion artifact publish", "pillion holds add"} <= set(
        ALL
    )


@pytest.mark.parametrize("name", ALL)
def test_the_help_line_is_one_imperative_sentence(name: str) -> None:
    line = ALL[name].get_short_help_str(LINE_CHARACTERS_MAX)
    assert re.split("[ ,]", line)[0] in VERBS, line
    assert line.endswith("."), line
    assert not line.endswith("..."), f"more than {LINE_CHARACTERS_MAX} characters: {line}"


@pytest.mark.parametrize("name", ALL)
def test_every_option_has_a_help_text_and_every_value_a_name(name: str) -> None:
    context = click.Context(ALL[name], info_name=name)
    for parameter in ALL[name].params:
        if isinstance(parameter, click.Argument):
            assert parameter.metavar, f"{name}: {parameter.name}"
            continue
        assert isinstance(parameter, click.Option)
        where = f"{name} {parameter.opts[0]}"
        assert parameter.help, where
        assert parameter.help[0].isupper(), where
        assert parameter.help.endswith("."), where
        is_choice = isinstance(parameter.type, click.Choice)
        assert parameter.is_flag or is_choice or parameter.metavar, where
        assert parameter.get_help_record(context) is not None, f"{where} is hidden"


def test_the_list_of_commands_says_what_each_command_says() -> None:
    for name, (_, line) in COMMANDS.items():
        assert ALL[f"pillion {name}"].get_short_help_str(LINE_CHARACTERS_MAX) == line


@pytest.mark.parametrize("name", [name for name, each in ALL.items() if each.epilog])
def test_every_line_of_an_example_is_a_command_that_can_be_parsed(name: str) -> None:
    epilog = ALL[name].epilog or ""
    lines = [line.strip() for line in epilog.splitlines()[2:]]
    assert lines
    for line in lines:
        words = shlex.split(line.partition(" > ")[0])
        depth = next(length for length in range(len(words), 0, -1) if " ".join(words[:length]) in ALL)
        target = ALL[" ".join(words[:depth])]
        assert " ".join(words[:depth]).startswith(name), line
        # Raises a UsageError for an option or an argument that there is not, and for one that is missing.
        with target.make_context(name, words[depth:]) as context:
            assert isinstance(target, click.Group) or not context.args, line
