"""`pillion artifact publish` and `migrate` as commands, including every command of publishing's README."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from pillion_artifacts import Store, parse_card
from pillion_artifacts.card.yaml_card import dump_card
from tests.artifacts.publishing.test_inert_pickle import Trap
from tests.artifacts.publishing.test_torch import Chooser, card_file, save_program
from tests.artifacts.support.policy_sources import real_policies
from tests.harness import COMMAND_S_MAX, ROOT, STORE, blob_of

README = (ROOT / "artifacts" / "pillion_artifacts" / "publishing" / "README.md").read_text()
CARDS = ROOT / "tests" / "artifacts" / "card" / "cards"


def pillion(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "pillion"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False, cwd=cwd)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def lander(tmp_path: Path) -> Path:
    """The model and the card of a policy that ships, as files."""
    shutil.copy(blob_of(STORE, "lunar-lander", "model.onnx"), tmp_path / "lander.onnx")
    shutil.copy(blob_of(STORE, "lunar-lander", "model_card.yaml"), tmp_path / "card.yaml")
    return tmp_path


def test_every_command_of_the_readme_does_what_it_says(tmp_path: Path) -> None:
    for file in (*(real_policies() / "sb3").iterdir(), *(real_policies() / "onnx").iterdir()):
        shutil.copy(file, tmp_path)
    shutil.copy(CARDS / "schema-1.yaml", tmp_path / "model_card.yaml")
    save_program(Chooser().eval(), tmp_path / "grasp.pt2", ({0: torch.export.Dim("rows", min=1, max=4096)},))
    card_file(tmp_path).rename(tmp_path / "grasp.yaml")
    save_file({"layer": np.zeros((4, 8), np.float32)}, tmp_path / "weights.safetensors")
    (card,) = blocks("yaml")
    (tmp_path / "mlp.yaml").write_text(card)
    (commands,) = blocks("sh")
    outputs = []
    for line in commands.splitlines():
        result = pillion(*shlex.split(line)[1:], cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, ""), (line, result.stderr)
        outputs.append(result.stdout)
    assert "acts as its source on" in outputs[0]
    assert "(LunarLander-v3)" in outputs[0]
    # Of 256: those whose two best logits are close do not count.
    (compared,) = re.findall(r"acts as its source on (\d+) observations", outputs[3])
    assert 200 < int(compared) <= 256
    assert "published without golden pairs" in outputs[4]
    assert "its package lab-policies is not installed here" in outputs[4]
    assert json.loads(outputs[5])["intact"] is True
    assert Store(tmp_path / "policies").policies() == ["go1", "grasp", "lunar-ppo", "mlp", "pendulum"]
    assert Store(tmp_path / "policies").load("grasp").card.engine.kind == "torch"
    assert Store(tmp_path / "policies").load("go1").card.licence == "Apache-2.0"
    assert parse_card((tmp_path / "new_card.yaml").read_bytes()).name == "old-driver"


def test_the_example_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    (example,) = blocks("python")
    result = subprocess.run(
        [sys.executable, "-c", example],
        capture_output=True,
        text=True,
        timeout=COMMAND_S_MAX,
        check=False,
        cwd=tmp_path,
    )
    assert (result.returncode, result.stdout[:5]) == (0, "256 {"), result.stderr
    folder = pillion("artifact", "publish", "balance", "balance@v1.0.0", "--store", "store", "--json", cwd=tmp_path)
    assert json.loads(folder.stdout)["digest"] == Store(tmp_path / "store").resolve("balance").digest


def test_real_observations_of_a_recording_are_compared_on(lander: Path) -> None:
    recording = ROOT / "bench" / "episodes" / "lunar-lander" / "seed-11.safetensors"
    words = ["--card", "card.yaml", "--observations", str(recording), "--store", "store", "--json"]
    result = pillion("artifact", "publish", "lander.onnx", "other@v2.0.0", *words, cwd=lander)
    assert result.returncode == 0, result.stderr
    published = json.loads(result.stdout)
    assert published["parity"]["observations"] == "given"
    assert published["parity"]["differences"]["action"] == 0.0
    artifact = Store(lander / "store").load("other")
    assert (artifact.digest, artifact.version) == (published["digest"], "2.0.0")
    assert artifact.model == (lander / "lander.onnx").read_bytes()
    assert "golden.safetensors" in artifact.files


def test_observations_of_other_names_are_refused(lander: Path) -> None:
    save_file({"obs": np.zeros((3, 8), np.float32)}, lander / "rows.safetensors")
    words = ["--card", "card.yaml", "--observations", "rows.safetensors", "--store", "store"]
    result = pillion("artifact", "publish", "lander.onnx", "other@v2.0.0", *words, cwd=lander)
    assert (result.returncode, result.stderr) == (
        65,
        "pillion: other@v2.0.0: the observations: there is no 'observation'\n",
    )
    assert not (lander / "store" / "index.json").exists()


def test_a_zip_gets_its_metrics_from_details(tmp_path: Path) -> None:
    source = shutil.copy(real_policies() / "sb3" / "dqn-CartPole-v1.zip", tmp_path)
    details = tmp_path / "details.yaml"
    details.write_text("metrics: {mean_return: {value: 500.0, standard_deviation: 0.0, episodes: 100}}\n")
    words = ["artifact", "publish", str(source), "cart-pole@v1.0.0", "--store", "store", "--details", str(details)]
    result = pillion(*words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert Store(tmp_path / "store").load("cart-pole").card.metrics["mean_return"].episodes == 100
    details.write_text("metric: {}\n")
    result = pillion(*words, cwd=tmp_path)
    assert result.returncode == 65
    assert re.search("details: .*`metric`", result.stderr)


def test_a_pickle_in_disguise_is_refused_in_one_line_and_not_run(tmp_path: Path) -> None:
    trap = Trap(tmp_path)
    for name in ("source.onnx", "source.zip", "source.pt2"):
        (tmp_path / name).write_bytes(pickle.dumps(trap.evil))
        result = pillion("artifact", "publish", name, "evil@v1.0.0", "--store", "store", cwd=tmp_path)
        assert result.returncode == 65
        assert result.stderr.count("\n") == 1
        assert f"{name}: a pickle, which is never executed" in result.stderr
    trap.check()


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    result = pillion("artifact", "publish", "nothing.onnx", "nothing@v1.0.0", "--store", "store", cwd=tmp_path)
    assert result.returncode == 65
    assert result.stderr == (
        "pillion: nothing@v1.0.0: nothing.onnx: no such file: expected a folder with a model, or a file that can be imported\n"
    )


def test_a_card_is_migrated_to_standard_output(tmp_path: Path) -> None:
    shutil.copy(CARDS / "schema-1.yaml", tmp_path / "card.yaml")
    plain = pillion("artifact", "migrate", "card.yaml", cwd=tmp_path)
    assert plain.stdout == dump_card(parse_card((tmp_path / "card.yaml").read_bytes())).decode()
    result = json.loads(pillion("artifact", "migrate", "card.yaml", "--json", cwd=tmp_path).stdout)
    assert (result["was"], result["schema"], result["text"]) == (1, 3, plain.stdout)
    (tmp_path / "card.yaml").write_text("schema: 7\n")
    refused = pillion("artifact", "migrate", "card.yaml", cwd=tmp_path)
    assert (refused.returncode, refused.stderr) == (65, "pillion: model card: schema: expected 1 to 3, got 7\n")
