"""The command line of the daemon."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

try:
    import click
except ModuleNotFoundError:
    print("pilliond: the daemon's packages are not installed: pip install 'pillion[daemon]'", file=sys.stderr)
    sys.exit(os.EX_UNAVAILABLE)

import pilliond


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--config", type=click.Path(path_type=Path), envvar="PILLION_CONFIG", help="Settings, a TOML file.")
@click.option("--store", metavar="DIR", help="The store to read policies from.")
@click.option("--policy", metavar="NAME[@VERSION]", help="The policy to serve.")
@click.option(
    "--listen", metavar="URL", multiple=True, help="lane:///PATH, ipc:///PATH or tcp://127.0.0.1:PORT; may be repeated."
)
@click.option(
    "--admin",
    metavar="URL",
    multiple=True,
    help="unix:///PATH, http://127.0.0.1:PORT or https://ADDRESS:PORT; may be repeated; '' for none.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="What is logged.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="How it is logged.")
@click.version_option(pilliond.__version__, prog_name="pilliond")
def command(
    config: Path | None,
    store: str | None,
    policy: str | None,
    listen: tuple[str, ...],
    admin: tuple[str, ...],
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Serves a policy to the simulators of this host.

    Settings come from defaults, then --config, then PILLION_SECTION__KEY variables, then these flags.
    """
    # Imported here: --help and a mistyped flag should not wait for them.
    import asyncio

    from pilliond.control import serve
    from pilliond.settings.schema import load_settings

    flags: dict[str, dict[str, Any]] = {
        "store": {"path": store, "policy": policy},
        "data": {"listen": list(listen) or None},
        "admin": {"listen": list(admin) or None},
        "log": {"level": log_level, "format": log_format},
    }
    given = {
        section: {key: value for key, value in keys.items() if value is not None} for section, keys in flags.items()
    }
    asyncio.run(serve(load_settings(config, os.environ, given)))


def main() -> int:
    """Runs the daemon; gives a sysexits code, and one line on standard error where something is wrong."""
    from pilliond.errors import DaemonError

    try:
        command.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        print(f"pilliond: {error.format_message()}", file=sys.stderr)
        return os.EX_USAGE
    except click.Abort:
        return os.EX_SOFTWARE
    except DaemonError as error:
        print(f"pilliond: {error}", file=sys.stderr)
        return error.exit_code
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
