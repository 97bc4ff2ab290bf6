"""Scopes of the admin port."""

from __future__ import annotations

from enum import IntEnum


class Scope(IntEnum):
    """What an endpoint needs and a token allows. Each scope includes those below it."""

    OPEN = 0
    """Liveness and readiness: for orchestrators and load balancers, without a token."""
    VIEW = 1
    """Read."""
    OPERATE = 2
    """Change which version answers, and run inference."""
    ADMIN = 3
    """Stop the daemon."""

    @property
    def word(self) -> str:
        """The name in tokens and messages."""
        return self.name.lower()
