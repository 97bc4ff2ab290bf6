"""The batch certificate: how much the rest of a batch changes the answer to an observation."""

from __future__ import annotations

from typing import Final

import msgspec

EXACT: Final = "exact"
CLOSE: Final = "within 1e-6"
WORSE: Final = "worse"
_GRADES: Final = (EXACT, CLOSE, WORSE)


class Certificate(msgspec.Struct, frozen=True):
    """The result of a certification. `batch` is `exact` (bit for bit), `within 1e-6` (absolute difference) or `worse`."""

    batch: str
    difference: float
    """The largest absolute difference of an output between an observation alone and the same in a batch."""
    observations: int
    source: str
    """Where the observations come from: `golden pairs`, or `drawn within the spec's bounds`."""
    buckets: list[int]
    strict_rows: int = 0
    """The rows of the strict shape that it ran in; 0: it ran in buckets."""

    def meets(self, gate: str) -> bool:
        """Whether it is at least as good as `gate`: `any`, `within 1e-6` or `exact`."""
        return gate == "any" or _GRADES.index(self.batch) <= _GRADES.index(gate)

    def shortfall(self, gate: str) -> str:
        """One line that says why it does not meet `gate`; empty if it does."""
        if self.meets(gate):
            return ""
        return (
            f"batch certificate: expected {gate}, got {self.batch}: an output differs by "
            f"{self.difference:.3g} between an observation alone and in a batch"
        )
