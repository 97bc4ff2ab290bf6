"""The arguments and options that several commands of `pillion artifact` share, and what the shell completes for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from pillion_artifacts.store.store import Store

DEFAULT_STORE: Final = "/var/lib/pillion/store"

PATH: Final = click.Path(path_type=Path)

Command = TypeVar("Command", bound=Callable[..., Any])


def open_store(root: Path) -> Store:
    """Returns the store at `root`, which need not exist yet."""
    from pillion_artifacts.store.store import Store

    return Store(root)


def complete_reference(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Returns the references in the store that begin with `incomplete`; none if the store cannot be read."""
    from pillion_artifacts.errors import ArtifactError

    try:
        store = open_store(Path(context.params.get("store") or DEFAULT_STORE))
        known = [f"{entry.title}@v{entry.version}" for entry in store.index().versions()]
        known += [f"{alias.policy}@{alias.alias}" for alias in store.aliases()]
    except ArtifactError:
        return []
    return sorted(name for name in [*known, *store.policies()] if name.startswith(incomplete))


def complete_policy(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Returns the policies in the store that begin with `incomplete`."""
    return [name for name in complete_reference(context, parameter, incomplete) if "@" not in name]


def store_option(command: Command) -> Command:
    """Adds `--store`: the store that a command works on."""
    option = click.option(
        "--store",
        metavar="DIR",
        type=PATH,
        default=DEFAULT_STORE,
        envvar="PILLION_STORE__PATH",
        show_default=True,
        # Eager, so that the completion of a reference knows the store.
        is_eager=True,
        help="Store folder. Environment: PILLION_STORE__PATH.",
    )
    return option(command)


def change_options(command: Command) -> Command:
    """Adds `--by` and `--reason`: what the audit log records of a change."""
    by = click.option("--by", metavar="NAME", default="", help="Author for the audit log; default: user and host.")
    reason = click.option("--reason", metavar="TEXT", default="", help="Reason for the audit log.")
    return by(reason(command))


def reference_argument(name: str = "reference", **attributes: Any) -> Callable[[Command], Command]:
    """Adds an argument that is a reference to a version, which the shell completes."""
    return click.argument(name, **{"metavar": "REF", "shell_complete": complete_reference, **attributes})


def policy_argument(command: Command) -> Command:
    """Adds an optional argument that is the name of a policy, which the shell completes."""
    return click.argument("policy", metavar="[POLICY]", default="", shell_complete=complete_policy)(command)


html_option = click.option("--html", metavar="FILE", type=PATH, help="Also write the report as a web page.")
plain_http_option = click.option("--plain-http", is_flag=True, help="Connect to a registry without TLS.")
