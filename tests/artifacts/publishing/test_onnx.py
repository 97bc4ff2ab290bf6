"""ONNX files become policies with a free batch and the same bits. References to other places are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pillion_artifacts import InvalidArtifactError, InvalidSourceError, ModelCard, ParityError, parse_card
from pillion_artifacts.publishing.common.draft import Details
from pillion_artifacts.publishing.common.folder import PublishReport, write_folder
from pillion_artifacts.publishing.common.onnx_model import OnnxModel
from pillion_artifacts.publishing.onnx.free_batch import prove_free_batch
from pillion_artifacts.publishing.onnx.onnx_source import import_onnx
from tests.artifacts.support.policy_sources import act, real_policies, session

DETAILS = Details(name="made-here", version="1.0.0")
RANDOM = np.random.default_rng(2)
WEIGHT = RANDOM.standard_normal((6, 4)).astype(np.float32)

CARD = """
schema: 2
name: from-a-card
version: 0.0.1
description: Chooses.
licence: MIT
observation: [{name: observation, dtype: float32, shape: [6], low: [-1], high: [1]}]
outputs: [{name: action, dtype: int64, space: Discrete, low: [0], high: [3]}]
distribution: {kind: categorical, logits: logits}
"""


def model_of(
    nodes: list[onnx.NodeProto],
    outputs: dict[str, tuple[int, list[int | str]]],
    weights: dict[str, NDArray[Any]] | None = None,
    batch: int | str = "rows",
    domains: dict[str, int] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model of one observation, [batch, 6]."""
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("observation", dtype, [batch, 6])],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [
            numpy_helper.from_array(array, name)
            for name, array in ({"weight": WEIGHT} if weights is None else weights).items()
        ],
    )
    opsets = [helper.make_opsetid(domain, number) for domain, number in {"": 17, **(domains or {})}.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions or [])


def linear(batch: int | str = "rows") -> onnx.ModelProto:
    """action = observation · weight."""
    node = helper.make_node("MatMul", ["observation", "weight"], ["action"])
    return model_of([node], {"action": (TensorProto.FLOAT, [batch, 4])}, batch=batch)


def chooser() -> onnx.ModelProto:
    """The argmax of the logits."""
    nodes = [
        helper.make_node("MatMul", ["observation", "weight"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0),
    ]
    return model_of(nodes, {"best": (TensorProto.INT64, ["rows"]), "logits": (TensorProto.FLOAT, ["rows", 4])})


def reshaped(*shape: int) -> onnx.ModelProto:
    """A graph whose constant shapes have one row."""
    nodes = [
        helper.make_node("Reshape", ["observation", "shape"], ["folded"]),
        helper.make_node("ReduceSum", ["folded", "axes"], ["action"], keepdims=0),
    ]
    weights = {"shape": np.array(shape, np.int64), "axes": np.array([2], np.int64)}
    return model_of(nodes, {"action": (TensorProto.FLOAT, [1, 2])}, weights, batch=1)


def publish(model: onnx.ModelProto, folder: Path, card: ModelCard | None = None, action: str = "") -> PublishReport:
    file = folder / "source.onnx"
    onnx.save(model, file)
    return write_folder(folder / "published", import_onnx(file, DETAILS, card, action))


def refusal(file: Path, card: ModelCard | None = None, action: str = "") -> str:
    with pytest.raises((InvalidSourceError, InvalidArtifactError)) as caught:
        import_onnx(file, DETAILS, card, action)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refusal_of(model: onnx.ModelProto, folder: Path, card: ModelCard | None = None, action: str = "") -> str:
    file = folder / "source.onnx"
    onnx.save(model, file)
    return refusal(file, card, action)


def test_a_real_policy_of_a_fixed_batch_accepts_any_batch_with_the_same_bits(tmp_path: Path) -> None:
    file = real_policies() / "onnx" / "go1-joystick.onnx"
    report = write_folder(tmp_path, import_onnx(file, DETAILS))
    source = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    published = session(tmp_path)
    observation = np.random.default_rng(1).standard_normal((300, 48)).astype(np.float32)
    expected = np.concatenate([source.run(None, {"obs": row[None]})[0] for row in observation])
    one_by_one = np.concatenate([published.run(["action"], {"obs": row[None]})[0] for row in observation])
    assert one_by_one.tobytes() == expected.tobytes()
    np.testing.assert_allclose(act(tmp_path, {"obs": observation}), expected, rtol=1e-5, atol=1e-6)
    assert report.differences == {"action": 0.0}


def test_a_model_that_needs_no_change_is_published_byte_for_byte(tmp_path: Path) -> None:
    publish(linear(), tmp_path)
    assert (tmp_path / "published" / "model.onnx").read_bytes() == (tmp_path / "source.onnx").read_bytes()


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_becomes_free(batch: int, tmp_path: Path) -> None:
    report = publish(linear(batch), tmp_path)
    observation = RANDOM.standard_normal((7, 6)).astype(np.float32)
    np.testing.assert_allclose(act(report.folder, {"observation": observation}), observation @ WEIGHT, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 2, 3), (1, -1, 3)])
