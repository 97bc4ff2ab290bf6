"""Torch programs, TorchScript and Python policies are published as they are, and proven on the engine that will serve."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save, save_file
from torch import Tensor, nn

import pillion_artifacts
from pillion_artifacts import InvalidArtifactError, InvalidSourceError, ModelCard, ParityError, Store
from pillion_artifacts.card.golden_pairs import Golden, decode_golden
from pillion_artifacts.card.model_card import EngineCard, StateCard, TensorCard
from pillion_artifacts.cli.publication import publish_source
from pillion_artifacts.formats.plain_zip import PlainZip, read_plain_zip
from pillion_artifacts.formats.torch_program import inspect_torch_program
from pillion_artifacts.formats.torchscript_file import check_torchscript
from pillion_artifacts.limits import DAEMON_ROWS_MAX, PARITY_ROWS
from pillion_artifacts.publishing.sources import Options, import_source
from pillion_artifacts.publishing.torch.pt2_archive import disarm
from pilliond.limits import PolicyLimits
from tests.artifacts.publishing.test_torch import CARD, DRIVE, Chooser, Driver, _changed, card_file, save_program
from tests.artifacts.support.several_inputs import (
    CLIP_EXAMPLE,
    FLAVA_EXAMPLE,
    TinyClip,
    TinyFlava,
    clip_card,
    flava_card,
)
from tests.harness import COMMAND_S_MAX
from tests.worker.support.installed import EXAMPLE, HOSTILE, install, mlp_weights

TORCH = EngineCard("torch")


def golden_of(folder: str | Path) -> Golden:
    return decode_golden((Path(folder) / "golden.safetensors").read_bytes())


def answers(module: nn.Module, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    with torch.no_grad():
        made = module.eval()(*(torch.from_numpy(values) for values in inputs))
    return [tensor.numpy() for tensor in ((made,) if isinstance(made, Tensor) else made)]


def check_golden(module: nn.Module, report: Any) -> None:
    """The golden pairs are what the module answers, for every output and next state."""
    golden, card = golden_of(report.folder), report.card
    names = [tensor.name for tensor in card.observation] + [state.name for state in card.state]
    made = [tensor.name for tensor in card.outputs] + [state.output for state in card.state]
    made += [name for name in card.distribution.parameters() if name not in made]
    expected = answers(module, [golden.inputs[name] for name in names])
    assert sorted(golden.outputs) == sorted(made)
    for name, values in zip(made, expected, strict=True):
        np.testing.assert_allclose(golden.outputs[name], values, rtol=1e-4, atol=1e-5)
    assert report.rows >= golden.rows > 1
    assert all(np.ptp(golden.outputs[name].astype(np.float64)) > 0 for name in made)


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of torch.export with any number of rows."""
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("saved") / "source.pt2"
    save_program(Chooser().eval(), file, ({0: torch.export.Dim("rows", min=1, max=4096)},))
    return file


# A module


@pytest.mark.parametrize("card", [CARD, msgspec.structs.replace(CARD, engine=TORCH)], ids=["chosen", "of the card"])
def test_a_module_is_exported_for_the_torch_engine(card: ModelCard, tmp_path: Path) -> None:
    module, threads = Chooser().train(), torch.get_num_threads()
    engine = "torch" if card.engine.kind == "onnx" else ""
    report = pillion_artifacts.export(module, torch.zeros(1, 6), card, tmp_path / "folder", engine=engine)  # type: ignore[arg-type]  # one of the two
    assert module.training
    assert (report.card.engine, torch.get_num_threads(), torch.is_inference_mode_enabled()) == (TORCH, threads, False)
    assert sorted(file.name for file in (tmp_path / "folder").iterdir()) == [
        "golden.safetensors", "model.pt2", "model_card.yaml",
    ]  # fmt: skip
    check_golden(module, report)
    store = Store(tmp_path / "store")
    store.publish("made-here", "1.0.0", tmp_path / "folder")
    assert store.load("made-here").model == (tmp_path / "folder" / "model.pt2").read_bytes()


