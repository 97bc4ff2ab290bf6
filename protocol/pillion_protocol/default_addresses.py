"""Where a daemon and its clients meet when nobody says where: in the runtime folder of their user."""

from __future__ import annotations

import os
from pathlib import Path


def runtime_folder() -> Path:
    """The folder of this user's sockets: `$XDG_RUNTIME_DIR/pillion`, or where it is not set `/run/user/UID/pillion`."""
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return Path(base) / "pillion"


def own_lane_address() -> str:
    """Where this user's daemon listens at the lane unless it is told otherwise."""
    return f"lane://{runtime_folder() / 'lane.sock'}"


def own_admin_address() -> str:
    """Where this user's daemon takes its operators unless it is told otherwise."""
    return f"unix://{runtime_folder() / 'admin.sock'}"
