"""The bounds of integer observations, as the daemon enforces them on every row."""

from __future__ import annotations

import math
from typing import Final, Protocol

from pillion_protocol.specs import TEXT

INTEGER_RANGES: Final = {
    "int8": (-(2**7), 2**7 - 1), "int16": (-(2**15), 2**15 - 1), "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1), "uint8": (0, 2**8 - 1), "uint16": (0, 2**16 - 1), "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}  # fmt: skip
"""The least and the greatest number of each integer dtype."""


class Bounded(Protocol):
    """What a tensor of a card and one of a spec have in common."""

    @property
    def dtype(self) -> str: ...
    @property
    def space(self) -> str: ...
    @property
    def low(self) -> list[float]: ...
    @property
    def high(self) -> list[float]: ...


def integer_bounds(tensor: Bounded) -> tuple[list[int], list[int]] | None:
    """Returns the inclusive bounds of an integer tensor: lowest and highest, one number each or one for each element.

    None if its dtype is no integer, or if it has no bound that is tighter than the dtype's own range: then there is
    nothing to enforce. An infinite bound is none. The bounds of a text are none of its bytes.
    """
    if tensor.space == TEXT:
        return None
    least, greatest = INTEGER_RANGES.get(tensor.dtype, (0, 0))
    low = [min(max(math.ceil(bound), least), greatest) if math.isfinite(bound) else least for bound in tensor.low]
    high = [min(max(math.floor(bound), least), greatest) if math.isfinite(bound) else greatest for bound in tensor.high]
    is_tighter = any(bound > least for bound in low) or any(bound < greatest for bound in high)
    return (low or [least], high or [greatest]) if is_tighter else None