def test_the_same_module_has_the_same_bytes_and_none_of_this_machine(tmp_path: Path) -> None:
    module = Chooser()
    for name in ("one", "two"):
        pillion_artifacts.export(module, torch.zeros(2, 6), CARD, tmp_path / name, engine="torch")
    first, second = ((tmp_path / name / "model.pt2").read_bytes() for name in ("one", "two"))
    members = [dict(read_plain_zip(memoryview(data), "it")) for data in (first, second)]
    for each in members:
        each.pop("model/.data/serialization_id")
    assert members[0] == members[1]
    for trace in (b"site-packages", str(tmp_path).encode(), str(Path.cwd()).encode(), b"test_torch", b"data.pkl"):
        assert trace not in first


def test_another_engine_replaces_what_an_export_left_in_the_folder(tmp_path: Path) -> None:
    for engine, name in (("onnx", "model.onnx"), ("torch", "model.pt2")):
        pillion_artifacts.export(Chooser(), torch.zeros(2, 6), CARD, tmp_path / "folder", engine=engine)  # type: ignore[arg-type]  # one of the two
        assert [file.name for file in (tmp_path / "folder").glob("model.*")] == [name]


def test_a_module_with_several_observations_and_a_memory_is_exported_as_it_is(tmp_path: Path) -> None:
    module = Driver()
    example = (torch.zeros(2, 3), torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, 5))
    check_golden(module, pillion_artifacts.export(module, example, DRIVE, tmp_path / "folder", engine="torch"))


def test_a_program_that_returns_a_dictionary_is_compared_by_name(tmp_path: Path) -> None:
    card = msgspec.structs.replace(
        CARD,
        outputs=[TensorCard("action", "float32", [6]), TensorCard("value", "float32", [1])],
        distribution=type(CARD.distribution)(),
    )

    class Named(nn.Module):
        def forward(self, observation: Tensor) -> dict[str, Tensor]:
            value = torch.einsum("ri,ij->rj", observation, torch.eye(6)).sum(1, keepdim=True)
            return {"value": value, "action": torch.tanh(observation)}

    report = pillion_artifacts.export(Named(), torch.zeros(2, 6), card, tmp_path / "folder", engine="torch")
    golden = golden_of(report.folder)
    np.testing.assert_allclose(golden.outputs["action"], np.tanh(golden.inputs["observation"]), rtol=1e-5, atol=1e-6)
    assert golden.outputs["value"].shape == (64, 1)
    other = msgspec.structs.replace(card, outputs=[card.outputs[0], TensorCard("worth", "float32", [1])])
    with pytest.raises(
        InvalidArtifactError, match="the card has the outputs action, worth, the program has value, action"
    ):
        pillion_artifacts.export(Named(), torch.zeros(2, 6), other, tmp_path / "other", engine="torch")


def test_a_chunk_of_actions_is_published_and_a_card_that_lies_about_it_is_refused(tmp_path: Path) -> None:
    class Planner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plan = nn.Linear(6, 8 * 2)

        def forward(self, observation: Tensor) -> Tensor:
            return torch.tanh(self.plan(observation)).reshape(-1, 8, 2)

    def card(horizon: int) -> ModelCard:
        return msgspec.structs.replace(
            CARD,
            outputs=[TensorCard("action", "float32", [horizon, 2])],
            distribution=type(CARD.distribution)(),
            action_horizon=horizon,
        )

    report = pillion_artifacts.export(Planner(), torch.zeros(2, 6), card(8), tmp_path / "folder", engine="torch")
    assert golden_of(report.folder).outputs["action"].shape == (64, 8, 2)
    with pytest.raises(InvalidArtifactError, match=r"'action': the card says a row is \[4, 2\], the graph \[8, 2\]"):
        pillion_artifacts.export(Planner(), torch.zeros(2, 6), card(4), tmp_path / "other", engine="torch")


