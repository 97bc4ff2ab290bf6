"""The addresses that a daemon and its clients use by default: sockets in the runtime folder of their user."""

from __future__ import annotations

import os
from pathlib import Path


def runtime_folder() -> Path:
    """Returns the folder of this user's sockets: `$XDG_RUNTIME_DIR/pillion`, else `/run/user/UID/pillion`."""
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return Path(base) / "pillion"


def own_lane_address() -> str:
    """Returns the lane address of this user's daemon, unless its settings name another."""
    return f"lane://{runtime_folder() / 'lane.sock'}"


def own_admin_address() -> str:
    """Returns the admin address of this user's daemon, unless its settings name another."""
    return f"unix://{runtime_folder() / 'admin.sock'}"
