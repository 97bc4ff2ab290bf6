"""The batch certificate: whether the batch that an observation happens to be in changes its answer."""

from __future__ import annotations

from typing import Final

import msgspec

EXACT: Final = "exact"
CLOSE: Final = "within 1e-6"
WORSE: Final = "worse"
_GRADES: Final = (EXACT, CLOSE, WORSE)


class Certificate(msgspec.Struct, frozen=True):
    """What was found. `batch` is `exact` (bit for bit), `within 1e-6` (the greatest absolute difference), or `worse`."""

    batch: str
    difference: float
    """The greatest absolute difference of an output between an observation alone and the same in a batch."""
    observations: int
    source: str
    """Where the observations are from: `golden pairs`, or `drawn within the spec's bounds`."""
    buckets: list[int]
    strict_rows: int = 0
    """The one shape that it was run in; 0: in buckets."""

    def meets(self, gate: str) -> bool:
        """Whether it is as good as `gate`: `any`, `within 1e-6` or `exact`."""
        return gate == "any" or _GRADES.index(self.batch) <= _GRADES.index(gate)

    def shortfall(self, gate: str) -> str:
        """Why it does not meet `gate`, in a line; empty where it does."""
        if self.meets(gate):
            return ""
        return (
            f"batch certificate: expected {gate}, got {self.batch}: an output differs by "
            f"{self.difference:.3g} between an observation alone and in a batch"
        )
