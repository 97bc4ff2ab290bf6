"""Nothing in a file of torch.export runs: torch reads only what was checked before."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pillion_artifacts import InvalidSourceError
from pillion_artifacts.publishing.torch.pt2_archive import disarm as disarm_for_publishing
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


class Branching(nn.Module):
    """Has what a program can have: subgraphs, a buffer, a constant, sizes, a float that JSON cannot write, names in and out."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"first layer/a-b": nn.Linear(6, 4)})
        self.register_buffer("mean", torch.zeros(6))
        self.table = torch.ones(4)

    def forward(self, observation: Tensor) -> dict[str, Tensor]:
        made = self.net["first layer/a-b"](observation - self.mean) + self.table
        made = torch.cond(made.sum() > 0, lambda it: it + 1.0, lambda it: it - 1.0, (made,))
        made = made.masked_fill(made > 3.0, float("-inf"))
        return {"action": made.mean(dim=1), "all of it": torch.nn.functional.pad(made, (1, 1), mode="constant")}


ATTACKS = (
    'x, z=__import__("os").mkdir("{folder}")',
    'x", system("mkdir {folder}"), "x',
    'x)"; system("mkdir {folder}"); //',
    "ｘ",
)
"""Texts that would be code in Python or in C++, if a program's texts were written into it."""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], bool]]:
    """The path of each text in decoded JSON, and whether it is a key."""
    if isinstance(value, str):
        return [(path, False)]
    if isinstance(value, list):
        return [place for index, item in enumerate(value) for place in places(item, (*path, index))]
    if isinstance(value, dict):
        keys = [((*path, key), True) for key in value]
        return keys + [place for key, item in value.items() for place in places(item, (*path, key))]
    return []


def poisoned(content: bytes, path: tuple[Any, ...], attack: str, is_key: bool) -> bytes:
    """The JSON with another text at one place."""
    whole = {"": json.loads(content)}
    at: Any = whole
    for step in ("", *path)[:-1]:
        at = at[step]
    (*_, last) = ("", *path)
    if is_key:
        at[attack] = at.pop(last)
    else:
        at[last] = attack
    return json.dumps(whole[""]).encode()


def every_place(program: bytes) -> list[tuple[str, tuple[Any, ...], bool]]:
    with zipfile.ZipFile(io.BytesIO(program)) as archive:
        members = [name for name in archive.namelist() if name.endswith(".json")]
        return [(name, *place) for name in members for place in places(json.loads(archive.read(name)))]


def refusals(program: bytes, attack: str) -> tuple[list[str], list[tuple[str, tuple[Any, ...]]]]:
    """Puts the attack at each place of its texts; returns why it was refused there, and where it was not."""
    whys, passed = [], []
    for member, path, is_key in every_place(program):
        hostile = changed(program, member.partition("/")[2], partial(poisoned, path=path, attack=attack, is_key=is_key))
        try:
            inspect(hostile)
        except InvalidSourceError as error:
            whys.append(str(error))
            with pytest.raises(EngineError):
                disarm(hostile)
            continue
        # What is left out is no danger.
        if attack.encode() in json_of(disarm(hostile).getvalue()):
            passed.append((member, path))
    return whys, passed


def inspect(program: bytes) -> None:
    """What publishing does before torch reads a program."""
    disarm_for_publishing(program, "it")


def json_of(program: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(program)) as archive:
        return b"".join(archive.read(name).replace(b"\\", b"") for name in archive.namelist() if name.endswith(".json"))


@pytest.fixture(scope="module")
def branching() -> bytes:
    return export(Branching().eval(), torch.zeros(2, 6))


def test_what_programs_may_have_is_published_and_loaded(branching: bytes) -> None:
    inspect(branching)
    made = torch.export.load(disarm(branching)).module()(torch.zeros(5, 6))
    assert {name: tensor.shape for name, tensor in made.items()} == {"action": (5,), "all of it": (5, 6)}


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_text_of_a_program_reaches_code_that_torch_makes(attack: str, branching: bytes, tmp_path: Path) -> None:
    whys, passed = refusals(branching, attack.format(folder=tmp_path / "made"))
    assert passed == []
    assert len(whys) > 100


def test_the_name_of_an_input_is_not_run(program: bytes, tmp_path: Path) -> None:
    attack = ATTACKS[0].format(folder=tmp_path / "made")
    hostile = changed(program, "model.json", replaced('"observation"', json.dumps(attack)))
    # torch runs it while it reads the program, and more than once.
    with pytest.raises(FileExistsError):
        torch.export.load(io.BytesIO(hostile))
    (tmp_path / "made").rmdir()
    assert "is not a name" in refusal(policy(hostile))
    with pytest.raises(InvalidSourceError, match="is not a name"):
        inspect(hostile)
    assert not (tmp_path / "made").exists()


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
