"""What is known about the tensors of an ONNX graph before it runs: dtype, least and greatest integer, what they depend on."""

from __future__ import annotations

import math
from typing import Final

import msgspec
import numpy as np

from pillion_artifacts.card.integer_bounds import INTEGER_RANGES
from pillion_artifacts.card.onnx_checks import DTYPES
from pillion_artifacts.card.protobuf import fields, integers, merged, number, submessages
from pillion_artifacts.limits import CONSTANT_ELEMENTS_MAX

_BOOL_BYTES: Final = (0, 255)
"""A client may send any byte as a bool, and the engine may cast it to that number."""

_ANYTHING: Final = (-(2**63), 2**64 - 1)


class Value(msgspec.Struct, frozen=True):
    """A tensor. Its integers lie in `low` to `high`, both inclusive; for floats these say nothing."""

    dtype: str
    """Empty: unknown, so perhaps an integer."""
    low: int
    high: int
    is_fixed: bool = False
    """Whether it is the same whatever the observations hold. It may depend on the number of rows."""
    shape: tuple[int, ...] | None = None
    """The shape of a constant; None for every other tensor."""

    @property
    def is_float(self) -> bool:
        """Whether it certainly holds floats."""
        return self.dtype.startswith("float")

    @property
    def range(self) -> tuple[int, int]:
        """`low` and `high`."""
        return self.low, self.high


def range_of(dtype: str) -> tuple[int, int]:
    """The least and the greatest integer that a tensor of this dtype may hold."""
    return _BOOL_BYTES if dtype == "bool" else INTEGER_RANGES.get(dtype, _ANYTHING)


def any_value(dtype: str = "", is_fixed: bool = False) -> Value:
    """A tensor of which nothing but its dtype is known."""
    return Value(dtype, *range_of(dtype), is_fixed)


def value_within(dtype: str, low: int, high: int) -> Value:
    """A tensor whose integers were computed to lie in this range; those that leave their dtype's range wrap around."""
    least, greatest = range_of(dtype)
    return Value(dtype, low, high) if least <= low and high <= greatest else any_value(dtype)


def constant(tensor: memoryview) -> Value:
    """The value of a TensorProto."""
    dtype = DTYPES.get(number(tensor, 2), "")
    shape = tuple(integers(tensor, 1))
    elements = _elements(tensor, dtype) if math.prod(shape) <= CONSTANT_ELEMENTS_MAX else None
    if elements is None or len(elements) != math.prod(shape) or not len(elements):
        return Value(dtype, *range_of(dtype), True, shape)
    return Value(dtype, int(elements.min()), int(elements.max()), True, shape)


def constant_attribute(attribute: memoryview) -> Value:
    """The value of the attribute that makes a Constant what it is: a tensor, one number or a list of numbers."""
    tensor = merged(attribute, 5)
    if tensor is not None:
        return constant(tensor)
    for field, _ in fields(attribute):
        if field in (3, 8):
            elements = integers(attribute, field)
            return Value("int64", min(elements), max(elements), True, () if field == 3 else (len(elements),))
    is_float = any(field in (2, 7) for field, _ in fields(attribute))
    return any_value("float32" if is_float else "", is_fixed=True)


def _elements(tensor: memoryview, dtype: str) -> np.ndarray[tuple[int], np.dtype[np.integer]] | None:
    """The elements of an integer tensor; None if it has another dtype, or if it holds them in more than one way."""
    if dtype not in INTEGER_RANGES:
        return None
    raw = list(submessages(tensor, 9))
    typed = [value for field in (5, 7, 11) for value in integers(tensor, field)]
    if len(raw) > 1 or (raw and typed):
        return None
    if raw:
        return np.frombuffer(raw[0], np.dtype(dtype).newbyteorder("<"))
    least, greatest = INTEGER_RANGES[dtype]
    known = [value + 2**64 if dtype == "uint64" and value < 0 else value for value in typed]
    return np.array(known, dtype) if all(least <= value <= greatest for value in known) else None