class Counter(nn.Module):
    """Keeps something from run to run."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.add_(1)
        logits = observation[:, :4] + self.seen
        return logits.argmax(1), logits


class InPlace(nn.Module):
    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        observation.mul_(2)
        return observation[:, :4].argmax(1), observation[:, :4].clone()


class OneRow(nn.Module):
    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        logits = observation.reshape(2, 6)[:, :4]
        return logits.argmax(dim=1), logits


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Counter(), "Counter: expected a program that changes nothing but new tensors, but it overwrites 'b_seen'"),
        (
            InPlace(),
            "InPlace: expected a program that changes nothing but new tensors, but it overwrites 'observation'",
        ),
        (OneRow(), "OneRow: torch cannot export it: "),
    ],
)
def test_a_module_that_keeps_or_changes_something_is_refused(module: nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises((InvalidSourceError, InvalidArtifactError), match=message):
        pillion_artifacts.export(module, torch.zeros(2, 6), CARD, tmp_path / "folder", engine="torch")
    assert not (tmp_path / "folder").exists()


def test_a_preprocessor_and_an_unknown_engine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSourceError, match="a preprocessor: expected the engine onnx, got torch"):
        pillion_artifacts.export(Chooser(), torch.zeros(2, 6), CARD, tmp_path / "x", engine="torch", preprocessor=1)
    with pytest.raises(InvalidSourceError, match="expected one of onnx, torch for a torch module, got 'jax'"):
        pillion_artifacts.export(Chooser(), torch.zeros(2, 6), CARD, tmp_path / "x", engine="jax")  # type: ignore[arg-type]  # on purpose


# Several inputs


@pytest.mark.parametrize(
    ("module", "example", "card"),
    [(TinyClip, CLIP_EXAMPLE, clip_card()), (TinyFlava, FLAVA_EXAMPLE, flava_card())],
    ids=["clip", "flava"],
)
def test_a_policy_of_image_and_text_is_published_with_golden_pairs(
    module: Callable[[], nn.Module], example: tuple[Tensor, ...], card: ModelCard, tmp_path: Path
) -> None:
    policy = module()
    report = pillion_artifacts.export(policy, example, card, tmp_path / "folder")
    check_golden(policy, report)
    store = Store(tmp_path / "store")
    store.publish(card.name, "1.0.0", tmp_path / "folder")
    read = store.load(card.name)
    assert read.card.engine == TORCH
    for name in (tensor.name for tensor in card.observation if tensor.space == "Text"):
        texts = {bytes(row).rstrip(b"\0").decode() for row in golden_of(report.folder).inputs[name]}
        assert len(texts) > 10
    program = inspect_torch_program(memoryview(read.model), "it")
    assert [tensor.shape[1:] for tensor in program.inputs] == [list(tensor.shape[1:]) for tensor in example]


# A file


def test_a_file_of_torch_export_is_published_as_it_is(saved: Path, tmp_path: Path) -> None:
    report = import_source(
        saved, tmp_path / "folder", "other", "2.0.0", Options(card=card_file(tmp_path), engine="torch")
    )
    assert (report.card.name, report.card.version, report.card.engine) == ("other", "2.0.0", TORCH)
    assert report.card.lineage.source.startswith("sha256:")
    check_golden(Chooser(), report)


def test_without_a_choice_the_card_decides_and_otherwise_it_is_converted(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    of_torch = card_file(tmp_path / "torch", msgspec.structs.replace(CARD, engine=TORCH))
    for options, expected in (
        (Options(card=of_torch), "torch"),
        (Options(card=of_torch, engine="onnx"), "onnx"),
        (Options(card=card_file(tmp_path)), "onnx"),
    ):
        assert import_source(saved, tmp_path / "folder", "x", "1.0.0", options).card.engine.kind == expected


def test_a_program_without_a_card_gets_its_own_names(tmp_path: Path) -> None:
    class Only(nn.Module):
        def forward(self, joints: Tensor) -> Tensor:
            return torch.tanh(joints)

    file = tmp_path / "only.pt2"
    save_program(Only(), file, ({0: torch.export.Dim("rows", min=1, max=64)},))
    report = import_source(file, tmp_path / "folder", "only", "1.0.0", Options(engine="torch"))
    assert report.card.observation == [TensorCard("joints", "float32", [6])]
    assert report.card.outputs == [TensorCard("action", "float32", [6])]
    published = publish_source(Store(tmp_path / "store"), tmp_path / "folder", "only@v1.0.0", {}, "", "")
    expected = "it takes at most 64 rows at once, and a daemon asks for 256 where limits.rows_max is not set"
    assert str(published).splitlines()[1].startswith(expected)


def test_a_program_for_as_many_rows_as_a_daemon_asks_for_is_published_without_a_word(
    saved: Path, tmp_path: Path
) -> None:
    import_source(saved, tmp_path / "folder", "other", "2.0.0", Options(card=card_file(tmp_path), engine="torch"))
    published = publish_source(Store(tmp_path / "store"), tmp_path / "folder", "other@v2.0.0", {}, "", "")
    assert (published.rows_max, len(str(published).splitlines())) == (0, 1)


def test_the_rows_that_publishing_expects_are_the_default_of_a_daemon() -> None:
    assert PolicyLimits().rows_max == DAEMON_ROWS_MAX


def test_several_outputs_without_names_need_a_card(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidSourceError, match=r"source\.pt2: 2 outputs without names: expected a card"):
        import_source(saved, tmp_path / "folder", "x", "1.0.0", Options(engine="torch"))


def test_a_program_of_a_fixed_number_of_rows_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "fixed.pt2"
    save_program(Chooser().eval(), file)
    options = Options(card=card_file(tmp_path), engine="torch")
    with pytest.raises(
        InvalidArtifactError, match=r"'observation': expected a dynamic first axis, .*, got \[2, 6\]: "
    ) as error:
        import_source(file, tmp_path / "folder", "x", "1.0.0", options)
    # the cure that the message names
    (rows,) = re.findall(
        r": export it with dynamic_shapes that give axis 0 of every input (torch\..*)$", str(error.value)
    )
    save_program(Chooser().eval(), file, ({0: eval(rows)},))
    import_source(file, tmp_path / "folder", "x", "1.0.0", options)


def test_a_program_with_a_guard_that_may_fail_is_refused(saved: Path, tmp_path: Path) -> None:
    guarded = in_program('"guards_code": []', '"guards_code": ["L[\'observation\'].size()[0] == 2"]')
    file = tmp_path / "guarded.pt2"
    file.write_bytes(_changed(saved, "model.json", guarded))
    options = Options(card=card_file(tmp_path), engine="torch")
    with pytest.raises(InvalidSourceError, match=r"it was exported under a condition, .*: expected a program for any"):
        import_source(file, tmp_path / "folder", "x", "1.0.0", options)


def test_a_program_that_does_not_answer_rows_alike_is_refused(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        """A row's answer depends on the other rows."""

        def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
            logits = observation[:, :4] + observation.mean(0, keepdim=True)[:, :4]
            return logits.argmax(1), logits

    with pytest.raises(ParityError, match=r"output '(logits|action)', row"):
        pillion_artifacts.export(Mixed(), torch.zeros(2, 6), CARD, tmp_path / "folder", engine="torch")


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (DRIVE, "the card has the inputs near, camera, memory, the program has 1"),
        (
            msgspec.structs.replace(CARD, outputs=[msgspec.structs.replace(CARD.action(), dtype="int32")]),
            "'action': the card says int32, the graph int64",
        ),
        (
            msgspec.structs.replace(
                CARD, observation=[msgspec.structs.replace(CARD.observation[0], shape=[5], low=[], high=[])]
            ),
            r"'observation': the card says a row is \[5\], the graph \[6\]",
        ),
    ],
)
def test_a_card_that_contradicts_the_program_is_refused(
    card: ModelCard, message: str, saved: Path, tmp_path: Path
) -> None:
    options = Options(card=card_file(tmp_path, card), engine="torch")
    with pytest.raises(InvalidArtifactError, match=message):
        import_source(saved, tmp_path / "folder", "x", "1.0.0", options)


