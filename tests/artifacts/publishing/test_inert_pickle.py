"""Reading a pickle runs nothing: code in it becomes inert objects."""

from __future__ import annotations

import base64
import collections
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from pillion_artifacts import InvalidSourceError
from pillion_artifacts.publishing.common.draft import Details
from pillion_artifacts.publishing.common.inert_pickle import InertObject, read_pickle
from pillion_artifacts.publishing.sb3.source import import_sb3
from tests.artifacts.publishing.test_sb3 import DRIVE, VECTOR
from tests.artifacts.support.policy_sources import Room

DETAILS = Details(name="made-here", version="1.0.0")


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


class Trap:
    """A pickle that would make a file, and a check that it did not."""

    def __init__(self, folder: Path) -> None:
        self.marker = folder / "executed"
        self.evil = Evil(self.marker)
        pickle.loads(pickle.dumps(self.evil))
        assert self.marker.exists(), "a trap that does not spring shows nothing"
        self.marker.unlink()

    def check(self) -> None:
        assert not self.marker.exists(), "something was executed"


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path)


@pytest.fixture(scope="module")
def vector() -> VecNormalize:
    return VecNormalize(DummyVecEnv([lambda: Room(VECTOR, DRIVE)]))


@pytest.fixture(scope="module")
def zip_bytes(vector: VecNormalize) -> bytes:
    file = io.BytesIO()
    A2C("MlpPolicy", vector).save(file)
    return file.getvalue()


def with_member(data: bytes, name: str, content: bytes) -> bytes:
    """The zip with other content for one member."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for member in old.namelist():
            new.writestr(member, content if member == name else old.read(member))
    return made.getvalue()


def with_field(data: bytes, field: str, value: Any) -> bytes:
    """A zip with a pickle of `value` in a field of `data`."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        fields = json.loads(archive.read("data"))
    fields[field] = {":type:": "?", ":serialized:": base64.b64encode(pickle.dumps(value)).decode()}
    return with_member(data, "data", json.dumps(fields).encode())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_is_read_as_it_is(protocol: int) -> None:
    value: Any = {"a": [1, 2.5, None, True], "b": (1, (2, 3)), "c": "text", "d": {"e": [[]]}, "f": 2**70}
    if protocol >= 4:
        value |= {"bytes": b"bytes", "set": {1, 2}, "frozen": frozenset({3})}
    value |= {"ordered": collections.OrderedDict(x=1, y=2)}
    assert read_pickle(pickle.dumps(value, protocol), "it") == value


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([[1.5, np.nan]], np.float32),
        np.array(3.0),
        np.array([True, False]),
        np.arange(3, dtype=">i4"),
        np.zeros((0, 3)),
        np.float64(2.5),
    ],
    ids=str,
)
def test_an_array_is_read_as_it_is(value: Any, protocol: int) -> None:
    (result,) = read_pickle(pickle.dumps([value], protocol), "it")
    np.testing.assert_array_equal(result, value)
    assert result.dtype == value.dtype.newbyteorder("=")


def test_shared_objects_stay_shared_and_cycles_end() -> None:
    shared = [1]
    loop: list[Any] = [shared, shared]
    loop.append(loop)
    result = read_pickle(pickle.dumps(loop), "it")
    assert result[0] is result[1]
    assert result[2] is result


def test_code_becomes_an_inert_object(trap: Trap) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        result = read_pickle(pickle.dumps([trap.evil], protocol), "it")
        assert isinstance(result[0], InertObject)
        assert result[0].name == "posix.system"
    trap.check()


@pytest.mark.parametrize("field", ["policy_class", "policy_kwargs", "observation_space", "action_space"])
def test_a_field_with_code_is_read_without_running_it(field: str, zip_bytes: bytes, trap: Trap) -> None:
    data = with_field(zip_bytes, field, trap.evil)
    if field == "policy_kwargs":
        import_sb3(data, "it", DETAILS)
    else:
        with pytest.raises(InvalidSourceError, match=field):
            import_sb3(data, "it", DETAILS)
    trap.check()


@pytest.mark.parametrize("option", ["activation_fn", "features_extractor_class", "net_arch", "optimizer_class"])
def test_an_option_with_code_is_never_run(option: str, zip_bytes: bytes, trap: Trap) -> None:
    data = with_field(zip_bytes, "policy_kwargs", {option: trap.evil})
    if option in ("activation_fn", "features_extractor_class"):
        with pytest.raises(InvalidSourceError, match=f"{option}: expected one of .* got"):
            import_sb3(data, "it", DETAILS)
    else:
        import_sb3(data, "it", DETAILS)
    trap.check()


