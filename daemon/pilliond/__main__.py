"""The command line of the daemon, `pilliond`."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import click
except ModuleNotFoundError:
    print("pilliond: the daemon's packages are not installed: pip install 'pillion[daemon]'", file=sys.stderr)
    sys.exit(os.EX_UNAVAILABLE)

import pilliond

if TYPE_CHECKING:
    from pilliond.settings.schema import Settings


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    envvar="PILLION_CONFIG",
    help="Settings file, TOML. Environment: PILLION_CONFIG.",
)
@click.option("--store", metavar="DIR", help="Store folder with the policies.")
@click.option(
    "--policy",
    metavar="NAME[@VERSION]",
    multiple=True,
    help="Policy to serve. May be repeated; sessions that name no policy get the first.",
)
@click.option(
    "--listen",
    metavar="URL",
    multiple=True,
    help="Data address: lane:///PATH, ipc:///PATH or tcp://127.0.0.1:PORT. May be repeated.",
)
@click.option(
    "--admin",
    metavar="URL",
    multiple=True,
    help="Admin address: unix:///PATH, http://127.0.0.1:PORT or https://ADDRESS:PORT; '' for none. May be repeated.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Lowest level to log.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Format of the log.")
@click.version_option(pilliond.__version__, prog_name="pilliond")
def command(
    config: Path | None,
    store: str | None,
    policy: tuple[str, ...],
    listen: tuple[str, ...],
    admin: tuple[str, ...],
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Serve policies to the simulators of this host.

    Settings come from the defaults, then --config, then variables PILLION_SECTION__KEY, then these options.
    """
    # Imported here and below, so that --help, a usage error and refused settings are quick.
    from pilliond.settings.schema import load_settings

    several = len(policy) > 1
    flags: dict[str, dict[str, Any]] = {
        "store": {"path": store, "policy": policy[0] if len(policy) == 1 else None},
        "data": {"listen": list(listen) or None},
        "admin": {"listen": list(admin) or None},
        "log": {"level": log_level, "format": log_format},
    }
    given: dict[str, Any] = {
        section: {key: value for key, value in keys.items() if value is not None} for section, keys in flags.items()
    }
    given["policies"] = [{"policy": name} for name in policy] if several else []
    settings = load_settings(config, os.environ, given)
    run(settings)


def run(settings: Settings) -> None:
    """Runs the daemon. Its first serving process starts at once, and imports its modules while this one does."""
    from pilliond.linux.spawner import Spawner
    from pilliond.supervision.serving_process import ServingProcess

    spawner = Spawner()
    try:
        spawner.start()
        first = ServingProcess(spawner, may_run_inline=settings.may_run_inline)
        try:
            # What is imported stays. Looking through it for garbage would take a tenth of the start, and a pause now and then.
            gc.disable()
            import uvloop

            from pilliond.control import serve

            gc.freeze()
            gc.enable()
            uvloop.run(serve(settings, spawner, first))
        finally:
            first.close()
    finally:
        spawner.close()


def main() -> int:
    """Runs the daemon and returns a sysexits code; a known error is one line on standard error."""
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
