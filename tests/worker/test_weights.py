"""Weights are read as they were written, and no other bytes are taken for weights."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from pillion_worker.errors import EngineError
from pillion_worker.limits import WEIGHTS_HEADER_BYTES_MAX
from pillion_worker.model_source import view_of
from pillion_worker.python_policy.weights import read_weights

WHOLE = save({"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2], np.int64)})


def file_of(header: Any, data: bytes = b"") -> bytes:
    """A file with that header, as text or as an object."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}}


@pytest.mark.parametrize(
    "dtype", ["bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"], ids=lambda dtype: dtype
)
def test_what_the_safetensors_package_writes_is_read(dtype: str) -> None:
    tensors = {
        "a matrix": np.arange(6).astype(dtype).reshape(2, 3),
        "a number": np.array(1).astype(dtype),
        "nothing": np.zeros((0, 3), dtype),
        "a byte before it": np.ones(1, np.uint8),
    }
    read = read_weights(save(tensors, metadata={"format": "np"}))
    assert set(read) == set(tensors)
    for name, array in tensors.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        assert read[name].tobytes() == array.tobytes()
        assert read[name].flags.aligned


def test_weights_of_a_file_are_read_where_they_lie_and_writing_to_them_changes_no_file(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(WHOLE)
    read = read_weights(view_of(str(file)))
    assert read["b"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        read["b"][...] = 0
    # As a library does that looks at the address alone.
    ctypes.memset(read["b"].ctypes.data, 7, 1)
    assert read["b"].tolist() == [7, 2]
    assert file.read_bytes() == WHOLE


def test_there_may_be_no_weights() -> None:
    assert read_weights(save({})) == {}


def test_weights_are_views_that_cannot_be_written_to() -> None:
    read = read_weights(WHOLE)
    assert not read["w"].flags.owndata
    for array in read.values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_bfloat16_is_widened_without_loss() -> None:
    # 1.0, -2.0, the largest number, infinity, a NaN, the smallest number
    halves = np.array([0x3F80, 0xC000, 0x7F7F, 0x7F80, 0x7FC0, 0x0001], np.uint16)
    (read,) = read_weights(file_of(tensor("BF16", [2, 3], [0, 12]), halves.tobytes())).values()
    assert (str(read.dtype), read.shape) == ("float32", (2, 3))
    assert (read.view(np.uint32) >> 16).reshape(-1).tolist() == halves.tolist()
    assert read[0].tolist() == [1.0, -2.0, pytest.approx(3.39e38, rel=1e-2)]


BROKEN = {
    "nothing": (b"", "got 0 in a file of 0"),
    "a short length": (b"\x01\x00", "got 1 in a file of 2"),
    "a header beyond the file": ((100).to_bytes(8, "little") + b"{}", "got 100 in a file of 10"),
    "a huge header": (WEIGHTS_HEADER_BYTES_MAX.to_bytes(8, "big"), "expected a safetensors header of at most"),
    "no JSON": (file_of(b"{"), "expected a safetensors header of JSON"),
    "no text": (file_of(b"\xff"), "expected a safetensors header of JSON"),
    "deep JSON": (file_of(b"[" * 100_000), "expected a safetensors header of JSON"),
    "a name that stands twice": (file_of(b'{"w": {}, "w": {}}'), "a name stands twice"),
    "no object": (file_of([]), "with an object"),
    "no entry": (file_of({"w": 1}), "expected dtype, shape and data_offsets"),
    "another field": (file_of(tensor(pickle=""), bytes(4)), "expected dtype, shape and data_offsets"),
    "an unknown dtype": (file_of(tensor("F8_E4M3", [4]), bytes(4)), "'w': expected a dtype of BOOL, .*'F8_E4M3'"),
    "no dtype": (file_of(tensor(["F32"]), bytes(4)), "expected a dtype of"),
    "a negative shape": (file_of(tensor(shape=[-1, -1]), bytes(4)), "expected a shape of"),
    "a fraction": (file_of(tensor(shape=[1.0]), bytes(4)), "expected a shape of"),
    "true": (file_of(tensor(shape=[True]), bytes(4)), "expected a shape of"),
    "many axes": (file_of(tensor(shape=[1] * 17), bytes(4)), "at most 16 axes"),
    "too much": (file_of(tensor(shape=[2**40, 2**40]), bytes(4)), "expected offsets [0-9]+ bytes apart"),
    "a shape without elements": (file_of(tensor(shape=[0, 2**62, 2**62], offsets=[0, 0])), "shape"),
    "one offset": (file_of(tensor(offsets=[4]), bytes(4)), "expected offsets 4 bytes apart"),
    "offsets that descend": (file_of(tensor(offsets=[4, 0]), bytes(4)), "expected offsets 4 bytes apart"),
    "a hole": (file_of(tensor(offsets=[4, 8]), bytes(8)), "'w': expected its data at 0, got 4"),
    "data beyond the file": (file_of(tensor(), bytes(3)), "expected 4 bytes of tensors, got 3"),
    "data that nothing names": (file_of(tensor(), bytes(5)), "expected 4 bytes of tensors, got 5"),
    "tensors that overlap": (
        file_of({**tensor(), "v": {"dtype": "I8", "shape": [2], "data_offsets": [3, 5]}}, bytes(5)),
        "'v': expected its data at 4, got 3",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_anything_else_is_refused_in_one_line(what: str) -> None:
    file, why = BROKEN[what]
    with pytest.raises(EngineError, match=why) as refused:
        read_weights(file)
    assert "\n" not in str(refused.value)


@given(st.binary(max_size=64), st.integers(0, len(WHOLE)), st.integers(0, len(WHOLE)))
def test_any_bytes_are_weights_or_an_error(drawn: bytes, begin: int, end: int) -> None:
    for file in (drawn, WHOLE[:begin] + drawn + WHOLE[end:]):
        try:
            read = read_weights(file)
        except EngineError:
            continue
        assert sum(array.nbytes for array in read.values()) <= len(file)