def test_other_files_are_not_for_the_torch_engine(tmp_path: Path) -> None:
    pillion_artifacts.export(Chooser(), torch.zeros(2, 6), CARD, tmp_path / "folder")
    options = Options(card=card_file(tmp_path), engine="torch")
    with pytest.raises(InvalidSourceError, match=r"expected a file of torch\.export, got ONNX"):
        import_source(tmp_path / "folder" / "model.onnx", tmp_path / "x", "x", "1.0.0", options)


# What a store refuses, though nobody published it here


def changed(data: bytes, member: str, change: Callable[[bytes], bytes], **more: bytes) -> bytes:
    file = io.BytesIO()
    made = PlainZip(file)
    for name, content in read_plain_zip(memoryview(data), "it").items():
        made.write(name, change(bytes(content)) if name.endswith(member) else content)
    for name, extra in more.items():
        made.write(name.replace("__", "/"), extra)
    made.finish()
    return file.getvalue()


def in_program(old: str, new: str) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        assert old in content.decode()
        return json.dumps(json.loads(content.decode().replace(old, new))).encode()

    return change


@pytest.mark.parametrize(
    ("member", "change", "message"),
    [
        (
            "model.json",
            in_program("aten.tanh.default", "mylib.tanh.default"),
            "operator 'torch.ops.mylib.tanh.default'",
        ),
        ("model.json", in_program("torch.ops.aten.tanh.default", "torch.hub.load"), "operator 'torch.hub.load' is not"),
        ("model.json", in_program("torch.ops.aten.tanh.default", "_operator.methodcaller"), "operator '_operator.meth"),
        ("model.json", in_program("aten.tanh.default", "aten.from_file.default"), "is not one of torch's own"),
        ("model.json", in_program("Symbol('s", "__import__('s"), "is not a size"),
        ("model.json", in_program("Symbol('s", "ｎａｍｅ(Symbol('s"), "is not a size"),
        ("model.json", in_program('"guards_code":[]', '"guards_code":["evil()"]'), "expected no guards_code, got some"),
        ("model.json", lambda _: b"[]", "models/model.json: expected JSON"),
        ("model.json", lambda _: b"{}", "expected a program of torch.export, got KeyError"),
        ("model.json", lambda _: b"[" * 100_000, "models/model.json: expected JSON"),
        ("weights_config.json", lambda c: c.replace(b'"use_pickle": false', b'"use_pickle": true'), "is a pickle"),
        (
            "weights_config.json",
            lambda c: c.replace(b'"weight_0"', b'"../../etc/passwd"'),
            "expected tensors of this file",
        ),
        ("weights_config.json", lambda _: b"{", "expected weights by name, got"),
        ("sample_inputs/model.pt", lambda _: b"PK", "expected no sample inputs, which are a pickle, got some"),
        ("archive_format", lambda _: b"pt3", "expected the format pt2, got another"),
    ],
)
def test_a_program_that_could_run_something_is_refused_by_the_store(
    member: str, change: Callable[[bytes], bytes], message: str, saved: Path, tmp_path: Path
) -> None:
    spoilt = changed(disarm(saved.read_bytes(), "it"), member, change)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.pt2").write_bytes(spoilt)
    card_file(folder, msgspec.structs.replace(CARD, engine=TORCH)).rename(folder / "model_card.yaml")
    with pytest.raises(InvalidArtifactError, match=rf"^made-here@v1\.0\.0: model\.pt2: .*{message}"):
        Store(tmp_path / "store").publish("made-here", "1.0.0", folder)


