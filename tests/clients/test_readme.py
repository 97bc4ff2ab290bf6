"""The examples of `clients/python/README.md` run as printed, except for the address."""

from __future__ import annotations

import importlib
import re
import warnings
from typing import Any

import numpy as np
import pytest

import pillion
from tests.harness import ROOT, Daemon

README = ROOT / "clients" / "python" / "README.md"
ADDRESS = "ipc:///tmp/pillion/zmq.sock"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _quiet_imports() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("Box2D", "stable_baselines3.common.evaluation"):
            importlib.import_module(name)


def run(example: str, address: str) -> dict[str, Any]:
    """Runs an example and returns its names. It can use the names of the first example."""
    assert ADDRESS in example
    names: dict[str, Any] = {"np": np, "pillion": pillion, "observation": np.zeros(8, np.float32)}
    exec(compile(example.replace(ADDRESS, address), str(README), "exec"), names)
    return names


def test_the_first_example_has_ten_lines_and_runs_by_itself(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    example = EXAMPLES[0]
    assert len(example.splitlines()) == 10
    names: dict[str, Any] = {}
    exec(compile(example.replace(ADDRESS, daemon.address), str(README), "exec"), names)
    assert names["action"].shape == ()
    assert "1.0.0" in capsys.readouterr().out


@pytest.mark.parametrize("number", range(1, len(EXAMPLES)))
def test_every_other_example_runs(daemon: Daemon, number: int) -> None:
    assert run(EXAMPLES[number], daemon.address)


def test_the_page_has_an_example_of_each_interface() -> None:
    for call in ("pillion.connect(", "begin_many(", "evaluate_policy(", "pillion.aio.connect("):
        assert any(call in example for example in EXAMPLES)