def test_a_constant_shape_of_one_row_is_freed_too(shape: tuple[int, ...], tmp_path: Path) -> None:
    report = publish(reshaped(*shape), tmp_path)
    observation = RANDOM.standard_normal((5, 6)).astype(np.float32)
    expected = observation.reshape(5, 2, 3).sum(axis=2)
    np.testing.assert_allclose(act(report.folder, {"observation": observation}), expected, rtol=1e-5)


def test_a_batch_that_cannot_be_freed_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["observation", "shape"], ["long"]),
        helper.make_node("Gather", ["long", "index"], ["action"], axis=0),
    ]
    weights = {"shape": np.array([6], np.int64), "index": np.array([[0, 3]], np.int64)}
    model = model_of(nodes, {"action": (TensorProto.FLOAT, [1, 2])}, weights, batch=1)
    with pytest.raises((InvalidSourceError, ParityError), match=r"its batch of 1 cannot be made free: with 3 rows"):
        publish(model, tmp_path)


def test_a_single_bit_of_difference_is_found() -> None:
    before, after = linear(1), linear()
    nudged = WEIGHT.copy()
    nudged[2, 1] = np.nextafter(nudged[2, 1], np.float32(9))
    after.graph.initializer[0].CopyFrom(numpy_helper.from_array(nudged, "weight"))
    inputs = {"observation": RANDOM.standard_normal((8, 6)).astype(np.float32)}
    same = OnnxModel(linear().SerializeToString())
    prove_free_batch(OnnxModel(before.SerializeToString()), same, 1, inputs)
    with pytest.raises(ParityError, match=r"output 'action', row \d+: not bit-equal with a free batch"):
        prove_free_batch(OnnxModel(before.SerializeToString()), OnnxModel(after.SerializeToString()), 1, inputs)


def test_a_row_that_sees_another_row_is_found(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["observation"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Add", ["observation", "mean"], ["action"]),
    ]
    model = model_of(nodes, {"action": (TensorProto.FLOAT, [1, 6])}, {}, batch=1)
    with pytest.raises(ParityError, match=r"output 'action', row \d+, element \d+: expected .*, which differs by"):
        publish(model, tmp_path)


def test_a_given_card_describes_the_graph(tmp_path: Path) -> None:
    report = publish(chooser(), tmp_path, parse_card(CARD.encode()))
    assert (report.card.name, report.card.version, report.card.licence) == ("made-here", "1.0.0", "MIT")
    assert report.card.action().space == "Discrete"
    observation = RANDOM.uniform(-1, 1, (50, 6)).astype(np.float32)
    assert (act(report.folder, {"observation": observation}) == (observation @ WEIGHT).argmax(axis=1)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("shape: [6]", "shape: [7]"), "'observation': the card says float32 [7], the graph float32 [6]"),
        (("dtype: float32", "dtype: float64"), "'observation': the card says float64 [6], the graph float32 [6]"),
        (("name: observation", "name: obs"), "the graph's inputs are ['observation'], the card's ['obs']"),
        (("dtype: int64", "dtype: int32"), "'action': the card says int32 [], the graph int64 []"),
        (("logits: logits", "logits: scores"), "which output is the action?"),
        (("distribution", "state: [{name: h, output: h2, dtype: float32, shape: [1]}]\ndistribution"), "inputs are"),
    ],
)
def test_a_card_that_contradicts_the_graph_is_refused(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    assert change[0] in CARD
    assert message in refusal_of(chooser(), tmp_path, parse_card(CARD.replace(*change).encode()))


def test_an_ambiguous_action_must_be_named(tmp_path: Path) -> None:
    assert "which output is the action? expected one of best, logits" in refusal_of(chooser(), tmp_path)
    assert "no output 'worst'" in refusal_of(chooser(), tmp_path, action="worst")
    report = publish(chooser(), tmp_path, action="best")
    assert [tensor.name for tensor in report.card.outputs] == ["action"]


def test_no_other_output_can_be_the_action_of_a_graph_that_has_one(tmp_path: Path) -> None:
    model = chooser()
    for value in [*model.graph.output, *(node for node in model.graph.node)]:
        if isinstance(value, onnx.ValueInfoProto):
            value.name = value.name.replace("best", "action")
        else:
            value.output[:] = [name.replace("best", "action") for name in value.output]
    assert "expected 'action' as the action, which the graph has, got 'logits'" in refusal_of(
        model, tmp_path, action="logits"
    )


def _with_outside_data(folder: Path, location: str) -> Path:
    model = linear()
    tensor = model.graph.initializer[0]
    raw = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    file = folder / "source.onnx"
    file.write_bytes(model.SerializeToString())
    (folder.parent / "secret").write_bytes(raw)
    return file


def test_data_beside_the_model_is_embedded(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    file = _with_outside_data(folder, "weights.bin")
    (folder / "weights.bin").write_bytes(WEIGHT.tobytes())
    report = write_folder(tmp_path / "published", import_onnx(file, DETAILS))
    observation = RANDOM.standard_normal((3, 6)).astype(np.float32)
    np.testing.assert_allclose(act(report.folder, {"observation": observation}), observation @ WEIGHT, rtol=1e-5)
    assert sorted(os.listdir(report.folder)) == ["golden.safetensors", "model.onnx", "model_card.yaml"]


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "", "..", "a/b", "link", "nothing-here"])
def test_data_that_is_not_beside_the_model_is_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link").symlink_to("../secret")
    message = refusal(_with_outside_data(folder, location))
    assert "expected its data in a file beside the model" in message or location in message


