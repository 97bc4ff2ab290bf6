"""Operators whose cost and memory do not depend on what their inputs hold: an allowlist.

It names, for each operator, the inputs that may depend on an observation, and what its output is then. An operator that is
missing here may be harmless; then its graph runs in a worker, which costs a little time. A blocklist that misses one costs
the serving process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from pillion_artifacts.card.onnx_checks import DTYPES
from pillion_artifacts.card.onnx_values import Value, any_value, constant_attribute, range_of, value_within
from pillion_artifacts.card.protobuf import merged, number, signed


class Node(msgspec.Struct, frozen=True):
    """A node of a graph. `attributes` holds each AttributeProto by its name, `given` what is known about the inputs."""

    operator: str
    attributes: dict[str, memoryview]
    given: list[Value | None]
    """None for an input that is left out."""

    def integer(self, name: str, default: int) -> int:
        """An attribute that is an integer."""
        attribute = self.attributes.get(name)
        return default if attribute is None else signed(number(attribute, 3))

    def graph(self, name: str) -> memoryview | None:
        """An attribute that is a graph."""
        attribute = self.attributes.get(name)
        return None if attribute is None else merged(attribute, 6)

    def dtype(self, first: int = 0) -> str:
        """The dtype of the inputs from `first` on, which are all of one."""
        return next((value.dtype for value in self.given[first:] if value is not None and value.dtype), "")

    def value(self, index: int) -> Value:
        """An input; one that is left out may be anything."""
        given = self.given[index] if index < len(self.given) else None
        return any_value() if given is None else given


Rule = Callable[[Node], Value | str]
"""Returns what is known about the outputs, or why the node is not bounded."""


class Operator(msgspec.Struct, frozen=True):
    """An operator of the list."""

    rule: Rule
    open: frozenset[int] | None = None
    """The inputs that may depend on an observation: numbers from 0; None: all."""
    is_fixed: bool = False
    """Whether the output is fixed even if the inputs are not: it depends on their shape only."""
    is_alike: bool = False
    """Whether the rule holds for every output, instead of for the first one only."""


def _always(value: Value) -> Rule:
    return lambda _: value


def _any(node: Node) -> Value:
    return any_value(node.dtype())


def _same(node: Node) -> Value:
    first = node.value(0)
    return Value(first.dtype, first.low, first.high)


def _same_constant(node: Node) -> Value:
    first = node.value(0)
    return Value(first.dtype, first.low, first.high, shape=first.shape)


def _logic(node: Node) -> Value:
    # a bool from a client may be any byte, and these may pass it on
    is_clean = all(value is None or value.high <= 1 for value in node.given)
    return Value("bool", 0, 1) if is_clean else any_value("bool")


def _one_hot(node: Node) -> Value:
    return Value(node.value(2).dtype, *node.value(2).range)


def _dequantized(node: Node) -> Value:
    return any_value(node.value(1).dtype if node.value(1).is_float else "")


def _hull(node: Node, first: int = 0) -> Value:
    given = [value for value in node.given[first:] if value is not None]
    return value_within(node.dtype(first), min(value.low for value in given), max(value.high for value in given))


def _where(node: Node) -> Value:
    return _hull(node, 1)


def _add(node: Node) -> Value:
    one, other = node.value(0), node.value(1)
    return value_within(node.dtype(), one.low + other.low, one.high + other.high)


def _subtract(node: Node) -> Value:
    one, other = node.value(0), node.value(1)
    return value_within(node.dtype(), one.low - other.high, one.high - other.low)


def _multiply(node: Node) -> Value:
    products = [one * other for one in node.value(0).range for other in node.value(1).range]
    return value_within(node.dtype(), min(products), max(products))


def _negate(node: Node) -> Value:
    return value_within(node.dtype(), -node.value(0).high, -node.value(0).low)


def _clip(node: Node) -> Value:
    low, high = node.value(0).range
    for index, limited in ((1, max), (2, min)):
        if len(node.given) > index and node.given[index] is not None:
            low, high = limited(low, node.value(index).low), limited(high, node.value(index).high)
    return value_within(node.dtype(), low, high)


def _greatest(node: Node) -> Value:
    given = [value.range for value in node.given if value is not None]
    return value_within(node.dtype(), max(low for low, _ in given), max(high for _, high in given))


def _least(node: Node) -> Value:
    given = [value.range for value in node.given if value is not None]
    return value_within(node.dtype(), min(low for low, _ in given), min(high for _, high in given))


def _cast(node: Node) -> Value | str:
    return _converted(node.value(0), DTYPES.get(node.integer("to", 0), ""))


def _cast_like(node: Node) -> Value | str:
    return _converted(node.value(0), node.value(1).dtype)


def _converted(value: Value, dtype: str) -> Value | str:
    if not dtype:
        return "it casts to a dtype that no observation can have"
    if dtype == "bool" and value.dtype != "bool":
        return Value(dtype, 0, 1, shape=value.shape)
    is_known = value.dtype and not value.is_float
    converted = value_within(dtype, *value.range) if is_known else any_value(dtype)
    return Value(converted.dtype, converted.low, converted.high, shape=value.shape)


def _gather(node: Node) -> Value | str:
    index, table = node.value(1), node.value(0)
    if not index.is_fixed:
        axis = node.integer("axis", 0)
        size = table.shape[axis] if table.shape and -len(table.shape) <= axis < len(table.shape) else 0
        if not (-size <= index.low and index.high < size):
            entries = f"{size} entries" if size else "an unknown number of entries"
            return f"{node.operator} may look for entry {_either(index)} of {entries}"
    return Value(table.dtype, table.low, table.high)


def _either(value: Value) -> str:
    return f"{value.low} to {value.high}"


def _divide(node: Node) -> Value | str:
    dtype, dividend, divisor = node.dtype(), node.value(0), node.value(1)
    if dtype.startswith("float"):
        return any_value(dtype)
    if divisor.low <= 0 <= divisor.high:
        return f"{node.operator} may divide by 0"
    if divisor.low <= -1 <= divisor.high and dividend.low <= range_of(dtype)[0] < 0:
        return f"{node.operator} may divide the least integer by -1"
    if node.operator == "Mod":
        most = max(abs(divisor.low), abs(divisor.high)) - 1
        return value_within(dtype, -most if dividend.low < 0 or divisor.low < 0 else 0, most)
    quotients = [_towards_zero(one, other) for one in dividend.range for other in divisor.range]
    return value_within(dtype, min(quotients), max(quotients))


def _towards_zero(one: int, other: int) -> int:
    return abs(one) // abs(other) * (1 if (one < 0) == (other < 0) else -1)


def _constant(node: Node) -> Value | str:
    if len(node.attributes) != 1:
        return "a Constant has more than one value"
    return constant_attribute(next(iter(node.attributes.values())))


def _named(names: str, operator: Operator, domain: str = "") -> dict[tuple[str, str], Operator]:
    return {(domain, name): operator for name in names.split()}


_FIRST: Final = frozenset({0})

OPERATORS: Final[dict[tuple[str, str], Operator]] = {
    # every input is data, and every element of the output costs the same whatever it is
    **_named(
        "Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish Hardmax LeakyRelu "
        "Log LogSoftmax Mish Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan "
        "Tanh ThresholdedRelu Abs BitwiseNot BitwiseAnd BitwiseOr BitwiseXor PRelu Pow Sum Mean "
        "MatMul Gemm Conv ConvTranspose AveragePool GlobalAveragePool GlobalMaxPool LpPool GlobalLpPool MaxPool LRN Einsum "
        "BatchNormalization InstanceNormalization LayerNormalization GroupNormalization RMSNormalization LpNormalization "
        "MeanVarianceNormalization SimplifiedLayerNormalization",
        Operator(_any),
    ),
    **_named("Equal Greater GreaterOrEqual Less LessOrEqual IsInf IsNaN", Operator(_always(Value("bool", 0, 1)))),
    **_named("And Or Xor Not", Operator(_logic)),
    **_named("Identity", Operator(_same_constant)),
    **_named("Flatten Transpose DepthToSpace SpaceToDepth", Operator(_same)),
    **_named("Add", Operator(_add)),
    **_named("Sub", Operator(_subtract)),
    **_named("Mul", Operator(_multiply)),
    **_named("Neg", Operator(_negate)),
    **_named("Div Mod", Operator(_divide)),
    **_named("Clip", Operator(_clip)),
    **_named("Max", Operator(_greatest)),
    **_named("Min", Operator(_least)),
    **_named("Where", Operator(_where)),
    **_named("Concat", Operator(_hull)),
    **_named("Cast", Operator(_cast)),
    **_named("CastLike", Operator(_cast_like)),
    **_named("ArgMax ArgMin", Operator(_always(Value("int64", 0, range_of("int64")[1])))),
    **_named("Constant", Operator(_constant)),
    # only the data may depend on an observation, not the shape, the axes, the sizes or the positions
    **_named(
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd ReduceSum ReduceSumSquare CumSum Dropout "
        "Resize Upsample Trilu",
        Operator(_any, _FIRST),
    ),
    **_named(
        "Reshape Expand Tile Slice Squeeze Unsqueeze ReduceMax ReduceMin", Operator(_same, _FIRST)
    ),
    **_named("Split", Operator(_same, _FIRST, is_alike=True)),
    **_named("TopK", Operator(_same, _FIRST)),
    **_named("Pad", Operator(_any, frozenset({0, 2}))),
    **_named("LSTM GRU", Operator(_any, frozenset({0, 1, 2, 3, 5, 6, 7}), is_alike=True)),
    **_named("RNN", Operator(_any, frozenset({0, 1, 2, 3, 5}), is_alike=True)),
    **_named("Gather GatherElements", Operator(_gather)),
    **_named("GatherND", Operator(_same, _FIRST)),
    **_named("Scatter ScatterElements ScatterND", Operator(_any, frozenset({0, 2}))),
    **_named("Attention", Operator(_any, frozenset({0, 1, 2, 3, 4, 5}))),
    # an index out of range selects nothing
    **_named("OneHot", Operator(_one_hot, frozenset({0, 2}))),
    # these depend on the shape of their input
    **_named("ConstantOfShape Range", Operator(_always(any_value()), frozenset())),
    **_named("Shape Size", Operator(_always(Value("int64", 0, range_of("int64")[1])), is_fixed=True)),
    **_named("EyeLike", Operator(_always(any_value()), is_fixed=True)),
    # integers instead of floats, but neither shapes nor positions
    **_named("QuantizeLinear QLinearMatMul QLinearConv", Operator(_always(any_value()))),
    **_named("DequantizeLinear", Operator(_dequantized)),
    **_named("DynamicQuantizeLinear", Operator(_always(any_value("uint8")))),
    **_named("MatMulInteger ConvInteger", Operator(_always(any_value("int32")))),
    # random numbers of a fixed shape
    **_named("RandomNormal RandomUniform RandomNormalLike RandomUniformLike", Operator(_always(any_value("float32")))),
    **_named("Bernoulli Multinomial", Operator(_always(any_value()))),
    **_named(
        "BiasGelu DynamicQuantizeMatMul FastGelu FusedConv FusedMatMul Gelu MatMulIntegerToFloat QuickGelu "
        "SkipLayerNormalization SkipSimplifiedLayerNormalization",
        Operator(_always(any_value("float32"))),
        "com.microsoft",
    ),
    **_named("Scaler Normalizer Imputer", Operator(_always(any_value("float32"))), "ai.onnx.ml"),
}  # fmt: skip

RANDOM: Final = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"}
)
"""Operators whose output is not fixed, even if all their inputs are."""
