"""The `pillion` command."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Runs a command and returns a sysexits code; a known error is one line on standard error."""
    try:
        from pillion import cli
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        print("pillion: the command line is not installed: pip install 'pillion[cli]'", file=sys.stderr)
        return os.EX_UNAVAILABLE
    return cli.run()


if __name__ == "__main__":
    sys.exit(main())