def test_data_that_is_too_short_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    file = _with_outside_data(folder, "weights.bin")
    (folder / "weights.bin").write_bytes(WEIGHT.tobytes()[:-4])
    assert "not a valid model" in refusal(file) or "does not" in refusal(file)


def _function(domain: str) -> onnx.FunctionProto:
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    return helper.make_function(domain, "Multiply", ["a", "b"], ["c"], [node], [helper.make_opsetid("", 17)])


def test_a_function_of_the_file_is_inlined(tmp_path: Path) -> None:
    node = helper.make_node("Multiply", ["observation", "weight"], ["action"], domain="own")
    outputs: dict[str, tuple[int, list[int | str]]] = {"action": (TensorProto.FLOAT, ["rows", 4])}
    report = publish(model_of([node], outputs, domains={"own": 1}, functions=[_function("own")]), tmp_path)
    published = onnx.load(Path(report.folder) / "model.onnx")
    assert not published.functions
    assert [node.op_type for node in published.graph.node] == ["MatMul"]


def test_a_custom_operator_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("RunThis", ["observation", "weight"], ["action"], domain="evil.ops")
    outputs: dict[str, tuple[int, list[int | str]]] = {"action": (TensorProto.FLOAT, ["rows", 4])}
    message = refusal_of(model_of([node], outputs, domains={"evil.ops": 1}), tmp_path)
    assert "operator evil.ops.RunThis is not one of ONNX Runtime's" in message


STATEFUL = """
schema: 2
name: from-a-card
version: 0.0.1
description: Remembers.
licence: MIT
observation: [{name: observation, dtype: float32, shape: [6]}]
outputs: [{name: action, dtype: float32, shape: [5]}]
state:
- {name: hidden, output: hidden_next, dtype: float32, shape: [1, 5]}
- {name: cell, output: cell_next, dtype: float32, shape: [1, 5]}
"""


def memory(rows: int | str, *, layers_first: bool) -> onnx.ModelProto:
    """ONNX's LSTM of one layer with states of [layers, rows, width], or with transposes around it."""
    random = np.random.default_rng(8)
    weights: dict[str, NDArray[Any]] = {
        "first": np.array([0], np.int64),
        "W": random.standard_normal((1, 20, 6)).astype(np.float32),
        "R": random.standard_normal((1, 20, 5)).astype(np.float32),
    }
    names = ["hidden", "cell", "hidden_next", "cell_next"]
    inner = names if layers_first else [f"inner_{name}" for name in names]
    hidden, cell, hidden_next, cell_next = inner
    nodes = [
        helper.make_node("Unsqueeze", ["observation", "first"], ["sequence"]),
        helper.make_node(
            "LSTM", ["sequence", "W", "R", "", "", hidden, cell], ["", hidden_next, cell_next], hidden_size=5
        ),
        helper.make_node("Squeeze", [hidden_next, "first"], ["action"]),
    ]
    if not layers_first:
        transposes = [
            helper.make_node("Transpose", [a], [b], perm=[1, 0, 2])
            for a, b in [*zip(names[:2], inner[:2], strict=True), *zip(inner[2:], names[2:], strict=True)]
        ]
        nodes = [*transposes[:2], *nodes, *transposes[2:]]
    shape: list[int | str] = [1, rows, 5] if layers_first else [rows, 1, 5]
    outputs: dict[str, tuple[int, list[int | str]]] = {"action": (TensorProto.FLOAT, [rows, 5])}
    outputs |= dict.fromkeys(names[2:], (TensorProto.FLOAT, shape))
    model = model_of(nodes, outputs, weights, rows)
    model.graph.input.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names[:2])
    return model


