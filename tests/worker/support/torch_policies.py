"""Torch policies for workers, exported here from small modules."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from pillion_artifacts.card.model_card import StateCard
from pillion_protocol import Spec, TensorSpec
from pilliond.engine.load_request import load_request
from tests.harness import START_S_MAX
from tests.worker.support.policies import Policy
from tests.worker.support.processes import PACKAGES, Host

REFUSALS_S_MAX: Final = 240
"""For torch to start on a busy machine, and to load some twenty programs."""

OBSERVATION = TensorSpec("observation", "float32", [3])
ACTION = TensorSpec("action", "float32", [1])
ANY = torch.export.Dim("rows", min=1, max=4096)


class Summing(nn.Module):
    """The sum of each row."""

    def forward(self, observation: Tensor) -> Tensor:
        return observation.sum(dim=1, keepdim=True)


class Recurrent(nn.Module):
    """An LSTM cell: an action, the next hidden and cell states in a tuple of their own, and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 5)
        self.logits = nn.Linear(5, 4)

    def forward(self, observation: Tensor, hidden: Tensor, cell: Tensor) -> Any:
        hidden, cell = self.cell(observation, (hidden, cell))
        logits = self.logits(hidden)
        return logits.argmax(dim=1), (hidden, cell), logits


class ByName(nn.Module):
    """Several inputs, and a dictionary of outputs in another order than the card's."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 2)

    def forward(self, camera: Tensor, words: Tensor) -> dict[str, Tensor]:
        seen = camera.float().mean(dim=(1, 2, 3))
        said = self.words(words).sum(dim=(1, 2))
        return {"value": (seen - said)[:, None], "action": torch.stack([seen, said], dim=1)}


class OfRows(nn.Module):
    """Returns what a function makes of the observations."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, observation: Tensor) -> Any:
        return self.function(observation)


class Failing(nn.Module):
    """Fails for a negative number in the first row."""

    def forward(self, observation: Tensor) -> Tensor:
        if bool(observation[0, 0] < 0):
            raise RuntimeError("negative")
        return observation.sum(dim=1, keepdim=True)


class Shrinking(nn.Module):
    """Returns only one row where the first number is negative, and another dtype where it is above 100."""

    def forward(self, observation: Tensor) -> Tensor:
        action = observation.sum(dim=1, keepdim=True)
        if bool(observation[0, 0] < 0):
            return action[:1]
        if bool(observation[0, 0] > 100):
            return action.double()
        return action


def export(module: nn.Module, *example: Tensor, rows: Any = ANY) -> bytes:
    """A file of `torch.export`, whose axis 0 is `rows` in every input; None: as long as in the example."""
    shapes = None if rows is None else tuple({0: rows} for _ in example)
    return _saved(module, example, None, shapes)


def export_by_keyword(module: nn.Module, **example: Tensor) -> bytes:
    """The same, with inputs by keyword, in the order of the example."""
    return _saved(module, (), example, {name: {0: ANY} for name in example})


def _saved(module: nn.Module, example: tuple[Tensor, ...], by_name: dict[str, Any] | None, shapes: Any) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(module.eval(), example, by_name, dynamic_shapes=shapes), file)
    return file.getvalue()


def script(module: nn.Module) -> bytes:
    """The same as TorchScript."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module.eval()), file)
    return file.getvalue()


def policy(
    model: bytes,
    observation: Sequence[TensorSpec] = (OBSERVATION,),
    outputs: Sequence[TensorSpec] = (ACTION,),
    parameters: Sequence[str] = (),
    states: Sequence[StateCard] = (),
) -> Policy:
    """A policy of that file, by default with three floats in and one out."""
    return Policy(model, Spec(list(observation), list(outputs)), list(parameters), list(states))


def summing(rows: Any = ANY, count: int = 2) -> Policy:
    """Its action is the sum of its three floats."""
    return policy(export(Summing(), torch.zeros(count, 3), rows=rows))


def recurrent(module: nn.Module) -> Policy:
    """`Recurrent` with its states, and its logits as a parameter."""
    states = [StateCard("hidden", "hidden_next", "float32", [5]), StateCard("cell", "cell_next", "float32", [5])]
    outputs = [TensorSpec("action", "int64", [])]
    model = export(module, torch.zeros(2, 3), torch.zeros(2, 5), torch.zeros(2, 5))
    return policy(model, outputs=outputs, parameters=["logits"], states=states)


class TorchHost(Host):
    """A host whose workers run torch, which takes seconds to start."""

    wait_s_max = START_S_MAX

    def __init__(self, policy: Policy, rows_max: int = 8, kind: str = "torch", **settings: Any) -> None:
        device = {name: settings.pop(name) for name in ("device", "precision") if name in settings}
        super().__init__(policy, rows_max, engine="torch", **settings)
        self.engine._request = self.engine._request._replace(model_kind=kind, **device)


def refusals(cases: dict[str, tuple[Policy, dict[str, Any]]], folder: Path) -> dict[str, str]:
    """Why a fresh interpreter refuses each of these policies with these settings, or which fallback it takes; else nothing.

    One process for all: to start torch takes seconds.
    """
    for name, (policy, settings) in cases.items():
        request = load_request(
            policy.spec,
            policy.parameters,
            policy.states,
            **{"engine": "torch", "model_kind": "torch", "rows_max": 8, **settings},
        )
        (folder / f"{name}.model").write_bytes(policy.model)
        (folder / f"{name}.json").write_text(json.dumps(request.to_packet()))
    code = """
import json, pathlib, sys
from pillion_worker.engines.interface import load_engine
from pillion_worker.errors import EngineError
from pillion_worker.tensors import LoadRequest
said = {}
for file in pathlib.Path(sys.argv[1]).glob("*.json"):
    request = LoadRequest.from_packet(json.loads(file.read_text()))
    try:
        engine = load_engine(file.with_suffix(".model").read_bytes(), request)
        said[file.stem] = engine.describe().get("fallback", "")
    except EngineError as error:
        said[file.stem] = str(error)
print(json.dumps(said))
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env={**os.environ, "PYTHONPATH": str(PACKAGES)},
        capture_output=True,
        text=True,
        timeout=REFUSALS_S_MAX,
        check=True,
    )
    said: dict[str, str] = json.loads(result.stdout)
    return said


def seeded(module_class: type[nn.Module]) -> Any:
    """A module with the same weights in each test."""
    torch.manual_seed(3)
    return module_class().eval()


def random_rows(*shape: int) -> Any:
    """Floats from a fixed seed."""
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)
