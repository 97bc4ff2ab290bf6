"""`reader`, a policy that observes numbers and texts. Its action tells which bytes the engine got, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pillion_artifacts import Store
from pillion_artifacts.card.model_card import parse_card
from pillion_artifacts.publishing.sources import Options, import_source

ROOM = 24
NOTE_ROOM = 5
_CYCLE = 7

_CARD = """
schema: 3
name: reader
version: {version}
description: Adds the bytes of texts.
licence: Apache-2.0
observation:
- {{name: speed, dtype: float32, shape: [2]}}
- {{name: prompt, dtype: uint8, shape: [{room}], space: Text, low: [1]}}
- {{name: note, dtype: uint8, shape: [{note_room}], space: Text}}
outputs:
- {{name: action, dtype: float32, shape: [4]}}
"""


def reader_card(version: str = "1.0.0", room: int = ROOM) -> str:
    """Returns the model card. Its prompt has `room` bytes."""
    return _CARD.format(version=version, room=room, note_room=NOTE_ROOM)


SPEC = parse_card(reader_card().encode()).spec()


def _weights(room: int) -> NDArray[np.float32]:
    """Columns for a text of `room` bytes: one for their sum, one for their sum weighted by the position."""
    return np.stack([np.ones(room), np.arange(room) % _CYCLE + 1], axis=1).astype(np.float32)


def action_of(prompt: str, note: str, speed: float) -> list[float]:
    """Returns the action for these texts and a speed of [speed, 0]."""
    sums = []
    for text in (prompt, note):
        encoded = np.frombuffer(text.encode(), np.uint8).astype(np.float32)
        sums += (encoded @ _weights(len(encoded))).tolist()
    return [sums[0] + speed, *sums[1:]]


def reader_model(room: int = ROOM) -> bytes:
    """Returns the model."""
    constants: dict[str, NDArray[Any]] = {
        "prompt_weights": np.pad(_weights(room), ((0, 0), (0, 2))),
        "note_weights": np.pad(_weights(NOTE_ROOM), ((0, 0), (2, 0))),
        "speed_weights": np.array([[1, 0, 0, 0], [0, 0, 0, 0]], np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["prompt"], ["prompt_f"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["note"], ["note_f"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["prompt_f", "prompt_weights"], ["of_prompt"]),
            helper.make_node("MatMul", ["note_f", "note_weights"], ["of_note"]),
            helper.make_node("MatMul", ["speed", "speed_weights"], ["of_speed"]),
            helper.make_node("Sum", ["of_prompt", "of_note", "of_speed"], ["action"]),
        ],
        "reader",
        [
            helper.make_tensor_value_info("speed", TensorProto.FLOAT, ["rows", 2]),
            helper.make_tensor_value_info("prompt", TensorProto.UINT8, ["rows", room]),
            helper.make_tensor_value_info("note", TensorProto.UINT8, ["rows", NOTE_ROOM]),
        ],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["rows", 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def make_reader_folder(folder: Path, version: str = "1.0.0", room: int = ROOM) -> Path:
    """Makes the folder of a version as `pillion artifact publish` does, with golden pairs, and returns it."""
    folder.mkdir(parents=True)
    (folder / "source.onnx").write_bytes(reader_model(room))
    (folder / "card.yaml").write_text(reader_card(version, room))
    made = folder / "made"
    import_source(folder / "source.onnx", made, "reader", version, Options(card=folder / "card.yaml"))
    return made


def publish_reader(store: Path, folder: Path, version: str = "1.0.0", room: int = ROOM) -> None:
    """Publishes a version of `reader`; `folder` must not exist."""
    Store(store).publish("reader", version, make_reader_folder(folder, version, room), created_by="a test")
