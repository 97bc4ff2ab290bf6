"""A graph is bounded if nothing that an observation holds decides how long it runs, what it allocates or what it reads."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pillion_artifacts import InvalidArtifactError, Store
from pillion_artifacts.card.model_card import TensorCard
from pillion_artifacts.card.onnx_bounds import why_unbounded
from pillion_artifacts.card.onnx_checks import inspect_onnx
from pillion_artifacts.limits import GRAPH_DEPTH_MAX, GRAPH_NODES_MAX
from pillion_protocol.specs import DType
from tests.artifacts.support.policy_sources import real_policies

ROOT = Path(__file__).parents[3]
DTYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64, "bool": TensorProto.BOOL,
          "uint8": TensorProto.UINT8}  # fmt: skip
CONSTANTS: dict[str, NDArray[Any]] = {
    "table": np.arange(16, dtype=np.float32),
    "zero": np.array([0], np.int64),
    "one": np.array([1], np.int64),
    "minus_one": np.array([-1], np.int64),
    "two": np.array([2], np.int64),
    "seven": np.array([7], np.int64),
    "fifteen": np.array([15], np.int64),
    "sixteen": np.array([16], np.int64),
    "a_half": np.array([0.5], np.float32),
    "yes": np.array(True),
    "depth": np.array(16, np.int64),
    "ends": np.array([0, 1], np.float32),
    "weights": np.ones((1, 4), np.float32),
}


def node(text: str, **attributes: Any) -> onnx.NodeProto:
    """`output other = Operator input input`; a domain stands before the operator and a colon."""
    outputs, _, call = text.partition(" = ")
    operator, *inputs = call.split(" ")
    domain, _, name = operator.rpartition(":")
    return helper.make_node(
        name, ["" if each == "-" else each for each in inputs], outputs.split(" "), domain=domain, **attributes
    )


def graph(
    nodes: Sequence[onnx.NodeProto], name: str = "branch", outputs: Sequence[str] = ("inner",)
) -> onnx.GraphProto:
    return helper.make_graph(
        list(nodes), name, [], [helper.make_tensor_value_info(each, TensorProto.FLOAT, None) for each in outputs]
    )


def model(
    nodes: Sequence[onnx.NodeProto],
    dtype: DType = "int64",
    functions: Sequence[onnx.FunctionProto] = (),
    action: int = TensorProto.FLOAT,
) -> bytes:
    """A model whose input `x` has one element a row; the constants above are there for every node."""
    whole = helper.make_graph(
        list(nodes),
        "policy",
        [helper.make_tensor_value_info("x", DTYPES[dtype], ["rows", 1])],
        [helper.make_tensor_value_info("action", action, None)],
        [numpy_helper.from_array(value, name) for name, value in CONSTANTS.items()],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(whole, opset_imports=imports, functions=list(functions), ir_version=10)
    return bytes(made.SerializeToString())


def why(
    nodes: Sequence[onnx.NodeProto], dtype: DType = "int64", low: Sequence[float] = (), high: Sequence[float] = ()
) -> str:
    return why_unbounded(model(nodes, dtype), [TensorCard("x", dtype, [1], low=list(low), high=list(high))])


GATHER = node("action = Gather table x")
DIVISION = [node("n = Sub x seven"), node("q = Div fifteen n"), node("action = Cast q", to=1)]
LOOP_BODY = helper.make_graph(
    [node("more = Identity going"), node("w = Mul v v")],
    "body",
    [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("going", 9), ("v", 1))],
    [helper.make_tensor_value_info(name, kind, []) for name, kind in (("more", 9), ("w", 1))],
)

UNBOUNDED = {
    "an index without bounds": ([GATHER], "int64", "Gather may look for entry"),
    "an index from a float": ([node("i = Cast x", to=7), node("action = Gather table i")], "float32", "Gather"),
    "an index from a limited float": (
        [node("c = Clip x a_half a_half"), node("i = Cast c", to=7), node("action = Gather table i")], "float32", "Gather",
    ),
    "an index into a table of unknown size": (
        [node("t = Mul table a_half"), node("i = Clip x zero one"), node("action = Gather t i")], "int64", "unknown number",
    ),
    "the index of a maximum": ([node("i = ArgMax x"), node("action = Gather table i")], "float32", "Gather"),
    "an index by coordinates": ([node("action = GatherND table x")], "int64", "input 1 of 'GatherND'"),
    "a place to write to": ([node("action = ScatterElements table x table")], "int64", "input 1 of 'ScatterElements'"),
    "a divisor without bounds": (DIVISION, "int64", "Div may divide by 0"),
    "a remainder without bounds": ([node("q = Mod fifteen x"), node("action = Cast q", to=1)], "int64", "Mod may divide"),
    "the least integer divided by -1": (
        [node("q = Div x minus_one"), node("action = Cast q", to=1)], "int64", "Div may divide the least integer by -1",
    ),
    "a size": ([node("action = ConstantOfShape x")], "int64", "input 0 of 'ConstantOfShape'"),
    "a range": ([node("s = Squeeze x"), node("action = Range a_half s a_half")], "float32", "'Range'"),
    "a shape": ([node("action = Reshape table x")], "int64", "input 1 of 'Reshape'"),
    "an expansion": ([node("action = Expand table x")], "int64", "input 1 of 'Expand'"),
    "a repetition": ([node("action = Tile table x")], "int64", "input 1 of 'Tile'"),
    "a scale": ([node("action = Resize table - x")], "float32", "input 2 of 'Resize'"),
    "a padding": ([node("action = Pad table x")], "int64", "input 1 of 'Pad'"),
    "a slice": ([node("action = Slice table zero x")], "int64", "input 2 of 'Slice'"),
    "the sizes of a split": ([node("action b = Split table x")], "int64", "input 1 of 'Split'"),
    "a number of best ones": ([node("action i = TopK table x")], "int64", "input 1 of 'TopK'"),
    "a depth": ([node("d = Squeeze x"), node("action = OneHot zero d ends")], "int64", "input 1 of 'OneHot'"),
    "a number of bits": ([node("s = BitShift x x", direction="LEFT")], "uint8", "'BitShift'"),
    "elements that are not zero": ([node("action = NonZero x")], "int64", "'NonZero'"),
    "a choice of elements": ([node("b = Cast x", to=9), node("action = Compress table b")], "int64", "'Compress'"),
    "the length of a sequence": ([node("y h = GRU x x x x x", hidden_size=1)], "int64", "input 4 of 'GRU'"),
    "a loop with a count from an observation": ([node("action = Loop x yes a_half", body=LOOP_BODY)], "int64", "a Loop"),
    "a loop with a fixed count": ([node("action = Loop seven yes a_half", body=LOOP_BODY)], "int64", "a Loop"),
    "a condition from an observation": (
        [node("b = Cast x", to=9), node("action = If b", then_branch=graph([node("inner = Identity a_half")]),
              else_branch=graph([node("inner = Identity a_half")]))], "int64", "If depends",
    ),
    "a loop in a branch": (
        [node("action = If yes", then_branch=graph([node("inner = Loop seven yes a_half", body=LOOP_BODY)]),
              else_branch=graph([node("inner = Identity a_half")]))], "int64", "a Loop",
    ),
    "an index in a branch": (
        [node("action = If yes", then_branch=graph([node("inner = Gather table x")]),
              else_branch=graph([node("inner = Identity a_half")]))], "int64", "Gather",
    ),
    "an index that is computed further down": ([node("action = Gather table i"), node("i = Identity x")], "int64", "Gather"),
    "a tensor with two definitions": ([node("table = Identity x"), node("action = Identity table")], "int64", "twice"),
    "an embedding of another domain": (
        [node("action = com.microsoft:EmbedLayerNormalization x")], "int64", "'EmbedLayerNormalization'",
    ),
    "a random index": (
        [node("r = RandomNormalLike x"), node("i = Cast r", to=7), node("action = Gather table i")], "float32", "Gather",
    ),
    "a bool as an index": ([node("n = Cast x", to=7), node("action = Gather ends n")], "bool", "entry 0 to 255 of 2"),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "dtype", "expected"), UNBOUNDED.values(), ids=UNBOUNDED)
def test_what_an_observation_must_not_decide(nodes: list[onnx.NodeProto], dtype: DType, expected: str) -> None:
    assert expected in why(nodes, dtype)


BOUNDED = {
    "an index within its bounds": ([GATHER], "int64", [0], [15]),
    "an index that counts from the end": ([GATHER], "int64", [-16], [15]),
    "an index that is limited": ([node("i = Clip x zero fifteen"), node("action = Gather table i")], "int64", (), ()),
    "a remainder as an index": ([node("i = Mod x sixteen"), node("action = Gather table i")], "int64", (), ()),
    "an index from a float that is limited later": (
        [node("i = Cast x", to=7), node("c = Clip i zero fifteen"), node("action = Gather table c")], "float32", (), (),
    ),
    "an index of a small dtype": (
        [node("w = Cast x", to=7), node("i = Div w sixteen"), node("action = Gather table i")], "uint8", (), (),
    ),
    "a shifted index": ([node("i = Sub x seven"), node("action = Gather table i")], "int64", [0], [22]),
    "a divisor that cannot be 0": (DIVISION, "int64", [0], [6]),
    "a division of floats": ([node("action = Div x x")], "float32", (), ()),
    "integers as numbers": ([node("f = Cast x", to=1), node("action = Mul f a_half")], "int64", (), ()),
    "an image": ([node("f = Cast x", to=1), node("action = Div f a_half")], "uint8", (), ()),
    "one-hot": ([node("action = OneHot x depth ends")], "int64", (), ()),
    "the best action": ([node("l = Gemm x weights"), node("i = ArgMax l"), node("action = Cast i", to=1)], "float32", (), ()),
    "a shape from the rows": (
        [node("s = Shape x"), node("z = ConstantOfShape s"), node("action = Add x z")], "float32", (), (),
    ),
    "a condition from the rows": (
        [node("s = Size x"), node("b = Cast s", to=9), node("action = If b", then_branch=graph([node("inner = Identity x")]),
              else_branch=graph([node("inner = Identity x")]))], "float32", (), (),
    ),
    "a division of sizes": (
        [node("s = Shape x"), node("n = Div s s"), node("action = Expand x n")], "float32", (), (),
    ),
    "a choice by an observation": (
        [node("b = Less x a_half"), node("action = Where b x a_half")], "float32", (), (),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "dtype", "low", "high"), BOUNDED.values(), ids=BOUNDED)
def test_what_an_observation_may_decide(
    nodes: list[onnx.NodeProto], dtype: DType, low: Sequence[float], high: Sequence[float]
) -> None:
    assert why(nodes, dtype, low, high) == ""


@pytest.mark.parametrize(("low", "high"), [((), [15]), ([0], ()), ([0], [16]), ([-17], [15]), ([0], [np.inf])])
def test_bounds_that_are_too_wide_do_not_help(low: Sequence[float], high: Sequence[float]) -> None:
    assert "Gather may look for entry" in why([GATHER], "int64", low, high)


def test_a_divisor_counts_the_zeros_of_rows_that_no_act_fills() -> None:
    nodes = [node("q = Div fifteen x"), node("action = Cast q", to=1)]
    assert why(nodes, "int64", [1], [3]) == "Div may divide by 0"


def test_an_overflow_makes_a_range_useless() -> None:
    nodes = [node("i = Cast x", to=6), node("s = Mul i i"), node("action = Gather table s")]
    assert "Gather may look for entry -2147483648 to 2147483647" in why(nodes, "int64", [0], [70_000])


def test_an_input_that_is_no_observation_has_no_bounds() -> None:
    card = TensorCard("observation", "int64", [1], low=[0], high=[15])
    assert "Gather" in why_unbounded(model([GATHER]), [card])


def function(nodes: Sequence[onnx.NodeProto], domain: str = "own", name: str = "Look") -> onnx.FunctionProto:
    return helper.make_function(
        domain, name, ["a"], ["b"], list(nodes), [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)], ["to"]
    )


INDEX = TensorCard("x", "int64", [1], low=[0], high=[15])


def test_a_function_is_judged_where_it_is_called() -> None:
    body = [node("t = Constant", value=numpy_helper.from_array(CONSTANTS["table"])), node("b = Gather t a")]
    data = model([node("action = own:Look x")], functions=[function(body)])
    assert why_unbounded(data, [INDEX]) == ""
    assert "Gather" in why_unbounded(data, [TensorCard("x", "int64", [1])])


def test_an_attribute_of_a_function_comes_from_its_caller() -> None:
    cast = node("c = Cast a")
    cast.attribute.append(onnx.AttributeProto(name="to", ref_attr_name="to", type=onnx.AttributeProto.INT))
    body = [cast, node("t = Constant", value=numpy_helper.from_array(CONSTANTS["table"])), node("b = Gather t c")]
    data = model([node("action = own:Look x", to=TensorProto.INT32)], functions=[function(body)])
    assert why_unbounded(data, [INDEX]) == ""
    without = model([node("action = own:Look x")], functions=[function(body)])
    assert "casts to a dtype" in why_unbounded(without, [INDEX])


def test_a_function_must_not_replace_an_operator() -> None:
    data = model([node("action = Tanh x")], functions=[function([node("b = Tanh a")], "", "Tanh")])
    assert why_unbounded(data, [INDEX]) == "it defines the operator 'Tanh', which exists already"


def test_functions_that_call_each_other_for_ever_are_not_followed() -> None:
    data = model([node("action = own:Look x")], functions=[function([node("b = own:Look a")])])
    assert f"more than {GRAPH_DEPTH_MAX} deep" in why_unbounded(data, [INDEX])


def test_functions_that_multiply_are_counted_at_each_call() -> None:
    calls = [function([node(f"c = own:F{n + 1} a"), node(f"b = own:F{n + 1} c")], "own", f"F{n}") for n in range(25)]
    last = function([node("b = Identity a")], "own", "F25")
    data = model([node("action = own:F0 x")], functions=[*calls, last])
    assert why_unbounded(data, [INDEX]) == f"it has more than {GRAPH_NODES_MAX} nodes"


def test_a_graph_in_two_parts_is_read_as_one() -> None:
    whole = onnx.ModelProto.FromString(model([GATHER]))
    part, rest = onnx.ModelProto(), onnx.ModelProto()
    part.graph.node.append(node("action = Loop x yes a_half", body=LOOP_BODY))
    rest.CopyFrom(whole)
    rest.graph.ClearField("node")
    rest.graph.node.append(node("other = Identity x"))
    assert why_unbounded(part.SerializeToString() + rest.SerializeToString(), [INDEX]) == "its graph has a Loop"


def test_a_weight_in_another_file_is_found_in_a_graph_in_two_parts() -> None:
    part = onnx.ModelProto()
    weight = part.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[8], data_location=1)
    weight.external_data.add(key="location", value="secret.bin")
    with pytest.raises(InvalidArtifactError, match="expected every weight in the file itself, got 'w'"):
        inspect_onnx(part.SerializeToString() + model([GATHER]), "policy")


def test_the_policies_that_ship_are_bounded() -> None:
    store = Store(ROOT / "artifacts" / "examples")
    for name in ("cart-pole-pixels", "highway-fast", "lunar-lander"):
        artifact = store.load(name)
        assert why_unbounded(artifact.model, artifact.card.observation) == "", name


def test_a_real_policy_is_bounded() -> None:
    data = (real_policies() / "onnx" / "go1-joystick.onnx").read_bytes()
    assert why_unbounded(data, [TensorCard("obs", "float32", [48])]) == ""


@given(st.data())
@settings(max_examples=200)
def test_any_bytes_are_judged(data: st.DataObject) -> None:
    sound = bytearray(model([node("action = own:Look x", to=6), *DIVISION[:-1]], functions=[function([GATHER])]))
    for _ in range(data.draw(st.integers(1, 4))):
        sound[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    assert isinstance(why_unbounded(bytes(sound), [INDEX]), str)


STEPS = [
    "Add {} one", "Sub {} seven", "Mul {} two", "Mul {} minus_one", "Neg {}", "Abs {}", "Clip {} zero seven",
    "Clip {} minus_one -", "Div {} two", "Div {} minus_one", "Mod {} seven", "Mod {} minus_one", "Max {} zero", "Min {} seven",
    "Identity {}", "Mul {} {}", "Add {} x", "Sub {} x", "Div fifteen {}", "Mod fifteen {}",
]  # fmt: skip


@given(
    st.lists(st.sampled_from(STEPS), max_size=5),
    st.integers(-12, 12).flatmap(lambda low: st.tuples(st.just(low), st.integers(low, low + 12))),
)
@settings(max_examples=300, deadline=None)
def test_a_bounded_graph_runs_for_every_observation_within_the_bounds(
    steps: list[str], bounds: tuple[int, int]
) -> None:
    names = ["x", *(f"v{number}" for number in range(len(steps)))]
    nodes = [
        node(f"{after} = {step.format(before, before)}")
        for step, (before, after) in zip(steps, itertools.pairwise(names), strict=True)
    ]
    data = model([*nodes, node(f"action = Gather table {names[-1]}")])
    if why_unbounded(data, [TensorCard("x", "int64", [1], low=[bounds[0]], high=[bounds[1]])]):
        return
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for value in {0, *range(bounds[0], bounds[1] + 1)}:
        session.run(None, {"x": np.array([[value]], np.int64)})
