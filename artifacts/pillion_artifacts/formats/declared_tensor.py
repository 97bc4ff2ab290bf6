"""What a model file says of its inputs and outputs."""

from __future__ import annotations

import msgspec


class DeclaredTensor(msgspec.Struct, frozen=True):
    """An input or output of a model. A size of None is dynamic; an empty dtype or shape is undeclared."""

    name: str
    dtype: str
    shape: list[int | None]
