"""Nothing in a file of torch.export runs: torch reads only what was checked before."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pillion_worker.errors import EngineError
from pillion_worker.torch_engine.pt2_archive import disarm
from tests.worker.support.torch_policies import export, policy
from tests.worker.torch_engine.test_torch_engine import refusal


class Chooser(nn.Module):
    """Has a weight, a size of its input, and an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 4)

    def forward(self, observation: Tensor) -> Tensor:
        return torch.tanh(self.net(observation)).reshape(observation.shape[0], 2, 2)


class Trap:
    """Its pickle makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.fixture(scope="module")
def program() -> bytes:
    """A file with a weight."""
    return export(Chooser(), torch.zeros(2, 6))


def changed(program: bytes, member: str, change: Callable[[bytes], bytes]) -> bytes:
    """The same file with one member changed."""
    made = io.BytesIO()
    found = False
    with zipfile.ZipFile(io.BytesIO(program)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            found |= name.endswith(member)
            new.writestr(name, change(content) if name.endswith(member) else content)
    assert found, member
    return made.getvalue()


def with_member(program: bytes, name: str, content: bytes = b"", kind: int = zipfile.ZIP_STORED) -> bytes:
    """The same file with one member more."""
    made = io.BytesIO(program)
    with zipfile.ZipFile(made, "a", kind) as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/{name}", content)
    return made.getvalue()


def replaced(old: str, new: str) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        text = content.decode()
        assert old in text, old
        json.loads(text.replace(old, new))
        return text.replace(old, new).encode()

    return change


def test_a_program_is_loaded_after_it_was_disarmed(program: bytes) -> None:
    loaded = torch.export.load(disarm(program))
    made = loaded.module()(torch.zeros(5, 6))
    assert made.shape == (5, 2, 2)
    with zipfile.ZipFile(disarm(program)) as archive:
        (sample,) = (name for name in archive.namelist() if "sample_inputs" in name)
        assert archive.read(sample) == b""


def test_a_program_that_branches_on_the_number_of_rows_is_refused() -> None:
    class Even(nn.Module):
        def forward(self, observation: Tensor) -> Tensor:
            return observation * 2 if observation.shape[0] % 2 == 0 else observation

    with pytest.raises(EngineError, match=r"exported under a condition, .*% 2"):
        disarm(export(Even(), torch.zeros(4, 3), rows=torch.export.Dim.AUTO))


@pytest.mark.parametrize(
    ("member", "old", "new", "message"),
    [
        ("model.json", "torch.ops.aten.tanh.default", "torch.hub.load", "operator 'torch.hub.load' is not one"),
        ("model.json", "torch.ops.aten.tanh.default", "torch.ops.aten.from_file.default", "is not one of torch's own"),
        ("model.json", "torch.ops.aten.tanh.default", "torch.ops.mine.tanh.default", "'torch.ops.mine.tanh.default'"),
        ("model.json", "torch.ops.aten.tanh.default", "torch.ops.aten.__class__.mro", "is not one of torch's own"),
        ("model.json", "torch.ops.aten.tanh.default", "_operator.methodcaller", "operator '_operator.methodcaller'"),
        ("model.json", "torch.ops.aten.tanh.default", "#evil:run", "operator '#evil:run' is not one"),
        ("model.json", "Symbol('s", "__import__('s", "is not a size"),
        ("model.json", "Symbol('s", "s0.ｎａｍｅ(Symbol('s", "is not a size"),
        ("model.json", "builtins.tuple", "collections.namedtuple", "arguments of type 'collections.namedtuple'"),
        (
            "model.json",
            '\\"type\\": \\"builtins.tuple\\", \\"context\\": \\"null\\"',
            '\\"type\\": \\"builtins.tuple\\", \\"context\\": \\"{\\\\\\"__enum__\\\\\\": 1}\\"',
            "arguments by other keys than names",
        ),
        ("weights_config.json", '"use_pickle": false', '"use_pickle": true', "is a pickle: expected tensors only"),
        ("weights_config.json", '"config"', '"other"', "KeyError"),
    ],
)
def test_a_program_with_code_is_refused(member: str, old: str, new: str, message: str, program: bytes) -> None:
    with pytest.raises(EngineError, match=message.replace("(", r"\(")):
        disarm(changed(program, member, replaced(old, new)))


def test_a_pickle_is_refused_and_never_run(program: bytes, tmp_path: Path) -> None:
    saved = io.BytesIO()
    torch.save((Trap(tmp_path / "trapped"),), saved)
    for file in (
        changed(program, "sample_inputs/model.pt", lambda _: saved.getvalue()),
        changed(program, "sample_inputs/model.pt", lambda _: b"\x80\x02."),
        with_member(program, "data/weights/model.pt", saved.getvalue()),
        with_member(program, "data/constants/opaque_obj_0", saved.getvalue()),
        with_member(program, "data/constants/custom_obj_0", saved.getvalue()),
    ):
        with pytest.raises(EngineError, match=r"pickle|without running code"):
            disarm(file)
    assert "sample inputs are a pickle" in refusal(
        policy(changed(program, "sample_inputs/model.pt", lambda _: saved.getvalue()))
    )
    assert not (tmp_path / "trapped").exists()


def test_members_that_torch_would_read_in_another_way_are_refused(program: bytes) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = with_member(program, "models/model.json")
    with pytest.raises(EngineError, match="expected the archive of one program"):
        disarm(twice)
    with pytest.raises(EngineError, match="which is compressed"):
        disarm(with_member(program, "data/weights/weight_9", bytes(1_000), zipfile.ZIP_DEFLATED))
    with pytest.raises(EngineError, match="not a readable archive"):
        disarm(program[: len(program) // 2])


def test_a_program_with_an_operator_of_another_package_is_refused() -> None:
    with torch.library._scoped_library("pillion_test", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
        library.impl("twice", torch.empty_like, "Meta")

        class Custom(nn.Module):
            def forward(self, observation: Tensor) -> Tensor:
                doubled: Tensor = torch.ops.pillion_test.twice(observation)
                return doubled[:, :1]

        model = export(Custom(), torch.zeros(2, 3))
    assert "operator 'torch.ops.pillion_test.twice.default' is not one of torch's own" in refusal(policy(model))
