"""What each engine is measured with: the image policy that ships, for that engine, and a policy that is nearly all weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from pillion_artifacts import ModelCard, Store, export
from pillion_artifacts.card.layers import CARD_NAME, MODEL_NAMES
from pillion_artifacts.card.model_card import EngineCard, TensorCard
from pillion_bench.shipped import IMAGE, examples_folder

ONNX: Final = "onnx"
TORCH: Final = "torch"
PYTHON: Final = "python"
ENGINES: Final = (ONNX, TORCH, PYTHON)

TABLE: Final = "table"

_DISTRIBUTION: Final = "pillion"
_FACTORIES: Final = "pillion_bench.torch_policies"
_SETTINGS: Final[dict[str, dict[str, str]]] = {PYTHON: {"PILLION_TRUST__CODE": _DISTRIBUTION}}
"""What a daemon needs to serve the policies of an engine."""

_WIDTH: Final = 256
_NAMED: Final = 8
"""Rows of the table that an observation names, each one of the first eight."""
_OPSET: Final = 18
_IR_VERSION: Final = 9


class Subject(msgspec.Struct, frozen=True):
    """An engine, a store, the policies in it to measure the engine with, and the settings that a daemon needs for them."""

    engine: str
    store: Path
    small: str
    """The policy of the round trips: the smallest one that there is."""
    image: str
    settings: Mapping[str, str]


@contextmanager
def subject_of(engine: str) -> Iterator[Subject]:
    """Yields what `engine` is measured with; for engines other than ONNX, in a temporary store."""
    if engine == ONNX:
        yield Subject(engine, examples_folder(), "lunar-lander", IMAGE, {})
        return
    with tempfile.TemporaryDirectory(prefix="pillion-bench-") as folder:
        version, store = Path(folder, "version"), Path(folder, "store")
        _make_image(version, engine)
        Store(store).publish(IMAGE, "1.0.0", version)
        yield Subject(engine, store, IMAGE, IMAGE, settings_of(engine))


def settings_of(engine: str) -> dict[str, str]:
    """Returns the settings that a daemon needs to serve the policies of an engine."""
    return _SETTINGS.get(engine, {})


def make_table(folder: Path, engine: str, version: str, megabytes: float) -> None:
    """Makes a version of `table` whose weights have that many MB (of 1,000,000 bytes), as a folder that can be published."""
    rows = max(_NAMED, round(megabytes * 1e6 / (4 * _WIDTH)))
    table = np.random.default_rng(7).random((rows, _WIDTH), np.float32)
    card = ModelCard(
        schema=3,
        name=TABLE,
        version=version,
        description="Sums the rows of a table that its observation names.",
        licence="Apache-2.0",
        observation=[TensorCard("observation", "int64", [_NAMED], low=[0.0], high=[_NAMED - 1.0])],
        outputs=[TensorCard("action", "float32", [_WIDTH])],
        engine=_engine_card(engine, "make_table"),
    )
    if engine == TORCH:
        import torch

        from pillion_bench.torch_policies import TablePolicy

        module, example = TablePolicy(torch.from_numpy(table)).eval(), torch.zeros(2, _NAMED, dtype=torch.int64)
        export(module, example, card, folder, engine="torch")
    else:
        _write(folder, card, _table_graph(table) if engine == ONNX else save({"table": table}))


def _make_image(folder: Path, engine: str) -> None:
    card = Store(examples_folder()).load(IMAGE).card
    card = msgspec.structs.replace(card, version="1.0.0", engine=_engine_card(engine, "make_image"))
    from pillion_bench.torch_policies import shipped_image

    module = shipped_image()
    if engine == TORCH:
        import torch

        export(module, torch.zeros(2, *card.observation[0].shape, dtype=torch.uint8), card, folder, engine="torch")
    else:
        _write(folder, card, save({name: tensor.numpy() for name, tensor in module.state_dict().items()}))


def _engine_card(engine: str, factory: str) -> EngineCard:
    if engine == PYTHON:
        return EngineCard(PYTHON, f"{_FACTORIES}:{factory}", _DISTRIBUTION)
    return EngineCard("torch") if engine == TORCH else EngineCard()


def _write(folder: Path, card: ModelCard, model: bytes) -> None:
    folder.mkdir()
    (folder / MODEL_NAMES[card.engine.kind]).write_bytes(model)
    (folder / CARD_NAME).write_bytes(msgspec.yaml.encode(card))


def _table_graph(table: NDArray[Any]) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "observation"], ["named"], axis=0),
            helper.make_node("ReduceSum", ["named", "axis"], ["action"], keepdims=0),
        ],
        TABLE,
        [helper.make_tensor_value_info("observation", TensorProto.INT64, ["rows", _NAMED])],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["rows", _WIDTH])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1], np.int64), "axis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    return bytes(model.SerializeToString())