def test_an_unneeded_field_is_not_read(zip_bytes: bytes, trap: Trap) -> None:
    fields = ("lr_schedule", "ep_info_buffer", "rollout_buffer_class", "something_new")
    drafts = [import_sb3(with_field(zip_bytes, field, trap.evil), "it", DETAILS) for field in fields]
    assert len({draft.model for draft in drafts}) == 1
    trap.check()


def test_weights_with_code_are_refused(zip_bytes: bytes, trap: Trap) -> None:
    saved = io.BytesIO()
    torch.save({"action_net.weight": trap.evil}, saved)
    for content in (saved.getvalue(), pickle.dumps(trap.evil)):
        with pytest.raises(InvalidSourceError, match="torch cannot read it as weights"):
            import_sb3(with_member(zip_bytes, "policy.pth", content), "it", DETAILS)
    trap.check()


@pytest.mark.parametrize("where", ["all", "obs_rms", "old_obs"])
def test_statistics_with_code_are_read_without_running_it(
    where: str, zip_bytes: bytes, vector: VecNormalize, trap: Trap
) -> None:
    statistics = VecNormalize.__new__(VecNormalize)
    statistics.__dict__.update({**vector.__dict__, where: trap.evil})
    given = pickle.dumps(trap.evil if where == "all" else statistics)
    if where == "old_obs":
        assert import_sb3(zip_bytes, "it", DETAILS, given).card.preprocessing
    else:
        with pytest.raises(InvalidSourceError, match="VecNormalize: "):
            import_sb3(zip_bytes, "it", DETAILS, given)
    trap.check()


def test_nested_shared_tuples_are_read_in_linear_time() -> None:
    value: Any = ()
    for _ in range(200):
        value = (value, value)
    result = read_pickle(pickle.dumps(value), "it")
    assert result[0] is result[1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a pickle"),
        (b"not a pickle", "not a pickle"),
        (b"\x80\x04.", "does not end with one value"),
        (b"\x80\x04N", "not a pickle"),
        (b"\x80\x04]]a}.", "does not end with one value"),
        (b"\x80\x04Ph\n.", "opcode PERSID is not allowed"),
        (b"\x80\x02(cposix\nsystem\no.", "opcode OBJ is not allowed"),
        (b"(S'x'\niposix\nsystem\n.", "not a pickle"),
        (b"\x80\x02\x82\x01.", "opcode EXT1 is not allowed"),
        (b"\x80\x04h\x07.", "not a pickle"),
        (b"\x80\x04}))s.", "a tuple as a key"),
        (b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".", "not a pickle"),
        (b"\x80\x04" + b"N0" * 600_000 + b"N.", "at most 1000000 steps"),
    ],
)
def test_opcodes_without_an_inert_meaning_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(InvalidSourceError, match=message):
        read_pickle(data, "it")


def test_an_array_whose_bytes_do_not_fit_is_refused() -> None:
    good = pickle.dumps(np.arange(4), 4)
    with pytest.raises(InvalidSourceError, match="in 32 bytes"):
        read_pickle(good.replace(b"K\x04\x85", b"K\x05\x85"), "it")
    with pytest.raises(InvalidSourceError, match="an array of dtype"):
        read_pickle(pickle.dumps(np.array(["text"])), "it")
    with pytest.raises(InvalidSourceError, match="not bytes with a dtype"):
        read_pickle(pickle.dumps(np.array([None, 1])), "it")


def test_arrays_with_shared_bytes_cannot_fill_the_memory() -> None:
    mebibyte = 1 << 20
    dtype = b"cnumpy\ndtype\n(X\x02\x00\x00\x00u1tR"
    data = b"B" + mebibyte.to_bytes(4, "little") + bytes(mebibyte)
    call = b"(h\x00h\x01K\x80J\x00\x20\x00\x00\x86X\x01\x00\x00\x00CtR0"
    head = b"\x80\x04" + data + b"q\x000" + dtype + b"q\x010" + b"cnumpy._core.numeric\n_frombuffer\nq\x020"
    few, many = (head + (b"h\x02" + call) * count + b"N." for count in (3, 100))
    assert read_pickle(few, "it") is None
    with pytest.raises(InvalidSourceError, match="its arrays take more than"):
        read_pickle(many, "it")


@given(st.binary(max_size=200))
def test_any_bytes_give_data_or_a_refusal(data: bytes) -> None:
    try:
        read_pickle(b"\x80\x04" + data, "it")
    except InvalidSourceError as error:
        assert str(error).startswith("it: ")  # noqa: PT017 - both outcomes are right
