"""Progress: how long a worker has owed its next step, as far as this process could see. Pure."""

from __future__ import annotations

from pilliond.limits import LOOK_NS_MAX, NEVER_NS


class Progress:
    """Adds up the time between looks. All times are CLOCK_MONOTONIC in ns, passed in.

    A look counts `LOOK_NS_MAX` at most: a daemon that was stopped together with its workers must not take them for hung.
    """

    __slots__ = ("_looked_ns", "_owes_since_ns", "owed_ns")

    def __init__(self) -> None:
        self.owed_ns = 0
        """How long the same step has been owed."""
        self._owes_since_ns = NEVER_NS
        self._looked_ns = 0

    def look(self, owes_since_ns: int, now_ns: int) -> None:
        """Takes since when a step is owed; `NEVER_NS` if none is."""
        if owes_since_ns == NEVER_NS or owes_since_ns != self._owes_since_ns:
            self._owes_since_ns = owes_since_ns
            self.owed_ns = 0
        else:
            self.owed_ns += min(now_ns - self._looked_ns, LOOK_NS_MAX)
        self._looked_ns = now_ns
