"""A torch module, a file of torch.export and TorchScript become policies that act as they do."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import Tensor, nn

import pillion_artifacts
from pillion_artifacts import InvalidArtifactError, InvalidSourceError, ModelCard, ParityError, parse_card
from pillion_artifacts.card.model_card import TensorCard
from pillion_artifacts.publishing.common.draft import Details
from pillion_artifacts.publishing.common.folder import write_folder
from pillion_artifacts.publishing.onnx.onnx_source import import_onnx
from pillion_artifacts.publishing.sources import Options, import_source
from pillion_artifacts.publishing.torch.pt2_archive import disarm
from tests.artifacts.publishing.test_inert_pickle import Trap
from tests.artifacts.support.policy_sources import act, session
from tests.harness import COMMAND_S_MAX

DETAILS = Details(name="made-here", version="1.0.0")
RANDOM = np.random.default_rng(5)

CARD = parse_card(b"""
schema: 2
name: made-here
version: 1.0.0
description: Chooses.
licence: MIT
observation: [{name: observation, dtype: float32, shape: [6], low: [-1], high: [1]}]
outputs: [{name: action, dtype: int64, space: Discrete, low: [0], high: [3]}]
distribution: {kind: categorical, logits: logits}
tolerance: {absolute: 1.0e-4, relative: 1.0e-4}
""")
DRIVE = parse_card(b"""
schema: 2
name: made-here
version: 1.0.0
description: Drives.
licence: MIT
observation:
- {name: near, dtype: float32, shape: [3]}
- {name: camera, dtype: uint8, shape: [1, 8, 8], low: [0], high: [255]}
outputs: [{name: action, dtype: float32, shape: [2]}]
state: [{name: memory, output: memory_next, dtype: float32, shape: [5]}]
tolerance: {absolute: 1.0e-4, relative: 1.0e-4}
""")


class Chooser(nn.Module):
    """Action and logits."""

    def __init__(self) -> None:
        super().__init__()
        # The same weights in each run: observations whose two best logits are close do not count as comparisons.
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 4))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.net(observation)
        return logits.argmax(dim=1), logits


class Driver(nn.Module):
    """A convolution, a vector and a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Conv2d(1, 2, 3, stride=2)
        self.remember = nn.GRUCell(3 + 2 * 9, 5)
        self.act = nn.Linear(5, 2)

    def forward(self, near: Tensor, camera: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.relu(self.see(camera.float() / 255)).flatten(1)
        memory = self.remember(torch.cat([near, seen], dim=1), memory)
        return torch.tanh(self.act(memory)), memory


class OneRow(nn.Module):
    """Takes one row and no more."""

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        logits = observation.reshape(2, 6)[:, :4]
        return logits.argmax(dim=1), logits


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of torch.export with a free batch."""
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("exported") / "source.pt2"
    rows = torch.export.Dim("rows", min=1, max=4096)
    save_program(Chooser().eval(), file, ({0: rows},))
    return file


def save_program(module: nn.Module, file: Path, shapes: Any = None, rows: int = 2) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(module, (torch.zeros(rows, 6),), dynamic_shapes=shapes), file)


def observations(rows: int = 50) -> Any:
    return RANDOM.uniform(-1, 1, (rows, 6)).astype(np.float32)


def check_acts_alike(module: nn.Module, folder: str | Path) -> None:
    observation = observations()
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(observation))[0].numpy()
    assert (act(folder, {"observation": observation}) == expected).all()
    assert len(set(expected.tolist())) > 1


def test_a_module_is_exported_with_any_number_of_rows(tmp_path: Path) -> None:
    module = Chooser().train()
    report = pillion_artifacts.export(module, np.zeros((1, 6), np.float32), CARD, tmp_path / "folder")
    assert module.training
    check_acts_alike(module, report.folder)
    written = parse_card((tmp_path / "folder" / "model_card.yaml").read_bytes())
    assert written == report.card
    assert written.lineage.tool_versions["torch"] == torch.__version__.partition("+")[0]


def test_the_model_contains_nothing_about_the_machine_that_made_it(tmp_path: Path) -> None:
    pillion_artifacts.export(Chooser(), torch.zeros(2, 6), CARD, tmp_path / "folder")
    data = (tmp_path / "folder" / "model.onnx").read_bytes()
    for trace in (b"site-packages", str(tmp_path).encode(), str(Path.cwd()).encode(), b"test_torch", b"Chooser"):
        assert trace not in data


def test_a_module_with_several_observations_and_a_memory_is_exported(tmp_path: Path) -> None:
    module = Driver()
    example = {
        "near": torch.zeros(2, 3),
        "camera": torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        "memory": torch.zeros(2, 5),
    }
    report = pillion_artifacts.export(module, example, DRIVE, tmp_path / "folder")
    inputs = {
        "near": RANDOM.standard_normal((7, 3)).astype(np.float32),
        "camera": RANDOM.integers(0, 256, (7, 1, 8, 8)).astype(np.uint8),
        "memory": RANDOM.standard_normal((7, 5)).astype(np.float32),
    }
    with torch.no_grad():
        expected = module(*(torch.from_numpy(values) for values in inputs.values()))
    result = session(report.folder).run(["action", "memory_next"], inputs)
    for wanted, got in zip(expected, result, strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_a_module_that_accepts_only_one_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSourceError, match="OneRow: torch cannot export it: "):
        pillion_artifacts.export(OneRow(), torch.zeros(2, 6), CARD, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": [msgspec.structs.replace(CARD.action(), dtype="int32")]}, "'action': the card says int32"),
        (
            {"distribution": msgspec.structs.replace(CARD.distribution, kind="deterministic", logits="")},
            "got 1 inputs and 2",
        ),
        ({"version": "one"}, "expected MAJOR.MINOR.PATCH"),
    ],
)
def test_a_card_that_contradicts_the_module_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((InvalidSourceError, InvalidArtifactError), match=message):
        pillion_artifacts.export(
            Chooser(), torch.zeros(2, 6), msgspec.structs.replace(CARD, **change), tmp_path / "folder"
        )


def test_a_file_of_torch_export_is_published(exported: Path, tmp_path: Path) -> None:
    report = import_source(exported, tmp_path / "folder", "other", "2.0.0", Options(card=card_file(tmp_path)))
    assert (report.card.name, report.card.version) == ("other", "2.0.0")
    torch.manual_seed(1)
    check_acts_alike(Chooser(), report.folder)


WITHOUT_ONNXSCRIPT = """
import sys
sys.modules["onnxscript"] = None  # an import of it now fails as if it were not installed
from pillion.__main__ import main
sys.exit(main())
"""


def test_a_conversion_without_its_package_names_the_command_and_the_other_way(exported: Path, tmp_path: Path) -> None:
    words = ["artifact", "publish", str(exported), "made-here@v1.0.0", "--card", str(card_file(tmp_path))]
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_ONNXSCRIPT, *words, "--store", str(tmp_path / "store")],
        capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False,
    )  # fmt: skip
    assert result.returncode == 65
    assert result.stderr == (
        f"pillion: made-here@v1.0.0: {exported.name}: converting to ONNX needs the package 'onnxscript': "
        "pip install 'pillion[publish]'; or choose the engine torch (--engine torch), which serves it as it is\n"
    )


def test_a_file_of_torch_export_with_one_row_gets_a_free_batch(tmp_path: Path) -> None:
    module = Chooser().eval()
    save_program(module, tmp_path / "source.pt2", rows=1)
    report = import_source(tmp_path / "source.pt2", tmp_path / "f", "x", "1.0.0", Options(card=card_file(tmp_path)))
    check_acts_alike(module, report.folder)


def card_file(folder: Path, card: ModelCard = CARD) -> Path:
    from pillion_artifacts.card.yaml_card import dump_card

    (folder / "card.yaml").write_bytes(dump_card(card))
    return folder / "card.yaml"


def _changed(file: Path, member: str, change: Callable[[bytes], bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith(member) else content)
    return made.getvalue()


def _in_json(*changes: tuple[str, str]) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        text = content.decode()
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        json.loads(text)
        return text.encode()

    return change


@pytest.mark.parametrize(
    ("member", "old", "new", "message"),
    [
        ("model.json", "torch.ops.aten.tanh.default", "torch.hub.load", "operator 'torch.hub.load' is not one"),
        ("model.json", "torch.ops.aten.tanh.default", "torch.ops.aten.from_file.default", "is not one of torch's own"),
        ("model.json", "torch.ops.aten.tanh.default", "#evil:run", "operator '#evil:run' is not one"),
        ("model.json", "torch.ops.aten.tanh.default", "torch.ops.aten.__class__.mro", "is not one of torch's own"),
        (
            "model.json",
            '\\"type\\": \\"builtins.tuple\\", \\"context\\": \\"null\\"',
            '\\"type\\": \\"builtins.tuple\\", \\"context\\": \\"{\\\\\\"__enum__\\\\\\": 1}\\"',
            "arguments by other keys than names",
        ),
        ("model.json", "Symbol('s", "__import__('s", "is not a size"),
        ("weights_config.json", '"use_pickle": false', '"use_pickle": true', "is a pickle"),
    ],
)
def test_a_program_with_code_is_refused(member: str, old: str, new: str, message: str, exported: Path) -> None:
    with pytest.raises(InvalidSourceError, match=message):
        disarm(_changed(exported, member, _in_json((old, new))), "it")


def test_sample_inputs_with_code_are_refused_without_running_it(exported: Path, tmp_path: Path) -> None:
    trap = Trap(tmp_path)
    saved = io.BytesIO()
    torch.save((trap.evil,), saved)
    for content in (saved.getvalue(), pickle.dumps(trap.evil)):
        (tmp_path / "source.pt2").write_bytes(_changed(exported, "sample_inputs/model.pt", lambda _: content))  # noqa: B023 - called at once
        with pytest.raises(InvalidSourceError, match="sample inputs are not plain tensors"):
            import_source(tmp_path / "source.pt2", tmp_path / "f", "x", "1.0.0", Options(card=card_file(tmp_path)))
    trap.check()


def test_a_program_with_other_members_is_refused(exported: Path) -> None:
    for name in (
        "data/constants/opaque_obj_0",
        "data/aotinductor/model/x.so",
        "data/weights/model.pt",
        "models/b.json",
    ):
        made = io.BytesIO(exported.read_bytes())
        with zipfile.ZipFile(made, "a") as archive:
            archive.writestr(f"source/{name}", b"")
        with pytest.raises(InvalidSourceError, match=r"is not part of a program|got other members"):
            disarm(made.getvalue(), "it")


def test_guards_and_traces_are_removed(exported: Path) -> None:
    same_rows = "L['a'].size()[0] == L['b'].size()[0]"
    guarded = _changed(exported, "model.json", _in_json(('"guards_code": []', f'"guards_code": ["{same_rows}"]')))
    with zipfile.ZipFile(io.BytesIO(disarm(guarded, "it"))) as archive:
        (model,) = (archive.read(name) for name in archive.namelist() if name.endswith("model.json"))
    assert json.loads(model)["guards_code"] == []
    assert b"stack_trace" not in model
    for guard in ("L['a'].size()[0] % 2 == 0", "open('x', 'w')"):
        guarded = _changed(exported, "model.json", _in_json(('"guards_code": []', f'"guards_code": ["{guard}"]')))
        with pytest.raises(InvalidSourceError, match="exported under a condition"):
            disarm(guarded, "it")


def test_torchscript_is_read_only_if_it_is_allowed(tmp_path: Path) -> None:
    module = Chooser().eval()
    file = tmp_path / "source.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, torch.zeros(2, 6)), file)  # type: ignore[no-untyped-call]
    options = Options(card=card_file(tmp_path))
    with pytest.raises(InvalidSourceError, match="a program that would be run: use --allow-torchscript"):
        import_source(file, tmp_path / "folder", "x", "1.0.0", options)
    allowed = msgspec.structs.replace(options, allows_torchscript=True)
    report = import_source(file, tmp_path / "folder", "x", "1.0.0", allowed)
    check_acts_alike(module, report.folder)
    with pytest.raises(InvalidSourceError, match="expected a card"):
        import_source(file, tmp_path / "g", "x", "1.0.0", msgspec.structs.replace(allowed, card=None))


def test_weights_alone_and_pickles_are_refused_by_name(tmp_path: Path) -> None:
    trap = Trap(tmp_path)
    file = tmp_path / "source.pth"
    torch.save(Chooser().state_dict(), file)
    with pytest.raises(InvalidSourceError, match=r"a file of torch\.save, whose pickle is never executed"):
        import_source(file, tmp_path / "folder", "x", "1.0.0", Options())
    file.write_bytes(pickle.dumps(trap.evil))
    with pytest.raises(InvalidSourceError, match="a pickle, which is never executed"):
        import_source(file, tmp_path / "folder", "x", "1.0.0", Options())
    trap.check()


def _fitted() -> Any:
    """A pipeline from nine numbers to six."""
    return make_pipeline(StandardScaler(), PCA(6)).fit(RANDOM.standard_normal((100, 9)) * 3 + 1)


def _card_of_pipeline() -> ModelCard:
    taken = msgspec.structs.replace(CARD.observation[0], shape=[9], low=[], high=[])
    return msgspec.structs.replace(CARD, observation=[taken])


def test_a_pipeline_is_fused_in_front_of_the_policy(tmp_path: Path) -> None:
    pipeline, module = _fitted(), Chooser()
    report = pillion_artifacts.export(
        module, torch.zeros(2, 6), _card_of_pipeline(), tmp_path / "folder", preprocessor=pipeline
    )
    observation = (RANDOM.standard_normal((60, 9)) * 3 + 1).astype(np.float32)
    seen = torch.from_numpy(pipeline.transform(observation).astype(np.float32))
    with torch.no_grad():
        expected = module.eval()(seen)[0].numpy()
    assert (act(report.folder, {"observation": observation}) == expected).mean() > 0.95
    (step,) = report.card.preprocessing
    assert (step.step, step.detail) == ("pipeline", "StandardScaler, PCA")
    assert report.card.observation[0].shape == [9]
    assert sorted(entry.name for entry in (tmp_path / "folder").iterdir()) == [
        "golden.safetensors",
        "model.onnx",
        "model_card.yaml",
    ]


def test_a_pipeline_of_doubles_is_fused_in_front_of_a_policy_of_floats(tmp_path: Path) -> None:
    pipeline, module = _fitted(), nn.Sequential(nn.Linear(6, 2), nn.Tanh())
    card = ModelCard(
        schema=3,
        name="doubles",
        version="1.0.0",
        description="Sees what MuJoCo shows.",
        licence="MIT",
        observation=[TensorCard("observation", "float64", [9])],
        outputs=[TensorCard("action", "float32", [2])],
    )
    report = pillion_artifacts.export(module, torch.zeros(2, 6), card, tmp_path / "folder", preprocessor=pipeline)
    observation = RANDOM.standard_normal((40, 9)) * 3 + 1
    with torch.no_grad():
        expected = module(torch.from_numpy(pipeline.transform(observation).astype(np.float32))).numpy()
    np.testing.assert_allclose(act(report.folder, {"observation": observation}), expected, rtol=1e-5, atol=1e-5)


def test_a_pipeline_that_cannot_be_converted_is_refused(tmp_path: Path) -> None:
    pipeline = make_pipeline(FunctionTransformer(np.sin)).fit(np.zeros((3, 9)))
    with pytest.raises(InvalidSourceError, match="the pipeline: skl2onnx cannot convert it"):
        pillion_artifacts.export(
            Chooser(), torch.zeros(2, 6), _card_of_pipeline(), tmp_path / "folder", preprocessor=pipeline
        )


def test_a_pipeline_that_makes_another_shape_is_refused(tmp_path: Path) -> None:
    pipeline = StandardScaler().fit(RANDOM.standard_normal((9, 9)))
    with pytest.raises(InvalidSourceError, match=r"makes float32 \[9\], the policy takes float32 \[6\]"):
        pillion_artifacts.export(
            Chooser(), torch.zeros(2, 6), _card_of_pipeline(), tmp_path / "folder", preprocessor=pipeline
        )


def test_a_preprocessor_of_onnx_is_fused_too(exported: Path, tmp_path: Path) -> None:
    from skl2onnx import to_onnx

    pipeline = _fitted()
    (tmp_path / "front.onnx").write_bytes(
        to_onnx(pipeline, np.zeros((1, 9), np.float32), target_opset=18).SerializeToString()
    )
    options = Options(card=card_file(tmp_path), preprocessor=tmp_path / "front.onnx")
    report = import_source(exported, tmp_path / "folder", "x", "1.0.0", options)
    assert report.card.observation[0].shape == [9]
    assert report.card.preprocessing[0].digest.startswith("sha256:")


def test_a_model_that_does_not_act_as_its_module_is_not_written(exported: Path, tmp_path: Path) -> None:
    import_source(exported, tmp_path / "right", "x", "1.0.0", Options(card=card_file(tmp_path)))
    right = import_onnx(tmp_path / "right" / "model.onnx", DETAILS, CARD)
    other = Chooser().eval()

    class Other:
        """Another network than the one that was exported."""

        def run(self, inputs: dict[str, Any]) -> Any:
            from pillion_artifacts.publishing.torch.torch_source import TorchSource

            return TorchSource(other, ["observation"], ["action", "logits"], "logits").run(inputs)

    torch.manual_seed(9)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    with pytest.raises(ParityError, match=r"output '(action|logits)', row \d+"):
        write_folder(tmp_path / "wrong", msgspec.structs.replace(right, source=Other()))
    assert not (tmp_path / "wrong").exists()