@pytest.mark.parametrize(
    "name", ["data__aotinductor__model__x.so", "data__constants__opaque_obj_0", "data__weights__model.pt"]
)
def test_code_and_pickles_beside_a_program_are_refused(name: str, saved: Path) -> None:
    data = changed(disarm(saved.read_bytes(), "it"), "-", bytes, **{f"model__{name}": b""})
    with pytest.raises(InvalidArtifactError, match="is not part of a program"):
        inspect_torch_program(memoryview(data), "it")


def test_the_file_that_torch_writes_is_refused_by_the_store_with_advice(saved: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "folder").mkdir()
    card_file(folder, msgspec.structs.replace(CARD, engine=TORCH)).rename(folder / "model_card.yaml")
    advice = ": publish the file itself, with --engine torch"
    for data, end in ((saved.read_bytes(), advice), (b"no zip at all", "")):
        (folder / "model.pt2").write_bytes(data)
        refused = rf"^made-here@v1\.0\.0: model\.pt2: expected a plain zip, got [^:]*{end}$"
        with pytest.raises(InvalidArtifactError, match=refused):
            Store(tmp_path / "store").publish("made-here", "1.0.0", folder)


# TorchScript


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("script") / "source.ts"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Chooser().eval(), torch.zeros(2, 6)), file)  # type: ignore[no-untyped-call]
    return file


