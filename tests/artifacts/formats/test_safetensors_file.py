"""A safetensors file is accepted only if its header accounts for every byte exactly once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from pillion_artifacts import InvalidArtifactError
from pillion_artifacts.formats.safetensors_file import inspect_safetensors, is_safetensors

TENSORS: dict[str, Any] = {
    "b": np.zeros((2, 3), np.float32),
    "a": np.arange(4, dtype=np.int64),
    "none": np.zeros((0, 5), np.uint8),
}


def file_of(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def inspect(data: bytes) -> dict[str, tuple[str, list[int | None]]]:
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in inspect_safetensors(memoryview(data), "weights")}


def test_what_the_library_writes_is_read() -> None:
    data = save(TENSORS, {"format": "np"})
    assert inspect(data) == {"a": ("int64", [4]), "b": ("float32", [2, 3]), "none": ("uint8", [0, 5])}
    assert is_safetensors(data[:9], len(data))


def entry(begin: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (1,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "got a file of 0 bytes that names 0"),
        (b"\xff" * 8 + b"{}", "expected safetensors with a header of at most"),
        (file_of(b"{"), "expected the header of safetensors, got"),
        (file_of([1]), "expected the header of safetensors, got"),
        (file_of({"__metadata__": {"n": 1}}), "expected the header of safetensors, got"),
        (file_of({"a": entry(0, 4) | {"code": "x"}}, bytes(4)), "unknown field `code`"),
        (file_of({"a": entry(0, 4, "F128")}, bytes(4)), "'a': expected one of BOOL, .*, got 'F128'"),
        (file_of({"a": entry(0, 4, shape=(-1,))}, bytes(4)), r"'a': expected a shape, got \[-1\]"),
        (
            file_of({"a": entry(0, 8, shape=(2,)), "b": entry(4, 8)}, bytes(8)),
            r"'b', F32 \[1\]: expected the bytes from 8 to 12, got those from 4 to 8",
        ),
        (file_of({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "'b'.*expected the bytes from 4 to 8"),
        (
            file_of({"a": entry(0, 4, shape=(2,))}, bytes(4)),
            "'a'.*expected the bytes from 0 to 8, got those from 0 to 4",
        ),
        (file_of({"a": entry(0, 4)}, bytes(5)), "expected 4 bytes of tensors by its header, got 5"),
        (file_of({"a": entry(0, 4)}, bytes(3)), "expected 4 bytes of tensors by its header, got 3"),
    ],
)
def test_any_other_file_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InvalidArtifactError, match=f"^weights: .*{message}"):
        inspect(data)


@given(st.binary(max_size=100))
def test_any_bytes_are_tensors_or_an_error(data: bytes) -> None:
    try:
        inspect(data)
    except InvalidArtifactError:
        return