@pytest.mark.parametrize("rows", ["rows", 1, 4])
@pytest.mark.parametrize("layers_first", [True, False])
def test_rows_become_the_first_axis_of_a_state(layers_first: bool, rows: int | str, tmp_path: Path) -> None:
    report = publish(memory(rows, layers_first=layers_first), tmp_path, parse_card(STATEFUL.encode()))
    published = session(report.folder)
    assert {entry.name: entry.shape[1:] for entry in published.get_inputs()} == {
        "observation": [6], "hidden": [1, 5], "cell": [1, 5],
    }  # fmt: skip
    source = onnxruntime.InferenceSession(memory("rows", layers_first=False).SerializeToString())
    inputs = {
        "observation": RANDOM.standard_normal((3, 6)).astype(np.float32),
        "hidden": RANDOM.standard_normal((3, 1, 5)).astype(np.float32),
        "cell": RANDOM.standard_normal((3, 1, 5)).astype(np.float32),
    }
    names = ["action", "hidden_next", "cell_next"]
    for result, expected in zip(published.run(names, inputs), source.run(names, inputs), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_a_random_operator_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("RandomNormalLike", ["observation"], ["action"])
    refusal = refusal_of(model_of([node], {"action": (TensorProto.FLOAT, ["rows", 6])}, {}), tmp_path)
    assert "node 'action': RandomNormalLike is random: expected a graph that returns the deterministic" in refusal


def test_a_source_that_returns_nan_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Log", ["observation"], ["action"])
    with pytest.raises(ParityError, match=r"output 'action', row 0: the source itself returns NaN: expected observ"):
        publish(model_of([node], {"action": (TensorProto.FLOAT, ["rows", 6])}, {}), tmp_path)


def test_the_shape_of_an_output_is_inferred(tmp_path: Path) -> None:
    model = linear()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert publish(model, tmp_path).card.action().shape == [4]


def test_a_custom_operator_inside_a_branch_is_refused(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    evil = helper.make_node("RunThis", ["observation"], ["inner"], domain="evil.ops")
    branch = helper.make_graph([evil], "branch", [], [info])
    node = helper.make_node("If", ["yes"], ["action"], then_branch=branch, else_branch=branch)
    outputs: dict[str, tuple[int, list[int | str]]] = {"action": (TensorProto.FLOAT, ["rows", 6])}
    model = model_of([node], outputs, {"yes": np.array(True)}, domains={"evil.ops": 1})
    assert "operator evil.ops.RunThis is not one of ONNX Runtime's" in refusal_of(model, tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected ONNX"),
        (b"\x80\x04\x95 a pickle", "expected ONNX, got a pickle"),
        (b"PK\x03\x04 a zip", "expected ONNX, got a zip"),
        (b"not a model at all", "expected ONNX"),
    ],
)
def test_other_files_than_models_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "source.onnx").write_bytes(data)
    assert message in refusal(tmp_path / "source.onnx")


def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    data = linear().SerializeToString()
    for size in range(1, len(data), 29):
        (tmp_path / "source.onnx").write_bytes(data[:size])
        refusal(tmp_path / "source.onnx")


def _sparse(file: Path) -> None:
    file.touch()
    os.truncate(file, 10 << 30)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_sparse, "expected at most"),
        (os.mkfifo, "expected a file, got something else"),
        (os.mkdir, "expected a file, got something else"),
        (lambda file: file.symlink_to("/etc/hostname"), "expected a file, got a symbolic link"),
        (lambda file: file.unlink(missing_ok=True), "No such file"),
    ],
    ids=["ten sparse gigabytes", "a pipe", "a folder", "a link", "nothing"],
)
def test_a_source_that_is_no_regular_file_or_too_large_is_refused(
    make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    make(tmp_path / "source.onnx")
    assert message in refusal(tmp_path / "source.onnx")


@pytest.mark.parametrize(
    ("batch", "shape", "message"),
    [
        (1, [2, 4], "expected one batch for all inputs and outputs, got 1, 2"),
        ("rows", [1, 4], "got free, 1"),
        ("rows", ["rows", "more"], "expected sizes for all axes but the first"),
        ("rows", [], "expected a row axis"),
    ],
)
def test_a_graph_without_one_row_axis_is_refused(
    batch: int | str, shape: list[int | str], message: str, tmp_path: Path
) -> None:
    model = linear(batch)
    value = helper.make_tensor_value_info("action", TensorProto.FLOAT, shape)
    model.graph.output[0].CopyFrom(value)
    model.graph.node[0].op_type = "RandomNormalLike" if shape == [] else "MatMul"
    if shape == []:
        model.graph.node[0].CopyFrom(helper.make_node("ReduceSum", ["observation"], ["action"], keepdims=0))
    file = tmp_path / "source.onnx"
    file.write_bytes(model.SerializeToString())
    result = refusal(file)
    assert message in result or "not a valid model" in result