def test_torchscript_is_published_as_it_is_only_if_it_is_allowed(script: Path, tmp_path: Path) -> None:
    options = Options(card=card_file(tmp_path), engine="torch")
    with pytest.raises(InvalidSourceError, match="a program that would be run: use --allow-torchscript"):
        import_source(script, tmp_path / "folder", "x", "1.0.0", options)
    allowed = msgspec.structs.replace(options, allows_torchscript=True)
    report = import_source(script, tmp_path / "folder", "x", "1.0.0", allowed)
    assert report.card.engine == EngineCard("torchscript")
    check_golden(Chooser(), report)
    Store(tmp_path / "store").publish("x", "1.0.0", tmp_path / "folder")
    data = (tmp_path / "folder" / "model.torchscript").read_bytes()
    names = [name.partition("/")[2] for name in read_plain_zip(memoryview(data), "it")]
    assert "data.pkl" in names
    assert not [name for name in names if name.endswith(".debug_pkl") or name.startswith("traced_inputs")]


def test_what_is_no_torchscript_is_refused(saved: Path, script: Path) -> None:
    with pytest.raises(InvalidArtifactError, match=r"expected TorchScript, got a zip without constants\.pkl"):
        check_torchscript(memoryview(disarm(saved.read_bytes(), "it")), "it")
    advice = ": publish the file itself, with --engine torch and --allow-torchscript$"
    with pytest.raises(InvalidArtifactError, match=f"expected a plain zip, .*{advice}"):
        check_torchscript(memoryview(script.read_bytes()), "it")


# A Python policy


def python_card(**engine: Any) -> ModelCard:
    fields = {"entry_point": "pillion_example_policy:mlp", "distribution": EXAMPLE, **engine}
    return msgspec.structs.replace(
        CARD,
        name="mlp",
        observation=[TensorCard("observation", "float32", [8])],
        outputs=[TensorCard("action", "float32", [4])],
        distribution=type(CARD.distribution)(),
        engine=EngineCard("python", **fields),
    )


