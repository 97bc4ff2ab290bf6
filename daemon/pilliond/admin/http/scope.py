"""Scopes: what somebody at the admin port is let to do."""

from __future__ import annotations

from enum import IntEnum


class Scope(IntEnum):
    """What somebody must be let to do; each holds those below it."""

    OPEN = 0
    """Whether it lives and is ready: for whoever restarts or routes, without a token."""
    VIEW = 1
    """To look."""
    OPERATE = 2
    """To change which version answers."""
    ADMIN = 3
    """To end it."""

    @property
    def word(self) -> str:
        """As tokens and messages name it."""
        return self.name.lower()