def publish_weights(folder: Path, *words: str, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    save_file(mlp_weights(), folder / "weights.safetensors")
    command = [str(Path(sys.executable).parent / "pillion"), "artifact", "publish", "weights.safetensors", "mlp@v1.0.0"]
    environment = {**os.environ, **({} if site is None else {"PYTHONPATH": str(site)})}
    return subprocess.run(
        [*command, "--card", "card.yaml", "--store", "store", *words],
        capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False, cwd=folder, env=environment,
    )  # fmt: skip


def test_a_python_policy_runs_for_its_golden_pairs_only_if_it_is_allowed_and_installed(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(EXAMPLE, site)
    card_file(tmp_path, python_card())
    result = publish_weights(tmp_path, site=site)
    assert result.returncode == 0, result.stderr
    assert (
        f"published without golden pairs, so nothing proves how it acts: its package {EXAMPLE} may not run here"
        in result.stdout
    )
    assert "golden.safetensors" not in Store(tmp_path / "store").load("mlp").files
    card_file(tmp_path, msgspec.structs.replace(python_card(), version="1.1.0"))
    result = publish_weights(tmp_path, "--allow-code", EXAMPLE)
    assert "is published already" in result.stderr
    for folder, where, allowed in (("absent", None, EXAMPLE), ("present", site, EXAMPLE.upper().replace("-", "_"))):
        (tmp_path / folder).mkdir()
        card_file(tmp_path / folder, python_card())
        result = publish_weights(tmp_path / folder, "--allow-code", allowed, "--json", site=where)
        assert (result.returncode, result.stderr) == (0, "")
        published = json.loads(result.stdout)
        artifact = Store(tmp_path / folder / "store").load("mlp")
        assert artifact.model == save(mlp_weights())
        if where is None:
            assert (
                published["unproven"] == f"its package {EXAMPLE} is not installed here: install it beside this command"
            )
            assert "golden.safetensors" not in artifact.files
        else:
            # one row alone and in a batch: the same sums, in another order
            assert published["parity"]["differences"]["action"] < 1e-6
            assert decode_golden(artifact.files["golden.safetensors"]).outputs["action"].shape == (64, 4)


@pytest.mark.parametrize(
    ("is_allowed", "is_installed", "why"),
    [
        (False, True, f"may not run here: allow it with --allow-code {EXAMPLE}"),
        (True, False, "is not installed here: install it beside this command"),
        (
            False,
            False,
            f"may not run here and is not installed here: allow it with --allow-code {EXAMPLE} and install it beside this command",
        ),
    ],
)
def test_all_that_a_python_policy_lacks_for_golden_pairs_is_said_at_once(
    is_allowed: bool, is_installed: bool, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_installed:
        install(EXAMPLE, tmp_path / "site")
        monkeypatch.syspath_prepend(tmp_path / "site")
    save_file(mlp_weights(), tmp_path / "weights.safetensors")
    options = Options(card=card_file(tmp_path, python_card()), allowed_code=[EXAMPLE] if is_allowed else [])
    report = import_source(tmp_path / "weights.safetensors", tmp_path / "folder", "mlp", "1.0.0", options)
    assert report.unproven == f"its package {EXAMPLE} {why}"


@pytest.mark.parametrize("with_the", ["first row", "last row", "mean", "number of rows"])
def test_a_python_policy_that_does_not_answer_rows_alike_is_refused(with_the: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(HOSTILE, site)
    engine = {"entry_point": "pillion_hostile_policies:mixing", "distribution": HOSTILE}
    card = msgspec.structs.replace(
        python_card(**engine, arguments={"with_the": with_the}),
        observation=[TensorCard("observation", "float32", [1])],
        outputs=[TensorCard("action", "float32", [1])],
    )
    card_file(tmp_path, card)
    result = publish_weights(tmp_path, "--allow-code", HOSTILE, site=site)
    assert result.returncode == 65
    assert re.fullmatch(
        r"pillion: mlp@v1\.0\.0: output 'action', row \d+, element 0: expected \S+, got \S+, which differs by .*\n",
        result.stderr,
    )
    assert not (tmp_path / "store" / "index.json").exists()


def test_a_python_policy_with_a_state_answers_rows_alike(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(HOSTILE, site)
    engine = {"entry_point": "pillion_hostile_policies:counting", "distribution": HOSTILE}
    card = msgspec.structs.replace(
        python_card(**engine),
        observation=[TensorCard("observation", "float32", [1])],
        outputs=[TensorCard("action", "float32", [1])],
        state=[StateCard("total", "next_total", "float32", [1])],
    )
    card_file(tmp_path, card)
    result = publish_weights(tmp_path, "--allow-code", HOSTILE, "--json", site=site)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["parity"]["rows"] == PARITY_ROWS
    golden = decode_golden(Store(tmp_path / "store").load("mlp").files["golden.safetensors"])
    np.testing.assert_array_equal(golden.outputs["next_total"], golden.inputs["total"] + golden.inputs["observation"])
    assert np.ptp(golden.inputs["total"]) > 0


def test_a_python_policy_of_other_weights_is_refused_when_it_runs(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(EXAMPLE, site)
    card = msgspec.structs.replace(python_card(), outputs=[TensorCard("action", "float32", [5])])
    card_file(tmp_path, card)
    result = publish_weights(tmp_path, "--allow-code", EXAMPLE, site=site)
    assert result.returncode == 65
    assert "the engine that will serve it: " in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "store" / "index.json").exists()


def test_weights_without_a_card_of_a_python_policy_are_refused(tmp_path: Path) -> None:
    save_file(mlp_weights(), tmp_path / "weights.safetensors")
    for options in (Options(), Options(card=card_file(tmp_path))):
        with pytest.raises(InvalidSourceError, match="weights without a network: expected --card with a card whose"):
            import_source(tmp_path / "weights.safetensors", tmp_path / "x", "x", "1.0.0", options)
    card = card_file(tmp_path, python_card())
    (tmp_path / "other.onnx").write_bytes(b"\x08\x07")
    with pytest.raises(InvalidSourceError, match="got ONNX, but the card's engine is python"):
        import_source(tmp_path / "other.onnx", tmp_path / "x", "x", "1.0.0", Options(card=card))


def test_an_engine_that_is_not_the_one_of_a_python_card_is_refused(saved: Path, tmp_path: Path) -> None:
    card = card_file(tmp_path, python_card())
    save_file(mlp_weights(), tmp_path / "weights.safetensors")
    weights = r"^weights\.safetensors: the card's engine is python, --engine is torch: leave --engine out$"
    with pytest.raises(InvalidSourceError, match=weights):
        import_source(
            tmp_path / "weights.safetensors", tmp_path / "x", "x", "1.0.0", Options(card=card, engine="torch")
        )
    program = r"^source\.pt2: the card's engine is python, --engine is %s: expected a card for that engine$"
    for engine in ("torch", "onnx"):
        with pytest.raises(InvalidSourceError, match=program % engine):
            import_source(saved, tmp_path / "x", "x", "1.0.0", Options(card=card, engine=engine))
    assert not (tmp_path / "x").exists()


# Large programs


class Table(nn.Module):
    """A table of which little is used: large, and quick."""

    def __init__(self, floats: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.rand(floats))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        logits = observation[:, :4] * self.table[:4]
        return logits.argmax(1), logits


MEASURE = """
import sys
from pathlib import Path
from pillion_artifacts import Store
from pillion_artifacts.limits import DAEMON_ROWS_MAX, PARITY_ROWS
from pillion_artifacts.publishing.sources import Options, import_source

def kilobytes(word, file="status"):
    return int(Path(f"/proc/self/{file}").read_text().split(word)[1].split()[0])

def publish(version, source):
    folder = Path("folder") / version
    import_source(Path(source), folder, "x", version, Options(card=Path("card.yaml"), engine="torch"))
    Store(Path("store")).publish("x", version, folder)

publish("1.0.0", "small.pt2")
Path("/proc/self/clear_refs").write_text("5")
held, read = kilobytes("VmRSS:"), kilobytes("rchar:", "io")
publish("1.1.0", "large.pt2")
print(kilobytes("VmHWM:") - held, (kilobytes("rchar:", "io") - read) // 1000)
"""


def test_a_large_program_is_read_three_times_and_held_three_times(tmp_path: Path) -> None:
    card_file(tmp_path)
    for name, floats in (("small", 10), ("large", 25_000_000)):
        save_program(Table(floats), tmp_path / f"{name}.pt2", ({0: torch.export.Dim("rows", min=1, max=4096)},))
    size_kb = (tmp_path / "large.pt2").stat().st_size // 1000
    result = subprocess.run(
        [sys.executable, "-c", MEASURE],
        capture_output=True,
        text=True,
        timeout=COMMAND_S_MAX,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    held_kb, read_kb = map(int, result.stdout.split())
    # the file for torch, the copy that torch reads, and the weights; no fourth copy
    assert size_kb < held_kb < 3.6 * size_kb
    # its hash, its members, and the store's copy
    assert size_kb < read_kb < 3.5 * size_kb
